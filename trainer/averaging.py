"""A running mean of the trained weights, in float32, beside the weights themselves.

After each optimizer step: mean = decay * mean + (1 - decay) * weights. It starts from the weights that training
starts from, goes on from job to job with the checkpoints, and never reaches the training itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.contract import BadSpec


class Average:
    """The mean by the names under which checkpoints store weights; `whole` gives a float32 weight by that name."""

    def __init__(self, stored: Mapping[str, nn.Parameter], whole: Callable[[str], Tensor], decay: float) -> None:
        self._whole, self._share = whole, 1.0 - decay
        self.mean = {name: whole(name).detach().clone() for name in stored}

    @torch.no_grad()
    def update(self) -> None:
        for name, mean in self.mean.items():
            mean.lerp_(self._whole(name), self._share)

    def state(self) -> dict[str, Tensor]:
        """The mean on the CPU, in a fixed order."""
        return {name: self.mean[name].to("cpu").contiguous() for name in sorted(self.mean)}

    def load(self, stored: Mapping[str, Tensor], where: str) -> None:
        """Go on with a mean that `state` gave; `where` names its checkpoint. Raises BadSpec."""
        _check(self.mean, stored, where)
        for name, mean in self.mean.items():
            mean.copy_(stored[name])


def put_in(weights: Mapping[str, nn.Parameter], mean: Mapping[str, Tensor], where: str) -> None:
    """Overwrite weights with their mean, rounded to their number format. Raises BadSpec where they do not fit."""
    _check(weights, mean, where)
    for name, weight in weights.items():
        weight.data.copy_(mean[name])


@contextmanager
def swapped(weights: Mapping[str, nn.Parameter], mean: Mapping[str, Tensor], where: str) -> Iterator[None]:
    """The mean in place of the weights for a while; then the very bits that were there. Raises BadSpec."""
    _check(weights, mean, where)
    kept = {name: weight.data.to("cpu", copy=True) for name, weight in weights.items()}
    try:
        put_in(weights, mean, where)
        yield
    finally:
        for name, weight in weights.items():
            weight.data.copy_(kept[name])


def _check(weights: Mapping[str, Tensor], mean: Mapping[str, Tensor], where: str) -> None:
    if {name: w.shape for name, w in weights.items()} != {name: m.shape for name, m in mean.items()}:
        raise BadSpec(f"the running mean in {where} belongs to other weights")
