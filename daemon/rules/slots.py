"""Which slot is due: from an expression, a zone, the clock, and what was served. Pure.

A slot is one local day of one expression, and its instant is the first at which the clocks of the zone have
reached its time: a time that spring leaves out comes with the first instant after the gap, one that autumn has
twice comes with its first occurrence. So a day has one slot at most, however its clocks are turned.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from daemon.expressions import HORIZON, Expression, parse

__all__ = ["Expression", "Slot", "due_slot", "next_slot", "parse", "slot_on"]

_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Slot:
    local: datetime  # what the clocks on the wall should show; without a zone
    due: datetime  # UTC

    @property
    def key(self) -> str:
        """As it stands in the ledger, `2026-05-01T03:00`; its first ten characters are the day."""
        return self.local.isoformat(timespec="minutes")

    @property
    def day(self) -> date:
        return self.local.date()


def instant_of(local: datetime, zone: tzinfo) -> datetime:
    """The first instant (UTC) at which the clocks of the zone show this time, or a later one."""
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return first
    before, after = local.replace(tzinfo=zone, fold=1).astimezone(UTC), first  # around the gap
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def slot_on(expression: Expression, zone: tzinfo, day: date) -> Slot | None:
    """The slot of this local day. A day that a zone left out altogether (Apia, 30 December 2011) has none."""
    if not expression.on(day):
        return None
    local = datetime.combine(day, expression.at)
    due = instant_of(local, zone)
    if due.astimezone(zone).date() != day and _left_out(day, zone):
        return None
    return Slot(local, due)


def _left_out(day: date, zone: tzinfo) -> bool:
    """Whether the clocks never show this date."""
    return instant_of(datetime.combine(day, datetime.min.time()), zone).astimezone(zone).date() != day


def due_slot(
    expression: Expression, zone: tzinfo, now: datetime, last_served: date | None = None, *,
    since: datetime | None = None, taken: Collection[date] = (),
) -> tuple[Slot, int] | None:  # fmt: skip
    """The newest slot whose time has come and that nobody has served, and how many older ones it stands for.

    `last_served` is the day of the newest slot that was served: no slot of that day or before it is due again.
    Slots up to `since` do not count: nobody waited for them yet. `taken` are days above `last_served` whose slots
    ran under a clock that was wrong. The count looks back ten years at most.
    """
    newest: Slot | None = None
    older = 0
    day = now.astimezone(zone).date()
    floor = max(last_served or date.min, day - timedelta(days=min(HORIZON, (day - date.min).days)))
    while day > floor:
        slot = slot_on(expression, zone, day) if day not in taken else None
        if slot and since and slot.due <= since:
            break
        if slot and slot.due <= now:
            older += newest is not None
            newest = newest or slot
        day -= _DAY
    return (newest, older) if newest else None


def next_slot(
    expression: Expression, zone: tzinfo, now: datetime, last_served: date | None = None, *,
    taken: Collection[date] = (),
) -> Slot | None:  # fmt: skip
    """The first slot after `now` that will be due; None where none comes within ten years."""
    today = now.astimezone(zone).date()
    for number in range(-1, HORIZON):  # yesterday's may come today, where midnight was left out
        try:
            day = today + number * _DAY
            slot = slot_on(expression, zone, day) if day > (last_served or date.min) and day not in taken else None
        except OverflowError:  # the end of the calendar
            return None
        if slot and slot.due > now:
            return slot
    return None
