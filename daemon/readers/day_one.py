"""Day One: the JSON export of a journal, as a zip of Journal.json and its photos, or the JSON alone.

The structure is the one that Day One's export has had since version 2: `entries`, each with `uuid`, `creationDate`
in UTC, `timeZone`, and `text`, which is Markdown with more backslashes than Markdown asks for; where an entry has
only `richText`, that is JSON in a string. Entries are streamed. Left out: entries without text.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from operator import itemgetter
from typing import Any, BinaryIO

import orjson

from daemon.readers.dates import zoned_time
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader, normal_text, tags_of
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused

ABOUT = """\
**Day One.** File > Export > JSON; drop the zip as it is. Each entry becomes one journal entry with its tags, at the
time at which it was created; the zone it was written in is kept. Pictures and other media, and the backslashes that
Day One puts before marks, are taken out. Weather and places are not read. Entries without text are left out.

```json
{"metadata": {"version": "1.0"}, "entries": [{"uuid": "0F5A...", "creationDate": "2024-01-15T18:30:00Z",
 "timeZone": "Europe/Oslo", "text": "Rode to the lake\\\\.", "tags": ["summer"]}]}
```
"""

LONGEST_RICH_TEXT = 8 << 20  # characters

_MEDIA = re.compile(r"!\[[^\[\]\n]*\]\(dayone-moment:[^()\n]*\)")
_OWN_LINK = re.compile(r"\[([^\[\]\n]*)\]\(dayone2?:[^()\n]*\)")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_CODE = re.compile(r"(^ {0,3}```.*?(?:^ {0,3}```[^\n]*$|\Z)|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_GAPS = re.compile(r"\n{3,}")


def _claims(sniff: Sniff) -> bool:
    keys = sniff.keys
    return "entries.item.creationDate" in keys and (
        "entries.item.uuid" in keys or "entries.item.richText" in keys or "metadata.version" in keys
    )


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    import ijson  # loaded by the first export, not by the idle daemon

    number = 0
    try:
        for number, entry in enumerate(ijson.items(stream, "entries.item", use_float=True), 1):
            yield _heard(entry, f"entry {number}", facts)
    except (ijson.JSONError, UnicodeDecodeError, ValueError, OverflowError):
        if not number:
            raise Refused("the journal is torn: no entry of it can be read; export it again") from None
        yield BadItem(f"after entry {number}", "the file ends too early or is damaged here; export it again")


def _heard(entry: Any, where: str, facts: FileFacts) -> Heard:
    if not isinstance(entry, dict):
        return BadItem(where, "it is no entry")
    raw = entry.get("creationDate")
    raw = raw if isinstance(raw, str) and raw.strip() else None
    time, known = _time(raw, facts)
    text = _whole(plain(normal_text(entry.get("text"))) or plain(_rich(entry.get("richText")), escaped=False))
    if not text:
        return LeftOut("an entry without text", timestamp=raw, time=time, zone_known=known, where=where)
    extra: dict[str, Any] = {}
    for key, name in (("uuid", "id"), ("timeZone", "zone"), ("title", "title")):
        value = entry.get(key)
        if isinstance(value, str) and value.strip():
            extra[name] = _whole(value.replace("\\", "").strip()[:200])
    return Memory(
        type="journal", content=text, timestamp=raw, time=time, tags=tags_of(entry.get("tags")), source="day one",
        extra=extra, zone_known=known,
    )  # fmt: skip


def _time(raw: str | None, facts: FileFacts) -> tuple[str | None, bool]:
    """(UTC, zone known). Day One writes times as the ledger has them, which need only be looked at."""
    if raw is None:
        return None, True
    marks = raw[4:5] + raw[7:8] + raw[10:11] + raw[13:14] + raw[16:17] + raw[19:]
    if marks == "--T::Z" and raw.isascii() and "1900" <= raw[:4] < "2200":
        try:
            datetime.fromisoformat(raw)
        except ValueError:
            return None, False
        return raw, True
    return zoned_time(raw, facts.locale.zone)


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which nothing after it can store."""
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()


def plain(text: str, *, escaped: bool = True) -> str:
    """The Markdown of an entry without media, and without backslashes before marks; code is left as it is."""
    if "dayone" in text:
        text = _OWN_LINK.sub(r"\1", _MEDIA.sub("", text))
    if escaped and "\\" in text:
        pieces = _CODE.split(text) if "`" in text else [text]
        text = "".join(piece if at % 2 else _ESCAPED.sub(itemgetter(1), piece) for at, piece in enumerate(pieces))
    return (_GAPS.sub("\n\n", text) if "\n\n\n" in text else text).strip()


def _rich(value: Any) -> str:
    """The text in Day One's rich text: {"contents": [{"text": "..."}, {"embeddedObjects": [...]}]} in a string."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_RICH_TEXT:
        return ""
    try:
        contents = orjson.loads(value)["contents"]
    except (ValueError, TypeError, KeyError):
        return ""
    if not isinstance(contents, list):
        return ""
    return "".join(normal_text(part.get("text")) for part in contents if isinstance(part, dict))


READER = StreamReader("day one", _claims, _read)
