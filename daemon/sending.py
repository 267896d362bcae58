"""Where a job is trained, and what its courier is told when that is elsewhere."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trainer
from daemon import budgets, disk
from daemon.compute import orders, telling
from daemon.ledger import Database, home_meta
from daemon.settings import Settings
from daemon.settings_compute import Where
from daemon.world import World
from trainer.contract import TrainingRecipe

_HOME = "compute_home"  # in home.db: by what this home's jobs are known elsewhere
_CHECKOUT = Path(trainer.__file__).resolve().parent.parent
LOCK_FILE = _CHECKOUT / "requirements.lock"


class Waits(Exception):
    """The job cannot be sent as things are; one sentence with what mends it."""


def where(settings: Settings, recipe: TrainingRecipe, cycle: dict[str, Any] | None = None) -> Where:
    """Of a finetune job: as its cycle was asked for; else as the settings have it for cycles, for full, for all."""
    compute = settings.compute
    asked: Where | None = cycle.get("where") if cycle else None
    if asked:
        return asked
    if cycle is not None and compute.cycles:
        return compute.cycles
    if recipe.method == "full" and compute.full:
        return compute.full
    return compute.where


def where_of(world: World, job: dict[str, Any], recipe: TrainingRecipe) -> Where:
    """Of a job of the ledger. Only a finetune goes away: the other kinds are short, or need what lies here."""
    if job["kind"] != "finetune":
        return "local"
    return where(world.settings, recipe, json.loads(job["cycle"]) if job["cycle"] else None)


def not_ready(settings: Settings, where: Where) -> str | None:
    """Why nothing can be sent there, in one sentence."""
    if where == "ssh":
        if not settings.compute.ssh.host:
            return "compute.ssh.host is not set: name the machine in etc/engramd.toml"
        if not settings.compute.ssh.python and not LOCK_FILE.is_file():
            return (f"{LOCK_FILE} is not there, of which an environment over there would be made: set "
                    "compute.ssh.python to one of your own")  # fmt: skip
    runpod = settings.compute.runpod
    if where == "runpod":
        if not (runpod.template or runpod.image):
            return "a pod is made of compute.runpod.template or compute.runpod.image: set one of them"
        if not runpod.python and not LOCK_FILE.is_file():
            return (f"{LOCK_FILE} is not there, of which an environment on the pod would be made: set "
                    "compute.runpod.python to one of the image")  # fmt: skip
    return None


def send(
    world: World, home_db: Database, job: dict[str, Any], recipe: TrainingRecipe, base: Path, fingerprint: str, now: str
) -> Sequence[str]:
    """Write the order into the job's folder. Gives the command in the trainer's place. Raises Waits."""
    place = where_of(world, job, recipe)
    assert place != "local"
    if why := not_ready(world.settings, place):
        raise Waits(why)
    order = order_of(world, home_db, job, recipe, base, fingerprint, place)
    if place == "runpod":
        order = _paid(world, home_db, job, order, now)
    orders.write(world.paths.jobs / str(job["folder"]), order)
    return orders.COMMAND


def is_rented(folder: Path) -> bool:
    """Whether this job went to a pod last, and was not begun anywhere else since."""
    try:
        return bool(json.loads((folder / orders.FILE).read_bytes())["where"] == "runpod")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stay(folder: Path) -> None:
    """The job is trained here: what an earlier attempt elsewhere left in its folder tells of nothing any more."""
    for name in (orders.FILE, telling.FILE):
        (folder / name).unlink(missing_ok=True)


def order_of(
    world: World, home_db: Database, job: dict[str, Any], recipe: TrainingRecipe, base: Path, fingerprint: str,
    place: Where,
) -> orders.Order:  # fmt: skip
    settings, compute = world.settings.jobs, world.settings.compute
    assert place != "local"
    own = base.is_relative_to(Path(trainer.__file__).resolve().parent)  # goes with the code
    return orders.Order(
        where=place, ssh=compute.ssh, runpod=compute.runpod, name=name_of(home_db, world.name, job["id"]),
        home=home_id(home_db), base=None if own else base, base_fingerprint=fingerprint,
        lock_file=LOCK_FILE if LOCK_FILE.is_file() else None, threads=settings.threads,
        processes=compute.processes, sharded=compute.sharded, heartbeat_seconds=settings.heartbeat_seconds,
        timeout_seconds=settings.timeout_hours * 3600, stop_seconds=settings.stop_seconds,
        room=disk.job_bytes(disk.checkpoint_bytes(recipe, base), job["steps"] or 1, recipe),
        deadline_hours=settings.timeout_hours,
    )  # fmt: skip


def _paid(world: World, home_db: Database, job: dict[str, Any], order: orders.Order, now: str) -> orders.Order:
    """With what was reserved for it, which pays until then and no longer. Raises Waits."""
    settings = world.settings
    found = budgets.reserve(
        home_db, world.db, name=order.name, profile=world.name, job=job, folder=world.paths.jobs / str(job["folder"]),
        settings=settings.compute.runpod, timeout_hours=settings.jobs.timeout_hours, now=now,
    )  # fmt: skip
    if isinstance(found, str):
        raise Waits(f"job {job['id']} is not sent to RunPod: {found}")
    until = budgets.unix(found.until)
    hours = max((until - budgets.unix(now)) / 3600, 1 / 3600)
    runpod = settings.compute.runpod.model_copy(update={"price_per_hour": found.price})
    told = {"runpod": runpod, "budget": found.dollars, "until": until, "deadline_hours": hours}
    return order.model_copy(update=told)


def home_id(home_db: Database) -> str:
    """Made once: a path or a machine's name may change, and another home may have the same."""
    found = home_meta.get(home_db, _HOME)
    if found is None:
        found = secrets.token_hex(6)
        home_meta.put(home_db, _HOME, found)
    return found


def name_of(home_db: Database, profile: str, job: int) -> str:
    """By what a job is known elsewhere; a person's name is in none."""
    whose = hashlib.sha256(profile.encode()).hexdigest()[:8]
    return f"engramd-{home_id(home_db)}-{whose}-{job}"
