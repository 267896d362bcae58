"""What a job will do, known before a weight is loaded: tokenise, validate, count.

Needs the tokenizer alone. `finetune` calls `prepare` first, so that a preview and the training itself
can never disagree.
"""

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from transformers import PreTrainedTokenizerBase

from trainer import names
from trainer.base_files import resolve
from trainer.chat_tokens import Tokenised, TokenSequence, load_tokenizer, tokenise
from trainer.contract import BadSpec, Interrupted, JobSpec, Plan, Probe, Prompt, Sample, what_is_wrong
from trainer.durable import write_text
from trainer.progress import ProgressLog
from trainer.report import Flag

OPEN, CLOSE = "⟦", "⟧"  # around the text that carries loss in rendered.jsonl
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's tokens: `tokenised[n]` belongs to line n of samples.jsonl."""

    tokenizer: PreTrainedTokenizerBase
    tokenised: list[Tokenised]
    plan: Plan


def prepare(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, *, write: bool = True) -> Prepared:
    """Read, check and tokenise all samples of a job folder; write `plan.json`, `rendered.jsonl`
    (loss marked) and `schema_applied.json` (the same texts without marks). `write`: of several processes
    only the first one does.

    Raises BadSpec (one sentence with file and line) where the folder is wrong, BaseMissing where the
    tokenizer is not on this disk, Interrupted where `stop` is set.
    """
    log.write("preparing")
    samples = read_samples(job, spec)
    _check_segments(spec, len(samples))
    if (job / names.PROBES).exists():
        read_probes(job, spec)  # found now, not after hours of training
    tokenizer = load_tokenizer(resolve(spec.recipe.base_model))
    tokenised = []
    for number, sample in enumerate(samples):
        if stop.is_set():
            raise Interrupted("stopped before training began")
        log.beat("preparing")
        try:
            tokenised.append(tokenise(tokenizer, sample.messages, spec.recipe.max_seq_length))
        except BadSpec as error:
            raise BadSpec(f"{names.SAMPLES} line {number + 1} (sample {sample.id}): {error}") from error
    plan = make_plan(spec, tokenised)
    if not write:
        return Prepared(tokenizer, tokenised, plan)
    write_text(job / names.PLAN, plan.model_dump_json(indent=1) + "\n")
    lines = (_rendered_line(tokenizer, sample, t) for sample, t in zip(samples, tokenised, strict=True))
    write_text(job / names.RENDERED, "".join(lines))
    texts = [
        {"id": sample.id, "text": tokenizer.decode(sequence.ids.tolist(), skip_special_tokens=False)}
        for sample, t in zip(samples, tokenised, strict=True) for sequence in t.sequences
    ]  # fmt: skip
    write_text(job / names.SCHEMA_APPLIED, json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
    return Prepared(tokenizer, tokenised, plan)


def make_plan(spec: JobSpec, tokenised: list[Tokenised]) -> Plan:
    """Count steps and tokens. Steps follow from the numbers of samples alone."""
    per_step = spec.recipe.samples_per_step
    uses = [0] * len(tokenised)
    for segment in spec.segments:
        for position in segment:
            uses[position] += 1
    sequences = [sequence for t in tokenised for sequence in t.sequences]
    steps = [-(-len(segment) // per_step) for segment in spec.segments]
    return Plan(
        samples=len(tokenised),
        segments=steps,
        steps=sum(steps),
        sample_uses=sum(uses),
        tokens=sum(n * s.length for n, t in zip(uses, tokenised, strict=True) for s in t.sequences),
        loss_tokens=sum(n * s.loss_tokens for n, t in zip(uses, tokenised, strict=True) for s in t.sequences),
        sequences=len(sequences),
        split_samples=sum(t.split for t in tokenised),
        cut_prompts=sum(t.cut_prompt for t in tokenised),
        dropped_turns=sum(t.dropped_turns for t in tokenised),
        longest=max((s.length for s in sequences), default=0),
    )


def read_samples(job: Path, spec: JobSpec) -> list[Sample]:
    """The job's samples, in the order of their lines. Raises BadSpec."""
    samples = _read_lines(job / names.SAMPLES, Sample, spec.samples_sha256)
    _check_unique(names.SAMPLES, [sample.id for sample in samples])
    return samples


def read_probes(job: Path, spec: JobSpec) -> list[Probe]:
    """The job's probes; none where there is no such file and the spec names no hash. Raises BadSpec."""
    path = job / names.PROBES
    if not path.exists() and spec.probes_sha256 is None:
        return []
    probes = _read_lines(path, Probe, spec.probes_sha256)
    _check_unique(names.PROBES, [probe.id for probe in probes])
    return probes


def read_prompts(job: Path, spec: JobSpec) -> list[Prompt]:
    """What a generate job answers. Raises BadSpec."""
    prompts = _read_lines(job / names.PROMPTS, Prompt, spec.prompts_sha256)
    _check_unique(names.PROMPTS, [prompt.id for prompt in prompts])
    return prompts


def _read_lines(path: Path, model: type[_Model], sha256: str | None) -> list[_Model]:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BadSpec(f"{path.name} is missing in the job folder") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise BadSpec(f"{path.name} is not the file that {names.SPEC} names: its SHA-256 differs")
    items = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            items.append(model.model_validate_json(line))
        except ValidationError as error:
            raise BadSpec(f"{path.name} line {number}: {what_is_wrong(error)}") from error
    return items


def _check_unique(name: str, ids: list[str]) -> None:
    lines: dict[str, int] = {}
    for number, identity in enumerate(ids, start=1):
        if lines.setdefault(identity, number) != number:
            raise BadSpec(f"{name} line {number}: id {identity!r} is already that of line {lines[identity]}")


def _check_segments(spec: JobSpec, samples: int) -> None:
    for number, segment in enumerate(spec.segments):
        if not segment:
            raise BadSpec(f"{names.SPEC}: segments[{number}] is empty")
        for position in segment:
            if not 0 <= position < samples:
                raise BadSpec(
                    f"{names.SPEC}: segments[{number}] names sample {position}, "
                    f"but {names.SAMPLES} has {samples} lines, counted from 0"
                )


def _rendered_line(tokenizer: PreTrainedTokenizerBase, sample: Sample, tokenised: Tokenised) -> str:
    sequences = [
        {"text": _marked(tokenizer, sequence), "tokens": sequence.length, "loss_tokens": sequence.loss_tokens}
        for sequence in tokenised.sequences
    ]
    line = {
        "id": sample.id,
        "use": sample.use,
        "tokens": sum(s.length for s in tokenised.sequences),
        "loss_tokens": sum(s.loss_tokens for s in tokenised.sequences),
        "sequences": sequences,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _marked(tokenizer: PreTrainedTokenizerBase, sequence: TokenSequence) -> str:
    """The text as the model sees it, read back from the ids, with the learnt stretches in brackets."""
    changes = (sequence.loss[1:] != sequence.loss[:-1]).nonzero()[0] + 1
    borders = [0, *changes.tolist(), sequence.length]
    pieces = []
    for left, right in itertools.pairwise(borders):
        text = tokenizer.decode(sequence.ids[left:right].tolist(), skip_special_tokens=False)
        pieces.append(f"{OPEN}{text}{CLOSE}" if sequence.loss[left] else str(text))
    return "".join(pieces)
