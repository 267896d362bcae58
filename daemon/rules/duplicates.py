"""Texts that say the same again: exact duplicates, and near ones by MinHash. The first stays.

A text becomes the set of its runs of three words (Broder, "On the resemblance and containment of documents",
1997). One permutation of that set fills 64 bins (Li, Owen and Zhang, "One Permutation Hashing", NIPS 2012);
an empty bin borrows from another in an order that is fixed for each bin (Shrivastava, "Optimal Densification
for Fast and Accurate Minwise Hashing", ICML 2017). Four bins are a band; two texts that share one are compared
for real, by the Jaccard similarity of their runs. So a band may miss a pair, and never invents one.

Texts that name other numbers are not alike, however many words they share: "paid 12 on May 3" and "paid 40
on June 9" are two memories. Texts below 8 words count as alike only if they are the same words.

The form of signatures and bands is that of a stored index: to change a constant here is to build it anew.
"""

import re
import unicodedata
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Generic, TypeVar
from zlib import crc32

if TYPE_CHECKING:
    from daemon.rules.curation import Curation

THRESHOLD = 0.8
NEAR_WORDS = 8  # shorter texts: only the same words are a duplicate
SHINGLE_WORDS = 3
BINS = 64
ROWS = 4  # bins in a band: 16 bands find a pair of similarity 0.8 nearly always
MOST_COMPARED = 50  # of the texts that share a band; more is a template, not a copy

Signature = tuple[int, ...]  # 64 bins and the numbers that the text names; of a short text its hash alone

_NO_WORD = {code: " " for code in range(128) if not chr(code).isalnum()}
_ANY_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿가-힯]|[^\W_぀-ヿ㐀-䶿一-鿿가-힯]+")  # a sign of CJK is a word
_MASK = 2**64 - 1
_SPREAD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads 32 bits of CRC over 64
_PRIME = 2**61 - 1  # bands lie below it, so that SQLite's integers hold them
_SALT = 0x1B873593CC9E2D51 % _PRIME
_BAND = Struct(f"<{BINS}Q")


def _orders() -> tuple[tuple[int, ...], ...]:
    """For each bin the order in which it asks the others when it is empty: drawn once, by arithmetic."""
    found = []
    for bin_ in range(BINS):
        keys = {other: crc32(b"%d asks %d" % (bin_, other)) for other in range(BINS) if other != bin_}
        found.append(tuple(sorted(keys, key=keys.__getitem__)))
    return tuple(found)


_ORDERS = _orders()


def words_of(text: str) -> list[str]:
    """The words as duplicates are compared: without case, punctuation and white space."""
    if text.isascii():
        words = text.lower().translate(_NO_WORD).split()  # many times faster than a pattern
    else:
        plain = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode()).casefold()
        words = _ANY_WORD.findall(plain)
    return words or ["".join(text.split())] if text.strip() else []


def shingles(words: list[str]) -> set[int]:
    """Hashes of all runs of three words; of a shorter text the hash of all its words."""
    if len(words) < SHINGLE_WORDS:
        return {crc32(" ".join(words).encode())}
    return set(map(crc32, map(str.encode, map(" ".join, zip(words, words[1:], words[2:], strict=False)))))


def _numbers(words: list[str]) -> list[str]:
    """What the text counts, dates and prices with, sorted."""
    if "".join(words).isalpha():
        return []
    return sorted(word for word in words if not word.isalpha() and any(map(str.isdigit, word)))


def signature(text: str) -> Signature:
    """The MinHash of a text; two equal texts have equal ones, in every process and release."""
    return _signature(words_of(text))


def _signature(words: list[str]) -> Signature:
    if len(words) < NEAR_WORDS:
        raw = " ".join(words).encode()
        return ((crc32(raw) << 29 ^ crc32(raw[::-1])) % _PRIME,) if words else ()
    spread = sorted([one * _SPREAD & _MASK for one in shingles(words)], reverse=True)
    least = {one >> 58: one for one in spread}  # the last one written to a bin is its least
    bins = list(map(least.get, range(BINS)))
    if len(least) < BINS:
        filled = least.__contains__
        for bin_, one in enumerate(bins):
            if one is None:  # marked with its bin: two that borrow the same have not found the same
                bins[bin_] = least[next(filter(filled, _ORDERS[bin_]))] ^ bin_
    numbers = " ".join(_numbers(words)).encode()
    return (*bins, crc32(numbers))  # type: ignore[arg-type]


def bands(signed: Signature) -> list[int]:
    """What an index stores: whole numbers below 2^61. Texts that are alike share at least one, nearly always."""
    if len(signed) <= 1:
        return list(signed)
    raw, salt = _BAND.pack(*signed[:BINS]), signed[BINS] * _SALT + 1
    width = 8 * ROWS
    return [
        (int.from_bytes(raw[at : at + width], "little") * _SPREAD + salt * (at + 1)) % _PRIME
        for at in range(0, 8 * BINS, width)
    ]


def text_key(text: str) -> int | None:
    """A whole number below 2^61 for the words of a text: what recurs word for word has the same. None without words."""
    raw = " ".join(words_of(text)).encode("utf-8", "replace")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big") % _PRIME if raw else None


def bands_of(text: str) -> list[int]:
    return bands(signature(text))


def similarity(one: str, other: str) -> float:
    """From 0.0 to 1.0: shared runs of three words among all; 1.0 for the same words. Short texts: 0.0 or 1.0.

    0.0 where the numbers that they name differ.
    """
    mine, yours = words_of(one), words_of(other)
    if mine == yours:
        return 1.0
    if min(len(mine), len(yours)) < NEAR_WORDS or _numbers(mine) != _numbers(yours):
        return 0.0
    left, right = shingles(mine), shingles(yours)
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def are_alike(one: str, other: str, curation: "Curation") -> bool:
    """Whether the later of the two is left out under these settings."""
    return curation.duplicates and similarity(one, other) >= curation.duplicate_threshold


Key = TypeVar("Key")


class Deduplicator(Generic[Key]):
    """Texts that came before, in memory: about 3 KB for each that is not a duplicate."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._firsts: list[tuple[Key, str]] = []
        self._index: dict[int, int | list[int]] = {}  # band -> number(s) of firsts

    def seen(self, key: Key, text: str) -> Key | None:
        """The key of the first text that this one repeats; None (and it is remembered) where it is new."""
        found = bands_of(text)
        index = self._index
        looked_at: set[int] = set()
        for band in found:
            numbers = index.get(band)
            if numbers is None:
                continue
            for number in (numbers,) if isinstance(numbers, int) else numbers:
                if number in looked_at:
                    continue
                if len(looked_at) >= MOST_COMPARED:
                    break
                looked_at.add(number)
                first, said = self._firsts[number]
                if similarity(text, said) >= self._threshold:
                    return first
        if found:
            self._remember(found, key, text)
        return None

    def _remember(self, found: list[int], key: Key, text: str) -> None:
        index, number = self._index, len(self._firsts)
        self._firsts.append((key, text))
        for band in found:
            others = index.setdefault(band, number)
            if isinstance(others, int):
                if others != number:
                    index[band] = [others, number]
            elif len(others) < MOST_COMPARED:
                others.append(number)
