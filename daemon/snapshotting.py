"""What goes into a snapshot of a profile: the heads' chains, versions' small files, what is not finished, the books."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import disk, durable, snapshots
from daemon.home import DEFAULT_PROFILE, Home
from daemon.ledger import batches, checks, jobs, memories
from daemon.logs import get_logger
from daemon.world import World
from trainer import names

SMALL = 16 << 20  # bytes of a version's file: a model card, an adapter; not whole models
LEDGER = "ledger.db"
_SMALL_FILES = 2 * disk.MB  # manifest, folders, settings
_NOT_TAKEN = frozenset((names.LOCK, names.LOG, names.BASE_GGUF))
_TRIES = 5

_log = get_logger()


def folder_of(home: Home, profile: str) -> Path:
    """Where a profile's snapshots lie: those of `me` beside the folders of the others."""
    return home.snapshots if profile == DEFAULT_PROFILE else home.snapshots / profile


class NoRoom(ValueError):
    """There is not enough free space for a snapshot. The message is the sentence that says so."""


def sweep(world: World) -> None:
    """What a snapshot that did not come to its end has left; also copies of the ledger, with SQLite's files beside
    them. Only for the daemon, between two snapshots."""
    top = folder_of(world.home, world.name)
    snapshots.sweep(top)
    durable.remove_temps(world.paths.root)


def take(world: World, date: str, now: str, *, pulse: durable.Pulse = durable.no_pulse) -> snapshots.Made:
    """The snapshot of this day. Raises NoRoom before anything is written, and OSError or sqlite3.OperationalError
    where the disk becomes full meanwhile: what was begun is removed."""
    top = folder_of(world.home, world.name)
    durable.make_folder(top)
    sweep(world)
    short = disk.shortage(top, _new_bytes(world), world.settings.disk.reserve_mb * disk.MB, "the snapshot")
    if short is not None:
        raise NoRoom(short)
    name = snapshots.free_name(top, date)
    for attempt in range(_TRIES):
        copy = durable.temp_beside(world.paths.ledger)
        try:
            parts = [*_sealed(world), *_changing(world), _ledger(world, copy, top, pulse)]
            made = snapshots.create(top, name, parts, _facts(world, name, now), pulse=pulse)
            break
        except FileNotFoundError:  # a running trainer replaced a checkpoint of its own meanwhile
            if attempt == _TRIES - 1:
                sweep(world)
                raise
        except (OSError, sqlite3.Error):
            with contextlib.suppress(OSError):
                sweep(world)
            raise
        finally:
            copy.unlink(missing_ok=True)
    _log.info("snapshot_taken", profile=world.name, snapshot=name, files=made.files, size=made.size,
              new_bytes=made.new_bytes)  # fmt: skip
    return made


def _new_bytes(world: World) -> int:
    """What it takes at most: beside links the ledger's copy and small files, on another file system all of it."""
    ledger, paths = world.paths.ledger, world.paths
    books = [ledger, ledger.with_name(f"{ledger.name}-wal")]
    if folder_of(world.home, world.name).stat().st_dev != paths.root.stat().st_dev:
        books += [paths.chains, paths.jobs, paths.claimed]
    return sum(disk.used_bytes(books).values()) + _SMALL_FILES


def _facts(world: World, name: str, now: str) -> dict[str, Any]:
    db = world.db
    return {
        "profile": world.name, "name": name, "at": now, "head": jobs.get_head(db), "heads": jobs.heads(db),
        "memories": memories.counts(db)["state"],
        "batches": batches.counts(db), "redactions": len(checks.redactions(db)),
    }  # fmt: skip


def _ledger(world: World, copy: Path, top: Path, pulse: durable.Pulse) -> snapshots.Part:
    """By SQLite's backup; where nothing changed since the last snapshot, that one's file."""
    world.db.write_back()
    world.db.backup(copy, pulse)
    sha256 = durable.sha256_file(copy, pulse)
    before = snapshots.names_in(top)
    with contextlib.suppress(snapshots.Damaged):
        if before and snapshots.read(top / before[-1])["files"].get(LEDGER, {}).get("sha256") == sha256:
            last = top / before[-1] / LEDGER
            if last.is_file() and durable.sha256_file(last, pulse) == sha256:
                return snapshots.Part(last, LEDGER, sha256)
    copy.chmod(0o400)  # sealed: the snapshot gets this file itself
    return snapshots.Part(copy, LEDGER, sha256, fresh=True)


def _sealed(world: World) -> Iterator[snapshots.Part]:
    """The chains of the heads and the open job's checkpoints."""
    paths = world.paths
    for head in jobs.heads(world.db).values():
        full = (jobs.chain_key(world.db, head["chain"]) or {}).get("method") == "full"
        for entry in sorted((paths.chains / str(head["chain"])).iterdir()):
            step = names.checkpoint_step(entry.name)
            # Each checkpoint of a whole model is gigabytes: then the head's alone.
            if step is not None and (step == head["step"] or not full):
                yield from _checkpoint(entry, f"chains/{head['chain']}/{entry.name}")
    job = jobs.open_job(world.db)
    if job is None:
        return
    folder = paths.jobs / str(job["folder"])
    for entry in sorted(folder.iterdir()):
        inside = f"jobs/{folder.name}/{entry.name}"
        if entry.is_dir() and (entry / names.MANIFEST).is_file():
            yield from _checkpoint(entry, inside)
        elif entry.is_file() and entry.name not in _NOT_TAKEN and not entry.name.startswith("."):
            yield snapshots.Part(entry, inside)


def _checkpoint(folder: Path, inside: str) -> Iterator[snapshots.Part]:
    manifest = folder / names.MANIFEST
    for name, told in json.loads(manifest.read_bytes())["files"].items():
        yield snapshots.Part(folder / name, f"{inside}/{name}", told["sha256"])
    yield snapshots.Part(manifest, f"{inside}/{names.MANIFEST}")


def _changing(world: World) -> Iterator[snapshots.Part]:
    """Dropped files that were not read yet, versions' small files, the registry, the settings."""
    paths, etc = world.paths, world.home.etc
    for root, _, found in os.walk(paths.claimed):
        for name in sorted(found):
            path = Path(root) / name
            if path.is_file() and not path.is_symlink() and not durable.is_temp(name):
                yield snapshots.Part(path, str(path.relative_to(paths.root)), keep=True)
    models = paths.root / "models"
    for path in sorted(models.rglob("*")) if models.is_dir() else ():
        made_again = path.suffix in (".gguf", ".safetensors")  # of a checkpoint, which is in the snapshot
        if path.is_file() and not path.is_symlink() and not made_again and path.stat().st_size <= SMALL:
            yield snapshots.Part(path, str(path.relative_to(paths.root)))
    if paths.registry.is_file():
        yield snapshots.Part(paths.registry, paths.registry.name)
    for path in sorted([*etc.glob("*.toml"), *etc.glob("*.json")]):
        yield snapshots.Part(path, f"etc/{path.name}")
