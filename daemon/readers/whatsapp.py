"""WhatsApp's exported chats (`.txt`, or `_chat.txt` in a zip), from Android and iOS, in the forms of all regions.

The format is documented nowhere; its forms were collected from published exports and from parsers that people
keep. A header is a date and a time in brackets (iOS) or before a dash (Android); everything up to the next header
is its message. The order of day and month is decided over the whole file: by a number above 12, else by the
order in which times go forward. Left out, each with its reason: notices, media alone, deleted messages, calls.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import BinaryIO, NamedTuple

from daemon.readers import whatsapp_words as words
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**WhatsApp.** In a chat: More, Export chat, without media. Drop the `.txt` or the zip as it is. All date orders, 12 and
24 hours, and the marks that WhatsApp puts between them are read; times have no zone, so `timezone` of the profile
counts. The order of day and month is decided over the whole file; where nothing in it tells, `day_first` does. Left
out: notices, media (a caption is kept), deleted messages, calls, polls, places. The name of the chat comes from the
file's name, so keep it.

```
12/9/20, 23:55 - Alice: See you tomorrow
[31/12/2022, 11:40:26] John Doe: A happy new year!
```
"""

SOURCE = "whatsapp"
_BLOCK = 1 << 20  # bytes
_RUNS = 100  # days that are looked at before the order of day and month counts as decided
_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"
_STRIPPED = _MARKS + " \t\u00a0\u202f\u2009"
_DAY = rf"\d{{1,4}}[{_MARKS}]?[./-][{_MARKS}]? ?\d{{1,2}}[{_MARKS}]?[./-][{_MARKS}]? ?\d{{1,4}}\.?"
_CLOCK = r"(?:[^\W\d_]{2}\s?)?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[\s\u202f\u00a0\u2009]?[^\W\d_][^\d\n\]\[:,]{0,9}?)?"
_FORMS = {
    "ios": re.compile(rf"\n[{_MARKS} ]*\[({_DAY})[,،]?[\s\u202f\u00a0]{{1,2}}({_CLOCK})[{_MARKS}]?\] ?"),
    "android": re.compile(rf"\n[{_MARKS}]*({_DAY})[,،]?[\s\u202f\u00a0]{{1,2}}[{_MARKS}]?({_CLOCK})[{_MARKS}]? [-–] "),
}
_EXACT = words.MEDIA | words.CALLS | words.DELETED
_LONGEST_EXACT = max(map(len, _EXACT))
_ODD_FIRST = frozenset(_STRIPPED + "<\n~")
_ODD_LAST = frozenset(_STRIPPED + ")>\n")
_NUMBERS = re.compile(r"\d+")
_PIECES = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
_COPY = re.compile(r"(?:\s*\(\d+\)|\s+copy|\s+-\s+copy)$", re.IGNORECASE)
_IN_ANGLES = re.compile(r"[\s\u200e]*<([^<>\n]{3,80})>[\s\u200e]*$")
_FILE_NAME = re.compile(r"^\S.{0,120}\.[a-z0-9]{2,5} \([^()\n]{4,24}\)$", re.IGNORECASE)
_YMD2 = "ymd"  # two-digit years first

Order = tuple[int, int, int]  # places of year, month, day among the three numbers
ORDERS: dict[str, Order] = {"dmy": (2, 1, 0), "mdy": (2, 0, 1), _YMD2: (0, 1, 2)}


class Found(NamedTuple):
    """How dates are written in one file."""

    ios: bool
    header: re.Pattern[str]  # a line end, and the header of a message with its day and its clock
    order: Order
    ambiguous: bool


# ---- what kind of file ----------------------------------------------------------------------------


def _claims(sniff: Sniff) -> bool:
    text = "\n" + sniff.text[:20_000]
    for form, pattern in _FORMS.items():
        parts = pattern.split(text)
        if len(parts) < 4 or sum(1 for line in parts[0].split("\n") if line.strip()) > 20:
            continue
        names = [body.partition(": ")[0] for body in parts[3::3] if ": " in body.split("\n", 1)[0]]
        if form == "ios" and _is_signal(parts):
            continue
        levels = sum(name.strip() in words.LOG_LEVELS for name in names)
        if names and levels * 2 < len(names):
            return True
        if form == "android" and len(parts) >= 4 and not names and len(parts) <= 10:
            return True  # notices alone: an empty chat
    return False


def _is_signal(parts: list[str]) -> bool:
    """signal-export writes `[2019-05-29, 15:04] Me: text`: an ISO date and no seconds, which WhatsApp never does."""
    return all(day[:4].isdigit() and clock.count(":") == 1 for day, clock in zip(parts[1::3], parts[2::3], strict=True))


# ---- the order of day and month -------------------------------------------------------------------


def _numbers(day: str) -> tuple[int, int, int] | None:
    found = [int(number) for number in _NUMBERS.findall(day)]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _dated(numbers: tuple[int, int, int], order: Order) -> date | None:
    year, month, day = (numbers[place] for place in order)
    try:
        return date(year + 2000 if year < 100 else year, month, day)
    except ValueError:
        return None


def _header(stream: BinaryIO) -> tuple[bool, re.Pattern[str]]:
    """(whether it is iOS's, pattern). An export is written at once, on one phone: where all headers of the first
    block have one shape, all of the file have, and a pattern of just that shape is several times faster."""
    block = "\n" + stream.read(_BLOCK).decode("utf-8", "replace").replace("\r\n", "\n")
    ios = len(_FORMS["ios"].findall(block)) > len(_FORMS["android"].findall(block))
    general = _FORMS["ios" if ios else "android"]
    shapes = set()
    for found in general.finditer(block):
        start, end = found.span()
        borders = (start + 1, *found.span(1), *found.span(2), end)
        shapes.add(tuple(_shape(block[left:right]) for left, right in zip(borders, borders[1:], strict=False)))
        if len(shapes) > 1:
            return ios, general
    if not shapes:
        return ios, general
    before, day, between, clock, after = shapes.pop()
    return ios, re.compile(rf"\n[{_MARKS}]*{before}({day}){between}({clock}){after}")


def _shape(text: str) -> str:
    """A pattern for texts that differ in their numbers and words only; marks in front are looked for elsewhere."""
    text = text.lstrip(_MARKS) if text.strip(_MARKS) != text and not text.strip(_MARKS) else text
    return "".join(
        r"\d{1,4}" if piece[0].isdigit() else r"[^\W\d_]{1,12}" if piece[0].isalpha() else re.escape(piece)
        for piece in _PIECES.findall(text)
    )


def _learnt(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Found:
    """One pass, that ends once the order is plain."""
    start = stream.tell()
    ios, header = _header(stream)
    stream.seek(start)
    days: list[tuple[int, int, int]] = []
    last = ""
    for block in _blocks(stream, limits):
        for day, _ in header.findall(block):
            if day != last:
                last = day
                numbers = _numbers(day)
                if numbers is not None:
                    days.append(numbers)
        if len(days) > _RUNS and any(max(one[0], one[1]) > 12 for one in days):
            break
    stream.seek(start)
    order, ambiguous = decided(days, facts.locale.day_first)
    return Found(ios, header, order, ambiguous)


def decided(days: list[tuple[int, int, int]], day_first: bool | None) -> tuple[Order, bool]:
    """(order, whether nothing in the file told it) from the dates of a chat in their order."""
    if days and sum(one[0] > 999 for one in days) * 2 > len(days):
        return ORDERS[_YMD2], False
    scores: dict[str, tuple[int, int]] = {}
    for name, order in ORDERS.items():
        dated = [_dated(one, order) for one in days]
        good = [one for one in dated if one is not None]
        back = sum(later < earlier for earlier, later in zip(good, good[1:], strict=False))
        scores[name] = (len(dated) - len(good), back)
    usual = "dmy" if day_first is not False else "mdy"
    best = min((usual, "dmy", "mdy", _YMD2), key=lambda name: scores[name])
    if best == _YMD2 and (scores["dmy"][0] == 0 or scores["mdy"][0] == 0) and len(days) < 3:
        best = min((usual, "dmy", "mdy"), key=lambda name: scores[name])
    ambiguous = scores["dmy"] == scores["mdy"] and best != _YMD2 and any(one[0] != one[1] for one in days)
    return ORDERS[best], ambiguous


# ---- times ----------------------------------------------------------------------------------------


_Day = tuple[str, list[str] | None]  # "2024-03-12", and "2024-03-12T08" for each hour of it in UTC
_Clock = tuple[int, str, str]  # 9, "T09:15:00", ":15:00Z"


class _Times:
    """Dates and times of one file, each worked out once."""

    def __init__(self, order: Order, zone: tzinfo) -> None:
        self._order, self._zone = order, zone
        self._days: dict[str, _Day | None] = {}
        self._clocks: dict[str, _Clock | None] = {}

    def of_days(self, days: list[str]) -> list["_Day | None"]:
        """For each day its ISO form and its hours in UTC; None where it is no date."""
        for day in set(days) - self._days.keys():
            self._day(day)
        return list(map(self._days.__getitem__, days))

    def of_clocks(self, clocks: list[str]) -> list["_Clock | None"]:
        """For each time of day its hour, and its ISO forms; None where it is none."""
        if len(self._clocks) > 100_000:
            self._clocks.clear()
        for clock in set(clocks) - self._clocks.keys():
            self._clock(clock)
        return list(map(self._clocks.__getitem__, clocks))

    def utc(self, local: str) -> str:
        """For days on which the offset changes, or is no whole hours."""
        moment = datetime.fromisoformat(local).replace(tzinfo=self._zone).astimezone(UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _day(self, text: str) -> None:
        numbers = _numbers(text)
        found = None if numbers is None else _dated(numbers, self._order)
        if found is None or not 1990 <= found.year < 2200:
            self._days[text] = None
            return
        midnight = datetime(found.year, found.month, found.day, tzinfo=self._zone)
        offset, later = midnight.utcoffset(), (midnight + timedelta(days=1)).utcoffset()
        hours: list[str] | None = None
        if offset is not None and offset == later and not offset.total_seconds() % 3600:
            begin = midnight.replace(tzinfo=UTC) - offset
            hours = [(begin + timedelta(hours=n)).strftime("%Y-%m-%dT%H") for n in range(24)]
        self._days[text] = found.isoformat(), hours

    def _clock(self, text: str) -> None:
        numbers = [int(number) for number in _NUMBERS.findall(text)]
        half = _NUMBERS.sub("", text).strip(_STRIPPED + ":.").casefold()
        hour, minute, second = [*numbers, 0][:3] if len(numbers) in (2, 3) else (99, 0, 0)
        if half and 1 <= hour <= 12:
            if half.startswith(words.AFTERNOON) and not half.startswith(words.FORENOON):
                hour = hour % 12 + 12
            elif half.startswith(words.FORENOON):
                hour %= 12
        good = hour < 24 and minute < 60 and second < 60
        rest = f":{minute:02}:{second:02}"
        self._clocks[text] = (hour, f"T{hour:02}{rest}", f"{rest}Z") if good else None


# ---- messages -------------------------------------------------------------------------------------


def _blocks(stream: BinaryIO, limits: Limits) -> Iterator[str]:
    """Pieces of whole lines, each with a line end in front of its first line and none behind its last."""
    rest = b""
    while data := stream.read(_BLOCK):
        data = rest + data
        cut = data.rfind(b"\n")
        if cut < 0 and len(data) < limits.max_line_bytes:
            rest = data
            continue
        cut = len(data) if cut < 0 else cut
        text = data[:cut].decode("utf-8", "replace")
        rest = data[cut + 1 :]
        yield "\n" + (text.replace("\r\n", "\n") if "\r" in text else text).replace("\x00", "")
    if rest:
        yield "\n" + rest.decode("utf-8", "replace").replace("\r", "").replace("\x00", "")


Message = tuple[str, str, _Day, _Clock, str]  # raw day, raw clock, what they are, body
_NOWHERE: tuple[_Day, _Clock] = (("", None), (0, "", ""))


def _messages(stream: BinaryIO, header: re.Pattern[str], times: _Times, limits: Limits) -> Iterator[Iterable[Message]]:
    """The messages of the file, in slices: the body of the last one of a block may go on in the next. Text that
    belongs to no header comes with an empty day."""
    last: Message | None = None
    for block in _blocks(stream, limits):
        parts = header.split(block)
        raw_days, raw_clocks, bodies = parts[1::3], parts[2::3], parts[3::3]
        days, clocks = times.of_days(raw_days), times.of_clocks(raw_clocks)
        if parts[0] and last is None:
            yield [("", "", *_NOWHERE, parts[0])]
        elif parts[0] and last is not None and len(last[4]) < limits.max_line_bytes:
            last = (*last[:4], last[4] + parts[0])
        if not bodies:
            continue
        if last is not None:
            yield [last]
        if None in days or None in clocks:
            found = _without_bad_times(raw_days, raw_clocks, days, clocks, bodies)
            last = found.pop()
            yield found
        else:
            last = raw_days.pop(), raw_clocks.pop(), days.pop(), clocks.pop(), bodies.pop()  # type: ignore[assignment]
            yield zip(raw_days, raw_clocks, days, clocks, bodies)  # type: ignore[arg-type] # noqa: B905
    if last is not None:
        yield [last]


def _without_bad_times(
    raw_days: list[str], raw_clocks: list[str], days: list[_Day | None], clocks: list[_Clock | None], bodies: list[str]
) -> list[Message]:
    """What looks like a header and names no date is a line of the message before."""
    found: list[Message] = []
    for raw_day, raw_clock, day, clock, body in zip(raw_days, raw_clocks, days, clocks, bodies, strict=True):
        if day is not None and clock is not None:
            found.append((raw_day, raw_clock, day, clock, body))
        elif found:
            found[-1] = (*found[-1][:4], f"{found[-1][4]}\n{raw_day}, {raw_clock} - {body}")
        else:
            found.append(("", "", *_NOWHERE, f"{raw_day}, {raw_clock} - {body}"))
    return found


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    learnt = _learnt(stream, facts, limits)
    if learnt.ambiguous:
        yield LeftOut("whether the day or the month comes first cannot be told from this file: the day was taken; "
                      "[profiles.<name>] day_first decides")  # fmt: skip
    chat = conversation(facts)
    names: dict[str, str] = {}
    times = _Times(learnt.order, facts.locale.zone or UTC)
    make = tuple.__new__  # the speed of this loop is that of the reader
    for found in _messages(stream, learnt.header, times, limits):
        for raw_day, raw_clock, (day, hours), clock, body in found:
            local = day + clock[1]
            utc = hours[clock[0]] + clock[2] if hours else times.utc(local) if day else ""
            name, _, text = body.partition(": ")
            if (
                name in names and text and text[0] not in _ODD_FIRST and text[-1] not in _ODD_LAST
                and "\n" not in text and "://" not in text
                and (len(text) > _LONGEST_EXACT or text.casefold() not in _EXACT)
            ):  # fmt: skip
                yield make(Utterance, (SOURCE, chat, names[name], text, f"{raw_day}, {raw_clock}", utc, False, None,
                                       local, None, None, None, None, ""))  # fmt: skip
            else:
                yield _one(raw_day, raw_clock, local, utc, body, chat, names, learnt.ios)


def _one(
    day: str, clock: str, local: str, utc: str, body: str, chat: str, names: dict[str, str], ios: bool
) -> Utterance | LeftOut | BadItem:
    """A message that wants a closer look."""
    if not day:
        return BadItem("beginning", f"text in front of the first message: {body.strip()[:80]!r}")
    raw = f"{day}, {clock}"
    name, colon, text = body.partition(": ")
    if name not in names:
        if not colon or "\n" in name or '"' in name or "“" in name or "«" in name or len(name) > 100:
            empty = name.endswith(":") and "\n" not in name
            return LeftOut("an empty message, or one that could be seen once" if empty else "a notice of WhatsApp",
                           "", body[:300], raw, utc, False)  # fmt: skip
        names[name] = name.strip(_STRIPPED).removeprefix("~").strip(_STRIPPED)
    why, text = _weighed(text, ios)
    if why is None:
        return Utterance(SOURCE, chat, names[name], text, raw, utc, False, None, local)
    return LeftOut(why, names[name], text[:300], raw, utc, False)


def _weighed(text: str, ios: bool) -> tuple[str | None, str]:
    """(why a message is no memory, or None; its text as it was said)."""
    if not text or text.isspace():
        return "an empty message, or one that could be seen once", ""
    last = text[-1]
    if text[0] == "\u200e" and ios:
        return _why_marked(text.strip(_STRIPPED)), text.strip(_STRIPPED)
    text = text.strip(_STRIPPED + "\n")
    if last in ">\u200e" and (found := _IN_ANGLES.search(text)):
        inner = found[1].casefold()
        rest = text[: found.start()].strip(_STRIPPED + "\n")
        if any(word in inner for word in words.EDITED):
            text = rest
        elif rest:
            return None, rest  # a caption, and what was attached to it
        else:
            return "media", text
    lowered = text.casefold()
    if lowered in words.MEDIA or lowered in words.CALLS or lowered in words.DELETED:
        return _why_marked(text), text
    head, _, caption = text.partition("\n")
    head = head.strip(_STRIPPED)
    if last == ")" or caption:
        if head.casefold().endswith(words.ATTACHED) or _FILE_NAME.match(head) and "-WA" in head:
            caption = caption.strip(_STRIPPED + "\n")
            return (None, caption) if caption else ("media", text)
    if lowered.startswith(words.PLACES):
        return "a place on the map", text
    if lowered.startswith("poll:\n") or lowered.startswith("umfrage:\n") or lowered.startswith("encuesta:\n"):
        return "a poll", text
    return (None, text) if text else ("an empty message, or one that could be seen once", "")


def _why_marked(text: str) -> str:
    """What a text is that WhatsApp wrote in a person's place."""
    lowered = text.casefold()
    if lowered in words.DELETED:
        return "a deleted message"
    if lowered in words.CALLS:
        return "a call"
    if lowered in words.MEDIA or text.startswith("<") or lowered.endswith(("omitted", "weggelassen")):
        return "media"
    return "a notice of WhatsApp, or media"


def conversation(facts: FileFacts) -> str:
    """The name of the chat, the same for each copy of its export."""
    for name in (facts.name, facts.container):
        stem = name.rpartition("/")[2]
        for suffix in (".txt", ".zip", ".gz"):
            stem = stem[: -len(suffix)] if stem.casefold().endswith(suffix) else stem
        while (shorter := _COPY.sub("", stem).strip()) != stem:
            stem = shorter
        lowered = stem.casefold()
        prefix = next((one for one in words.FILE_PREFIXES if lowered.startswith(one)), "")
        stem = stem[len(prefix) :].strip()
        if stem and stem.casefold() not in ("_chat", "chat", "whatsapp chat"):
            return stem
    return "chat"


READER = StreamReader(SOURCE, _claims, _read)
