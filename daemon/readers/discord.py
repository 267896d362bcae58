"""Discord: the JSON of DiscordChatExporter, and the data package that Discord itself sends.

Structure: DiscordChatExporter's `JsonMessageWriter` and its exports; the package as Discord sends it since 2018
(`messages/c<channel>/messages.csv`, later `messages.json`). The exporter's files hold whole channels; the package
holds its owner's own messages alone. Left out, each with its reason: what bots and deleted users wrote, system
lines (joined, pinned, called), media and stickers without a text.
"""

import csv
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import orjson

from daemon.readers.dates import zoned_time
from daemon.readers.json_chats import (
    HELD_BYTES,
    PIECE,
    Chats,
    Header,
    broken,
    held_values,
    local,
    oldest_first,
)
from daemon.readers.shape import (
    LONGEST_FIELD,
    FileFacts,
    Limits,
    Locale,
    Sniff,
    StreamReader,
    Tree,
    TreeReader,
    normal_text,
)
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**Discord.** Two exports are read. *DiscordChatExporter* with the format JSON gives whole channels and private
chats, with everyone's messages: drop the file. The *data package* (Settings, Data & Privacy, Request all of my
data) holds your own messages alone, so it teaches how you write and no dialogue: drop the zip, or a
`messages.json` or `messages.csv` from it. Left out, with the reason: bots, deleted users, system lines, and media
or stickers without a text.

```json
{"guild": {"id": "0", "name": "Direct Messages"}, "channel": {"id": "91", "type": "DirectTextChat", "name": "ada"},
 "messages": [{"id": "501", "type": "Default", "timestamp": "2024-01-15T11:00:00.25+02:00", "content": "Home?",
 "author": {"id": "11", "name": "ada", "nickname": "Ada", "isBot": false}, "attachments": []}], "messageCount": 1}
```
"""

NAME = "discord"
KEPT = frozenset(("Default", "Reply", "0", "19"))  # older exporters give some types as numbers
DELETED_USER = "Deleted User"
DELETED_ID = "456226577798135808"  # the account that all deleted ones are shown as
_DIRECT = frozenset(("DirectTextChat", "DirectMessage", "1"))
_PACKAGE = frozenset(("item.ID", "item.Timestamp", "item.Contents"))
_CSV_HEAD = re.compile(r'"?ID"?,"?Timestamp"?,"?Contents"?(?:,|\n|$)')
_CHANNEL = re.compile(r"(?:^|/)c?(\d{15,20})/messages\.(?:json|csv)$")


def _claims(sniff: Sniff) -> bool:
    keys = sniff.keys
    for place in ("", "item."):
        if f"{place}messages" in keys and f"{place}channel.id" in keys:
            return f"{place}guild.id" in keys or f"{place}guild.name" in keys
    here = {key for key in keys if key.startswith("messages.item.")}
    return {"messages.item.timestamp", "messages.item.author.isBot", "messages.item.content"} <= here


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    start = stream.tell()
    place = "item" if stream.read(64).lstrip()[:1] == b"[" else ""
    stream.seek(start)
    chats = Chats(stream, place, lambda header: "channel" in header)
    number, conversation, group, last = -1, "", None, ""
    for message in chats.messages():
        if chats.number != number:
            number = chats.number
            conversation, group = _channel(chats.header)
        if type(message) is not dict:
            yield broken(message, last) if isinstance(message, Exception) else BadItem(last or "message", "no object")
            continue
        get = message.get
        raw, ident, text, author = get("timestamp"), get("id"), get("content"), get("author")
        time = _time(raw) if type(raw) is str else None
        key = str(ident) if type(ident) is str or type(ident) is int else None
        last = f"message {key}" if key else ""
        if type(author) is not dict:
            author = {}
        name = author.get("nickname") or author.get("name")
        who = author.get("id")
        raw = raw if type(raw) is str else None
        name = name if type(name) is str else ""
        who = str(who) if type(who) is str or type(who) is int else None
        text = normal_text(text) if type(text) is str else ""
        why = _why_not(message, author, name, who, text)
        if why is not None:
            yield LeftOut(why, name, text[:200], raw, time, True, last)
            continue
        yield Utterance(
            NAME, conversation, name, text, raw, time, True, key, None if key else raw, None, who, None, group, last
        )


def _channel(header: Header) -> tuple[str, bool | None]:
    """(conversation, whether it is a group)."""
    channel = header.get("channel")
    if not isinstance(channel, dict):
        return "", None
    ident, kind = channel.get("id"), channel.get("type")
    known = isinstance(ident, (str, int)) and not isinstance(ident, bool)
    group = str(kind) not in _DIRECT if isinstance(kind, (str, int)) else None
    return str(ident) if known else str(channel.get("name", "")), group


def _why_not(message: dict[str, Any], author: dict[str, Any], name: str, who: str | None, text: str) -> str | None:
    kind = message.get("type", "Default")
    if kind not in KEPT if isinstance(kind, str) else str(kind) not in KEPT:
        return f"a system message ({' '.join(kind[:40].split())})" if isinstance(kind, str) else "a system message"
    if author.get("isBot") is True:
        return "by a bot"
    if who == DELETED_ID or (name == DELETED_USER and author.get("name") == DELETED_USER):
        return "by a deleted user"
    if text and not text.isspace():
        return None
    for field, what in (("attachments", "a file"), ("stickers", "a sticker"), ("embeds", "a preview")):
        if message.get(field):
            return f"{what} without a text"
    return "forwarded: not written by who sent it" if message.get("forwardedMessage") else "it has no text"


def _time(raw: str) -> str | None:
    """UTC of "2024-01-15T11:00:00.25+02:00"; the offset is the same for long, so the hour is what is looked up."""
    if len(raw) >= 20 and raw[13] == ":" == raw[16] and raw[14:16].isdigit() and raw[17:19].isdigit():
        away = raw[-6:] if raw[-6] in "+-" else "Z" if raw[-1] == "Z" else ""
        if away and away[-2:] in ("00", "Z"):  # an offset of whole hours moves no minute
            first = _hour(raw[:13], away)
            return first and f"{first}{raw[14:19]}Z" if "00" <= raw[14:16] <= "59" >= raw[17:19] else None
    return zoned_time(raw)[0]


@lru_cache(maxsize=4096)
def _hour(hour: str, away: str) -> str | None:
    time = zoned_time(f"{hour}:00:00{away}")[0]
    return None if time is None else time[:14]


# ---- the data package: one's own messages alone ------------------------------------------------------


def _claims_package(sniff: Sniff) -> bool:
    return sniff.keys >= _PACKAGE or _CSV_HEAD.match(sniff.text) is not None


def _read_package(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    found = _CHANNEL.search(facts.path)
    yield from _own(stream, found[1] if found else "data package", None)


def _own(stream: BinaryIO, conversation: str, group: bool | None) -> Iterator[Heard]:
    """One channel of the package. All is the owner's, who is not named; the newest stands first; times are UTC."""
    start = stream.tell()

    def opened() -> Iterator[tuple[float | None, Heard]]:
        stream.seek(start)
        table = stream.read(64).lstrip()[:1] not in (b"[", b"{")
        stream.seek(start)
        last = ""
        for row in _rows(stream) if table else held_values(stream, HELD_BYTES + 1, "item"):
            if not isinstance(row, dict):
                bad = broken(row, last) if isinstance(row, Exception) else BadItem(last or "message", "no object")
                yield None, bad
                continue
            ident, raw, text = row.get("ID"), row.get("Timestamp"), row.get("Contents")
            key = str(ident) if type(ident) is int or (type(ident) is str and ident) else None
            raw = raw if isinstance(raw, str) and raw else None
            time = None if raw is None else local(raw, None) or zoned_time(raw)[0]
            last = f"message {key}" if key else ""
            text = normal_text(text) if isinstance(text, str) else ""
            when = int(key) if key and key.isdecimal() and len(key) < 21 else None
            if text and not text.isspace():
                clock = None if key else raw
                yield when, Utterance(
                    NAME, conversation, "", text, raw, time, True, key, clock, None, None, True, group, last
                )
            else:
                why = "a file without a text" if row.get("Attachments") else "it has no text"
                yield when, LeftOut(why, "", "", raw, time, True, last)

    yield from oldest_first(opened)


def _rows(stream: BinaryIO) -> Iterator[Any]:
    """The rows of messages.csv as objects; where it is damaged, the error as the last."""
    text = io.TextIOWrapper(stream, "utf-8", "replace", newline="")
    try:
        csv.field_size_limit(LONGEST_FIELD)
        yield from csv.DictReader(text, strict=True)  # strict: a quote that never ends is an error, not a text
    except csv.Error as error:
        yield error
    finally:
        text.detach()  # else the stream would be closed with it


def _claims_tree(tree: Tree) -> frozenset[str]:
    """Channels that lie beside their `channel.json`, and the index over them."""
    paths = set(tree.paths())
    found = {path for path in paths if _CHANNEL.search(path) and f"{path.rpartition('/')[0]}/channel.json" in paths}
    folders = {path.rpartition("/")[0] for path in found}
    known = {f"{folder}/channel.json" for folder in folders}
    indexes = {f"{folder.rpartition('/')[0]}/index.json".lstrip("/") for folder in folders}
    return frozenset(found | known | (indexes & paths))


def _read_tree(tree: Tree, paths: frozenset[str], locale: Locale, limits: Limits) -> Iterator[Heard]:
    for path in sorted(paths):
        found = _CHANNEL.search(path)
        if not found:
            continue
        try:
            group = _is_group(tree, f"{path.rpartition('/')[0]}/channel.json")
            with tree.open(path) as stream:
                for one in _own(stream, found[1], group):
                    yield BadItem(f"{path}, {one.where}", one.reason) if isinstance(one, BadItem) else one
        except Refused as refusal:
            yield BadItem(path, str(refusal))


def _is_group(tree: Tree, path: str) -> bool | None:
    with tree.open(path) as stream:
        raw = stream.read(PIECE)
    try:
        channel = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    kind = channel.get("type") if isinstance(channel, dict) else None
    return kind not in ("DM", 1) if isinstance(kind, (str, int)) else None


READERS = (StreamReader(NAME, _claims, _read), StreamReader(NAME, _claims_package, _read_package))
TREE_READER = TreeReader(NAME, _claims_tree, _read_tree)
