"""Whether a finished finetune becomes the version that is relied on. Pure, with reasons."""

import math
from dataclasses import dataclass

from trainer.contract import JobResult


@dataclass(frozen=True, slots=True)
class Verdict:
    promoted: bool
    reason: str


def decide(result: JobResult, *, planned_steps: int, planned_samples: int) -> Verdict:
    """A candidate is promoted where every planned step was taken on every planned sample, with finite loss."""
    if result.steps != planned_steps:
        return Verdict(False, f"{result.steps} of {planned_steps} planned steps were taken")
    if result.samples_seen != planned_samples:
        return Verdict(False, f"{result.samples_seen} of {planned_samples} planned samples were seen")
    if result.last_loss is None or not math.isfinite(result.last_loss):
        return Verdict(False, f"the last loss is {result.last_loss}")
    return Verdict(True, f"all {planned_steps} steps taken, last loss {result.last_loss:.4f}")
