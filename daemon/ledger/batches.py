"""Batches: one row for each file (or folder) as it was dropped."""

from collections.abc import Iterable
from typing import Any

from daemon.ledger.database import Database, moved

MAX_FAILURES = 2  # once among others, once alone; then a person decides


def insert(
    db: Database, *, sha256: str, name: str, path: str, size: int, mtime: float | None, now: str
) -> int:
    """A claimed file. `path` is its name in `claimed/`; the same path is never inserted twice."""
    known = db.one("SELECT id FROM batches WHERE path=? AND state IN ('claimed','reading')", (path,))
    if known:
        return int(known["id"])
    cursor = db.execute(
        """INSERT INTO batches (sha256, name, path, size, mtime, state, claimed_at)
        VALUES (?, ?, ?, ?, ?, 'claimed', ?)""",
        (sha256, name, path, size, mtime, now),
    )
    return int(cursor.lastrowid or 0)


def get(db: Database, batch: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM batches WHERE id=?", (batch,))


def latest_of_path(db: Database, path: str) -> dict[str, Any] | None:
    return db.one("SELECT * FROM batches WHERE path=? ORDER BY id DESC LIMIT 1", (path,))


def in_state(db: Database, state: str) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM batches WHERE state=? ORDER BY id", (state,))


def next_to_read(db: Database) -> dict[str, Any] | None:
    """The half-read one first, then in the order of arrival."""
    for state in ("reading", "claimed"):
        row = db.one("SELECT * FROM batches WHERE state=? ORDER BY id LIMIT 1", (state,))
        if row:
            return row
    return None


def any_unread(db: Database) -> bool:
    return next_to_read(db) is not None


def counts(db: Database) -> dict[str, int]:
    rows = db.all("SELECT state, count(*) AS n FROM batches GROUP BY state")
    return {row["state"]: row["n"] for row in rows}


def listing(db: Database, limit: int = 50) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM batches ORDER BY id DESC LIMIT ?", (limit,))


def start_reading(db: Database, batch: int, first_seq: int) -> None:
    moved(
        db.execute("UPDATE batches SET state='reading', first_seq=? WHERE id=?", (first_seq, batch)), "batch"
    )


def restart_reading(db: Database, batch: int) -> None:
    moved(db.execute("UPDATE batches SET state='claimed', first_seq=NULL WHERE id=?", (batch,)), "batch")


def finish_reading(
    db: Database, batch: int, *, last_seq: int, duplicates: int, skipped: int, bad_items: int, now: str,
    forgotten: int = 0,
) -> None:
    """The last slice: what was staged becomes visible."""
    moved(
        db.execute(
            """UPDATE batches SET state='read', read_at=?, last_seq=?, memories=? - first_seq + 1,
            duplicates=?, skipped=?, bad_items=?, forgotten=? WHERE id=?""",
            (now, last_seq, last_seq, duplicates, skipped, bad_items, forgotten, batch),
        ),
        "batch",
    )


def refuse(db: Database, batch: int, reason: str, now: str) -> None:
    moved(
        db.execute(
            "UPDATE batches SET state='refused', reason=?, read_at=?, first_seq=NULL WHERE id=?",
            (reason, now, batch),
        ),
        "batch",
    )


def needs_owner(db: Database, batch: int, reason: str) -> None:
    """It waits, in `claimed/`, until somebody says who in its chats is the owner."""
    moved(
        db.execute("UPDATE batches SET state='needs_owner', reason=?, first_seq=NULL WHERE id=?", (reason, batch)),
        "batch",
    )


def read_again(db: Database) -> int:
    """Batches that waited for their owner's name are claimed again. Gives how many."""
    return db.execute("UPDATE batches SET state='claimed', reason=NULL WHERE state='needs_owner'").rowcount


def renamed(db: Database, batch: int, path: str, sha256: str, size: int, mtime: float) -> None:
    """Its file was written to after it was claimed, and has another name now."""
    db.execute(
        "UPDATE batches SET path=?, sha256=?, size=?, mtime=? WHERE id=?", (path, sha256, size, mtime, batch)
    )


def close_settled(db: Database, batches: Iterable[int]) -> None:
    """Those of these batches of which no memory waits any more are done."""
    db.executemany(
        """UPDATE batches SET state='done' WHERE id=? AND state='read' AND NOT EXISTS (
            SELECT 1 FROM memories m WHERE m.seq BETWEEN batches.first_seq AND batches.last_seq
            AND m.state IN ('waiting','frozen','held'))""",
        [(batch,) for batch in batches],
    )


def hold(db: Database, job: int, reason: str) -> list[int]:
    """Hold the batches of a job that ended badly; one that has not failed alone yet waits again at once.

    Gives those that stay held until a person decides.
    """
    held = []
    for row in db.all("SELECT batch FROM job_batches WHERE job=? ORDER BY batch", (job,)):
        batch = int(row["batch"])
        db.execute(
            "UPDATE batches SET state='held', reason=?, failures=failures+1 WHERE id=? AND state='read'",
            (reason, batch),
        )
        found = get(db, batch)
        if found and found["state"] == "held" and found["failures"] < MAX_FAILURES:
            retry(db, batch)
        else:
            held.append(batch)
    return held


def retry(db: Database, batch: int) -> None:
    """Back to `read`, and its held memories wait again: planned alone, since it has failed before."""
    row = get(db, batch)
    assert row is not None
    if row["state"] == "needs_owner":
        moved(db.execute("UPDATE batches SET state='claimed', reason=NULL WHERE id=?", (batch,)), "batch")
        return
    moved(db.execute("UPDATE batches SET state='read', reason=NULL WHERE id=?", (batch,)), "batch")
    db.execute(
        "UPDATE memories SET state='waiting', reason=NULL WHERE seq BETWEEN ? AND ? AND state='held'",
        (row["first_seq"], row["last_seq"]),
    )


def discard(db: Database, batch: int, reason: str) -> None:
    row = get(db, batch)
    assert row is not None
    moved(db.execute("UPDATE batches SET state='discarded', reason=? WHERE id=?", (reason, batch)), "batch")
    db.execute(
        """UPDATE memories SET state='discarded', reason=? WHERE seq BETWEEN ? AND ?
        AND state IN ('held','waiting')""",
        (reason, row["first_seq"], row["last_seq"]),
    )


def jobs_of(db: Database, batch: int) -> list[dict[str, Any]]:
    """[{"job", "state"}] of the jobs that took memories of this batch."""
    return db.all(
        """SELECT j.id AS job, j.state AS state FROM job_batches jb JOIN jobs j ON j.id = jb.job
        WHERE jb.batch=? ORDER BY j.id""",
        (batch,),
    )


def waiting_memories(db: Database) -> int:
    """Memories that the next jobs will take; those of a held batch wait for a person instead.

    Here and not in `memories`, because `status` cannot afford to import that module.
    """
    return db.number(
        """SELECT sum((SELECT count(*) FROM memories m WHERE m.state='waiting'
        AND m.seq BETWEEN b.first_seq AND b.last_seq)) FROM batches b WHERE b.state='read'"""
    )


def memory_states(db: Database, batch: int) -> dict[str, int]:
    """How many of a batch's memories are in which state."""
    rows = db.all(
        """SELECT m.state AS state, count(*) AS n FROM memories m JOIN batches b ON b.id=?
        WHERE m.seq BETWEEN b.first_seq AND b.last_seq GROUP BY m.state""",
        (batch,),
    )
    return {row["state"]: row["n"] for row in rows}
