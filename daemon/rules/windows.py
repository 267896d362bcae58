"""When a job may run: hours of the day, and conditions of the machine that must have lasted before they count.

Hours are those of the home's zone, by its clock: in the night in which an hour is missing or comes twice, a window is
as much shorter or longer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from daemon.hours import Window

_STOPS_AFTER = 2  # readings in a row: a moment of load is no reason to save and load a model
_HORIZON = 15  # days that are looked ahead


def open_at(windows: Sequence[Window], local: datetime) -> bool:
    """Whether any is open at this local time. No window at all is always open."""
    minute = local.hour * 60 + local.minute + local.second / 60
    return not windows or any(
        (local.weekday() in one.days and one.begin <= minute < one.end)
        or ((local.weekday() - 1) % 7 in one.days and minute + 1440 < one.end)
        for one in windows
    )


def next_opening(windows: Sequence[Window], now: datetime, zone: tzinfo) -> datetime | None:
    """The next instant (UTC) at which one opens, seen from a time at which none is; None where none does within two
    weeks, as one that lies in the hour that spring leaves out."""
    turns = {*_begins(windows, now, zone), *_changes(now, zone)}
    return min((at for at in turns if at > now and open_at(windows, at.astimezone(zone))), default=None)


def _begins(windows: Sequence[Window], now: datetime, zone: tzinfo) -> Iterator[datetime]:
    today = now.astimezone(zone).date()
    for ahead in range(_HORIZON + 1):
        day = today + timedelta(days=ahead)
        for one in windows:
            if day.weekday() in one.days:
                begin = datetime.combine(day, time(one.begin // 60, one.begin % 60), zone)
                yield begin.astimezone(UTC)
                yield begin.replace(fold=1).astimezone(UTC)  # where autumn has it twice


def _changes(now: datetime, zone: tzinfo) -> Iterator[datetime]:
    """The minutes at which the clocks are changed: one may put them into a window, also back into one."""
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for _ in range(24 * _HORIZON):
        after = hour + timedelta(hours=1)
        if hour.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset():
            yield from (hour + timedelta(minutes=minute) for minute in range(1, 61))
        hour = after


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sensors say. None: it cannot be known here, which is no reason to wait."""

    idle_seconds: float | None = None
    on_battery: bool | None = None
    load: float | None = None  # of other programs, as a share of all processors
    gpu_mb: float | None = None  # held by other programs
    temperature: float | None = None  # degrees Celsius, the hottest
    free_memory_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """As `[training.when]` has them; 0 is no limit."""

    windows: tuple[Window, ...] = ()
    idle_minutes: float = 0.0
    on_battery: bool = True
    max_load: float = 0.0
    gpu_busy_mb: int = 0
    max_temperature: int = 0
    min_free_memory_mb: int = 0
    settle_minutes: float = 2.0

    @property
    def asks(self) -> frozenset[str]:
        """The facts that it takes to decide."""
        asked = {
            "idle_seconds": self.idle_minutes, "on_battery": not self.on_battery, "load": self.max_load,
            "gpu_mb": self.gpu_busy_mb, "temperature": self.max_temperature, "free_memory_mb": self.min_free_memory_mb,
        }  # fmt: skip
        return frozenset(name for name, limit in asked.items() if limit)

    @property
    def looks(self) -> bool:
        """Whether any sensor has to be read."""
        return bool(self.asks)


def trouble(limits: Limits, facts: Facts) -> str | None:
    """Why the machine is not free for training at this moment."""
    if limits.idle_minutes and facts.idle_seconds is not None and facts.idle_seconds < 60 * limits.idle_minutes:
        return f"somebody uses this machine (training.when.idle_minutes = {limits.idle_minutes:g})"
    if not limits.on_battery and facts.on_battery:
        return "on battery (training.when.on_battery = false)"
    if limits.max_load and facts.load is not None and facts.load > limits.max_load:
        return f"other programs are busy (training.when.max_load = {limits.max_load:g})"
    if limits.gpu_busy_mb and facts.gpu_mb is not None and facts.gpu_mb > limits.gpu_busy_mb:
        return f"another program uses the GPU (training.when.gpu_busy_mb = {limits.gpu_busy_mb})"
    if limits.max_temperature and facts.temperature is not None and facts.temperature > limits.max_temperature:
        return f"it is too hot (training.when.max_temperature = {limits.max_temperature})"
    if facts.free_memory_mb is not None and facts.free_memory_mb < limits.min_free_memory_mb:
        return f"too little memory is free (training.when.min_free_memory_mb = {limits.min_free_memory_mb})"
    return None


@dataclass(slots=True)
class Patience:
    """What was seen before, so that a condition that comes and goes does not start and stop a model with it."""

    in_a_row: int = 0
    last_trouble: float | None = None  # on the clock of `unsettled`
    why: str | None = None


def outside(limits: Limits, now: datetime, zone: tzinfo) -> str | None:
    """Why the hour is none for training; None where it is."""
    local = now.astimezone(zone)
    if open_at(limits.windows, local):
        return None
    opens = next_opening(limits.windows, now, zone)
    when = "" if opens is None else f": it opens {_told(opens.astimezone(zone), local)}"
    return f"outside its window{when} (training.when.window)"


def unsettled(limits: Limits, facts: Facts, patience: Patience, clock: float, *, running: bool) -> str | None:
    """Why the machine is not free for training: a trouble stops a running job once it was seen twice in a row, and
    holds the next one back until it has been over for `settle_minutes`. `clock` is monotonic, in seconds."""
    why = trouble(limits, facts)
    if why is not None:
        patience.in_a_row += 1
        patience.last_trouble, patience.why = clock, why
        return why if not running or patience.in_a_row >= _STOPS_AFTER else None
    patience.in_a_row = 0
    if patience.last_trouble is None or running:
        return None
    if clock - patience.last_trouble < 60 * limits.settle_minutes:
        return f"waiting until it is over for {limits.settle_minutes:g} minutes: {patience.why}"
    patience.last_trouble = None
    return None


def _told(opens: datetime, now: datetime) -> str:
    days = (opens.date() - now.date()).days
    day = "" if days == 0 else "tomorrow " if days == 1 else f"on {opens:%A} " if days < 7 else f"on {opens:%Y-%m-%d} "
    return f"{day}at {opens:%H:%M}"
