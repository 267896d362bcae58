"""Bytes to memories. Each format has a module of its own; `READERS` is the one list, in order of trial.

A reader is found by the structure of what was dropped, never by its name alone. JSON that no reader
claims is refused with what each of them missed: read as plain text it would teach brackets and lose
who said what.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any, BinaryIO

from daemon.readers import (
    ai_files,
    archives,
    chat_jsonl,
    chatgpt,
    claude,
    csv_rows,
    day_one,
    discord,
    document,
    gemini,
    imessage,
    mail,
    markdown,
    meta_messages,
    origin,
    plain_text,
    signal_text,
    slack,
    telegram,
    whatsapp,
)
from daemon.readers.document import Torn
from daemon.readers.shape import (
    UTC_DAY_FIRST,
    FileFacts,
    Item,
    ItemReader,
    Limits,
    Locale,
    Sniff,
    StreamReader,
    TextReader,
    Tree,
    TreeReader,
    key_list,
)
from daemon.records import BadItem, Heard, Hearing, LeftOut, Memory, Refused, Utterance

__all__ = ["READERS", "Limits", "Locale", "read", "read_tree"]

TREE_READERS: tuple[TreeReader, ...] = (
    slack.TREE_READER, discord.TREE_READER, meta_messages.TREE_READER, ai_files.TREE_READER
)  # fmt: skip
STREAM_READERS: tuple[StreamReader, ...] = (
    chatgpt.READER, claude.READER, gemini.READER, telegram.READER, *discord.READERS, slack.READER, meta_messages.READER,
    day_one.READER, mail.READER, signal_text.READER, imessage.READER, whatsapp.READER, csv_rows.READER)  # fmt: skip
ITEM_READERS: tuple[ItemReader, ...] = (*origin.READERS, *chat_jsonl.READERS)
TEXT_READERS: tuple[TextReader, ...] = (markdown.READER, plain_text.READER)
READERS: tuple[TreeReader | StreamReader | ItemReader | TextReader, ...] = (
    *TREE_READERS, *STREAM_READERS, *ITEM_READERS, *TEXT_READERS
)  # fmt: skip
COMPANIONS: frozenset[str] = frozenset(
    name for known in (TREE_READERS, STREAM_READERS) for reader in known for name in reader.companions
)

_WRAPPERS = ("memories", "samples", "items", "data", "events", "tasks")  # keys under which a list may hide
_REASONS_SHOWN = 3

Taken = Iterator[Memory | BadItem]


def read(
    stream: BinaryIO, name: str, size: int, mtime: float | None, limits: Limits | None = None, *,
    locale: Locale = UTC_DAY_FIRST, path: str = "", container: str = "", depth: int = 0,
) -> Hearing:  # fmt: skip
    """What one file holds, in its order: memories, messages, what was left out, parts that could not be taken.

    The stream must be seekable. Raises Refused, with one sentence for the person, where the whole file
    cannot be taken; that can come after some bad parts have been named, since a file of which nothing was
    usable is refused as well. `depth` counts the zips that the file lies in.
    """
    limits = limits or Limits()
    name, path, container = _harmless(name), _harmless(path), _harmless(container)
    if name.lower().endswith(".enc"):
        raise Refused("the file is encrypted: export it decrypted, then drop it again")
    kind = archives.kind_of(stream)
    if kind == "zip":
        with archives.ZipTree(stream, name, size, limits, depth) as tree:
            yield from read_tree(tree, limits, locale=locale, depth=depth + 1)
        return
    if kind == "gzip":
        inner, inner_name, inner_size = archives.unpacked(stream, name, size, limits)
        yield from read(inner, inner_name, inner_size, mtime, limits, locale=locale, path=path,
                        container=container, depth=depth + 1)  # fmt: skip
        return
    stream, head = document.opened(stream, size, limits)
    facts = FileFacts.of(name, mtime, locale, path, container)
    sniff = Sniff(name, head, whole=len(head) < document.HEAD)
    for reader in STREAM_READERS:
        if reader.claims(sniff):
            yield from _not_nothing(iter(reader.read(stream, facts, limits)))
            return
    document.refuse_what_is_no_text(head)
    if document.looks_like_json(head, name):
        if not document.may_be_json(head) and not document.is_lines(stream, head, name, limits):
            raise Refused("the file is named as JSON and is none: it begins with neither { nor [")
        yield from _not_nothing(_json(stream, head, facts, limits))
        return
    if document.may_be_json(head) and (value := _json_after_all(stream, limits)) is not None:
        yield from _not_nothing(_value(value, facts))
        return
    yield from _not_nothing(_text(document.whole_text(stream, limits), facts))


def read_tree(
    tree: Tree, limits: Limits | None = None, *, locale: Locale = UTC_DAY_FIRST, depth: int = 0
) -> Hearing:
    """What a folder or a zip holds. Raises Refused where no file of it could be taken."""
    limits = limits or Limits()
    left = set(tree.paths())
    good = False
    reasons: list[str] = []
    passed: dict[str, int] = {}
    for reader in TREE_READERS:
        claimed = reader.claims(tree) & left
        if claimed:
            left -= claimed
            for one in reader.read(tree, claimed, locale, limits):
                good = good or isinstance(one, Memory | Utterance)
                yield one
    for path in sorted(left):
        name = path.rpartition("/")[2]
        if why := archives.why_passed_over(path, COMPANIONS):
            passed[why] = passed.get(why, 0) + 1
            yield LeftOut(why, where=_harmless(path))
            continue
        try:
            with tree.open(path) as stream:
                for one in read(stream, name, tree.size(path), tree.mtime(path), limits, locale=locale,
                                path=path, container=tree.name, depth=depth):  # fmt: skip
                    good = good or isinstance(one, Memory | Utterance)
                    yield _placed(one, _harmless(path))
        except Refused as refusal:
            reasons.append(f"{_harmless(path)}: {refusal}")
            yield BadItem(_harmless(path), _sentence(str(refusal)))
    if not good:
        reasons += [f"{why} ({number:,} files)" for why, number in passed.items()]
        shown = "; ".join(reasons[:_REASONS_SHOWN]) or "it is empty"
        raise Refused(_sentence(f"no file in it could be taken: {shown}"))


def _sentence(reason: str) -> str:
    """A reason may quote the file: on one line, and not for pages."""
    return _harmless(" ".join(reason.split()))[:1000]


def _harmless(name: str) -> str:
    """A name of a file as it may be shown and stored: on Linux it is bytes, and may hold anything but a slash."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in name)


def _placed(one: Heard, path: str) -> Heard:
    if isinstance(one, BadItem):
        return BadItem(f"{path}, {one.where}" if one.where else path, _sentence(one.reason))
    return one._replace(where=f"{path}, {one.where}" if one.where else path) if isinstance(one, LeftOut) else one


def _not_nothing(taken: Hearing) -> Hearing:
    """Pass everything on; refuse in the end where nothing was usable."""
    return chain(_until_something(taken), taken)


def _until_something(taken: Hearing) -> Hearing:
    """What comes up to the first that is usable; Refused where nothing is."""
    reasons: dict[str, int] = {}
    for one in taken:
        if isinstance(one, BadItem):
            shown = f"{one.where}: {one.reason}" if one.where else one.reason
            reasons[shown] = 1
            if one.where:
                yield one
        elif isinstance(one, LeftOut):
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
            yield one
        else:
            yield one
            return
    shown = "; ".join(f"{why} ({n:,} times)" if n > 1 else why for why, n in list(reasons.items())[:_REASONS_SHOWN])
    more = f" (and {len(reasons) - _REASONS_SHOWN:,} more)" if len(reasons) > _REASONS_SHOWN else ""
    raise Refused(_sentence(f"nothing in the file could be taken: {shown or 'it holds no item'}{more}"))


# ---- text -----------------------------------------------------------------------------------------


def _text(text: str, facts: FileFacts) -> Taken:
    reader = next(reader for reader in TEXT_READERS if reader.claims(text, facts.name))
    yield from reader.read(text, facts)


def _json_after_all(stream: BinaryIO, limits: Limits) -> Any:
    """The value of a file that has a bracket first and no name of JSON; None where it is a text."""
    start = stream.tell()
    try:
        value = document.parse(stream.read(limits.max_document_bytes + 1))
    except Torn:
        return None
    finally:
        stream.seek(start)
    return value or None  # `[]` is how a to-do list begins


# ---- JSON -----------------------------------------------------------------------------------------


def _json(stream: BinaryIO, head: bytes, facts: FileFacts, limits: Limits) -> Taken:
    if document.is_lines(stream, head, facts.name, limits):
        yield from _lines(stream, facts, limits)
    else:
        yield from _value(document.document(stream, limits), facts)


def _lines(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Taken:
    unclaimed: Item | None = None
    taken = False
    for number, value in document.lines(stream, limits):
        if type(value) is not dict:
            if isinstance(value, BadItem):
                yield value
                continue
            value = _as_item(value)
            if value is None:
                yield BadItem(f"line {number}", "not an object")
                continue
        reader = reader_for(value)
        if reader is None:
            unclaimed = value if unclaimed is None else unclaimed
            yield BadItem(f"line {number}", _short_reason(value))
            continue
        for one in reader.read(value, facts):
            if type(one) is BadItem:
                yield replace(one, where=f"line {number}")
            else:
                taken = True
                yield one
    if unclaimed is not None and not taken:
        raise Refused(no_reader(unclaimed))


def _value(value: Any, facts: FileFacts) -> Taken:
    whole = _as_item(value)
    if whole is not None:
        reader = reader_for(whole)
        if reader is not None:
            yield from reader.read(whole, facts)
            return
        inner = next((whole[key] for key in _WRAPPERS if isinstance(whole.get(key), list)), None)
        if inner is None:
            raise Refused(no_reader(whole))
        value = inner
    if not isinstance(value, list):
        raise Refused("the JSON is neither an object nor a list of objects")
    yield from _items(value, facts)


def _items(values: list[Any], facts: FileFacts) -> Taken:
    unclaimed: Item | None = None
    taken = False
    for number, value in enumerate(values, 1):
        item = _as_item(value)
        reader = None if item is None else reader_for(item)
        if item is None:
            yield BadItem(f"item {number}", "not an object")
        elif reader is None:
            unclaimed = unclaimed or item
            yield BadItem(f"item {number}", _short_reason(item))
        else:
            for one in reader.read(item, facts):
                taken = taken or isinstance(one, Memory)
                yield replace(one, where=f"item {number}") if isinstance(one, BadItem) else one
    if unclaimed and not taken:
        raise Refused(no_reader(unclaimed))


def _as_item(value: Any) -> dict[str, Any] | None:
    """An object, or a bare list of turns as the conversation that it is."""
    if isinstance(value, dict):
        return value
    keys = chat_jsonl.message_keys(value)
    if keys is None or not all(isinstance(turn, dict) and keys[0] in turn for turn in value):
        return None
    return {"conversations" if keys[0] == "from" else "messages": value}


def reader_for(item: Item) -> ItemReader | None:
    """The first reader that claims an object."""
    for reader in _candidates(tuple(item)):
        if reader.misses(item) is None:
            return reader
    return None


@lru_cache(maxsize=256)
def _candidates(keys: tuple[str, ...]) -> tuple[ItemReader, ...]:
    return tuple(reader for reader in ITEM_READERS if not reader.keys.isdisjoint(keys))


def no_reader(item: Item) -> str:
    """One sentence: what was tried, and what each reader missed."""
    if _is_encrypted(item):
        return "the file is encrypted: export it decrypted, then drop it again"
    tried = "; ".join(f"{reader.name}: {reader.misses(item)}" for reader in ITEM_READERS)
    return f"no reader knows this JSON, which has the keys {key_list(item)}; tried {tried}"


def _short_reason(item: Item) -> str:
    return "encrypted" if _is_encrypted(item) else f"no reader knows an object with the keys {key_list(item)}"


def _is_encrypted(item: Item) -> bool:
    """The wrapper of AES-GCM: a nonce, a tag and a ciphertext."""
    keys = {key.lower() for key in item}
    if not keys & {"iv", "nonce"}:
        return False
    return bool(keys & {"ciphertext", "data", "encrypted", "content", "payload"}) and bool(
        keys & {"tag", "authtag", "auth_tag", "salt", "algorithm", "alg", "encrypted"}
    )
