"""How well a model knows the answers to a job's probes, by teacher forcing: quick, and without sampling."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trainer import base_files, checkpoints, names
from trainer.batches import build
from trainer.chat_tokens import load_tokenizer, tokenise
from trainer.contract import BadSpec, Interrupted, JobSpec, Message, Probe
from trainer.durable import write_text
from trainer.opening import Opened, for_scoring, open_for_reading
from trainer.packing import layout
from trainer.prepare import read_probes
from trainer.progress import ProgressLog
from trainer.report import Flag, Report


@dataclass(slots=True)
class _Score:
    loss: float = 0.0  # summed, nats
    right: int = 0  # answer tokens that are the model's first choice
    tokens: int = 0


def evaluate(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, report: Report) -> None:
    """A job that only scores: the parent checkpoint, or the base where there is none.

    Raises BadSpec (also where there are no probes), BaseMissing, NoDevice, Interrupted.
    """
    if not (job / names.PROBES).exists():
        raise BadSpec(f"an evaluate job needs {names.PROBES}")
    folder = None
    tokenizer = load_tokenizer(base_files.resolve(spec.recipe.base_model))
    log.write("loading")
    if spec.parent is not None:
        found = checkpoints.parent(job, spec.parent)
        folder = found.folder
        report.global_step = found.state.global_step
    model, device = open_for_reading(spec.recipe.base_model, folder, spec.recipe)
    score_probes(job, spec, for_scoring(model, spec.recipe, device), tokenizer, stop, log, report)


@torch.no_grad()
def score_probes(
    job: Path,
    spec: JobSpec,
    opened: Opened,
    tokenizer: PreTrainedTokenizerBase,
    stop: Flag,
    log: ProgressLog,
    report: Report,
) -> None:
    """Score `probes.jsonl`, if there is one, into `metrics.json` and the report.

    Metrics: `probes` (their number), `probe_loss` (nats, mean over answer tokens), `probe_token_accuracy`
    and `probe_exact` (share of answers of which every token is the first choice). Raises Interrupted.
    """
    probes = read_probes(job, spec)
    if not probes:
        return
    log.write("evaluating")
    opened.model.eval()
    limit = spec.recipe.max_seq_length
    tokenised = [tokenise(tokenizer, _asked_and_answered(probe), limit).sequences for probe in probes]
    sequences = [sequence for several in tokenised for sequence in several]
    owner = [number for number, several in enumerate(tokenised) for _ in several]
    scores = [_Score() for _ in probes]
    micro_batches = layout(
        [sequence.length for sequence in sequences],
        packing=opened.packing,
        max_seq_length=limit,
        micro_batch_tokens=opened.micro_batch_tokens,
    )
    pad = int(tokenizer.pad_token_id)
    for micro in micro_batches:
        if stop.is_set():
            raise Interrupted("stopped while scoring the probes")
        batch = build(micro, sequences, packing=opened.packing, pad=pad, device=opened.device)
        logits = opened.head.logits(batch)
        losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
        right = (logits.argmax(-1) == batch.labels).tolist()
        for sequence, loss, hit in zip(batch.owners.tolist(), losses, right, strict=True):
            score = scores[owner[sequence]]
            score.loss += loss
            score.right += hit
            score.tokens += 1
        log.beat("evaluating")
    report.metrics = _metrics(scores)
    lines = [_line(probe, score) for probe, score in zip(probes, scores, strict=True)]
    text = json.dumps({"metrics": report.metrics, "probes": lines}, ensure_ascii=False, indent=1)
    write_text(job / names.METRICS, text + "\n")


def _asked_and_answered(probe: Probe) -> list[Message]:
    asked = [Message(role=message.role, content=message.content) for message in probe.messages]
    return [*asked, Message(role="assistant", content=probe.answer, loss=True)]


def _metrics(scores: list[_Score]) -> dict[str, float]:
    tokens = max(1, sum(score.tokens for score in scores))
    return {
        "probes": float(len(scores)),
        "probe_loss": sum(score.loss for score in scores) / tokens,
        "probe_token_accuracy": sum(score.right for score in scores) / tokens,
        "probe_exact": sum(score.right == score.tokens for score in scores) / len(scores),
    }


def _line(probe: Probe, score: _Score) -> dict[str, object]:
    tokens = max(1, score.tokens)
    return {
        "id": probe.id,
        "memory": probe.memory,
        "loss": score.loss / tokens,
        "token_accuracy": score.right / tokens,
        "exact": score.right == score.tokens,
        "tokens": score.tokens,
    }
