"""What the exports of chats with an AI have in common: conversations one at a time, texts made harmless, a line of
descent through a tree of messages."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import ijson

from daemon.readers.json_chats import BROKEN, Feed
from daemon.readers.json_items import Items
from daemon.readers.shape import normal_text
from daemon.records import BadItem

Conversation = dict[str, Any]


def conversations(stream: BinaryIO) -> Iterator[Conversation | BadItem]:
    """Each object of a list, of a JSONL, or the one that the file is. A torn end is the last, as a BadItem."""
    start = stream.tell()
    first = b""
    while not first and (piece := stream.read(64)):
        first = piece.lstrip()
    values: Iterable[Any]
    if first[:1] == b"[":
        values = Items(stream.read, first[1:])
    else:
        stream.seek(start)
        values = ijson.items(Feed(stream), "", use_float=True, multiple_values=True)
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
