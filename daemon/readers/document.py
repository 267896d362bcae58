"""From bytes to text or JSON: what a file is made of is seen from its structure, not from its name."""

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from daemon.readers.shape import MIB, Limits
from daemon.records import BadItem, Refused

HEAD = 1 << 16
SNIFFED_LINES = 20
LINE_NAMES = (".jsonl", ".ndjson", ".jsonlines")
JSON_NAMES = (".json", *LINE_NAMES)

_WIDE_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_UTF8_MARK = b"\xef\xbb\xbf"
_KNOWN_BINARY = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "compressed"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"SQLite format 3", "a database; imessage-exporter makes text of iMessage's chat.db"),
    (b"\xd0\xcf\x11\xe0", "an old Office document or an Outlook message: save it as text or .eml"),
    (b"{\\rtf", "an RTF document"),
)
_MARKUP = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)
_OPENS_JSON = re.compile(rb"\s*[\[{]")
_SURELY_JSON = re.compile(rb"\s*(?:\{\s*\"|\[\s*\{\s*\")")  # no text of a person begins so
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

_INSIDE_WORD = re.compile(r"(?<=[A-Za-z])[^\x00-\x7f](?=[A-Za-z])")

# Encodings in which people's old texts are, the likelier first: where two read equally well, it decides.
_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "koi8_r",
    "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr",
)  # fmt: skip


class Torn(Exception):
    """JSON that cannot be parsed; the message is a short reason."""


def parse(raw: bytes | bytearray) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Torn(_reworded(str(error))) from None


def _reworded(message: str) -> str:
    if "depth limit" in message or "ecursion" in message:
        return "it is nested too deep"
    if "infinity" in message:
        return "a number is too large"
    if "surrogate in" in message:
        return "a character is cut in half (a lone surrogate)"
    if "UTF-8" in message:
        return "it is not UTF-8"
    what, _, where = message.partition(": line ")
    line = where.split(" ", 1)[0]
    what = {"unexpected end of data": "it ends too early"}.get(what, what)
    return f"{what} (line {line})" if line.isdigit() and line != "1" else what


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB" if size >= MIB // 10 else f"{size:,} bytes"


# ---- what kind of file ----------------------------------------------------------------------------


def opened(stream: BinaryIO, size: int, limits: Limits) -> tuple[BinaryIO, bytes]:
    """The stream at its start, as UTF-8 without its mark where it has one, and its first bytes."""
    if size > limits.max_file_bytes:
        raise Refused(f"the file is too large: {_mib(size)}, at most {_mib(limits.max_file_bytes)}")
    head = stream.read(HEAD)
    for mark, encoding in _WIDE_MARKS:
        if head.startswith(mark):
            raw = head + _all_of(stream, limits, len(head))
            try:
                data = raw.decode(encoding).removeprefix("\ufeff").encode()
            except UnicodeError:
                raise Refused(f"the file is not text: it begins as {encoding} and is not") from None
            stream, head = io.BytesIO(data), data[:HEAD]
            break
    start = len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0
    head = head[start:]
    if not head.strip():
        raise Refused("the file is empty")
    stream.seek(start)
    return stream, head


def refuse_what_is_no_text(head: bytes) -> None:
    """Raise Refused for bytes that no reader of text or JSON can take."""
    for magic, what in _KNOWN_BINARY:
        if head.startswith(magic):
            raise Refused(f"the file is not text: it is {what}")
    controls = not _SURELY_JSON.match(head)  # JSON of which a power cut left zeros is JSON with a bad line
    if controls and (b"\x00" in head or len(_CONTROL.findall(head)) > len(head) // 1000):
        raise Refused("the file is not text: it holds control bytes")
    if _MARKUP.match(head):
        raise Refused("the file is HTML or XML, which no reader knows")


def looks_like_json(head: bytes, name: str) -> bool:
    """JSON by its name, or by a beginning that no text of a person has. Text may open with a bracket."""
    return name.lower().endswith(JSON_NAMES) or _SURELY_JSON.match(head) is not None


def may_be_json(head: bytes) -> bool:
    return _OPENS_JSON.match(head) is not None


def whole_text(stream: BinaryIO, limits: Limits) -> str:
    """The text of a document, line ends as \\n."""
    raw = _all_of(stream, limits)
    if b"\x00" in raw:
        raise Refused("the file is not text: it holds control bytes")
    return decoded(raw).replace("\r\n", "\n").replace("\r", "\n")


def decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    from charset_normalizer import from_bytes  # heavy: loaded by the first old text only

    matches = list(from_bytes(raw[: 256 * 1024], cp_isolation=list(_ENCODINGS)))
    scores = [match.coherence - match.chaos for match in matches]
    equal = {
        name
        for match, score in zip(matches, scores, strict=True)
        if score > max(scores) - 0.05  # nearer than that, its scores tell nothing
        for name in match.could_be_from_charset
    }
    texts = []
    for encoding in sorted(equal & set(_ENCODINGS), key=_ENCODINGS.index):
        try:
            texts.append(raw.decode(encoding))
        except UnicodeDecodeError:
            continue
    if texts:
        return min(texts, key=_odd_signs)  # the first of the best
    raise Refused("the file is not text in any encoding that is known here")


def _odd_signs(text: str) -> int:
    """Signs in the middle of words, such as a letter becomes in the wrong encoding."""
    return sum(1 for found in _INSIDE_WORD.finditer(text) if not found[0].isalpha())


def _all_of(stream: BinaryIO, limits: Limits, had: int = 0) -> bytes:
    raw = stream.read(limits.max_document_bytes + 1 - had)
    if had + len(raw) > limits.max_document_bytes:
        raise Refused(
            f"the document is too large: a text or one JSON value may have "
            f"{_mib(limits.max_document_bytes)}; JSONL, one object a line, may have more"
        )
    return raw


# ---- JSON -----------------------------------------------------------------------------------------


def is_lines(stream: BinaryIO, head: bytes, name: str, limits: Limits) -> bool:
    """Whether JSON comes as one value a line. The stream is put back where it was."""
    start = stream.tell()
    try:
        first = _first_line(stream, limits.max_document_bytes)
        if first is None:  # one line that is too long to be a document
            return name.lower().endswith(LINE_NAMES)
        try:
            value = parse(first)
        except Torn:
            if name.lower().endswith(LINE_NAMES):
                return not _is_document(stream, start, limits)
            return not first.lstrip().startswith(b"[") and _good_line_in(head)
        return isinstance(value, (dict, list)) and _is_more(stream)
    finally:
        stream.seek(start)


def _first_line(stream: BinaryIO, limit: int) -> bytes | None:
    while line := stream.readline(limit + 1):
        if len(line) > limit:
            return None
        if line.strip():
            return line
    return b""


def _is_document(stream: BinaryIO, start: int, limits: Limits) -> bool:
    """A file named .jsonl may hold one value over many lines all the same."""
    stream.seek(start)
    raw = stream.read(limits.max_document_bytes + 1)
    if len(raw) > limits.max_document_bytes:
        return False
    try:
        parse(raw)
    except Torn:
        return False
    return True


def _is_more(stream: BinaryIO) -> bool:
    while chunk := stream.read(HEAD):
        if chunk.strip():
            return True
    return False


def _good_line_in(head: bytes) -> bool:
    """Whether a bad first line is followed by whole objects: a JSONL with one bad line, no torn document."""
    for line in head.split(b"\n")[1:SNIFFED_LINES]:
        if line.startswith(b"{"):
            try:
                parse(line)
            except Torn:
                continue
            return True
    return False


def lines(stream: BinaryIO, limits: Limits) -> Iterator[tuple[int, Any | BadItem]]:
    """(number, value) of each line that is not blank; a line that is no JSON is a BadItem.

    A line over the limit is passed over in pieces, so that no line decides how much memory is used.
    """
    number = 0
    limit = limits.max_line_bytes
    readline = stream.readline
    loads = orjson.loads
    while line := readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            while (rest := readline(HEAD)) and not rest.endswith(b"\n"):
                pass
            yield number, BadItem(f"line {number}", f"longer than {_mib(limit)}")
            continue
        try:
            value = loads(line)
        except orjson.JSONDecodeError as error:
            if line.isspace():
                continue
            yield number, BadItem(f"line {number}", _reworded(str(error)))
            continue
        yield number, value


def document(stream: BinaryIO, limits: Limits) -> Any:
    """The one JSON value of a file, in whatever encoding."""
    raw = _all_of(stream, limits)
    try:
        try:
            return parse(raw)
        except Torn as error:
            if "UTF-8" not in str(error):
                raise
            return parse(decoded(raw).encode())
    except Torn as error:
        raise Refused(f"the JSON cannot be read: {error}") from None
