"""Where one message of a mailbox ends and the next begins, and which of its lines may be text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

LONGEST_MESSAGE = 32 << 20  # bytes, without its attachments
LONGEST_LINE = 1 << 16  # bytes; a longer one comes in pieces
LONGEST_HEADER = 1 << 18  # bytes of all header lines of a part that are kept
LONGEST_FIELD = 1 << 14

_FROM_ = re.compile(rb"From (?=.*\d\d:\d\d)(?=.*\d{4})")
LONGEST_FROM = 300  # bytes of a "From " line that are looked at
_QUOTED_FROM = re.compile(rb">+From ")
_FIELD = re.compile(rb"([!-9;-~]{1,80})[ \t]*:(.*)", re.DOTALL)
_BOUNDARY = re.compile(rb"boundary\s*=\s*(?:\"([^\"]{1,200})\"|([^\s;\"]{1,200}))", re.IGNORECASE)
_LETTER_FIELDS = frozenset((
    "date", "message-id", "received", "mime-version", "return-path", "delivered-to", "content-type", "x-mailer",
    "in-reply-to", "dkim-signature",
))  # fmt: skip
_WANTED = frozenset((
    "from", "subject", "date", "message-id", "references", "in-reply-to", "received", "precedence",
    "auto-submitted", "x-autoreply", "x-autorespond", "list-id", "list-unsubscribe", "list-post", "x-gmail-labels",
    "x-gm-thrid",
))  # fmt: skip
_STRUCTURE = frozenset(("content-type", "content-transfer-encoding", "content-disposition"))


@dataclass(slots=True)
class Letter:
    """One message: the header fields that matter (first of each, unfolded), and a body of what may be text."""

    from_line: str = ""  # of an mbox
    fields: dict[str, bytes] = field(default_factory=dict)
    body: bytes = b""  # a message again: only the header lines that say how it is built, and its text parts
    problem: str = ""


def looks_like_mbox(head: bytes) -> bool:
    first, _, rest = head.partition(b"\n")
    if not first.startswith(b"From ") or not _FROM_.match(first[:LONGEST_FROM]):
        return False
    second = rest.partition(b"\n")[0]
    return _FIELD.match(second.lstrip(b">")) is not None


def looks_like_letter(head: bytes) -> bool:
    """A header of a mail, as no text of a person begins: From with an address, and fields that programs write."""
    names: set[str] = set()
    sent, last = False, b""
    lines = head.split(b"\n")
    if lines and lines[0].strip().isdigit():
        lines = lines[1:]  # Apple's .emlx begins with its length
    for line in lines[:500]:
        line = line.rstrip(b"\r")
        if not line:
            break
        if line[:1] in b" \t" and names:
            sent = sent or (last == b"from" and b"@" in line)
            continue
        found = _FIELD.match(line)
        if found is None:
            return False
        last = found[1].lower()
        names.add(last.decode("ascii"))
        sent = sent or (last == b"from" and b"@" in found[2])
    return sent and not names.isdisjoint(_LETTER_FIELDS)


def letters(stream: BinaryIO) -> Iterator[Letter]:
    """The messages of an mbox, or the one of an .eml."""
    start = stream.tell()
    first = stream.readline(LONGEST_LINE)
    if not first.startswith(b"From "):
        if not first.strip().isdigit():
            stream.seek(start)
            yield _letter(stream, "", _Gathered(), boxed=False)[0]
        else:
            yield from _emlx(stream, int(first.strip()[:12]))
        return
    from_line: bytes | None = first
    while from_line is not None:
        shown = from_line[:LONGEST_FROM].decode("latin-1").strip()
        letter, from_line = _letter(stream, shown, _Gathered(), boxed=True)
        yield letter


def _emlx(stream: BinaryIO, size: int) -> Iterator[Letter]:
    """Apple Mail: a line with the length, the message, then a property list that is none of it."""
    import io

    yield _letter(io.BytesIO(stream.read(min(size, LONGEST_MESSAGE))), "", _Gathered(), boxed=False)[0]


class _Gathered:
    """The lines of one message that may be text; what is an attachment is let go at once."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.fields: dict[str, bytes] = {}
        self.in_header = True
        self.passing = False  # within an attachment
        self._top = True
        self._header: list[bytes] = []
        self._header_size = 0
        self._boundaries: set[bytes] = set()

    def header_line(self, line: bytes) -> None:
        if line.strip():
            if self._header_size < LONGEST_HEADER:
                self._header.append(line)
                self._header_size += len(line)
            return
        self.end_of_header()

    def end_of_header(self) -> None:
        """Decide what the part is, and keep of its header what says how it is built."""
        found = _fields(self._header)
        if self._top:
            self.fields = {name: value for name, value in found.items() if name in _WANTED}
        kind = found.get("content-type", b"text/plain").strip().lower()
        for name in _STRUCTURE & found.keys():
            value = found[name].replace(b"\n", b" ").replace(b"\r", b" ")
            self.keep(b"%s: %s\n" % (name.encode(), value.strip()[:2000]))
        self.keep(b"\n")
        if boundary := _BOUNDARY.search(found.get("content-type", b"")):
            self._boundaries.add((boundary[1] or boundary[2]).rstrip())
        disposition = found.get("content-disposition", b"").strip().lower()
        texts = kind.startswith((b"text/", b"multipart/")) or b"/" not in kind
        self.passing = not texts or disposition.startswith(b"attachment")
        self._header, self._header_size = [], 0
        self._top = self.in_header = False

    def keep(self, line: bytes) -> None:
        self.size += len(line)
        self.lines.append(line)

    def opens_part(self, line: bytes) -> bool:
        """Whether a line that begins with "--" is a boundary; if so, the part before it is over."""
        mark = line[2:].strip()
        if mark in self._boundaries:
            self.in_header = True
        elif mark.endswith(b"--") and mark[:-2].rstrip() in self._boundaries:
            self.in_header = False
        else:
            return False
        self.passing = False
        return True


def _letter(stream: BinaryIO, from_line: str, got: _Gathered, *, boxed: bool) -> tuple[Letter, bytes | None]:
    """The message from here on, and the "From " line of the next one; None at the end."""
    blank = False
    following: bytes | None = None
    readline = stream.readline
    too_long = False
    while line := readline(LONGEST_LINE):
        if boxed and blank and line.startswith(b"From ") and _FROM_.match(line[:LONGEST_FROM]):
            following = line
            break
        blank = line in (b"\n", b"\r\n")
        if got.in_header:
            got.header_line(line)
        elif (line.startswith(b"--") and got.opens_part(line)) or not got.passing:
            if boxed and line.startswith(b">") and _QUOTED_FROM.match(line):
                line = line[1:]
            if got.size > LONGEST_MESSAGE:
                too_long = True
                continue
            got.keep(line)
    if got.in_header:
        got.end_of_header()
    if too_long:
        return Letter(from_line, got.fields, b"", f"longer than {LONGEST_MESSAGE >> 20} MiB"), following
    return Letter(from_line, got.fields, b"".join(got.lines)), following


def _fields(lines: list[bytes]) -> dict[str, bytes]:
    """Each field's first value, unfolded; lines that are no field are passed over."""
    found: dict[str, bytes] = {}
    name = ""
    for line in lines:
        if line[:1] in b" \t":
            if name and len(found[name]) < LONGEST_FIELD:
                found[name] += b" " + line.strip()
            continue
        match = _FIELD.match(line)
        name = match[1].lower().decode("ascii") if match else ""
        if match and name not in found:
            found[name] = match[2].strip()[:LONGEST_FIELD]
        elif match:
            name = ""  # a field that was there already: what follows it is not the first one's
    return found
