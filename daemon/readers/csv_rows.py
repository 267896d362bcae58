"""A table of memories: CSV or TSV with a header, from a spreadsheet, a diary program or a chat tool.

Read with Python's csv module (RFC 4180, and what programs make of it): the delimiter is found among , ; tab |
by the header, quoted fields may hold line ends, a mark at the beginning is passed over. A header must name at
least one column that is known here; what a row is then follows from the columns, see `ABOUT`. One row is in
memory at a time.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

from daemon.readers.dates import local_to_utc, zoned_time
from daemon.readers.shape import (
    LONGEST_FIELD,
    LONGEST_TYPE,
    FileFacts,
    Limits,
    Sniff,
    StreamReader,
    kind_of,
    tags_of,
)
from daemon.readers.turns import role_of
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused, Utterance

ABOUT = """\
**CSV, TSV.** A table whose first line names its columns, in any order and case, divided by comma, semicolon, tab or
`|`. With a `prompt` (or question, user) and a `response` (or reply, answer, assistant) each row is a pair; with a
`text` (or content, message, body, note, entry, journal), a `speaker` (or author, sender, from, role) and a `date`
(or time, timestamp, created, created_at) each row is a message of one chat, which is named as the file, or of the
chat that its `conversation` (or chat, thread, channel) names; else each row with a `text` is an observation, or what
its `type` (or kind) says. `title` and `tags` are kept. Columns of other names are not read. Dates such as 3/4/2024
are read as the other dates of the file show, else as `day_first` of the profile says. A row with more or fewer fields
than the header is named and passed over.

```
date,text,tags
2024-01-15,"Rode to the lake.","summer, lake"
```
"""

SUFFIXES = (".csv", ".tsv", ".tab")
DELIMITERS = (",", ";", "\t", "|")
MOST_HELD = 50_000  # messages that are put in order; of a longer table the rest comes as it stands

_COLUMNS = {
    "text": ("text", "content", "message", "body", "note", "entry", "journal", "message_text", "entry text"),
    "date": ("date", "time", "timestamp", "datetime", "created", "created_at", "created at", "creation date",
             "createdat", "date_created", "created_time"),
    "type": ("type", "kind"),
    "response": ("response", "reply", "answer", "assistant", "completion"),
    "prompt": ("prompt", "question", "user", "instruction"),
    "speaker": ("speaker", "author", "sender", "from", "role", "username"),
    "conversation": ("conversation", "conversation_id", "chat", "chat_id", "thread", "thread_id", "channel"),
    "title": ("title", "subject"),
    "tags": ("tags", "tag", "labels"),
}  # fmt: skip
_MEANING = {name: meaning for meaning, names in _COLUMNS.items() for name in names}
_TEXTS = ("text", "content", "message", "body", "note", "entry", "journal", "prompt and response")
_JOURNAL = ("entry", "journal", "entry text")
_SLASHED = re.compile(
    r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4}|\d\d)(?:[ ,T]+(\d{1,2}):(\d\d)(?::(\d\d))?\s*([ap]\.?m\.?)?)?",
    re.IGNORECASE,
)
_HALF_DAY = re.compile(r"(.*\d)[ ,T]+(\d{1,2}):(\d\d)(?::(\d\d))?[ \u00a0\u202f]*([ap])\.?m\.?", re.IGNORECASE)
_CLOCK = re.compile(r"(.*[a-z].*\d{4}),? (\d\d:\d\d(?::\d\d)?)", re.IGNORECASE)  # behind a month's name
_COPY = re.compile(r"\s*\(\d+\)(?=\.[^.]*$|$)")
_SEPARATOR = re.compile(r"\ufeff?sep=(.)\r?\n?")  # which Excel writes above the header


class _Table(NamedTuple):
    delimiter: str
    header: list[str]
    place: dict[str, int]  # of each meaning, the column
    day_first: bool = True


def _claims(sniff: Sniff) -> bool:
    """By its name, or by a header of which all is short, and a text and one more column are known."""
    named = sniff.name.lower().endswith(SUFFIXES)
    if sniff.head.lstrip()[:1] in (b"{", b"[", b"<") or b"\x00" in sniff.head:
        return False
    table = _table(sniff.text)
    if named:
        return True
    if table is None or len(table.place) < 2 or ("text" not in table.place and "response" not in table.place):
        return False
    if any(not name.strip() or len(name) > 40 or name.strip()[-1:] in ".!?:" for name in table.header):
        return False
    try:
        rows = _rows(sniff.text.split("\n"), table.delimiter)
        lengths = [len(row) for row, _ in zip(rows, range(6), strict=False) if row]
    except csv.Error:
        return False
    return len(lengths) > 1 and all(length == len(table.header) for length in lengths[1:-1] or lengths[1:])


def _table(text: str) -> _Table | None:
    """What the header says, by the delimiter with which most of its columns are known."""
    best: _Table | None = None
    start = _SEPARATOR.sub("", text.lstrip("\n\r"), count=1) if text.lstrip("\n\r\ufeff")[:4] == "sep=" else text
    start = start.lstrip("\n\r")
    for delimiter in DELIMITERS:
        try:
            header = next(_rows(start.split("\n"), delimiter), [])
        except csv.Error:
            continue
        place: dict[str, int] = {}
        for number, name in enumerate(header):
            meaning = _MEANING.get(name.strip().lower().replace("\ufeff", ""))
            if meaning is not None:
                place.setdefault(meaning, number)
        lone = "prompt" in place and not {"response", "speaker"} & place.keys()
        if lone and header[place["prompt"]].strip().lower() == "user":
            place["speaker"] = place.pop("prompt")  # who wrote, not what was asked
        table = _Table(delimiter, header, place)
        if best is None or (len(place), len(header)) > (len(best.place), len(best.header)):
            best = table
    return best


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader((line if line.endswith("\n") else line + "\n" for line in lines), delimiter=delimiter)


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    start = stream.tell()
    head = stream.read(1 << 16)
    stream.seek(start)
    table = _table(_decoded(head).replace("\r\n", "\n").replace("\r", "\n"))
    if table is None or not table.header:
        raise Refused("the table is empty: it has no header line with the names of its columns")
    if "text" not in table.place and not {"prompt", "response"} <= table.place.keys():
        has = ", ".join(repr(name.strip()[:30]) for name in table.header[:8])
        more = f" and {len(table.header) - 8} more" if len(table.header) > 8 else ""
        raise Refused(f"no column of the table is known as its text: it has {has}{more}; name one {', '.join(_TEXTS)}")
    if "date" in table.place:
        table = table._replace(day_first=_day_first(_lines(stream, limits), table, facts))
        stream.seek(start)
    yield from _ordered(_items(_lines(stream, limits), table, facts))


def _ordered(items: Iterator[Heard]) -> Iterator[Heard]:
    """Messages oldest first: many tables begin with the newest. Memories need no order."""
    held: list[Utterance] = []
    for one in items:
        if isinstance(one, Utterance) and len(held) < MOST_HELD:
            held.append(one)
        else:
            if len(held) >= MOST_HELD:
                yield from _by_time(held)
                held.clear()
            yield one
    yield from _by_time(held)


def _by_time(held: list[Utterance]) -> list[Utterance]:
    if any(said.time is None for said in held):
        return held
    if len(held) > 1 and (held[0].time or "") > (held[-1].time or ""):
        held.reverse()  # rows of one minute were newest first as well
    return sorted(held, key=lambda said: said.time or "")


def _day_first(lines: Iterator[str], table: _Table, facts: FileFacts) -> bool:
    """Whether 3/4/2024 is in April: what the other dates of the file show, else what the profile says, else yes."""
    reader = csv.reader(lines, delimiter=table.delimiter)
    column = table.place["date"]
    first = True
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            continue
        raw = row[column].strip() if len(row) > column else ""
        if first or not raw:
            first = False
            continue
        found = _SLASHED.fullmatch(raw)
        if found is None:
            break  # dates of another form, which say themselves what they are
        if int(found[1]) > 12 or int(found[2]) > 12:
            return int(found[1]) > 12
    return facts.locale.day_first is not False


def _lines(stream: BinaryIO, limits: Limits) -> Iterator[str]:
    """Lines for csv, each in UTF-8 or, as spreadsheets of the West write it, in Windows-1252."""
    csv.field_size_limit(LONGEST_FIELD)
    while raw := stream.readline(limits.max_line_bytes):
        line = _decoded(raw)
        if "\x00" in line:
            line = line.replace("\x00", "")
        if "\r" in line:
            line = line.replace("\r\n", "\n")
            if "\r" in line:  # an old Mac's file is one line for readline
                yield from (part + "\n" for part in line.rstrip("\r\n").split("\r"))
                continue
        yield line


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return raw.decode("utf-8", "replace")  # cut in the middle of a character
        return raw.decode("cp1252", "replace")


def _items(lines: Iterator[str], table: _Table, facts: FileFacts) -> Iterator[Heard]:
    place, columns = table.place, len(table.header)
    reader = csv.reader(lines, delimiter=table.delimiter)
    by_role = "speaker" in place and table.header[place["speaker"]].strip().lower() == "role"
    chat = {"text", "speaker"} <= place.keys() and ("date" in place or by_role) and "response" not in place
    pairs = {"prompt", "response"} <= place.keys()
    header_seen = False
    number = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BadItem(f"line {reader.line_num}", f"the row cannot be read: {error}")
            continue
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        if not header_seen:
            header_seen = not row[0].startswith(("sep=", "\ufeffsep="))
            continue
        number += 1
        if len(row) < columns or any(row[columns:]):
            yield BadItem(f"row {number}", f"it has {len(row)} fields and the header {columns}")
            continue
        cells = {meaning: row[at].strip() for meaning, at in place.items()}
        if pairs:
            yield _pair(cells, number, table, facts)
        elif chat:
            yield _message(cells, number, by_role, table, facts)
        else:
            yield _memory(cells, number, table, facts)


def _time(cells: dict[str, str], table: _Table, facts: FileFacts) -> tuple[str | None, str | None, bool]:
    """(raw text, UTC, whether its zone is known)"""
    raw = cells.get("date", "")
    if not raw:
        return None, facts.modified, True
    found = _SLASHED.fullmatch(raw)
    if found is None:
        return raw, *zoned_time(_usual(raw), facts.locale.zone)
    day, month = (int(found[1]), int(found[2])) if table.day_first else (int(found[2]), int(found[1]))
    year, hour = int(found[3]), int(found[4] or 0)
    if found[7]:
        hour = hour % 12 + (12 if found[7][0] in "pP" else 0)
    try:
        moment = datetime(  # noqa: DTZ001 (the zone comes next)
            year + 2000 if year < 100 else year, month, day, hour, int(found[5] or 0), int(found[6] or 0)
        )
    except ValueError:
        return raw, None, False
    return raw, local_to_utc(moment, facts.locale.zone), False


def _usual(raw: str) -> str:
    """A date with a clock of twelve hours, or with the name of its month and a time, as ISO has it."""
    clock = ""
    if len(raw) > 64:
        return raw
    if found := _HALF_DAY.fullmatch(raw):
        hour = int(found[2]) % 12 + (12 if found[5] in "pP" else 0)
        raw, clock = found[1].rstrip(","), f" {hour:02}:{found[3]}:{found[4] or '00'}"
    elif found := _CLOCK.fullmatch(raw):
        raw, clock = found[1], f" {found[2]}"
    if clock and (day := zoned_time(raw, UTC)[0]) is not None:
        return day[:10] + clock
    return raw + clock


def _pair(cells: dict[str, str], number: int, table: _Table, facts: FileFacts) -> Memory | BadItem:
    asked, answer = cells["prompt"], cells["response"]
    if not asked or not answer:
        return BadItem(f"row {number}", "its prompt or its response is empty")
    raw, time, known = _time(cells, table, facts)
    return Memory(
        type="conversation", content=asked, response=answer, timestamp=raw, time=time, zone_known=known,
        tags=tags_of(cells.get("tags")), source="csv", extra=_extra(cells),
    )  # fmt: skip


def _message(
    cells: dict[str, str], number: int, by_role: bool, table: _Table, facts: FileFacts
) -> Utterance | LeftOut:
    raw, time, known = _time(cells, table, facts)
    speaker = cells["speaker"]
    if not cells["text"]:
        return LeftOut("it has no text", speaker, "", raw, time, known, f"row {number}")
    role = role_of(speaker) if by_role else None
    thread = cells.get("conversation")
    return Utterance(
        "csv", thread or _COPY.sub("", facts.name),
        speaker, cells["text"], raw, time, known, None, None if known else raw, role,
        None, None, None, f"row {number}",
    )  # fmt: skip


def _memory(cells: dict[str, str], number: int, table: _Table, facts: FileFacts) -> Memory | BadItem:
    if not cells["text"]:
        return BadItem(f"row {number}", "its text is empty")
    raw, time, known = _time(cells, table, facts)
    own_name = table.header[table.place["text"]].strip().lower()
    kind = kind_of(cells.get("type"), "journal" if own_name in _JOURNAL else "observation")
    return Memory(
        type=kind[:LONGEST_TYPE], content=cells["text"], timestamp=raw, time=time, zone_known=known,
        tags=tags_of(cells.get("tags")), source="csv", extra=_extra(cells),
    )  # fmt: skip


def _extra(cells: dict[str, str]) -> dict[str, str]:
    title = cells.get("title") or (cells.get("prompt") if "response" not in cells else None)
    return {"title": title} if title else {}


READER = StreamReader("csv", _claims, _read)
