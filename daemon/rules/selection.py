"""Which memories a cycle is made of (origin, rows 8 and 21): all recent ones, and a seeded draw of the old."""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Window:
    """What a cycle takes. `days_recent` None: all memories are recent (a foundation)."""

    days_recent: int | None = None
    old_samples: int = 0
    most: int | None = None  # memories in all; the old ones are left out first
    mode: str | None = None  # only memories of this cognitive mode


@dataclass(frozen=True, slots=True)
class Selection:
    seqs: list[int]  # in the order of arrival
    recent: int
    old: int
    left_out_recent: int  # beyond `most`
    left_out_old: int  # old ones that the draw did not take


def cutoff(now: str, days: int) -> str:
    """The UTC time from which on a memory is recent, in the ledger's form."""
    moment = datetime.fromisoformat(now) - timedelta(days=days)
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def choose(recent: Iterable[int], old: Iterable[int], window: Window, seed: int) -> Selection:
    """`recent` in the order of arrival. The draw is a sort by hash, so that it outlives Python releases."""
    taken = list(recent)
    dropped = 0
    if window.most is not None and len(taken) > window.most:
        dropped = len(taken) - window.most
        taken = taken[dropped:]  # the newest stay
    room = window.old_samples if window.most is None else min(window.old_samples, window.most - len(taken))
    count = 0

    def ranked() -> Iterable[tuple[bytes, int]]:
        nonlocal count
        for seq in old:
            count += 1
            yield hashlib.sha256(f"{seed}:old:{seq}".encode()).digest(), seq

    drawn = [seq for _, seq in heapq.nsmallest(max(room, 0), ranked())]
    return Selection(sorted([*drawn, *taken]), len(taken), len(drawn), dropped, count - len(drawn))
