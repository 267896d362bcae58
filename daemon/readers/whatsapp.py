"""WhatsApp's exported chats (`.txt`, or `_chat.txt` in a zip), from Android and iOS, in the forms of all regions.

The format is documented nowhere; its forms were collected from published exports and from parsers that people
keep. A header is a date and a time in brackets (iOS) or before a dash (Android); everything up to the next header
is its message. The order of day and month is decided over the whole file: by a number above 12, else by the
order in which times go forward. Left out, each with its reason: notices, media alone, deleted messages, calls.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
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
_BLOCK = 1 << 18  # bytes
_HEAD = 1 << 16  # bytes
_RUNS = 100  # days that are looked at before the order of day and month counts as decided
_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff"
_STRIPPED = _MARKS + " \t\u00a0\u202f\u2009"
_DAY = rf"\d{{1,4}}[{_MARKS}]?[./-][{_MARKS}]? ?\d{{1,2}}[{_MARKS}]?[./-][{_MARKS}]? ?\d{{1,4}}\.?"
_CLOCK = r"(?:[^\W\d_]{2}\s?)?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:[\s\u202f\u00a0\u2009]?[^\W\d_][^\d\n\]\[:,]{0,9}?)?"
_FORMS = {
    "ios": re.compile(rf"\n[{_MARKS} ]*\[({_DAY})[,،]?[\s\u202f\u00a0]{{1,2}}({_CLOCK})[{_MARKS}]?\] ?"),
    "android": re.compile(rf"\n[{_MARKS}]*({_DAY})[,،]?[\s\u202f\u00a0]{{1,2}}[{_MARKS}]?({_CLOCK})[{_MARKS}]? [-–] "),
}
_LOWER = words.MEDIA | words.CALLS | words.DELETED
_EXACT = _LOWER | {text[:1].upper() + text[1:] for text in _LOWER} | {text.upper() for text in _LOWER if len(text) < 16}
_ODD_FIRST = frozenset(_STRIPPED + "<\n~")
_ODD_LAST = frozenset(_STRIPPED + ")>\n")
_HOURS = tuple(f"{n:02}" for n in range(24))
_NUMBERS = re.compile(r"\d+")
_COPY = re.compile(r"(?:\s*\(\d+\)|\s+copy|\s+-\s+copy)$", re.IGNORECASE)
_IN_ANGLES = re.compile(r"[\s\u200e]*<([^<>\n]{3,80})>[\s\u200e]*$")
_FILE_NAME = re.compile(r"^\S.{0,120}\.[a-z0-9]{2,5} \([^()\n]{4,24}\)$", re.IGNORECASE)
_YMD2 = "ymd"  # two-digit years first

Order = tuple[int, int, int]  # places of year, month, day among the three numbers
ORDERS: dict[str, Order] = {"dmy": (2, 1, 0), "mdy": (2, 0, 1), _YMD2: (0, 1, 2)}


class Found(NamedTuple):
    """How dates are written in one file."""

    ios: bool
    before: str  # in front of the day, between day and clock, behind the clock: as in the first header
    between: str
    after: str
    order: Order
    ambiguous: bool


# ---- what kind of file ----------------------------------------------------------------------------


def _claims(sniff: Sniff) -> bool:
    text = "\n" + sniff.text[:20_000]
    for form, pattern in _FORMS.items():
        parts = pattern.split(text)
        if len(parts) < 4 or parts[0].strip(_STRIPPED + "\n"):
            continue
        names = [body.partition(": ")[0] for body in parts[3::3] if ": " in body.split("\n", 1)[0]]
        if form == "ios" and _is_signal(parts):
            continue
        levels = sum(name.strip() in words.LOG_LEVELS for name in names)
        if names and levels * 2 < len(names):
            return True
        if not names and "whatsapp" in sniff.name.casefold():
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


def _borders(stream: BinaryIO) -> tuple[bool, str, str, str]:
    """(whether it is iOS's, what stands around day and clock). An export is written at once, on one phone: what
    stands in its first header stands in nearly all, and the others are looked at more closely."""
    block = "\n" + stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    ios = len(_FORMS["ios"].findall(block)) > len(_FORMS["android"].findall(block))
    found = _FORMS["ios" if ios else "android"].search(block)
    if found is None:
        raise Refused("no message could be read in this chat")
    (start, end), (day, day_end), (clock, clock_end) = found.span(), found.span(1), found.span(2)
    return ios, block[start + 1 : day].lstrip(_MARKS), block[day_end:clock], block[clock_end:end]


def _learnt(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Found:
    """One pass, that ends once the order is plain."""
    start = stream.tell()
    ios, before, between, after = _borders(stream)
    header = _FORMS["ios" if ios else "android"]
    stream.seek(start)
    days: list[tuple[int, int, int]] = []
    last = ""
    for block in _blocks(stream, limits):
        for day, _ in header.findall(f"\n{block}"):
            if day != last:
                last = day
                numbers = _numbers(day)
                if numbers is not None:
                    days.append(numbers)
        if len(days) > _RUNS and any(max(one[0], one[1]) > 12 for one in days):
            break
    stream.seek(start)
    order, ambiguous = decided(days, facts.locale.day_first)
    return Found(ios, before, between, after, order, ambiguous)


def decided(days: list[tuple[int, int, int]], day_first: bool | None) -> tuple[Order, bool]:
    """(order, whether nothing in the file told it) from the dates of a chat in their order."""
    if days and sum(one[0] > 999 for one in days) * 2 > len(days):
        return ORDERS[_YMD2], False
    scores: dict[str, tuple[int, int]] = {}
    for name, order in ORDERS.items():
        dated = [_dated(one, order) for one in days]
        good = [one for one in dated if one is not None]
        back = sum(later < earlier for earlier, later in pairwise(good))
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
        self.days: dict[str, _Day] = {}
        self.clocks: dict[str, _Clock] = {}

    def of(self, day: str, clock: str) -> tuple[_Day, _Clock] | None:
        """What a day and a time of day are; None where they are none. Both are known from then on."""
        known, when = self._day(day), self._clock(clock)
        if known is None or when is None:
            return None
        if len(self.clocks) > 100_000:
            self.clocks.clear()
        self.days[day], self.clocks[clock] = known, when
        return known, when

    def utc(self, local: str) -> str:
        """For days on which the offset changes, or is no whole hours."""
        moment = datetime.fromisoformat(local).replace(tzinfo=self._zone).astimezone(UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _day(self, text: str) -> _Day | None:
        numbers = _numbers(text)
        found = None if numbers is None else _dated(numbers, self._order)
        if found is None or not 1990 <= found.year < 2200:
            return None
        midnight = datetime(found.year, found.month, found.day, tzinfo=self._zone)
        offset, later = midnight.utcoffset(), (midnight + timedelta(days=1)).utcoffset()
        hours: list[str] | None = None
        if offset is not None and offset == later and not offset.total_seconds() % 3600:
            begin = midnight.replace(tzinfo=None) - offset
            first, second = begin.date().isoformat(), (begin.date() + timedelta(days=1)).isoformat()
            hours = [f"{first}T{n}" for n in _HOURS[begin.hour :]] + [f"{second}T{n}" for n in _HOURS[: begin.hour]]
        return found.isoformat(), hours

    def _clock(self, text: str) -> _Clock | None:
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
        return (hour, f"T{hour:02}{rest}", f"{rest}Z") if good else None


# ---- messages -------------------------------------------------------------------------------------


def _blocks(stream: BinaryIO, limits: Limits) -> Iterator[str]:
    """Pieces of whole lines, without the line end behind the last one."""
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
        yield (text.replace("\r\n", "\n").removesuffix("\r") if "\r" in text else text).replace("\x00", "")
    if rest:
        yield rest.decode("utf-8", "replace").replace("\r", "").replace("\x00", "")


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    learnt = _learnt(stream, facts, limits)
    if learnt.ambiguous:
        yield LeftOut("whether the day or the month comes first cannot be told from this file: the day was taken; "
                      "[profiles.<name>] day_first decides")  # fmt: skip
    times = _Times(learnt.order, facts.locale.zone or UTC)
    chat = _Chat(conversation(facts), learnt.ios, _FORMS["ios" if learnt.ios else "android"], times)
    names, days, clocks = chat.names, times.days, times.clocks
    skip, between, after = len(learnt.before), learnt.between, learnt.after
    name_chat, make = chat.name, tuple.__new__
    # The message that is open, until the next header. The speed of this loop is that of the reader: what is
    # unusual in any way is left to _Chat.
    head = local = utc = body = ""
    more: list[str] = []
    size = 0
    for block in _blocks(stream, limits):
        for line in block.split("\n"):
            found, _, rest = line[skip:].partition(after) if skip else line.partition(after)
            day, _, clock = found.partition(between)
            try:
                iso, hours = days[day]
                hour, rest_local, rest_utc = clocks[clock]
            except KeyError:
                header = chat.header(line)
                if header is None:
                    if size < limits.max_line_bytes:
                        more.append(line)
                        size += len(line) + 1
                    continue
                found, (iso, hours), (hour, rest_local, rest_utc), rest = header
            if head or more:
                name, _, text = body.partition(": ")
                if (
                    not more and name in names and text and text[0] not in _ODD_FIRST and text[-1] not in _ODD_LAST
                    and text not in _EXACT and ": https://" not in text
                ):  # fmt: skip
                    yield make(Utterance, (SOURCE, name_chat, names[name], text, head, utc, False, None, local,
                                           None, None, None, None, ""))  # fmt: skip
                else:
                    yield chat.weighed(head, local, utc, "\n".join([body, *more]))
                    more, size = [], 0
            head, local, body = found, iso + rest_local, rest
            utc = hours[hour] + rest_utc if hours else times.utc(local)
    if head or more:
        yield chat.weighed(head, local, utc, "\n".join([body, *more]))


class _Chat:
    """What the fast loop does not decide: headers of another form, and messages that are none."""

    def __init__(self, name: str, ios: bool, header: re.Pattern[str], times: _Times) -> None:
        self.name, self._ios, self._header, self._times = name, ios, header, times
        self.names: dict[str, str] = {}  # as they stand in the file: as they are

    def header(self, line: str) -> tuple[str, _Day, _Clock, str] | None:
        """(raw time, day, clock, the rest of the line) where a line begins a message."""
        found = self._header.match(f"\n{line}") if line else None
        when = None if found is None else self._times.of(found[1], found[2])
        if found is None or when is None:  # or what looks like one and names no date
            return None
        return line[found.start(1) - 1 : found.end(2) - 1], *when, line[found.end() - 1 :]

    def weighed(self, raw: str, local: str, utc: str, body: str) -> Utterance | LeftOut | BadItem:
        if not raw:
            return BadItem("beginning", f"text in front of the first message: {body.strip()[:80]!r}")
        name, colon, text = body.partition(": ")
        if name not in self.names:
            if not colon or "\n" in name or '"' in name or "“" in name or "«" in name or len(name) > 100:
                empty = name.endswith(":") and "\n" not in name
                return LeftOut("an empty message, or one that could be seen once" if empty else "a notice of WhatsApp",
                               "", body[:300], raw, utc, False)  # fmt: skip
            self.names[name] = name.strip(_STRIPPED).removeprefix("~").strip(_STRIPPED)
        why, text = _weighed(text, self._ios)
        if why is None:
            return Utterance(SOURCE, self.name, self.names[name], text, raw, utc, False, None, local)
        return LeftOut(why, self.names[name], text[:300], raw, utc, False)


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
        if not rest:
            return "media", text
        if len(inner) < 50 and any(word in inner for word in words.EDITED):
            text = rest
        elif any(word in inner for word in words.ENCLOSED):
            return None, rest  # a caption, and what was attached to it
    lowered = text.casefold()
    if lowered in words.MEDIA or lowered in words.CALLS or lowered in words.DELETED:
        return _why_marked(text), text
    head, _, caption = text.partition("\n")
    head = head.strip(_STRIPPED)
    attached = head.casefold().endswith(words.ATTACHED) or ("-WA" in head and _FILE_NAME.match(head))
    if (last == ")" or caption) and attached:
        caption = caption.strip(_STRIPPED + "\n")
        return (None, caption) if caption else ("media", text)
    if lowered.startswith(words.PLACES):
        return "a place on the map", text
    if lowered.startswith(("poll:\n", "umfrage:\n", "encuesta:\n")):
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
