"""A folder that was dropped as one batch: what is in it, whether it changed, what its hash is.

The walk opens each folder relative to its parent and never follows a link, so that nobody who can
write into a shared inbox can lead the daemon elsewhere by swapping a folder for a link.
"""

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.durable import OPEN_SAFELY, Pulse, no_pulse, sha256_fd
from daemon.inbox.names import is_ignored, readable
from daemon.records import BadItem, Refused

MAX_DEPTH = 32
_OPEN_FOLDER = OPEN_SAFELY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class FolderFile:
    relative: str  # as the file system names it
    size: int
    mtime: float
    sha256: str = ""  # empty where only the stat was asked for


@dataclass(frozen=True, slots=True)
class Contents:
    sha256: str  # over the sorted (relative path, SHA-256) of the good files
    files: tuple[FolderFile, ...]
    bad_items: tuple[BadItem, ...]
    fingerprint: int

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class _Found:
    relative: str
    name: str
    parent: int  # descriptor of its folder; open only until the walk goes on
    status: os.stat_result
    ignored: bool
    problem: str = ""

    @property
    def mark(self) -> int:
        status = self.status
        return hash((self.relative, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino))


def fingerprint(status: os.stat_result) -> int:
    """Changes when a file is written to or replaced."""
    return hash((status.st_size, status.st_mtime_ns, status.st_ino))


def not_regular(mode: int) -> str:
    """What a thing is that is neither file nor folder, as a reason."""
    for test, word in (
        (stat.S_ISLNK, "a symbolic link, and links are never followed; drop a copy of the file itself"),
        (stat.S_ISFIFO, "a named pipe (FIFO), not a file; drop a file with its contents"),
        (stat.S_ISSOCK, "a socket, not a file; drop a file"),
        (stat.S_ISBLK, "a device, not a file; drop a file"),
        (stat.S_ISCHR, "a device, not a file; drop a file"),
        (stat.S_ISDIR, "a folder where a file was expected"),
    ):
        if test(mode):
            return f"It is {word}."
    return "It is not a regular file; drop a file."


def size_problem(size: int, max_file_bytes: int) -> str:
    if size == 0:
        return "The file is empty; write something into it and drop it again."
    if size > max_file_bytes:
        return (
            f"The file has {size:,} bytes and at most {max_file_bytes:,} are allowed; "
            "split it, or raise max_file_mb under [inbox] in etc/engramd.toml."
        )
    return ""


def _walk(fd: int, prefix: str = "", depth: int = 1) -> Iterator[_Found]:
    """Everything below but the insides of ignored folders, in a fixed order. Does not close `fd`."""
    with os.scandir(fd) as listing:
        names = sorted((entry.name for entry in listing), key=os.fsencode)
    for name in names:
        relative = prefix + name
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        ignored = is_ignored(name)
        if ignored or not stat.S_ISDIR(status.st_mode):
            yield _Found(relative, name, fd, status, ignored)
        elif depth >= MAX_DEPTH:
            yield _Found(relative, name, fd, status, False, f"It lies more than {MAX_DEPTH} folders deep.")
        else:
            try:
                inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
            except OSError as error:
                problem = f"The folder cannot be opened ({error.strerror}); run chmod u+rwx on it."
                yield _Found(relative, name, fd, status, False, problem)
                continue
            try:
                yield from _walk(inner, relative + "/", depth + 1)
            finally:
                os.close(inner)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, _OPEN_FOLDER)
    try:
        yield fd
    finally:
        os.close(fd)


def folder_state(folder: Path) -> tuple[int, int, int]:
    """(fingerprint, number of things that count, their bytes). Temporary files are in the fingerprint only:
    while one grows, its folder is still being written."""
    mark, count, size = 0, 0, 0
    with _opened(folder) as fd:
        for found in _walk(fd):
            mark ^= found.mark
            if not found.ignored:
                count += 1
                size += found.status.st_size if stat.S_ISREG(found.status.st_mode) else 0
    return mark, count, size


def _problem(found: _Found, max_file_bytes: int) -> str:
    if found.problem:
        return found.problem
    if not stat.S_ISREG(found.status.st_mode):
        return not_regular(found.status.st_mode)
    return size_problem(found.status.st_size, max_file_bytes)


def folder_files(folder: Path, max_file_bytes: int) -> tuple[list[FolderFile], list[BadItem]]:
    """The files that a reader may open, by stat only, and what is wrong with the others."""
    files: list[FolderFile] = []
    bad: list[BadItem] = []
    with _opened(folder) as fd:
        for found in _walk(fd):
            if found.ignored:
                continue
            if problem := _problem(found, max_file_bytes):
                bad.append(BadItem(readable_path(found.relative), problem))
            else:
                files.append(FolderFile(found.relative, found.status.st_size, found.status.st_mtime))
    files.sort(key=lambda file: os.fsencode(file.relative))
    return files, bad


class FolderTree:
    """The files of a claimed folder as the readers want them: by path, in sorted order."""

    def __init__(self, folder: Path, name: str, files: Sequence[FolderFile]) -> None:
        self.name = name
        self._folder = folder
        self._files = {readable_path(file.relative): file for file in files}

    def paths(self) -> list[str]:
        return list(self._files)

    def size(self, path: str) -> int:
        return self._files[path].size

    def mtime(self, path: str) -> float | None:
        return self._files[path].mtime

    def open(self, path: str) -> BinaryIO:
        try:
            return open(self._folder / self._files[path].relative, "rb")
        except OSError as error:
            raise Refused(f"it cannot be read: {error.strerror}") from None


def readable_path(relative: str) -> str:
    return "/".join(readable(part) for part in relative.split("/"))


def folder_sha256(folder: Path) -> str:
    """What a batch that was dropped as a folder is known by, whatever the size of its files."""
    return folder_contents(folder, sys.maxsize).sha256


def folder_contents(folder: Path, max_file_bytes: int, pulse: Pulse = no_pulse) -> Contents:
    """Reads and hashes every good file; one that cannot be read is a bad item, not an error."""
    files: list[FolderFile] = []
    bad: list[BadItem] = []
    mark = 0
    with _opened(folder) as fd:
        for found in _walk(fd):
            mark ^= found.mark
            if found.ignored:
                continue
            problem, sha = _problem(found, max_file_bytes), ""
            if not problem:
                problem, sha = _hash_one(found, pulse)
            if problem:
                bad.append(BadItem(readable_path(found.relative), problem))
            else:
                status = found.status
                files.append(FolderFile(found.relative, status.st_size, status.st_mtime, sha))
            pulse()
    files.sort(key=lambda file: os.fsencode(file.relative))
    digest = hashlib.sha256()
    for file in files:  # unambiguous: no path holds a zero byte, and a hash has 32 bytes
        digest.update(os.fsencode(file.relative) + b"\0" + bytes.fromhex(file.sha256))
    return Contents(digest.hexdigest(), tuple(files), tuple(bad), mark)


def _hash_one(found: _Found, pulse: Pulse) -> tuple[str, str]:
    try:
        fd = os.open(found.name, OPEN_SAFELY, dir_fd=found.parent)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return f"The file cannot be opened ({error.strerror}); run chmod u+r on it and drop it again.", ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # swapped since the stat
            return not_regular(os.fstat(fd).st_mode), ""
        return "", sha256_fd(fd, pulse, found.status.st_size)
    except OSError as error:
        return f"The file cannot be read ({error.strerror}).", ""
    finally:
        os.close(fd)


def make_private(folder: Path) -> None:
    """0600 and 0700 for what may be changed; a file of another user keeps its mode."""
    with _opened(folder) as fd:
        for found in _walk(fd):
            if stat.S_ISREG(found.status.st_mode):
                with contextlib.suppress(OSError):
                    inner = os.open(found.name, OPEN_SAFELY, dir_fd=found.parent)
                    try:
                        os.fchmod(inner, 0o600)
                    finally:
                        os.close(inner)
            with contextlib.suppress(OSError):
                os.fchmod(found.parent, 0o700)
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o700)
