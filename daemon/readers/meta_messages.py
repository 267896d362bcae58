"""Messages of Facebook and Instagram, as "Download your information" gives them in JSON.

Structure: the exports: `<thread>/message_1.json ... message_N.json` of at most 10,000 messages, the newest first,
the first file the newest; UTF-8 that was taken for Latin-1 ("Ã©" for "é"); and Messenger's own download of
end-to-end encrypted chats (`senderName`, `text`, `timestamp`), which is right UTF-8. Left out, each with its
reason: photos, reactions and shares alone, notices ("Ada sent an attachment."), calls, unsent messages.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from operator import gt, le
from typing import Any, BinaryIO, NamedTuple

import orjson

from daemon.readers.json_backwards import listed, turned
from daemon.readers.json_chats import (
    HELD_BYTES,
    MINUTES,
    Feed,
    Header,
    broken,
    hour_of,
    oldest_first,
    utc,
    whole_headers,
)
from daemon.readers.json_items import Torn
from daemon.readers.shape import FileFacts, Limits, Locale, Sniff, StreamReader, Tree, TreeReader, normal_text
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**Facebook and Instagram.** *Accounts Center, Your information and permissions, Export your information*: choose
Messages and the format JSON, and drop the zip or the folder; or one `message_1.json`. Broken letters ("Ã©") are
put right. Messenger's download of end-to-end encrypted chats is read as well. Messages have no ids there: a
later export is told from the first by time, sender and text. Left out, with the reason: photos, stickers, shares
and reactions alone, notices such as "Ada sent an attachment.", calls, and messages that were unsent.

```json
{"participants": [{"name": "Ada"}, {"name": "Bo"}], "messages": [{"sender_name": "Ada",
 "timestamp_ms": 1705309200000, "content": "caf\\u00c3\\u00a9?"}], "title": "Ada", "thread_path": "inbox/ada_1"}
```
"""

NAME = "facebook"
_FAR = 7_000_000_000  # seconds; no date of a chat is as late
_FILE = re.compile(r"^(?:(.*)/)?message(?:_(\d{1,6}))?\.json$")
_MEDIA = {
    "photos": "a photo", "videos": "a video", "audio_files": "a sound", "gifs": "an animation", "files": "a file",
    "sticker": "a sticker", "share": "a share", "media": "a file", "magic_words": "an effect",
}  # fmt: skip
_SPECIAL = frozenset(("is_unsent", "isUnsent", "is_taken_down", "call_duration", "type"))  # want a closer look
_SYSTEM_TYPES = frozenset(("Subscribe", "Unsubscribe", "Plan", "Payment", "Call", "Admin", "Poll"))

# What Facebook writes in the name of a person, behind the name or "You". It must be the whole message.
_AFTER_NAME = re.compile(
    r" (?:sent|shared) (?:an?|the|\d{1,3}) (?:attachment|photo|video|link|sticker|GIF|location|live location|"
    r"voice message|post|story|reel|file|contact)s?\.?"
    r"| missed (?:a|your) (?:video |audio |voice )?(?:call|chat)(?: (?:from|with) .{1,60})?\.?"
    r"| (?:started|joined|ended) (?:a|the|an) (?:video |audio |voice )?(?:call|chat)\.?"
    r"| (?:joined|left) the (?:group|video call|call)\."
    r"| (?:added|removed) .{1,120} (?:to|from) the group\.?"
    r"| named the group .{1,120}"
    r"| changed the (?:group photo|theme|chat theme|group name|quick reaction|chat colou?rs?)(?: .{0,120})?\.?"
    r"| (?:set|cleared) (?:the|your|his|her|their) (?:own )?(?:nickname|emoji|quick reaction)(?: .{0,160})?\.?"
    r"| created a poll(?:: .{0,160})?\.?| voted for .{1,120} in the poll.{0,120}"
    r"| reacted .{1,12} to your message ?| liked a message\.?"
)
_ALONE = re.compile(
    r"Reacted .{1,12} to your message ?|Liked a message ?"
    r"|(?:The |Video |Audio |Voice )?(?:video |audio |voice )?(?:call|chat) (?:has )?ended\.?"
    r"|You can now (?:call|message) each other.{0,200}|You are now connected on Messenger\.?"
    r"|Say hi to your new (?:Facebook friend|connection).{0,80}|This poll is no longer available\.?"
)
_ALONE_BEGINS = ("Reacted ", "Liked a ", "You ", "Say hi ", "This poll ", "The ", "Video ", "Audio ", "Voice ")
_ATTACHED_ABROAD = (
    " hat einen Anhang gesendet.", " hast einen Anhang gesendet.", " a envoyé une pièce jointe.",
    " avez envoyé une pièce jointe.", " as envoyé une pièce jointe.", " envió un archivo adjunto.",
    " enviaste un archivo adjunto.", " ha enviado un archivo adjunto.", " ha inviato un allegato.",
    " hai inviato un allegato.", " enviou um anexo.", " enviaste um anexo.", " heeft een bijlage verzonden.",
)  # fmt: skip


# ---- is it theirs -----------------------------------------------------------------------------------


def _claims(sniff: Sniff) -> bool:
    keys = sniff.keys
    old = {"messages.item.sender_name", "messages.item.timestamp_ms"} <= keys
    new = {"messages.item.senderName", "messages.item.timestamp"} <= keys
    if old or new:
        return True
    named = not keys.isdisjoint(("thread_path", "threadName", "is_still_participant", "joinable_mode"))
    return {"participants.item", "messages"} <= keys and named  # a thread without messages


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    yield from _messages(stream, facts.path.rpartition("/")[0])


def _parts(tree: Tree) -> dict[str, list[str]]:
    """The files of each thread, the oldest first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in tree.paths():
        name = _FILE.match(path)
        if name:
            found.setdefault(name[1] or "", []).append((int(name[2] or 0), path))
    threads = {}
    for folder, files in found.items():
        files.sort(reverse=True)
        try:
            with tree.open(files[-1][1]) as stream:
                head = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
        except Refused:
            continue
        if _claims(Sniff(files[-1][1], head, len(head) < 1 << 16)):
            threads[folder] = [path for _, path in files]
    return threads


def _claims_tree(tree: Tree) -> frozenset[str]:
    return frozenset(path for files in _parts(tree).values() for path in files)


def _read_tree(tree: Tree, paths: frozenset[str], locale: Locale, limits: Limits) -> Iterator[Heard]:
    threads: dict[str, list[str]] = {}
    for path in paths:
        threads.setdefault(path.rpartition("/")[0], []).append(path)
    for folder in sorted(threads):
        for path in sorted(threads[folder], key=_number, reverse=True):
            try:
                with tree.open(path) as stream:
                    for one in _messages(stream, folder):
                        yield BadItem(f"{path}, {one.where}", one.reason) if isinstance(one, BadItem) else one
            except Refused as refusal:
                yield BadItem(path, str(refusal))


def _number(path: str) -> int:
    found = _FILE.match(path)
    return int(found[2] or 0) if found else 0


# ---- one file ---------------------------------------------------------------------------------------


class _Thread(NamedTuple):
    conversation: str
    group: bool | None


def _thread(header: Header, folder: str) -> _Thread:
    """`folder` names a thread that says nothing of itself."""
    names = (header.get("thread_path"), header.get("threadName"), "/".join(folder.split("/")[-2:]), header.get("title"))
    conversation = next((name for name in names if isinstance(name, str) and name), "")
    people = header.get("participants")
    count = len(people) if isinstance(people, list) else 0
    group = True if count > 2 or "joinable_mode" in header else False if count == 2 else None
    return _Thread(repaired(conversation), group)


def _held(stream: BinaryIO) -> tuple[Header, list[Any]] | None:
    """(What the file says of its thread, its messages) where it is small and whole. The stream is put back."""
    start = stream.tell()
    raw = stream.read(HELD_BYTES + 1)
    stream.seek(start)
    if len(raw) > HELD_BYTES:
        return None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    messages = value.get("messages") if isinstance(value, dict) else None
    return (value, messages) if isinstance(messages, list) else ({}, [])


def _messages(stream: BinaryIO, folder: str) -> Iterator[Heard]:
    whole = _held(stream)
    if whole is None:
        yield from _long(stream, folder)
        return
    header, messages = whole
    thread = _thread(header, folder)
    order = _order(messages)
    if order is not None:
        for number in order:
            yield _heard(messages[number], thread, f"message {number + 1}")
        return
    pairs = [_timed(message, thread, number) for number, message in enumerate(messages, 1)]
    yield from oldest_first(pairs.__iter__)


def _long(stream: BinaryIO, folder: str) -> Iterator[Heard]:
    """A file that is too long to be held, or damaged: what is whole of it."""
    start = stream.tell()
    found = listed(stream, b"messages", lambda message: _when(message) if type(message) is dict else None)
    if found is None:
        yield broken(Torn(), "")
        return
    error = found.error
    try:
        header = orjson.loads(found.around)
    except orjson.JSONDecodeError:
        if found.around:
            error = Torn()  # behind the messages, where the file says what thread it is
        stream.seek(start)
        header = next(whole_headers(Feed(stream), ""), {})
    thread = _thread(header, folder)
    yield from turned(stream, found, lambda message, number: _timed(message, thread, number))
    if error is not None:
        yield broken(error, f"message {found.size}" if found.size else "")


def _timed(message: Any, thread: _Thread, number: int) -> tuple[float | None, Heard]:
    if type(message) is dict:
        return _when(message), _heard(message, thread, f"message {number}")
    return None, BadItem(f"message {number}", "no object")


def _order(messages: list[Any]) -> range | None:
    """The places of the messages, oldest first, where they stand in order; None where that is not so simple."""
    try:
        times = [message["timestamp_ms"] for message in messages]
    except (TypeError, KeyError):
        return None
    if not all(type(time) is int for time in times):
        return None
    if all(map(le, times, times[1:])):
        return range(len(times))
    return range(len(times) - 1, -1, -1) if all(map(gt, times, times[1:])) else None


def _stamp(message: dict[str, Any]) -> int | None:
    """Milliseconds since 1970."""
    stamp = message.get("timestamp_ms")
    stamp = stamp if stamp is not None else message.get("timestamp")
    return stamp if type(stamp) is int else None


def _when(message: dict[str, Any]) -> float | None:
    stamp = _stamp(message)
    return float(stamp) if stamp is not None and utc(stamp // 1000) is not None else None


def _heard(message: dict[str, Any], thread: _Thread, where: str) -> Heard:
    get = message.get
    name = get("sender_name")
    name = name if name is not None else get("senderName")
    name = _name(name) if type(name) is str else ""
    stamp = _stamp(message)
    raw, time = None, None
    if stamp is not None:
        raw, seconds = str(stamp), stamp // 1000
        if 0 < seconds < _FAR and (hour := hour_of(seconds // 3600)):  # as utc(), without a call for each
            time = hour + MINUTES[seconds % 3600]
        else:
            time = utc(seconds)
    text = get("content")
    text = text if text is not None else get("text")
    text = normal_text(repaired(text)) if type(text) is str and text else ""
    plain = text != "" and _SPECIAL.isdisjoint(message)
    if not plain or text.startswith(_openings(name)) or text[-1] == "." or text.isspace():
        why = _why_not(message, name, text)
        if why is not None:
            return LeftOut(why, name, text[:200], raw, time, True, where)
    return tuple.__new__(Utterance, (  # without its argument handling, which shows at many messages
        NAME, thread.conversation, name, text, raw, time, True, None, raw, None, None, None, thread.group, where
    ))  # fmt: skip


@lru_cache(maxsize=4096)
def _openings(name: str) -> tuple[str, ...]:
    """What a notice about this person can begin with."""
    mine = (part for part in (name, name.partition(" ")[0]) if part)
    return (*mine, *_ALONE_BEGINS)


def _why_not(message: dict[str, Any], name: str, text: str) -> str | None:
    """Why a message is no memory; None where it is one."""
    if message.get("is_unsent") is True or message.get("isUnsent") is True:
        return "unsent"
    if message.get("is_taken_down") is True:
        return "taken down by Facebook"
    kind = message.get("type")
    if "call_duration" in message or kind == "Call":
        return "a notice of a call"
    if isinstance(kind, str) and kind in _SYSTEM_TYPES:
        return f"a system message ({kind})"
    if not text or text.isspace():
        for field, what in _MEDIA.items():
            if message.get(field):
                return f"{what} without a text"
        return "a reaction without a text" if message.get("reactions") else "it has no text"
    if kind == "placeholder":
        return "a place holder for what was not exported"
    return "a notice of Facebook" if _is_notice(name, text) else None


def _is_notice(name: str, text: str) -> bool:
    """"Ada sent an attachment." and the like: written by Facebook as if the person had."""
    if len(text) > 300:
        return False
    for who in (name, name.partition(" ")[0], "You"):
        if who and text.startswith(who) and _AFTER_NAME.fullmatch(text, len(who)):
            return True
    if text.startswith(_ALONE_BEGINS) and _ALONE.fullmatch(text):
        return True
    return text.endswith(_ATTACHED_ABROAD) and text.count(" ") < 12


def repaired(text: str) -> str:
    """UTF-8 that was taken for Latin-1, put right; a text that was never broken stays as it is."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


@lru_cache(maxsize=4096)
def _name(name: str) -> str:
    return normal_text(repaired(name)).strip()


READER = StreamReader(NAME, _claims, _read)
TREE_READER = TreeReader(NAME, _claims_tree, _read_tree)
