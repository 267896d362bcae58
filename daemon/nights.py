"""What the schedule has done at night: the snapshot of the day, and the week's look at whether all are whole."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from daemon import durable, pruning, schedule, snapshots
from daemon.ledger import checks, jobs
from daemon.logs import get_logger
from daemon.settings_sections import ScheduleSettings
from daemon.snapshotting import NoRoom, folder_of, take
from daemon.world import World

_VERIFY_FROM = "verify_from"  # in a ledger's meta: where the last verification's time ran out

_log = get_logger()


@dataclass(slots=True)
class _Verification:
    """One that is at work, a snapshot at a time."""

    left: list[str]
    begun: float
    seen: dict[snapshots.Inode, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    done: int = 0


class Nights:
    """The tasks of the schedule that are about snapshots."""

    def __init__(
        self, settings: ScheduleSettings, *, pulse: durable.Pulse = durable.no_pulse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._pulse, self._clock = settings, pulse, clock
        self._verifying: dict[str, _Verification] = {}

    def snapshot(self, world: World, now: str) -> str:
        """One line on what was taken. Raises schedule.Waits, or OSError, where the disk is full."""
        try:
            made = take(world, local_date(self._settings.timezone, now), now, pulse=self._pulse)
        except NoRoom as short:
            raise schedule.Waits(str(short)) from None
        return f"{made.path.name}: {made.files:,} files, {made.new_bytes:,} new bytes"

    def verify(self, world: World, now: str) -> str:
        """One snapshot a call; raises schedule.Unfinished until all are done or the time is over, and ValueError with
        the first problem where there is one."""
        top = folder_of(world.home, world.name)
        work = self._verifying.get(world.name)
        if work is None:
            names, start = snapshots.names_in(top), jobs.get_meta(world.db, _VERIFY_FROM)
            first = names.index(start) if start in names else 0
            work = self._verifying[world.name] = _Verification(names[first:] + names[:first], self._clock())
        over = work.done and self._clock() - work.begun > 60 * self._settings.verify_max_minutes
        if work.left and not over:
            name = work.left.pop(0)
            redactions = checks.redactions(world.db)
            work.problems += snapshots.problems(
                top / name, work.seen, lambda sha256: checks.hashes_after(redactions, sha256), pulse=self._pulse
            )
            work.done += 1
            if work.left:
                raise schedule.Unfinished(f"{work.done} of {work.done + len(work.left)} snapshots verified")
        del self._verifying[world.name]
        went_on = work.left[0] if work.left else None
        if jobs.get_meta(world.db, _VERIFY_FROM) != went_on:
            with world.db.transaction():
                jobs.set_meta(world.db, _VERIFY_FROM, went_on)
        for problem in work.problems:
            _log.error("snapshot_damaged", profile=world.name, reason=problem)
        if work.problems:
            more = f" (and {len(work.problems) - 1} more)" if len(work.problems) > 1 else ""
            raise ValueError(f"{work.problems[0]}{more}: engramd snapshot verify")
        rest = f"; the other {len(work.left)} next time, since schedule.verify_max_minutes is over" if work.left else ""
        return f"{work.done} snapshots are whole{rest}"

    def prune(self, world: World, now: str) -> str:
        report = pruning.prune(world, now, schedule.zone_of(self._settings.timezone), pulse=self._pulse)
        gone = sum(not entry.keep for entry in report.entries)
        return f"{gone} of {len(report.entries)} things removed, {report.freed:,} bytes freed"

    def tasks(self) -> dict[str, Callable[[World, str], str]]:
        return {"snapshot": self.snapshot, "prune": self.prune, "verify": self.verify}


def local_date(timezone: str, now: str) -> str:
    """The date of a UTC time in the home's zone, as a snapshot is named."""
    return datetime.fromisoformat(now).astimezone(schedule.zone_of(timezone)).date().isoformat()


def made_told(made: snapshots.Made) -> dict[str, Any]:
    return {"snapshot": made.path.name, "path": str(made.path), "files": made.files, "size": made.size,
            "new_bytes": made.new_bytes}  # fmt: skip
