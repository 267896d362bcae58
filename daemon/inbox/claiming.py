"""From the inbox into `claimed/`, by rename, named by content; and on into `archive/`.

A slice goes through its files in four passes: look and hash, make the contents durable, rename, make the
folders durable. So a slice of five hundred files costs a handful of flushes, and being killed between any
two steps leaves each file whole in exactly one place, or (across file systems) whole in two places under
names that the next claim recognises as one.
"""

import contextlib
import errno
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon import durable
from daemon.durable import OPEN_SAFELY, Pulse, no_pulse
from daemon.home import Home
from daemon.inbox.failed import reject
from daemon.inbox.folders import (
    Contents,
    fingerprint,
    folder_contents,
    folder_state,
    make_private,
    not_regular,
    size_problem,
)
from daemon.inbox.names import free_path, readable, safe_name
from daemon.records import BadItem

_CLAIMED_NAME = re.compile(r"([0-9a-f]{64})-(.+)", re.DOTALL)
_TRY_AGAIN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ENOENT)
_FSYNC_EACH = 8  # up to so many files an fsync each is cheaper than flushing the whole file system


Kind = Literal["file", "folder", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in an inbox that the scan found ready."""

    profile: str
    name: str  # as the file system gives it, so possibly with surrogates
    path: Path
    kind: Kind
    size: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Durable in `claimed/`; the inbox no longer has it."""

    profile: str
    sha256: str
    name: str  # safe to show and to keep
    path: Path
    size: int
    mtime: float
    is_folder: bool
    bad_items: tuple[BadItem, ...] = ()  # parts of a folder that no reader will see


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The same content is claimed under this name already; the inbox copy is gone."""

    profile: str
    sha256: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Refusal:
    profile: str
    name: str
    reason: str
    path: Path  # where it lies now
    moved: bool  # False: even the move to inbox/failed was not allowed; it stays where it was
    bad_items: tuple[BadItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """Written to, replaced or taken away since the scan; nothing was done with it."""

    profile: str
    name: str


Outcome = Claim | Duplicate | Refusal | Changed


@dataclass(frozen=True, slots=True)
class _Held:
    """Read and hashed, not yet moved."""

    entry: Entry
    sha256: str
    size: int
    mtime: float
    contents: Contents | None = None


@dataclass(slots=True)
class _Borders:
    """What must be flushed and what may be removed once the renames of a slice are done."""

    arrivals: set[Path]
    departures: set[Path]
    superfluous: list[Entry]  # inbox copies of what is in claimed/; removed only after that is durable


def claim_slice(
    home: Home,
    entries: Sequence[Entry],
    now_iso: str,
    max_file_bytes: int,
    pulse: Pulse = no_pulse,
) -> list[Outcome]:
    """One outcome for each entry, in order; all of it is durable when this returns.

    `pulse` is called at least once a MiB or a file. An exception out of it abandons the slice: what was not
    renamed stays in the inbox, what was is found by `claimed_files`.
    """
    outcomes: list[Outcome | _Held] = []
    fsync_each = len(entries) <= _FSYNC_EACH
    for entry in entries:
        outcomes.append(_look(home, entry, now_iso, max_file_bytes, fsync_each, pulse))
        pulse()
    held = [one for one in outcomes if isinstance(one, _Held)]
    for folder in _one_folder_per_device([h.entry for h in held if h.contents is not None or not fsync_each]):
        durable.sync_filesystem(folder)
        pulse()
    borders = _Borders(set(), set(), [])
    finished: list[Outcome] = []
    for one in outcomes:
        if not isinstance(one, _Held):
            finished.append(one)
            continue
        try:
            finished.append(_take(home, one, borders, max_file_bytes, pulse))
        except OSError as error:
            if error.errno in _TRY_AGAIN:
                finished.append(Changed(one.entry.profile, readable(one.entry.name)))
            elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise  # the disk, not the file
            else:
                finished.append(_refuse(home, one.entry, _not_movable(one.entry, error), now_iso))
        pulse()
    durable.fsync_dirs(borders.arrivals)
    for entry in borders.superfluous:
        _forget(entry, borders)
    durable.fsync_dirs(folder for folder in borders.departures if folder.is_dir())
    return finished


def _one_folder_per_device(entries: Sequence[Entry]) -> list[Path]:
    folders: dict[int, Path] = {}
    for folder in {entry.path.parent for entry in entries}:
        with contextlib.suppress(OSError):
            folders[folder.stat().st_dev] = folder
    return list(folders.values())


def _look(
    home: Home, entry: Entry, now_iso: str, max_file_bytes: int, fsync_each: bool, pulse: Pulse
) -> Outcome | _Held:
    changed = Changed(entry.profile, readable(entry.name))
    bad_items: tuple[BadItem, ...] = ()
    try:
        if entry.kind == "file":
            found = _look_at_file(entry, max_file_bytes, fsync_each, pulse)
        elif entry.kind == "folder":
            contents = folder_contents(entry.path, max_file_bytes, pulse)
            if contents.fingerprint != entry.fingerprint:
                return changed
            if contents.files:
                return _Held(entry, contents.sha256, contents.size, entry.path.lstat().st_mtime, contents)
            found, bad_items = "Nothing in the folder could be taken; bad_items says why.", contents.bad_items
        else:
            found = not_regular(entry.path.lstat().st_mode)
    except OSError as error:
        if error.errno in _TRY_AGAIN:
            return changed
        found = _not_readable(home, entry, error)
    if isinstance(found, str):
        return _refuse(home, entry, found, now_iso, bad_items) if found else changed
    return found


def _look_at_file(entry: Entry, max_file_bytes: int, fsync: bool, pulse: Pulse) -> _Held | str:
    """What was read; or the reason why not, empty where the file is only not settled yet."""
    fd = os.open(entry.path, OPEN_SAFELY)
    try:
        status = os.fstat(fd)
        if fingerprint(status) != entry.fingerprint:
            return ""
        if problem := size_problem(status.st_size, max_file_bytes):
            return problem
        sha = durable.sha256_fd(fd, pulse, status.st_size)
        if fingerprint(os.fstat(fd)) != entry.fingerprint:
            return ""
        if fsync:
            os.fsync(fd)
        return _Held(entry, sha, status.st_size, status.st_mtime)
    finally:
        os.close(fd)


def _not_readable(home: Home, entry: Entry, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "It is a symbolic link, and links are never followed; drop a copy of the file itself."
    if error.errno in (errno.EACCES, errno.EPERM):
        there = shlex.quote(str(home.profile(entry.profile).failed / safe_name(entry.name)))
        what = "-R u+rwX,g+rX" if entry.kind == "folder" else "u+rw,g+r"
        return (
            f"engramd may not read it ({error.strerror}); as its owner run: chmod {what} {there} "
            "and move it back into the inbox."
        )
    return f"It cannot be read ({error.strerror}); check the disk, then drop it again."


def _not_movable(entry: Entry, error: OSError) -> str:
    parent = shlex.quote(readable(str(entry.path.parent)))
    return (
        f"engramd may not move it out of the inbox ({error.strerror}); "
        f"as an administrator run: chmod g+rwX {parent}, and for a folder the same on it."
    )


def _refuse(
    home: Home, entry: Entry, reason: str, now_iso: str, bad_items: Sequence[BadItem] = ()
) -> Refusal | Changed:
    name = readable(entry.name)
    try:
        path = reject(home, entry.path, entry.profile, name, reason, now_iso, bad_items)
    except FileNotFoundError:
        return Changed(entry.profile, name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        reason = f"{reason} It could not be moved to {home.failed} either ({error.strerror})."
        return Refusal(entry.profile, name, reason, entry.path, False, tuple(bad_items))
    return Refusal(entry.profile, name, reason, path, True, tuple(bad_items))


def _is_as_seen(path: Path, held: _Held) -> bool:
    if held.contents is not None:
        return folder_state(path)[0] == held.contents.fingerprint
    return fingerprint(path.lstat()) == held.entry.fingerprint


def _take(home: Home, held: _Held, borders: _Borders, max_file_bytes: int, pulse: Pulse) -> Outcome:
    entry = held.entry
    claimed, name = home.profile(entry.profile).claimed, safe_name(entry.name)
    changed = Changed(entry.profile, name)
    if not _is_as_seen(entry.path, held):
        return changed
    durable.make_folder(claimed)
    target = claimed / f"{held.sha256}-{name}"
    if os.path.lexists(target):
        if _hash_of(target, max_file_bytes) == held.sha256:
            borders.arrivals.add(claimed)
            borders.superfluous.append(entry)
            return Duplicate(entry.profile, held.sha256, name, target)
        target = free_path(claimed, target.name)  # someone has meddled with the one that is there
    borders.arrivals.add(claimed)
    borders.departures.add(entry.path.parent)
    try:
        os.rename(entry.path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not _copy(held, target, max_file_bytes, pulse):
            return changed
        borders.superfluous.append(entry)
    else:
        if not _settle(target, held):
            os.rename(target, free_path(entry.path.parent, entry.name))
            return changed
    bad_items = held.contents.bad_items if held.contents is not None else ()
    is_folder = held.contents is not None
    return Claim(entry.profile, held.sha256, name, target, held.size, held.mtime, is_folder, bad_items)


def _settle(target: Path, held: _Held) -> bool:
    """Private from now on. False where the last write came in the moment between hash and rename."""
    if not _is_as_seen(target, held):
        return False
    if held.contents is not None:
        make_private(target)
        return True
    fd = os.open(target, OPEN_SAFELY)
    try:
        with contextlib.suppress(PermissionError):  # another user's file in a shared inbox
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
    return True


def _copy(held: _Held, target: Path, max_file_bytes: int, pulse: Pulse) -> bool:
    """Across file systems: under its final name only when the copy is whole, durable and what was hashed."""
    temp = durable.temp_beside(target)
    try:
        if held.contents is None:
            same = durable.copy_durable(held.entry.path, temp, pulse) == held.sha256
        else:
            durable.copy_tree_durable(held.entry.path, temp, pulse)
            same = folder_contents(temp, max_file_bytes, pulse).sha256 == held.sha256
        if same and _is_as_seen(held.entry.path, held):
            os.rename(temp, target)
            return True
    except BaseException:
        durable.remove(temp)
        raise
    durable.remove(temp)
    return False


def _forget(entry: Entry, borders: _Borders) -> None:
    """Removes an inbox copy, unless it was replaced meanwhile: then the next scan sees something new."""
    with contextlib.suppress(OSError):
        mark = folder_state(entry.path)[0] if entry.kind == "folder" else fingerprint(entry.path.lstat())
        if mark == entry.fingerprint:
            durable.remove(entry.path)
            borders.departures.add(entry.path.parent)


def _hash_of(path: Path, max_file_bytes: int) -> str:
    if path.is_dir() and not path.is_symlink():
        return folder_contents(path, max_file_bytes).sha256
    return durable.sha256_file(path)


def split_claimed_name(name: str) -> tuple[str, str] | None:
    """(sha256, name) out of `<sha256>-<name>`."""
    match = _CLAIMED_NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def claimed_files(home: Home, profile: str) -> list[Claim]:
    """What recovery finds: every claim, in name order. Removes the temporary files of a killed copy."""
    folder = home.profile(profile).claimed
    if not folder.is_dir():
        return []
    durable.remove_temps(folder)
    claims: list[Claim] = []
    with os.scandir(folder) as listing:
        for item in listing:
            parts = split_claimed_name(item.name)
            if parts is None or item.is_symlink():
                continue
            status = item.stat(follow_symlinks=False)
            is_folder = item.is_dir(follow_symlinks=False)
            size = folder_state(Path(item.path))[2] if is_folder else status.st_size
            claims.append(
                Claim(profile, parts[0], parts[1], Path(item.path), size, status.st_mtime, is_folder)
            )
    return sorted(claims, key=lambda claim: (claim.name, claim.sha256))
