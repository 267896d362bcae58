"""Jobs, chains, checkpoints, versions and the head: the lineage of one profile."""

import json
from collections.abc import Sequence
from typing import Any

from daemon.ledger.database import Database, moved


def insert(
    db: Database, *, job: int, kind: str, folder: str, spec_sha256: str, chain: int | None,
    parent_sha256: str | None, parent_step: int, steps: int, samples: int, now: str,
    memories: Sequence[tuple[int, str, int]], batches: Sequence[int], cycle: dict[str, Any] | None = None,
    line: str = "", anchors: int = 0,
) -> None:  # fmt: skip
    """A frozen job. `memories` is [(seq, use, samples made of it)]; the new ones must wait. `line`: whose head it
    starts from. `anchors`: samples of general text in it."""
    db.execute(
        """INSERT INTO jobs (id, kind, state, folder, spec_sha256, chain, parent_sha256, parent_step, steps,
        samples, created_at, cycle, line, anchors) VALUES (?, ?, 'frozen', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (job, kind, folder, spec_sha256, chain, parent_sha256, parent_step, steps, samples, now,
         json.dumps(cycle) if cycle else None, line, anchors),
    )
    db.executemany(
        "INSERT INTO job_memories (job, memory, use, samples) VALUES (?, ?, ?, ?)",
        [(job, seq, use, count) for seq, use, count in memories],
    )
    db.executemany("INSERT INTO job_batches (job, batch) VALUES (?, ?)", [(job, batch) for batch in batches])


def get(db: Database, job: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM jobs WHERE id=?", (job,))


def open_job(db: Database) -> dict[str, Any] | None:
    """The one job of this profile that is frozen, running or finished without a verdict."""
    return db.one("SELECT * FROM jobs WHERE state IN ('frozen','running','finished') ORDER BY id LIMIT 1")


def folders(db: Database) -> set[str]:
    return {row["folder"] for row in db.all("SELECT folder FROM jobs")}


def listing(db: Database, limit: int = 50) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (limit,))


def promoted(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM jobs WHERE state='promoted' ORDER BY id")


def promoted_of_chain(db: Database, chain: int) -> list[dict[str, Any]]:
    """In the order in which they were trained."""
    return db.all("SELECT * FROM jobs WHERE state='promoted' AND chain=? ORDER BY parent_step, id", (chain,))


def last_result(db: Database) -> dict[str, Any]:
    """What the newest job that has a result said; empty where none has one."""
    row = db.one("SELECT result FROM jobs WHERE result IS NOT NULL AND kind<>'export' ORDER BY id DESC LIMIT 1")
    found = json.loads(row["result"]) if row else {}
    return found if isinstance(found, dict) else {}


def since(db: Database, job: int) -> list[dict[str, Any]]:
    """The jobs with a higher number, oldest first."""
    return db.all("SELECT * FROM jobs WHERE id>? ORDER BY id", (job,))


def count(db: Database) -> int:
    return db.number("SELECT count(*) FROM jobs")


def of_request(db: Database, request: int) -> dict[str, Any] | None:
    """The job of a cycle that was asked for."""
    return db.one("SELECT * FROM jobs WHERE json_extract(cycle, '$.request')=? ORDER BY id DESC LIMIT 1", (request,))


def newest_request(db: Database) -> int:
    """The highest number of a request for a cycle that a job was frozen for."""
    return db.number("SELECT max(json_extract(cycle, '$.request')) FROM jobs")


def newest_id(db: Database) -> int:
    return db.number("SELECT max(id) FROM jobs")


def ended(db: Database) -> list[dict[str, Any]]:
    """Jobs with a verdict whose folders keep only records. A refused one keeps its checkpoint for a person."""
    return db.all("SELECT id, folder FROM jobs WHERE state IN ('promoted','failed','undone') ORDER BY id")


def all_ended(db: Database, states: Sequence[str]) -> list[dict[str, Any]]:
    marks = ",".join("?" * len(states))
    return db.all(f"SELECT id, folder, state, created_at, finished_at FROM jobs WHERE state IN ({marks})", states)


def pruned(db: Database, job: int, now: str) -> None:
    """Of its folder only the records are left."""
    db.execute("UPDATE jobs SET pruned_at=? WHERE id=?", (now, job))


def newest_chain(db: Database) -> int:
    return db.number("SELECT max(id) FROM chains")


def newest_version(db: Database) -> int:
    return db.number("SELECT max(id) FROM versions")


def batches_of(db: Database, job: int) -> list[int]:
    rows = db.all("SELECT batch FROM job_batches WHERE job=? ORDER BY batch", (job,))
    return [int(row["batch"]) for row in rows]


def uses_of(db: Database, job: int) -> dict[str, int]:
    rows = db.all("SELECT use, count(*) AS n FROM job_memories WHERE job=? GROUP BY use", (job,))
    return {row["use"]: row["n"] for row in rows}


def jobs_of_memory(db: Database, seq: int) -> list[dict[str, Any]]:
    return db.all(
        """SELECT j.id AS job, jm.use AS use, jm.samples AS samples, j.state AS state, v.id AS version,
        j.line AS line, coalesce(j.finished_at, j.created_at) AS at
        FROM job_memories jm JOIN jobs j ON j.id = jm.job LEFT JOIN versions v ON v.job = j.id
        WHERE jm.memory=? ORDER BY j.id""",
        (seq,),
    )


def start(db: Database, job: int, now: str) -> None:
    moved(
        db.execute(
            """UPDATE jobs SET state='running', attempts=attempts+1, pid=NULL, pid_start=NULL,
            started_at=coalesce(started_at, ?) WHERE id=?""",
            (now, job),
        ),
        "job",
    )


def record_process(db: Database, job: int, pid: int, pid_start: float) -> None:
    db.execute("UPDATE jobs SET pid=?, pid_start=? WHERE id=?", (pid, pid_start, job))


def pause(db: Database, job: int, reason: str, *, crashed: bool = False, killed: bool = False) -> None:
    """Back to frozen: the next start resumes it from its newest checkpoint."""
    moved(
        db.execute(
            """UPDATE jobs SET state='frozen', reason=?, crashes=crashes+?, kills=kills+?, pid=NULL
            WHERE id=?""",
            (reason, int(crashed), int(killed), job),
        ),
        "job",
    )


def fail(db: Database, job: int, reason: str, exit_code: int | None, now: str) -> None:
    moved(
        db.execute(
            "UPDATE jobs SET state='failed', reason=?, exit_code=?, finished_at=?, pid=NULL WHERE id=?",
            (reason, exit_code, now, job),
        ),
        "job",
    )


def throw_away(db: Database, job: int, reason: str) -> None:
    """Of a frozen job without memories: nobody waits for it any more."""
    moved(db.execute("UPDATE jobs SET state='undone', reason=?, pid=NULL WHERE id=? AND kind='export'",
                     (reason, job)), "job")  # fmt: skip


def finish(db: Database, job: int, result: dict[str, Any], now: str) -> None:
    moved(
        db.execute(
            """UPDATE jobs SET state='finished', reason=NULL, exit_code=?, result=?, finished_at=?, pid=NULL
            WHERE id=?""",
            (result["exit_code"], json.dumps(result), now, job),
        ),
        "job",
    )


def insert_version(
    db: Database, *, version: int, job: int, chain: int, step: int, sha256: str, now: str
) -> None:
    """A candidate of its job's line; its parent is what is relied on there, also where it began at the base."""
    line = str((get(db, job) or {})["line"])
    head = get_head(db, line)
    db.execute(
        """INSERT INTO versions (id, job, state, parent, chain, step, checkpoint_sha256, created_at, line)
        VALUES (?, ?, 'candidate', ?, ?, ?, ?, ?, ?)""",
        (version, job, head["version"] if head else None, chain, step, sha256, now, line),
    )


def version_of_job(db: Database, job: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM versions WHERE job=?", (job,))


def version(db: Database, number: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM versions WHERE id=?", (number,))


def chains(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM chains ORDER BY id")


def versions(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM versions ORDER BY id")


def versions_with_jobs(db: Database) -> list[dict[str, Any]]:
    """Each version with what its job's row says of the run."""
    return db.all(
        """SELECT v.*, j.samples AS samples, j.steps AS steps, j.spec_sha256 AS spec_sha256, j.result AS result,
        j.started_at AS started_at, j.finished_at AS finished_at, j.cycle AS cycle, j.folder AS folder,
        j.created_at AS frozen_at, j.anchors AS anchors, j.parent_sha256 AS parent_sha256
        FROM versions v JOIN jobs j ON j.id = v.job ORDER BY v.id"""
    )


def uses_by_job(db: Database) -> dict[int, dict[str, int]]:
    """How many memories each job used as what."""
    found: dict[int, dict[str, int]] = {}
    for row in db.execute("SELECT job, use, count(*) FROM job_memories GROUP BY job, use"):
        found.setdefault(row[0], {})[row[1]] = row[2]
    return found


def promote(db: Database, version: dict[str, Any], reason: str, now: str) -> None:
    """The verdict, the checkpoint and the head of its line, in the caller's one transaction."""
    moved(db.execute("UPDATE versions SET state='promoted', reason=?, decided_at=? WHERE id=?",
                     (reason, now, version["id"])), "version")  # fmt: skip
    moved(db.execute("UPDATE jobs SET state='promoted', reason=? WHERE id=?",
                     (reason, version["job"])), "job")  # fmt: skip
    place = (version["chain"], version["step"], version["checkpoint_sha256"])
    db.execute("INSERT INTO checkpoints (chain, step, sha256, job, created_at) VALUES (?, ?, ?, ?, ?)",
               (*place, version["job"], now))  # fmt: skip
    set_head(db, version["line"], dict(zip(("chain", "step", "sha256"), place, strict=True)), version["id"])


def refuse(db: Database, version: dict[str, Any], reason: str, now: str) -> None:
    moved(db.execute("UPDATE versions SET state='refused', reason=?, decided_at=? WHERE id=?",
                     (reason, now, version["id"])), "version")  # fmt: skip
    moved(db.execute("UPDATE jobs SET state='refused', reason=? WHERE id=?",
                     (reason, version["job"])), "job")  # fmt: skip


def get_head(db: Database, line: str = "") -> dict[str, Any] | None:
    """{"chain", "step", "sha256", "version"} of the checkpoint that the next job of a line starts from."""
    return db.one("SELECT chain, step, sha256, version FROM heads WHERE line=?", (line,))


def heads(db: Database) -> dict[str, dict[str, Any]]:
    """As `get_head`, of each line that has one; the main line is ''."""
    rows = db.all("SELECT line, chain, step, sha256, version FROM heads ORDER BY line")
    return {str(row.pop("line")): row for row in rows}


def set_head(db: Database, line: str, place: dict[str, Any] | None, version: int | None) -> None:
    """`place` is {"chain", "step", "sha256"} of the version's checkpoint; None where the line has no head any more."""
    if place is None or version is None:
        db.execute("DELETE FROM heads WHERE line=?", (line,))
        return
    db.execute(
        """INSERT INTO heads (line, chain, step, sha256, version) VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (line) DO UPDATE SET chain=excluded.chain, step=excluded.step, sha256=excluded.sha256,
        version=excluded.version""",
        (line, place["chain"], place["step"], place["sha256"], version),
    )


def line_of_chain(db: Database) -> dict[int, str]:
    """The line of each chain that a job was frozen for, or that goes on from a job's checkpoint."""
    rows = db.all(
        """SELECT chain, line FROM jobs WHERE chain IS NOT NULL
        UNION SELECT c.chain, j.line FROM checkpoints c JOIN jobs j ON j.id = c.job"""
    )
    return {int(row["chain"]): str(row["line"]) for row in rows}


def lines(db: Database) -> list[str]:
    """All lines that were ever trained, the main one first."""
    return [str(row["line"]) for row in db.all("SELECT DISTINCT line FROM jobs WHERE kind='finetune' ORDER BY line")]


def get_chain(db: Database, chain: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM chains WHERE id=?", (chain,))


def chain_key(db: Database, chain: int) -> dict[str, Any] | None:
    row = get_chain(db, chain)
    return json.loads(row["key"]) if row else None


def insert_chain(db: Database, chain: int, key_sha256: str, key: dict[str, Any], reason: str, now: str) -> None:
    db.execute(
        "INSERT INTO chains (id, key_sha256, key, reason, created_at) VALUES (?, ?, ?, ?, ?)",
        (chain, key_sha256, json.dumps(key, sort_keys=True), reason, now),
    )


def checkpoints(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM checkpoints ORDER BY chain, step")


def left_out_of(db: Database, job: int) -> dict[str, int]:
    """How many memories of a job's batches are not in it, by the reason."""
    rows = db.all(
        """SELECT coalesce(m.reason, m.state) AS why, count(*) AS n FROM job_batches jb
        JOIN batches b ON b.id = jb.batch JOIN memories m ON m.seq BETWEEN b.first_seq AND b.last_seq
        WHERE jb.job=? AND m.state IN ('skipped','held_out') GROUP BY why ORDER BY n DESC""",
        (job,),
    )
    return {row["why"]: row["n"] for row in rows}


def get_meta(db: Database, key: str) -> str | None:
    row = db.one("SELECT value FROM meta WHERE key=?", (key,))
    return None if row is None else str(row["value"])


def set_meta(db: Database, key: str, value: str | None) -> None:
    if value is None:
        db.execute("DELETE FROM meta WHERE key=?", (key,))
    else:
        db.execute("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value",
                   (key, value))  # fmt: skip
