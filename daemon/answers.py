"""What the command line asks of one profile, each with its answer: None where it is not done yet.

Each function raises ValueError with a sentence where it cannot be done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daemon import cycles, durable, fetching, forgetting, promoting, pruning, schedule
from daemon.ingestion import Ingestion
from daemon.ledger import Database, batches, jobs, memories, pins
from daemon.logs import get_logger
from daemon.nights import local_date, made_told
from daemon.serving import Serving
from daemon.settings import Settings
from daemon.snapshotting import take
from daemon.training import Training
from daemon.world import World

Told = dict[str, Any]

_log = get_logger()


@dataclass(frozen=True, slots=True)
class At:
    """The profile that is asked, at work."""

    world: World
    ingestion: Ingestion
    training: Training
    home_db: Database
    settings: Settings
    held: str | None  # why no job may run now
    settled: bool  # nothing of its inbox waits to be claimed or read
    pulse: durable.Pulse
    serving: Serving


def answer(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    """Raises ValueError for a command that nobody knows, too."""
    if request["command"] not in _ANSWERS:
        raise ValueError(f"unknown request {request['command']!r}")
    return _ANSWERS[request["command"]](at, request, arguments, now)


def _train(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    db = at.world.db
    job, waits = jobs.open_job(db), jobs.get_meta(db, "waits")
    fresh = request["state"] == "waiting"  # what is written down may be over, such as a pause, or not hold for it
    if waits and not fresh and not (job and job["state"] == "running"):
        raise ValueError(waits)
    busy = (job and job["kind"] != "export") or not at.settled or memories.any_waiting(db)
    return None if busy else {"head": jobs.get_head(db)}


def _cycle(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    return cycles.answer(at.world, at.training, request, arguments, now, settled=at.settled, held=at.held)


def _forget(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    return forgetting.answer(
        at.world, at.home_db, at.training, request, now, settled=at.settled, pulse=at.pulse
    )  # fmt: skip


def _owner(at: At, request: Told, arguments: Told, now: str) -> Told:
    at.world.set_aliases(arguments["names"], add=arguments["add"])
    again = at.ingestion.owner_named()
    _log.info("owner_named", profile=at.world.name, aliases=len(at.world.aliases), batches_read_again=again)
    return {"aliases": at.world.aliases, "batches": again}


def _promote(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    return promoting.answer(at.world, at.training, arguments, now)


def _held_batch(at: At, request: Told, arguments: Told, now: str) -> Told:
    """`retry` and `discard`."""
    db, command = at.world.db, request["command"]
    row = batches.get(db, arguments["batch"])
    if row is None or row["state"] not in ("held", "needs_owner"):
        raise ValueError(f"batch {arguments['batch']} is not held: engramd status lists the held ones")
    with db.transaction():
        if command == "retry":
            batches.retry(db, row["id"])
        else:
            batches.discard(db, row["id"], "discarded by hand")
    at.ingestion.put_away(row["id"], now)
    _log.info(f"batch_{command}", profile=at.world.name, batch=row["id"], at=now)
    return {"batch": row["id"]}


def _snapshot(at: At, request: Told, arguments: Told, now: str) -> Told:
    return made_told(take(at.world, local_date(at.settings.schedule.timezone, now), now, pulse=at.pulse))


def _prune(at: At, request: Told, arguments: Told, now: str) -> Told:
    zone = schedule.zone_of(at.settings.schedule.timezone)
    at.serving.clean_soon()
    return pruning.prune(at.world, now, zone, pulse=at.pulse).told()


def _pin(at: At, request: Told, arguments: Told, now: str) -> Told:
    kind, name = arguments["kind"], arguments["name"]
    if not pruning.is_there(at.world, kind, name):
        raise ValueError(f"there is no {kind} {name} of profile {at.world.name}")
    pins.pin(at.world.db, kind, name, now)
    return {"kind": kind, "name": name}


def _unpin(at: At, request: Told, arguments: Told, now: str) -> Told:
    kind, name = arguments["kind"], arguments["name"]
    return {"kind": kind, "name": name, "was_pinned": pins.unpin(at.world.db, kind, name)}


def _export(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    return fetching.export(at.world, at.home_db, request, arguments, now, at.held)


def _fetched(at: At, request: Told, arguments: Told, now: str) -> Told:
    return fetching.fetched(at.world, arguments, now)


def _serve(at: At, request: Told, arguments: Told, now: str) -> Told | None:
    return fetching.serve(at.world, at.serving, request, now, at.held)


_ANSWERS: dict[str, Callable[[At, Told, Told, str], Told | None]] = {
    "train": _train, "cycle": _cycle, "forget": _forget, "owner": _owner, "retry": _held_batch, "discard": _held_batch,
    "snapshot": _snapshot, "prune": _prune, "pin": _pin, "unpin": _unpin, "promote": _promote,
    "export": _export, "export_fetched": _fetched, "serve": _serve,
}  # fmt: skip
