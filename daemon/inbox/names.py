"""File names: which ones the inbox ignores, and how a name from outside becomes safe to keep."""

import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_NAME_BYTES = 180  # leaves room for "<sha256>-" before it and ".2.bad-lines.reason.json" behind it
_MAX_SUFFIX_BYTES = 24
_HALF_WRITTEN = (
    ".part",
    ".partial",
    ".tmp",
    ".temp",
    ".crdownload",
    ".opdownload",
    ".download",
    ".filepart",
    ".swp",
    ".swx",
    "~",
)
_SYSTEM_LITTER = ("thumbs.db", "desktop.ini")
IGNORED_IN_WORDS = "names like .x, ~$x, x~, x.part, x.partial, x.tmp, x.crdownload, x.filepart, x.swp"


def is_ignored(name: str) -> bool:
    """Hidden, temporary or half-written, by the habits of the programs that write such files."""
    folded = name.lower()
    return (
        folded.startswith((".", "~$", "~syncthing~"))
        or folded.endswith(_HALF_WRITTEN)
        or folded in _SYSTEM_LITTER
    )


def readable(name: str) -> str:
    """Valid Unicode on one line: bytes that are no UTF-8, controls and direction marks are replaced."""
    if name.isprintable():  # nearly always; false for surrogates, controls and all format characters
        return name
    return "".join(_welcome(char) for char in name)


def _welcome(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cs":  # a byte that was no UTF-8
        return "\N{REPLACEMENT CHARACTER}"
    if category == "Cf":  # the joiners inside emoji are neutral and stay
        return char if unicodedata.bidirectional(char) in ("BN", "NSM", "AL", "ON") else "_"
    return "_" if category in ("Cc", "Zl", "Zp") else char


def safe_name(name: str) -> str:
    """A file name of at most MAX_NAME_BYTES that keeps its suffix; never empty, never hidden, no slash."""
    text = readable(name).replace("/", "_").strip() or "_"
    if text.startswith("."):
        text = "_" + text[1:]
    if len(text.encode()) <= MAX_NAME_BYTES:
        return text
    stem, dot, suffix = text.rpartition(".")
    suffix = dot + suffix
    if not stem or not suffix or len(suffix.encode()) > _MAX_SUFFIX_BYTES:
        stem, suffix = text, ""
    room = MAX_NAME_BYTES - len(suffix.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + suffix


def numbered(name: str) -> Iterator[str]:
    """name, name.2, name.3, ..."""
    yield name
    number = 2
    while True:
        yield f"{name}.{number}"
        number += 1


def free_path(folder: Path, name: str, is_taken: Callable[[str], bool] = lambda name: False) -> Path:
    """The first numbered name in the folder that nothing has, not even a broken link."""
    return next(
        folder / one for one in numbered(name) if not is_taken(one) and not os.path.lexists(folder / one)
    )
