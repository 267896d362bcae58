"""What rented machines cost, in `home.db`: reserved before a pod is started, settled once its meter stands.

A row is one attempt of one job. While it is open, all of `reserved` counts as spent, and no pod of its name runs past
`until`. A month's rows are those that were begun in it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from daemon.ledger.database import Database
from daemon.rules import costs

LEAST_LEFT = 300.0  # seconds; with less, an attempt that was broken off is not taken up again


@dataclass(frozen=True, slots=True)
class Reserved:
    """An attempt that may begin, or go on: so many dollars, and never later than `until`."""

    dollars: float
    until: str
    again: bool  # it was reserved before: a pod of it may be there
    price: float  # dollars an hour that a pod of it may cost


def reserve(
    db: Database, *, name: str, profile: str, job: int, terms: costs.Terms, seconds: float | None, longest: float,
    now: str,
) -> Reserved | str:  # fmt: skip
    """In one transaction: look what is left, and take it; or the sentence for which the job waits. An open attempt of
    this name is gone on with, as long as there is time in it; one that has run out is settled as spent."""
    with db.transaction():
        row = db.one("SELECT * FROM spending WHERE name=? AND spent IS NULL", (name,))
        left, whole = (_seconds(since, row["until"]) if row else 0.0 for since in (now, row["at"] if row else now))
        if row is not None and LEAST_LEFT <= left <= whole + LEAST_LEFT:  # more: the clock was set back by as much
            return Reserved(row["reserved"], row["until"], True, _price_of(row, terms.price_per_hour))
        if row is not None:
            _settle(db, name, row["reserved"], "its time ran out", now)
        month = costs.month_of(now)
        found = costs.allow(terms, costs.Spent(_of_job(db, profile, job), _of_month(db, month)), seconds, longest)
        if isinstance(found, str):
            return found
        until = later(now, found.seconds)
        db.execute(
            "INSERT INTO spending (name, profile, job, month, reserved, at, until) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, profile, job, month, found.dollars, now, until),
        )
        return Reserved(found.dollars, until, False, terms.price_per_hour)


def _price_of(row: dict[str, Any], price: float) -> float:
    """That of today, or the one that its end was reckoned with where today's is higher: it pays for no dearer pod."""
    whole = _seconds(row["at"], row["until"])
    before = row["reserved"] / whole * 3600.0 if whole > 0.0 else price
    return price if price <= before * costs.PRICE_TOLERANCE else before


def settle(db: Database, name: str, spent: float, note: str, now: str) -> bool:
    """The meter of this attempt stands: never more than was reserved. False where none of this name is open."""
    with db.transaction():
        return _settle(db, name, spent, note, now)


def _settle(db: Database, name: str, spent: float, note: str, now: str) -> bool:
    return bool(
        db.execute(
            "UPDATE spending SET spent=min(max(?, 0.0), reserved), note=?, settled_at=? WHERE name=? AND spent IS NULL",
            (spent, note, now, name),
        ).rowcount
    )


def open_ones(db: Database) -> list[dict[str, Any]]:
    """Attempts whose meter may still run, the oldest first."""
    return db.all("SELECT * FROM spending WHERE spent IS NULL ORDER BY id")


def lately(db: Database, now: str) -> bool:
    """Whether anything was rented in the last weeks: a stopped pod of then may still lie there."""
    return db.one("SELECT 1 FROM spending WHERE at >= ? LIMIT 1", (later(now, -45 * 86_400.0),)) is not None


def jobs_of(db: Database, profile: str) -> set[int]:
    """The jobs of a profile that were trained on rented machines, in part at least."""
    return {int(row["job"]) for row in db.all("SELECT DISTINCT job FROM spending WHERE profile=?", (profile,))}


def of_month(db: Database, now: str) -> float:
    """Dollars of this month so far, with all that is reserved."""
    return _of_month(db, costs.month_of(now))


def of_job(db: Database, profile: str, job: int) -> float:
    """The same of one job, over all its attempts."""
    return _of_job(db, profile, job)


def _of_month(db: Database, month: str) -> float:
    return _sum(db, "month=?", (month,))


def _of_job(db: Database, profile: str, job: int) -> float:
    return _sum(db, "profile=? AND job=?", (profile, job))


def _sum(db: Database, which: str, values: tuple[Any, ...]) -> float:
    row = db.one(f"SELECT sum(coalesce(spent, reserved)) AS dollars FROM spending WHERE {which}", values)
    return float(row["dollars"] or 0.0) if row else 0.0


def later(now: str, seconds: float) -> str:
    moment = datetime.fromisoformat(now) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(now: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(now)).total_seconds()
