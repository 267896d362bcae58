"""A folder of somebody else's, walked and read without trusting it: no link is followed, nothing special is
opened, and a folder that was swapped for a link between look and open is not entered."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.durable import OPEN_SAFELY

_OPEN_FOLDER = OPEN_SAFELY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True)
class Found:
    path: str  # relative, as the file system names it
    mode: int = 0
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    files: int = 1  # more where it is a folder that is not looked into
    problem: str = ""  # why it cannot be looked at

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def names_in(folder: Path) -> list[str]:
    """What lies in the folder itself. Raises OSError."""
    return sorted(os.listdir(folder))


def walk(root: Path, deepest: int, why_not: Callable[[str, tuple[int, int]], str]) -> Iterator[Found]:
    """Everything below a folder, in a fixed order. `why_not` gets a folder's path and its (device, inode) and gives
    a reason not to look into it: then it is one thing, with the number of its files. Raises OSError where the root
    cannot be opened."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _below(fd, "", 1, deepest, why_not)
    finally:
        os.close(fd)


def _below(
    fd: int, prefix: str, depth: int, deepest: int, why_not: Callable[[str, tuple[int, int]], str]
) -> Iterator[Found]:
    for name in sorted(os.listdir(fd), key=os.fsencode):
        path = prefix + name
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield Found(path, problem=f"it cannot be looked at ({error.strerror})")
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Found(path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            continue
        reason = why_not(path, (status.st_dev, status.st_ino))
        try:
            inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
        except OSError as error:
            problem = f"the folder cannot be opened ({error.strerror}): chmod u+rwx it, then import again"
            yield Found(path + "/", status.st_mode, problem=problem)
            continue
        try:
            if not reason and depth < deepest:
                yield from _below(inner, path + "/", depth + 1, deepest, why_not)
                continue
            files, size = _count(inner)
            if files:
                problem = reason or f"it lies more than {deepest} folders deep: move it up, then import again"
                yield Found(path + "/", status.st_mode, size, files=files, problem=problem)
        except OSError as error:
            problem = f"the folder cannot be read ({error.strerror}): chmod u+rwx it, then import again"
            yield Found(path + "/", status.st_mode, problem=problem)
        finally:
            os.close(inner)


def _count(fd: int) -> tuple[int, int]:
    """(files, bytes) below an open folder."""
    files = size = 0
    for _, _, names, here in os.fwalk(".", dir_fd=fd, follow_symlinks=False):
        for name in names:
            files += 1
            try:
                size += os.stat(name, dir_fd=here, follow_symlinks=False).st_size
            except OSError:
                pass
    return files, size


def open_inside(root: Path, path: str) -> BinaryIO:
    """A regular file below the root, each folder on the way opened without following a link. Raises OSError."""
    *folders, name = path.split("/")
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, _OPEN_FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
        found = os.open(name, OPEN_SAFELY, dir_fd=fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(0, "it is no longer a regular file", path)
    return os.fdopen(found, "rb")


def is_as_found(stream: BinaryIO, found: Found) -> bool:
    """Whether an open file is still the one that was found, and was not written to."""
    status = os.fstat(stream.fileno())
    return (status.st_size, status.st_mtime_ns, status.st_ino) == (found.size, found.mtime_ns, found.inode)
