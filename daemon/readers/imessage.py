"""iMessage's chats as imessage-exporter writes them with the format txt.

A line of time, a line with the sender ("Me" is the owner, unless the exporter was told another name), then the text
until a blank line in front of the next time. Of an edited message all versions are there, of which the last one
counts. Left out, each with its reason: announcements, reactions (tapbacks), attachments alone, unsent and deleted
messages. Replies are repeated, indented, under what they answer: those are passed over, since each comes in its own
place too; older exporters indent the first line of such a repetition alone, so what follows one belongs to nobody.
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
chat. "Me" is you. Left out: reactions, attachments, announcements, unsent and deleted messages, and the indented
repetitions of replies; of an edited message the last version is read. The times have no zone.
"""

SOURCE = "imessage"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = re.compile(
    r"([A-Z][a-z]{2}) (\d{1,2}), (\d{4})[ \u202f]{1,3}(\d{1,2}):(\d\d):(\d\d)[ \u202f]?([AP]M)"
    r"( \((?:Read|Delivered) .*\))?(.*)"
)
_ANNOUNCED = re.compile(
    r"(?: .*)? (?:named|renamed|added|removed|left|changed|joined|started|stopped|kept|declined|unsent|turned|set)\b.*"
)
_NOISE = re.compile(
    r"This message responded to an earlier message\.|Attachment missing!"
    r"|Unable to format (?:announcement!|app message: .*)"
    r"|Sent with (?:Confetti|Echo|Fireworks|Balloons|Heart|Lasers|Shooting Start?|Sparkles|Spotlight|Slam|Loud|Gentle"
    r"|Invisible Ink)"
)
_TAPBACKS = ("Tapbacks:", "Reactions:")
_TAPBACK = re.compile(r"\s*(?:\S{1,20} by \S.*|(?:.{1,40} )?[Ss]ticker from \S.*)")
_FILE = re.compile(
    r"(?:[/~]|[A-Za-z]:\\).*(?:[Aa]ttachments|Backup)[/\\].*|attachments[/\\].*|[/~]\S.*\.[A-Za-z0-9]{2,5}"
    r"|[^\s/]+\.(?:heic|jpe?g|png|gif|mov|mp4|m4a|caf|amr|pdf|vcf|webp|tiff?|pluginPayloadAttachment)",
    re.IGNORECASE,
)
_UNSENT = re.compile(
    r".{1,80} (?:unsent|deleted) (?:this|a|their) message(?: part)?(?: .{1,80} after sending)?[!.]?"
)
_DELETED = "This message was deleted from the conversation!"
_EDITED = re.compile(r"^Edited [^\n]{2,80}? later: ", re.MULTILINE)
_NO_WORDS = ("SharePlay Message\nEnded", "Started sharing location!", "Stopped sharing location!")
_COPY = re.compile(r"\s*\(\d+\)$")
_LONGEST = 1 << 20


def _claims(sniff: Sniff) -> bool:
    lines = sniff.text.lstrip("\ufeff").split("\n")[:200]
    found = [(number, match) for number, match in enumerate(map(_TIME.match, lines)) if match]
    if not found or any(line.strip() and not _NOISE.fullmatch(line) for line in lines[: found[0][0]]):
        return False
    if any(not match[9].strip() and "".join(lines[number + 1 : number + 2]).strip() for number, match in found):
        return True
    return all(_ANNOUNCED.fullmatch(match[9]) for _, match in found)


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    start = stream.tell()
    owner = _owner(stream)
    stream.seek(start)
    stem = facts.name.rpartition(".")[0] or facts.name
    name = _COPY.sub("", stem)
    header: re.Match[str] | None = None
    lines: list[str] = []
    size = number = begun = 0
    for number, found, line in _lines(stream):
        if found is None:
            if size < _LONGEST:
                lines.append(line)
                size += len(line)
            continue
        if header is not None:
            yield from _said(header, lines, owner, name, facts, begun)
        header, lines, size, begun = found, [], 0, number
    if header is not None:
        yield from _said(header, lines, owner, name, facts, begun)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, re.Match[str] | None, str]]:
    """(number, the time where the line begins a message, line). A time begins one behind a blank line, or first."""
    blank = True
    number = 0
    while raw := stream.readline(_LONGEST):
        number += 1
        line = raw.decode("utf-8", "replace").rstrip("\r\n").replace("\x00", "").lstrip("\ufeff")
        yield number, (_TIME.match(line) if blank else None), line
        blank = not line.strip() or _NOISE.fullmatch(line) is not None


def _owner(stream: BinaryIO) -> str:
    """The owner's name: "Me", or the one that the exporter was told, which shows where others have read a message."""
    read_by_others, asked, told = False, False, ""
    for _, found, line in _lines(stream):
        if found is not None:
            asked, read_by_others = True, " (Read by them" in line
        elif asked:
            asked = False
            if line.strip() == "Me":
                return "Me"
            if read_by_others and not told:
                told = line.strip()
    return told or "Me"


def _said(
    header: re.Match[str], lines: list[str], owner: str, name: str, facts: FileFacts, number: int
) -> Iterator[Heard]:
    where, raw = f"line {number}", header[0][: header.end(7) - header.start()]
    try:
        hour = int(header[4]) % 12 + (12 if header[7] == "PM" else 0)
        month = _MONTHS.index(header[1].lower()) + 1
        moment = datetime(int(header[3]), month, int(header[2]), hour, int(header[5]), int(header[6]))  # noqa: DTZ001
    except ValueError:
        yield BadItem(where, "its date is none")
        return
    time = local_to_utc(moment, facts.locale.zone)
    if header[9].strip():  # an announcement stands on the line of its time
        yield LeftOut("an announcement", "", header[9].strip()[:300], raw, time, False, where)
        return
    speaker = lines[0].strip() if lines else ""
    if not speaker or lines[0].startswith(" "):
        yield LeftOut("it names no sender", "", "\n".join(lines)[:300], raw, time, False, where)
        return
    own, behind = _own_lines(lines[1:])
    text, files = _text(own)
    shown = "\n".join(lines[1:])[:300]
    if own and own[0] == _DELETED:
        yield LeftOut("a deleted message", speaker, "", raw, time, False, where)
    elif _UNSENT.fullmatch(text):
        yield LeftOut("an unsent message", speaker, text, raw, time, False, where)
    elif text in _NO_WORDS:
        yield LeftOut("a notice", speaker, text, raw, time, False, where)
    elif text:
        yield Utterance(SOURCE, name, speaker, text, raw, time, False, None, moment.isoformat(), owner=speaker == owner)
    else:
        reason = "an attachment alone" if files or shown.strip() else "it has no text"
        yield LeftOut(reason, speaker, shown, raw, time, False, where)
    if behind:
        yield LeftOut("behind the repetition of a reply, so that nobody can tell who said it", "",
                      "\n".join(behind)[:300], raw, time, False, where)  # fmt: skip


def _own_lines(lines: list[str]) -> tuple[list[str], list[str]]:
    """(the lines of a message, those behind the first repetition of a reply), without reactions."""
    own: list[str] = []
    reactions = False
    for number, line in enumerate(lines):
        if reactions and _TAPBACK.fullmatch(line):
            continue
        bare = line.strip()
        reactions = bare in _TAPBACKS and _TAPBACK.fullmatch("".join(lines[number + 1 : number + 2])) is not None
        if reactions or _NOISE.fullmatch(bare):
            continue
        if line.startswith("    ") and _TIME.match(bare):
            rest = (one for one in lines[number:] if one.strip() and not one.startswith("    "))
            return own, [one for one in rest if not _NOISE.fullmatch(one.strip())]
        if bare != "Replies:":
            own.append(line)
    return own, []


def _text(lines: list[str]) -> tuple[str, bool]:
    """(what was written, or spoken where it was put into words; whether there are files)"""
    kept: list[str] = []
    files = False
    for line in lines:
        if len(line) < 2000 and _FILE.fullmatch(line.strip()):
            files = True
        else:
            kept.append(line.removeprefix("Transcription: ") if files else line)
    text = "\n".join(kept).replace("\ufffc", "").strip()
    first = _TIME.match(text)
    if first and first[9].strip():
        versions = _EDITED.split(text[first.start(9) :])
        text = versions[-1].strip()
    return text, files


READER = StreamReader(SOURCE, _claims, _read)
