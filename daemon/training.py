"""Steps 4 and 5 of the road, for one profile: plan, freeze, run. What comes of it is in `outcome.py`."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from daemon import (
    anchors,
    chains,
    disk,
    estimates,
    exporting,
    jobdir,
    outcome,
    progress_tail,
    sending,
    supervisor,
)
from daemon.freezing import Material, freeze
from daemon.ledger import Database, jobs, memories
from daemon.logs import get_logger
from daemon.rules import planning
from daemon.world import World
from trainer import base_files, names
from trainer.contract import TrainingRecipe

DISK_PAUSE = 10.0  # seconds between two looks at a disk that is too full
MACHINE_PAUSE = 60.0  # seconds until a job that this machine could not run is tried again
MOST_PAUSE = 3600.0  # the same of a job that goes to a rented machine again and again: each try costs something

_log = get_logger()


class Exports(Protocol):
    """What serving wants of this: export jobs before the next training job, as long as they are wanted."""

    def first(self, now: str) -> bool | None: ...

    def overtaken(self, job: dict[str, Any]) -> bool: ...


class Room(Protocol):
    """Of a GPU, which other models have until a job is trained there."""

    def is_there(self, job: dict[str, Any], on_gpu: Callable[[], bool]) -> bool: ...

    def give_back(self) -> None: ...


class Training:
    """The jobs of one profile: at most one of them is open at a time."""

    def __init__(
        self, world: World, home_db: Database, clock: Callable[[], float] = time.monotonic,
        command: Sequence[str] = supervisor.COMMAND, pulse: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._pulse = pulse  # called while a large job is frozen: the watchdog waits
        self._command = command
        self._world = world
        self._home_db = home_db
        self._clock = clock
        self._child: supervisor.Trainer | None = None
        self._leftover_since: float | None = None
        self._not_before = 0.0
        self._troubles = 0  # times in a row that the machine could not run the job
        self._disk_again = -math.inf
        self._text_again = -math.inf  # until when a wrong file of general text is not read again
        self._held = False  # for the reason that the ledger has
        self._cycle_waits = False  # for the disk: `waits` is about it, whether a memory waits or not
        self._machine = estimates.Machine(world.settings.compute, clock)
        self._fingerprints: dict[tuple[object, ...], str] = {}
        self._logged_progress = 0.0
        self.exports: Exports | None = None
        self.room: Room | None = None
        self._log = _log.bind(profile=world.name)

    # -- what the service asks ------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._child is not None

    @property
    def occupied(self) -> bool:
        """A trainer is at work, be it one that outlived an earlier daemon."""
        if self._child is not None:
            return True
        job = jobs.open_job(self._world.db)
        return job is not None and supervisor.is_locked(self._folder(job))

    def recover(self) -> None:
        """Bring disk and ledger together after any end, also a power cut."""
        self._sweep()
        self._wait(None)
        outcome.tidy(self._world)

    def _sweep(self) -> None:
        """Job folders of which no transaction speaks go: nothing has used them."""
        for name in jobdir.remove_unrecorded(self._world.paths.jobs, jobs.folders(self._world.db)):
            self._log.info("unrecorded_job_removed", folder=name)

    @property
    def rests(self) -> bool:
        """The machine could not run the job several times in a row, and is left alone for a while."""
        return self._troubles > 1 and self._clock() < self._not_before

    @property
    def pid(self) -> int | None:
        """Of the trainer at work."""
        return self._child.pid if self._child is not None else None

    def tick(self, now: str, *, may_start: bool, held: str | None = None) -> bool:
        """One step of the open job, or the plan of the next. Gives whether anything was done. `held` is why no job may
        run now: one that does saves at its next step, and goes on later from there."""
        job = jobs.open_job(self._world.db)
        may_start = not self._hold(job, held) and may_start  # in this order: a job stops also while files are read
        if job is None:
            exports = self.exports.first(now) if may_start and self.exports is not None else False
            if exports is None:  # whether there is one will be known in a moment
                return False
            return exports or (may_start and self._plan(now))
        if self._overtaken(job):
            return True
        if job["state"] == "finished" and job["kind"] == "export":
            exporting.collect(self._world, job, now, self._pulse)
            return True
        if job["state"] == "finished" and job["kind"] == "generate":
            anchors.collect(self._world, job)
            return True
        if job["state"] == "finished":
            outcome.judge(self._world, job, now)
            return True
        if self._child is not None:
            return self._watch(job, now)
        if self._wait_for_leftover(job):
            return False
        if job["state"] == "running":  # its daemon died: the outcome lies in the folder
            self._settle(job, supervisor.Ended(), now, orphan=True)
            return True
        return may_start and self._start(job, now)

    def _hold(self, job: dict[str, Any] | None, held: str | None) -> bool:
        if held is None:
            if self._held:
                self._held = False
                self._disk_again = -math.inf  # what is still wrong is looked at, and said, anew
                self._wait(None)
            return False
        if self._child is not None:
            if not self._held:
                self._log.info("training_held", job=job["id"] if job else None, reason=held)
            self._child.stop("held")
        if self.room is not None and self._child is None:
            self.room.give_back()
        if job is not None or memories.any_waiting(self._world.db):
            self._held = True
            self._wait(held)
        elif self._held:
            self._held = False
            self._wait(None)
        return True

    def _overtaken(self, job: dict[str, Any]) -> bool:
        """The export of a version that is not wanted any more is thrown away. Gives whether it was."""
        if self.exports is None or job["state"] == "finished" or not self.exports.overtaken(job):
            return False
        if self._child is not None:
            self._child.stop("held")
        if job["state"] != "frozen" or self.occupied:
            return False
        with self._world.db.transaction():
            jobs.throw_away(self._world.db, job["id"], "another version is wanted by now")
        jobdir.tidy(self._folder(job))
        self._log.info("export_overtaken", job=job["id"])
        return True

    def line(self) -> str:
        """What the running job is at, in a few words."""
        job = jobs.open_job(self._world.db)
        if job is None:
            return "idle"
        line = progress_tail.last(self._folder(job)) or {}
        step, loss = line.get("step"), line.get("loss")
        where = f"step {step}/{line.get('steps')}" if step is not None else str(line.get("phase", "starting"))
        parts = [f"job {job['id']}", where]
        return ", ".join(parts + ([f"loss {loss:.3f}"] if isinstance(loss, float) else []))

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    # -- planning and freezing ------------------------------------------------------------------

    def _wait(self, reason: str | None) -> None:
        """Write down why nothing is trained, for `status`; only where it changed."""
        if jobs.get_meta(self._world.db, "waits") != reason:
            with self._world.db.transaction():
                jobs.set_meta(self._world.db, "waits", reason)
            if reason:
                self._log.info("training_waits", reason=reason)

    def _too_full(self, base: Path, steps: int, what: str, recipe: TrainingRecipe, line: str = "") -> bool:
        """Whether there is no room for a job: then it waits, and looks again after a while."""
        if self.waits_for_room:
            return True
        world, head, size = self._world, jobs.get_head(self._world.db, line), 0
        key = jobs.chain_key(world.db, head["chain"]) if head else None
        if head and key and key["method"] == recipe.method and key["rank"] == recipe.chain_key()["rank"]:
            last = chains.folder(world.paths.chains, head["chain"], head["step"])
            size = disk.used_bytes([last])[last]
        size = size or disk.checkpoint_bytes(recipe, base)
        reserve = world.settings.disk.reserve_mb * disk.MB
        short = disk.shortage(world.paths.root, disk.job_bytes(size, steps, recipe), reserve, what)
        if short is None:
            self._disk_again = -math.inf
            return False
        if self._disk_again == -math.inf:
            self._wait(short)  # with the figures of the first look: they change all the time
        self._disk_again = self._clock() + DISK_PAUSE
        return True

    def _plan(self, now: str) -> bool:
        world = self._world
        if not memories.any_waiting(world.db):
            if self.room is not None:
                self.room.give_back()
            if not self._cycle_waits:
                self._wait(None)
            return False
        try:
            base = base_files.resolve(world.recipe.base_model)
        except base_files.BaseMissing as missing:
            self._wait(str(missing))
            return False
        where = sending.where(world.settings, world.recipe)
        if where == "local" and (why := self._machine.too_small(world.recipe, base)):
            self._wait(why)
            return False
        if self._too_full(base, 1, "the next job", world.recipe):
            return False
        waiting = memories.waiting_batches(world.db)
        choice = planning.choose_batches(
            [planning.WaitingBatch(row["batch"], row["failures"], row["waiting"]) for row in waiting],
            max_batches=world.settings.jobs.max_batches_per_job,
            max_memories=world.settings.jobs.max_memories_per_job,
        )
        rows = memories.waiting_of(world.db, choice.batches, choice.memories)
        material = Material(rows, choice.reason, choice.batches, mixed=True)
        if self._clock() < self._text_again:
            return False
        try:
            frozen = self._frozen(material, world.recipe, base, now)
        except anchors.Wrong as wrong:
            self._text_again = self._clock() + DISK_PAUSE
            self._wait(str(wrong))
            return False
        if frozen is False:
            self._sweep()
        return frozen is not None or jobs.open_job(world.db) is not None

    def _fingerprint(self, base: Path) -> str:
        """Known until a file of the base changes."""
        seen = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(base.iterdir()))
        if (base, seen) not in self._fingerprints:
            self._fingerprints[base, seen] = base_files.fingerprint(base)
        return self._fingerprints[base, seen]

    @property
    def waits_for_room(self) -> bool:
        """The disk was too full a moment ago, and is looked at again in another one."""
        return self._clock() < self._disk_again

    def cycle(self, material: Material, now: str) -> bool | None:
        """Freeze a cycle's job; no job may be open. False: there is nothing in it to train. None: it has to wait, for
        room on the disk (`waits` says so) or for a job that makes general text first. Raises ValueError where the base
        is not on this disk, the device cannot hold it, or a file of general text is wrong."""
        self._cycle_waits = False
        recipe = material.recipe or self._world.recipe_of(material.line)
        try:
            base = base_files.resolve(recipe.base_model)
        except base_files.BaseMissing as missing:
            raise ValueError(str(missing)) from None
        where = sending.where(self._world.settings, recipe, material.cycle)
        if where == "local" and (why := self._machine.too_small(recipe, base)):
            raise ValueError(why)
        if self._too_full(base, 1, "the cycle", recipe, material.line):
            self._cycle_waits = True
            return None
        try:
            return self._frozen(material, recipe, base, now)
        except anchors.Wrong as wrong:
            raise ValueError(str(wrong)) from None

    def _frozen(self, material: Material, recipe: TrainingRecipe, base: Path, now: str) -> bool | None:
        """Freeze a job. False: no memory gives a sample. None: general text comes first, which a job of its own makes.
        Raises anchors.Wrong where a person has to mend it."""
        world, fingerprint = self._world, self._fingerprint(base)
        try:
            pool = anchors.pool(world, fingerprint, now)
            if pool is None:
                anchors.freeze(world, self._home_db, recipe, base, fingerprint, now)
                return None
            return freeze(world, self._home_db, material, fingerprint, now, self._pulse, pool)
        except BaseException:
            with contextlib.suppress(OSError, sqlite3.Error):  # a full disk must not fill with half-made folders
                self._sweep()
            raise

    # -- running --------------------------------------------------------------------------------

    def _folder(self, job: dict[str, Any]) -> Path:
        return self._world.paths.jobs / str(job["folder"])

    def _wait_for_leftover(self, job: dict[str, Any]) -> bool:
        """Whether a trainer of an earlier daemon still holds the folder; past its time it is killed."""
        folder = self._folder(job)
        if not supervisor.is_locked(folder):
            self._leftover_since = None
            return False
        if self._leftover_since is None:
            self._leftover_since = self._clock()
            self._log.info("waiting_for_leftover_trainer", job=job["id"])
        elif self._clock() - self._leftover_since > self._world.settings.jobs.stop_seconds:
            supervisor.kill_leftover(folder, job["pid"], job["pid_start"])
        return True

    def _start(self, job: dict[str, Any], now: str) -> bool:
        if self._clock() < self._not_before:
            return False
        settings, folder, db = self._world.settings.jobs, self._folder(job), self._world.db
        try:
            recipe = jobdir.read_spec(folder).recipe
            base = base_files.resolve(recipe.base_model)
        except base_files.BaseMissing as missing:
            if job["kind"] == "export":  # what trains next must not wait for it
                outcome.fail(self._world, job, str(missing), None, now)
                return True
            self._wait(str(missing))
            return False
        except (OSError, ValidationError) as error:
            outcome.fail(self._world, job, f"its folder {folder} cannot be read: {error}", None, now)
            return True
        command, away = self._command, sending.where_of(self._world, job, recipe) != "local"
        if job["kind"] != "export" and not self._may_have(job, recipe, base, away=away):
            return False
        if not away:
            sending.stay(folder)
        else:
            try:
                command = sending.send(self._world, self._home_db, job, recipe, base, self._fingerprint(base), now)
            except sending.Waits as why:
                self._not_before = self._clock() + MACHINE_PAUSE
                self._wait(str(why))
                return False
        self._wait(None)
        jobdir.clear_result(folder)
        limits = supervisor.Limits(
            heartbeat_seconds=settings.heartbeat_seconds, timeout_seconds=settings.timeout_hours * 3600,
            stop_seconds=settings.stop_seconds, nice=settings.nice, threads=settings.threads,
            processes=self._world.settings.compute.processes, sharded=self._world.settings.compute.sharded,
        )  # fmt: skip
        with db.transaction():  # before the child exists: a child that no row knows of must not be
            jobs.start(db, job["id"], now)
        self._child = supervisor.Trainer(folder, limits, command, keys=away)
        with db.transaction():
            jobs.record_process(db, job["id"], self._child.pid, self._child.pid_start)
        own = jobdir.newest_checkpoint(folder)
        log = self._log.bind(job=job["id"])
        if own:
            log.info("resuming_from_checkpoint", path=str(own), global_step=names.checkpoint_step(own.name))
        elif job["kind"] == "export":
            log.info("export_begins", base=recipe.base_model)
        elif job["parent_sha256"]:
            path = chains.folder(self._world.paths.chains, job["chain"], job["parent_step"])
            log.info("resuming_from_checkpoint", path=str(path), global_step=job["parent_step"])
        else:
            log.info("starting_from_base", base=recipe.base_model)
        log.info("job_started", attempt=job["attempts"] + 1, pid=self._child.pid, steps=job["steps"])
        return True

    def _may_have(self, job: dict[str, Any], recipe: TrainingRecipe, base: Path, *, away: bool) -> bool:
        """Whether device, disk and other models leave it the room that it takes; `waits` says what does not. Of a job
        that is trained elsewhere one checkpoint comes home."""
        if away:
            return not self._too_full(base, 1, f"job {job['id']}", recipe, job["line"])
        if why := self._machine.too_small(recipe, base):  # frozen on another machine, or before a card was taken out
            self._wait(why)
            return False
        if self._too_full(base, job["steps"], f"job {job['id']}", recipe, job["line"]):
            return False
        return self.room is None or self.room.is_there(job, self._machine.has_gpu)

    def _watch(self, job: dict[str, Any], now: str) -> bool:
        assert self._child is not None
        self._log_progress(job)
        ended = self._child.poll()
        if ended is None:
            return False
        self._child = None
        self._settle(job, ended, now)
        return True

    def _log_progress(self, job: dict[str, Any]) -> None:
        if self._clock() - self._logged_progress < 5.0:
            return
        line = progress_tail.last(self._folder(job))
        if line and line.get("loss") is not None:
            self._logged_progress = self._clock()
            keys = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "samples_seen", "steps")
            self._log.info(
                "progress", job=job["id"], step=line["step"], **{k: line[k] for k in keys if k in line}
            )

    def _settle(self, job: dict[str, Any], ended: supervisor.Ended, now: str, *, orphan: bool = False) -> None:
        machine = outcome.settle(self._world, self._home_db, job, ended, now, orphan=orphan)
        self._troubles = self._troubles + 1 if machine else 0
        if machine:
            times = 2 ** min(self._troubles - 1, 10) if sending.is_rented(self._folder(job)) else 1
            self._not_before = self._clock() + min(times * MACHINE_PAUSE, MOST_PAUSE)
            self._wait(machine)
