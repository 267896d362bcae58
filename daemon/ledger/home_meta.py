"""Single values of a home, such as how it is paused."""

from datetime import datetime, timedelta

from daemon.ledger.database import Database

PAUSED = "paused"  # until when, with the offset of the person's zone; empty for until engramd resume


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


def pause(db: Database, until: str) -> None:
    """`until` is a time with an offset; empty for until engramd resume. Raises ValueError."""
    if until and datetime.fromisoformat(until).tzinfo is None:
        raise ValueError(f"{until} is no time with an offset")
    put(db, PAUSED, until)


def paused(db: Database, now: str) -> str | None:
    """One sentence while training is paused, with the end as its person's clock shows it."""
    until = get(db, PAUSED)
    if until is None:
        return None
    if not until:
        return "paused: engramd resume"
    end, moment = datetime.fromisoformat(until), datetime.fromisoformat(now)
    if moment >= end:
        return None
    told = f"{end:%H:%M}" if end - moment < timedelta(days=1) else f"{end:%Y-%m-%d %H:%M}"
    return f"paused until {told}: engramd resume"
