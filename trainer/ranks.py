"""The processes that train one model together, seen from one of them; alone, it asks nobody and computes as ever.

All take the same steps in the same order and come to the same weights: each computes some of a step's micro-batches,
the gradients of all are summed once a step (not averaged: every part is divided by the loss tokens of the whole step),
and whatever decides (loss, norm, a stop) is one number for all. The first one writes and tells; the others are silent.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from trainer import base_model, sharding
from trainer.contract import BadSpec, NoDevice, TrainingRecipe
from trainer.pieces import Pieces, is_cut
from trainer.report import Flag

_T = TypeVar("_T")
_BUCKET = 1 << 24  # numbers that are summed at a time: 64 MiB in float32
_PATIENCE = timedelta(days=7)  # who waits here waits for a slow one: a dead one breaks the line (trainer/rank_line.py)


class Alone:
    """One process. Each method gives back what it was given."""

    rank, size, sharded = 0, 1, False
    pieces: Pieces | None = None  # of the trained weights, where they lie in pieces

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def flag(self, stop: Flag) -> Flag:
        """The first one's flag, with the same answer for all; all must ask equally often."""
        return stop

    def turns(self, count: int) -> list[tuple[int, bool]]:
        """The micro-batches that are this one's, and whether each counts: where the model lies in pieces, all must
        compute equally often, so that some compute one for nothing."""
        return [(number, True) for number in range(count)]

    def agree(self, value: _T) -> _T:
        """What the first one has."""
        return value

    def first_does(self, work: Callable[[], _T]) -> _T:
        """What the first one's work gives, or raises, for all."""
        return work()

    def all_do(self, work: Callable[[], _T]) -> _T:
        """Each does it; where the first one fails, all do."""
        return work()

    @property
    def scorers(self) -> "Alone":
        """Those that score together: all, where the model lies in pieces; else the first one alone, which may then
        ask nothing of the others."""
        return self if self.sharded else Alone()

    def scores(self, work: Callable[[], None]) -> None:
        """Work of the scorers, for which the others wait."""
        work() if self.sharded else self.first_does(work)

    def in_turn(self, work: Callable[[], _T]) -> _T:
        """Where models are cut: one after the other, so that a whole one is in the machine's memory once."""
        return work()

    def together(
        self, trained: Mapping[str, nn.Parameter], loss: Tensor, each: dict[int, Tensor], sizes: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Sum up gradients and loss of a step; the losses of all its learnt tokens, micro-batch by micro-batch.

        `each`: those of this one's micro-batches. `sizes`: how many such tokens each micro-batch has.
        """
        return loss, [each[number] for number in sorted(each)]

    def total(self, number: float) -> float:
        """The sum of everybody's."""
        return number

    def spread(self, recipe: TrainingRecipe) -> None:
        """Find out whether models will lie in pieces. Raises BadSpec, BaseMissing, NoDevice."""

    def cut(self, model: Any, device: torch.device) -> Any:
        """The model with the pieces that are this one's, if they lie in pieces."""
        return model

    def of_this_one(self, trained: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The trained weights as the optimizer is given them."""
        return trained

    def clip(self, accelerator: Accelerator, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Clip the gradients to this norm; the norm that they had."""
        norm: Tensor = accelerator.clip_grad_norm_(parameters, limit)
        return norm


class Together(Alone):
    """One of several processes on this machine; it sets up `torch.distributed`, which ends with the process."""

    def __init__(self, rank: int, size: int, store: str, device: torch.device) -> None:
        """`store`: a file that all of them can open."""
        self.rank, self.size = rank, size
        self._mesh: Any = None
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ[name] = "lo"  # nobody else on the network takes part
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        file = dist.FileStore(store, size)
        file.set_timeout(_PATIENCE)  # NCCL begins at its first sum, which the first process may come to late
        dist.init_process_group(backend, store=file, rank=rank, world_size=size, timeout=_PATIENCE)

    def flag(self, stop: Flag) -> Flag:
        return _SameForAll(self, stop)

    def turns(self, count: int) -> list[tuple[int, bool]]:
        mine = [(number, True) for number in range(self.rank, count, self.size)]
        if self.sharded and len(mine) < -(-count // self.size):
            mine.append((0, False))
        return mine

    def agree(self, value: _T) -> _T:
        told: list[Any] = [value if self.first else None]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        agreed: _T = told[0]
        return agreed

    def first_does(self, work: Callable[[], _T]) -> _T:
        return self._as_the_first(work) if self.first else self._result(self.agree(None))

    def all_do(self, work: Callable[[], _T]) -> _T:
        if self.first:
            return self._as_the_first(work, told=False)
        done = work()
        self._result(self.agree(None))
        return done

    def _as_the_first(self, work: Callable[[], _T], *, told: bool = True) -> _T:
        try:
            done = work()
        except Exception as error:
            self.agree((False, error))
            raise
        self.agree((True, done if told else None))
        return done

    @staticmethod
    def _result(told: Any) -> Any:
        well, what = told
        if not well:
            raise what
        return what

    def in_turn(self, work: Callable[[], _T]) -> _T:
        if not self.sharded:
            return work()
        done: list[_T] = []
        for rank in range(self.size):
            if rank == self.rank:
                done.append(work())
            self.total(0.0)
        return done[0]

    @torch.no_grad()
    def together(
        self, trained: Mapping[str, nn.Parameter], loss: Tensor, each: dict[int, Tensor], sizes: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        told = torch.zeros(1 + sum(sizes), dtype=torch.float32, device=loss.device)
        told[0] = loss
        at = 1
        for number, size in enumerate(sizes):
            if number in each:
                told[at : at + size] = each[number]
            at += size
        dist.all_reduce(told)  # a token's loss is one process's alone: the others add zeros
        if self.pieces is None:
            self.sum_gradients(trained)
        else:
            self.pieces.collect()  # summed already, each piece where it lies
        return told[0].clone(), [told[1:]]

    @torch.no_grad()
    def sum_gradients(self, trained: Mapping[str, nn.Parameter]) -> None:
        """In float32, in the order of the names; a weight that nobody has a gradient of stays without one."""
        parameters = [trained[name] for name in sorted(trained)]
        device = parameters[0].device
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        dist.all_reduce(has)
        some = [p for p, count in zip(parameters, has.tolist(), strict=True) if count]
        while some:
            bucket = [some.pop(0)]
            while some and sum(p.numel() for p in bucket) + some[0].numel() <= _BUCKET:
                bucket.append(some.pop(0))
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
            dist.all_reduce(flat)
            for parameter, gradient, summed in zip(
                bucket, gradients, flat.split([g.numel() for g in gradients]), strict=True
            ):
                parameter.grad = gradient.copy_(summed.view_as(gradient))

    def spread(self, recipe: TrainingRecipe) -> None:
        self.sharded = self.first_does(lambda: sharding.wanted(recipe))
        if self.sharded:
            self._mesh = sharding.mesh(base_model.choose_device(), self.size)

    def cut(self, model: Any, device: torch.device) -> Any:
        if self.sharded:
            sharding.cut(model, device, self._mesh)
        return model

    def of_this_one(self, trained: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        if not is_cut(trained):
            return trained
        self.pieces = Pieces(trained, self.rank, self.size)
        return self.pieces.local

    def total(self, number: float) -> float:
        told = torch.tensor([number], dtype=torch.float64)
        dist.all_reduce(told)
        return float(told)

    def clip(self, accelerator: Accelerator, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.pieces is None:
            dist.broadcast(norm, src=0)  # one number, however it was rounded where
        else:
            squared = norm.square()
            dist.all_reduce(squared)
            norm = squared.sqrt()
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm


class _SameForAll:
    """A flag of which the first one's value counts."""

    def __init__(self, team: Together, stop: Flag) -> None:
        self._team, self._stop = team, stop

    def is_set(self) -> bool:
        told = torch.tensor([float(self._team.first and self._stop.is_set())])
        dist.broadcast(told, src=0)
        return bool(told)


def join(store: str, environ: Mapping[str, str] | None = None) -> Together:
    """Take the place that the launcher gave this process. Raises BadSpec, NoDevice."""
    given = os.environ if environ is None else environ
    rank, size = place(given)
    if given.get(base_model.DEVICE_VARIABLE) != "cpu" and torch.cuda.is_available():
        if size > torch.cuda.device_count():
            raise NoDevice(
                f"compute.processes is {size}, but this machine has {torch.cuda.device_count()} CUDA devices: "
                'set it to "auto" or to no more than that'
            )
        torch.cuda.set_device(rank)
    return Together(rank, size, store, base_model.choose_device(given))


def place(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """This process's number and how many there are, as launchers say it. Raises BadSpec."""
    given = os.environ if environ is None else environ
    try:
        rank, size = int(given["RANK"]), int(given["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise BadSpec("RANK and WORLD_SIZE must say which of several processes this is") from None
    return rank, size
