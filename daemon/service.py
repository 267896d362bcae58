"""The road, walked again and again: recover, tick(now), stop. Signals only set flags."""

import contextlib
import errno
import json
import math
import os
import queue
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from daemon import (
    answers,
    budgets,
    going_back,
    inbox,
    ledger,
    notify,
    pruning,
    schedule,
    sending,
    sharing,
    supervisor,
)
from daemon.delivering import Worker
from daemon.home import Home, is_profile_name
from daemon.ingestion import Ingestion
from daemon.leave import Leave
from daemon.ledger import batches, home_meta, jobs, memories, requests
from daemon.logs import get_logger
from daemon.nights import Nights
from daemon.room import Room
from daemon.serving import Serving
from daemon.settings import Settings, SettingsError
from daemon.training import Training
from daemon.world import World, open_world

DISK_PAUSE = 5.0  # seconds
QUEUE_PAUSE = 5.0  # seconds between two counts of what waits, for the status line
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
CLAIMS_PER_TICK = 500  # files; a tick must stay well under a second

_log = get_logger()


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _disk_trouble(error: OSError | sqlite3.OperationalError) -> str | None:
    """One line where the disk is full or cannot be written for a while; None for any other error."""
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}" if error.errno in _DISK_TROUBLE else None
    return str(error) if ledger.is_disk_trouble(error) else None


class Service:
    """All profiles of one home. The caller holds the home's lock."""

    def __init__(
        self, home: Home, settings: Settings, *,
        now: Callable[[], str] = utc_now, clock: Callable[[], float] = time.monotonic,
        trainer: Sequence[str] = supervisor.COMMAND, scheduled: bool = True,
    ) -> None:  # fmt: skip
        """With `scheduled` what is due by the clock is done too, as in a daemon and with `run --once`."""
        self._trainer = trainer
        self._home, self._settings = home, settings
        self._now, self._clock = now, clock
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal's put may interrupt its get
        self._stopping = False
        self._ready = False
        self._queued: tuple[float, str] = (-math.inf, "")  # when it was counted, what waits
        self._undone = True  # something may lie half done: the next tick recovers first
        self._unsettled_since: float | None = None
        self._look = True  # the next tick scans the inbox
        self._next_scan = -math.inf
        self._db = ledger.open_home(home.database, write=True)
        # What the schedule can have done: (world, now) -> one line on what came of it. It may raise schedule.Waits,
        # or schedule.Unfinished after a slice of its work, and is then called again.
        self._tasks: dict[str, Callable[[World, str], str]] = {}
        self._scheduled = scheduled
        self._until: Callable[[], bool] | None = None
        self._schedule = schedule.Schedule(
            self._db, settings.schedule, self._tasks, now=now, clock=clock, wake=lambda: self._wake.put(None)
        )
        self._nights = Nights(settings.schedule, pulse=self._pulse, clock=clock)
        self._tasks |= self._nights.tasks()
        self._leave = Leave(self._db, settings, clock)
        self._held: str | None = None  # why no job may run, as of the last tick
        self._worlds: dict[str, tuple[World, Ingestion, Training]] = {}
        self._serving: dict[str, Serving] = {}
        self._worker, self._aside = (Worker(lambda: self._wake.put(None)) for _ in range(2))
        for name in dict.fromkeys([*home.profile_names(), *settings.profiles]):
            self._open(name)
        self._rented = budgets.Sweeper(
            self._db, settings.compute, lambda: sending.home_id(self._db), self._place_of_job, self._open_jobs, clock,
            rests=lambda: self._held is not None or any(training.rests for _, _, training in self._worlds.values()),
        )
        self._sharing = sharing.Sharing(home)
        self._scanner = self._make_scanner()
        self._scan: inbox.Scan | None = None
        self._watch = self._make_watch()

    def _open(self, name: str) -> None:
        try:
            inbox.ensure_folders(self._home, [name])
        except (FileExistsError, NotADirectoryError) as error:
            raise SettingsError(f"{error.filename} is a file, but profile {name} needs a folder there") from None
        world = open_world(self._home, name, self._settings)
        requests.go_on_above(self._db, jobs.newest_request(world.db))
        training = Training(world, self._db, self._clock, self._trainer, self._pulse)
        training.room = Room(name, world.settings.serve, self._aside, self._clock)
        training.exports = serving = Serving(
            world, self._db, self._worker, active=self._scheduled, clock=self._clock
        )  # fmt: skip
        self._worlds[name], self._serving[name] = (world, Ingestion(world, self._clock), training), serving

    # -- the loop -------------------------------------------------------------------------------

    def run(self, *, until: Callable[[], bool] | None = None) -> None:
        """Work until a signal, or until `until` says so. Returns once the trainer has saved and ended."""
        for notice in self._settings.notices:
            _log.warning("setting", note=notice)
        self._watch.start()
        self._until = until
        try:
            if self._scheduled:
                self._schedule.start()
            self._tick_or_wait_for_disk()
            for world, _, _ in self._worlds.values():
                _log.info("profile_ready", profile=world.name, waiting=batches.waiting_memories(world.db))
            notify.ready(self._status_line())
            self._ready = True
            while not self._stopping and not (until and until()):
                worked = self._tick_or_wait_for_disk()
                notify.watchdog()
                if not worked:
                    self._sleep(self._settings.service.tick_seconds)
        finally:
            self.stop()

    def _sleep(self, seconds: float) -> None:
        """Until somebody wakes us, or so long."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=seconds)
            while True:
                self._wake.get_nowait()

    def _tick_or_wait_for_disk(self) -> bool:
        """A disk that is full, or read-only for a while, ends nothing: what failed is taken up again."""
        try:
            return self.tick()
        except (OSError, sqlite3.OperationalError) as error:
            reason = _disk_trouble(error)
            if reason is None:
                raise
        _log.error("disk_trouble", reason=reason, note="free some space; work goes on by itself")
        notify.status(f"waits: {reason}; free some space")
        self._undone = True
        for db in (self._db, *(world.db for world, _, _ in self._worlds.values())):
            with contextlib.suppress(sqlite3.Error):
                db.write_back(wait=False)  # a ledger's own log must not be what fills the disk
        self._sleep(DISK_PAUSE)
        return False

    def ask_to_stop(self, *_: int | FrameType | None) -> None:
        """A signal handler: sets flags only."""
        self._stopping = True
        self._wake.put(None)

    def handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                signal.signal(number, self.ask_to_stop)

    def _hint(self) -> None:
        self._look = True
        self._wake.put(None)

    def _watch_failed(self, reason: str) -> None:
        _log.warning("inbox_watch_failed", reason=reason, note="the timed scan goes on")

    # -- the steps ------------------------------------------------------------------------------

    def recover(self) -> None:
        """The normal start, and the way on after a full disk: what was left half done is finished or undone."""
        for world, ingestion, training in self._worlds.values():
            ingestion.recover(self._now())
            training.recover()
            going_back.sweep(world)
            pruning.sweep(world)
        if self._scheduled:
            self._schedule.recover()

    def tick(self) -> bool:
        """Each due step once, each bounded. Gives whether there was anything to do."""
        if self._undone:
            self.recover()
            self._undone, self._look = False, True
        now = self._now()
        worked = self._answer_requests(now)
        if worked and not self._scheduled and self._until and self._until():
            return True  # a command that has its answer begins no job on its way out
        worked |= self._claim(now)
        for _, ingestion, _ in self._worlds.values():
            worked |= ingestion.read_slice(now)
        self._held = held = self._why_held(now)
        at_work = [name for name, (_, _, training) in self._worlds.items() if training.occupied]
        for name, (_, ingestion, training) in self._worlds.items():
            free = not self._stopping and at_work in ([], [name]) and not self._leave.looking
            if training.tick(now, may_start=free and not ingestion.busy and not self._inbox_waits, held=held):
                worked = True
            if training.running and not at_work:
                at_work = [name]
        for serving in self._serving.values() if not self._stopping else ():
            worked |= serving.tick(now, look=worked)
        if self._scheduled and not self._stopping:
            worked |= self._schedule.serve(self._worlds, self._do_task)
        for world, _, training in self._worlds.values():
            self._sharing.refresh(world.paths, (training.running, jobs.get_head(world.db)), running=training.running)
        worked |= self._rented.tick(now) if not self._stopping else False
        notify.status(self._status_line())
        return worked

    def _place_of_job(self, profile: str, job: int) -> tuple[Path, bool] | None:
        """Of a job that was sent away: its folder, and whether a courier is at work on it."""
        world = self._worlds[profile][0] if profile in self._worlds else None
        row = jobs.get(world.db, job) if world else None
        if world is None or row is None:
            return None
        folder = world.paths.jobs / str(row["folder"])
        return folder, sending.is_rented(folder) and supervisor.is_locked(folder)

    def _open_jobs(self) -> set[str]:
        """By what the jobs that go on, on a pod, are known there."""
        found = ((world, jobs.open_job(world.db)) for world, _, _ in self._worlds.values())
        return {sending.name_of(self._db, world.name, job["id"]) for world, job in found
                if job is not None and job["state"] in ("frozen", "running")
                and sending.is_rented(world.paths.jobs / str(job["folder"]))}  # fmt: skip

    def _why_held(self, now: str) -> str | None:
        """Why no job may run now. `engramd train --now` is stronger than hours and conditions, not than a pause."""
        running = next((training.pid for _, _, training in self._worlds.values() if training.pid is not None), None)
        asked = any(json.loads(one["arguments"]).get("now") for one in requests.open_ones(self._db)
                    if one["command"] == "train")  # fmt: skip
        return self._leave.why_not(now, running, asked=asked)

    def _do_task(self, task: str, profile: str) -> str:
        return self._tasks[task](self._worlds[profile][0], self._now())

    def _claim(self, now: str) -> bool:
        """Look at the inbox where a look is due, and take what is stable, a slice at a time."""
        clock = self._clock()
        if not self._scanner.pending and (self._look or clock >= self._next_scan):
            self._look = False
            self._scan = self._scanner.scan(clock)
            self._watch.refresh()
            if not (self._scan.waiting or self._scan.ready):
                self._unsettled_since = None
            elif self._unsettled_since is None:
                self._unsettled_since = clock
            for problem in self._scan.problems:
                _log.error("inbox_unreadable", reason=problem)
            pause = self._settings.inbox.scan_seconds
            if self._scan.next_stable_at is not None:
                pause = min(pause, max(self._scan.next_stable_at - clock, 0.05))
            self._next_scan = clock + pause
        outcomes = self._scanner.claim(clock, now, CLAIMS_PER_TICK, pulse=self._pulse)
        claims: dict[str, list[inbox.Claim]] = {}
        for outcome in outcomes:
            if isinstance(outcome, inbox.Claim):
                claims.setdefault(outcome.profile, []).append(outcome)
            elif isinstance(outcome, inbox.Refusal):
                _log.warning("file_refused", profile=outcome.profile, file=outcome.name, reason=outcome.reason)
            elif isinstance(outcome, inbox.Duplicate):
                _log.info("file_known", profile=outcome.profile, file=outcome.name)
            else:  # still being written: its quiet time begins anew
                self._next_scan = min(self._next_scan, clock + self._settings.inbox.quiet_seconds)
        for name, own in claims.items():
            self._worlds[name][1].register(own, now)
        if not self._scanner.pending and any(not isinstance(outcome, inbox.Changed) for outcome in outcomes):
            self._look = True  # all is taken: another look tells whether anything is still unsettled
        return bool(outcomes)

    def _pulse(self) -> None:
        """Between the pieces of long work: the watchdog waits, and before READY=1 the start's own time does."""
        notify.watchdog()
        if not self._ready:
            notify.extend_timeout(60.0)

    @property
    def _inbox_waits(self) -> bool:
        """Something lies in the inbox that is not claimed yet. A file that never becomes quiet is not waited for."""
        if self._look or self._scan is None or self._scanner.pending > 0:
            return True
        patience = 5 * self._settings.inbox.quiet_seconds + 1
        return self._unsettled_since is not None and self._clock() - self._unsettled_since < patience

    def _answer_requests(self, now: str) -> bool:
        worked = False
        for request in requests.open_ones(self._db):
            if request["state"] == "waiting":
                requests.start(self._db, request["id"])
                self._look = worked = True
            try:
                answer = self._answer(request, now)
            except (ValueError, KeyError, TypeError, OSError, ledger.LedgerError, SettingsError) as error:
                if isinstance(error, OSError) and _disk_trouble(error):
                    raise
                said = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
                requests.finish(self._db, request["id"], {"error": said}, now, failed=True)
                continue
            if answer is not None:
                requests.finish(self._db, request["id"], answer, now)
                worked = True
        return worked

    def _answer(self, request: dict[str, Any], now: str) -> dict[str, Any] | None:
        """The answer of a request, None where it is not done yet. Raises ValueError with a sentence."""
        arguments = json.loads(request["arguments"])
        if request["command"] in ("pause", "resume"):
            if request["command"] == "pause":
                home_meta.pause(self._db, str(arguments["until"]))
            else:
                home_meta.put(self._db, home_meta.PAUSED, None)
            return {"paused": home_meta.paused(self._db, now)}
        if request["command"] == "profile_add":
            return self._add_profile(arguments["name"])
        if request["profile"] not in self._worlds:
            raise ValueError(f"there is no profile {request['profile']!r}: engramd profile add {request['profile']}")
        world, ingestion, training = self._worlds[request["profile"]]
        if request["command"] == "schedule_run":
            return self._schedule.run_now(request, arguments["task"], self._do_task)
        if request["command"] == "rollback":
            target = going_back.version_target(
                world, arguments["version"], train_again=arguments["train_again"], line=arguments.get("line", "")
            )
            return self._go(world, training, target, now)
        if request["command"] == "restore":
            return self._restore(world, training, arguments["snapshot"], now)
        settled = not (ingestion.busy or self._inbox_waits)
        at = answers.At(
            world, ingestion, training, self._db, self._settings, self._held, settled, self._pulse,
            self._serving[world.name],
        )  # fmt: skip
        return answers.answer(at, request, arguments, now)

    def _restore(self, world: World, training: Training, which: str, now: str) -> dict[str, Any] | None:
        folder = going_back.snapshot_folder(world, which)
        if going_back.is_empty(world):
            told = going_back.refill(world, folder)
            self._open(world.name)
            going_back.settle_in(self._worlds[world.name][0], self._db, now)
            self.recover()
            return told
        main, *others = going_back.targets_of(world, folder)
        if not all(going_back.job_out_of_the_way(world, training, f"the head goes back: {one.reason}", one.line)
                   for one in (main, *others)):  # fmt: skip
            return None
        for one in others:
            going_back.go(world, self._db, one, now)
        return going_back.go(world, self._db, main, now)

    def _go(self, world: World, training: Training, target: going_back.Target, now: str) -> dict[str, Any] | None:
        why = f"the head goes back: {target.reason}"
        if not going_back.job_out_of_the_way(world, training, why, target.line):
            return None
        return going_back.go(world, self._db, target, now)

    def _add_profile(self, name: str) -> dict[str, Any]:
        if not is_profile_name(name):
            raise ValueError(f"{name!r} is no profile name: a-z, 0-9, _ and -, at most 32 characters")
        if name in self._worlds:
            raise ValueError(f"there is a profile {name!r} already")
        folder = self._home.profile(name).inbox
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(f"{folder} is a file where the profile's folder must be: move it away first")
        self._open(name)
        self._scanner, self._look = self._make_scanner(), True
        self._watch.stop()
        self._watch = self._make_watch()
        self._watch.start()
        _log.info("profile_added", profile=name)
        return {"profile": name, "inbox": str(self._home.profile(name).inbox)}

    def _make_scanner(self) -> inbox.Scanner:
        settings = self._settings.inbox
        return inbox.Scanner(
            self._home, list(self._worlds), settings.quiet_seconds, max_file_bytes=settings.max_file_mb * 2**20
        )

    def _make_watch(self) -> inbox.Watch:
        folders = [world.paths.inbox for world, _, _ in self._worlds.values()]
        return inbox.Watch(folders, self._hint, warn=self._watch_failed)

    # -- the end --------------------------------------------------------------------------------

    def idle(self) -> bool:
        """Nothing is due: `run --once` may end."""
        if self._undone or self._inbox_waits or self._schedule.busy or self._leave.looking:
            return False
        if requests.open_ones(self._db):
            return False
        for world, ingestion, training in self._worlds.values():
            if ingestion.busy or training.running:
                return False
            blocked = jobs.get_meta(world.db, "waits") is not None
            serving = self._serving[world.name]
            if serving.at_work or (serving.wants_export and not blocked and self._held is None):
                return False
            if not blocked and (jobs.open_job(world.db) or memories.any_waiting(world.db)):
                return False
        return True

    def stop(self) -> None:
        """Forward the stop to the trainer and wait until it has saved; it is killed past its time."""
        notify.stopping("stopping: the trainer saves" if any(t.running for _, _, t in self._worlds.values()) else "")
        self._watch.stop()
        self._schedule.stop()
        self._leave.close()
        self._stopping = True
        self._worker.close()
        self._aside.close()
        for _, _, training in self._worlds.values():
            training.stop()
        while any(training.running for _, _, training in self._worlds.values()):
            notify.extend_timeout(60.0)
            notify.watchdog()
            for _, _, training in self._worlds.values():
                self._last_tick(training)
            time.sleep(0.05)
        notify.extend_timeout(60.0)
        self._rented.stop(self._now())
        for world, _, training in self._worlds.values():
            self._last_tick(training)  # a job that ended well is judged before we go
            world.db.close()
        self._db.close()

    def _last_tick(self, training: Training) -> None:
        """What a full disk keeps from being written down, the next start finds in the job's folder."""
        try:
            training.tick(self._now(), may_start=False, held=self._held)  # which stays written down for `status`
        except (OSError, sqlite3.OperationalError) as error:
            reason = _disk_trouble(error)
            if reason is None:
                raise
            _log.error("disk_trouble", reason=reason, note="the next start goes on from what is in the job's folder")

    def _status_line(self) -> str:
        """For `systemctl status`: job, step and loss of what runs; the queue behind it."""
        clock = self._clock()
        if clock - self._queued[0] > QUEUE_PAUSE:
            waiting = {name: batches.waiting_memories(world.db) for name, (world, _, _) in self._worlds.items()}
            told = [f"{name}: {count} memories wait" for name, count in waiting.items() if count]
            self._queued = (clock, "; ".join(told))
        running = [f"{w.name}: {training.line()}" for w, _, training in self._worlds.values() if training.running]
        unsettled = self._scan.ready + self._scan.waiting if self._scan else 0
        files = f"{unsettled} in the inbox" if unsettled else ""
        return "; ".join(filter(None, [*running, files, self._queued[1]])) or "watching the inbox"
