"""What a person has pinned: no retention takes it."""

from typing import Any

from daemon.ledger.database import Database

KINDS = ("snapshot", "version", "job")


def pin(db: Database, kind: str, name: str, now: str) -> None:
    """Pinning twice is pinning once."""
    with db.transaction():
        db.execute("INSERT OR IGNORE INTO pins (kind, name, at) VALUES (?, ?, ?)", (kind, name, now))


def unpin(db: Database, kind: str, name: str) -> bool:
    """Whether it was pinned."""
    with db.transaction():
        return db.execute("DELETE FROM pins WHERE kind=? AND name=?", (kind, name)).rowcount > 0


def names(db: Database, kind: str) -> set[str]:
    return {row["name"] for row in db.all("SELECT name FROM pins WHERE kind=?", (kind,))}


def listing(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT kind, name, at FROM pins ORDER BY kind, name")
