"""How well versions know the questions of their jobs, by the month of the memories: what forgetting is seen by.

A month is that of the memory's own time, in UTC; of a memory without one, that of the day on which its file came. The
row with month '' is over all questions of the group, also those that belong to no memory.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from daemon.ledger.database import Database, moved

WHO = ("candidate", "served", "base")
ALL_MONTHS = ""


def record(db: Database, version: int, probes: Iterable[Mapping[str, Any]]) -> None:
    """The scores of a version, from the lines of its job's metrics.json, in the caller's transaction. Said twice is
    said once. A line or a part of one that is not in the form of docs/contract.md counts for nothing."""
    sums: dict[tuple[str, str, str], _Sum] = {}
    months: dict[str, str] = {}
    for line in probes:
        part, memory, tokens = line.get("group"), line.get("memory"), line.get("tokens")
        if not isinstance(part, str) or not isinstance(tokens, int | float) or tokens <= 0:
            continue
        month = ALL_MONTHS
        if isinstance(memory, str):
            if memory not in months:
                months[memory] = _month(db, memory)
            month = months[memory]
        for who in WHO:
            told = line.get(who)
            if isinstance(told, Mapping) and isinstance(told.get("loss"), int | float):
                for key in {ALL_MONTHS, month}:
                    sums.setdefault((who, part, key), _Sum()).add(told, float(tokens))
    db.execute("DELETE FROM scores WHERE version=?", (version,))
    db.executemany(
        """INSERT INTO scores (version, who, part, month, probes, loss, token_accuracy, exact)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        [(version, *key, *one.means()) for key, one in sorted(sums.items())],
    )


class _Sum:
    """Means as the trainer takes them: over tokens for loss and token accuracy, over questions for exact answers."""

    def __init__(self) -> None:
        self.probes, self.tokens, self.loss, self.right, self.exact = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, told: Mapping[str, Any], tokens: float) -> None:
        self.probes += 1
        self.tokens += tokens
        self.loss += float(told["loss"]) * tokens
        self.right += float(told.get("token_accuracy") or 0.0) * tokens
        self.exact += float(told.get("exact") or 0.0)

    def means(self) -> tuple[int, float, float, float]:
        return self.probes, self.loss / self.tokens, self.right / self.tokens, self.exact / self.probes


def _month(db: Database, memory: str) -> str:
    try:
        row = db.one(
            """SELECT substr(coalesce(m.time, b.claimed_at), 1, 7) AS month FROM memories m
            JOIN batches b ON b.id = m.batch WHERE m.id=?""",
            (bytes.fromhex(memory),),
        )
    except ValueError:  # no memory's id
        row = None
    return str(row["month"]) if row else ALL_MONTHS


def decided(db: Database, version: int, figures: Mapping[str, Any], weights: str) -> None:
    """What the verdict rests on, and which of the checkpoint's weights are relied on."""
    moved(
        db.execute("UPDATE versions SET gate=?, weights=? WHERE id=?",
                   (json.dumps(figures, ensure_ascii=False), weights, version)), "version",
    )  # fmt: skip


def batches_of(db: Database, probes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """{id of a memory: number of its batch} for those that lines of `metrics.json` name."""
    ids = {str(line["memory"]) for line in probes if line.get("memory")}
    found = {}
    for id_ in sorted(ids):
        if row := db.one("SELECT batch FROM memories WHERE id=?", (_raw(id_),)):
            found[id_] = int(row["batch"])
    return found


def _raw(id_: str) -> bytes:
    try:
        return bytes.fromhex(id_)
    except ValueError:  # no memory's id
        return b""


def nights(db: Database, line: str = "", most: int = 30) -> list[list[dict[str, float]]]:
    """What `rules.unlike.night` gave for the newest promoted versions of a line, without those that were promoted
    despite it: noise that a person has let pass must not make noise the rule."""
    rows = db.all(
        """SELECT json_extract(gate, '$.night') AS night FROM versions
        WHERE line=? AND state='promoted' AND gate IS NOT NULL AND despite IS NULL ORDER BY id DESC LIMIT ?""",
        (line, most),
    )
    found = (json.loads(row["night"]) for row in rows if row["night"])
    return [one for one in found if isinstance(one, list)]


def of_version(db: Database, version: int) -> list[dict[str, Any]]:
    """[{"who", "part", "month", "probes", "loss", "token_accuracy", "exact"}] of one version."""
    return db.all(
        """SELECT who, part, month, probes, loss, token_accuracy, exact FROM scores WHERE version=?
        ORDER BY part, month, who""",
        (version,),
    )


def of_versions(db: Database, versions: Iterable[int]) -> list[dict[str, Any]]:
    """As `of_version`, of several, with the key "version"; in the order of the versions' numbers."""
    wanted = json.dumps(list(versions))
    return db.all(
        """SELECT version, who, part, month, probes, loss, token_accuracy, exact FROM scores
        WHERE version IN (SELECT value FROM json_each(?)) ORDER BY version, part, month, who""",
        (wanted,),
    )


# -- promoted all the same ---------------------------------------------------------------------------


def despite(db: Database, version: Mapping[str, Any], why: str) -> int:
    """A refused version was promoted by hand (`jobs.promote`, in the same transaction): what was new in its job is
    trained by it, and batches that were held for it are done. Gives how many memories became trained."""
    moved(db.execute("UPDATE versions SET despite=? WHERE id=?", (why, version["id"])), "version")
    if version["line"]:  # other lines only rehearse
        return 0
    new = "SELECT memory FROM job_memories WHERE job=? AND use='new'"
    count = db.execute(
        f"""UPDATE memories SET state='trained', reason=NULL WHERE seq IN ({new})
        AND state IN ('waiting','skipped','held','discarded')""",
        (version["job"],),
    ).rowcount
    of_job = "SELECT batch FROM job_batches WHERE job=?"
    held = "SELECT 1 FROM memories m WHERE m.seq BETWEEN batches.first_seq AND batches.last_seq AND m.state"
    db.execute(
        f"UPDATE batches SET state='read', reason=NULL WHERE id IN ({of_job}) AND state='held' "
        f"AND NOT EXISTS ({held}='held')",
        (version["job"],),
    )
    db.execute(
        f"""UPDATE batches SET state='done' WHERE id IN ({of_job}) AND state='read'
        AND NOT EXISTS ({held} IN ('waiting','frozen','held'))""",
        (version["job"],),
    )
    return count


def new_of_version(db: Database, job: int) -> dict[str, int]:
    """{"held": 12, "forgotten": 1}: the memories that were new in a job, by what became of them."""
    rows = db.all(
        """SELECT m.state AS state, count(*) AS n FROM job_memories jm JOIN memories m ON m.seq = jm.memory
        WHERE jm.job=? AND jm.use='new' GROUP BY m.state""",
        (job,),
    )
    return {row["state"]: row["n"] for row in rows}


def forgotten_in(db: Database, job: int) -> int:
    """How many memories that a job used were forgotten since."""
    return db.number(
        """SELECT count(DISTINCT jm.memory) FROM job_memories jm JOIN memories m ON m.seq = jm.memory
        WHERE jm.job=? AND m.state='forgotten'""",
        (job,),
    )


def refused(db: Database) -> list[dict[str, Any]]:
    """[{"version", "folder", "step"}] of refused versions whose job's folder was not pruned."""
    return db.all(
        """SELECT v.id AS version, j.folder AS folder, v.step AS step FROM versions v JOIN jobs j ON j.id = v.job
        WHERE v.state='refused' AND j.pruned_at IS NULL ORDER BY v.id"""
    )


def newest_refused(db: Database, line: str = "") -> dict[str, Any] | None:
    """The newest refused version of a line that was compared with the head, so that it can be promoted still; not one
    of which all that was new in it was given up."""
    return db.one(
        """SELECT v.* FROM versions v LEFT JOIN heads h ON h.line = v.line
        WHERE v.line=? AND v.state='refused' AND v.parent IS h.version AND (
            EXISTS (SELECT 1 FROM job_memories jm JOIN memories m ON m.seq = jm.memory
                WHERE jm.job = v.job AND jm.use='new' AND m.state NOT IN ('discarded','forgotten'))
            OR NOT EXISTS (SELECT 1 FROM job_memories jm WHERE jm.job = v.job AND jm.use='new'))
        ORDER BY v.id DESC LIMIT 1""",
        (line,),
    )
