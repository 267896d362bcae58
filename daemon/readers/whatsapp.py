"""WhatsApp's exported chats (`.txt`, or `_chat.txt` in a zip), from Android and iOS, in the forms of all regions.

The format is documented nowhere; its forms were collected from published exports and from parsers that people
keep. A header is a date and a time in brackets (iOS) or before a dash (Android); everything up to the next header
is its message. The order of day and month is decided over the whole file: by a number above 12, else by the
order in which times go forward. Left out, each with its reason: notices, media alone, deleted messages, calls.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import Any, BinaryIO, NamedTuple

from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.readers.whatsapp_bodies import EMPTY, NOTICE, conversation, is_export, is_log, is_notice, weighed
from daemon.readers.whatsapp_dates import (
    FORMS,
    MARKS,
    STRIPPED,
    Numbers,
    Order,
    Times,
    decided,
    numbers,
)
from daemon.readers.whatsapp_plain import PLACE_HOLDERS, SAID, is_name, sort_out
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
_BLOCK = 1 << 16  # bytes
_HEAD = 1 << 16  # bytes
_OTHERS = (".md", ".markdown", ".log", ".csv", ".tsv", ".tab", ".json", ".jsonl")
_RUNS = 30  # days that are looked at before the order of day and month counts as decided
_PARTS = re.compile(r"\d+|[^\W\d_]+|.", re.DOTALL)
_SAME_DAY = r"(?:[^\n]*+\n\[?\1(?=[,،\s]))*+"  # lines behind a header that begin with its day too
_HEADS = frozenset(MARKS + "[ ")  # beside a number, what a header can begin with


class Found(NamedTuple):
    """How dates are written in one file."""

    form: str  # of `FORMS`
    usual: re.Pattern[bytes]  # a line end and a header like the first one, with day and clock as groups
    before: str  # in front of the day, between day and clock, behind the clock: as in the first header
    between: str
    after: str
    order: Order
    ambiguous: bool


# ---- what kind of file ----------------------------------------------------------------------------


def _claims(sniff: Sniff) -> bool:
    name = sniff.name.casefold()
    if name.endswith(_OTHERS):
        return False
    text = "\n" + sniff.text[:20_000]
    for form, pattern in FORMS.items():
        parts = pattern.split(text)
        if len(parts) < 4 or parts[0].strip(STRIPPED + "\n") or (form == "ios" and _is_signal(parts)):
            continue
        names = [body.partition(": ")[0] for body in parts[3::3] if ": " in body.split("\n", 1)[0]]
        if names and not is_export(name):
            # A log has levels for names, a diary another word each time.
            if sum(map(is_log, names)) * 2 < len(names) and (len(names) < 4 or len(set(names)) < len(names)):
                return True
        elif names or is_export(name) or "whatsapp" in name:
            return True  # without names: notices alone, an empty chat
    return is_export(name) and sum(map(str.isdigit, text[:200])) > 5


def _is_signal(parts: list[str]) -> bool:
    """signal-export writes `[2019-05-29, 15:04] Me: text`: an ISO date and no seconds, which WhatsApp never does."""
    return all(day[:4].isdigit() and clock.count(":") == 1 for day, clock in zip(parts[1::3], parts[2::3], strict=True))


# ---- the order of day and month -------------------------------------------------------------------


def _borders(stream: BinaryIO) -> tuple[str, re.Pattern[bytes], str, str, str]:
    """(its form, its usual header, what stands around day and clock). An export is written at once, on
    one phone: what stands in its first header stands in nearly all, and the others are looked at more closely."""
    block = "\n" + stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    form = max(FORMS, key=lambda name: len(FORMS[name].findall(block)))
    found = FORMS[form].search(block)
    if found is None:
        raise Refused("it is named as a chat of WhatsApp, and no line of it begins with a date and a time in a form "
                      "that is known: export the chat again with a newer WhatsApp")  # fmt: skip
    (start, end), (day, day_end), (clock, clock_end) = found.span(), found.span(1), found.span(2)
    around = block[start + 1 : day].lstrip(MARKS), block[day_end:clock], block[clock_end:end]
    return form, _usual(found[1], found[2], *around), *around


def _usual(day: str, clock: str, before: str, between: str, after: str) -> re.Pattern[bytes]:
    """Of all headers that differ from this one in their numbers and letters alone; with the name and text behind."""

    def alike(text: str) -> bytes:
        return b"".join(_class_of(part) for part in _PARTS.findall(text))

    first, second, third = (re.escape(part.encode()) for part in (before, between, after))
    mark = b"(?:\xe2\x80\x8e)?" if before == "[" else b""  # iOS has it in front of media
    header = b"\n%b%b(%b)%b(%b)%b" % (mark, first, alike(day), second, alike(clock), third)
    return re.compile(header + SAID)


def _class_of(part: str) -> bytes:
    if part[0].isdecimal():
        return rb"[0-9]{1,4}" if part.isascii() else rb"(?:\d|\xd9[\xa0-\xa9]|\xdb[\xb0-\xb9]){1,4}"
    if part[0].isalpha():
        return rb"[A-Za-z]{1,9}" if part.isascii() else rb"[A-Za-z\x80-\xff]{1,30}"
    return re.escape(part.encode())


def _learnt(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Found:
    """One pass, that ends once the order is plain."""
    start = stream.tell()
    form, usual, before, between, after = _borders(stream)
    header = re.compile(FORMS[form].pattern + _SAME_DAY)
    stream.seek(start)
    days: list[Numbers] = []
    last = ""
    for block in _blocks(stream, limits):
        for day, _ in header.findall((b"\n" + block).decode("utf-8", "replace")):
            if day != last:
                last = day
                found = numbers(day)
                if found is not None:
                    days.append(found)
        if len(days) > _RUNS and any(max(one[0], one[1]) > 12 for one in days):
            break
    stream.seek(start)
    order, ambiguous = decided(days, facts.locale.day_first, dotted="." in last.rstrip("."))
    return Found(form, usual, before, between, after, order, ambiguous)


# ---- messages -------------------------------------------------------------------------------------


def _blocks(stream: BinaryIO, limits: Limits) -> Iterator[bytes]:
    """Pieces of whole lines, without the line end behind the last one; line ends are \\n."""
    rest = b""
    while data := stream.read(_BLOCK):
        data = rest + data
        cut = data.rfind(b"\n")
        if cut < 0 and len(data) < limits.max_line_bytes:
            rest = data
            continue
        cut = len(data) if cut < 0 else cut
        text, rest = data[:cut], data[cut + 1 :]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
        yield text.replace(b"\x00", b"") if b"\x00" in text else text
    if rest:
        yield rest.replace(b"\r", b"").replace(b"\x00", b"")


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    learnt = _learnt(stream, facts, limits)
    if learnt.ambiguous:
        taken = "month" if facts.locale.day_first is False else "day"
        yield LeftOut("whether the day or the month comes first cannot be told from this file: "
                      f"the {taken} was taken; [profiles.<name>] day_first decides")  # fmt: skip
    times = Times(learnt.order, facts.locale.zone or UTC, learnt.between)
    chat = _Chat(conversation(facts), learnt.form, times)
    front = learnt.before, learnt.between, learnt.after  # of a header, to put one together again
    name_chat, known, make = chat.name, chat.spoken.get, tuple.__new__
    held = b""  # the last message of a block, that may go on in the next one
    blocks = _blocks(stream, limits)
    block = next(blocks, None)
    while block is not None:
        whole = b"".join((b"\n", held, b"\n", block)) if held else b"\n" + block
        parts = learnt.usual.split(whole)
        block = next(blocks, None)
        held = b""
        days, clocks = times.of_all(parts[1::5], parts[2::5])
        if not (all(days) and all(clocks)):
            parts = _merged(parts, days, clocks, front)
            days, clocks = times.of_all(parts[1::5], parts[2::5])
        if len(parts) > 1 and block is not None and _behind_first_line(parts[-1]) < limits.max_line_bytes:
            held = _joined(front, *parts[-5:])
            del parts[-5:], days[-1], clocks[-1]
        if parts[0].strip(b"\n"):
            yield from chat.unusual("", "", "", parts[0][1:].decode("utf-8", "replace"))
        names, texts, rests = parts[3::5], parts[4::5], parts[5::5]
        sort_out(whole, names, texts, rests, chat.spoken, learnt.form != "android")
        # The speed of this loop is that of the reader. Only what is plain has a name here.
        for (said, iso, hours), (at, hour, rest_local, rest_utc), name, text, rest in zip(
            days, clocks, names, texts, rests, strict=True
        ):
            local = iso + rest_local
            utc = hours[hour] + rest_utc if hours else times.utc(local)
            who = known(name)
            if who is None:
                yield from chat.odd(said + at, local, utc, rest if name is None else name + b": " + text)
                continue
            try:
                body = text.decode()
            except UnicodeDecodeError:
                body = text.decode("utf-8", "replace")
            yield make(Utterance, (SOURCE, name_chat, who, body, said + at, utc, False, None, local,
                                   None, None, None, None, ""))  # fmt: skip
    if times.unknown:
        shown = ", ".join(sorted(map(repr, times.unknown))[:3])
        yield LeftOut(f"hours were taken as of a clock of 24: it is not known what {shown} beside them means")


def _behind_first_line(rest: bytes) -> int:
    first = rest.find(b"\n")
    return 0 if first < 0 else len(rest) - first


def _joined(
    front: tuple[str, str, str], day: bytes, clock: bytes, name: bytes | None, text: bytes | None, rest: bytes
) -> bytes:
    before, between, after = (part.encode() for part in front)
    said = rest if name is None or text is None else name + b": " + text + rest
    return before + day + between + clock + after + said


def _merged(parts: list[Any], days: list[Any], clocks: list[Any], front: tuple[str, str, str]) -> list[Any]:
    """What looks like a header and names no date is a line of the message before it."""
    merged = parts[:1]
    columns = (parts[place::5] for place in range(1, 6))
    for known_day, known_clock, *message in zip(days, clocks, *columns, strict=True):
        if known_day and known_clock:
            merged += message
        else:
            merged[-1] += b"\n" + _joined(front, *message)
    return merged


class _Chat:
    """What the fast loop does not decide: headers of another form, and messages that are none."""

    def __init__(self, name: str, form: str, times: Times) -> None:
        self.name, self._ios, self._header, self._times = name, form != "android", FORMS[form], times
        self.names: dict[str, str] = {}  # as they stand in the file: as they are
        self.spoken: dict[bytes | None, str] = {}  # the same, of those that `SAID` can find

    def odd(self, raw: str, local: str, utc: str, said: bytes) -> Iterable[Heard]:
        """A message that is not plain, or whose name no message before it had."""
        name, _, text = said.partition(b": ")
        if text in PLACE_HOLDERS and (who := self.spoken.get(name)) is not None:
            return (LeftOut("media", who, text.decode(), raw, utc, False),)
        return self.unusual(raw, local, utc, said.decode("utf-8", "replace"))

    def unusual(self, raw: str, local: str, utc: str, text: str) -> Iterator[Heard]:
        """A message with all its lines, and those whose headers in it are of another form than the file's first."""
        if "\n" in text:
            lines = text.split("\n")
            begun = 0
            for number, line in enumerate(lines):
                if number + (not raw) and line and (line[0].isdigit() or line[0] in _HEADS):
                    header = self._beginning(line)
                    if header is not None:
                        if raw or number:
                            yield self.weighed(raw, local, utc, "\n".join(lines[begun:number]))
                        raw, local, utc, lines[number] = header
                        begun = number
            text = "\n".join(lines[begun:])
        elif not raw and (header := self._beginning(text)):
            raw, local, utc, text = header
        yield self.weighed(raw, local, utc, text)

    def _beginning(self, line: str) -> tuple[str, str, str, str] | None:
        """(raw time, local, UTC, the rest of the line) where a line begins a message."""
        found = self._header.match(f"\n{line}")
        when = None if found is None else self._times.of(found[1], found[2])
        if found is None or when is None:  # or what looks like one and names no date
            return None
        (_, iso, hours), (_, hour, rest_local, rest_utc) = when
        local = iso + rest_local
        utc = hours[hour] + rest_utc if hours else self._times.utc(local)
        return line[found.start(1) - 1 : found.end(2) - 1], local, utc, line[found.end() - 1 :]

    def weighed(self, raw: str, local: str, utc: str, body: str) -> Utterance | LeftOut | BadItem:
        if not raw:
            return BadItem("beginning", f"text in front of the first message: {body.strip()[:80]!r}")
        name, colon, text = body.partition(": ")
        if "\n" in name and name.partition("\n")[0][-1:] == ":":  # whose space behind the colon was cut
            name, colon, text = body.partition(":\n")
        if name not in self.names:
            if not colon or is_notice(name):
                empty = name.endswith(":") and "\n" not in name
                return LeftOut(EMPTY if empty else NOTICE, "", body[:300], raw, utc, False)
            self.names[name] = name.strip(STRIPPED).removeprefix("~").strip(STRIPPED)
            if is_name(written := name.encode()):
                self.spoken[written] = self.names[name]
        why, text = weighed(text, self._ios)
        if why is None:
            return Utterance(SOURCE, self.name, self.names[name], text, raw, utc, False, None, local)
        return LeftOut(why, self.names[name], text[:300], raw, utc, False)


READER = StreamReader(SOURCE, _claims, _read)
