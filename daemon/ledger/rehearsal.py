"""Which old memories a night trains once more, and how well each was known when it was trained last.

A million memories are looked at in well under a second: by numbers and by indexes, never by texts. What is known of
a memory's last training stands in `memory_losses`, one small row for each that is trained.
"""

import hashlib
from collections.abc import Iterable

from daemon.ledger.database import Database
from daemon.rules.selection import PRIME, rank

RESTS = 7  # jobs for which `highest_loss` leaves a memory alone, so that none is trained night after night
UNKNOWN = 1e9  # nats: in place of a loss that nobody wrote down, so that it is wanted first

_TRIES = 8  # lookups for each number that is drawn; where trained ones are rarer than that, all are looked at
_X = "((:a * (seq % :p) + :c) % :p)"
_DRAWN = f"({_X} * {_X} % :p + :b * {_X} + :c) % :p, seq"


def rehearsal(db: Database, count: int, seed: int, strategy: str) -> list[int]:
    """Numbers of so many trained memories (fewer where there are not as many), the most wanted first.

    `random`: a draw that the seed decides, each memory as likely as any other. `least_recently_rehearsed`: by the job
    that trained it last. `highest_loss`: by the loss of the last training, unknown ones first; those that were in one
    of the last `RESTS` jobs come only where the others are not enough. Equal ledgers and seeds give equal lists.
    """
    if count < 1:
        return []
    trained = db.number("SELECT count(*) FROM memories WHERE state='trained'")
    if strategy == "random":
        return _drawn(db, min(count, trained), trained, seed)
    found = _without_a_row(db, count) if trained > db.number("SELECT count(*) FROM memory_losses") else []
    if strategy == "least_recently_rehearsed":
        return found + _first(db, "ORDER BY job, memory", count - len(found))
    rested = db.number("SELECT id FROM jobs WHERE state='promoted' AND line='' ORDER BY id DESC LIMIT 1 OFFSET ?",
                       (RESTS,)) if _jobs(db) > RESTS else 0  # fmt: skip
    found += _first(db, f"WHERE job <= {rested} ORDER BY loss DESC, memory DESC", count - len(found))
    return found + _first(db, f"WHERE job > {rested} ORDER BY job, memory", count - len(found))


def record_losses(db: Database, job: int, pairs: Iterable[tuple[str, float]]) -> None:
    """This job is the last that trained its memories; `pairs` is (id of a memory, nats a token) as they were trained.
    In the caller's transaction, with the job's promotion. Nothing where the job is not of the main line."""
    db.execute(
        """INSERT INTO memory_losses (memory, job, loss) SELECT memory, job, ? FROM job_memories
        WHERE job=? AND EXISTS (SELECT 1 FROM jobs WHERE id=job AND line='')
        ON CONFLICT (memory) DO UPDATE SET job=excluded.job""",
        (UNKNOWN, job),
    )
    db.executemany(
        "UPDATE memory_losses SET loss=? WHERE job=? AND memory=(SELECT seq FROM memories WHERE id=?)",
        ((loss, job, bytes.fromhex(id_)) for id_, loss in pairs),
    )


def _jobs(db: Database) -> int:
    return db.number("SELECT count(*) FROM jobs WHERE state='promoted' AND line=''")


def _drawn(db: Database, count: int, trained: int, seed: int) -> list[int]:
    """By trying numbers at random; where most of them would miss, by an order over all that are trained."""
    last = db.number("SELECT max(seq) FROM memories")
    if count * _TRIES > trained or trained * _TRIES < last:
        a, b, c = rank(seed)
        values = {"a": a, "b": b, "c": c, "p": PRIME, "count": count}
        rows = db.execute(f"SELECT seq FROM memories WHERE state='trained' ORDER BY {_DRAWN} LIMIT :count", values)
        return [row[0] for row in rows]
    found: dict[int, None] = {}
    number = 0
    while len(found) < count:
        digest = hashlib.sha256(f"{seed}:rehearsal:{number}".encode()).digest()
        seq = int.from_bytes(digest[:8], "big") % last + 1
        number += 1
        if seq not in found and _is_trained(db, seq):
            found[seq] = None
    return list(found)


def _is_trained(db: Database, seq: int) -> bool:
    return db.execute("SELECT 1 FROM memories WHERE seq=? AND state='trained'", (seq,)).fetchone() is not None


def _without_a_row(db: Database, count: int) -> list[int]:
    rows = db.execute("""SELECT seq FROM memories WHERE state='trained' AND NOT EXISTS (
        SELECT 1 FROM memory_losses l WHERE l.memory = seq) ORDER BY seq LIMIT ?""", (count,))  # fmt: skip
    return [row[0] for row in rows]


def _first(db: Database, where: str, count: int) -> list[int]:
    """The first ones of `memory_losses` that are trained: the head may have gone back to before some of them."""
    found: list[int] = []
    if count > 0:
        for row in db.execute(f"SELECT memory FROM memory_losses {where}"):
            if _is_trained(db, row[0]):
                found.append(row[0])
                if len(found) == count:
                    break
    return found
