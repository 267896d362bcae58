"""The versions below a head, and moving the head of a line to another point of it.

Each line has a head of its own. Only the main one says what is trained: the jobs of the others rehearse, so that
moving their heads changes no memory.
"""

from dataclasses import dataclass
from typing import Any

from daemon.ledger import batches, jobs
from daemon.ledger.database import Database, LedgerError

_OF = "SELECT jm.memory FROM job_memories jm JOIN versions v ON v.job = jm.job WHERE jm.use='new' AND v.id"


@dataclass(frozen=True, slots=True)
class Move:
    """What a move of the head means: versions no longer below it, those that are again, and their memories."""

    undone: list[int]
    redone: list[int]
    untrained: int  # memories that wait again
    retrained: int  # memories that count as trained again
    batches: list[str]  # names of the files whose memories wait again


def line(db: Database, version: int | None) -> list[int]:
    """The versions below and including this one, the newest first; empty for None, which is the base."""
    found: list[int] = []
    while version is not None:
        row = db.one("SELECT parent FROM versions WHERE id=?", (version,))
        if row is None or version in found:
            raise LedgerError(f"the line of version {found[0] if found else version} is broken at v{version}")
        found.append(version)
        version = row["parent"]
    return found


def of_checkpoint(db: Database, sha256: str) -> dict[str, Any] | None:
    """The version whose checkpoint has this manifest hash."""
    return db.one("SELECT * FROM versions WHERE checkpoint_sha256=? ORDER BY id LIMIT 1", (sha256,))


def move_to(db: Database, version: int | None, of: str = "") -> Move:
    """What it would mean if the head of line `of` went to this version of it. Changes nothing."""
    below = set(line(db, version))
    rows = db.all("SELECT id, state FROM versions WHERE line=? ORDER BY id", (of,))
    states = {row["id"]: row["state"] for row in rows}
    if below - states.keys():
        raise LedgerError(f"v{version} is no version of {of or 'the main line'}")
    undone = [one for one, state in states.items() if state == "promoted" and one not in below]
    redone = [one for one, state in states.items() if state == "undone" and one in below]
    gone, back = _marks(undone), _marks(redone)
    untrained = f"state='trained' AND seq IN ({_OF} IN ({gone})) AND seq NOT IN ({_OF} IN ({back}))"
    names = db.all(
        f"""SELECT name FROM batches WHERE id IN (SELECT batch FROM memories WHERE {untrained}) ORDER BY id""",
        (*undone, *redone),
    )
    return Move(
        undone, redone, db.number(f"SELECT count(*) FROM memories WHERE {untrained}", (*undone, *redone)),
        db.number(f"SELECT count(*) FROM memories WHERE state IN ('waiting','skipped','held','discarded') "
                  f"AND seq IN ({_OF} IN ({back}))", redone),
        [row["name"] for row in names],
    )  # fmt: skip


def _marks(values: list[int]) -> str:
    return ",".join("?" * len(values)) or "NULL"


def move(
    db: Database, version: int | None, place: dict[str, Any] | None, reason: str, now: str, *, hold: bool = False,
    of: str = "",
) -> Move:  # fmt: skip
    """Move the head of line `of`, in the caller's one transaction: `place` is {"chain", "step", "sha256"} of the
    version's checkpoint, None for the base. What was trained only above the new head waits again, in its old order;
    with `hold` it is held with its batches until a person decides."""
    change = move_to(db, version, of)
    head = jobs.get_head(db, of) or {"chain": None, "step": None}
    gone, back = _marks(change.undone), _marks(change.redone)
    for state, marks, ids in (("undone", gone, change.undone), ("promoted", back, change.redone)):
        db.execute(f"UPDATE versions SET state='{state}' WHERE id IN ({marks})", ids)
        db.execute(f"UPDATE jobs SET state='{state}' WHERE id IN (SELECT job FROM versions WHERE id IN ({marks}))", ids)
    db.execute(
        f"UPDATE memories SET state=?, reason=? WHERE state='trained' AND seq IN ({_OF} IN ({gone}))",
        ("held" if hold else "waiting", reason if hold else None, *change.undone),
    )
    db.execute(
        f"""UPDATE memories SET state='trained', reason=NULL WHERE state IN ('waiting','skipped','held','discarded')
        AND seq IN ({_OF} IN ({back}))""",
        change.redone,
    )
    db.execute(
        """UPDATE batches SET state='read' WHERE state='done' AND EXISTS (
            SELECT 1 FROM memories m WHERE m.seq BETWEEN batches.first_seq AND batches.last_seq
            AND m.batch = batches.id AND m.state IN ('waiting','held'))"""
    )
    if hold:
        db.execute(
            """UPDATE batches SET state='held', reason=? WHERE state='read' AND EXISTS (
                SELECT 1 FROM memories m WHERE m.seq BETWEEN batches.first_seq AND batches.last_seq
                AND m.batch = batches.id AND m.state='held')""",
            (reason,),
        )
    batches.close_settled(db, [row["id"] for row in batches.in_state(db, "read")])
    jobs.set_head(db, of, place, version)
    place = place or {"chain": None, "step": None}
    db.execute(
        """INSERT INTO head_moves (at, reason, from_chain, from_step, to_chain, to_step, untrained)
        VALUES (?, ?, ?, ?, ?, ?, ?)""",
        (now, reason, head["chain"], head["step"], place["chain"], place["step"], change.untrained),
    )
    return change


def add_checkpoint(db: Database, chain: int, step: int, sha256: str, now: str) -> None:
    """The same checkpoint at a second place: where a chain begins that goes on from it."""
    made = db.one("SELECT job FROM checkpoints WHERE sha256=? ORDER BY chain LIMIT 1", (sha256,))
    if made is None:
        raise LedgerError(f"no checkpoint with the manifest {sha256[:12]} was ever promoted here")
    db.execute("INSERT INTO checkpoints (chain, step, sha256, job, created_at) VALUES (?, ?, ?, ?, ?)",
               (chain, step, sha256, made["job"], now))  # fmt: skip


def moves(db: Database) -> list[dict[str, Any]]:
    """Each time that the head went elsewhere than on, oldest first."""
    return db.all("SELECT * FROM head_moves ORDER BY id")
