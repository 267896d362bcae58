"""What the group of a shared home may see. Only a home whose inbox the group may write to is shared.

The system service's home is such a one: its owner is the service, its people are the members of a group. Everything
is made private; then this module opens, by name, what the command line of a member needs: the ledgers, logs,
progress and models to read, and the table of requests to write to. Bits are added, never taken away.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from daemon.home import Home, ProfilePaths
from trainer import names

_PASS, _LIST = 0o010, 0o050  # of folders
_READ, _WRITE = 0o040, 0o060  # of files


class Sharing:
    """Does nothing where the home is private."""

    def __init__(self, home: Home) -> None:
        self._seen: dict[str, object] = {}
        self.on = is_shared(home)
        if not self.on:
            return
        for folder in (home.state, home.profiles, home.log.parent):
            _allow(folder, _LIST)
        _allow(home.lock, _READ)
        for database in _with_companions(home.database):
            _allow(database, _WRITE)
        for log in home.log.parent.glob(f"{home.log.name}*"):
            _allow(log, _READ)

    def refresh(self, paths: ProfilePaths, moment: object, *, running: bool) -> None:
        """To be called again and again; looks only where `moment` is another one, or a trainer is at work."""
        if not self.on:
            return
        if self._seen.get(paths.name) != moment:
            self._seen[paths.name] = moment
            for folder in (paths.root, paths.jobs, paths.chains):
                _allow(folder, _PASS)
            for database in _with_companions(paths.ledger):
                _allow(database, _READ)
            for inside, _, files in os.walk(paths.chains):
                _allow(Path(inside), _LIST)
                for file in files:
                    _allow(Path(inside, file), _READ)
            running = True
        if running:
            for job in _folders(paths.jobs):
                _allow(job, _PASS)
                _allow(job / names.PROGRESS, _READ)


def is_shared(home: Home) -> bool:
    """Whether the inbox may be written by its group."""
    try:
        return bool(home.inbox.stat().st_mode & stat.S_IWGRP)
    except OSError:
        return False


def _with_companions(database: Path) -> list[Path]:
    """SQLite's own files beside it; those that come later take the mode of the database."""
    return [database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))]


def _folders(parent: Path) -> Iterator[Path]:
    try:
        with os.scandir(parent) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return


def _allow(path: Path, bits: int) -> None:
    """What is not there, or is not ours (a root's, left behind), stays as it is."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & bits != bits:
            path.chmod(stat.S_IMODE(mode) | bits)
    except (FileNotFoundError, PermissionError):
        return
