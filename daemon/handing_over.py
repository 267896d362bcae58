"""From a profile that was looked through into the inbox: one folder for each kind, with the paths of its files kept.

Each folder is made under a temporary name in the inbox, flushed, and renamed: being killed at any moment leaves
whole batches and, for the daemon to sweep, a temporary folder. The next import finds what waits already.
"""

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon import durable, inbox
from daemon.home import Home
from daemon.importing import Import, Row, entry_path, facts_of
from daemon.inbox.failed import inbox_modes
from daemon.inbox.folders import folder_sha256
from daemon.inbox.names import readable
from daemon.profile_tree import is_as_found, open_inside
from daemon.readers import raw_items
from daemon.records import Memory, Refused
from daemon.rules.metahuman import READ, Kind

MOST_FILES = 5_000  # of one batch
MOST_BYTES = 1 << 30
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
_CHANGED = "it was changed while it was read: import again when the origin is at rest"


@dataclass(slots=True)
class Batch:
    kind: Kind
    name: str
    rows: list[Row]


def batches_of(done: Import) -> Iterator[Batch]:
    """What is to be handed over, in the order in which it must be read."""
    number = 0
    name = readable(done.source.folder.name).encode()[:80].decode("utf-8", "ignore") or "profile"
    for kind in READ:
        batch, size = Batch(kind, "", []), 0
        for row in (row for row in done.rows if row.kind == kind and row.taken):
            if batch.rows and (len(batch.rows) >= MOST_FILES or size + row.found.size > MOST_BYTES):
                yield batch
                batch, size = Batch(kind, "", []), 0
            if not batch.rows:
                number += 1
                batch.name = f"metahuman-{name}-{number:02}-{kind}"
            batch.rows.append(row)
            size += row.found.size
        if batch.rows:
            yield batch


def hand_over(done: Import, batch: Batch, home: Home, profile: str, profiles: list[str]) -> Path | None:
    """Where the batch lies in the inbox: at once and whole, or not at all; None where the very same waits already.

    A file that cannot be copied any more gets its reason and stays behind. Raises OSError (a full disk).
    """
    folder = home.profile(profile).inbox
    mode, file_mode = inbox_modes(home)
    durable.make_folder(folder, mode)
    temp = durable.temp_beside(folder / batch.name)
    temp.mkdir(mode=0o700)
    try:
        used: set[str] = set()
        for row in batch.rows:
            target = temp / _unused(entry_path(row), used)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _put(done, row, target, file_mode)
        if not any(row.taken for row in batch.rows):
            return None
        durable.sync_filesystem(folder)
        if _waits_already(home, profile, batch.name, temp):
            return None
        return inbox.publish(home, profile, temp, batch.name, profiles)
    finally:
        durable.remove(temp)


def _waits_already(home: Home, profile: str, name: str, made: Path) -> bool:
    """Whether a batch with these very files lies in the inbox, or was claimed and is not read yet."""
    sha256 = folder_sha256(made)
    paths = home.profile(profile)
    for one in paths.inbox.glob(f"{glob.escape(inbox.safe_name(name))}*"):
        try:
            if one.is_dir() and not one.is_symlink() and folder_sha256(one) == sha256:
                return True
        except OSError:
            pass  # the daemon has taken it in this moment: the ledger knows what is twice
    try:
        return any(one.startswith(sha256) for one in os.listdir(paths.claimed))
    except OSError:
        return False


def _unused(path: str, used: set[str]) -> str:
    """Two names that are shown alike must not become one file."""
    stem, dot, suffix = path.rpartition(".")
    number, one = 1, path
    while one in used:
        number += 1
        one = f"{stem}-{number}{dot}{suffix}" if stem else f"{path}-{number}"
    used.add(one)
    return one


def _put(done: Import, row: Row, target: Path, mode: int) -> None:
    """Copy one file, or the part of it that goes. What has changed since it was read stays where it is."""
    found = row.found
    try:
        with open_inside(done.source.folder, found.path) as stream:
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as out:
                whole = row.parts is None and not row.marked
                if whole or not _put_items(done, row, stream, out):
                    stream.seek(0)
                    shutil.copyfileobj(stream, out, durable.CHUNK)
            if is_as_found(stream, found):
                os.utime(target, ns=(found.mtime_ns, found.mtime_ns))
                return
        row.reason = _CHANGED
    except Refused:
        row.reason = _CHANGED
    except OSError as error:
        if error.errno in _DISK_TROUBLE:
            raise
        row.reason = f"it cannot be read ({error.strerror}): chmod u+r it, then import again"
    target.unlink(missing_ok=True)


def _put_items(done: Import, row: Row, stream: BinaryIO, out: BinaryIO) -> bool:
    """The items that go, one a line. False where the file has no items: it goes as it is."""
    items = raw_items.raw_items(stream, row.found.size, facts_of(row, done.source.locale), done.source.limits)
    if items is None:
        return False
    for raw in items:
        if raw.item is None or (row.parts is not None and raw.number not in row.parts):
            continue
        item = dict(raw.item)
        ids = {bytes.fromhex(one.id) for one in raw.heard if isinstance(one, Memory)}
        if ids & done.unsuitable:
            item["suitableForTraining"] = False
        out.write(json.dumps(item).encode() + b"\n")
    return True
