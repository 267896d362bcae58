"""Slack's export: a zip or folder of channels with one JSON file a day, and the lists that name people.

Structure: Slack's help ("How to read Slack data exports") and exports: `users.json`, `channels.json`,
`groups.json`, `dms.json`, `mpims.json`, `<channel>/YYYY-MM-DD.json`. A day file alone is read as well, with user
ids for names. Left out, each with its reason: joins, topics and other system lines, bots and apps, deleted
messages, files without a text.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from daemon.readers.json_chats import HELD_BYTES, broken, held_values, utc
from daemon.readers.shape import FileFacts, Limits, Locale, Sniff, StreamReader, Tree, TreeReader, normal_text
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**Slack.** The zip of a workspace's export (*Settings, Import/Export Data*), or the folder unpacked. Names come
from `users.json`; channels are told apart by their id where a list names it, else by their folder. Mentions,
channels and links become the words that they show. Exports by someone who is no owner of the workspace hold
public channels only. A single day file (`2024-01-15.json`) is read with user ids for names. Left out, with the
reason: joins, topics and other system lines, bots and apps, deleted messages, files without a text.

```json
[{"type": "message", "user": "U1ADA", "text": "Is <@U2BO> in?", "ts": "1705309200.000100"}]
```
"""

NAME = "slack"
LISTS = ("channels.json", "groups.json", "mpims.json", "dms.json")
PEOPLE = ("users.json", "org_users.json")
KEPT = frozenset((None, "", "thread_broadcast", "me_message", "file_share", "file_mention", "file_comment"))
_DAY = re.compile(r"^(?:(.*)/)?([^/]+)/\d{4}-\d{2}-\d{2}\.json$")
_MARK = re.compile(r"<([^<>\n]*)>")
_WITHOUT_TEXT = (("files", "a file"), ("file", "a file"), ("attachments", "an attachment"), ("blocks", "a form"))
_SLACKBOT = "USLACKBOT"
# What Slack itself wrote for a file until 2018, in the name of the person: the words behind it are theirs.
_OF_A_FILE = re.compile(
    r"<@[^<>]+> (?:(?:uploaded|shared|mentioned) (?:a|an) (?:file|image|Post|snippet)|created a snippet): <[^<>]*>"
    r"(?: and commented: (?P<words>.*))?", re.DOTALL
)  # fmt: skip


class _Channel(NamedTuple):
    conversation: str
    group: bool | None


def _claims(sniff: Sniff) -> bool:
    """A day file that was dropped alone."""
    keys = sniff.keys
    if not {"item.type", "item.ts"} <= keys or "item.role" in keys:
        return False
    return not keys.isdisjoint(("item.text", "item.subtype", "item.user", "item.bot_id"))


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    folder = facts.path.rpartition("/")[0].rpartition("/")[2] or "day"
    yield from _messages(stream, HELD_BYTES + 1, _Channel(folder, None), {}, {}, "")


# ---- the whole export -------------------------------------------------------------------------------


def _roots(tree: Tree) -> dict[str, list[str]]:
    """The day files of each folder that is an export of Slack: beside a list, or with messages of Slack in them."""
    paths = tree.paths()
    there = set(paths)
    days: dict[str, list[str]] = {}
    for path in paths:
        found = _DAY.match(path)
        if found:
            days.setdefault(found[1] or "", []).append(path)
    return {root: found for root, found in days.items() if _is_export(tree, root, there, found[0])}


def _is_export(tree: Tree, root: str, there: set[str], day: str) -> bool:
    try:
        with tree.open(day) as stream:
            head = stream.read(1 << 16)
    except Refused:
        head = b""
    if _claims(Sniff(day, head, len(head) < 1 << 16)):
        return True
    listed = any(_at(root, name) in there for name in LISTS) and any(_at(root, name) in there for name in PEOPLE)
    return listed and head.strip()[:1] in (b"[", b"")


def _at(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name


def _claims_tree(tree: Tree) -> frozenset[str]:
    there = set(tree.paths())
    claimed: set[str] = set()
    for root, days in _roots(tree).items():
        claimed.update(days)
        claimed.update({_at(root, name) for name in (*LISTS, *PEOPLE)} & there)
    return frozenset(claimed)


def _read_tree(tree: Tree, paths: frozenset[str], locale: Locale, limits: Limits) -> Iterator[Heard]:
    for root, days in _roots(tree).items():
        people: dict[str, str] = {}
        channels: dict[str, _Channel] = {}
        names: dict[str, str] = {}
        bots: set[str] = set()
        for name in PEOPLE:
            yield from _people(tree, _at(root, name), paths, people, bots)
        for name in LISTS:
            yield from _channels(tree, _at(root, name), paths, channels, names)
        for path in sorted(day for day in days if day in paths):
            folder = path.rpartition("/")[0].rpartition("/")[2]
            channel = channels.get(folder, _Channel(folder, None))
            try:
                with tree.open(path) as stream:
                    yield from _messages(stream, tree.size(path), channel, people, names, f"{path}, ", bots)
            except Refused as refusal:
                yield BadItem(path, str(refusal))


def _listed(tree: Tree, path: str, paths: frozenset[str]) -> Iterator[Any]:
    """The objects of a list of the export; a BadItem where it cannot be read."""
    if path not in paths:
        return
    try:
        with tree.open(path) as stream:
            for value in held_values(stream, tree.size(path), "item"):
                if isinstance(value, Exception):
                    yield BadItem(path, broken(value, "").reason)
                elif isinstance(value, dict) and isinstance(value.get("id"), str):
                    yield value
    except Refused as refusal:
        yield BadItem(path, str(refusal))


def _people(
    tree: Tree, path: str, paths: frozenset[str], people: dict[str, str], bots: set[str]
) -> Iterator[BadItem]:
    for user in _listed(tree, path, paths):
        if isinstance(user, BadItem):
            yield user
            continue
        name = _name_of(user)
        if name:
            people[user["id"]] = name
        if user.get("is_bot") is True:
            bots.add(user["id"])


def _channels(
    tree: Tree, path: str, paths: frozenset[str], channels: dict[str, _Channel], names: dict[str, str]
) -> Iterator[BadItem]:
    """Folders are named as the channel is; those of direct messages by their id."""
    for channel in _listed(tree, path, paths):
        if isinstance(channel, BadItem):
            yield channel
            continue
        ident, name = channel["id"], channel.get("name")
        found = _Channel(ident, not path.endswith("dms.json"))
        channels[ident] = found
        if isinstance(name, str) and name:
            channels[name] = found
            names[ident] = name


def _name_of(user: Mapping[str, Any]) -> str:
    profile = user.get("profile")
    profile = profile if isinstance(profile, dict) else {}
    for name in (profile.get("display_name"), profile.get("real_name"), user.get("display_name"),
                 user.get("real_name"), user.get("name")):  # fmt: skip
        if isinstance(name, str) and name.strip():
            return name.strip()
    return ""


# ---- one day ----------------------------------------------------------------------------------------


def _messages(
    stream: BinaryIO, size: int, channel: _Channel, people: Mapping[str, str], names: Mapping[str, str],
    path: str, bots: set[str] | frozenset[str] = frozenset(),
) -> Iterator[Heard]:  # fmt: skip
    last = ""
    for message in held_values(stream, size, "item"):
        if type(message) is not dict:
            bad = broken(message, last) if isinstance(message, Exception) else BadItem(last or "message", "no object")
            yield BadItem(path + bad.where, bad.reason)
            continue
        ts, who, text = message.get("ts"), message.get("user"), message.get("text")
        raw = ts if type(ts) is str else str(ts) if type(ts) in (int, float) else None
        time = _time(raw)
        key = raw if time is not None else None
        last = f"message {raw}" if raw else ""
        who = who if type(who) is str and who else None
        name = _speaker(message, who, people)
        text = normal_text(text) if type(text) is str else ""
        if str(message.get("subtype")).startswith("file_"):
            who, text = _of_a_file(message, who, text)
            name = _speaker(message, who, people)
        if "<" in text or "&" in text:
            text = plain(text, people, names)
        why = _why_not(message, who, text, bots)
        if why is not None:
            yield LeftOut(why, name, text[:200], raw, time, True, path + last)
            continue
        yield Utterance(
            NAME, channel.conversation, name, text, raw, time, True, key, None if key else raw,
            None, who, None, channel.group, last,
        )  # fmt: skip


def _of_a_file(message: Mapping[str, Any], who: str | None, text: str) -> tuple[str | None, str]:
    """(Who spoke, in their own words), where Slack wrote a sentence around a file or a comment on one."""
    comment = message.get("comment")
    if message.get("subtype") == "file_comment" and isinstance(comment, dict):
        user, words = comment.get("user"), comment.get("comment")
        return user if isinstance(user, str) and user else who, normal_text(words) if isinstance(words, str) else ""
    found = _OF_A_FILE.fullmatch(text)
    return who, (found["words"] or "") if found else text


def _time(raw: str | None) -> str | None:
    """UTC of "1355517523.000005", the seconds and what makes it unique."""
    if raw is None:
        return None
    seconds = raw.partition(".")[0]
    return utc(int(seconds)) if seconds.isdecimal() and seconds.isascii() and len(seconds) < 11 else None


def _speaker(message: Mapping[str, Any], who: str | None, people: Mapping[str, str]) -> str:
    if who is not None:
        known = people.get(who)
        if known:
            return known
        profile = message.get("user_profile")
        return (_name_of(profile) if isinstance(profile, dict) else "") or who
    name = message.get("username")
    return name if isinstance(name, str) else ""


def _why_not(message: Mapping[str, Any], who: str | None, text: str, bots: set[str] | frozenset[str]) -> str | None:
    """Why a message is no memory; None where it is one."""
    subtype = message.get("subtype")
    if message.get("type", "message") != "message":
        return "a system message"
    if subtype == "bot_message" or message.get("bot_id") or who == _SLACKBOT or who in bots:
        return "by a bot or an app"
    if subtype in ("tombstone", "message_deleted") or message.get("hidden") is True:
        return "deleted"
    if not (subtype is None or isinstance(subtype, str)) or subtype not in KEPT:
        named = " ".join(subtype[:40].split()) if isinstance(subtype, str) else ""
        return f"a system message ({named})" if named else "a system message"
    if text and not text.isspace():
        return None
    for field, what in _WITHOUT_TEXT:
        if message.get(field):
            return f"{what} without a text"
    return "it has no text"


# ---- marks in the text ------------------------------------------------------------------------------


def plain(text: str, people: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Mentions, channels, links and dates as the words that they show; then the three escapes of Slack."""

    def shown(mark: re.Match[str]) -> str:
        inside, _, label = mark[1].partition("|")
        sign = inside[:1]
        if sign == "@":
            return "@" + (people.get(inside[1:]) or label.lstrip("@") or inside[1:])
        if sign == "#":
            return "#" + (label or names.get(inside[1:]) or inside[1:])
        if sign == "!":
            if inside.startswith(("!date^", "!subteam^")):
                return label or inside[1:].partition("^")[2]
            return "@" + (label.lstrip("@") or inside[1:])
        return label or inside.removeprefix("mailto:") or mark[0]

    if "<" in text:
        text = _MARK.sub(shown, text)
    if "&" in text:
        text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return text


READER = StreamReader(NAME, _claims, _read)
TREE_READER = TreeReader(NAME, _claims_tree, _read_tree)
