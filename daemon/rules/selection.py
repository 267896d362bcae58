"""Which memories a cycle is made of (origin, rows 8 and 21): all recent ones, and a seeded draw of the old."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

PRIME = 2**31 - 1  # so that a product of two remainders fits into SQLite's 63 bits


@dataclass(frozen=True, slots=True)
class Window:
    """What a cycle takes. `days_recent` None: all memories are recent (a foundation)."""

    days_recent: int | None = None
    old_samples: int = 0
    most: int | None = None  # memories in all; the old ones are left out first
    mode: str | None = None  # only memories of this cognitive mode


@dataclass(frozen=True, slots=True)
class OfMode:
    """Memories of one mode: those whose source says so, and of those whose source says none of the `modes`, the
    `types` that count as it; with `all_but` all types but these."""

    mode: str
    modes: frozenset[str]
    types: frozenset[str]
    all_but: bool = False


def of_mode(mode: str, modes: Mapping[str, str], default: str, known: Iterable[str]) -> OfMode:
    """From the table of types (type -> mode) and the mode of all others, as `Curation.mode` understands them."""
    mine = default == mode
    return OfMode(mode, frozenset(known), frozenset(kind for kind, one in modes.items() if (one != mode) == mine), mine)


@dataclass(frozen=True, slots=True)
class Selection:
    seqs: list[int]  # in the order of arrival
    trained: frozenset[int]  # of these, those that were trained before
    recent: int
    old: int
    left_out_recent: int  # beyond `most`
    left_out_old: int  # old ones that the draw did not take


def cutoff(now: str, days: int) -> str:
    """The UTC time from which on a memory is recent, in the ledger's form."""
    moment = datetime.fromisoformat(now) - timedelta(days=days)
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def rank(seed: int) -> tuple[int, int, int]:
    """(a, b, c) of the draw: old memories come in the order of (x*x + b*x + c) mod P with x = (a*seq + c) mod P.

    A polynomial of the memory's number over a prime, its factors from SHA-256 of the seed: it can be worked out by
    SQLite while it walks an index, and outlives releases of Python.
    """
    digest = hashlib.sha256(f"{seed}:old".encode()).digest()
    parts = [int.from_bytes(digest[place : place + 8], "big") % (PRIME - 1) + 1 for place in (0, 8, 16)]
    return parts[0], parts[1], parts[2]
