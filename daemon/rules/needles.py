"""What is looked for when a memory is forgotten: its lines and sentences, in every form that a file may hold.

Lines, because an export has a header between two messages that one memory joins; sentences, because a log
may quote one. What is too short to tell a person's words from chance is not looked for: a memory's own
records are found by its id.
"""

import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from daemon.records import Memory

SHORTEST_LINE = 6  # bytes of UTF-8: two characters of Chinese, an English word
SHORTEST_SENTENCE = 16  # characters
_LONE_WORD = re.compile(r"[A-Za-z_]{1,20}[.,;:!?…]*")  # "journal" stands in a file for other reasons, too
_FEW = 64  # needles that are simply tried one after the other
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+")
_ESCAPE = re.compile(r"\\u[0-9a-f]{4}")
_WORD = re.compile(r"[A-Za-z0-9]+")
_WORD_BYTES = re.compile(rb"[A-Za-z0-9]+")
# Two words with a space between them, inside a text: they stand so in every form but UTF-16.
_INNER_PAIR = re.compile(r"(?<=[ ,;:.!?(-])(?=([A-Za-z0-9]{2,}) ([A-Za-z0-9]{2,})[ ,;:.!?)-])")


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text that are long enough to be a needle."""
    for line in text.splitlines():
        line = line.strip()
        if len(line.encode("utf-8", "surrogatepass")) >= SHORTEST_LINE and not _LONE_WORD.fullmatch(line):
            yield line


def pieces_of(text: str) -> Iterator[str]:
    """Its lines, and the sentences of those that have several."""
    for line in lines_of(text):
        yield line
        sentences = _SENTENCE_END.split(line)
        if len(sentences) > 1:
            yield from (one.strip() for one in sentences if len(one.strip()) >= SHORTEST_SENTENCE)


def learnt_texts(memory: Memory) -> list[str]:
    """What carries loss: the answer, or the text itself, and a tool's data."""
    said = memory.content if memory.response is None else memory.response
    return [said, *strings_in(memory.payload)]


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from strings_in(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from strings_in(one)


def digest_of(line: str, seed: int) -> bytes:
    """16 bytes by which a forgotten line is known again; the profile's seed keeps tables of hashes away."""
    key = str(seed).encode()[:64]
    return hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=16, key=key).digest()


def forms_of(piece: str) -> tuple[bytes, ...]:
    """The bytes that a file may hold it as, plain ones first."""
    texts = [piece, piece.replace("\t", "    ")]
    try:
        texts.append(piece.encode().decode("latin-1"))  # how Facebook writes UTF-8
    except UnicodeError:
        pass
    forms: dict[bytes, None] = {}
    for text in texts:
        escaped = json.dumps(text)[1:-1]
        upper = _ESCAPE.sub(lambda found: "\\u" + found[0][2:].upper(), escaped)
        kept = json.dumps(text, ensure_ascii=False)[1:-1]
        for form in (text, kept, escaped, upper):
            forms[form.encode("utf-8", "surrogatepass")] = None
            forms[form.replace("/", "\\/").encode("utf-8", "surrogatepass")] = None
    for form in (html.escape(piece), html.escape(piece, quote=False), html.escape(piece).replace("&#x27;", "&#39;")):
        forms[form.encode("utf-8", "surrogatepass")] = None
    for encoding in ("cp1252", "utf-16-le", "utf-16-be"):
        try:
            forms[piece.encode(encoding)] = None
        except UnicodeError:
            pass
    return tuple(forms)


class Needles:
    """Texts that are looked for and cut out, the longest first. Fast for few of them and for many."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = sorted(set(pieces), key=lambda piece: (-len(piece), piece))
        self._rank = {piece: number for number, piece in enumerate(self.pieces)}
        self._plain: list[str] = []  # tried always
        self._by_pair: dict[tuple[str, str], list[str]] = {}  # tried where these two words follow one another
        for piece in self.pieces:
            pairs = _INNER_PAIR.findall(piece) if len(self.pieces) > _FEW else []
            if pairs:
                self._by_pair.setdefault(max(pairs, key=lambda pair: len(pair[0]) + len(pair[1])), []).append(piece)
            else:
                self._plain.append(piece)
        self._forms = lru_cache(maxsize=65536)(forms_of)

    def __bool__(self) -> bool:
        return bool(self.pieces)

    def in_text(self, text: str) -> list[str]:
        """Those that occur in a text, the longest first."""
        found = [piece for piece in self._plain if piece in text]
        if self._by_pair:
            words = _WORD.findall(text)
            for pair in self._by_pair.keys() & set(itertools.pairwise(words)):
                found += [piece for piece in self._by_pair[pair] if piece in text]
        return sorted(found, key=self._rank.__getitem__)

    def are_in(self, data: bytes) -> bool:
        """Whether a file's bytes hold any of them, in any form."""
        return any(self._in_part(part) for part in self._parts(data))

    def count(self, data: bytes) -> int:
        return sum(part.count(form) for part in self._parts(data) for form in self._in_part(part))

    def cut_bytes(self, data: bytes) -> bytes:
        """The bytes without them."""
        out = []
        for part in self._parts(data):
            for form in self._in_part(part):
                part = part.replace(form, b"")
            out.append(part)
        return b"".join(out)

    def _parts(self, data: bytes) -> list[bytes]:
        """Lines, where there are many to look for: none of them goes over a line's end, but for UTF-16."""
        return data.splitlines(keepends=True) if self._by_pair and b"\0" not in data else [data]

    def _in_part(self, part: bytes) -> list[bytes]:
        """The forms that occur in it, the longest first."""
        tried = list(self._plain)
        if self._by_pair:
            words = [word.decode() for word in _WORD_BYTES.findall(part.replace(b"\0", b""))]
            for pair in self._by_pair.keys() & set(itertools.pairwise(words)):
                tried += self._by_pair[pair]
        found = {form for piece in tried for form in self._forms(piece) if form in part}
        return sorted(found, key=lambda form: (-len(form), form))

    def cut(self, text: str) -> str:
        """The text without them, and without the empty lines that they leave."""
        found = self.in_text(text)
        if not found:
            return text
        lines = []
        for line in text.splitlines():
            rest = line
            for piece in found:
                rest = rest.replace(piece, "")
            if rest.strip() or not line.strip():
                lines.append(rest)
        return "\n".join(lines)
