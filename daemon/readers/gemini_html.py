"""HTML of Gemini's activity as text, and the entries of `MyActivity.html`, read in pieces."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from html.parser import HTMLParser
from typing import BinaryIO

from daemon.readers.ai_chats import text_of
from daemon.readers.dates import local_to_utc

_BLOCKS = frozenset((
    "p", "div", "br", "li", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "hr",
))  # fmt: skip
_GAPS = re.compile(r"\n{3,}")
_SPACES = re.compile(r"[ \t]*\n[ \t]*")
_DEEPEST = 500
_MOST_TEXT = 1 << 22  # characters of one entry
# Hours from UTC of the short names that Takeout writes; CST and others that mean several are taken as in the US.
_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "MEZ": 1, "CEST": 2, "MESZ": 2, "EET": 2,
    "EEST": 3, "MSK": 3, "IST": 5.5, "JST": 9, "AEST": 10, "AEDT": 11, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5,
    "MST": -7, "MDT": -6, "PST": -8, "PDT": -7,
}  # fmt: skip
_MONTHS = {name: number for number, name in enumerate(
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)}  # fmt: skip
_DATE = re.compile(
    r"(?:(?P<mon>[A-Z][a-z]{2,8})\.? (?P<d1>\d{1,2}), (?P<y1>\d{4})"
    r"|(?P<d2>\d{1,2}) (?P<mon2>[A-Z][a-z]{2,8})\.? (?P<y2>\d{4})"
    r"|(?P<d3>\d{1,2})\.(?P<m3>\d{1,2})\.(?P<y3>\d{4}))"
    r",? (?P<h>\d{1,2}):(?P<mi>\d\d):(?P<s>\d\d)(?: ?(?P<half>[AP]M))?(?: (?P<zone>[A-Z]{1,5})(?P<off>[+-]\d{1,2})?)?$"
)

Found = tuple[str, str | None, str | None, str | None, bool, str | None]


class _Plain(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in _BLOCKS:
            self.parts.append("\n\n" if tag == "p" else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)
        elif tag in _BLOCKS and tag not in ("br", "li"):
            self.parts.append("\n\n" if tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def plain(html: str) -> str:
    """The text of a piece of HTML: paragraphs apart, items of lists with a dash."""
    parser = _Plain()
    whole = html.rfind(">") + 1
    parser.feed(html[:whole] + html[whole:].replace("<", ""))  # a tag that never ends is no tag, and costs much
    parser.close()
    text = "".join(parser.parts).replace("\u00a0", " ")
    return _GAPS.sub("\n\n", _SPACES.sub("\n", text)).strip()


class _Cells(HTMLParser):
    """Collects the text of each `outer-cell`: what stands in its first `content-cell` with text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.done: list[tuple[str, str | None]] = []  # (text, id of the chat)
        self._depth = 0  # of divs, inside an outer cell
        self._content = 0  # depth at which the content cell began
        self._parts: list[str] = []
        self._size = 0
        self._chat: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = next((value or "" for name, value in attrs if name == "class"), "").split()
        if tag == "div":
            if "outer-cell" in classes:
                self._close()
                self._depth = 1
                return
            if self._depth:
                self._depth = min(self._depth + 1, _DEEPEST)
                if "content-cell" in classes and not self._content and not self._parts:
                    self._content = self._depth
                    return
        if self._content:
            href = next((value or "" for name, value in attrs if name == "href"), "")
            found = re.search(r"/app/([0-9a-zA-Z]+)", href)
            self._chat = found[1] if found else self._chat
            if tag == "br":
                self._parts.append("\n")
            elif tag == "li":
                self._parts.append("\n- ")
            elif tag in _BLOCKS:
                self._parts.append("\n\n" if tag == "p" else "\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            if self._content == self._depth:
                self._content = 0
            self._depth -= 1
            if not self._depth:
                self._close()
        elif self._content and tag in _BLOCKS and tag not in ("br", "li"):
            self._parts.append("\n\n" if tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        if self._content and self._size < _MOST_TEXT:
            self._parts.append(data)
            self._size += len(data)

    def close(self) -> None:
        super().close()
        self._close()

    def _close(self) -> None:
        if self._parts:
            self.done.append(("".join(self._parts), self._chat))
        self._parts, self._size, self._chat, self._content, self._depth = [], 0, None, 0, 0


def entries(stream: BinaryIO, zone: tzinfo | None) -> Iterator[Found]:
    """(prompt, answer, raw time, UTC, whether its zone is known, id of the chat) of each entry, in the file's order."""
    parser = _Cells()
    while piece := stream.read(1 << 16):
        # A piece may end inside a character: the parser keeps what is unfinished, so cut at a line or a tag.
        rest = piece if piece.endswith((b">", b"\n")) else piece + stream.readline(1 << 16)
        parser.feed(rest.decode("utf-8", "replace").replace("\x00", ""))
        for text, chat in parser.done:
            yield _split(text, chat, zone)
        parser.done.clear()
    parser.rawdata = parser.rawdata.replace("<", "")  # a tag that never ends
    parser.close()
    for text, chat in parser.done:
        yield _split(text, chat, zone)


def _split(text: str, chat: str | None, zone: tzinfo | None) -> Found:
    """A cell is the prompt, a line with the time, the answer."""
    text = text_of(text).replace("\u00a0", " ").replace("\u202f", " ")
    lines = [line.strip() for line in text.split("\n")]
    for place, line in enumerate(lines):
        found = _DATE.match(line) if 12 < len(line) < 60 else None
        if found is None:
            continue
        time, known = _time(found, zone)
        if time is None:
            continue
        answer = _GAPS.sub("\n\n", "\n".join(lines[place + 1 :])).strip()
        return "\n".join(lines[:place]).strip(), answer or None, line, time, known, chat
    return "\n".join(lines).strip(), None, None, None, False, chat


def _time(found: re.Match[str], zone: tzinfo | None) -> tuple[str | None, bool]:
    named = (found["mon"] or found["mon2"] or "")[:3].lower()
    month = _MONTHS.get(named) if named else int(found["m3"])
    day, year = found["d1"] or found["d2"] or found["d3"], found["y1"] or found["y2"] or found["y3"]
    hour = int(found["h"])
    if found["half"]:
        hour = hour % 12 + (12 if found["half"] == "PM" else 0)
    hours = _ZONES.get(found["zone"] or "")
    if hours is not None and found["off"]:
        hours = hours + int(found["off"])
    try:
        moment = datetime(int(year), month or 0, int(day), hour, int(found["mi"]), int(found["s"]))  # noqa: DTZ001
        if hours is not None:
            moment = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    except (ValueError, OverflowError):
        return None, False
    return local_to_utc(moment, zone), hours is not None
