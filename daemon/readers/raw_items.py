"""The JSON objects of a file as they stand in it, each with what its reader makes of it.

For whoever must take a part of a file only: `read` gives memories, and no longer says which object they were.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from daemon import readers
from daemon.readers import archives, chat_jsonl, document
from daemon.readers.shape import FileFacts, Item, Limits, Sniff
from daemon.records import BadItem, Memory

_WRAPPERS = ("memories", "samples", "items", "data", "events", "tasks")


class RawItem(NamedTuple):
    number: int  # from 1; of a JSONL that of its line
    item: Item | None  # None where it is no object
    heard: list[Memory | BadItem]


def raw_items(stream: BinaryIO, size: int, facts: FileFacts, limits: Limits) -> Iterator[RawItem] | None:
    """The objects of a JSON or JSONL file in their order; None where the file is neither, or an export that is
    read as a whole. Raises Refused, also later while it is read."""
    if archives.kind_of(stream) is not None:
        return None
    stream, head = document.opened(stream, size, limits)
    sniff = Sniff(facts.name, head, whole=len(head) < document.HEAD)
    if any(reader.claims(sniff) for reader in readers.STREAM_READERS):
        return None
    document.refuse_what_is_no_text(head)
    if not document.looks_like_json(head, facts.name):
        return None
    return (_made(number, value, facts) for number, value in _values(stream, head, facts, limits))


def _values(stream: BinaryIO, head: bytes, facts: FileFacts, limits: Limits) -> Iterator[tuple[int, Any]]:
    if document.is_lines(stream, head, facts.name, limits):
        yield from document.lines(stream, limits)
        return
    value = document.document(stream, limits)
    if isinstance(value, dict) and readers.reader_for(value) is None:
        value = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), list)), value)
    whole = not isinstance(value, list) or chat_jsonl.message_keys(value) is not None
    yield from enumerate([value] if whole else value, 1)


def _made(number: int, value: Any, facts: FileFacts) -> RawItem:
    if isinstance(value, BadItem):
        return RawItem(number, None, [value])
    keys = chat_jsonl.message_keys(value) if isinstance(value, list) else None
    item = {"conversations" if keys[0] == "from" else "messages": value} if keys else value
    if not isinstance(item, dict):
        return RawItem(number, None, [BadItem(f"item {number}", "not an object")])
    reader = readers.reader_for(item)
    if reader is None:
        return RawItem(number, item, [BadItem(f"item {number}", readers.no_reader(item))])
    return RawItem(number, item, list(reader.read(item, facts)))
