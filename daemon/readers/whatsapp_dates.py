"""Dates and times as WhatsApp writes them: how a header looks, and what its numbers and words say.

A phone writes them in the short form of its region. The forms are those of the Unicode CLDR, with what phones make
of it: marks of direction, narrow spaces, a word between day and clock ("à", "kl.", "klo"), twelve hours with words
for their halves, digits of Arabic, Persian and Indian scripts, the Buddhist and the Persian calendar.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Any, TypeVar

from daemon.readers import whatsapp_words as words
from daemon.records import Refused

MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
STRIPPED = MARKS + " \t\u00a0\u202f\u2009"
FIRST_YEAR = 2009  # no message of WhatsApp is older
_MANY = 100_000  # days or times of day that are remembered at once: more than a day has seconds
_HOURS = tuple(f"T{n:02}" for n in range(24))

_SPACE = r"[\s\u202f\u00a0\u2009]"
_POINT = rf"[{MARKS}]?[./-][{MARKS}]? ?"
_DAY = rf"\d{{1,4}}{_POINT}\d{{1,2}}{_POINT}\d{{1,4}}\.?(?: (?:г\.?|BE|AD|AP))?"
_AHEAD = rf"(?:[^\W\d_]{{1,4}}\.?{_SPACE}?)?"  # 下午9:41, du. 9:41, à 21:41
_HALF = rf"(?:{_SPACE}?[^\W\d_][^\d\n\]\[:,]{{0,12}}?)?"
_CLOCK = rf"{_AHEAD}\d{{1,2}}[:.]\d{{2}}(?:[:.]\d{{2}})?{_HALF}"
_CLOCK_OF_SECONDS = rf"{_AHEAD}\d{{1,2}}[:.]\d{{2}}[:.]\d{{2}}{_HALF}"
_BETWEEN = rf"[,،]?{_SPACE}{{1,2}}[{MARKS}]?"
FORMS = {
    "ios": re.compile(rf"\n[{MARKS} ]*\[[{MARKS}]?({_DAY}){_BETWEEN}({_CLOCK})[{MARKS}]?\][ \u00a0]?"),
    "android": re.compile(rf"\n[{MARKS}]*({_DAY}){_BETWEEN}({_CLOCK})[{MARKS}]? [-–] "),
    "old ios": re.compile(rf"\n[{MARKS}]*({_DAY}){_BETWEEN}({_CLOCK_OF_SECONDS}): "),  # until about 2017
}
_NUMBERS = re.compile(r"\d+")
_PARTS = re.compile(r"(\D*)(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(\D*)")
_BETWEEN_LETTERS = re.compile(rf"[{STRIPPED}\s.\u200c\u200d\u05f4\"'’״]+")
_PERSIAN_LEAPS = frozenset((1, 5, 9, 13, 17, 22, 26, 30))  # years of its 33-year cycle with a day more
_FIRST_OF_1400 = date(2021, 3, 21)
_YMD = "ymd"

T = TypeVar("T")
Numbers = tuple[int, int, int]
Order = tuple[int, int, int]  # places of year, month, day among the three numbers
ORDERS: dict[str, Order] = {"dmy": (2, 1, 0), "mdy": (2, 0, 1), _YMD: (0, 1, 2)}


def numbers(day: str) -> Numbers | None:
    found = [int(number) for number in _NUMBERS.findall(day)]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def dated(one: Numbers, order: Order) -> date | None:
    """The day, of whichever calendar; None where there is no such day."""
    year, month, day = (one[place] for place in order)
    if year < 100:
        year += 2000 if year < 57 else 1957  # 66 is 2566 of the Buddhist calendar: 1966 had no WhatsApp
    elif 2400 < year < 2700:
        year -= 543
    elif 1300 <= year < 1430:
        return _persian(year, month, day)
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _persian(year: int, month: int, day: int) -> date | None:
    """A day of the solar calendar of Iran by its cycle of 33 years, which is right from 1244 to 1500."""
    long = 31 if month <= 6 else 30 if month < 12 or year % 33 in _PERSIAN_LEAPS else 29
    if not (1 <= month <= 12 and 1 <= day <= long):
        return None
    years = range(min(year, 1400), max(year, 1400))
    away = sum(366 if one % 33 in _PERSIAN_LEAPS else 365 for one in years)
    before = 31 * (month - 1) if month <= 7 else 186 + 30 * (month - 7)
    return _FIRST_OF_1400 + timedelta(days=(away if year >= 1400 else -away) + before + day - 1)


def decided(days: list[Numbers], day_first: bool | None, dotted: bool = False) -> tuple[Order, bool]:
    """(order, whether nothing in the file told it) from the dates of a chat in their order. No region writes
    month.day.year with dots. Raises Refused where the years are of a calendar that is not read."""
    if sum(any(1430 <= number < 1500 for number in one) for one in days) * 2 > len(days):
        raise Refused("the dates of this chat are of a calendar that is not read: set the phone to the Gregorian "
                      "calendar and export the chat again")  # fmt: skip
    if days and sum(one[0] > 999 for one in days) * 2 > len(days):
        return ORDERS[_YMD], False
    scores: dict[str, tuple[int, int]] = {}
    names = ("dmy", _YMD) if dotted else tuple(ORDERS)
    for name, order in ((name, ORDERS[name]) for name in names):
        read = [dated(one, order) for one in days]
        good = [one for one in read if one is not None and one.year >= FIRST_YEAR]
        back = sum(later < earlier for earlier, later in pairwise(good))
        scores[name] = (len(read) - len(good), back)
    usual = "mdy" if day_first is False and not dotted else "dmy"
    best = min((usual, *names), key=lambda name: scores[name])
    last = tuple(name for name in names if name != _YMD)
    if best == _YMD and any(scores[name][0] == 0 for name in last) and len(days) < 3:
        best = min((usual, *last), key=lambda name: scores[name])
    ambiguous = scores["dmy"] == scores.get("mdy") and best != _YMD and any(one[0] != one[1] for one in days)
    return ORDERS[best], ambiguous


def clock_of(text: str) -> tuple[int, int, int, str] | None:
    """(hour, minute, second, the word that may say the half of the day and is not known); None for no time."""
    found = _PARTS.fullmatch(text)
    if found is None:
        return None
    hour, minute, second = int(found[2]), int(found[3]), int(found[4] or 0)
    if not (hour < 24 and minute < 60 and second < 60):
        return None
    unknown = ""
    if 1 <= hour <= 12:
        for word in filter(None, (found[1], found[5])):
            short = _BETWEEN_LETTERS.sub("", word).strip(":").casefold()
            if short in words.AFTERNOON:
                hour = hour % 12 + 12
            elif short in words.FORENOON:
                hour %= 12
            elif short in words.NOON:
                hour += 12 if hour < 6 else 0
            elif short and short not in words.OF_24_HOURS:
                unknown = word.strip(STRIPPED)
                continue
            else:
                continue
            return hour, minute, second, ""
    return hour, minute, second, unknown


# "12/3/24, " as written before the clock, "2024-03-12", "2024-03-12T08" for each hour of it in UTC
Day = tuple[str, str, list[str] | None]
Clock = tuple[str, int, str, str]  # "9:15 AM" as written, 9, "T09:15:00", ":15:00Z"


class Times:
    """Dates and times of one file, each worked out once."""

    def __init__(self, order: Order, zone: tzinfo, between: str) -> None:
        self._order, self._zone = order, zone
        self._between = between  # of day and clock, in the usual header
        self.days = _Parts(self._day)
        self.clocks = _Parts(self._clock)
        self.unknown: set[str] = set()  # words behind a clock of twelve hours that may say which half it is

    def of(self, day: str, clock: str) -> tuple[Day, Clock] | None:
        """What a day and a time of day are; None where they are none."""
        known, when = self._day(day), self._clock(clock)
        return None if known is None or when is None else (known, when)

    def of_all(self, days: list[bytes], clocks: list[bytes]) -> tuple[list[Any], list[Any]]:
        """A `Day` for each day and a `Clock` for each time of day; None where it is none."""
        for known in (self.days, self.clocks):
            if len(known) > _MANY:
                known.clear()
        return list(map(self.days.__getitem__, days)), list(map(self.clocks.__getitem__, clocks))

    def utc(self, local: str) -> str:
        """For days on which the offset changes, or is no whole hours."""
        moment = datetime.fromisoformat(local).replace(tzinfo=self._zone).astimezone(UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _day(self, text: str) -> Day | None:
        three = numbers(text)
        found = None if three is None else dated(three, self._order)
        if found is None or not 1990 <= found.year < 2200:
            return None
        midnight = datetime(found.year, found.month, found.day, tzinfo=self._zone)
        offset, later = midnight.utcoffset(), (midnight + timedelta(days=1)).utcoffset()
        hours: list[str] | None = None
        if offset is not None and offset == later and not offset.total_seconds() % 3600:
            begin = midnight.replace(tzinfo=None) - offset
            first, second = begin.date().isoformat(), (begin.date() + timedelta(days=1)).isoformat()
            hours = [first + hour for hour in _HOURS[begin.hour :]] + [second + hour for hour in _HOURS[: begin.hour]]
        return text + self._between, found.isoformat(), hours

    def _clock(self, text: str) -> Clock | None:
        found = clock_of(text)
        if found is None:
            return None
        hour, minute, second, unknown = found
        if unknown:
            self.unknown.add(unknown)
        rest = f":{minute:02}:{second:02}"
        return text, hour, f"T{hour:02}{rest}", f"{rest}Z"


class _Parts(dict[bytes, T | None]):
    """What parts of headers are, each worked out when it is first asked for; None for what is nothing."""

    def __init__(self, worked_out: Callable[[str], T | None]) -> None:
        super().__init__()
        self._worked_out = worked_out

    def __missing__(self, part: bytes) -> T | None:
        try:
            found = self._worked_out(part.decode())
        except UnicodeDecodeError:
            found = None
        self[part] = found
        return found
