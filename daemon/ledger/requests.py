"""What the command line asks of the daemon, and the counters that are never reset. Lives in `home.db`."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from daemon.ledger.database import Database, moved


def ask(db: Database, profile: str, command: str, arguments: dict[str, Any], now: str) -> int:
    """The one thing that the command line may write. Gives the request's id."""
    with db.transaction():
        return insert(db, profile, command, arguments, now)


def insert(db: Database, profile: str, command: str, arguments: dict[str, Any], now: str) -> int:
    """As `ask`, in the caller's transaction."""
    cursor = db.execute(
        "INSERT INTO requests (profile, command, arguments, created_at) VALUES (?, ?, ?, ?)",
        (profile, command, json.dumps(arguments), now),
    )
    return int(cursor.lastrowid or 0)


def ask_beside(path: Path, profile: str, command: str, arguments: dict[str, Any], now: str) -> int:
    """As `ask`, on a home whose daemon runs: a plain connection that migrates nothing."""
    db = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    try:
        db.execute("PRAGMA synchronous=FULL")
        cursor = db.execute(
            "INSERT INTO requests (profile, command, arguments, created_at) VALUES (?, ?, ?, ?)",
            (profile, command, json.dumps(arguments), now),
        )
        return int(cursor.lastrowid or 0)
    finally:
        db.close()


def get(db: Database, request: int) -> dict[str, Any] | None:
    return db.one("SELECT * FROM requests WHERE id=?", (request,))


def open_ones(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM requests WHERE state IN ('waiting','running') ORDER BY id")


def start(db: Database, request: int) -> None:
    with db.transaction():
        moved(db.execute("UPDATE requests SET state='running' WHERE id=?", (request,)), "request")


def finish(db: Database, request: int, answer: dict[str, Any], now: str, *, failed: bool = False) -> None:
    state = "failed" if failed else "done"
    with db.transaction():
        moved(
            db.execute(
                "UPDATE requests SET state=?, answer=?, finished_at=? WHERE id=?",
                (state, json.dumps(answer), now, request),
            ),
            "request",
        )


def raise_marks(db: Database, profile: str, newest: dict[str, int]) -> None:
    """No number of these kinds is given again up to here."""
    with db.transaction():
        for kind, value in newest.items():
            db.execute(
                """INSERT INTO high_water (profile, kind, value) VALUES (?, ?, ?)
                ON CONFLICT (profile, kind) DO UPDATE SET value = max(value, excluded.value)""",
                (profile, kind, value),
            )


def go_on_above(db: Database, request: int) -> None:
    """No request up to here is asked again, also where this is another home than the one of a ledger that names it."""
    with db.transaction():
        raised = "UPDATE sqlite_sequence SET seq=max(seq, ?) WHERE name='requests'"
        if not db.execute(raised, (request,)).rowcount:
            db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('requests', ?)", (request,))


def next_id(db: Database, profile: str, kind: str, at_least: int = 1) -> int:
    """The next job, chain or version number. Never given twice, even where the profile's ledger is restored;
    `at_least` is what the ledger itself says, where this home's own counter was lost."""
    with db.transaction():
        row = db.execute(
            """INSERT INTO high_water (profile, kind, value) VALUES (?, ?, ?)
            ON CONFLICT (profile, kind) DO UPDATE SET value = max(value + 1, excluded.value) RETURNING value""",
            (profile, kind, at_least),
        ).fetchone()
    return int(row[0])
