"""What a reader is, and the small parts that every reader of JSON needs."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple, Protocol, TypedDict

from daemon.readers.dates import as_utc, zoned_time
from daemon.records import BadItem, Heard, Memory

MIB = 1 << 20
LONGEST_TYPE = 64  # characters
LONGEST_FIELD = 8 << 20  # characters of one field of a table; csv keeps its limit for the whole process
DEEPEST_PAYLOAD = 64  # levels; what is nested deeper is no tool's data but an attack or an accident

Item = Mapping[str, Any]

_TIME_KEYS = frozenset(("timestamp", "created_at", "date", "created"))

# Who spoke, in exports of other programs: such an object is neither an event nor a lone text.
SPEAKER_KEYS = frozenset(("role", "author", "sender", "from", "sender_name", "username", "from_id", "user"))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a file is taken. A document (JSON, Markdown, text) is held in memory, a JSONL is not."""

    max_file_bytes: int = 4096 * MIB
    max_document_bytes: int = 64 * MIB
    max_line_bytes: int = 8 * MIB


class Locale(NamedTuple):
    """How times without a zone and dates such as 3/4/2024 are understood: settings of the profile."""

    zone: tzinfo | None = None  # None: UTC
    day_first: bool | None = None  # decides only where the file does not; None: taken as day first, and said so


UTC_DAY_FIRST = Locale()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file beside its bytes."""

    name: str  # the last part of its path
    modified: str | None  # UTC, ISO 8601
    locale: Locale = UTC_DAY_FIRST
    path: str = ""  # within its zip or folder, "/" between parts; or its name
    container: str = ""  # the name of the zip or folder that it came in

    @classmethod
    def of(
        cls, name: str, mtime: float | None, locale: Locale = UTC_DAY_FIRST, path: str = "", container: str = ""
    ) -> "FileFacts":
        return cls(name, None if mtime is None else as_utc(mtime), locale, path or name, container)


class Tree(Protocol):
    """The files of a zip or of a folder, by path with "/" between parts, in sorted order."""

    name: str

    def paths(self) -> list[str]: ...
    def size(self, path: str) -> int: ...
    def mtime(self, path: str) -> float | None: ...
    def open(self, path: str) -> BinaryIO:
        """Raises Refused where it cannot be read."""
        ...


@dataclass(frozen=True)
class Sniff:
    """The beginning of a file, for readers to know theirs by. The bytes are UTF-8 without mark where they are text."""

    name: str
    head: bytes  # at most 64 KiB
    whole: bool = False  # the head is the whole file

    @cached_property
    def text(self) -> str:
        """The head as text, without a last line that may be cut, bad bytes replaced."""
        head = self.head
        if not self.whole and b"\n" in head:
            head = head[: head.rindex(b"\n") + 1]
        return head.decode("utf-8", "replace").replace("\r\n", "\n")

    @cached_property
    def keys(self) -> frozenset[str]:
        """The paths of JSON in the head, as ijson writes them (`item.mapping`, `messages.item.from_id`).
        Empty where it is no JSON. The top level is `item` for a list."""
        if self.head.lstrip()[:1] not in (b"[", b"{"):
            return frozenset()
        import ijson

        from daemon.readers.json_chats import Feed  # stops at a depth that is no export's but an attack
        from daemon.readers.json_items import mended

        found: set[str] = set()
        try:
            head = io.BytesIO(mended(self.head))
            for prefix, _, _ in ijson.parse(Feed(head), multiple_values=True, use_float=True):
                found.add(prefix)
        except (ijson.JSONError, UnicodeDecodeError, ValueError):
            pass  # the head ends in the middle of a value
        return frozenset(found)


class Shared(TypedDict):
    """What all memories of one item have in common: the arguments of `Memory` beside its texts."""

    type: str
    timestamp: str | None
    time: str | None
    zone_known: bool
    tags: tuple[str, ...]
    mode: str | None
    source: str
    extra: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Reads one JSON object. `misses` says what the object lacks to be this reader's, None where it is.

    An object that has none of `keys` never is: so that a line of a million is not shown to every reader.
    """

    name: str
    keys: frozenset[str]
    misses: Callable[[Item], str | None]
    read: Callable[[Item, FileFacts], Iterable[Memory | BadItem]]


@dataclass(frozen=True, slots=True)
class TextReader:
    """Reads a whole text. The last one claims every text, so that none is left over."""

    name: str
    claims: Callable[[str, str], bool]  # (text, file name)
    read: Callable[[str, FileFacts], Iterable[Memory | BadItem]]


@dataclass(frozen=True, slots=True)
class StreamReader:
    """Reads an export from a stream, never the whole file in memory. `claims` looks at its beginning only.

    `read` may seek. It yields what it hears; it raises Refused where the file as a whole cannot be taken.
    """

    name: str
    claims: Callable[[Sniff], bool]
    read: Callable[[BinaryIO, FileFacts, "Limits"], Iterable[Heard]]
    companions: frozenset[str] = frozenset()  # names of files that come with the export and hold no memory


@dataclass(frozen=True, slots=True)
class TreeReader:
    """Reads an export that is many files which only make sense together (a zip, or the folder unpacked).

    `claims` gives the paths that it takes; what is left over is read file by file.
    """

    name: str
    claims: Callable[[Tree], frozenset[str]]
    read: Callable[[Tree, frozenset[str], Locale, "Limits"], Iterable[Heard]]
    companions: frozenset[str] = frozenset()


def normal_text(value: Any) -> str:
    """The text of a string or of a list of content parts; line ends as \\n. Anything else has none."""
    if isinstance(value, str):
        text: str = value
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return text.replace("\x00", "") if "\x00" in text else text
    if isinstance(value, list):
        return "\n".join(part for part in map(_part_text, value) if part)
    return ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return normal_text(part)
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text", "output_text"):
        return ""  # images, sounds, hidden reasoning
    text = part.get("text", part.get("value"))
    return normal_text(text) if isinstance(text, str) else ""


def stamp(item: Item, facts: FileFacts, *keys: str) -> tuple[str | None, str | None, bool]:
    """(raw text, UTC, whether its zone is known) of the first of `keys` that is there. The raw text is None where
    the data holds none: the file's own time is never part of a memory's identity."""
    if not keys:
        if _TIME_KEYS.isdisjoint(item):
            return None, facts.modified, True
        keys = ("timestamp", "created_at", "date", "created")
    for key in keys:
        raw = item.get(key)
        if isinstance(raw, (str, int, float)) and not isinstance(raw, bool) and raw != "":
            return str(raw), *zoned_time(raw, facts.locale.zone)
    return None, facts.modified, True


def kind_of(value: Any, default: str) -> str:
    """The type that an item names; a name that is none is passed over."""
    kind = value.strip() if isinstance(value, str) else ""
    return kind if 0 < len(kind) <= LONGEST_TYPE else default


def tags_of(value: Any) -> tuple[str, ...]:
    """Tags from a list or from one string with commas (or spaces, where every word has a `#`)."""
    if isinstance(value, str):
        words = value.split(",") if "," in value else value.split() if value.startswith("#") else [value]
        return tuple(word for word in (w.strip().lstrip("#") for w in words) if word)
    if isinstance(value, list):
        return tuple(tag.strip().lstrip("#") for tag in value if isinstance(tag, str) and tag.strip("# "))
    return ()


def too_deep(value: Any, levels: int = DEEPEST_PAYLOAD) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    layer: list[Any] = [value]
    for _ in range(levels):
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        layer = [one for one in inner if isinstance(one, (dict, list))]
        if not layer:
            return False
    return True


def key_list(item: Item, most: int = 6) -> str:
    """The keys of an object, for a person: what it has where it lacks what a reader wants."""
    names = [name if len(name) <= 30 else name[:29] + "…" for name in list(item)[:most]]
    more = f" and {len(item) - most} more" if len(item) > most else ""
    return (", ".join(repr(name) for name in names) + more) or "none"
