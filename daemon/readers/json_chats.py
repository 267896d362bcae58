"""Chats in JSON of any size: their messages one by one, each beside what its chat says of itself.

The bytes before a chat's `messages` are counted through, bracket by bracket, in pieces that end where the list
begins: so it is known which chat comes next. The list itself is read in blocks (json_items.py). Nesting is
counted, since a file of brackets alone would fill the memory with paths.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, tzinfo
from functools import lru_cache
from itertools import islice
from operator import le
from typing import Any, BinaryIO

import ijson
import orjson

from daemon.readers.dates import as_utc, local_to_utc
from daemon.readers.json_items import DEEPEST, Items, TooDeep, Torn
from daemon.records import BadItem, Heard

PIECE = 1 << 16  # bytes
LONGEST_HEADER = 1 << 14  # bytes of what a chat says of itself before its messages
MOST_BRACES = 64  # tried as the beginning of a header
BLOCK = 50_000  # messages that are held to turn them round
HELD_BYTES = 16 << 20  # a document up to this size is parsed in one piece, which is faster

BROKEN = (ijson.JSONError, ValueError, OverflowError)  # all that damaged JSON can raise
_KEY = b'"messages"'
_OPENS = re.compile(rb'"messages"\s*:\s*\[')
_CUT_KEY = re.compile(rb'"[a-z_]{0,12}(?:"\s{0,60}:?\s{0,60})?\Z')  # a key that may go on in the next piece
_NO_BRACKET = bytes(set(range(256)) - set(b'"[]{}'))
MINUTES = tuple(  # and seconds, of each second of an hour
    f"{second // 60:02d}:{second % 60:02d}Z" for second in range(3600)
)
_FARTHEST = 7_000_000_000  # seconds; beyond it a number is no unix time in seconds

Header = dict[str, Any]


class Feed:
    """A stream for ijson that counts nesting; `renamed` keys of the top level are given out under another name."""

    def __init__(self, stream: BinaryIO, renamed: dict[bytes, bytes] | None = None) -> None:
        self._stream = stream
        self._renamed = renamed or {}
        self._rest = b""
        self._ended = False
        self._quoted = 0  # 1 inside a string
        self.depth = 0

    def read(self, size: int = -1) -> bytes:
        """The next piece, at most `PIECE` and what was held back; empty at the end. Raises TooDeep."""
        if size == 0:
            return b""
        data = self._rest
        while (keep := 0 if self._ended else self._held_back(data)) == len(data) and not self._ended:
            more = self._stream.read(PIECE)
            self._ended = not more
            data += more
        end = self._end(data, len(data) - keep)
        piece, self._rest = data[:end], data[end:]
        for old, new in self._renamed.items():
            if self.depth == 1 and not self._quoted and piece.startswith(old):
                piece = new + piece[len(old) :]
        self._count(piece)
        return piece

    def _end(self, data: bytes, end: int) -> int:
        """Where the next piece ends, at most at `end`: before a key that is renamed."""
        for old in self._renamed:
            found = data.find(old, 1, end)
            if found > 0 and data[found - 1 : found] != b"\\":
                end = found
        return end

    @staticmethod
    def _held_back(data: bytes) -> int:
        """How many bytes wait for the next piece: half an escape, or a key that may not be whole."""
        slashes = len(data) - len(data.rstrip(b"\\"))
        if slashes & 1:
            return 1
        cut = _CUT_KEY.search(data, max(0, len(data) - 160))
        if cut is None or data[cut.start() - 1 : cut.start()] == b"\\":  # an escaped quote begins no key
            return 0
        return len(data) - cut.start()

    def _count(self, piece: bytes) -> None:
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, _NO_BRACKET).replace(b'""', b"").split(b'"')
        signs = b"".join(parts[self._quoted :: 2]) if len(parts) > 1 or not self._quoted else b""
        self._quoted ^= (len(parts) - 1) & 1
        levels = 0
        while b"{}" in signs or b"[]" in signs:
            signs = signs.replace(b"{}", b"").replace(b"[]", b"")
            levels += 1
            if levels > DEEPEST:
                raise TooDeep
        opened = signs.count(b"{") + signs.count(b"[")
        if self.depth + opened + levels > DEEPEST:
            raise TooDeep
        self.depth += 2 * opened - len(signs)


class Chats(Feed):
    """The messages of the chats at `place` ("" for the top level, else a path such as "chats.list.item").

    `header` and `number` are those of the chat in which the message last given out stands. `enough` says
    whether a header that stands before the messages has what is needed; where it has not, the file is read
    once more for what comes after them. The stream must be seekable.
    """

    def __init__(
        self,
        stream: BinaryIO,
        place: str,
        enough: Callable[[Header], bool],
        renamed: dict[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(stream, renamed)
        self._start = stream.tell()
        self._place = place
        self._level = place.count(".") + 2 if place else 1
        self._enough = enough
        self._tail = b""
        self._opens = False
        self._late: list[Header] | None = None
        self.header: Header = {}
        self.number = -1

    def messages(self) -> Iterator[Any]:
        """Values of any type, one message each; where the file is damaged, the error as the last."""
        try:
            while self.read():
                if self._opens:
                    self._opens = False
                    self.number += 1
                    self.header = self._header()
                    items = Items(self._stream.read, self._rest)
                    yield from items
                    self._rest = items.rest
                    self.depth -= 1
            if self.depth > 0 or self._quoted:
                raise Torn
        except BROKEN as error:
            yield error

    def read(self, size: int = -1) -> bytes:
        piece = super().read(size)
        self._tail = piece[-LONGEST_HEADER:] if len(piece) >= LONGEST_HEADER else (self._tail + piece)[-LONGEST_HEADER:]
        if self.depth == self._level + 1 and piece.endswith(b"["):
            key = piece.rfind(_KEY)
            self._opens = key >= 0 and _OPENS.fullmatch(piece, key) is not None
        return piece

    def _end(self, data: bytes, end: int) -> int:
        place = data.find(_KEY, 0, end)
        while place >= 0:
            found = _OPENS.match(data, place, end)
            if found and data[place - 1 : place] != b"\\":
                end = found.end()
                break
            place = data.find(_KEY, place + 1, end)
        return super()._end(data, end)

    def _header(self) -> Header:
        """The object whose `messages` begin at the end of the tail: the nearest brace from which it is one."""
        tail = self._tail
        place = len(tail)
        for _ in range(MOST_BRACES):
            place = tail.rfind(b"{", 0, place)
            if place < 0:
                break
            try:
                header: Header = orjson.loads(tail[place:] + b"]}")
            except orjson.JSONDecodeError:
                continue
            if self._enough(header):
                return header
            break
        if self._late is None:
            here = self._stream.tell()
            self._stream.seek(self._start)
            self._late = list(whole_headers(Feed(self._stream, self._renamed), self._place))
            self._stream.seek(here)
        return self._late[self.number] if self.number < len(self._late) else {}


def whole_headers(feed: Feed, place: str) -> Iterator[Header]:
    """What each chat at `place` says of itself before and after its messages."""
    messages = f"{place}.messages" if place else "messages"
    builder: Any = None
    holds = False
    try:
        for path, event, value in ijson.parse(feed, use_float=True, multiple_values=True):
            if builder is None:
                if event != "start_map" or path != place:
                    continue
                builder, holds = ijson.ObjectBuilder(), False
            if path == messages or path.startswith(messages + "."):
                holds = holds or event == "start_array"
            elif event != "map_key" or value != "messages" or path != place:
                builder.event(event, value)
                if event == "end_map" and path == place:
                    if holds:
                        yield builder.value
                    builder = None
    except BROKEN:
        if builder is not None and holds:
            yield builder.value  # torn: what was there before


def broken(error: Exception, after: str) -> BadItem:
    """What a person is told of JSON that cannot be read on `after` some message ("" where none was read)."""
    where = f"after {after}" if after else "at its beginning"
    if isinstance(error, TooDeep):
        return BadItem(where, "it is nested too deep, and the rest was not read")
    if isinstance(error, Torn) or (isinstance(error, ijson.IncompleteJSONError) and "premature EOF" in str(error)):
        return BadItem(where, "the file ends too early: export or copy it again for the rest")
    return BadItem(where, "the JSON is damaged here, and the rest was not read: export or copy it again")


def held_values(stream: BinaryIO, size: int, path: str) -> Iterator[Any]:
    """The values at `path` ("item", "messages.item") of a file that is mostly small: in one piece where that goes,
    else one by one, and what is whole of a damaged one, with the error as the last."""
    start = stream.tell()
    if size <= HELD_BYTES:
        raw = stream.read(HELD_BYTES + 1)
        if len(raw) <= HELD_BYTES:
            try:
                value = orjson.loads(raw)
            except orjson.JSONDecodeError:
                pass
            else:
                for key in path.split(".")[:-1]:
                    value = value.get(key) if isinstance(value, dict) else None
                yield from value if isinstance(value, list) else ()
                return
        stream.seek(start)
    try:
        yield from ijson.items(Feed(stream), path, use_float=True, multiple_values=True)
    except BROKEN as error:
        yield error


def oldest_first(opened: Callable[[], Iterator[tuple[float | None, Heard]]]) -> Iterator[Heard]:
    """What is heard, by its time, from a file in which the newest may stand first. `opened` begins a new pass of
    (time, heard); equal times keep their order. At most `BLOCK` are held: a longer file is read once more for
    each block. Bad items come last."""
    held: list[tuple[float | None, Heard]] = []
    bad: list[BadItem] = []
    count, first, last = 0, None, None
    for when, one in opened():
        if type(one) is BadItem:
            bad.append(one)
            continue
        count += 1
        if when is not None:
            first = when if first is None else first
            last = when
        if count <= BLOCK:
            held.append((when, one))
    falling = first is not None and last is not None and first > last
    if count <= BLOCK:
        yield from _sorted(held, falling)
    elif not falling:
        held.clear()
        yield from (one for _, one in opened() if type(one) is not BadItem)
    else:
        held.clear()
        for start in range((count - 1) // BLOCK * BLOCK, -1, -BLOCK):
            good = (pair for pair in opened() if type(pair[1]) is not BadItem)
            yield from _sorted(list(islice(good, start, start + BLOCK)), falling)
    yield from bad


def _sorted(held: list[tuple[float | None, Heard]], falling: bool) -> Iterator[Heard]:
    if falling:
        held.reverse()
    now = float("-inf")
    times: list[float] = []
    for when, _ in held:
        now = now if when is None else when  # what has no time stays behind the one before it
        times.append(now)
    if all(map(le, times, times[1:])):
        return (one for _, one in held)
    order = sorted(range(len(held)), key=times.__getitem__)
    return (held[place][1] for place in order)


# ---- times ------------------------------------------------------------------------------------------


def utc(seconds: int) -> str | None:
    """UTC of unix seconds, as `dates.as_utc`, at a tenth of its cost."""
    if not -_FARTHEST < seconds < _FARTHEST:
        return as_utc(seconds)
    hour, second = divmod(seconds, 3600)
    first = hour_of(hour)
    return None if first is None else first + MINUTES[second]


@lru_cache(maxsize=4096)
def hour_of(hour: int) -> str | None:
    """"2024-01-15T09:" of a number of hours since 1970; with one of `MINUTES` it is a time."""
    time = as_utc(hour * 3600)
    return None if time is None else time[:14]


def local(text: str, zone: tzinfo | None) -> str | None:
    """UTC of a local "YYYY-MM-DDTHH:MM:SS" (or with a space)."""
    first = _minute(text[:16], zone)
    if first is None or len(text) != 19 or text[16] != ":" or not "00" <= text[17:] <= "59":
        return None
    return f"{first}{text[17:]}Z"


@lru_cache(maxsize=4096)
def _minute(text: str, zone: tzinfo | None) -> str | None:
    try:
        time = local_to_utc(datetime.fromisoformat(text), zone)
    except ValueError:
        return None
    return None if time is None else time[:17]
