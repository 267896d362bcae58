"""HTML of Gemini's activity as text, and the entries of Takeout's `MyActivity.html`, read in pieces.

An entry is an `outer-cell`: its `header-cell` names the product, its first `content-cell` holds the prompt, a line
with the time and the answer, and the small print (`Details`) may link to the chat (seen in exports).
"""

import codecs
import re
from collections.abc import Iterator
from datetime import tzinfo
from html import unescape
from html.parser import HTMLParser
from typing import BinaryIO, NamedTuple

from daemon.readers.ai_chats import text_of
from daemon.readers.takeout_dates import time_of

CHAT = re.compile(r"(?:gemini|bard)\.google\.com/(?:u/\d+/)?(?:app|chat|gem/[^/?#]+)/(?:c/)?([0-9A-Za-z_-]{4,})")

_BLOCKS = frozenset((
    "p", "div", "br", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "hr", "blockquote",
))  # fmt: skip
_HIDDEN = frozenset(("script", "style", "template", "noscript"))
# Signs that no text holds stand for what tidying may not touch: space, tab and line end of code, a link to a file,
# a link to a Gem.
_SPACE, _TAB, _END, _FILE, _GEM = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
_SIGNS = re.compile("[\ufdd0-\ufdd4\x00]")
_GAPS = re.compile(r"\n{3,}")
_SPACES = re.compile(r"[ \t]*\n[ \t]*")
_LONE_MARK = re.compile(r"(^|\n)(-|\d{1,4}\.)[ \t]*\n+(?=[^\s-])")
_FILE_LINE = re.compile(rf"[-–•]?\s*{_FILE}.*", re.DOTALL)
_HOLDER = re.compile(r"https?://googleusercontent\.com/\S*")
_TAG = re.compile(  # no quote of an attribute is longer in an answer, so that damage costs little
    r"<(/?)([A-Za-z][A-Za-z0-9]*)(?:\s(?:[^'\"<>]++|\"[^\"]{0,4000}+\"|'[^']{0,4000}+'){0,200}+)?/?>"
    r"|<!--(?:[^<>-]++|-(?!->)){0,2000}+-->|<![A-Za-z][^<>]{0,4000}>"
)  # fmt: skip
_DEEPEST = 500
_MOST_TEXT = 1 << 22  # characters of one entry
_MOST_UNFINISHED = 1 << 20  # characters of a tag that does not end


class Cell(NamedTuple):
    """One entry. `product` is "" where the page does not name it, `answer` None where there is none."""

    product: str
    prompt: str
    answer: str | None
    raw: str | None
    time: str | None
    zone_known: bool
    chat: str | None
    files: tuple[str, ...]


class _Words:
    """Collects text as a page shows it: blocks apart, items marked, cells of a table apart, code untouched."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._hidden = 0
        self._code = 0
        self._lists: list[int] = []  # the next number of each list that is open; 0: it has none
        self._first = True  # of the cells of a row

    def start(self, tag: str, href: str = "") -> None:
        if tag in _HIDDEN:
            self._hidden += 1
        elif tag == "li":
            number = self._lists[-1] if self._lists else 0
            self.parts.append(f"\n{number}. " if number else "\n- ")
            if number:
                self._lists[-1] += 1
        elif tag in ("td", "th"):
            if not self._first:
                self.parts.append(" | ")
            self._first = False
        elif tag == "a" and href:
            if "/gems/" in href or "gemini.google.com/gem/" in href:
                self.parts.append(_GEM)
            elif "://" not in href and not href.startswith(("#", "mailto:")):
                self.parts.append(_FILE)
        elif tag in _BLOCKS:
            self._block(tag)
            if tag in ("ul", "ol") and len(self._lists) < _DEEPEST:
                self._lists.append(1 if tag == "ol" else 0)
            self._code += tag == "pre"
            self._first = self._first or tag == "tr"

    def end(self, tag: str) -> None:
        if tag in _HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in _BLOCKS and tag != "br":
            self._block(tag)
            if tag in ("ul", "ol") and self._lists:
                self._lists.pop()
            self._code = max(0, self._code - (tag == "pre"))

    def _block(self, tag: str) -> None:
        if self._code and tag == "br":
            self.parts.append(_END)
        else:
            self.parts.append("\n\n" if tag in ("p", "pre", "table") else "\n")

    def data(self, text: str) -> None:
        if self._hidden:
            return
        if not text.isascii() or "\x00" in text:
            text = _SIGNS.sub("", text)
        if self._code:
            text = text.replace(" ", _SPACE).replace("\t", _TAB).replace("\n", _END)
        self.parts.append(text)


def plain(html: str) -> str:
    """The text of a piece of HTML: paragraphs apart, items of lists with a mark, code as it stands."""
    words = _Words()
    place = 0
    for tag in _TAG.finditer(html):
        if tag.start() > place:
            words.data(_unescaped(html[place : tag.start()]))
        place = tag.end()
        if tag[2]:
            (words.end if tag[1] else words.start)(tag[2].lower())
    words.data(_unescaped(html[place:]))
    return _tidy("".join(words.parts))


def _unescaped(text: str) -> str:
    return unescape(text) if "&" in text else text


def _tidy(text: str) -> str:
    text = _SPACES.sub("\n", text.replace("\u00a0", " "))
    text = _GAPS.sub("\n\n", _LONE_MARK.sub(r"\1\2 ", text))
    return _without_signs(text.strip()).rstrip().lstrip("\n")


def _without_signs(text: str) -> str:
    if text.isascii():
        return text
    text = text.replace(_SPACE, " ").replace(_TAB, "\t").replace(_END, "\n")
    return text.replace(_FILE, "").replace(_GEM, "")


class _Cells(HTMLParser):
    """Collects each `outer-cell`: its product, what stands in its first `content-cell` with text, its chat."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.done: list[tuple[str, str, str | None]] = []  # (product, text, id of the chat)
        self._depth = 0  # of divs, inside an outer cell
        self._content = 0  # depth at which the content cell began
        self._header = 0
        self._clear()

    def _clear(self) -> None:
        self._words = _Words()
        self._title: list[str] = []
        self._size = 0
        self._linked: str | None = None  # the chat that the small print links to
        self._within: str | None = None  # the first one that the entry itself links to

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            classes = next((value or "" for name, value in attrs if name == "class"), "").split()
            if "outer-cell" in classes:
                self._close()
                self._depth = 1
                return
            if self._depth:
                self._depth = min(self._depth + 1, _DEEPEST)
                if "header-cell" in classes and not self._content:
                    self._header = self._depth
                elif "content-cell" in classes and not self._content and not self._words.parts:
                    self._content = self._depth
                    return
        if not self._depth:
            return
        href = next((value or "" for name, value in attrs if name == "href"), "") if tag == "a" else ""
        found = CHAT.search(href) if href else None
        if self._content:
            self._words.start(tag, "" if found else href)
            self._within = self._within or (found[1] if found else None)
        elif found and self._linked is None:
            self._linked = found[1]

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._content = 0 if self._content == self._depth else self._content
            self._header = 0 if self._header == self._depth else self._header
            self._depth -= 1
            if not self._depth:
                self._close()
        elif self._content:
            self._words.end(tag)

    def handle_data(self, data: str) -> None:
        if self._content and self._size < _MOST_TEXT:
            self._words.data(data)
            self._size += len(data)
        elif self._header and len(self._title) < 100:
            self._title.append(data)

    def close(self) -> None:
        super().close()
        self._close()

    def _close(self) -> None:
        if self._words.parts:
            product = " ".join("".join(self._title)[:200].split())
            self.done.append((product, "".join(self._words.parts), self._linked or self._within))
        self._depth = self._content = self._header = 0
        self._clear()


def entries(stream: BinaryIO, zone: tzinfo | None) -> Iterator[Cell]:
    """Each entry of the page, in the file's order. Times that tell no zone are taken in `zone`."""
    parser = _Cells()
    letters = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := stream.read(1 << 16):
        parser.feed(letters.decode(piece))
        if len(parser.rawdata) > _MOST_UNFINISHED:
            parser.rawdata = parser.rawdata.replace("<", "")
        for found in parser.done:
            yield _split(*found, zone)
        parser.done.clear()
    parser.rawdata = parser.rawdata.replace("<", "")  # a tag that never ends
    parser.close()
    for found in parser.done:
        yield _split(*found, zone)


def _split(product: str, text: str, chat: str | None, zone: tzinfo | None) -> Cell:
    """An entry is the prompt, what was attached to it, a line with the time, the answer."""
    text = text_of(text).replace("\u00a0", " ")
    lines = [line.rstrip() for line in text.split("\n")]
    for place, line in enumerate(lines):
        line = " ".join(_without_signs(line).replace("\u202f", " ").split())
        found = time_of(line, zone) if line else None
        if found is not None:
            prompt, files = _asked(lines[:place])
            answer = _tidy("\n".join(lines[place + 1 :])) or None
            return Cell(product, prompt, answer, line, *found, chat, files)
    prompt, files = _asked(lines)
    return Cell(product, prompt, None, None, None, False, chat, files)


def _asked(lines: list[str]) -> tuple[str, tuple[str, ...]]:
    """(The prompt, names of files) of the lines before the time. Which lines are Google's own is seen from their
    links: files, each behind a dash, below a line that counts them; and the Gem that was used."""
    lines = list(lines)
    files: list[str] = []
    counted = True
    while lines:
        line = lines[-1].strip()
        if _FILE_LINE.fullmatch(line):
            files.append(_without_signs(line).lstrip("-–• "))
            counted = False
        elif not counted and len(line) < 80 and any(map(str.isdigit, line)) and len(lines) > 1:
            counted = True
        elif line and _GEM not in line and not (_HOLDER.fullmatch(line) and len(lines) > 1):
            break
        lines.pop()
    return _without_signs("\n".join(lines)).strip(), tuple(reversed(files))
