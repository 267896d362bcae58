"""Whether training has leave: a pause that a person asked for, then hours and the machine's conditions."""

import time
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime

from daemon import hours, schedule
from daemon.conditions import Sensors
from daemon.ledger import Database, home_meta
from daemon.logs import get_logger
from daemon.rules.windows import Facts, Limits, Patience, outside, unsettled
from daemon.settings import Settings

_SETTING_OF = {
    "idle_seconds": "idle_minutes", "on_battery": "on_battery", "load": "max_load", "gpu_mb": "gpu_busy_mb",
    "temperature": "max_temperature", "free_memory_mb": "min_free_memory_mb",
}  # fmt: skip

_log = get_logger()


def limits_of(settings: Settings) -> Limits:
    when = settings.training.when
    return Limits(
        tuple(hours.parse(text) for text in when.window), when.idle_minutes, when.on_battery, when.max_load,
        when.gpu_busy_mb, when.max_temperature, when.min_free_memory_mb, when.settle_minutes,
    )  # fmt: skip


class Leave:
    """Asked once a tick. `why_not` gives the sentence that holds training back, None where it may run."""

    def __init__(
        self, db: Database, settings: Settings, clock: Callable[[], float] = time.monotonic,
        sensors: Sensors | None = None,
    ) -> None:  # fmt: skip
        self._db, self._clock = db, clock
        self._limits = limits_of(settings)
        self._timezone = settings.schedule.timezone
        self._sensors = sensors or Sensors(self._limits, clock=clock)
        self._patience = Patience()
        self._hour: tuple[str, str | None] = ("", None)  # the minute that was looked at, why it is none for training
        self._why: str | None = None
        self._known = self._told = False
        self.looking = False  # the first reading is under way: nothing is begun, nothing is stopped

    def why_not(self, now: str, trainer: int | None, *, asked: bool = False) -> str | None:
        """`trainer` is the pid of ours, where it runs. Where a person has `asked` for training now, that is stronger
        than hours and conditions, and not than a pause."""
        why = home_meta.paused(self._db, now) or (None if asked else self._outside(now))
        if why is not None or asked or not self._limits.looks:
            self._why, self._known, self.looking = None, False, False  # what was read is old when it counts again
            return why
        facts = self._sensors.read(trainer)
        if facts is not None:
            self._known = True
            self._tell_unknown(facts)
            running = trainer is not None
            self._why = unsettled(self._limits, facts, self._patience, self._clock(), running=running)
        self.looking = not self._known
        return self._why

    def close(self) -> None:
        self._sensors.close()

    def _outside(self, now: str) -> str | None:
        """Windows open and close at whole minutes: the answer of a minute is looked for once."""
        if not self._limits.windows:
            return None
        if self._hour[0] != (minute := now[:16]):
            zone = schedule.zone_of(self._timezone)
            self._hour = (minute, outside(self._limits, datetime.fromisoformat(now), zone))
        return self._hour[1]

    def _tell_unknown(self, facts: Facts) -> None:
        """Once: a limit that nothing here can measure holds nothing back, and its person should know."""
        if self._told:
            return
        self._told = True
        for field in fields(facts):
            if field.name in self._limits.asks and getattr(facts, field.name) is None:
                setting = f"training.when.{_SETTING_OF[field.name]}"
                _log.warning("condition_unknown", setting=setting, note="nothing here tells it: it holds nothing back")
