"""A memory out of every file: archive, failed files, job folders, logs, and the same in every snapshot.

Each file is visited by its own name: bytes that are linked elsewhere are rewritten by the visit there. A file
is written anew beside its place and renamed over it, after `record` has written down both hashes; being killed
between any two steps leaves work that the next visit finds again. Where a format does not let a part be taken
out so that nothing of it is left, the whole file goes, and that is said.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from daemon import durable
from daemon.durable import Pulse, no_pulse
from daemon.rules.emptied import dumped, named_in, without_answers, without_records
from daemon.rules.needles import Needles
from trainer import names

WEIGHTS = frozenset((".safetensors", ".pt", ".pth", ".bin", ".gguf"))
MOST_BYTES = 256 << 20  # of a file that is rewritten in memory; a larger one goes as a whole
RECORDS = frozenset((
    names.SAMPLES, names.DATASET, names.PROBES, names.RENDERED, names.CURATED, names.FORMATTED, names.SCHEMA_APPLIED,
))  # fmt: skip
SCORES = frozenset((names.METRICS, names.BEFORE))  # figures, and the model's own answers to questions about memories
UNTOUCHED = frozenset((names.SPEC, names.PLAN, names.RETRY, names.LOCK))  # engramd's own words and numbers
_CHUNK = 8 << 20
_CHECKPOINT = re.compile(rf"{names.CHECKPOINT_PREFIX}[0-9]+|{names.PARENT}|{names.SERVED}")


@dataclass(frozen=True, slots=True)
class Told:
    """What a dropped file holds, as the readers see it."""

    holds: bool  # something that is forgotten
    rest: bool  # something else


@dataclass(frozen=True, slots=True)
class Place:
    """One file, how often it holds what is forgotten, and what is done with it."""

    path: Path
    times: int
    what: str  # "rewritten", "removed", "kept"
    why: str = ""


@dataclass(slots=True)
class Eraser:
    """Looks for some memories in files, and takes them out unless `dry`."""

    needles: Needles
    ids: frozenset[str]  # of the forgotten memories
    touched: frozenset[str]  # of memories that stay, and have a forgotten one in their context
    look: Callable[[BinaryIO | Path, str], Told]  # a dropped file (or folder) through its reader
    record: Callable[[Path, str, str | None], None]  # before a change: path, hash before, hash after
    folder_files: Callable[[Path], list[tuple[str, str]]]  # (relative path, SHA-256) of a dropped folder
    dry: bool = False
    pulse: Pulse = no_pulse
    places: list[Place] = field(default_factory=list)

    # -- whole trees ----------------------------------------------------------------------------

    def records_below(self, root: Path, skip: Callable[[Path], bool] = lambda path: False) -> None:
        """All files below that engramd wrote itself; what is in `archive` or `claimed` counts as dropped."""
        for folder, below, files in os.walk(root):
            here = Path(folder)
            below[:] = sorted(name for name in below if not _CHECKPOINT.fullmatch(name) and not skip(here / name))
            if here.name in ("archive", "claimed"):
                for entry in sorted(_dropped(here)):
                    self.dropped(entry)
                below[:] = []
                continue
            for name in sorted(files):
                path = here / name
                if name.startswith(durable.TEMP_PREFIX) and not self.dry:  # of a writer that was killed
                    path.unlink(missing_ok=True)
                elif name not in UNTOUCHED and path.suffix not in WEIGHTS and ".db" not in name:
                    self.record_file(path)

    def dropped_below(self, folder: Path) -> None:
        """Files that a person dropped and that were refused, and the sentences beside them."""
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.name.endswith(".reason.json"):
                self.record_file(entry)
            elif not entry.is_symlink():
                self.dropped(entry)

    # -- what engramd wrote ---------------------------------------------------------------------

    def record_file(self, path: Path) -> None:
        self.pulse()
        if path.is_symlink():
            return
        try:
            size = path.stat().st_size
            if size > MOST_BYTES:
                if self._in_large(path):
                    self._remove(path, 1, "it is too large to be written anew")
                return
            data = path.read_bytes()
        except FileNotFoundError:
            return
        times = self._times(path, data)
        if not times:
            return
        new = self._without_records(path, data)
        if new is not None and self.needles.are_in(new):
            new = _by_line(path, new, self.needles)
        if new is None or self.needles.are_in(new) or (path.suffix == ".json" and not _is_json(new)):
            self._remove(path, times, "what was to go could not be taken out of it alone")
        else:
            self._rewrite(path, data, new, times)

    def _times(self, path: Path, data: bytes) -> int:
        times = self.needles.count(data)
        if path.name in RECORDS | SCORES:
            records = named_in(data) & (self.ids | self.touched)
            if records and self._without_records(path, data) != data:
                times = max(times, len(records))
        return times

    def _without_records(self, path: Path, data: bytes) -> bytes | None:
        if path.name in SCORES:
            asked = self.ids | self.touched
            return data if named_in(data).isdisjoint(asked) else without_answers(data, asked)
        return without_records(data, self.ids, self.touched, self.needles.cut) if path.name in RECORDS else data

    def _in_large(self, path: Path) -> bool:
        tail = b""
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                if self.needles.are_in(tail + chunk):
                    return True
                tail = chunk[-65536:]
                self.pulse()
        return False

    def _cut(self, value: Any) -> Any:
        return self.needles.cut(value) if isinstance(value, str) else value

    # -- what a person dropped ------------------------------------------------------------------

    def dropped(self, path: Path) -> None:
        """An archived, claimed or refused file or folder."""
        self.pulse()
        if path.is_dir():
            self._dropped_folder(path)
            return
        try:
            large = path.stat().st_size > MOST_BYTES
            data = b"" if large else path.read_bytes()
        except FileNotFoundError:
            return
        found = self._in_large(path) if large else self.needles.are_in(data)
        told = self.look(path, path.name)
        if not found and not told.holds:
            return
        times = max(1, self.needles.count(data))
        if not told.rest and told.holds:
            self._remove(path, times, "nothing else is in it")
            return
        new = None if large else self._without_dropped(data, path.name)
        if new is None:
            self._remove(path, times, "its format does not let a part be taken out; what else was in it stays in the "
                         "ledger")  # fmt: skip
        else:
            self._rewrite(path, data, new, times)

    def _without_dropped(self, data: bytes, name: str) -> bytes | None:
        """JSON, lines of JSON or text without what is forgotten. None where something of it would be left."""
        for way in (self._json_without, self._lines_without, self._text_without):
            new = way(data, name)
            if new is not None and not self.needles.are_in(new) and not self.look(io.BytesIO(new), name).holds:
                return new
        return None

    def _json_without(self, data: bytes, name: str) -> bytes | None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, (dict, list)):
            return None
        new = [one for one in value if not self._all_of(one, name)] if isinstance(value, list) else value
        for key in [key for key in new if isinstance(new[key], list)] if isinstance(new, dict) else ():
            new[key] = [one for one in new[key] if not self._all_of(one, name)]
        return json.dumps(self._cut_strings(new), ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass") + b"\n"

    def _lines_without(self, data: bytes, name: str) -> bytes | None:
        out = []
        for line in data.splitlines(keepends=True):
            try:
                value = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                return None
            if not isinstance(value, dict):
                out.append(line)
            elif not self._all_of(value, name):
                cut = self._cut_strings(value)
                kept = cut == value and not self.needles.are_in(line)
                out.append(line if kept else dumped(cut) + b"\n")
        return b"".join(out)

    def _text_without(self, data: bytes, name: str) -> bytes | None:
        return None if b"\0" in data[:4096] else self.needles.cut_bytes(data)

    def _all_of(self, item: Any, name: str) -> bool:
        """Whether an item of a dropped file holds nothing but what is forgotten."""
        if not isinstance(item, dict):
            return False
        told = self.look(io.BytesIO(json.dumps(item).encode()), f"{name}.json")
        return told.holds and not told.rest

    def _cut_strings(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._cut_strings(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._cut_strings(one) for one in value]
        return self._cut(value)

    def _dropped_folder(self, folder: Path) -> None:
        files = self.folder_files(folder)
        hits = {name for name, _ in files if self.needles.are_in((folder / name).read_bytes())}
        told = self.look(folder, folder.name)
        if not hits and not told.holds:
            return
        if not told.rest and told.holds:
            self._remove(folder, max(1, len(hits)), "nothing else is in it")
            return
        for name, _ in files:
            path = folder / name
            alone = self.look(path, path.name)
            if name not in hits and not alone.holds:
                continue
            data = path.read_bytes()
            new = self._without_dropped(data, path.name) if alone.rest or not alone.holds else None
            self._change_inside(folder, path, data, new)
        if not self.dry and self.look(folder, folder.name).holds:
            self._remove(folder, 1, "its format does not let a part be taken out")

    def _change_inside(self, folder: Path, path: Path, data: bytes, new: bytes | None) -> None:
        """The folder's own hash, that of the batch, changes with each of its files."""
        files = dict(self.folder_files(folder))
        before = _sha256_of_folder(files)
        name = str(path.relative_to(folder))
        after = {key: one for key, one in files.items() if key != name}
        if new is not None:
            after[name] = hashlib.sha256(new).hexdigest()
        if not self.dry:
            self.record(folder, before, _sha256_of_folder(after))
        if new is None:
            self._remove(path, 1, "nothing else could stay in it")
        else:
            self._rewrite(path, data, new, 1)

    # -- to disk --------------------------------------------------------------------------------

    def _rewrite(self, path: Path, data: bytes, new: bytes, times: int) -> None:
        status = path.stat()
        if not self.dry:
            self.record(path, hashlib.sha256(data).hexdigest(), hashlib.sha256(new).hexdigest())
            try:
                durable.write_atomic(path, new, status.st_mode & 0o777)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # some formats have no other date
            except PermissionError as error:
                self.places.append(Place(path, times, "kept", f"it may not be changed: {error.strerror}"))
                return
        self.places.append(Place(path, times, "rewritten"))

    def _remove(self, path: Path, times: int, why: str) -> None:
        if not self.dry:
            old = _sha256_of_folder(dict(self.folder_files(path))) if path.is_dir() else durable.sha256_file(path)
            self.record(path, old, None)
            try:
                durable.remove(path)
                durable.remove_gone(path.parent)
                durable.fsync_dir(path.parent)
            except PermissionError as error:
                self.places.append(Place(path, times, "kept", f"it may not be removed: {error.strerror}"))
                return
        self.places.append(Place(path, times, "removed", why))


def _dropped(folder: Path) -> Iterator[Path]:
    """What lies in `claimed`, or in the months of `archive`."""
    for entry in folder.iterdir():
        if folder.name == "claimed":
            yield entry
        elif entry.is_dir():
            yield from entry.iterdir()


def _by_line(path: Path, data: bytes, needles: Needles) -> bytes:
    """Logs lose the whole line, everything else the words."""
    if path.suffix in (".jsonl", ".log") or ".jsonl." in path.name:
        return b"".join(line for line in data.splitlines(keepends=True) if not needles.are_in(line))
    return needles.cut_bytes(data)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _sha256_of_folder(files: dict[str, str]) -> str:
    """As the inbox names a folder: over the sorted (path, SHA-256) of its files."""
    digest = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(files[name]))
    return digest.hexdigest()
