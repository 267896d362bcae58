"""Telegram Desktop's JSON export (`result.json`): one chat, or the whole account.

Structure: the exporter's source (tdesktop, `export_output_json.cpp`) and exports of several years. Read are the
texts of people, joined from their entities. Left out, each with its reason: service lines, media without a
text, what was forwarded or posted through a bot, chats with bots and with Telegram itself, posts of channels,
and messages that are code alone. The whole account says who its owner is; one chat alone does not.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import ijson

from daemon.readers.dates import zoned_time
from daemon.readers.json_chats import BROKEN, MINUTES, PIECE, Chats, Feed, Header, broken, hour_of, local
from daemon.readers.shape import FileFacts, Limits, Locale, Sniff, StreamReader, normal_text
from daemon.records import BadItem, Heard, LeftOut, Utterance

ABOUT = """\
**Telegram.** In Telegram Desktop: a chat's menu, *Export chat history*, or *Settings, Advanced, Export Telegram
data*; choose the format *Machine-readable JSON* and drop `result.json`. An export of the whole account says who
you are; one chat alone does not, and waits for `engramd owner` unless one of your aliases speaks in it. Times are
UTC where the export has `date_unixtime`; older ones have local times only, which are taken in the profile's
`timezone`. Your *Saved messages* are your own notes. Left out, with the reason: service lines, media without a
text, forwarded messages (not written by who sent them), messages through a bot and chats with one, notices of
Telegram (they hold login codes), posts of channels that are not your own, and messages that are code alone.

```json
{"name": "Ada", "type": "personal_chat", "id": 4001, "messages": [{"id": 7, "type": "message",
 "date": "2024-01-15T11:00:00", "date_unixtime": "1705309200", "from": "Ada", "from_id": "user4001",
 "text": "Are you home?", "text_entities": [{"type": "plain", "text": "Are you home?"}]}]}
```
"""

NAME = "telegram"
DELETED = "Deleted Account"  # as Telegram itself shows a sender who is no more
GROUPS = frozenset(("private_group", "private_supergroup", "public_supergroup"))
CHANNELS = frozenset(("private_channel", "public_channel"))
TYPES = GROUPS | CHANNELS | {"personal_chat", "bot_chat", "saved_messages", "replies", "verify_codes"}
TELEGRAM_ITSELF = frozenset(("user777000", "777000", "user42777"))
_NOTICES = frozenset(("replies", "verify_codes"))
_CODE = frozenset(("pre", "code"))
_FORWARDS = frozenset(("forwarded_from", "forwarded_from_id", "saved_from"))
_SPECIAL = _FORWARDS | {"via_bot"}  # keys of messages that need a closer look
_RENAMED = {b'"left_chats"': b'"chats"'}  # chats that one has left, read as the others
_PLACES = {"": "messages", "item": "item.messages", "chats.list.item": "chats.list.item.messages"}
_MEDIA = {
    "sticker": "a sticker", "voice_message": "a voice message", "video_message": "a video message",
    "animation": "an animation", "video_file": "a video", "audio_file": "a sound",
}  # fmt: skip
_MEDIA_KEYS = {
    "photo": "a photo", "location_information": "a place", "contact_information": "a contact", "poll": "a poll",
    "game_title": "a game", "invoice_information": "an invoice", "todo_list": "a list of tasks",
    "giveaway_information": "a giveaway", "paid_media": "paid media", "file": "a file",
}  # fmt: skip


# ---- is it Telegram's -------------------------------------------------------------------------------


def _place(keys: frozenset[str]) -> str | None:
    """Where the chats are: "" for one chat, "item" for a list of them, "chats.list.item" for an account."""
    if "personal_information.user_id" in keys or "chats.list.item.messages" in keys:
        return "chats.list.item"
    for place, messages in list(_PLACES.items())[:2]:
        if messages in keys:
            return place
    return None


def _claims(sniff: Sniff) -> bool:
    keys = sniff.keys
    place = _place(keys)
    if place is None:
        return False
    if place == "chats.list.item" and ("personal_information.user_id" in keys or "left_chats" in keys):
        return True
    message = f"{_PLACES[place]}.item."
    if f"{message}id" in keys:
        here = {key[len(message) :] for key in keys if key.startswith(message)}
        return {"type", "date"} <= here and not here.isdisjoint(("from", "from_id", "actor", "text_entities"))
    inside = f"{place}." if place else ""
    return {f"{inside}type", f"{inside}id"} <= keys and any(f'"{kind}"' in sniff.text for kind in TYPES)


# ---- one chat ---------------------------------------------------------------------------------------


class _Chat(NamedTuple):
    """What all messages of a chat share."""

    conversation: str
    group: bool | None
    none_of_mine: str | None  # why nothing in it is a memory
    posts: bool  # a channel: only the owner's own count
    saved: bool
    plain: bool  # of people: a message with a text is a memory, if nothing in itself speaks against it


def _chat_of(header: Header) -> _Chat:
    kind = header.get("type")
    kind = kind if isinstance(kind, str) else ""
    identity = header.get("id")
    name = header.get("name")
    known = isinstance(identity, (int, str)) and not isinstance(identity, bool)
    why = None
    if kind == "bot_chat":
        why = "in a chat with a bot"
    elif kind in _NOTICES:
        why = "a notice, not a chat"
    group = True if kind in GROUPS else False if kind == "personal_chat" else None
    posts = kind in CHANNELS
    conversation = str(identity) if known else f"{kind}:{name}"
    return _Chat(conversation, group, why, posts, kind == "saved_messages", why is None and not posts)


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    start = stream.tell()
    place, me = _beginning(stream)
    stream.seek(start)
    if place == "chats.list.item" and me is None:
        me = _late_owner(stream)
        stream.seek(start)
    chats = Chats(stream, place, lambda header: "id" in header and "type" in header, _RENAMED)
    number, chat, key = -1, _chat_of({}), None
    new = tuple.__new__
    text: Any
    for message in chats.messages():
        if chats.number != number:
            number, chat = chats.number, _chat_of(chats.header)
        if type(message) is not dict:
            yield _bad(message, key)
            continue
        get = message.get
        raw = get("date_unixtime")
        if type(raw) is str and len(raw) < 11 and raw.isdecimal():
            seconds = int(raw)
            first = hour_of(seconds // 3600)
            time, known = first and first + MINUTES[seconds % 3600], True
        else:
            raw, time, known = _other_time(message, facts.locale)
        text, who, name, ident = get("text"), get("from_id"), get("from"), get("id")
        plain = type(text) is str and text != ""
        if not plain:
            text = _joined(text, get("text_entities"))
        if "\r" in text or "\x00" in text:
            text = normal_text(text)
        if type(who) is not str:
            who = str(who) if type(who) is int else None
        if type(name) is not str:
            name = DELETED if "from" in message else ""
        key = str(ident) if type(ident) is int or type(ident) is str else None
        owner = who in me if me else True if chat.saved else None
        if (
            not (plain and chat.plain and get("type") == "message" and _SPECIAL.isdisjoint(message))
            or who in TELEGRAM_ITSELF
            or not text
            or text.isspace()
        ):
            why = _why_not(message, text, who, chat, owner)
            if why is not None:
                yield LeftOut(why, *_shown(message, text, name), raw, time, known, f"message {key}" if key else "")
                continue
        yield new(Utterance, (  # without its argument handling, which shows at a million messages
            NAME, chat.conversation, name, text, raw, time, known, key,
            None if key else raw, None, who, owner, chat.group, "",
        ))  # fmt: skip


def _bad(message: Any, key: str | None) -> BadItem:
    """Of something that is no message; `key` is that of the last one which was."""
    if isinstance(message, Exception):
        return broken(message, f"message {key}" if key else "")
    return BadItem(f"after message {key}" if key else "at its beginning", "not an object")


def _why_not(message: dict[str, Any], text: str, who: str | None, chat: _Chat, owner: bool | None) -> str | None:
    """Why a message is no memory; None where it is one."""
    if message.get("type") != "message":
        return _service(message)
    if chat.none_of_mine is not None:
        return chat.none_of_mine
    if who in TELEGRAM_ITSELF:
        return "a notice of Telegram itself"
    if message.get("via_bot"):
        return "posted through a bot"
    if not _FORWARDS.isdisjoint(message):
        return "forwarded: not written by who sent it"
    if not text or text.isspace():
        return _without_text(message)
    if chat.posts and not owner:
        return "a post in a channel"
    if type(message.get("text")) is not str and _is_code(message.get("text_entities") or message.get("text")):
        return "code alone"
    return None


def _service(message: dict[str, Any]) -> str:
    action = message.get("action")
    if message.get("type") != "service":
        return "of a kind that is not known"
    return f"a service message ({action})" if isinstance(action, str) and action else "a service message"


def _without_text(message: dict[str, Any]) -> str:
    media = message.get("media_type")
    if isinstance(media, str) and media:
        return f"{_MEDIA.get(media, 'a file')} without a text"
    for key, what in _MEDIA_KEYS.items():
        if key in message:
            return f"{what} without a text"
    return "it has no text"


def _shown(message: dict[str, Any], text: str, name: str) -> tuple[str, str]:
    """(speaker, text) of what is left out."""
    if not text:
        emoji = message.get("sticker_emoji")
        text = emoji if isinstance(emoji, str) else ""
    actor = message.get("actor")
    return name or (actor if isinstance(actor, str) else ""), text if len(text) <= 200 else text[:199] + "…"


def _joined(text: Any, entities: Any) -> str:
    """The text of entities, else of a list of strings and entities; its parts follow each other without a gap."""
    parts = entities if isinstance(entities, list) and entities else text
    if not isinstance(parts, list):
        return ""
    found = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else "" for part in parts]
    return "".join(part for part in found if isinstance(part, str))


def _is_code(parts: Any) -> bool:
    """Whether all that is no blank stands in code."""
    if not isinstance(parts, list):
        return False
    for part in parts:
        shown = part.get("text") if isinstance(part, dict) else part
        coded = isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] in _CODE
        if not coded and isinstance(shown, str) and shown.strip():
            return False
    return True


def _other_time(message: dict[str, Any], locale: Locale) -> tuple[str | None, str | None, bool]:
    """(raw, UTC, zone known) without a plain `date_unixtime`: older exports have the local time alone."""
    unix, date = message.get("date_unixtime"), message.get("date")
    if type(unix) is int or (type(unix) is str and unix.strip("-").isdecimal()):
        time, known = zoned_time(unix)
        if time is not None:
            return str(unix), time, known
    if type(date) is not str or not date:
        return None, None, False
    time = local(date, locale.zone)
    if time is not None:
        return date, time, False
    return date, *zoned_time(date, locale.zone)


# ---- what the account says --------------------------------------------------------------------------


def _beginning(stream: BinaryIO) -> tuple[str, frozenset[str] | None]:
    """(where the chats are, the owner's ids where they are said before the chats)."""
    me: frozenset[str] | None = None
    place = ""
    events = ijson.parse(Feed(stream), use_float=True, multiple_values=True)
    try:
        for path, event, value in events:
            if event in ("string", "number"):
                if path == "personal_information.user_id":
                    place, me = "chats.list.item", frozenset((f"user{value}", str(value)))
            elif event == "map_key" and value in ("chats", "left_chats") and path == "":
                return "chats.list.item", me
            elif event == "start_array" and path in ("messages", "item.messages"):
                return path.removesuffix("messages").removesuffix("."), me
    except BROKEN:
        pass
    return place, me


def _late_owner(stream: BinaryIO) -> frozenset[str] | None:
    """The owner's ids where they are said after the chats: only looked for where the words stand in the file."""
    start, before = stream.tell(), b""
    while piece := stream.read(PIECE):
        if b'"personal_information"' in before + piece:
            break
        before = piece[-32:]
    else:
        return None
    stream.seek(start)
    try:
        for value in islice(ijson.items(Feed(stream), "personal_information.user_id", use_float=True), 1):
            if isinstance(value, (int, str)):
                return frozenset((f"user{value}", str(value)))
    except BROKEN:
        pass
    return None


READER = StreamReader(NAME, _claims, _read)
