"""Weights that lie in pieces, one in each process: cut from whole ones, and put together again for a checkpoint.

`fully_shard` (FSDP2) gives each process some rows of every weight: of n processes each has ceil(rows / n) of them, the
last ones fewer or none (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html). Optimizer and running
mean are given the piece as a plain tensor: what they compute concerns each number by itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Pieces:
    """This process's pieces of weights, as plain parameters by the names of the whole ones."""

    def __init__(self, whole: Mapping[str, nn.Parameter], rank: int, size: int) -> None:
        self._whole, self._rank, self._size = dict(whole), rank, size
        self.local = {name: plain(parameter) for name, parameter in whole.items()}

    @torch.no_grad()
    def collect(self) -> None:
        """Move the gradients to the plain parameters."""
        for name, parameter in self._whole.items():
            gradient: Any = parameter.grad
            self.local[name].grad = None if gradient is None else gradient.to_local()
            parameter.grad = None

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """This process's piece of what is as large as the weight of this name; anything else stays as it is."""
        if tensor.shape != self._whole[name].shape:
            return tensor
        begin, end = _rows(tensor.shape[0], self._rank, self._size)
        return tensor[begin:end]

    def cut_state(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same of an optimizer's moments by name."""
        return {
            name: {key: self.cut(name, one) if isinstance(one, Tensor) else one for key, one in entries.items()}
            if name in self._whole
            else dict(entries)
            for name, entries in state.items()
        }

    def put_together(self, name: str, local: Tensor) -> Tensor | None:
        """In the first process what all have of a tensor like the weight of this name, on the CPU; None in the others.

        All must call it in the same order. A tensor of another shape is the same for all.
        """
        if local.shape != self.local[name].shape:
            return local.to("cpu") if self._rank == 0 else None
        piece = local.detach().to("cpu").contiguous()
        if self._rank:
            if piece.numel():
                dist.send(_bytes(piece), dst=0)
            return None
        shape = tuple(self._whole[name].shape)
        whole = torch.empty(shape, dtype=local.dtype)
        whole[: len(piece)] = piece
        for rank in range(1, self._size):
            begin, end = _rows(shape[0], rank, self._size)
            if whole[begin:end].numel():
                dist.recv(_bytes(whole[begin:end]), src=rank)
        return whole

    def shape(self, name: str, local: Tensor) -> tuple[int, ...]:
        """Of what `put_together` makes of it."""
        return tuple(self._whole[name].shape if local.shape == self.local[name].shape else local.shape)

    def stream(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | None]]:
        """Put together one after the other, by name, so that the first process holds one at a time."""
        for name in sorted(tensors):
            yield name, self.put_together(name, tensors[name])


def plain(parameter: nn.Parameter) -> nn.Parameter:
    """The piece of a weight that this process holds, as a parameter over the same memory; a whole one as it is."""
    to_local = getattr(parameter, "to_local", None)
    if to_local is None:
        return parameter
    with torch.no_grad():
        return nn.Parameter(to_local().detach(), requires_grad=parameter.requires_grad)


def is_cut(weights: Mapping[str, nn.Parameter]) -> bool:
    return any(hasattr(one, "to_local") for one in weights.values())


def _rows(count: int, rank: int, size: int) -> tuple[int, int]:
    each = -(-count // size)
    return min(rank * each, count), min((rank + 1) * each, count)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
