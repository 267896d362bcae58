"""The elements of a JSON list of any size, block by block.

A block that begins and ends between two elements is a list itself once brackets stand around it, and `orjson`
reads that several times faster than a parser of single events. Where such a block probably ends is seen from
the first two keys of an element, which come again in each; whether it did is what the parse says. Where that
does not go, a slower look at each quote and bracket tells where elements end.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

BLOCK = 1 << 16  # bytes
PATIENCE = 1 << 20  # bytes of a block without an end before the slower look
LARGEST = 256 << 20  # bytes of one element
DEEPEST = 200  # levels of nesting; exports have fewer than 20

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SCALAR = rb"(?:" + _STRING + rb"|[^\s\"{}\[\],]++)"
_KEYS = re.compile(rb"\s*+\{\s*+(" + _STRING + rb")\s*+:\s*+" + _SCALAR + rb"\s*+,\s*+(" + _STRING + rb")")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?+)|[\[\]{}]', re.DOTALL)
_COMMA = re.compile(rb"\s*+,")
_PAIR, _HALF = rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}", rb"u[dD][89a-fA-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rb"\\(" + _PAIR + rb"|" + _HALF + rb"|.)", re.DOTALL)


class TooDeep(ValueError):
    """Nested deeper than any export is."""


class Torn(ValueError):
    """The file ends before its list does."""


class Items:
    """Iterates over the elements that begin at `held` and go on in what `more(size)` gives (b"" at the end).

    After the list's own `]`, `rest` holds the bytes behind it. Raises Torn, TooDeep and ValueError, after the
    good elements before the damage.
    """

    def __init__(self, more: Callable[[int], bytes], held: bytes = b"") -> None:
        self._more = more
        self._held = held
        self._ended = False
        self._end: re.Pattern[bytes] | None = None
        self.rest = b""

    def __iter__(self) -> Iterator[Any]:
        wanted = BLOCK
        while True:
            while len(self._held) < wanted and not self._ended:
                piece = self._more(wanted - len(self._held))
                self._ended = not piece
                self._held += piece
            cut = self._last_border()
            values, last = self._quick(cut)
            if values is None and cut < 0 and not self._ended and len(self._held) < PATIENCE:
                wanted *= 2
                continue
            if values is None:
                values, last, error = self._slow()
                if error is None and not values and not last:
                    if len(self._held) > LARGEST:
                        raise ValueError("one element is too large")
                    wanted = max(wanted, len(self._held)) * 2
                    continue
                yield from values
                if error is not None:
                    raise error
            else:
                yield from values
            if last:
                return
            wanted = BLOCK

    def _last_border(self) -> int:
        """Where the last element that is whole probably ends: behind its brace. -1: not seen."""
        held = self._held
        if self._end is None:
            keys = _KEYS.match(held)
            if keys is None:
                return -1
            first, second = (re.escape(keys.group(number)) for number in (1, 2))
            self._end = re.compile(rb"\}\s*+,\s*+\{\s*+" + first + rb"\s*+:\s*+" + _SCALAR + rb"\s*+,\s*+" + second)
        place = len(held)
        for _ in range(1000):
            place = held.rfind(b"}", 0, place)
            if place < 0:
                break
            if self._end.match(held, place):
                return place + 1
        return -1

    def _quick(self, cut: int) -> tuple[list[Any] | None, bool]:
        """(the elements of the block up to `cut`, whether the list ends there); None where it is no such block."""
        block = b"[" + (self._held if cut < 0 else self._held[:cut])
        try:
            values = orjson.loads(block + b"]") if cut >= 0 else orjson.loads(block)
        except orjson.JSONDecodeError as error:
            end = error.pos if len(error.doc) == len(block) + (cut >= 0) else len(error.doc[: error.pos].encode())
            if not 0 < end <= len(block) or block[end - 1 : end] != b"]":
                return None, False
            try:
                values = orjson.loads(block[:end])  # the list ends there, and something else follows
            except orjson.JSONDecodeError:
                return None, False
            return self._done(values, end - 1)
        if cut < 0:
            return self._done(values, len(self._held))
        self._held = self._held[self._held.index(b",", cut) + 1 :]
        return values, False

    def _done(self, values: list[Any], behind: int) -> tuple[list[Any], bool]:
        self.rest, self._held = self._held[behind:], b""
        return values, True

    def _slow(self) -> tuple[list[Any], bool, ValueError | None]:
        """(whole elements, whether the list ends behind them, what is wrong behind them), bracket by bracket."""
        held, depth, begin = self._held, 0, 0
        values: list[Any] = []
        for token in _TOKEN.finditer(held):
            sign = token.group()
            if sign[0] == 34:
                if not token.group(1):
                    break  # the string goes on in the next block
            elif sign in (b"{", b"["):
                depth += 1
                if depth > DEEPEST:
                    return values, True, TooDeep()
            else:
                depth -= 1
                if depth == 0 and (comma := _COMMA.match(held, token.end())):
                    error = self._take(values, held[begin : token.end()])
                    if error:
                        return values, True, error
                    begin = comma.end()
                elif depth < 0:
                    error = self._take(values, held[begin : token.start()])
                    self._done(values, token.end())
                    wrong = sign != b"]"
                    return values, True, error or (ValueError("it is no list") if wrong else None)
        self._held = held[begin:]
        return values, self._ended, Torn() if self._ended else None

    @staticmethod
    def _take(values: list[Any], block: bytes) -> ValueError | None:
        try:
            values += orjson.loads(b"[" + block + b"]")
        except orjson.JSONDecodeError as error:
            if "surrogate" not in str(error):
                return ValueError("the JSON is damaged")
            try:
                values += orjson.loads(b"[" + mended(block) + b"]")
            except orjson.JSONDecodeError:
                return ValueError("the JSON is damaged")
        return None


def mended(block: bytes) -> bytes:
    """JSON without escapes of half a character, at which parsers stop."""
    return _ESCAPE.sub(_whole, block)


def _whole(escape: re.Match[bytes]) -> bytes:
    """Half of a surrogate pair, as texts that were cut have it, is no character: the sign for that."""
    return b"\\ufffd" if len(escape.group()) == 6 and escape.group(1)[:1] == b"u" else escape.group()
