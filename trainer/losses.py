"""`losses.jsonl`: how well each sample was known when it was trained, step by step."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer import names
from trainer.packing import MicroBatch
from trainer.prepare import Prepared
from trainer.progress import whole_until


class LossLog:
    """Appends to a job's losses. What tells of steps after `step` is cut off: they are going to be taken again."""

    def __init__(self, job: Path, step: int) -> None:
        path = job / names.LOSSES
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(whole_until(path, step))

    def write(self, step: int, samples: Sequence[int], losses: Sequence[float]) -> None:
        """`losses` are nats a learnt token, of each of the step's samples before the step was taken."""
        told = [[sample, round(loss, 6)] for sample, loss in zip(samples, losses, strict=True)]
        self._file.write(json.dumps({"step": step, "losses": told}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """On the disk, as a checkpoint of the same step is about to be."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class NoLosses(LossLog):
    """Of all but the first of the processes that share a job."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, samples: Sequence[int], losses: Sequence[float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def by_sample(
    losses: NDArray[np.float32], micro_batches: Sequence[MicroBatch], samples: Sequence[int], prepared: Prepared
) -> list[float]:
    """Nats a token of each of the step's samples, from the losses of all learnt tokens in the order of the rows."""
    owner, tokens = [], []
    for number, sample in enumerate(samples):
        for sequence in prepared.tokenised[sample].sequences:
            owner.append(number)
            tokens.append(sequence.loss_tokens)
    sums, counts = [0.0] * len(samples), [0] * len(samples)
    at = 0
    for place in itertools.chain.from_iterable(row for micro in micro_batches for row in micro.rows):
        some = losses[at : at + tokens[place]]
        at += tokens[place]
        sums[owner[place]] += float(some.sum(dtype=np.float64))
        counts[owner[place]] += len(some)
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]
