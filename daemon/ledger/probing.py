"""From which memories a job's questions are chosen, by SQL that reads few rows however many there are."""

import hashlib
from collections.abc import Iterator

from daemon.ledger.database import Database
from daemon.ledger.memories import from_row
from daemon.records import Memory

RECENT_JOBS = 7  # what the last so many jobs trained anew is recent, though never more than half of all jobs
_CANDIDATES = 3  # for each question: some memories make no good one


def recent(db: Database, count: int, seed: int) -> list[Memory]:
    """Memories that the last jobs of the main line trained anew, as many of each job."""
    jobs = _recent_jobs(db)
    found: dict[int, None] = {}
    for number in range(_CANDIDATES * count if jobs else 0):
        job = jobs[number % len(jobs)]
        row = db.one("SELECT min(memory) AS low, max(memory) AS high FROM job_memories WHERE job=?", (job,))
        if row is None or row["low"] is None:
            continue
        start = row["low"] + _random(seed, f"recent:{job}:{number}") % (row["high"] - row["low"] + 1)
        for low, high in ((start, row["high"]), (row["low"], start)):
            seq = db.execute(
                """SELECT memory FROM job_memories WHERE job=? AND memory BETWEEN ? AND ? AND use='new'
                ORDER BY memory LIMIT 1""", (job, low, high)
            ).fetchone()  # fmt: skip
            if seq:
                found[seq[0]] = None
                break
    return list(_read(db, found))


def old(db: Database, count: int, seed: int) -> list[Memory]:
    """Memories that were trained before that, as many of each month in which they happened; those of no known time
    are a month of their own. Nearly the same ones night after night, so that versions can be compared."""
    jobs = _recent_jobs(db)
    months: list[str | None] = [*_months(db)]
    if db.execute("SELECT 1 FROM memories WHERE state='trained' AND time IS NULL LIMIT 1").fetchone():
        months.append(None)
    months.sort(key=lambda month: _random(seed, f"month:{month}"))
    found: dict[int, None] = {}
    number = 0
    while months and number < _CANDIDATES * count:
        month = months[number % len(months)]
        seq = _of_month(db, month, seed, number)
        if seq is not None and not _is_of(db, seq, jobs):
            found[seq] = None
        number += 1
    return list(_read(db, found))


def held_out(db: Database, count: int, percent: float) -> list[Memory]:
    """Those that are kept for measuring: their ids are the smallest ones, so the index of ids finds them at once
    (`rules.planning.is_held_out`). The same ones night after night."""
    border = min(int(percent / 100.0 * 2**32), 2**32 - 1)
    rows = db.execute(
        "SELECT seq FROM memories WHERE id < ? AND state='held_out' ORDER BY id LIMIT ?",
        (border.to_bytes(4, "big"), _CANDIDATES * count),
    )
    return list(_read(db, dict.fromkeys(row[0] for row in rows)))


def _recent_jobs(db: Database) -> list[int]:
    every = db.number("SELECT count(*) FROM jobs WHERE state='promoted' AND line=''")
    rows = db.execute("SELECT id FROM jobs WHERE state='promoted' AND line='' ORDER BY id DESC LIMIT ?",
                      (min(RECENT_JOBS, every // 2),))  # fmt: skip
    return [row[0] for row in rows]


def _months(db: Database) -> Iterator[str]:
    """YYYY-MM of which there are trained memories: one step in the index of times for each."""
    after = ""
    while row := db.execute(
        "SELECT time FROM memories WHERE state='trained' AND time > ? ORDER BY time LIMIT 1", (after,)
    ).fetchone():
        yield row[0][:7]
        after = row[0][:7] + "~"  # behind all days of the month


def _of_month(db: Database, month: str | None, seed: int, number: int) -> int | None:
    """One of its trained memories: the next one after a time that seed and number decide."""
    chance = _random(seed, f"old:{month}:{number}")
    if month is None:
        last = db.number("SELECT max(seq) FROM memories WHERE state='trained' AND time IS NULL")
        row = db.execute("SELECT seq FROM memories WHERE state='trained' AND time IS NULL AND seq >= ? "
                         "ORDER BY seq LIMIT 1", (chance % last + 1,)).fetchone()  # fmt: skip
        return None if row is None else int(row[0])
    minutes = chance % (31 * 24 * 60)
    day, hour, minute = minutes // 1440 + 1, minutes // 60 % 24, minutes % 60
    start = f"{month}-{day:02}T{hour:02}:{minute:02}"
    for low, high in ((start, f"{month}~"), (month, start)):
        sql = "SELECT seq FROM memories WHERE state='trained' AND time >= ? AND time < ? ORDER BY time, seq LIMIT 16"
        rows = db.execute(sql, (low, high)).fetchall()
        if rows:  # of a file without times of day, or a burst, not always the first one
            return int(rows[_random(seed, f"{low}:{number}") % len(rows)][0])
    return None


def _is_of(db: Database, seq: int, jobs: list[int]) -> bool:
    marks = ",".join("?" * len(jobs))
    sql = f"SELECT 1 FROM job_memories WHERE memory=? AND use='new' AND job IN ({marks}) LIMIT 1"
    return db.execute(sql, (seq, *jobs)).fetchone() is not None


def _read(db: Database, seqs: dict[int, None]) -> Iterator[Memory]:
    for seq in seqs:
        row = db.one("SELECT * FROM memories WHERE seq=? AND state IN ('trained','held_out')", (seq,))
        if row is not None:
            yield from_row(row)


def _random(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{what}".encode()).digest()[:8], "big") >> 1
