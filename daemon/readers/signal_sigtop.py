"""Signal's chats as sigtop writes them with the format text.

`Conversation: Anna (+49 ...)`, a blank line, then each message: header lines (`From`, `Type`, `Sent`, `Received`,
`Attachment`, `Reaction`, `Edited`), a blank line and the text. The owner is "You". A quoted reply stands in front of
the text behind ">", the versions of an edited message behind "|", the latest first. Times have their zone.
"""

import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import dropwhile
from typing import BinaryIO

from daemon.readers.dates import local_to_utc
from daemon.readers.shape import FileFacts, Sniff
from daemon.records import BadItem, Heard, LeftOut, Utterance

SOURCE = "signal"
_FIELD = re.compile(r"(From|Type|Sent|Received|Attachment|Reaction|Edited): (.*)")
_VERSION = re.compile(r"\| ?Version: \d+")
_IDENTITY = re.compile(r" \(([^()]{2,60})\)$")  # a phone number, a group's or a user's id behind a name
_COPY = re.compile(r"\s*\(\d+\)$")
_LONGEST = 1 << 20  # characters of one message


def claims(sniff: Sniff) -> bool:
    lines = [line for line in sniff.text.split("\n", 12)[:12] if line.strip()]
    if len(lines) < 3 or not lines[0].startswith("Conversation: "):
        return False
    names = [found[1] for found in map(_FIELD.match, lines[1:4]) if found]
    return "Type" in names and names[0] in ("From", "Type")


def read(stream: BinaryIO, facts: FileFacts) -> Iterator[Heard]:
    chat = _COPY.sub("", facts.name.rpartition(".")[0] or facts.name)
    fields: dict[str, str] = {}
    body: list[str] = []
    size = number = begun = 0
    blank, in_header = True, False
    while raw := stream.readline(_LONGEST):
        number += 1
        line = raw.decode("utf-8", "replace").rstrip("\r\n").replace("\x00", "")
        if number == 1:
            chat = _IDENTITY.sub("", line.partition(": ")[2].strip()) or chat
            continue
        found = _FIELD.fullmatch(line)
        if found and blank and found[1] in ("From", "Type") and _goes_on(stream, found[1]):
            if fields:
                yield _said(fields, body, chat, facts, begun)
            fields, body, size, begun, in_header = {found[1]: found[2]}, [], 0, number, True
        elif found and in_header:
            fields.setdefault(found[1], found[2])
        else:
            in_header = False
            if size < _LONGEST:
                body.append(line)
                size += len(line)
        blank = not line.strip()
    if fields:
        yield _said(fields, body, chat, facts, begun)


def _goes_on(stream: BinaryIO, name: str) -> bool:
    """Whether the next line is that of a header as well: a person may write "From: the train" too."""
    at = stream.tell()
    after = stream.readline(200)
    stream.seek(at)
    return after.startswith((b"Type: ",) if name == "From" else (b"Sent: ", b"Received: "))


def _said(
    fields: dict[str, str], body: list[str], chat: str, facts: FileFacts, number: int
) -> Utterance | LeftOut | BadItem:
    where, kind, owner = f"line {number}", fields.get("Type", ""), fields.get("From") == "You"
    raw = fields.get("Sent", fields.get("Received", ""))
    try:
        moment = parsedate_to_datetime(raw)
    except (ValueError, TypeError, IndexError, OverflowError):
        return BadItem(where, "its date is none")
    time = local_to_utc(moment, facts.locale.zone)
    named = fields.get("From", "")
    speaker = "Me" if owner else _IDENTITY.sub("", named)
    identity = None if owner or not (found := _IDENTITY.search(named)) else found[1]
    text = _text(body)
    if kind not in ("incoming", "outgoing"):
        return LeftOut(f"a notice of the kind {kind[:40] or 'unknown'}", "", text[:300], raw, time, True, where)
    if not text:
        reason = "a picture, a sticker or a file alone" if "Attachment" in fields else "it has no text"
        return LeftOut(reason, speaker, "", raw, time, True, where)
    return Utterance(SOURCE, chat, speaker, text, raw, time, True, None, None, None, identity, owner, None, where)


def _text(lines: list[str]) -> str:
    """The text without the quote that it answers; of several versions the first, which is the latest."""
    if any(map(_VERSION.fullmatch, lines)):
        begun = next(number for number, line in enumerate(lines) if _VERSION.fullmatch(line)) + 1
        end = next((n for n in range(begun, len(lines)) if _VERSION.fullmatch(lines[n])), len(lines))
        lines = [line.removeprefix("|").removeprefix(" ") for line in lines[begun:end]]
        while lines and _FIELD.fullmatch(lines[0]):
            lines = lines[1:]
    text = "\n".join(lines).strip()
    if text.startswith("> From: "):
        text = "\n".join(dropwhile(lambda line: line.startswith(">"), text.split("\n"))).strip()
    return text
