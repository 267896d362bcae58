"""`engramd prune`: gathers what retention decides on, has it decided, and removes what no rule keeps.

Whatever the rules say, what the head, its parent, an open job or a pin needs stays. Rows of the ledger stay; of a
job's folder the records stay. A removal is a rename first, so that a crash leaves no half of anything.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from daemon import chains, disk, durable, outcome, snapshots
from daemon.ledger import jobs, lineage, pins, scores
from daemon.logs import get_logger
from daemon.rules.retention import Item, Policy, decide
from daemon.snapshotting import folder_of
from daemon.world import World
from trainer import names

LEFT_DAYS = 7  # a chain that the head has left is kept for so long, in case of a change of mind
RECORDS = frozenset((names.SUMMARY, names.RESULT, names.PROGRESS, names.PLAN))  # of a job's folder
LEFTOVER_DAYS = 1  # a temporary file that nobody has written to for so long has no writer
_TEMPORARY = (chains.TEMPORARY, durable.TEMP_PREFIX, durable.GONE_PREFIX)
_ENDED = ("promoted", "refused", "failed", "undone", "done")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was decided on. `size` is what its removal frees, after that of those before it that go: the
    bytes on the disk that have no other name."""

    kind: str  # snapshot, checkpoint, version, job, leftover
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
        *_snapshots(world, moment, zone), *_checkpoints(world, moment), *_versions(world, moment, zone),
        *_jobs(world, moment, zone), *_leftovers(world, moment),
    ]  # fmt: skip
    freed = iter(disk.freed_bytes(_parts(entry) for entry in entries if not entry.keep))
    alone = [disk.freed_bytes([_parts(entry)])[0] if entry.keep else next(freed) for entry in entries]
    report = Report([replace(entry, size=size) for entry, size in zip(entries, alone, strict=True)])
    report.freed = sum(entry.size for entry in report.entries if not entry.keep)
    return report


def _parts(entry: Entry) -> list[Path]:
    """What a removal takes away: of a job's folder all but the records."""
    if entry.kind != "job":
        return [entry.path]
    return [path for path in _entries(entry.path) if path.name not in RECORDS]


def sweep(world: World) -> None:
    """Finish the removals that a crash has cut off. Only for the daemon."""
    top = folder_of(world.home, world.name)
    folders = [world.paths.jobs / row["folder"] for row in jobs.all_ended(world.db, _ENDED)]
    for place in (top, world.paths.jobs, world.paths.root / "models", *_chain_folders(world), *folders):
        if place.is_dir():
            durable.remove_gone(place)


def prune(world: World, now: str, zone: tzinfo, *, pulse: durable.Pulse = durable.no_pulse) -> Report:
    """Do what `plan` says. What a crash has left of an earlier one is finished first."""
    sweep(world)
    report = plan(world, now, zone)
    for entry in report.entries:
        if entry.keep:
            continue
        pulse()
        if entry.kind == "job":
            _clear_job(world, entry, now)
        else:
            durable.remove_durable(entry.path)
        _log.info("pruned", profile=world.name, kind=entry.kind, name=entry.name, freed=entry.size,
                  reason="; ".join(entry.reasons))  # fmt: skip
    return report


def _clear_job(world: World, entry: Entry, now: str) -> None:
    """The row says so first: a folder without its files would be a loss otherwise."""
    with world.db.transaction():
        jobs.pruned(world.db, int(entry.name), now)
    for path in _parts(entry):
        durable.remove(path)
    durable.fsync_dir(entry.path)


def _chain_folders(world: World) -> list[Path]:
    return [path for path in _entries(world.paths.chains) if path.name.isdecimal()]


def _entries(folder: Path) -> list[Path]:
    """Nothing where there is no such folder, or no more: a dry run looks on while the daemon works."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


# -- what there is -----------------------------------------------------------------------------------


def _decided(kind: str, found: list[tuple[Item, Path]], policy: Policy, now: datetime, zone: tzinfo,
             protected: dict[str, str]) -> Iterator[Entry]:  # fmt: skip
    paths = {item.name: path for item, path in found}
    for one in decide([item for item, _ in found], policy, now, zone, protected):
        yield Entry(kind, one.name, one.keep, one.reasons, paths[one.name])


def _snapshots(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    """A damaged one counts for no rule: it must not take the place of a whole one."""
    top, found = folder_of(world.home, world.name), []
    for name in snapshots.names_in(top):
        try:
            time = datetime.fromisoformat(snapshots.read(top / name)["at"])
        except snapshots.Damaged:
            why = "damaged: look at it first (engramd snapshot verify)"
            yield Entry("snapshot", name, True, (why,), top / name)
        else:
            found.append((Item(name, time), top / name))
    protected = dict.fromkeys(pins.names(world.db, "snapshot"), "pinned")
    yield from _decided("snapshot", found, world.settings.retention.snapshots, now, zone, protected)


def _checkpoints(world: World, now: datetime) -> Iterator[Entry]:
    """Of the heads' chains as `outcome` does it all along; of chains that a head has left, all after some days."""
    at_work, needed = {head["chain"] for head in jobs.heads(world.db).values()}, outcome.needed_checkpoints(world)
    for chain in sorted(at_work):
        for one, path in outcome.decide_chain(world, chain, needed):
            yield Entry("checkpoint", f"{path.parent.name}/{path.name}", one.keep, one.reasons, path)
    left_at = _left_at(world)
    there = {int(folder.name): chains.steps(world.paths.chains, int(folder.name)) for folder in _chain_folders(world)}
    for point in jobs.checkpoints(world.db):
        place = there.get(point["chain"], {}).get(point["step"])
        if place is None or point["chain"] in at_work:
            continue
        left = left_at.get(point["chain"])
        if point["sha256"] in needed:
            keep, why = True, needed[point["sha256"]]
        elif left is None or left + timedelta(days=LEFT_DAYS) > now:
            keep, why = True, f"its chain was left less than {LEFT_DAYS} days ago"
        else:
            keep, why = False, f"the head left its chain on {left:%Y-%m-%d}"
        yield Entry("checkpoint", f"{place.parent.name}/{place.name}", keep, (why,), place)


def _left_at(world: World) -> dict[int, datetime]:
    """When the head left each chain: when the next one of its line began."""
    line_of = jobs.line_of_chain(world.db)
    left: dict[int, datetime] = {}
    of_lines: dict[str, list[dict[str, Any]]] = {}
    for row in jobs.chains(world.db):
        of_lines.setdefault(line_of.get(row["id"], ""), []).append(row)
    for rows in of_lines.values():
        left |= {row["id"]: datetime.fromisoformat(after["created_at"]) for row, after in itertools.pairwise(rows)}
    for move in lineage.moves(world.db):
        if move["from_chain"] is not None:
            left[move["from_chain"]] = datetime.fromisoformat(move["at"])
    return left


def _versions(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    found = []
    protected = {str(version): why for version, why in outcome.needed_versions(world).items()}
    for row in jobs.versions(world.db):
        path = world.paths.root / "models" / f"v{row['id']}"
        if path.is_dir():
            found.append((Item(str(row["id"]), datetime.fromisoformat(row["created_at"])), path))
            if row["state"] == "candidate":
                protected[str(row["id"])] = "not judged yet"
            elif world.settings.versioning.keep_all_versions:
                protected.setdefault(str(row["id"]), "versioning.keep_all_versions is set")
    yield from _decided("version", found, world.settings.retention.versions, now, zone, protected)


def _jobs(world: World, now: datetime, zone: tzinfo) -> Iterator[Entry]:
    """Folders of ended jobs that hold more than the records. A refused one keeps its checkpoint as long as they do."""
    found = []
    protected = dict.fromkeys(pins.names(world.db, "job"), "pinned")
    needed = outcome.needed_versions(world)
    refused = {row["folder"]: row["version"] for row in scores.refused(world.db)}
    for row in jobs.all_ended(world.db, _ENDED):
        path = world.paths.jobs / row["folder"]
        if (version := refused.get(row["folder"])) in needed:
            protected.setdefault(str(row["id"]), f"the checkpoint of v{version}: {needed[version]}")
        if any(entry.name not in RECORDS for entry in _entries(path)):
            found.append((Item(str(row["id"]), datetime.fromisoformat(row["finished_at"] or row["created_at"])), path))
    yield from _decided("job", found, world.settings.retention.jobs, now, zone, protected)


def _leftovers(world: World, now: datetime) -> Iterator[Entry]:
    """Temporary files of writers that did not come to their end, but for those of the open job, which goes on."""
    paths, job = world.paths, jobs.open_job(world.db)
    at_work = paths.jobs / str(job["folder"]) if job else None
    folders: Iterable[Path] = (
        paths.root, paths.claimed, paths.chains, paths.jobs, paths.root / "models", folder_of(world.home, world.name),
        *_entries(paths.archive), *_chain_folders(world), *(one for one in _entries(paths.jobs) if one != at_work),
    )  # fmt: skip
    for path in itertools.chain.from_iterable(map(_entries, folders)):
        if not path.name.startswith(_TEMPORARY):
            continue
        try:
            written = datetime.fromtimestamp(path.lstat().st_mtime, UTC)
        except (FileNotFoundError, OverflowError, ValueError):
            continue
        if written + timedelta(days=LEFTOVER_DAYS) < now:
            name = str(path.relative_to(world.home.root))
            yield Entry("leftover", name, False, (f"left by a writer that ended on {written:%Y-%m-%d}",), path)

