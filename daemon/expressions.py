"""When something is due, as a person writes it: `daily 03:00`, `last 04:30`, five fields of cron, `off`.

The forms, the time being HH:MM and 03:30 where it is left out:

    off                                 never
    daily 03:00
    sun 04:30   mon-fri 02:00   sat,sun 10:00
    1st 03:30   15th 04:00   1st,15th 04:00   last 03:00
    every 2 weeks on fri 03:30 from 2026-01-02
    monthly     quarterly               the 1st of each month, of January, April, July and October
    30 3 1 * *                          as crontab(5) has it: minute, hour, day, month, weekday (0 and 7 are Sunday)

A task runs at most once a day: of an expression that names several times of a day the first one counts.
"""

import re
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from functools import lru_cache

HORIZON = 3700  # days: longer than from one 29th of February to the next, also over a century
DEFAULT_TIME = time(3, 30)
OFF = "off"

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # date.weekday()
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FORMS = (
    "daily 03:00, sun 04:30, mon-fri 02:00, 1st 03:30, last 03:00, every 2 weeks on fri from 2026-01-02, "
    "monthly, quarterly, five fields of cron, or off"
)
_TIME = re.compile(r"(\d{1,2}):(\d{2})")
_ORDINAL = re.compile(r"(\d{1,2})(st|nd|rd|th)")
_EVERY = re.compile(r"every (?:(\d{1,3}) )?weeks? on (\w+)(?: (\S+:\S+))?(?: from (\S+))?")
_CRON_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))


@dataclass(frozen=True, slots=True)
class Expression:
    """On which days something is due, and at what time of these days. A rule that is None excludes no day."""

    text: str
    at: time = DEFAULT_TIME
    never: bool = False
    days: frozenset[int] | None = None  # of the month
    last: bool = False  # the last day of the month
    months: frozenset[int] | None = None
    weekdays: frozenset[int] | None = None  # 0 is Monday
    either: bool = False  # day or weekday is enough, as in cron where both are given
    weeks: int = 1  # each so many, counted from `start`
    start: date | None = None
    several: bool = False  # it names more times of a day than the first

    def on(self, day: date) -> bool:
        """Whether it is due on this day."""
        if self.never or (self.months is not None and day.month not in self.months):
            return False
        if self.last:
            return (day + timedelta(days=1)).day == 1
        if self.start is not None:
            first = self.start + timedelta(days=(min(self.weekdays or {0}) - self.start.weekday()) % 7)
            return day >= first and (day - first).days % (7 * self.weeks) == 0
        right_day = self.days is None or day.day in self.days
        right_weekday = self.weekdays is None or day.weekday() in self.weekdays
        return (right_day or right_weekday) if self.either else (right_day and right_weekday)


@lru_cache(maxsize=256)
def parse(text: str) -> Expression:
    """Read one. Raises ValueError with a sentence that says what is wrong and what could stand there."""
    words = " ".join(text.lower().split())
    if words == OFF:
        return Expression(OFF, never=True)
    found = _every(words) or _cron(words) or _days(words)
    if found is None:
        raise ValueError(f"it is no time that engramd understands; use {_FORMS}")
    begin = found.start or _PROBE
    if not any(found.on(begin + timedelta(days=number)) for number in range(HORIZON)):
        raise ValueError("no such day ever comes")
    return replace(found, text=words)


_PROBE = date(2000, 1, 1)


def _days(words: str) -> Expression | None:
    """`daily`, `monthly`, `quarterly`, weekdays or days of the month, with a time or without one."""
    name, _, clock = words.partition(" ")
    what: dict[str, Expression] = {
        "daily": Expression(""),
        "monthly": Expression("", days=frozenset({1})),
        "quarterly": Expression("", days=frozenset({1}), months=frozenset({1, 4, 7, 10})),
        "last": Expression("", last=True),
    }
    found = what.get(name) or _weekdays(name) or _ordinals(name)
    return None if found is None else replace(found, at=_clock(clock) if clock else DEFAULT_TIME)


def _weekdays(name: str) -> Expression | None:
    chosen: set[int] = set()
    for part in name.split(","):
        first, dash, last = part.partition("-")
        if first not in _WEEKDAYS or (dash and last not in _WEEKDAYS):
            return None
        begin = _WEEKDAYS.index(first)
        length = (_WEEKDAYS.index(last) - begin) % 7 if dash else 0
        chosen |= {(begin + number) % 7 for number in range(length + 1)}
    return Expression("", weekdays=frozenset(chosen))


def _ordinals(name: str) -> Expression | None:
    found = [_ORDINAL.fullmatch(part) for part in name.split(",")]
    numbers = frozenset(int(one[1]) for one in found if one)
    if None in found:
        return None
    if not numbers <= set(range(1, 32)):
        raise ValueError(f"a month has no {name}; days go from 1st to 31st, and last is each month's last")
    return Expression("", days=numbers)


def _clock(text: str) -> time:
    found = _TIME.fullmatch(text)
    if not found or int(found[1]) > 23 or int(found[2]) > 59:
        raise ValueError(f"{text!r} is no time of day; one looks like 03:30, from 00:00 to 23:59")
    return time(int(found[1]), int(found[2]))


def _every(words: str) -> Expression | None:
    """`every 2 weeks on fri 03:30 from 2026-01-02`: the date says which weeks are meant."""
    if not words.startswith("every "):
        return None
    found = _EVERY.fullmatch(words)
    if not found or found[2] not in _WEEKDAYS:
        raise ValueError("it is not understood; it looks like every 2 weeks on fri 03:30 from 2026-01-02")
    number, weekday = int(found[1] or 1), _WEEKDAYS.index(found[2])
    if not 1 <= number <= 52:
        raise ValueError(f"every {number} weeks is not understood; the number goes from 1 to 52")
    if not found[4]:
        raise ValueError("it says not which weeks are meant; add such as from 2026-01-02")
    try:
        start = date.fromisoformat(found[4])
    except ValueError:
        raise ValueError(f"{found[4]!r} is no date; one looks like 2026-01-02") from None
    if not 1970 <= start.year <= 9000:
        raise ValueError(f"{found[4]!r} is too far away; one looks like 2026-01-02")
    at = _clock(found[3]) if found[3] else DEFAULT_TIME
    return Expression("", at, weekdays=frozenset({weekday}), weeks=number, start=start)


def _cron(words: str) -> Expression | None:
    """Five fields as in crontab(5), names and ranges, lists and steps. Day and weekday are alternatives where
    neither begins with `*`, as in Vixie's cron. APScheduler's own reading of them takes 0 for Monday."""
    fields = words.split(" ")
    if not re.match(r"[\d*]", words) or (len(fields) != 5 and not re.fullmatch(r"[\d*/,-]+", fields[0])):
        return None
    if len(fields) != 5:
        raise ValueError(f"cron has five fields (minute, hour, day, month, weekday), and here are {len(fields)}")
    sets = [_cron_field(text, *spec) for text, spec in zip(fields, _CRON_FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = sets
    every_day, every_weekday = fields[2].startswith("*"), fields[4].startswith("*")
    return Expression(
        "",
        time(min(hours), min(minutes)),
        days=None if fields[2] == "*" else frozenset(days),
        months=None if fields[3] == "*" else frozenset(months),
        weekdays=None if fields[4] == "*" else frozenset((number - 1) % 7 for number in weekdays),
        either=not (every_day or every_weekday),
        several=len(minutes) * len(hours) > 1,
    )


def _cron_field(text: str, name: str, low: int, high: int) -> set[int]:
    names = {"month": dict(zip(_MONTHS, range(1, 13), strict=True)),
             "weekday": dict(zip(("sun", *_WEEKDAYS[:6]), range(7), strict=True))}.get(name, {})  # fmt: skip
    wrong = ValueError(f"{text!r} is no {name} of cron; a {name} goes from {low} to {high}")

    def number(word: str) -> int:
        value = names.get(word, int(word) if re.fullmatch(r"\d{1,2}", word) else -1)
        if not low <= value <= high:
            raise wrong
        return value

    chosen: set[int] = set()
    for part in text.split(","):
        span, slash, stride = part.partition("/")
        if slash and (not re.fullmatch(r"\d{1,2}", stride) or int(stride) == 0):
            raise wrong
        if span == "*":
            first, last = low, high - (name == "weekday")
        else:
            begin, dash, end = span.partition("-")
            first = number(begin)
            last = number(end) if dash else (high if slash else first)
            if name == "weekday" and dash and last == 0:
                last = 7  # fri-sun: a week may also end with Sunday
        if last < first:
            raise wrong
        chosen |= set(range(first, last + 1, int(stride) if slash else 1))
    return chosen
