"""Single values of a home, such as how it is paused."""

from datetime import datetime

from daemon.ledger.database import Database

PAUSED = "paused"  # until when, in UTC; empty for until engramd resume


def get(db: Database, key: str) -> str | None:
    row = db.one("SELECT value FROM meta WHERE key=?", (key,))
    return None if row is None else str(row["value"])


def put(db: Database, key: str, value: str | None) -> None:
    """None takes it away."""
    with db.transaction():
        if value is None:
            db.execute("DELETE FROM meta WHERE key=?", (key,))
        else:
            db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value",
                (key, value),
            )


def paused(db: Database, now: str) -> str | None:
    """One sentence while training is paused."""
    until = get(db, PAUSED)
    if until is None or (until and datetime.fromisoformat(now) >= datetime.fromisoformat(until)):
        return None
    return f"paused until {until[:16].replace('T', ' ')} UTC: engramd resume" if until else "paused: engramd resume"
