"""Whether a file that came from elsewhere is what its name says, without torch: safetensors, torch's archives, JSON.

Nothing is built of what is read: headers are parsed, pickles only taken apart. Formats: safetensors (an 8 byte
length, a JSON header, one buffer without holes; github.com/huggingface/safetensors, "Format"), and torch.save's zip
(`<name>/data.pkl` beside `<name>/data/<number>`, stored, never packed; pytorch.org/docs/stable/notes/serialization).
"""

import json
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from daemon import durable

MAX_HEADER = 16 << 20  # bytes; of 70 billion weights it is a tenth of a megabyte
MAX_PICKLE = 64 << 20
MAX_JSON = 16 << 20
MAX_LINES = 1 << 30  # bytes of a JSONL
MAX_LINE = 16 << 20
_MAX_ENTRIES = 1 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip
# What torch.load(weights_only=True) lets a pickle of plain tensors name; ours name no more.
_GLOBALS = frozenset(
    ["collections OrderedDict", "torch._utils _rebuild_tensor_v2"]
    + [f"torch {kind}Storage" for kind in
       ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool")]
)  # fmt: skip
# What its unpickler knows (torch/_weights_only_unpickler.py), less all that sets attributes or makes objects.
_OPCODES = frozenset([
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT",
])  # fmt: skip
_INSIDE = re.compile(r"[^/]{1,100}/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
                     r"\.data/serialization_id|data/[0-9]{1,9})")  # fmt: skip


class Malformed(Exception):
    """The file is not what its name says; the message goes behind its name in a sentence."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file of one name, opened without following a link. Raises Malformed."""
    try:
        fd = os.open(path, durable.OPEN_SAFELY)
    except OSError as error:
        raise Malformed(f"cannot be opened ({os.strerror(error.errno or 0)})") from error
    with os.fdopen(fd, "rb") as file:
        told = os.fstat(fd)
        if not stat.S_ISREG(told.st_mode) or told.st_nlink != 1:
            raise Malformed("is a link or no regular file")
        yield file


def read_json(path: Path, most: int = MAX_JSON) -> Any:
    """The content of a JSON file of at most `most` bytes, whose numbers are finite. Raises Malformed."""
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Malformed(f"is larger than {most:,} bytes")
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """Strict: no NaN, no key twice. Raises Malformed."""
    try:
        return json.loads(content, parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Malformed("is no JSON that engramd reads") from error


def check_lines(path: Path, most: int = MAX_LINES) -> Iterator[Any]:
    """The objects of a JSONL, each line whole. Raises Malformed."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise Malformed(f"is larger than {most:,} bytes")
        while line := file.readline(MAX_LINE + 1):
            if not line.endswith(b"\n"):
                raise Malformed("has a line that is too long, or torn")
            yield parse_json(line)


def check_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(type, shape) of each tensor, once header and buffer are known to fit. Raises Malformed."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            kind = "a pickle" if start[:1] == b"\x80" or start[:2] == b"PK" else "no whole safetensors file"
            raise Malformed(f"is {kind} (its header would be {length:,} bytes)")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise Malformed("has a header that is no object")
    told = header.pop("__metadata__", {})
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise Malformed("has metadata that are no texts")
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans = []
    for name, entry in header.items():
        kind, shape, begin, end = _tensor(name, entry)
        found[name] = (kind, shape)
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise Malformed("has tensors that overlap, or leave holes")
        at = end
    if at != size - 8 - length:
        raise Malformed("does not end where its last tensor does")
    return found


def _tensor(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise Malformed(f"has a tensor without type, shape or place: {name[:80]!r}") from None
    numbers = (*shape, begin, end)
    if len(entry) != 3 or kind not in _BITS or not all(type(one) is int and 0 <= one < 1 << 62 for one in numbers):
        raise Malformed(f"has a tensor of no known type, shape or place: {name[:80]!r}")
    count = 1
    for one in shape:
        count *= one
        if count >= 1 << 62:
            break
    if (end - begin) * 8 != count * _BITS[kind]:
        raise Malformed(f"has a tensor that does not fill its place: {name[:80]!r}")
    return kind, shape, begin, end


def check_torch(path: Path) -> None:
    """An archive of torch.save that holds tensors, numbers and texts alone. Raises Malformed."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) != b"PK\x03\x04":
            raise Malformed("is no archive of torch.save")
        try:
            with zipfile.ZipFile(file) as archive:
                _check_pickle(_pickle_of(archive, size))
        except Malformed:
            raise
        except Exception as error:  # zipfile raises many kinds where a file was made to break it
            raise Malformed("is no whole archive of torch.save") from error


def _pickle_of(archive: zipfile.ZipFile, size: int) -> bytes:
    entries = sorted(archive.infolist(), key=lambda one: one.header_offset)
    folders = {one.filename.partition("/")[0] for one in entries}
    if archive.comment or len(entries) > _MAX_ENTRIES or len(folders) != 1:
        raise Malformed("is no archive as torch.save writes it")
    if len({one.filename for one in entries}) != len(entries):
        raise Malformed("has an entry twice")
    ends = 0
    for one in entries:
        if not _INSIDE.fullmatch(one.filename):
            raise Malformed(f"holds {one.filename[:80]!r}, which torch.save does not write")
        packed = one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 0x1 or one.compress_size != one.file_size
        if packed or one.header_offset < ends:
            raise Malformed("has entries that are packed, or overlap")
        ends = one.header_offset + 30 + len(one.filename) + one.file_size
    if entries[0].header_offset != 0 or ends > size:
        raise Malformed("has entries outside of itself")
    pickle = next((one for one in entries if one.filename.endswith("/data.pkl")), None)
    if pickle is None or pickle.file_size > MAX_PICKLE:
        raise Malformed("has no data.pkl of a sensible size")
    return archive.read(pickle)


def _check_pickle(content: bytes) -> None:
    """Only opcodes and globals that tensors need, and nothing behind the end."""
    for opcode, argument, place in pickletools.genops(content):
        if opcode.name == "GLOBAL" and argument not in _GLOBALS:
            raise Malformed(f"names {str(argument)[:80].replace(' ', '.')}, which no tensor needs")
        if opcode.name not in _OPCODES:
            raise Malformed(f"holds a pickle with {opcode.name}, which no tensor needs")
        if opcode.name == "STOP" and place is not None and place + 1 != len(content):
            raise Malformed("has something behind its pickle's end")


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found
