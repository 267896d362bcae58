"""Notices that a training run has left the road, before its state overwrites a good one."""

import math
from dataclasses import dataclass

from trainer.contract import Diverged

_MEMORY = 0.95  # share of the old mean that a step keeps
_STRIKES = 3


@dataclass(slots=True)
class Detector:
    """A running mean of the loss (nats) and the number of steps in a row that were far above it.

    It is part of the checkpoint: at a border between jobs it neither forgets nor starts over. `first` is the
    loss of the job's first step: data that is strange to the model begins far up, and that is no divergence.
    """

    vocabulary: int
    mean: float | None = None
    strikes: int = 0
    first: float | None = None

    @property
    def calm(self) -> bool:
        return self.strikes == 0

    def observe(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises Diverged where the loss is no number, or has been absurd three steps in a row."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"training diverged at step {step}: the loss or its gradient is no finite number")
        if self.first is None:
            self.first = loss
        limit = max(math.log(self.vocabulary) + 4, 1.5 * self.first)
        if self.mean is not None:
            limit = max(limit, 3 * self.mean)
        if loss <= limit:
            self.strikes = 0
            self.mean = loss if self.mean is None else _MEMORY * self.mean + (1 - _MEMORY) * loss
            return
        self.strikes += 1
        if self.strikes >= _STRIKES:
            raise Diverged(
                f"training diverged at step {step}: the loss is {loss:.3g}, "
                f"above {limit:.3g} for {_STRIKES} steps in a row"
            )

    def compare(self, step: int, again: float) -> None:
        """Hold the loss of the job's first samples, measured now, against what it was before the job.

        Training lowers it. A rate that is far too high settles at a loss that no single step shows to be
        absurd, since other data may begin as high; the same data may not. Raises Diverged.
        """
        if self.first is None or (math.isfinite(again) and again <= max(2 * self.first, self.first + 2)):
            return
        raise Diverged(
            f"training diverged by step {step}: the loss of what the job began with rose from "
            f"{self.first:.3g} to {again:.3g}; a lower learning rate may help"
        )
