"""How well a model knows the answers to a job's probes.

By teacher forcing, which is quick and has no luck in it; of the free ones also by what the model says itself.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trainer.answering import Answerer, prompt_ids
from trainer.batches import build
from trainer.chat_tokens import TokenSequence, tokenise
from trainer.contract import BadSpec, Interrupted, JobSpec, Message, Probe
from trainer.opening import Opened
from trainer.packing import layout
from trainer.prepare import read_probes
from trainer.progress import ProgressLog
from trainer.ranks import Alone
from trainer.report import Flag
from trainer.scores import Score, judged


@dataclass(frozen=True, slots=True)
class Scoring:
    """A job's probes as tokens of one tokenizer; `owner` says to which probe each sequence belongs."""

    spec: JobSpec
    probes: list[Probe]
    tokenizer: PreTrainedTokenizerBase
    sequences: list[TokenSequence]
    owner: list[int]
    tokens: list[int]  # of each probe's answer
    stop: Flag
    log: ProgressLog
    team: Alone  # the processes that score together

    def forced(self, opened: Opened, counted: list[int]) -> list[Score]:
        """loss, token_accuracy and exact of each probe.

        The loss is told per token as `counted` has them: a model with another tokenizer is held to the same
        text, not to the same tokens. Raises Interrupted.
        """
        opened.model.eval()
        loss, right = [0.0] * len(self.probes), [0] * len(self.probes)
        micro_batches = layout(
            [sequence.length for sequence in self.sequences],
            packing=opened.packing,
            max_seq_length=self.spec.recipe.max_seq_length,
            micro_batch_tokens=opened.micro_batch_tokens,
        )
        pad = int(self.tokenizer.pad_token_id)
        with torch.no_grad():
            for micro in micro_batches:
                self._live()
                batch = build(micro, self.sequences, packing=opened.packing, pad=pad, device=opened.device)
                logits = opened.head.logits(batch)
                losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none").tolist()
                hits = (logits.argmax(-1) == batch.labels).tolist()
                for sequence, nats, hit in zip(batch.owners.tolist(), losses, hits, strict=True):
                    loss[self.owner[sequence]] += nats
                    right[self.owner[sequence]] += hit
        return [
            {
                "loss": loss[number] / max(1, counted[number]),
                "token_accuracy": right[number] / max(1, tokens),
                "exact": right[number] == tokens,
            }
            for number, tokens in enumerate(self.tokens)
        ]

    def free(self, opened: Opened, scores: list[Score]) -> list[Score]:
        """The same scores; those of free probes with the model's own answer and how near it comes. Raises
        Interrupted."""
        chosen = [number for number, probe in enumerate(self.probes) if probe.free]
        if not chosen:
            return scores
        opened.model.eval()
        limit, new = self.spec.recipe.max_seq_length, self.spec.max_new_tokens
        prompts = [prompt_ids(self.tokenizer, _asked(self.probes[n]), limit, new) for n in chosen]
        answerer = Answerer(opened.model, self.tokenizer, opened.device, opened.micro_batch_tokens, self.team.agree)
        told = list(scores)
        for group in answerer.groups(prompts, new):
            answers = answerer.answer([prompts[n] for n in group], new, self._live)
            for number, answer in zip((chosen[n] for n in group), answers, strict=True):
                told[number] = {**scores[number], **judged(answer.text, self.probes[number].answer)}
        return told

    def score(self, opened: Opened, counted: list[int] | None = None) -> list[Score]:
        """All that is measured of each probe. Raises Interrupted."""
        return self.free(opened, self.forced(opened, self.tokens if counted is None else counted))

    def _live(self) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped while scoring the probes")
        self.log.beat("evaluating")


def make_scoring(
    job: Path,
    spec: JobSpec,
    tokenizer: PreTrainedTokenizerBase,
    stop: Flag,
    log: ProgressLog,
    team: Alone | None = None,
) -> Scoring | None:
    """What is asked in this job; None where nothing is. Raises BadSpec, which names the probe."""
    probes = read_probes(job, spec)
    if not probes:
        return None
    sequences: list[TokenSequence] = []
    owner: list[int] = []
    tokens = []
    for number, probe in enumerate(probes):
        if not probe.answer.strip():
            raise BadSpec(f"probe {probe.id}: its answer is blank")
        try:
            known = Message(role="assistant", content=probe.answer, loss=True)
            some = tokenise(tokenizer, [*_asked(probe), known], spec.recipe.max_seq_length).sequences
        except BadSpec as error:
            raise BadSpec(f"probe {probe.id}: {error}") from error
        sequences += some
        owner += [number] * len(some)
        tokens.append(sum(sequence.loss_tokens for sequence in some))
    return Scoring(spec, probes, tokenizer, sequences, owner, tokens, stop, log, team or Alone())


def _asked(probe: Probe) -> list[Message]:
    """What was said before the answer; none of it is learnt or scored."""
    return [Message(role=message.role, content=message.content) for message in probe.messages]
