"""What is due by the clock. The ledger is the truth, APScheduler only the punctual call.

Every 30 s, and whenever APScheduler says that a slot has come, `serve` asks the ledger which slots were served
and the rules which are due, claims them and has them done, in the service's own thread. So a slot that passed
while the machine was off or asleep is found at the next look, whatever became of a timer, and a clock that was
set forward or back changes only what the next look finds.
"""

import errno
import sqlite3
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal

from daemon.ledger import Database, is_disk_trouble, slots
from daemon.logs import get_logger
from daemon.rules.slots import Expression, Slot, due_slot, next_slot, parse
from daemon.settings_sections import CycleSchedule, ScheduleSettings

LOOK_SECONDS = 30.0
CYCLE = "cycle"  # the command of the request that a due cycle becomes
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

_log = get_logger()

Do = Callable[[str, str], str]  # (task, profile) -> one line on what came of it


class Waits(Exception):
    """Raised by a task that cannot be done yet. The sentence is shown; it is tried again after `again` seconds."""

    def __init__(self, reason: str, again: float = LOOK_SECONDS) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again


class Unfinished(Waits):
    """Raised by a task that does its work in slices: call it again with the next tick. The sentence says how far
    it is. What it needs to go on it keeps itself."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, 0.0)


@dataclass(frozen=True, slots=True)
class Task:
    """One line of the schedule. `cycle` is set where the task is a cycle, which is asked for, not done; `after`
    where it follows on another task of the same profile and has no time of its own."""

    name: str
    profile: str
    when: Expression
    cycle: CycleSchedule | None = None
    after: str | None = None


@dataclass(slots=True)
class _Claim:
    task: str
    profile: str
    slot: str
    missed: int = 0  # older slots that this one stands for
    again: float = 0.0  # on the clock: when it is tried, or tried again
    said: str | None = None  # why it waits, as the ledger has it

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.profile, self.slot


def plan(settings: ScheduleSettings, profiles: Iterable[str]) -> list[Task]:
    """Each task of each profile, also those that are off."""
    found = []
    for profile in profiles:
        snapshot = parse(settings.snapshot)
        found.append(Task("snapshot", profile, snapshot))
        if settings.prune_after_snapshot and not snapshot.never:
            found.append(Task("prune", profile, replace(snapshot, text="after snapshot"), after="snapshot"))
        else:
            found.append(Task("prune", profile, parse("off")))
        found.append(Task("verify", profile, parse(settings.verify)))
        for name, cycle in settings.cycles.items():
            if cycle.profile in ("", profile):
                found.append(Task(name, profile, parse(cycle.when), cycle))
    return found


def zone_of(name: str) -> tzinfo:
    """The zone of the settings, else that of this machine as it is now: a laptop travels."""
    if name:
        return ZoneInfo(name)
    try:
        return tzlocal.reload_localzone()
    except (LookupError, ValueError, OSError):  # /etc/localtime is broken
        return UTC


class Schedule:
    """The schedule of one home at work. `doable` are the tasks that there is something for; `wake` is called from
    APScheduler's thread and must do no more than to have `serve` called soon."""

    def __init__(
        self, db: Database, settings: ScheduleSettings, doable: Collection[str], *,
        now: Callable[[], str], clock: Callable[[], float], wake: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._db, self._settings, self._doable = db, settings, doable
        self._now, self._clock, self._wake = now, clock, wake
        self._look_now = True
        self._next_look = 0.0
        self._claims: dict[tuple[str, str, str], _Claim] = {}
        self._known: set[tuple[str, str]] = set()
        self._by_hand: set[tuple[str, str, str]] = set()
        self._scheduler: Any = None
        self._call_at: datetime | None = None

    # -- the punctual call ----------------------------------------------------------------------

    def start(self) -> None:
        from apscheduler.executors.debug import DebugExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": DebugExecutor()},  # its own thread sets a flag: no pool for that
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._scheduler.start()
        self._call_at = None
        self._look_now = True

    def stop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
            self._scheduler = None

    def _called(self) -> None:
        self._look_now = True
        self._wake()

    def _call_me_at(self, moment: datetime | None) -> None:
        if self._scheduler is None or moment == self._call_at:
            return
        from apscheduler.triggers.date import DateTrigger

        self._call_at = moment
        if moment is None:
            self._scheduler.remove_all_jobs()
        else:
            self._scheduler.add_job(self._called, DateTrigger(moment, UTC), id="next", replace_existing=True)

    # -- the truth ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up the claims that a life before this one left. What was asked for by hand its request takes up."""
        for row in slots.open_claims(self._db):
            claim = _Claim(row["task"], row["profile"], row["slot"])
            if claim.slot.startswith(slots.BY_HAND) or claim.key in self._claims or claim.task not in self._doable:
                continue
            if slots.take_up(self._db, row, self._now()):
                self._claims[claim.key] = claim
                _log.info("slot_taken_up", task=claim.task, profile=claim.profile, slot=claim.slot)

    def serve(self, profiles: Collection[str], do: Do) -> bool:
        """Claim what is due, and do one thing of it. Gives whether there was any."""
        if self._look_now or self._clock() >= self._next_look:
            self._look_now = False
            self._next_look = self._clock() + LOOK_SECONDS
            self._look(profiles)
        claim = next((one for one in self._claims.values() if one.again <= self._clock()), None)
        if claim is None:
            return False
        del self._claims[claim.key]
        self._claims[claim.key] = claim  # to the end: a task in slices lets the others pass
        self._try(claim, do)
        return True

    @property
    def busy(self) -> bool:
        """Something is claimed and can be done now; what only waits is not counted."""
        return any(claim.again <= self._clock() for claim in self._claims.values())

    def _look(self, profiles: Collection[str]) -> None:
        moment, zone = datetime.fromisoformat(self._now()), zone_of(self._settings.timezone)
        tasks = [task for task in plan(self._settings, profiles) if task.cycle or task.name in self._doable]
        known = {(task.name, task.profile) for task in tasks}
        if known != self._known:
            slots.forget_others(self._db, known, self._now())
            self._known = known
        self._claims = {key: one for key, one in self._claims.items() if any(_same(one, task) for task in tasks)}
        due: list[tuple[Slot, int, Task]] = []
        coming: list[datetime] = []
        for task in tasks:
            if task.after:
                continue
            since = slots.in_force_since(self._db, task.name, task.profile, task.when.text, moment)
            have = slots.served(self._db, task.name, task.profile, moment)
            found = due_slot(task.when, zone, moment, have.last, since=since, taken=have.ahead)
            if found:
                due.append((*found, task))
            later = next_slot(task.when, zone, moment, have.last, taken=have.ahead)
            coming += [later.due] if later else []
        for slot, missed, task in sorted(due, key=lambda one: one[0].due):
            self._take(slot, missed, task)
        self._call_me_at(min(coming, default=None))

    def _take(self, slot: Slot, missed: int, task: Task) -> None:
        self._pass_over(task.name, task.profile)
        due_at = slot.due.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        where = (task.name, task.profile, slot.key, due_at, self._now())
        if task.cycle:
            asked = slots.claim_for_request(self._db, *where, CYCLE, _arguments(task.name, task.cycle, slot.key))
            _log.info("cycle_due", task=task.name, profile=task.profile, slot=slot.key, missed=missed, request=asked)
        elif slots.claim(self._db, *where):
            claim = _Claim(task.name, task.profile, slot.key, missed)
            self._claims[claim.key] = claim
            _log.info("slot_due", task=task.name, profile=task.profile, slot=slot.key, missed=missed)

    def _pass_over(self, task: str, profile: str) -> None:
        """What still waits of an earlier slot ends: the new one stands for it."""
        for old in [one for one in self._claims.values() if (one.task, one.profile) == (task, profile)]:
            self._end(old, "it waited until the next one came, which stands for it", failed=True)

    def _after(self, task: str) -> str | None:
        prunes = task == "snapshot" and self._settings.prune_after_snapshot and "prune" in self._doable
        return "prune" if prunes else None

    def _try(self, claim: _Claim, do: Do) -> None:
        try:
            outcome = do(claim.task, claim.profile)
        except Exception as error:  # of any kind: one task must not end the daemon
            wait = _as_wait(error)
            if wait is None:
                self._end(claim, _sentence(error), failed=True)
                return
            claim.again = self._clock() + wait.again if wait.again else 0.0
            if wait.reason != claim.said:
                slots.wait(self._db, *claim.key, wait.reason)
                claim.said = wait.reason
                _log.info("slot_waits", task=claim.task, profile=claim.profile, slot=claim.slot, reason=wait.reason)
        else:
            stood = f"; it stands for {claim.missed} that were missed before" if claim.missed else ""
            self._end(claim, f"{outcome}{stood}", failed=False)

    def _end(self, claim: _Claim, outcome: str, *, failed: bool) -> None:
        by_hand = claim.slot.startswith(slots.BY_HAND)
        then = None if failed or by_hand else self._after(claim.task)
        if then:
            self._pass_over(then, claim.profile)
        if slots.finish(self._db, *claim.key, outcome, self._now(), failed=failed, then=then):
            follower = _Claim(str(then), claim.profile, claim.slot)
            self._claims[follower.key] = follower
        self._claims.pop(claim.key, None)
        say = _log.error if failed else _log.info
        name = "slot_failed" if failed else "slot_done"
        say(name, task=claim.task, profile=claim.profile, slot=claim.slot, outcome=outcome)

    # -- by hand --------------------------------------------------------------------------------

    def run_now(self, request: dict[str, Any], task: str, do: Do) -> dict[str, Any] | None:
        """Do a task because a person asked for it; None where it is not done yet. It is no slot: what is due by
        the calendar stays due. Raises ValueError with the sentence that says why it cannot be done."""
        key = f"{slots.BY_HAND}{request['created_at']} {request['id']}"
        claim = _Claim(task, request["profile"], key)
        row = slots.get(self._db, *claim.key)
        if row is not None and row["state"] != "claimed":  # done, and the daemon died before it could say so
            return _answer(row)
        cycle = self._settings.cycles.get(task)
        if cycle is None and task not in self._doable:
            known = ", ".join([*sorted(self._doable), *self._settings.cycles]) or "none yet"
            raise ValueError(f"there is no task {task!r} in the schedule; there is {known}")
        where = (*claim.key, request["created_at"], self._now())
        if cycle is not None:
            slots.claim_for_request(self._db, *where, CYCLE, _arguments(task, cycle, key))
        else:
            if row is None:
                slots.claim(self._db, *where)
            elif claim.key not in self._by_hand and not slots.take_up(self._db, row, self._now()):
                return _answer(slots.get(self._db, *claim.key) or {})
            self._by_hand.add(claim.key)
            self._try(claim, do)
            if claim.said is not None and claim.again:  # not now; nobody waits for an unknown time
                self._end(claim, claim.said, failed=True)
        row = slots.get(self._db, *claim.key) or {}
        return None if row["state"] == "claimed" else _answer(row)


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    if row["state"] == "failed":
        raise ValueError(row["outcome"])
    return {"task": row["task"], "profile": row["profile"], "outcome": row["outcome"]}


def _same(claim: _Claim, task: Task) -> bool:
    return (claim.task, claim.profile) == (task.name, task.profile)


def _arguments(name: str, cycle: CycleSchedule, slot: str) -> dict[str, Any]:
    return {"name": name, "slot": slot, **cycle.model_dump(exclude={"when", "profile"})}


def _as_wait(error: Exception) -> Waits | None:
    """Whether it is to be tried again. Raises the error where the ledger itself cannot be written: the service
    waits for the disk then, and comes back to the claim."""
    if isinstance(error, Waits):
        return error
    if isinstance(error, sqlite3.OperationalError) and is_disk_trouble(error):
        raise error
    if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        place = f" ({error.filename})" if error.filename else ""
        return Waits(f"{error.strerror}{place}: free some space; it goes on by itself")
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, ValueError) or str(error):
        return " ".join(str(error).split())
    return type(error).__name__
