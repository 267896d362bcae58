"""Snapshots: a profile's training state under a date, by hard links to sealed files, the manifest last.

A snapshot's folder holds copies of what can still change and second names of what cannot, `manifest.json` with the
size and SHA-256 of each file, and `manifest.sha256` with that of the manifest, in the form of `sha256sum`. Linked
files share their bytes with the original: what damages one damages the other, and `verify` finds it in both.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon import durable

MANIFEST = "manifest.json"
MANIFEST_SHA256 = "manifest.sha256"
FORMAT = 1
_TEMPORARY = ".tmp-"
_FSYNC_EACH = 8  # up to so many folders one by one: a hundred flushes of a busy disk take longer than all the rest
_SEALED = 0o222  # no write bits: nothing in the house writes such a file again

Inode = tuple[int, int]


class Damaged(Exception):
    """A snapshot is not what its manifest says. The message is a sentence that names the first difference."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a snapshot. `sha256` where it is known already, from the manifest of a sealed checkpoint."""

    source: Path
    name: str  # within the snapshot, "/" between parts
    sha256: str | None = None
    fresh: bool = False  # written for this snapshot, so that its bytes are new though it is linked
    keep: bool = False  # by a second name, though it may be written by its mode: the house never writes it


@dataclass(frozen=True, slots=True)
class Made:
    path: Path
    files: int
    size: int  # bytes of all files
    new_bytes: int  # of those, written anew: what the others share with the original costs nothing


def names_in(top: Path) -> list[str]:
    """The complete snapshots in a folder, oldest first. A folder without its manifest was not finished."""
    entries = top.iterdir() if top.is_dir() else iter(())
    found = [entry.name for entry in entries if _is_date(entry.name) and (entry / MANIFEST).is_file()]
    return sorted(found, key=_order)


def _is_date(name: str) -> bool:
    return len(name) >= 10 and name[:10].replace("-", "").isdecimal() and name[4] == name[7] == "-"


def _order(name: str) -> tuple[str, int]:
    return name[:10], int(name[11:]) if name[11:].isdecimal() else 1


def free_name(top: Path, date: str) -> str:
    """The date, or with a number behind it where there are snapshots of this day already: one above theirs."""
    taken = [_order(entry.name)[1] for entry in (top.iterdir() if top.is_dir() else ()) if entry.name[:10] == date]
    return f"{date}-{max(taken) + 1}" if taken else date


def sweep(top: Path) -> list[str]:
    """Remove what a writer that did not come to its end has left; gives the names."""
    left = [entry for entry in (sorted(top.iterdir()) if top.is_dir() else []) if entry.name.startswith(_TEMPORARY)]
    for entry in left:
        shutil.rmtree(entry)
    return [entry.name for entry in left]


def create(
    top: Path, name: str, parts: Iterable[Part], facts: dict[str, Any], *, pulse: durable.Pulse = durable.no_pulse
) -> Made:
    """Write the snapshot `top/name` and give it its name last. A part whose file goes away meanwhile is an OSError.

    A copy that equals the file of the same name in the newest snapshot becomes a link to that one, so that a night in
    which nothing changed costs no bytes.
    """
    durable.make_folder(top)
    names = names_in(top)
    before = _Before(top / names[-1]) if names else None
    folder = top / f"{_TEMPORARY}{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    files: dict[str, dict[str, Any]] = {}
    folders = {"": folder}
    new_bytes = 0
    for part in sorted(parts, key=lambda part: part.name):
        pulse()
        target = _folder_of(part.name, folders) / part.name.rpartition("/")[2]
        sha256, linked = _place(part, target, before, pulse)
        size = target.stat().st_size
        files[part.name] = {"sha256": sha256, "size": size}
        new_bytes += 0 if linked and not part.fresh else size
    if len(folders) > _FSYNC_EACH:
        durable.sync_filesystem(folder)
    else:
        durable.fsync_dirs(folders.values())
    written = _seal(folder, facts, files)
    os.rename(folder, top / name)
    durable.fsync_dir(top)
    size = sum(file["size"] for file in files.values())
    return Made(top / name, len(files), size, new_bytes + written)


def _folder_of(name: str, folders: dict[str, Path]) -> Path:
    """The folder of a file within the snapshot. Each is made once, by its name, and the outer one first."""
    inside, _, last = name.rpartition("/")[0].rpartition("/")
    key = f"{inside}/{last}" if inside else last
    if key not in folders:
        folders[key] = _folder_of(key, folders) / last
        folders[key].mkdir(mode=0o700)
    return folders[key]


def _manifest(facts: dict[str, Any], files: dict[str, dict[str, Any]]) -> bytes:
    """One line a file. All in ASCII: a name that is no UTF-8 keeps its bytes as an escaped half of a surrogate pair."""
    told = json.dumps({"format": FORMAT, **facts})[:-1]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(file)}" for name, file in files.items())
    return f'{told}, "files": {{\n{lines}\n}}}}\n'.encode("ascii")


class _Before:
    """The newest snapshot: what need not be hashed or written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.files: dict[str, dict[str, Any]] = read(folder)["files"]
        except Damaged:
            self.files = {}

    def sha256_of(self, name: str, status: os.stat_result) -> str | None:
        """Known where the file there is the same one."""
        if name not in self.files:
            return None
        try:
            there = (self.folder / name).stat()
        except OSError:
            return None
        same = (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
        return str(self.files[name]["sha256"]) if same else None

    def equal(self, name: str, sha256: str) -> Path | None:
        known = self.files.get(name)
        return self.folder / name if known and known["sha256"] == sha256 else None


def _place(part: Part, target: Path, before: _Before | None, pulse: durable.Pulse) -> tuple[str, bool]:
    """(SHA-256, whether no byte was written for it)"""
    status = part.source.stat()
    if part.keep or not status.st_mode & _SEALED:
        sha256 = part.sha256 or (before.sha256_of(part.name, status) if before else None)
        if durable.link_or_clone(part.source, target):
            return sha256 or durable.sha256_file(target, pulse), True
        durable.copy_durable(part.source, target, pulse, 0o400)  # another file system
        return sha256 or durable.sha256_file(target, pulse), False
    sha256 = durable.copy_durable(part.source, target, pulse, 0o400)
    same = before.equal(part.name, sha256) if before else None
    if same is not None and durable.sha256_file(same, pulse) == sha256:
        target.unlink()
        if durable.link_or_clone(same, target):
            return sha256, True
        durable.copy_durable(same, target, pulse, 0o400)
    return sha256, False


# -- reading -----------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises Damaged where it is missing, altered or of another release."""
    try:
        content = (folder / MANIFEST).read_bytes()
        told = (folder / MANIFEST_SHA256).read_bytes()
    except OSError as error:
        raise Damaged(f"{error.filename} cannot be read: {error.strerror}") from None
    if told != f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode():
        raise Damaged(f"{folder / MANIFEST} is damaged: its SHA-256 is not that of {MANIFEST_SHA256}")
    manifest: dict[str, Any] = json.loads(content)
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{folder} was written by a newer engramd: install that release to read it")
    return manifest


def problems(
    folder: Path, seen: dict[Inode, str], after: Callable[[str], set[str | None]] = lambda sha256: set(),
    *, pulse: durable.Pulse = durable.no_pulse, skip: Callable[[str], bool] = lambda name: False,
) -> Iterator[str]:  # fmt: skip
    """Each difference from the manifest, as a sentence. `seen` holds the hashes of linked files, so that each is read
    once; `after` tells what a file became, lawfully, when something in it was forgotten (None: it was removed)."""
    try:
        files: dict[str, dict[str, Any]] = read(folder)["files"]
    except Damaged as damage:
        yield str(damage)
        return
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    for name in sorted(found - files.keys() - {MANIFEST, MANIFEST_SHA256}):
        yield f"{folder / name} is not in the snapshot's manifest"
    for name in sorted(files):
        if skip(name):
            continue
        path, told = folder / name, files[name]["sha256"]
        allowed = {told, *after(told)}
        try:
            status = path.lstat()
        except OSError:
            if None not in allowed:
                yield f"{path} is missing"
            continue
        if not stat.S_ISREG(status.st_mode):
            yield f"{path} is no regular file"
            continue
        inode = (status.st_dev, status.st_ino)
        if inode not in seen:
            seen[inode] = durable.sha256_file(path, pulse)
        if seen[inode] not in allowed:
            yield f"{path} is damaged: its SHA-256 is not the manifest's"


def export(
    folder: Path, target: Path, after: Callable[[str], set[str | None]] = lambda sha256: set(),
    *, pulse: durable.Pulse = durable.no_pulse,
) -> int:  # fmt: skip
    """Copy a snapshot's files to a new folder, each with bytes of its own, and a manifest of what they are now last:
    what was forgotten (`after`, as in `problems`) is no part of it any more. Gives the bytes.

    Raises Damaged where a file differs from the manifest, FileExistsError where the target is there. What was begun
    is removed then.
    """
    manifest = read(folder)
    target.mkdir(parents=True, mode=0o700)
    try:
        files = dict(_copied(folder, target, manifest["files"], after, pulse))
        _seal(target, {key: manifest[key] for key in manifest if key not in ("format", "files")}, files)
        durable.fsync_tree(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return sum(told["size"] for told in files.values())


def _copied(
    folder: Path, target: Path, files: dict[str, dict[str, Any]], after: Callable[[str], set[str | None]],
    pulse: durable.Pulse,
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    for name, told in sorted(files.items()):
        pulse()
        allowed = {told["sha256"], *after(told["sha256"])}
        (target / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            sha256 = durable.copy_durable(folder / name, target / name, pulse, 0o400)
        except FileNotFoundError:
            if None in allowed:
                continue
            raise Damaged(f"{folder / name} is missing") from None
        if sha256 not in allowed:
            raise Damaged(f"{folder / name} is damaged: its SHA-256 is not the manifest's")
        yield name, {"sha256": sha256, "size": (target / name).stat().st_size}


def _seal(folder: Path, facts: dict[str, Any], files: dict[str, dict[str, Any]]) -> int:
    """Write the manifest, its hash first. Gives its bytes."""
    content = _manifest(facts, files)
    digest = hashlib.sha256(content).hexdigest()
    durable.write_atomic(folder / MANIFEST_SHA256, f"{digest}  {MANIFEST}\n".encode(), 0o400)
    durable.write_atomic(folder / MANIFEST, content, 0o400)
    return len(content)
