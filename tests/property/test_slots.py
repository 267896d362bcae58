"""Two years in sixteen zones with power cuts, suspends and a clock that jumps: every due slot once, none early,
none twice.

The real `Schedule` runs on a real ledger; a shim gives it the clock, life by life. What it should have done is
told by a reference of its own that walks the minutes of the two years, looks what the clocks on the wall show,
and knows nothing of expressions, of intervals or of SQL.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemon import ledger
from daemon.ledger import slots
from daemon.rules.slots import next_slot, parse, slot_on
from daemon.schedule import Schedule, Unfinished, Waits
from daemon.settings_sections import ScheduleSettings

ZONES = {  # and the first of the two years, so that the traps of each zone lie in them
    "Europe/Helsinki": 2026,
    "Europe/London": 2026,
    "America/New_York": 2026,
    "America/St_Johns": 2010,  # turned its clocks at one minute past midnight
    "America/Sao_Paulo": 2017,  # midnight was left out
    "America/Nuuk": 2026,  # the last hour of a day is left out
    "America/Havana": 2026,  # midnight comes twice
    "Australia/Lord_Howe": 2026,  # half an hour
    "Pacific/Apia": 2011,  # one whole day was left out
    "Pacific/Chatham": 2026,
    "Antarctica/Troll": 2026,  # two hours
    "Africa/Casablanca": 2026,  # back for Ramadan
    "Asia/Tehran": 2021,  # midnight, and the law changed
    "Asia/Kathmandu": 2026,
    "Asia/Beirut": 2026,  # midnight is left out
    "Etc/UTC": 2026,
}
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Wanted:
    """What a task is to do, said twice: as an expression, and as the reference understands it."""

    expression: str
    at: time
    on: Callable[[date], bool]


TASKS = {
    "snapshot": Wanted("daily 03:00", time(3), lambda day: True),
    "verify": Wanted("sun 00:30", time(0, 30), lambda day: day.isoweekday() == 7),
    "monthly": Wanted("last 02:15", time(2, 15), lambda day: (day + DAY).month != day.month),
    "fortnight": Wanted(
        "every 2 weeks on sat 23:30 from 2010-01-09", time(23, 30), lambda day: (day - date(2010, 1, 9)).days % 14 == 0
    ),
}


def walk(zone: ZoneInfo, begin: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, int]]:
    """Minute by minute from begin to end: the instant, what the clocks on the wall show, and for how many minutes
    they go on evenly. Fifteen at a time where they do, so that sixteen zones take seconds."""
    moment, quarter = begin, 15 * MINUTE
    while moment < end:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        even = (moment + quarter).astimezone(zone).replace(tzinfo=None) - shown == quarter
        yield moment, shown, 15 if even else 1
        moment += quarter if even else MINUTE


@cache
def reference_slots(name: str) -> dict[str, list[tuple[datetime, datetime]]]:
    """By task: (what the wall should show, the first minute at which it shows that or more), by walking over the
    two years, and a year more on each side for clocks that are wrong."""
    zone, days = ZoneInfo(name), 400
    begin = datetime(ZONES[name], 1, 1, tzinfo=UTC) - days * DAY
    end = datetime(ZONES[name] + 2, 1, 1, tzinfo=UTC) + days * DAY
    every = [begin.date() + number * DAY for number in range(2, (end - begin).days - 2)]
    wanted = sorted(
        (datetime.combine(day, one.at), task) for task, one in TASKS.items() for day in every if one.on(day)
    )
    reached: list[tuple[datetime, str, datetime]] = []
    seen: set[date] = set()
    number = 0
    for moment, shown, minutes in walk(zone, begin, end):
        seen.add(shown.date())
        while number < len(wanted) and wanted[number][0] < shown + minutes * MINUTE:
            local, task = wanted[number]
            reached.append((local, task, moment + max(local - shown, timedelta(0))))
            number += 1
    found: dict[str, list[tuple[datetime, datetime]]] = {task: [] for task in TASKS}
    for local, task, moment in reached:
        if local.date() in seen:  # a day that never was has no slot
            found[task].append((local, moment))
    return found


@dataclass
class Clock:
    """The shim: true time, what the machine's clock shows, and the timer that stands still in a suspend."""

    true: datetime
    wrong_by: timedelta = timedelta(0)
    timer: float = 0.0

    def now(self) -> str:
        return self.shown.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @property
    def shown(self) -> datetime:
        return self.true + self.wrong_by

    def goes_on(self, span: timedelta, *, asleep: bool = False) -> None:
        self.true += span
        self.timer += 0.0 if asleep else span.total_seconds()


@dataclass
class Reference:
    """What should have been done, from the list of all slots and a note of what was begun when."""

    all_slots: dict[str, list[tuple[datetime, datetime]]]
    since: datetime
    done: dict[str, dict[datetime, datetime]] = field(default_factory=dict)  # by task: slot, when it was begun

    def at(self, shown: datetime) -> list[tuple[str, datetime, int]]:
        """What a look at this time must do: (task, slot, how many older ones it stands for)."""
        self.since = min(self.since, shown)
        found = []
        for task, known in self.all_slots.items():
            before = self.done.setdefault(task, {})
            open_ones = []
            for slot, due in reversed(known[: bisect_right(known, shown + DAY, key=itemgetter(1))]):
                # What was begun more than a day from now was begun under a wrong clock, and stands for no other.
                if before.get(slot, datetime.max.replace(tzinfo=UTC)) <= shown + DAY or due <= self.since:
                    break
                if due <= shown and slot not in before:
                    open_ones.append(slot)
            if open_ones:
                before[open_ones[0]] = shown
                found.append((task, open_ones[0], len(open_ones) - 1))
        return found


class PowerCut(BaseException):
    """In the middle of a task."""


class Machine:
    """One home over many lives of the daemon. Tasks note what they were called for, and fail at times."""

    def __init__(self, folder: Path, zone: str, clock: Clock, dice: random.Random) -> None:
        self.db = ledger.open_home(folder / "home.db", write=True)
        self.db.execute("PRAGMA synchronous=OFF")  # the order of things is tested here, not the disk
        cycles = {name: {"when": TASKS[name].expression} for name in ("monthly", "fortnight")}
        self.settings = ScheduleSettings(
            timezone=zone, snapshot=TASKS["snapshot"].expression, verify=TASKS["verify"].expression,
            prune_after_snapshot=False, cycles=cycles,
        )  # fmt: skip
        self.clock, self.dice = clock, dice
        self.ran: list[tuple[str, datetime]] = []
        self.known: set[tuple[str, str]] = set()
        self.starts()

    def starts(self) -> None:
        self.schedule = Schedule(
            self.db, self.settings, {"snapshot": 1, "verify": 1}, now=self.clock.now, clock=lambda: self.clock.timer
        )
        self.schedule.recover()

    def do(self, task: str, profile: str) -> str:
        if self.dice.random() < 0.06:
            raise PowerCut
        if self.dice.random() < 0.05:
            raise Unfinished("a slice of it") if self.dice.random() < 0.5 else Waits("the GPU is busy", again=0.0)
        self.ran.append((task, self.clock.shown))
        if self.dice.random() < 0.05:
            raise ValueError("it did not work")
        return "done"

    def look(self) -> list[tuple[str, datetime, int]]:
        """Ticks until nothing is left to do. What was newly claimed, and how many it stands for."""
        changes = self.db._db.total_changes
        self.schedule._look_now = True  # thirty seconds have passed, or APScheduler has called
        while self._works():
            pass
        if self.db._db.total_changes == changes:
            return []
        rows = self.db.all("SELECT * FROM slots WHERE claimed_at=?", (self.clock.now(),))
        claimed = [row for row in rows if (row["task"], row["slot"]) not in self.known]
        self.known |= {(row["task"], row["slot"]) for row in claimed}
        return [(row["task"], datetime.fromisoformat(row["slot"]), missed_of(row)) for row in claimed]

    def _works(self) -> bool:
        try:
            return self.schedule.serve(["me"], self.do)
        except PowerCut:
            self.starts()
            return True


def missed_of(row: dict[str, object]) -> int:
    words = str(row["outcome"]).partition("it stands for ")[2].split()
    return int(words[0]) if words else 0


def looks(
    clock: Clock, dice: random.Random, end: datetime, points: list[datetime], *, jumps: bool
) -> Iterator[str]:
    """Let time pass to the next look: punctual ones around every slot and every turn of the clocks, idle ones in
    between, and at times no power, no wakefulness or another time on the clock."""
    number = 0
    while clock.true < end:
        while number < len(points) and points[number] <= clock.true:
            number += 1
        target = points[number] if number < len(points) else end
        fate = dice.random()
        if fate < 0.04:
            clock.goes_on(timedelta(minutes=dice.choice((3, 40, 600, 4000, 30_000)) * dice.random()), asleep=True)
            yield "power cut"
        elif fate < 0.08:
            clock.goes_on(timedelta(minutes=dice.choice((3, 40, 600, 4000)) * dice.random()), asleep=True)
            yield "look"
        elif jumps and fate < 0.10:
            hours = dice.choice((0.02, 0.6, 5, 20, 30, 200, 1000)) * dice.random()
            clock.wrong_by += timedelta(hours=hours if dice.random() < 0.5 else -hours)
            yield "look"
        elif jumps and fate < 0.12:
            clock.wrong_by = timedelta(0)  # set right again
            yield "look"
        else:
            clock.goes_on(target - clock.true)
            yield "look"


def points_of_interest(every: dict[str, list[tuple[datetime, datetime]]], zone: ZoneInfo, begin: datetime,
                       end: datetime) -> list[datetime]:  # fmt: skip
    """Half a minute before and after every slot, at it, and each half hour of the days on which clocks turn."""
    found: set[datetime] = set()
    for known in every.values():
        for _, due in known:
            found |= {due - timedelta(seconds=30), due, due + timedelta(seconds=29)}
    day = begin
    while day < end:
        if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset():
            found |= {day + number * timedelta(minutes=30) for number in range(-4, 56)}
        day += DAY
    return sorted(found)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand lines of log are most of the time that this takes."""
    silent = SimpleNamespace(info=lambda *_, **__: None, error=lambda *_, **__: None)
    monkeypatch.setattr("daemon.schedule._log", silent)


CASES = [(name, True) for name in ZONES] + [(name, False) for name in ("Europe/Helsinki", "Pacific/Apia")]


@pytest.mark.parametrize(("name", "jumps"), CASES)
def test_every_due_slot_once_none_early_none_twice(tmp_path: Path, name: str, jumps: bool) -> None:
    zone, dice = ZoneInfo(name), random.Random(f"{name} {jumps}")
    begin = datetime(ZONES[name], 1, 1, tzinfo=UTC)
    end = datetime(ZONES[name] + 2, 1, 1, tzinfo=UTC)
    every = reference_slots(name)
    clock = Clock(begin + timedelta(minutes=dice.randrange(2000)))
    machine = Machine(tmp_path, name, clock, dice)
    reference = Reference(every, clock.shown)
    instants = {(task, local): due for task, known in every.items() for local, due in known}
    points = [p for p in points_of_interest(every, zone, begin, end) if begin < p < end]
    looked = 0
    assert machine.look() == [] == reference.at(clock.shown)  # the first start runs nothing of before
    for event in looks(clock, dice, end, points, jumps=jumps):
        if event == "power cut":
            machine.starts()
        expected, found = reference.at(clock.shown), machine.look()
        looked += 1
        assert sorted((task, slot) for task, slot, _ in found) == sorted((task, slot) for task, slot, _ in expected), (
            clock.true, clock.shown)  # fmt: skip
        for (task, slot, missed), (_, _, older) in zip(sorted(found), sorted(expected), strict=True):
            assert instants[task, slot] <= clock.shown, "early"
            assert missed in (older, 0), "stands for others"  # the count is lost where a claim is taken up again
    rows = machine.db.all("SELECT * FROM slots")
    days = [(row["task"], row["slot"][:10]) for row in rows]
    assert len(days) == len(set(days)), "twice on one day"
    assert {row["state"] for row in rows} <= {"done", "failed"}
    asked = machine.db.all("SELECT * FROM requests")
    assert len(asked) == sum(row["task"] in ("monthly", "fortnight") for row in rows)
    own = [row for row in rows if row["task"] in ("snapshot", "verify")]
    killed = [row for row in own if row["outcome"] == "the daemon was killed twice while at it"]
    assert len(killed) < 20
    assert len(machine.ran) == len(own) - len(killed)  # each claim was done, and done once
    assert looked > 1500 and len(rows) > 400


@pytest.mark.parametrize("name", ["Europe/Helsinki", "Australia/Lord_Howe", "America/Nuuk", "Africa/Casablanca"])
def test_the_next_slot_is_the_one_that_comes(name: str) -> None:
    """Walking minute by minute, the slot announced a minute ago is the one that is due now."""
    zone = ZoneInfo(name)
    for task, known in reference_slots(name).items():
        expression = parse(TASKS[task].expression)
        for local, due in known:
            slot = slot_on(expression, zone, local.date())
            assert slot and (slot.local, slot.due) == (local, due)
            coming = next_slot(expression, zone, due - timedelta(seconds=1))
            assert coming == slot


@st.composite
def cron_field(draw: st.DrawFn, low: int, high: int) -> tuple[str, set[int]]:
    """A field as it is written, and what it means."""
    parts, meant = [], set()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(1, 9))
        text, chosen = draw(st.sampled_from((
            (f"{first}", range(first, first + 1)), (f"{first}-{last}", range(first, last + 1)),
            (f"{first}-{last}/{step}", range(first, last + 1, step)), (f"{first}/{step}", range(first, high + 1, step)),
        )))  # fmt: skip
        parts.append(text)
        meant |= set(chosen)
    return ",".join(parts), meant


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cron_field(0, 59), cron_field(0, 23), cron_field(1, 31), cron_field(1, 12), cron_field(0, 7), st.booleans(),
       st.booleans())  # fmt: skip
def test_cron_is_that_of_crontab(
    minute: tuple[str, set[int]], hour: tuple[str, set[int]], day: tuple[str, set[int]],
    month: tuple[str, set[int]], weekday: tuple[str, set[int]], any_day: bool, any_weekday: bool,
) -> None:  # fmt: skip
    fields = [minute[0], hour[0], "*" if any_day else day[0], month[0], "*" if any_weekday else weekday[0]]
    try:
        found = parse(" ".join(fields))
    except ValueError as error:  # the 31st of February
        assert str(error) == "no such day ever comes" and min(day[1]) > 28
        return
    assert (found.at.hour, found.at.minute) == (min(hour[1]), min(minute[1]))
    for number in range(366):
        here = date(2028, 1, 1) + number * DAY
        weekdays = {here.isoweekday() % 7, here.isoweekday()}  # 0 and 7 are Sunday
        right = [here.day in day[1]] if not any_day else []
        right += [bool(weekdays & weekday[1])] if not any_weekday else []
        assert found.on(here) == (here.month in month[1] and (any(right) or not right))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789*/-,: abcdefilmnorstuwy", max_size=40) | st.text(max_size=20))
@example("1-2-3 * * * *")
@example("every 2 weeks on fri at from x")
def test_whatever_is_written_gives_an_expression_or_one_sentence(text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert parse(found.text) == found
        next_slot(found, UTC, datetime(2026, 5, 1, tzinfo=UTC))


def test_ledgers_of_two_lives_claim_one_slot_once(tmp_path: Path) -> None:
    """Even two writers at once: the row is the claim."""
    one = ledger.open_home(tmp_path / "home.db", write=True)
    two = ledger.open_home(tmp_path / "home.db", write=True)
    stamp = "2026-05-01T01:00:00.000Z"
    assert slots.claim(one, "snapshot", "me", "2026-05-01T03:00", stamp, stamp)
    assert not slots.claim(two, "snapshot", "me", "2026-05-01T03:00", stamp, stamp)
    assert not slots.claim(two, "snapshot", "me", "2026-05-01T20:00", stamp, stamp)  # the day has its slot
    assert slots.claim(two, "snapshot", "ada", "2026-05-01T03:00", stamp, stamp)
