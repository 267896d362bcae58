"""Markdown journals: front matter, and what Obsidian adds to Markdown taken out or made plain."""

import re
from collections.abc import Iterator
from typing import Any

from daemon.readers.dates import date_in, parse_time
from daemon.readers.shape import FileFacts, TextReader, tags_of
from daemon.records import BadItem, Memory

SUFFIXES = (".md", ".markdown", ".mdown", ".mkd")
DATE_KEYS = ("date", "created", "created_at", "creation date", "creation_date", "datum", "day", "timestamp")
TYPES = ("journal", "dream", "daydream", "reflection", "observation", "inner_dialogue", "summary")
MOST_HEADER = 1 << 16  # characters of front matter; more is no header
QUERIES = ("dataview", "dataviewjs", "tasks", "query", "button", "templater")  # code that only Obsidian runs

_HEADER = re.compile(r"---[ \t]*\n(?:(.*?)\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]|\\U0000[dD][89a-fA-F]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w-]*)")
_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
_EMBED = re.compile(r"!\[\[[^\[\]\n]*\]\]")
_IMAGE = re.compile(r"!\[[^\[\]\n]*\]\([^()\n]*\)")
_LINK = re.compile(r"\[\[([^\[\]\n|#]*)(?:#([^\[\]\n|]*))?(?:\|([^\[\]\n]*))?\]\]")
_BLOCK_ID = re.compile(r"(?:(?<=\s)|^)\^[A-Za-z0-9-]+[ \t]*$", re.MULTILINE)
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_GAPS = re.compile(r"\n{3,}")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")  # only \n ends a line here, not every mark that Unicode knows


def _claims(text: str, name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or (text.startswith("---") and _HEADER.match(text) is not None)


def _read(text: str, facts: FileFacts) -> Iterator[Memory | BadItem]:
    header, body = split_header(text)
    content = plain(body)
    if not content:
        yield BadItem("", "there is no text in it besides its header" if header else "there is no text in it")
        return
    timestamp, time = _dated(header, content, facts)
    kind = header.get("type")
    title = header.get("title")
    yield Memory(
        type=kind if isinstance(kind, str) and kind in TYPES else "journal",
        content=content,
        timestamp=timestamp,
        time=time,
        tags=tags_of(header.get("tags", header.get("tag"))),
        source="markdown",
        extra={"title": title} if isinstance(title, str) and title else {},
    )


def _dated(header: dict[str, Any], content: str, facts: FileFacts) -> tuple[str | None, str | None]:
    """Front matter, then file name, then first heading, then the file's time. Only the first is identity:
    a renamed note is the same memory, and a heading is in the content already."""
    for key in DATE_KEYS:
        raw = header.get(key)
        if isinstance(raw, str) and raw.strip():
            return raw, parse_time(raw.strip().strip("[]"))
    heading = _HEADING.search(content)
    found = date_in(facts.name) or (heading and (parse_time(heading[1]) or date_in(heading[1])))
    return None, found or facts.modified


# ---- front matter ---------------------------------------------------------------------------------


def split_header(text: str) -> tuple[dict[str, Any], str]:
    """(front matter, the rest). A header that is no YAML stays in the text: nothing is lost by a typo."""
    found = _HEADER.match(text, 0, MOST_HEADER)
    if found is None:
        return {}, text
    header = _parsed(found[1] or "")
    return (header, text[found.end() :]) if header is not None else ({}, text)


def _parsed(text: str) -> dict[str, Any] | None:
    if _HALF_PAIR.search(text):
        return None  # half a surrogate pair, which YAML takes and nothing after it can store
    import yaml  # loaded by the first note that has a header, not by the idle daemon

    try:
        # Every value as it is written: YAML's own idea of dates and booleans is not wanted here.
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
        return None
    if not isinstance(value, dict):
        return None if value else {}
    return {key.strip().lower(): one for key, one in value.items() if isinstance(key, str)}


# ---- Obsidian -------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """The text without comments, embeds, queries, templates and block ids; links as the words they show."""
    parts = []
    for code, part in _by_code(text):
        if code:
            parts.append(part)
            continue
        for opening, closing in (("%%", "%%"), ("<!--", "-->"), ("<%", "%>")):
            part = without_spans(part, opening, closing)
        part = _IMAGE.sub("", _EMBED.sub("", part))
        part = _BLOCK_ID.sub("", _LINK.sub(_shown, part))
        parts.append(_GAPS.sub("\n\n", _TRAILING.sub("", part)))
    return "".join(parts).strip()


def without_spans(text: str, opening: str, closing: str) -> str:
    """Cut from each opening to its closing mark, in one pass; an opening without an end stays."""
    start = text.find(opening)
    if start < 0:
        return text
    kept, place = [], 0
    while start >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[place:start])
        place = end + len(closing)
        start = text.find(opening, place)
    return "".join(kept) + text[place:]


def _shown(link: re.Match[str]) -> str:
    return link[3] or link[1] or link[2] or ""


def _by_code(text: str) -> Iterator[tuple[bool, str]]:
    """(is code, part) in order; Obsidian's queries are left out. A fence without an end goes to the end."""
    prose: list[str] = []
    code: list[str] = []
    fence, query = "", False
    for line in _LINES.findall(text):
        found = _FENCE.match(line)
        if not fence and found:
            code, fence, query = [line], found[1], found[2].lower() in QUERIES
            if not query:
                yield False, "".join(prose)
                prose = []
        elif fence:
            code.append(line)
            if found and found[1].startswith(fence) and not found[2]:
                if not query:
                    yield True, "".join(code)
                fence = ""
        else:
            prose.append(line)
    if fence and not query:
        yield True, "".join(code)
    yield False, "".join(prose)


READER = TextReader("markdown", _claims, _read)
