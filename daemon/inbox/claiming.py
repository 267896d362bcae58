"""From the inbox into `claimed/`, by rename, named by content; and on into `archive/`.

A slice goes through its files in four passes: look and hash, make the contents durable, rename, make the
folders durable. So a slice of five hundred files costs a handful of flushes, and being killed between any
two steps leaves each file whole in exactly one place, or (across file systems) whole in two places under
names that the next claim recognises as one.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon import durable
from daemon.durable import OPEN_SAFELY, Pulse, no_pulse
from daemon.home import Home
from daemon.inbox.failed import explain, reject, withdraw
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
from daemon.inbox.opening import not_movable, not_readable, stays
from daemon.inbox.outcomes import Changed, Claim, Duplicate, Entry, Outcome, Refusal
from daemon.records import BadItem

_TRY_AGAIN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ENOENT)
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # goes up: no file is to blame
_FSYNC_EACH = 8  # up to so many files an fsync each is cheaper than flushing the whole file system


@dataclass(frozen=True, slots=True)
class _Held:
    """Read and hashed, not yet moved."""

    entry: Entry
    sha256: str
    size: int
    mtime: float
    contents: Contents | None = None


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
    return _Slice(home, now_iso, max_file_bytes, pulse, len(entries) <= _FSYNC_EACH).run(entries)


class _Slice:
    """One slice on its way. Paths are strings here: at a hundred thousand files pathlib is half of the time."""

    def __init__(self, home: Home, now_iso: str, max_bytes: int, pulse: Pulse, fsync_each: bool) -> None:
        self.home = home
        self.now_iso = now_iso
        self.max_bytes = max_bytes
        self.pulse = pulse
        self.fsync_each = fsync_each
        self.arrivals: set[str] = set()  # folders to flush
        self.departures: set[str] = set()
        self.superfluous: set[Entry] = set()  # copies of what is in claimed/, removed once that is durable
        self.claimed: dict[str, str] = {}  # profile -> its folder, made if it was missing

    def run(self, entries: Sequence[Entry]) -> list[Outcome]:
        looked: list[Outcome | _Held] = []
        for entry in entries:
            looked.append(self.look(entry))
            self.pulse()
        self.flush_contents([one.entry for one in looked if isinstance(one, _Held)])
        outcomes: list[Outcome] = []
        for one in looked:
            outcomes.append(self.move(one) if isinstance(one, _Held) else one)
            self.pulse()
        durable.fsync_dirs(self.arrivals)
        for index, outcome in enumerate(outcomes):
            if entries[index] in self.superfluous and isinstance(outcome, Claim | Duplicate):
                outcomes[index] = self.forget(entries[index], outcome)
        durable.fsync_dirs(folder for folder in self.departures if os.path.isdir(folder))
        return outcomes

    # -- the first pass: look and hash

    def look(self, entry: Entry) -> Outcome | _Held:
        bad_items: tuple[BadItem, ...] = ()
        try:
            if entry.kind == "file":
                found = self.look_at_file(entry)
            elif entry.kind == "folder":
                found, bad_items = self.look_at_folder(entry)
            else:
                found = not_regular(os.lstat(entry.location).st_mode)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the flush, where blocks are given late
                raise
            found = "" if error.errno in _TRY_AGAIN else not_readable(self.home, entry, error)
        if isinstance(found, _Held):
            return found
        return self.refuse(entry, found, bad_items) if found else _changed(entry)

    def look_at_file(self, entry: Entry) -> _Held | str:
        """What was read; or the reason why not, empty where the file is only not settled yet."""
        fd = os.open(entry.location, OPEN_SAFELY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or fingerprint(status) != entry.fingerprint:
                return ""
            if problem := size_problem(status.st_size, self.max_bytes):
                return problem
            sha = durable.sha256_fd(fd, self.pulse, status.st_size)
            if fingerprint(os.fstat(fd)) != entry.fingerprint or durable.is_being_written(fd):
                return ""
            if self.fsync_each:
                os.fsync(fd)
            return _Held(entry, sha, status.st_size, status.st_mtime)
        finally:
            os.close(fd)

    def look_at_folder(self, entry: Entry) -> tuple[_Held | str, tuple[BadItem, ...]]:
        contents = folder_contents(entry.path, self.max_bytes, self.pulse)
        if contents.fingerprint != entry.fingerprint:
            return "", ()
        if not contents.files:
            return "Nothing in the folder could be taken; bad_items says why.", contents.bad_items
        mtime = max(file.mtime for file in contents.files)
        return _Held(entry, contents.sha256, contents.size, mtime, contents), ()

    def flush_contents(self, entries: Sequence[Entry]) -> None:
        """Before any rename: what `claimed/` names by its hash must have that content after a power cut."""
        folders: dict[int, Path] = {}
        for folder in {e.folder for e in entries if e.kind == "folder" or not self.fsync_each}:
            with contextlib.suppress(OSError):
                folders[folder.stat().st_dev] = folder
        for folder in folders.values():
            durable.sync_filesystem(folder)
            self.pulse()

    # -- the second: rename

    def move(self, held: _Held) -> Outcome:
        try:
            return self.take(held)
        except OSError as error:
            if error.errno in _TRY_AGAIN:
                return _changed(held.entry)
            if error.errno in _DISK_TROUBLE:
                raise
            return self.refuse(held.entry, not_movable(self.home, held.entry, error))

    def take(self, held: _Held) -> Outcome:
        entry = held.entry
        if not _is_as_seen(entry.location, held):
            return _changed(entry)
        folder, name = self.claimed_folder(entry.profile), safe_name(entry.name)
        target = f"{folder}/{held.sha256}-{name}"
        self.arrivals.add(folder)
        self.departures.add(str(entry.folder))
        if os.path.lexists(target):
            if _hash_of(Path(target), self.max_bytes) == held.sha256:
                self.superfluous.add(entry)
                return Duplicate(entry.profile, held.sha256, name, Path(target))
            target = str(free_path(Path(folder), os.path.basename(target)))  # someone has meddled with it
        try:
            os.rename(entry.location, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            if not self.copy(held, Path(target)):
                return _changed(entry)
            self.superfluous.add(entry)
        else:
            if not _settle(target, held):
                os.rename(target, free_path(entry.folder, entry.name))
                return _changed(entry)
        folders = held.contents
        if folders is not None:
            withdraw(self.home, entry.profile, entry.name)
        bad_items = folders.bad_items if folders is not None else ()
        return Claim(
            entry.profile,
            held.sha256,
            name,
            Path(target),
            held.size,
            held.mtime,
            folders is not None,
            bad_items,
        )

    def claimed_folder(self, profile: str) -> str:
        if profile not in self.claimed:
            folder = self.home.profile(profile).claimed
            durable.make_folder(folder)
            self.claimed[profile] = str(folder)
        return self.claimed[profile]

    def copy(self, held: _Held, target: Path) -> bool:
        """Across file systems: under its final name only when the copy is whole, durable and what was hashed."""
        source, temp = held.entry.path, durable.temp_beside(target)
        try:
            if held.contents is None:
                same = durable.copy_durable(source, temp, self.pulse) == held.sha256
            else:
                durable.copy_tree_durable(source, temp, self.pulse)
                same = folder_contents(temp, self.max_bytes, self.pulse).sha256 == held.sha256
            if same and _is_as_seen(held.entry.location, held):
                os.rename(temp, target)
                return True
        except BaseException:
            durable.remove(temp)
            raise
        durable.remove(temp)
        return False

    # -- the last: what may go now

    def forget(self, entry: Entry, outcome: Claim | Duplicate) -> Outcome:
        """Removes an inbox copy, unless it was replaced meanwhile: then the next scan sees something new.

        What cannot be removed is not taken either: it would come again with every scan.
        """
        path = entry.path
        try:
            mark = folder_state(path)[0] if entry.kind == "folder" else fingerprint(path.lstat())
            if mark == entry.fingerprint:
                durable.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if isinstance(outcome, Claim):
                durable.remove(outcome.path)
                durable.fsync_dir(outcome.path.parent)
            reason = not_movable(self.home, entry, error)
            return Refusal(entry.profile, readable(entry.name), reason, path, False)
        return outcome

    def refuse(self, entry: Entry, reason: str, bad_items: Sequence[BadItem] = ()) -> Outcome:
        name = readable(entry.name)
        try:
            path = reject(self.home, entry.path, entry.profile, entry.name, reason, self.now_iso, bad_items)
        except FileNotFoundError:
            return _changed(entry)
        except OSError as error:
            if error.errno in _DISK_TROUBLE:
                raise
            if stays(entry):  # the sentence says so already
                with contextlib.suppress(OSError):
                    explain(self.home, entry.profile, entry.name, reason, self.now_iso, bad_items)
            else:
                reason = f"{reason} It could not be moved to {self.home.failed} either ({error.strerror})."
            return Refusal(entry.profile, name, reason, entry.path, False, tuple(bad_items))
        return Refusal(entry.profile, name, reason, path, True, tuple(bad_items))


def _changed(entry: Entry) -> Changed:
    return Changed(entry.profile, readable(entry.name))


def _is_as_seen(location: str, held: _Held) -> bool:
    if held.contents is not None:
        return folder_state(Path(location))[0] == held.contents.fingerprint
    return fingerprint(os.lstat(location)) == held.entry.fingerprint


def _settle(location: str, held: _Held) -> bool:
    """Private from now on. False where the last write came in the moment between hash and rename."""
    if held.contents is not None:
        if not _is_as_seen(location, held):
            return False
        make_private(Path(location))
        return True
    fd = os.open(location, OPEN_SAFELY)
    try:
        if fingerprint(os.fstat(fd)) != held.entry.fingerprint:
            return False
        with contextlib.suppress(PermissionError):  # another user's file in a shared inbox
            os.fchmod(fd, 0o600)
        return True
    finally:
        os.close(fd)


def _hash_of(path: Path, max_file_bytes: int) -> str:
    if path.is_dir() and not path.is_symlink():
        return folder_contents(path, max_file_bytes).sha256
    return durable.sha256_file(path)
