"""Notices that a training run has left the road, before its state overwrites a good one."""

import math
from dataclasses import dataclass

from trainer.contract import Diverged

_MEMORY = 0.95  # share of the old mean that a step keeps
_STRIKES = 3


@dataclass(slots=True)
class Detector:
    """A running mean of the loss (nats) and the number of steps in a row that were far above it.

    It is part of the checkpoint: at a border between jobs it neither forgets nor starts over.
    """

    vocabulary: int
    mean: float | None = None
    strikes: int = 0

    @property
    def calm(self) -> bool:
        return self.strikes == 0

    def observe(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises Diverged where the loss is no number, or has been absurd three steps in a row."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"training diverged at step {step}: the loss or its gradient is no finite number")
        limit = math.log(self.vocabulary) + 4
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
