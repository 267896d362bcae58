"""A dropped file or folder through the readers, wherever it lies."""

from pathlib import Path

from daemon import inbox, readers
from daemon.readers import Locale
from daemon.records import Hearing


def heard(path: Path, name: str, size: int, mtime: float | None, limits: readers.Limits, locale: Locale) -> Hearing:
    """What the readers give for a file or a folder. Raises Refused, OSError."""
    if not path.is_dir():
        with open(path, "rb") as stream:
            yield from readers.read(stream, name, size, mtime, limits, locale=locale)
        return
    files, bad = inbox.folder_files(path, limits.max_file_bytes)
    yield from bad
    yield from readers.read_tree(inbox.FolderTree(path, name, files), limits, locale=locale)
