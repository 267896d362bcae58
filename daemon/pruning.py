"""`engramd prune`: gathers what retention decides on, has it decided, and removes what no rule keeps.

Nothing that the head, its parents, an open job or a pin needs is ever asked about. Rows of the ledger stay; of a job's
folder the records stay. A removal is a rename first, so that a crash leaves no half of anything.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from daemon import disk, durable, snapshots
from daemon.ledger import jobs, lineage, pins
from daemon.logs import get_logger
from daemon.rules.retention import Decision, Item, Policy, decide
from daemon.settings_sections import Keep
from daemon.snapshotting import folder_of
from daemon.world import World
from trainer import names

LEFT_DAYS = 7  # a chain that the head has left is kept for so long, in case of a change of mind
RECORDS = frozenset((names.SUMMARY, names.RESULT, names.PROGRESS, names.PLAN))  # of a job's folder
_ENDED = ("promoted", "refused", "failed", "undone")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was decided on. `size` is what its removal frees: bytes that nothing kept shares."""

    kind: str  # snapshot, checkpoint, version, job
    name: str
    keep: bool
    reasons: tuple[str, ...]
    path: Path
    size: int = 0


@dataclass(slots=True)
class Report:
    entries: list[Entry] = field(default_factory=list)
    freed: int = 0

    def told(self) -> dict[str, Any]:
        """For `--json`, and over the border to the command line."""
        return {
            "freed": self.freed,
            "entries": [
                {"kind": one.kind, "name": one.name, "keep": one.keep, "reasons": list(one.reasons),
                 "path": str(one.path), "size": one.size}
                for one in self.entries
            ],
        }  # fmt: skip


def is_there(world: World, kind: str, name: str) -> bool:
    """Whether a profile has such a thing, so that it can be pinned."""
    if kind == "snapshot":
        return name in snapshots.names_in(folder_of(world.home, world.name))
    found = jobs.version(world.db, int(name)) if kind == "version" else jobs.get(world.db, int(name))
    return found is not None


def plan(world: World, now: str, zone: tzinfo) -> Report:
    """What stays and what would go, each with its reason. Changes nothing."""
    moment = datetime.fromisoformat(now)
    entries = [
        *_snapshots(world, moment, zone), *_checkpoints(world, moment, zone), *_versions(world, moment, zone),
        *_jobs(world, moment, zone),
    ]  # fmt: skip
    going = [entry.path for entry in entries if not entry.keep]
    sizes = disk.used_bytes([*_kept_places(world, going), *going])
    report = Report([Entry(one.kind, one.name, one.keep, one.reasons, one.path, 0 if one.keep else sizes[one.path])
                     for one in entries])  # fmt: skip
    report.freed = sum(entry.size for entry in report.entries)
    return report


def prune(world: World, now: str, zone: tzinfo, *, pulse: durable.Pulse = durable.no_pulse) -> Report:
    """Do what `plan` says. What a crash has left of an earlier one is finished first."""
    top = folder_of(world.home, world.name)
    for place in (top, world.paths.jobs, world.paths.root / "models", *_chain_folders(world)):
        if place.is_dir():
            durable.remove_gone(place)
    report = plan(world, now, zone)
    for entry in report.entries:
        if entry.keep:
            continue
        pulse()
        if entry.kind == "job":
            _clear_job(world, entry, now)
        else:
            durable.remove(entry.path)
            durable.fsync_dir(entry.path.parent)
        _log.info("pruned", profile=world.name, kind=entry.kind, name=entry.name, freed=entry.size,
                  reason="; ".join(entry.reasons))  # fmt: skip
    return report


def _clear_job(world: World, entry: Entry, now: str) -> None:
    """The row says so first: a folder without its files would be a loss otherwise."""
    with world.db.transaction():
        jobs.pruned(world.db, int(entry.name), now)
    for path in sorted(entry.path.iterdir()):
        if path.name not in RECORDS:
            durable.remove(path)
    durable.remove_gone(entry.path)
    durable.fsync_dir(entry.path)


def _kept_places(world: World, going: list[Path]) -> Iterator[Path]:
    """All places of this profile but those that go, so that bytes which they share count as kept."""
    gone = set(going)
    top = folder_of(world.home, world.name)
    yield from (top / name for name in snapshots.names_in(top) if top / name not in gone)
    for chain in _chain_folders(world):
        yield from (path for path in chain.iterdir() if path not in gone)
    for parent in (world.paths.jobs, world.paths.root / "models", world.paths.claimed):
        if parent.is_dir():
            yield from (path for path in parent.iterdir() if path not in gone)


def _chain_folders(world: World) -> list[Path]:
    chains = world.paths.chains
    return [path for path in sorted(chains.iterdir()) if path.name.isdecimal()] if chains.is_dir() else []


# -- what there is -----------------------------------------------------------------------------------


def _decided(kind: str, found: list[tuple[Item, Path]], policy: Policy, now: datetime, zone: tzinfo,
             protected: dict[str, str]) -> Iterator[Entry]:  # fmt: skip
    paths = {item.name: path for item, path in found}
    for one in decide([item for item, _ in found], policy, now, zone, protected):
        yield _entry(kind, one, paths[one.name])


def _entry(kind: str, one: Decision, path: Path) -> Entry:
    return Entry(kind, one.name, one.keep, one.reasons, path)


def _snapshots(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    top = folder_of(world.home, world.name)
    found, protected = [], dict.fromkeys(pins.names(world.db, "snapshot"), "pinned")
    for name in snapshots.names_in(top):
        day = datetime.fromisoformat(name[:10]).replace(hour=12, tzinfo=zone)
        try:
            time = datetime.fromisoformat(snapshots.read(top / name)["at"])
        except snapshots.Damaged:
            time = day
            protected.setdefault(name, "damaged: look at it first (engramd snapshot verify)")
        found.append((Item(name, time), top / name))
    yield from _decided("snapshot", found, world.settings.retention.snapshots, now, zone, protected)


def protected_versions(world: World) -> dict[int, str]:
    """Versions of which nothing goes, each with the reason."""
    db, head = world.db, jobs.get_head(world.db)
    found: dict[int, str] = {int(name): "pinned" for name in pins.names(db, "version")}
    line = lineage.line(db, head["version"]) if head else []
    for version, why in zip(line, ("the head", "its parent, to which one can go back"), strict=False):
        found.setdefault(version, why)
    return found


def _checkpoints(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    db, head = world.db, jobs.get_head(world.db)
    of_version = protected_versions(world)
    shas = {row["checkpoint_sha256"]: of_version[row["id"]] for row in jobs.versions(db) if row["id"] in of_version}
    job = jobs.open_job(db)
    if job and job["parent_sha256"]:
        shas.setdefault(job["parent_sha256"], f"job {job['id']} starts from it")
    left_at = _left_at(world)
    chains: dict[int, list[tuple[Item, Path, str]]] = {}
    for point in jobs.checkpoints(db):
        path = world.paths.chains / str(point["chain"]) / f"{names.CHECKPOINT_PREFIX}{point['step']}"
        if path.is_dir():
            item = Item(f"{point['chain']}/{path.name}", datetime.fromisoformat(point["created_at"]))
            chains.setdefault(point["chain"], []).append((item, path, point["sha256"]))
    for chain, found in chains.items():
        protected = {item.name: shas[sha256] for item, _, sha256 in found if sha256 in shas}
        if head is not None and chain == head["chain"]:
            keep = Keep(keep_last=world.most_checkpoints)
            yield from _decided("checkpoint", [(item, path) for item, path, _ in found], keep, now, zone, protected)
            continue
        left = left_at.get(chain)
        for item, path, _ in found:
            if item.name in protected:
                yield Entry("checkpoint", item.name, True, (protected[item.name],), path)
            elif left is None or left + timedelta(days=LEFT_DAYS) > now:
                why = f"its chain was left less than {LEFT_DAYS} days ago"
                yield Entry("checkpoint", item.name, True, (why,), path)
            else:
                yield Entry("checkpoint", item.name, False, (f"the head left its chain on {left:%Y-%m-%d}",), path)


def _left_at(world: World) -> dict[int, datetime]:
    """When the head left each chain: when the next one began."""
    rows = jobs.chains(world.db)
    left = {row["id"]: datetime.fromisoformat(after["created_at"]) for row, after in itertools.pairwise(rows)}
    for move in lineage.moves(world.db):
        if move["from_chain"] is not None:
            left[move["from_chain"]] = datetime.fromisoformat(move["at"])
    return left


def _versions(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    found = []
    protected = {str(version): why for version, why in protected_versions(world).items()}
    for row in jobs.versions(world.db):
        path = world.paths.root / "models" / f"v{row['id']}"
        if path.is_dir():
            found.append((Item(str(row["id"]), datetime.fromisoformat(row["created_at"])), path))
            if row["state"] == "candidate":
                protected[str(row["id"])] = "not judged yet"
    yield from _decided("version", found, world.settings.retention.versions, now, zone, protected)


def _jobs(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    """Folders of ended jobs that hold more than the records. A refused one keeps its checkpoint as long as they do."""
    found = []
    protected = dict.fromkeys(pins.names(world.db, "job"), "pinned")
    for row in jobs.all_ended(world.db, _ENDED):
        path = world.paths.jobs / row["folder"]
        if path.is_dir() and any(entry.name not in RECORDS for entry in path.iterdir()):
            found.append((Item(str(row["id"]), datetime.fromisoformat(row["finished_at"] or row["created_at"])), path))
    yield from _decided("job", found, world.settings.retention.jobs, now, zone, protected)

