"""What jobs were made of, and what came of them: for doing the same again, and for guessing how long it takes."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from daemon.ledger.database import Database
from trainer.contract import TrainingRecipe

JOBS_ASKED = 5  # for their pace


def memories_of(db: Database, job: int) -> list[dict[str, Any]]:
    """[{"seq", "id", "use", "samples", "state"}] in the order in which their samples stand in its folder: of a night's
    job what was new before the old ones, of a cycle's all in the order of arrival."""
    mixed = db.number("SELECT cycle IS NULL FROM jobs WHERE id=?", (job,))
    order = "jm.use<>'new', m.seq" if mixed else "m.seq"
    return db.all(
        f"""SELECT m.seq AS seq, lower(hex(m.id)) AS id, jm.use AS use, jm.samples AS samples, m.state AS state
        FROM job_memories jm JOIN memories m ON m.seq = jm.memory WHERE jm.job=? ORDER BY {order}""",
        (job,),
    )


def states_of(db: Database, seqs: Sequence[int]) -> dict[int, str]:
    """The state of each of these memories."""
    rows = db.all("SELECT seq, state FROM memories WHERE seq IN (SELECT value FROM json_each(?))", (json.dumps(seqs),))
    return {row["seq"]: row["state"] for row in rows}


def results(db: Database, base_model: str, method: str, limit: int, only: Collection[int] | None = None) -> list[
    dict[str, Any]
]:
    """`result.json` of the newest finished jobs that trained this base by this method; of these jobs only, if any are
    named."""
    rows = db.all(
        """SELECT j.result AS result FROM jobs j JOIN chains c ON c.id = j.chain WHERE j.kind='finetune'
        AND j.result IS NOT NULL AND json_extract(c.key, '$.base_model')=? AND json_extract(c.key, '$.method')=?
        AND (? IS NULL OR j.id IN (SELECT value FROM json_each(?))) ORDER BY j.id DESC LIMIT ?""",
        (base_model, method, *[None if only is None else json.dumps(sorted(only))] * 2, limit),
    )
    return [json.loads(row["result"]) for row in rows]


def pace(
    db: Database, recipe: TrainingRecipe, only: Collection[int] | None = None
) -> tuple[float | None, float | None]:
    """(tokens a second, their loading counted in; tokens of a sample) of the last jobs, or of these, with the same base
    and method; None where there is none."""
    tokens = seconds = told_tokens = seen = 0.0
    for told in results(db, recipe.base_model, recipe.method, JOBS_ASKED, only):
        if told.get("tokens") and told.get("seconds"):
            tokens, seconds = tokens + told["tokens"], seconds + told["seconds"]
            if told.get("samples_seen"):
                told_tokens, seen = told_tokens + told["tokens"], seen + told["samples_seen"]
    return (tokens / seconds if seconds else None), (told_tokens / seen if seen else None)


def base_chosen(db: Database, line: str, base: str, instead_of: str) -> bool:
    """Whether a person chose this base for a cycle of the line, while the settings named the other one."""
    return bool(
        db.number(
            """SELECT EXISTS (SELECT 1 FROM jobs WHERE line=? AND state IN ('promoted','undone')
            AND json_extract(cycle, '$.base_model')=? AND json_extract(cycle, '$.instead_of')=?)""",
            (line, base, instead_of),
        )
    )
