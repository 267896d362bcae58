"""Which samples are trained in which epoch: what is new in all of them, old memories and anchors each in one.

    replay, anchors = per_epoch(new, replay_share, anchor_share)               # samples, of each epoch
    mix(new, replay, anchors, epochs=, replay_share=, anchor_share=, seed=)    # positions -> one segment an epoch
    drawn(items, count, seed, what)                                            # a seeded draw, to pass to `mix`

An epoch holds new : replay : anchor = (1-r-a) : r : a. Its old memories and anchors are its own, so that more of
them are seen in the same number of steps (FACTS: rehearsal of many, each seldom, keeps more than of few, often).
"""

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

MEASURED_PERCENT = 20.0  # of the anchors: only measured by, so that what is kept is not what was learnt by heart


def per_epoch(new: int, replay_share: float, anchor_share: float) -> tuple[int, int]:
    """How many old samples and anchors go with so many new ones, at least one of each that has a share.

    `replay_share` + `anchor_share` < 1. Example: 100 new ones with 0.5 and 0.25 go with 200 and 100.
    """
    if not new:
        return 0, 0
    room = new / (1.0 - replay_share - anchor_share)
    counts = [max(1, round(room * share)) if share else 0 for share in (replay_share, anchor_share)]
    return counts[0], counts[1]


def mix(
    new: Sequence[int], replay: Sequence[int], anchors: Sequence[int], *, epochs: int, replay_share: float,
    anchor_share: float, seed: int,
) -> list[list[int]]:  # fmt: skip
    """One segment an epoch: positions of samples in the order in which they are trained, the same for the same seed.

    `new` is in each of them. `replay` and `anchors` are in the order in which they are wanted, and all are used:
    dealt out evenly where there are enough for all epochs, else again from the first one on as the share asks, though
    never twice in an epoch. With neither, the segments are those of `planning.segments`.
    """
    counts = per_epoch(len(new), replay_share, anchor_share)
    hands = [deal(pool, count, epochs) for pool, count in zip((replay, anchors), counts, strict=True)]
    return [_shuffled([*new, *hands[0][epoch], *hands[1][epoch]], seed, epoch) for epoch in range(epochs)]


def deal(pool: Sequence[int], count: int, epochs: int) -> list[list[int]]:
    """So many of the pool for each epoch, no one twice in an epoch, and no one again before all were dealt."""
    total = len(pool)
    if total >= count * epochs:
        return [list(pool[total * epoch // epochs : total * (epoch + 1) // epochs]) for epoch in range(epochs)]
    size = min(count, total)
    return [[pool[(epoch * size + place) % total] for place in range(size)] for epoch in range(epochs)]


def drawn(items: Sequence[Item], count: int, seed: int, what: str) -> list[Item]:
    """So many of them (fewer where there are not as many) in an order that seed and `what` decide."""
    keys = [hashlib.sha256(f"{seed}:{what}:{place}".encode()).digest() for place in range(len(items))]
    return [items[place] for place in sorted(range(len(items)), key=keys.__getitem__)[:count]]


def is_measured_by(anchor_id: str) -> bool:
    """Whether an anchor is never trained, only measured by: decided by its id, so that it never changes sides."""
    digest = hashlib.sha256(anchor_id.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < MEASURED_PERCENT / 100.0


def expected_passes(nights: int, epochs: int, replay_share: float, anchor_share: float = 0.0) -> float:
    """How often a memory of the first night is trained in so many nights of equal size, on average, by `random`.

    Night n draws from the n-1 before it: rho = r/(1-r-a) of a night's size for each epoch, though never one of them
    twice in an epoch. So the passes are epochs * (1 + sum of min(1, rho/(n-1))), which grows as the logarithm of
    the nights does: with no bound on the years, but by less than 0.7 rho epochs each time that they double.
    """
    rho = replay_share / (1.0 - replay_share - anchor_share)
    return epochs * (1.0 + math.fsum(min(1.0, rho / (night - 1)) for night in range(2, nights + 1)))


def _shuffled(positions: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Sorted by a hash instead of `random.shuffle`: the order must outlive Python releases."""
    keys = {place: hashlib.sha256(f"{seed}:{epoch}:{place}".encode()).digest() for place in positions}
    return sorted(positions, key=keys.__getitem__)
