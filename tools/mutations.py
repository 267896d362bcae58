"""Damaged and unlikely exports, made from good ones: what the fuzzer of the readers drops. All from a seed."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.odd_values import LINES, LONG_UNITS, NAMES, RAW_VALUES, VALUES

ROOT = Path(__file__).resolve().parent.parent
PLACES = (ROOT / "tests" / "fixtures" / "readers", ROOT / "examples" / "formats")
MOST_BYTES = 1 << 18  # of one input: enough for what goes wrong with size, and 100,000 of them in minutes
MOST_NODES = 3000  # of a JSON value that are looked at

RAW = "\x01raw%d\x01"  # stands for one of RAW_VALUES until the JSON is written


@dataclass(frozen=True, slots=True)
class Seed:
    """A good export: its format (the name of its folder), its file name and its bytes."""

    format: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    data: bytes
    story: str  # which seed, and what was done to it


def seeds(places: tuple[Path, ...] = PLACES) -> list[list[Seed]]:
    """The good exports, those of one format together, in a fixed order."""
    found: dict[str, list[Seed]] = {}
    for place in places:
        for path in sorted(place.rglob("*")):
            if path.is_file() and not path.name.endswith(".golden.json") and path.suffix not in (".py", ".pyc"):
                data = path.read_bytes()
                if len(data) <= 4 * MOST_BYTES:
                    part = path.relative_to(place).parts[0] if place == PLACES[0] else path.stem
                    found.setdefault(part, []).append(Seed(part, path.name, data))
    return list(found.values())


def damaged(rng: random.Random, formats: list[list[Seed]]) -> Input:
    """One input: a seed, one to three kinds of damage, perhaps another name and a container around it."""
    seed = rng.choice(rng.choice(formats))
    other = rng.choice(rng.choice(formats))
    story = [f"{seed.format}/{seed.name}"]
    data = seed.data
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        change = rng.choice(_changes_for(data, rng))
        data = change(data, rng, other.data)[:MOST_BYTES]
        story.append(change.__name__.strip("_"))
    name = seed.name
    if rng.random() < 0.25:
        name = rng.choice((*NAMES, other.name))
    if rng.random() < 0.1:
        wrap = rng.choice((_in_gzip, _in_zip, _in_zip, _in_utf16, _with_mark))
        data = wrap(data, name, rng)
        story.append(wrap.__name__.strip("_"))
    return Input(name, data, ", ".join(story))


Change = Callable[[bytes, random.Random, bytes], bytes]


def _changes_for(data: bytes, rng: random.Random) -> tuple[Change, ...]:
    """By structure mostly: bytes that are changed blindly seldom get past the parser."""
    if rng.random() < 0.35:
        return BLIND
    if data[:4] == b"PK\x03\x04":
        return ZIPPED
    return STRUCTURED if data.lstrip()[:1] in (b"{", b"[") else WRITTEN


# ---- bytes ----------------------------------------------------------------------------------------


def _slice(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.paretovariate(0.5)))


def _flip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut_end(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_out(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _slice(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _slice(data, rng)
    times = rng.choice((2, 2, 3, 10, 100, 3000))
    return data[:start] + (data[start:end] * times)[:MOST_BYTES] + data[end:]


def _insert(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    new = rng.choice((*RAW_VALUES, rng.randbytes(rng.randrange(1, 20)), b"\x00" * 9, b'"', b"}", b"]", b"{", b"[", b","))
    return data[:start] + new + data[start:]


def _splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _transplant(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _slice(other, rng)
    place = rng.randrange(len(data) + 1)
    return data[:place] + other[start:end] + data[place:]


def _zeros(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _slice(data, rng)
    return data[:start] + b"\x00" * (end - start) + data[end:]


def _line_ends(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return re.sub(rb"\r?\n", lambda _: rng.choice((b"\n", b"\r\n", b"\r", b"\n\r")), data)


def _digits(data: bytes, rng: random.Random, other: bytes) -> bytes:
    places = [found.start() for found in re.finditer(rb"\d", data)]
    changed = bytearray(data)
    for place in rng.sample(places, min(len(places), rng.choice((1, 3, 30)))):
        changed[place] = 48 + rng.randrange(10)
    return bytes(changed)


BLIND: tuple[Change, ...] = (
    _flip, _cut_end, _cut_out, _repeat, _insert, _splice, _transplant, _zeros, _line_ends, _digits,
)  # fmt: skip


# ---- texts ----------------------------------------------------------------------------------------


def _lines(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 2, 5, 20))):
        place = rng.randrange(len(lines) + 1)
        what = rng.randrange(4)
        if what == 0:
            lines.insert(place, rng.choice(LINES).encode())
        elif what == 1 and place < len(lines):
            lines.insert(rng.randrange(len(lines) + 1), lines[place])
        elif what == 2 and place < len(lines):
            del lines[place]
        elif place < len(lines):
            lines[place] = rng.choice(LINES).encode() + lines[place]
    return b"\n".join(lines)


def _long_line(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    unit = rng.choice((lines[place], *LONG_UNITS))
    lines[place] += (unit * (MOST_BYTES // max(1, len(unit))))[: rng.choice((2_000, 20_000, 200_000))]
    return b"\n".join(lines)


def _shuffled(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def _mixed(data: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = data.split(b"\n")
    for line in other.split(b"\n")[:200]:
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _other_digits(data: bytes, rng: random.Random, other: bytes) -> bytes:
    first = rng.choice((0x0660, 0x06F0, 0x0966, 0x1D7CE, 0xFF10, 0x2460))
    text = data.decode("utf-8", "replace")
    return re.sub(r"\d", lambda found: chr(first + ord(found[0]) % 10), text, flags=re.ASCII).encode()


WRITTEN: tuple[Change, ...] = (_lines, _lines, _lines, _long_line, _shuffled, _mixed, _other_digits, _digits)


# ---- JSON -----------------------------------------------------------------------------------------


def _structure(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Values, keys and order changed within one JSON value or the lines of a JSONL."""
    try:
        values = [json.loads(data)]
    except (ValueError, RecursionError):
        try:
            values = [json.loads(line) for line in data.split(b"\n") if line.strip()]
        except (ValueError, RecursionError):
            return _insert(data, rng, other)
    holders: list[Any] = []
    _collect(values, holders)
    holders = [holder for holder in holders if holder]
    for _ in range(rng.choice((1, 1, 2, 3, 10))):
        if holders:
            _change_in(rng.choice(holders), holders, rng)
    lines = []
    for value in values:
        try:
            text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
        except (ValueError, RecursionError):  # a value was put inside itself
            return data
        lines.append(text.encode("utf-8", "surrogatepass"))
    written = b"\n".join(lines)
    return re.sub(rb'"\\u0001raw(\d+)\\u0001"', lambda found: RAW_VALUES[int(found[1])], written)


def _collect(value: Any, found: list[Any]) -> None:
    todo = [value]
    while todo and len(found) < MOST_NODES:
        one = todo.pop()
        if isinstance(one, dict | list):
            found.append(one)
            todo.extend(one.values() if isinstance(one, dict) else one)


def _change_in(holder: Any, holders: list[Any], rng: random.Random) -> None:
    places = list(holder) if isinstance(holder, dict) else range(len(holder))
    if not places:
        return
    place = rng.choice(places)
    what = rng.randrange(10)
    if what <= 3:
        holder[place] = rng.choice(VALUES)
    elif what == 4:
        holder[place] = RAW % rng.randrange(len(RAW_VALUES))
    elif what == 5:
        del holder[place]
    elif what == 6:
        giver = rng.choice(holders)
        given = giver.values() if isinstance(giver, dict) else giver
        leaves = [one for one in given if not isinstance(one, dict | list)]
        if leaves:
            holder[place] = rng.choice(leaves)
    elif what == 7 and isinstance(holder, dict):
        other = rng.choice(holders)
        if isinstance(other, dict) and other:
            there = rng.choice(list(other))
            other[there] = holder.pop(place)
    elif what == 8 and isinstance(holder, list):
        rng.shuffle(holder)
    elif what == 9:
        holder[place] = [holder[place]] if rng.random() < 0.5 else {"text": holder[place]}


STRUCTURED: tuple[Change, ...] = (_structure, _structure, _structure, _structure, _digits, _lines)


# ---- containers -----------------------------------------------------------------------------------


def _members(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Files within a zip damaged, renamed, doubled or left out."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [(info.filename, archive.read(info)) for info in archive.infolist()[:200]]
    except Exception:  # it was damaged before
        return _flip(data, rng, other)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not files:
            break
        place = rng.randrange(len(files))
        name, inner = files[place]
        what = rng.randrange(8)
        if what <= 3 and inner:
            files[place] = (name, rng.choice(_changes_for(inner, rng))(inner, rng, other)[:MOST_BYTES])
        elif what == 4:
            del files[place]
        elif what == 5:
            files[place] = (rng.choice(("../" + name, "/" + name, "a\\b", "x/" + name, "\ud83d", *NAMES)) or "y", inner)
        elif what == 6:
            files.append((rng.choice((name, "extra/" + name, "new.json", "new.txt")), inner))
        else:
            files.append((rng.choice(NAMES) or "z", other))
    return _zip(files, rng)


def _zip(files: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, inner in files:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode(), (2024, 1, 15, 9, 0, 0))
            info.compress_type = archive.compression
            archive.writestr(info, inner)
    return packed.getvalue()


ZIPPED: tuple[Change, ...] = (_members, _members, _members, _flip, _cut_end, _cut_out, _zeros, _splice)


def _in_gzip(data: bytes, name: str, rng: random.Random) -> bytes:
    packed = gzip.compress(data, 1, mtime=0)
    return packed if rng.random() < 0.5 else rng.choice((_flip, _cut_end, _cut_out))(packed, rng, b"")


def _in_zip(data: bytes, name: str, rng: random.Random) -> bytes:
    folder = rng.choice(("", "Takeout/", "Slackexport/general/", "a/b/c/", "__MACOSX/", "messages/c1/"))
    return _zip([(folder + (name or "x"), data), (rng.choice(NAMES) or "y", data[:100])], rng)


def _in_utf16(data: bytes, name: str, rng: random.Random) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "utf-16-le")))


def _with_mark(data: bytes, name: str, rng: random.Random) -> bytes:
    return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xef\xbb\xbf\xef\xbb\xbf")) + data
