"""What the versions of a line were trained on, in numbers: kinds, roles and months, never a text or a name."""

from typing import Any

from daemon.ledger.database import Database

_SHOWN = """m.type AS type, count(*) AS memories, min(substr(m.time, 1, 7)) AS first,
    max(substr(m.time, 1, 7)) AS last, sum(m.time IS NULL) AS undated"""


def of_job(db: Database, job: int) -> list[dict[str, Any]]:
    """[{"use", "type", "memories", "first", "last", "undated"}]: months as YYYY-MM; without what was forgotten."""
    return db.all(
        f"""SELECT jm.use AS use, {_SHOWN} FROM job_memories jm JOIN memories m ON m.seq = jm.memory
        WHERE jm.job=? AND m.state<>'forgotten' GROUP BY jm.use, m.type ORDER BY jm.use, memories DESC, m.type""",
        (job,),
    )


def below(db: Database, version: int) -> list[dict[str, Any]]:
    """The same by type alone, of each memory that this version or one below it was trained on, counted once."""
    return db.all(
        f"""WITH RECURSIVE line(id, parent, job) AS (
            SELECT id, parent, job FROM versions WHERE id=?
            UNION SELECT v.id, v.parent, v.job FROM versions v JOIN line ON v.id = line.parent)
        SELECT {_SHOWN} FROM memories m WHERE m.state<>'forgotten' AND m.seq IN (
            SELECT jm.memory FROM job_memories jm WHERE jm.job IN (SELECT job FROM line))
        GROUP BY m.type ORDER BY memories DESC, m.type""",
        (version,),
    )


def forgotten_below(db: Database, version: int) -> int:
    """Memories that were forgotten since, and that this version or one below it was trained on."""
    return db.number(
        """WITH RECURSIVE line(id, parent, job) AS (
            SELECT id, parent, job FROM versions WHERE id=?
            UNION SELECT v.id, v.parent, v.job FROM versions v JOIN line ON v.id = line.parent)
        SELECT count(DISTINCT jm.memory) FROM job_memories jm JOIN memories m ON m.seq = jm.memory
        WHERE m.state='forgotten' AND jm.job IN (SELECT job FROM line)""",
        (version,),
    )


def batches_of(db: Database, jobs: list[int]) -> list[dict[str, Any]]:
    """[{"id", "name", "memories"}] of the files that these jobs were made of, in the order of arrival."""
    marks = ",".join("?" * len(jobs)) or "NULL"
    return db.all(
        f"""SELECT id, name, memories FROM batches WHERE id IN (
            SELECT batch FROM job_batches WHERE job IN ({marks})) ORDER BY id""",
        jobs,
    )
