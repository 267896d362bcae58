"""Long lists of JSON in which the newest stands first, turned round in a memory that does not grow with them.

The first pass parses the list as it stands and notes where every so many elements begin; then those blocks are
parsed again, the last one first. So each byte is parsed twice, however long the list is.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from daemon.readers.json_chats import BROKEN, PIECE, oldest_first
from daemon.readers.json_items import Items
from daemon.records import BadItem, Heard

WHOLE = 40_000  # elements that are held to turn them round
LONGEST_HEADER = 1 << 20  # bytes before and behind the list


class Listed(NamedTuple):
    """What the first pass found."""

    blocks: list[tuple[int, int]]  # (place in the stream, number of the first element, from 0)
    size: int  # elements
    falling: bool  # the newest first
    error: Exception | None
    around: bytes  # the file without the elements of its list; empty where that is not known


class _Placed(Items):
    """Items that tell where in the stream the element stands which follows those that were parsed together."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream.read)
        self._stream = stream

    def place(self) -> int:
        return self._stream.tell() - len(self._held)


def listed(stream: BinaryIO, key: bytes, when: Callable[[Any], float | None]) -> Listed | None:
    """The list under the first `key`; `when` tells the time of an element. None where there is no such list."""
    before = _before(stream, key)
    if before is None:
        return None
    items = _Placed(stream)
    blocks = [(stream.tell(), 0)]
    place = blocks[0][0]
    count, first, last = 0, None, None
    error: Exception | None = None
    try:
        for value in items:
            behind = items.place()
            if behind != place:  # the first of those that were parsed together
                if count - blocks[-1][1] >= WHOLE:
                    blocks.append((place, count))
                place = behind
            time = when(value)
            if time is not None:
                first = time if first is None else first
                last = time
            count += 1
    except BROKEN as wrong:
        error = wrong
    tail = b"" if error is not None else items.rest + stream.read(LONGEST_HEADER)
    known = error is None and len(tail) < LONGEST_HEADER
    falling = first is not None and last is not None and first > last
    return Listed(blocks, count, falling, error, before + b"]" + tail if known else b"")


def _before(stream: BinaryIO, key: bytes) -> bytes | None:
    """What stands before the elements; the stream is then at the first of them."""
    opens = re.compile(b'"' + re.escape(key) + rb'"\s*:\s*\[')
    start, head = stream.tell(), b""
    while len(head) < LONGEST_HEADER and (piece := stream.read(PIECE)):
        head += piece
        if found := opens.search(head):
            stream.seek(start + found.end())
            return head[: found.end()]
    stream.seek(start)
    return None


def turned(
    stream: BinaryIO, found: Listed, heard: Callable[[Any, int], tuple[float | None, Heard]]
) -> Iterator[Heard]:
    """What is heard of the elements, the oldest first; `heard` is given an element and its number, from 1. Bad items
    come last."""
    bad: list[BadItem] = []

    def block(at: int) -> Iterator[tuple[float | None, Heard]]:
        place, number = found.blocks[at]
        end = found.blocks[at + 1][0] if at + 1 < len(found.blocks) else None
        for value in _block(stream, place, end):
            number += 1
            pair = heard(value, number)
            if isinstance(pair[1], BadItem):
                bad.append(pair[1])
            else:
                yield pair

    order = range(len(found.blocks))
    for at in reversed(order) if found.falling else order:
        if found.falling or len(order) == 1:
            pairs = list(block(at))
            yield from oldest_first(pairs.__iter__)
        else:
            yield from (one for _, one in block(at))
    yield from bad


def _block(stream: BinaryIO, place: int, end: int | None) -> Iterator[Any]:
    """The elements from one place to another; where the list is torn, as many as are whole."""
    stream.seek(place)
    if end is None:
        more = stream.read
    else:
        left = end - place - 1  # without the comma behind the last element
        closed = False

        def more(most: int = -1) -> bytes:
            nonlocal left, closed
            if left > 0 and (piece := stream.read(min(most, left))):
                left -= len(piece)
                return piece
            closing, closed = not closed, True
            return b"]" if closing else b""

    try:
        yield from Items(more)
    except BROKEN:
        return
