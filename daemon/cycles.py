"""Cycles: a job over memories that were selected, of which most were trained before. Asked for by hand or by the clock.

A monthly cycle takes all recent memories and a seeded draw of the old ones and goes on with the head; a foundation
takes all and begins a new chain at the base. What waits is new in it; the rest is rehearsed.
"""

from dataclasses import asdict
from typing import Any

from daemon.freezing import Material
from daemon.ledger import jobs, memories
from daemon.ledger.selection import select as draw
from daemon.logs import get_logger
from daemon.rules import selection
from daemon.settings import Settings
from daemon.training import Training
from daemon.world import World

KINDS = ("monthly", "foundation")
_ENDED = ("promoted", "refused", "failed", "undone", "forgotten")

_log = get_logger()


def kind_of(asked: str | None, *, any_version: bool) -> str:
    """Without a word about it: a foundation where there is no version yet, else monthly."""
    return asked or ("monthly" if any_version else "foundation")


def window_of(settings: Settings, kind: str, asked: dict[str, Any]) -> selection.Window:
    """`asked` has what differs from `[cycle]`: days_recent, old_samples, max_samples, mode."""
    most, mode = asked.get("max_samples"), asked.get("mode") or None
    if kind == "foundation":
        return selection.Window(None, 0, most, mode)
    days, old = asked.get("days_recent"), asked.get("old_samples")
    cycle = settings.cycle
    return selection.Window(
        cycle.days_recent if days is None else days, cycle.old_samples if old is None else old, most, mode
    )


def refusal(settings: Settings, profile: str, asked: dict[str, Any]) -> str | None:
    """Why such a cycle is not trained, in one sentence."""
    method = settings.recipe(profile).method
    if asked.get("method") and asked["method"] != method:
        return (f"the nights of this profile train with method {method}, and a cycle goes on with their chain: set "
                f"training.method = {asked['method']!r}, or leave the method out")  # fmt: skip
    return None


def answer(
    world: World, training: Training, request: dict[str, Any], asked: dict[str, Any], now: str, *, settled: bool,
    held: str | None,
) -> dict[str, Any] | None:  # fmt: skip
    """What came of a cycle that was asked for; None until its job has ended. Raises ValueError with a sentence."""
    db = world.db
    job = jobs.of_request(db, request["id"])
    if job is not None:
        if job["state"] not in _ENDED:
            return None
        version = jobs.version_of_job(db, job["id"])
        return {"job": job["id"], "state": job["state"], "reason": job["reason"], "steps": job["steps"],
                "version": version["id"] if version else None}  # fmt: skip
    if why := refusal(world.settings, world.name, asked):
        raise ValueError(why)
    if held or not settled or jobs.open_job(db) is not None:
        return None
    material = select(world, request["id"], asked, now)
    if not training.cycle(material, now):
        waits = jobs.get_meta(db, "waits")
        if waits:
            return None
        raise ValueError("no memory that it selects gives anything to train: engramd preview shows why")
    return None


def select(world: World, request: int, asked: dict[str, Any], now: str) -> Material:
    """The memories of a cycle, and how they were chosen."""
    db = world.db
    kind = kind_of(asked.get("kind"), any_version=jobs.get_head(db) is not None)
    window = window_of(world.settings, kind, asked)
    since = None if window.days_recent is None else selection.cutoff(now, window.days_recent)
    chosen = draw(db, window, since, world.seed)
    rows = memories.by_seq(db, chosen.seqs)
    if window.mode:
        rows = (row for row in rows if world.curation.mode(row[3]) == window.mode)
    _log.info("cycle_selected", profile=world.name, cycle=kind, since=since, recent=chosen.recent, old=chosen.old,
              left_out_recent=chosen.left_out_recent, left_out_old=chosen.left_out_old)  # fmt: skip
    return Material(
        rows, f"{kind} cycle: {chosen.recent} recent and {chosen.old} old memories", (), chosen.trained,
        asked.get("dataset_builder") or world.settings.cycle.dataset_builder,
        "a foundation begins anew from the base" if kind == "foundation" else None,
        {"request": request, "kind": kind, "name": asked.get("name"), "since": since, "seed": world.seed,
         **asdict(window), "recent": chosen.recent, "old": chosen.old},
    )  # fmt: skip
