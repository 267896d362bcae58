"""Texts that recur, and near duplicates: what curation asks of the ledger when a dataset is put together."""

from collections.abc import Iterable, Sequence
from typing import Any

from daemon.ledger.database import Database

# The first of two stays. One that was trained was first whatever its number: an earlier one may have been held.
_COUNTS = "(m.state IN ('trained','frozen') OR (m.state IN ('waiting','held','held_out') AND m.seq < ?))"


def times(db: Database, text_key: int) -> int:
    """How many memories hold this learnt text."""
    return db.number("SELECT count(*) FROM memories WHERE text_key=? AND state <> 'forgotten'", (text_key,))


def text_key(db: Database, seq: int) -> int | None:
    row = db.one("SELECT text_key FROM memories WHERE seq=?", (seq,))
    return None if row is None else row["text_key"]


def candidates(db: Database, bands: Sequence[int], seq: int) -> list[dict[str, Any]]:
    """Rows of memories that share a band with this one and stay where both are alike, the first ones first."""
    marks = ",".join("?" * len(bands))
    return db.all(
        f"""SELECT * FROM memories m WHERE m.seq IN (
            SELECT memory FROM near_bands WHERE band IN ({marks})) AND m.seq <> ? AND {_COUNTS}
        ORDER BY m.seq LIMIT 50""",
        (*bands, seq, seq),
    )


def insert_bands(db: Database, bands: Iterable[tuple[int, int]]) -> None:
    """(band, seq) of memories that go into a job."""
    db.executemany("INSERT OR IGNORE INTO near_bands (band, memory) VALUES (?, ?)", bands)
