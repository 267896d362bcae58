"""iMessage's chats as imessage-exporter writes them with the format txt.

A line of time, a line with the sender ("Me" is the owner), then the text until a blank line in front of the next
time. Left out, each with its reason: announcements, reactions (tapbacks), attachments alone, unsent messages.
Replies are repeated, indented, under what they answer: those are passed over, since each comes in its own place too.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import BinaryIO

from daemon.readers.dates import local_to_utc
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Utterance

ABOUT = """\
**iMessage.** `chat.db` itself is not read: run `imessage-exporter -f txt` on the Mac and drop its folder, one text a
chat. "Me" is you. Left out: reactions, attachments, announcements, unsent messages, and the indented repetitions of
replies. The times have no zone.
"""

SOURCE = "imessage"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = re.compile(
    r"([A-Z][a-z]{2}) (\d{1,2}), (\d{4})[ \u202f]{1,3}(\d{1,2}):(\d\d):(\d\d)[ \u202f]?([AP]M)"
    r"(?: \((?:Read|Delivered)[^)\n]*\))?(.*)"
)
_NOISE = frozenset((
    "This message responded to an earlier message.", "Attachment missing!", "Tapbacks:", "Expressive:", "Edited",
))  # fmt: skip
_FILE = re.compile(r"(?:[/~]|attachments/|[A-Za-z]:\\)\S.*\.[A-Za-z0-9]{2,5}$")
_UNSENT = re.compile(r".{1,80} (?:unsent|deleted) (?:this|a|their) message|.{1,80} unsent this message part")
_COPY = re.compile(r"\s*\(\d+\)$")
_LONGEST = 1 << 20


def _claims(sniff: Sniff) -> bool:
    lines = sniff.text.lstrip("\ufeff").split("\n")[:40]
    times = [n for n, line in enumerate(lines) if _TIME.match(line)]
    return bool(times) and not any(line.strip() for line in lines[: times[0]])


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    stem = facts.name.rpartition(".")[0] or facts.name
    name = _COPY.sub("", stem)
    header: re.Match[str] | None = None
    lines: list[str] = []
    size = number = begun = 0
    blank = True  # a time begins a message behind a blank line, or at the beginning
    while raw := stream.readline(_LONGEST):
        number += 1
        line = raw.decode("utf-8", "replace").rstrip("\r\n").replace("\x00", "").lstrip("\ufeff")
        found = _TIME.match(line) if blank else None
        blank = not line.strip()
        if found is None:
            if size < _LONGEST:
                lines.append(line)
                size += len(line)
            continue
        if header is not None:
            yield from _said(header, lines, name, facts, begun)
        header, lines, size, begun = found, [], 0, number
    if header is not None:
        yield from _said(header, lines, name, facts, begun)


def _said(header: re.Match[str], lines: list[str], name: str, facts: FileFacts, number: int) -> Iterator[Heard]:
    where, raw = f"line {number}", header[0][: header.start(8) - header.start()].strip()
    try:
        hour = int(header[4]) % 12 + (12 if header[7] == "PM" else 0)
        month = _MONTHS.index(header[1].lower()) + 1
        moment = datetime(int(header[3]), month, int(header[2]), hour, int(header[5]), int(header[6]))  # noqa: DTZ001
    except ValueError:
        yield BadItem(where, "its date is none")
        return
    raw = raw.partition(" (")[0]
    time = local_to_utc(moment, facts.locale.zone)
    if header[8].strip():  # an announcement stands on the line of its time
        yield LeftOut("an announcement", "", header[8].strip()[:300], raw, time, False, where)
        return
    speaker = lines[0].strip() if lines else ""
    if not speaker or lines[0].startswith(" "):
        yield LeftOut("it names no sender", "", "\n".join(lines)[:300], raw, time, False, where)
        return
    kept: list[str] = []
    for line in lines[1:]:
        if line.strip() in ("Tapbacks:", "Replies:"):
            break
        if not line.startswith("    ") and line.strip() not in _NOISE:
            kept.append(line)
    files = [line for line in kept if _FILE.match(line.strip())]
    text = "\n".join(line for line in kept if line not in files).strip()
    if _UNSENT.fullmatch(text):
        yield LeftOut("an unsent message", speaker, text, raw, time, False, where)
    elif text:
        yield Utterance(SOURCE, name, speaker, text, raw, time, False, None, moment.isoformat(), owner=speaker == "Me")
    else:
        reason = "an attachment alone" if files or len(lines) > 1 else "it has no text"
        yield LeftOut(reason, speaker, "\n".join(lines[1:])[:300], raw, time, False, where)


READER = StreamReader(SOURCE, _claims, _read)
