"""Markdown journals: front matter, and what Obsidian adds to Markdown taken out or made plain."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from daemon.readers.dates import date_in, zoned_time
from daemon.readers.shape import FileFacts, TextReader, tags_of
from daemon.records import BadItem, Memory

ABOUT = """\
**Markdown and Obsidian.** A `.md` file, or a text with YAML front matter, is one entry of a journal; drop a vault as a
folder or zip. Front matter gives `date` (or `created`, `datum`, ...), `tags`, `title`, and `type`
(journal, dream, daydream, reflection, observation, inner_dialogue, summary). A header that is no YAML stays
in the text. Of Obsidian, `%%comments%%`, embeds, queries (dataview, tasks), templates and block ids are taken
out, and links become the words that they show; code is left alone. Without a date in its header a note takes the
one in its name (`2024-01-15 The lake.md`) or in its first heading. A file with at least two headings of one level
that are all dates (`## 2024-01-15`) is one entry for each. `.obsidian/` and `templates/` are passed over.

```markdown
---
date: 2025-03-22
tags: [family]
---
Jonas sold the blue van to [[Marta|his sister]].
```
"""

SUFFIXES = (".md", ".markdown", ".mdown", ".mkd")
DATE_KEYS = (
    "date", "created", "created_at", "creation date", "creation_date", "datum", "day", "timestamp", "date created",
    "created at", "date_created", "datetime", "erstellt", "fecha", "дата",
)  # fmt: skip
TYPES = ("journal", "dream", "daydream", "reflection", "observation", "inner_dialogue", "summary")
MOST_HEADER = 1 << 16  # characters of front matter; more is no header
QUERIES = ("dataview", "dataviewjs", "tasks", "query", "button", "templater", "tracker", "base")  # Obsidian runs them

_HEADER = re.compile(r"---[ \t]*\n(?:(.*?)\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]|\\U0000[dD][89a-fA-F]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w-]*)")
_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
_EMBED = re.compile(r"!\[\[[^\[\]\n]*\]\]")
_IMAGE = re.compile(r"!\[[^\[\]\n]*\]\([^()\n]*\)")
_LINK = re.compile(r"\[\[([^\[\]\n|#]*)(?:#([^\[\]\n|]*))?(?:\|([^\[\]\n]*))?\]\]")
_BLOCK_ID = re.compile(r"(?:(?<=\s)|^)\^[A-Za-z0-9-]+[ \t]*$", re.MULTILINE)
_INLINE_QUERY = re.compile(r"`\$?= [^`\n]*`")
_CALLOUT = re.compile(r"^((?:>[ \t]?)+)\[![^\[\]\n]{1,40}\][+-]?[ \t]*(\n|\Z)?", re.MULTILINE)
_ANY_HEADING = re.compile(r"(#{1,6})[ \t]+([^\n]{1,80}?)[ \t]*#*\n?")
_DATE_AHEAD = re.compile(r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d(?!\d)[\s,:–—-]*")
_TRAILING = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
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
    before, days = by_day(content)
    kind, title = _single(header.get("type")), _single(header.get("title"))
    kind = kind if kind in TYPES else "journal"
    tags = tags_of(_flat(header.get("tags", header.get("tag"))))
    extra = {"title": title} if title else {}
    if before:
        raw, time, known = _dated(header, before, facts)
        yield Memory(kind, before, None, raw, time, tags=tags, source="markdown", extra=extra, zone_known=known)
    for heading, text in days:
        time, known = _moment(heading, facts)
        yield Memory(kind, text, None, heading, time, tags=tags, source="markdown", extra=extra, zone_known=known)


# ---- dates ----------------------------------------------------------------------------------------


def _dated(header: dict[str, Any], content: str, facts: FileFacts) -> tuple[str | None, str | None, bool]:
    """(raw, UTC, zone known): front matter, then file name, then first heading, then the file's time. Only the first
    is identity: a renamed note is the same memory, and a heading is in the content already."""
    for key in DATE_KEYS:
        raw = _single(header.get(key))
        if raw and not any(mark in raw for mark in ("<%", "{{")):  # a template that was never filled in
            return raw, *_moment(raw.strip().strip("[]"), facts)
    heading = _HEADING.search(content)
    for text in (facts.name, heading[1] if heading else ""):
        time, known = _moment(text, facts)
        if time is not None:
            return None, time, known
    return None, facts.modified, True


def _moment(text: str, facts: FileFacts) -> tuple[str | None, bool]:
    """(UTC, zone known) of a text that is a time, or has a date in it."""
    text = text.strip()
    if not (text.isdigit() and len(text) < 8):  # a lone year, or a chapter's number
        time, known = zoned_time(text, facts.locale.zone)
        if time is not None:
            return time, known
    found = date_in(text)
    return zoned_time(found[:10], facts.locale.zone) if found else (None, False)


def by_day(content: str) -> tuple[str, list[tuple[str, str]]]:
    """(what stands before and between, [(heading, text)]) of a diary in one file: headings of one level that are all
    dates. Without two such days all of it stands before."""
    lines = _LINES.findall(content)
    headings: list[tuple[int, int, str]] = []  # (line, level, text)
    fence = ""
    for number, line in enumerate(lines):
        if found := _FENCE.match(line):
            fence = "" if fence and found[1].startswith(fence) else fence or found[1]
        elif not fence and line.startswith("#") and (heading := _ANY_HEADING.fullmatch(line)):
            headings.append((number, len(heading[1]), heading[2]))
    for level in range(1, 7):
        days = [text for _, its_level, text in headings if its_level == level]
        if len(days) >= 2 and all(map(_is_day, days)):
            return _split(lines, [one for one in headings if one[1] <= level], level)
    return content, []


def _is_day(heading: str) -> bool:
    facts = FileFacts("", None)
    if heading.isdigit() and len(heading) != 8:
        return False
    return zoned_time(heading)[0] is not None or (
        _DATE_AHEAD.match(heading) is not None and _moment(heading, facts)[0] is not None
    )


def _split(
    lines: list[str], headings: list[tuple[int, int, str]], level: int
) -> tuple[str, list[tuple[str, str]]]:
    """Each section of a dated heading; a heading above it ends the section, and its own text belongs to no day."""
    others = ["".join(lines[: headings[0][0]])]
    days: list[tuple[str, str]] = []
    ends = [number for number, _, _ in headings[1:]] + [len(lines)]
    for (number, its_level, heading), end in zip(headings, ends, strict=True):
        text = "".join(lines[number + 1 : end]).strip()
        if its_level < level:
            others.append("".join(lines[number:end]) if text else "")  # "# 2024" alone says nothing
            continue
        rest = heading[len(ahead[0]) :] if (ahead := _DATE_AHEAD.match(heading)) else ""
        if len(rest.split()) > 1:  # more than a weekday
            text = f"{rest}\n\n{text}"
        if text:
            days.append((heading, text))
    return _GAPS.sub("\n\n", "".join(others)).strip(), days


# ---- front matter ---------------------------------------------------------------------------------


def _flat(value: Any) -> Any:
    """A list without lists in it: an unquoted [[link]] is a list in a list for YAML."""
    if not isinstance(value, list):
        return value
    flat: list[Any] = []
    waiting = [iter(value)]
    while waiting:
        for one in waiting[-1]:
            if isinstance(one, list):
                waiting.append(iter(one))
                break
            flat.append(one)
        else:
            waiting.pop()
    return flat


def _single(value: Any) -> str | None:
    value = _flat(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else None


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
        if "`" in part:
            part = _INLINE_QUERY.sub("", part)
        if "[!" in part:
            part = _CALLOUT.sub(_without_callout, part)
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
    # In a table the bar is written \|, and its backslash is no part of the name.
    return link[3] or link[1].removesuffix("\\") or link[2] or ""


def _without_callout(found: re.Match[str]) -> str:
    return "" if found[2] is not None else str(found[1])


def _by_code(text: str) -> Iterator[tuple[bool, str]]:
    """(is code, part) in order; Obsidian's queries are left out. A fence without an end goes to the end."""
    prose: list[str] = []
    code: list[str] = []
    fence, query = "", False
    lines = _LINES.findall(text)
    marks = [number for number, line in enumerate(lines) if "%%" in line]
    skip_to = 0
    for number, line in enumerate(lines):
        if number < skip_to:
            continue
        if not fence and line.lstrip().startswith("%%") and line.count("%%") == 1:
            after = bisect_right(marks, number)
            if after < len(marks):  # a comment over several lines may have code in it
                skip_to = marks[after] + 1
                prose.append(lines[marks[after]].partition("%%")[2])
                continue
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
