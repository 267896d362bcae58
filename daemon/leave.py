"""Whether training has leave: a pause that a person asked for, then hours and the machine's conditions."""

import time
from collections.abc import Callable
from datetime import datetime

from daemon import hours, schedule
from daemon.conditions import Sensors
from daemon.ledger import Database, home_meta
from daemon.rules.windows import Limits, Patience, outside, unsettled
from daemon.settings import Settings


def limits_of(settings: Settings) -> Limits:
    when = settings.training.when
    return Limits(
        tuple(hours.parse(text) for text in when.window), when.idle_minutes, when.on_battery, when.max_load,
        when.gpu_busy_mb, when.max_temperature, when.min_free_memory_mb, when.settle_minutes,
    )  # fmt: skip


class Leave:
    """Asked once a tick. `why_not` gives the sentence that holds training back, None where it may run."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._db, self._clock = db, clock
        self._limits = limits_of(settings)
        self._timezone = settings.schedule.timezone
        self._sensors = Sensors(self._limits, clock=clock)
        self._patience = Patience()
        self._why: str | None = None

    def why_not(self, now: str, trainer: int | None) -> str | None:
        zone = schedule.zone_of(self._timezone)
        why = home_meta.paused(self._db, now) or outside(self._limits, datetime.fromisoformat(now), zone)
        if why is not None or not self._limits.looks:
            return why
        facts = self._sensors.read(trainer)
        if facts is not None:
            running = trainer is not None
            self._why = unsettled(self._limits, facts, self._patience, self._clock(), running=running)
        return self._why
