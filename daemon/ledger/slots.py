"""Which due slots were served, in `home.db`: the truth of the schedule. One row is one claim.

A slot of the calendar has its local day and time as its key, `2026-05-01T03:00`, and a task of a profile has at
most one row a day. What a person asked for by hand has a key that begins with `hand ` and is no slot of any day.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from daemon.ledger import requests
from daemon.ledger.database import Database, moved

BY_HAND = "hand "
WAITS = "waits: "  # before the outcome of a claim that cannot be done yet
# A row from further in the future than this was written under a clock that was wrong. Its own slot stays
# served, but what it stood for does not: those days are still to come.
CLOCK_TOLERANCE = timedelta(days=1)

_AGAIN = "taken up again after the daemon was killed"
_CALENDAR = "slot < ':'"  # a digit first: no row by hand


@dataclass(frozen=True, slots=True)
class Served:
    """What of a task was served, as the clock now has it."""

    last: date | None  # of the newest slot; those before it are served with it
    ahead: frozenset[date]  # days above it whose own slot ran while the clock was far ahead


def served(db: Database, task: str, profile: str, now: datetime) -> Served:
    trusted = _text(now + CLOCK_TOLERANCE)
    rows = db.all(
        f"SELECT slot, claimed_at <= ? AS trusted FROM slots WHERE task=? AND profile=? AND {_CALENDAR} "
        "AND slot >= coalesce((SELECT slot FROM slots WHERE task=? AND profile=? AND claimed_at <= ? "
        f"AND {_CALENDAR} ORDER BY slot DESC LIMIT 1), '') ORDER BY slot",
        (trusted, task, profile, task, profile, trusted),
    )
    last = max((_day(row["slot"]) for row in rows if row["trusted"]), default=None)
    return Served(last, frozenset(_day(row["slot"]) for row in rows if not row["trusted"]))


def claim(db: Database, task: str, profile: str, slot: str, due_at: str, now: str) -> bool:
    """Take a slot; False where this task of this profile has one of the same day already."""
    with db.transaction():
        return _claim(db, task, profile, slot, due_at, now)


def claim_for_request(
    db: Database, task: str, profile: str, slot: str, due_at: str, now: str,
    command: str, arguments: dict[str, Any],
) -> int | None:  # fmt: skip
    """Take a slot and ask for its work in one transaction, so that it is asked for once. The request's number;
    None where the day has its slot already."""
    with db.transaction():
        if not _claim(db, task, profile, slot, due_at, now):
            return None
        request = requests.insert(db, profile, command, arguments, now)
        _end(db, task, profile, slot, "done", f"asked for: request {request}", now)
        return request


def _claim(db: Database, task: str, profile: str, slot: str, due_at: str, now: str) -> bool:
    # A slot has its whole day; what was asked for by hand only its own moment.
    same = "slot=?" if slot.startswith(BY_HAND) else "substr(slot, 1, 10)=?"
    key = slot if slot.startswith(BY_HAND) else slot[:10]
    if db.one(f"SELECT 1 FROM slots WHERE task=? AND profile=? AND {same}", (task, profile, key)):
        return False
    db.execute(
        "INSERT INTO slots (task, profile, slot, due_at, claimed_at) VALUES (?, ?, ?, ?, ?)",
        (task, profile, slot, due_at, now),
    )
    return True


def finish(
    db: Database, task: str, profile: str, slot: str, outcome: str, now: str, *,
    failed: bool = False, then: str | None = None,
) -> bool:  # fmt: skip
    """The end of a claim, with one line on what came of it. `then` is a task that follows on this one: its claim of
    the same slot is made with it. Gives whether there is such a claim now."""
    with db.transaction():
        _end(db, task, profile, slot, "failed" if failed else "done", outcome, now)
        return then is not None and _claim(db, then, profile, slot, now, now)


def _end(db: Database, task: str, profile: str, slot: str, state: str, outcome: str, now: str) -> None:
    moved(
        db.execute(
            "UPDATE slots SET state=?, outcome=?, finished_at=? WHERE task=? AND profile=? AND slot=?",
            (state, outcome, now, task, profile, slot),
        ),
        "slot",
    )


def wait(db: Database, task: str, profile: str, slot: str, reason: str) -> None:
    """It could not be done yet: the claim stays, and says why."""
    with db.transaction():
        moved(
            db.execute(
                "UPDATE slots SET outcome=? WHERE task=? AND profile=? AND slot=?",
                (f"{WAITS}{reason}", task, profile, slot),
            ),
            "slot",
        )



def take_up(db: Database, row: dict[str, Any], now: str) -> bool:
    """A claim that another life of the daemon left: once more. False, and it has failed, where it has been taken
    up before: what kills the daemon each time must not do so for ever. One that only waited goes on waiting."""
    if (row["outcome"] or "").startswith(WAITS):
        return True
    key = (row["task"], row["profile"], row["slot"])
    if row["outcome"] == _AGAIN:
        finish(db, *key, "the daemon was killed twice while at it", now, failed=True)
        return False
    with db.transaction():
        moved(db.execute("UPDATE slots SET outcome=? WHERE task=? AND profile=? AND slot=?", (_AGAIN, *key)), "slot")
    return True


def open_claims(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM slots WHERE state='claimed' ORDER BY due_at, task, profile")


def get(db: Database, task: str, profile: str, slot: str) -> dict[str, Any] | None:
    return db.one("SELECT * FROM slots WHERE task=? AND profile=? AND slot=?", (task, profile, slot))


def newest(db: Database, task: str, profile: str) -> dict[str, Any] | None:
    """The claim that was taken last, by hand or by the calendar."""
    return db.one(
        "SELECT * FROM slots WHERE task=? AND profile=? ORDER BY claimed_at DESC, slot DESC LIMIT 1", (task, profile)
    )


def in_force_since(
    db: Database, task: str, profile: str, expression: str, now: datetime, *, write: bool = True
) -> datetime:
    """Since when a task has had this expression, as far as this home knows. Slots of before are nobody's: neither
    the first start nor a new expression runs what was due before it. With a clock that was set back it is now."""
    key = _since_key(task, profile)
    row = db.one("SELECT value FROM meta WHERE key=?", (key,))
    found = json.loads(row["value"]) if row else {}
    if found.get("expression") == expression and (since := datetime.fromisoformat(found["since"])) <= now:
        return since
    if write:
        value = json.dumps({"expression": expression, "since": now.astimezone(UTC).isoformat()})
        with db.transaction():
            db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value",
                (key, value),
            )
    return now


def forget_others(db: Database, known: Collection[tuple[str, str]], now: str) -> None:
    """What is not in the schedule any more: its open claims end, and if it comes back it begins anew."""
    for row in open_claims(db):
        if (row["task"], row["profile"]) not in known and not row["slot"].startswith(BY_HAND):
            finish(db, row["task"], row["profile"], row["slot"], "it is no longer in the schedule", now, failed=True)
    keys = {_since_key(task, profile) for task, profile in known}
    gone = [row["key"] for row in db.all("SELECT key FROM meta WHERE key GLOB 'schedule:*'") if row["key"] not in keys]
    if gone:
        with db.transaction():
            db.executemany("DELETE FROM meta WHERE key=?", [(key,) for key in gone])


def _since_key(task: str, profile: str) -> str:
    return f"schedule:{profile}:{task}"


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _day(slot: str) -> date:
    return date.fromisoformat(slot[:10])
