"""What the exports of chats with an AI have in common: conversations one at a time, texts made harmless, a line of
descent through a tree of messages."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import ijson

from daemon.readers.json_chats import BROKEN, Feed
from daemon.readers.json_items import LARGEST, Items
from daemon.readers.shape import normal_text
from daemon.records import BadItem

Conversation = dict[str, Any]

_OPENS = re.compile(rb'\[|\{\s*"conversations"\s*:\s*\[')


def conversations(stream: BinaryIO) -> Iterator[Conversation | BadItem]:
    """Each object of a list (which may lie under `conversations`), of a JSONL, or the one that the file is. A torn
    end is the last, as a BadItem."""
    start = stream.tell()
    first = b""
    while not first and (piece := stream.read(64)):
        first = piece.lstrip()
    if opens := _OPENS.match(first):
        yield from _numbered(Items(stream.read, first[opens.end() :]))
        return
    stream.seek(start)
    line = b""
    while not line and (piece := stream.readline(LARGEST)):
        line = piece.strip()
    if _value(line) is not None:
        yield from _lines(line, stream)
        return
    stream.seek(start)
    yield from _numbered(_one_or_more(stream))


def _numbered(values: Iterable[Any]) -> Iterator[Conversation | BadItem]:
    number = 0
    try:
        for value in values:
            number += 1
            if isinstance(value, dict):
                yield value
            else:
                yield BadItem(f"conversation {number}", "it is no object")
    except BROKEN:
        yield BadItem(f"after conversation {number}", "the file ends too early, or is damaged there")


def _lines(line: bytes, stream: BinaryIO) -> Iterator[Conversation | BadItem]:
    """One object a line: a line that is none costs no other."""
    number = 0
    while line:
        value = _value(line)
        number += 1
        yield BadItem(f"conversation {number}", "its line is no JSON object, or is cut") if value is None else value
        line = b""
        while not line and (piece := stream.readline(LARGEST)):
            line = piece.strip()


def _value(line: bytes) -> Conversation | None:
    """The object that a line is, halves of characters made whole; None where it is none."""
    if not line.startswith(b"{"):
        return None
    items = Items(lambda most: b"", line + b"]")
    try:
        values = list(items)
    except BROKEN:
        return None
    return values[0] if len(values) == 1 and isinstance(values[0], dict) and not items.rest else None


def _one_or_more(stream: BinaryIO) -> Iterator[Any]:
    """One object over many lines; several such, where a program wrote them so."""
    start, ended, some = stream.tell(), False, False

    def more(most: int) -> bytes:
        nonlocal ended
        piece = b"" if ended else stream.read(most)
        closing = not piece and not ended
        ended = ended or closing
        return b"]" if closing else piece

    try:
        for value in Items(more):
            some = True
            yield value
    except BROKEN:
        if some:
            raise
        stream.seek(start)
        yield from ijson.items(Feed(stream), "", use_float=True, multiple_values=True)


def text_of(value: Any) -> str:
    """A text as it may be stored: line ends as \\\\n, no NUL, no half of a surrogate pair. Anything else has none."""
    text = normal_text(value) if isinstance(value, str) else ""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def name_of(value: Any) -> str | None:
    """An id, where it is one."""
    return text_of(value)[:200] or None if isinstance(value, str) else None


def line_of_descent(parents: Mapping[str, str | None], leaf: str) -> list[str]:
    """From the root to a leaf. A circle or a missing parent ends the way back."""
    line: list[str] = []
    seen: set[str] = set()
    at: str | None = leaf
    while at is not None and at in parents and at not in seen:
        seen.add(at)
        line.append(at)
        at = parents[at]
    return line[::-1]


def latest_leaf(parents: Mapping[str, str | None], when: Callable[[str], float]) -> str | None:
    """The node without children that was made last; of several of one time the one that was written last."""
    inner = set(parents.values())
    leaves = [node for node in parents if node not in inner] or list(parents)
    return max(reversed(leaves), key=when, default=None)
