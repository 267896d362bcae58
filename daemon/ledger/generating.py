"""Generate jobs: the base model's answers to general prompts. They have no memories, no chain and no verdict."""

from typing import Any

from daemon.ledger.database import Database, moved

BASE = "anchors_of"  # in a generate job's `cycle`: the fingerprint of the base model that answered


def newest(db: Database, fingerprint: str) -> dict[str, Any] | None:
    """The last generate job that asked this base model."""
    return db.one(
        f"""SELECT * FROM jobs WHERE kind='generate' AND json_extract(cycle, '$.{BASE}')=? ORDER BY id DESC LIMIT 1""",
        (fingerprint,),
    )


def done(db: Database, job: int, reason: str | None) -> None:
    """Its answers are kept, or there were none that are of use: then `reason` says so."""
    moved(db.execute("UPDATE jobs SET state='done', reason=? WHERE id=?", (reason, job)), "job")
