"""Signal's chats as signal-export writes them (`chat.md`), and as sigtop does (text, and JSON of its database's rows).

A line `[2019-05-29, 15:04] Me: text` begins a message; what follows until the next belongs to it. signal-export
calls the owner "Me". Left out, each with its reason: pictures and files alone, reactions, quoted replies, calls.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, BinaryIO

from daemon.readers import signal_sigtop
from daemon.readers.ai_chats import conversations, name_of, text_of
from daemon.readers.dates import as_utc, local_to_utc
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.readers.whatsapp_bodies import is_log
from daemon.records import BadItem, Heard, LeftOut, Utterance

ABOUT = """\
**Signal.** Export with signal-export and drop the folder, or one `chat.md`: the name of its folder is that of the chat.
The texts and the JSON (rows with `sent_at`, `type`, `body`, `conversationId`) of sigtop are read too. All of them say
which messages are yours. Pictures, files, reactions, quoted replies, calls and deleted messages are left out. The times
of `chat.md` have no zone.
"""

SOURCE = "signal"
_LINE = re.compile(r"\[(\d{4})-(\d\d)-(\d\d),? (\d\d):(\d\d)(:\d\d)?\] ([^:\n]{1,100}): ?(.*)")
_FOLDERS = r"(?:\./|\.\./)?(?:media|exported_stickers|stickers)/"
_MEDIA = re.compile(
    rf"!\[[^\[\]\n]{{0,200}}\]\((?!https?:)(?:[^()\n]|\([^()\n]{{0,50}}\)){{0,500}}\)"
    rf"|\[[^\[\]\n]{{0,200}}\]\({_FOLDERS}(?:[^()\n]|\([^()\n]{{0,50}}\)){{1,500}}\)"
)
_CALL = re.compile(r"(?:Incoming|Outgoing|Missed)(?: \w{1,10})? call(?: \([^()\n]{1,80}\))?")
_COPY = re.compile(r"\s*\(\d+\)$")
_LONGEST = 1 << 20  # characters of one message


def _claims(sniff: Sniff) -> bool:
    if {"conversationId", "sent_at"} <= {key.removeprefix("item.") for key in sniff.keys}:
        return True
    if signal_sigtop.claims(sniff):
        return True
    lines = [line.strip("\ufeff") for line in sniff.text.split("\n")[:60] if line.strip()]
    found = [match for match in map(_LINE.match, lines) if match]
    if not found or _LINE.match(lines[0]) is None:
        return False
    if sniff.name.lower().endswith(".md") or any(match[7] == "Me" for match in found):
        return True
    return all(match[6] is None for match in found) and not all(is_log(match[7]) for match in found)


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    first = stream.read(1)
    stream.seek(-1, 1)
    if first == b"{" or (first == b"[" and b'"conversationId"' in _peek(stream)):
        yield from _rows(stream)
    elif first in (b"C", b"F", b"T"):
        yield from signal_sigtop.read(stream, facts)
    else:
        yield from _chat(stream, facts)


def _peek(stream: BinaryIO) -> bytes:
    at = stream.tell()
    head = stream.read(1 << 16)
    stream.seek(at)
    return head


# ---- chat.md --------------------------------------------------------------------------------------


def conversation(facts: FileFacts) -> str:
    """The folder of a chat, else the name of its file."""
    parts = facts.path.split("/")
    stem = facts.name.rpartition(".")[0] or facts.name
    if stem.casefold() in ("chat", "index", "data") and len(parts) > 1:
        return parts[-2]
    return _COPY.sub("", stem)


def _chat(stream: BinaryIO, facts: FileFacts) -> Iterator[Heard]:
    name = conversation(facts)
    found: re.Match[str] | None = None
    lines: list[str] = []
    size = number = begun = 0
    while raw := stream.readline(_LONGEST):
        number += 1
        line = raw.decode("utf-8", "replace").rstrip("\r\n").replace("\x00", "").lstrip("\ufeff")
        header = _LINE.match(line)
        if header is None:
            if size < _LONGEST:
                lines.append(line)
                size += len(line)
            continue
        if found is not None:
            yield _said(found, lines, name, facts, begun)
        elif any(map(str.strip, lines)):
            yield BadItem("beginning", "text in front of the first message")
        found, lines, size, begun = header, [header[8]], 0, number
    if found is not None:
        yield _said(found, lines, name, facts, begun)


def _said(
    found: re.Match[str], lines: list[str], name: str, facts: FileFacts, number: int
) -> Utterance | LeftOut | BadItem:
    raw = found[0][1 : found[0].index("]")]
    try:
        second = int((found[6] or ":0")[1:])
        moment = datetime(int(found[1]), int(found[2]), int(found[3]), int(found[4]), int(found[5]), second)  # noqa: DTZ001
    except ValueError:
        return BadItem(f"line {number}", "its date is none")
    time = local_to_utc(moment, facts.locale.zone)
    kept = _without_quote(lines)
    text = _without_reactions(_MEDIA.sub("", "\n".join(kept)).strip())
    text = "\n".join(line.removesuffix("  ") for line in text.split("\n"))  # which Markdown breaks lines with
    speaker, where = found[7].strip(), f"line {number}"
    why = _why_left_out(text, any(map(str.strip, kept)))
    if why:
        return LeftOut(why, speaker, "\n".join(lines)[:300], raw, time, False, where)
    return Utterance(SOURCE, name, speaker, text, raw, time, False, None, moment.isoformat(), owner=speaker == "Me")


def _without_quote(lines: list[str]) -> list[str]:
    """The lines behind the quote that a reply begins with; a later ">" is the person's own."""
    number = 0
    while number < len(lines) and not lines[number].strip():
        number += 1
    if number == len(lines) or not lines[number].startswith(">"):
        return lines
    while number < len(lines) and lines[number].startswith(">"):
        number += 1
    return lines[number:]


def _without_reactions(text: str) -> str:
    """Without the last lines that the exporter adds: (- Anna: ❤ -) of reactions, (( ❤ )) of a sticker."""
    while text.endswith((" -)", " ))")):
        before, _, last = text.rpartition("\n")
        reactions = last.startswith("(- ") and last.endswith(" -)") and ": " in last
        if not (reactions or (last.startswith("(( ") and last.endswith(" ))") and len(last) < 60)):
            break
        text = before.rstrip()
    return text


def _why_left_out(text: str, something: bool) -> str:
    if not text:
        return "a picture, a sticker or a file alone" if something else "it has no text"
    if text == "(This message was deleted)":
        return "a deleted message"
    return "a call" if _CALL.fullmatch(text) else ""


# ---- rows of the database -------------------------------------------------------------------------


def _rows(stream: BinaryIO) -> Iterator[Heard]:
    for number, row in enumerate(conversations(stream), 1):
        if isinstance(row, BadItem):
            yield BadItem(row.where.replace("conversation", "message"), row.reason)
            continue
        yield _row(row, f"message {number}")


def _row(row: dict[str, Any], where: str) -> Utterance | LeftOut:
    made = next((row[key] for key in ("sent_at", "timestamp", "received_at") if _is_time(row.get(key))), None)
    raw, time = (None, None) if made is None else (str(int(made)), as_utc(made / 1000))
    kind, text = row.get("type"), text_of(row.get("body")).strip()
    senders = (row.get(key) for key in ("source", "sourceServiceId", "sourceUuid"))
    sender = next((one for one in senders if isinstance(one, str)), "")
    owner = kind == "outgoing"
    speaker = "Me" if owner else text_of(sender)[:200] or "?"
    if kind not in ("incoming", "outgoing"):
        named = " ".join(text_of(kind)[:40].split()) or "unknown"
        return LeftOut(f"a notice of the kind {named}", "", text[:300], raw, time, True, where)
    if not text:
        return LeftOut("it has no text", speaker, "", raw, time, True, where)
    return Utterance(SOURCE, name_of(row.get("conversationId")) or "?", speaker, text, raw, time, True,
                     name_of(row.get("id")) or raw, None, None, text_of(sender)[:200] or None, owner)  # fmt: skip


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e14


READER = StreamReader(SOURCE, _claims, _read)
