"""`engramd prune`: gathers what retention decides on, has it decided, and removes what no rule keeps.

Whatever the rules say, what the head, its parent, an open job or a pin needs stays. Rows of the ledger stay; of a
job's folder the records stay. A removal is a rename first, so that a crash leaves no half of anything.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from daemon import bases, chains, disk, durable, exporting, outcome, snapshots
from daemon.candidates import names_decided
from daemon.ledger import jobs, lineage, pins, scores, serving
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

    kind: str  # snapshot, checkpoint, version, export, base, model, job, leftover
    name: str
    keep: bool
    reasons: tuple[str, ...]
    path: Path
    size: int = 0
    parts: tuple[Path, ...] | None = None  # what goes, where that is not `path`


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
    versions = list(_versions(world, moment, zone))
    exports = list(_exports(world, {one.name for one in versions if not one.keep}))
    gone = {one.name for one in (*versions, *exports) if not one.keep}
    entries = [
        *_snapshots(world, moment, zone), *_checkpoints(world, moment), *versions, *exports, *_bases(world, gone),
        *_names(world), *_jobs(world, moment, zone), *_leftovers(world, moment),
    ]  # fmt: skip
    freed = iter(disk.freed_bytes(_parts(entry) for entry in entries if not entry.keep))
    alone = [disk.freed_bytes([_parts(entry)])[0] if entry.keep else next(freed) for entry in entries]
    report = Report([replace(entry, size=size) for entry, size in zip(entries, alone, strict=True)])
    report.freed = sum(entry.size for entry in report.entries if not entry.keep)
    return report


def _parts(entry: Entry) -> list[Path]:
    """What a removal takes away: of a job's folder all but the records, of a version's folder what it is served by."""
    if entry.parts is not None:
        return list(entry.parts)
    if entry.kind != "job":
        return [entry.path]
    return [path for path in _entries(entry.path) if path.name not in RECORDS]


def sweep(world: World) -> None:
    """Finish the removals that a crash has cut off. Only for the daemon."""
    top = folder_of(world.home, world.name)
    folders = [world.paths.jobs / row["folder"] for row in jobs.all_ended(world.db, _ENDED)]
    models = world.paths.root / "models"
    for place in (top, world.paths.jobs, models, *_entries(models), *_chain_folders(world), *folders):
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
        elif entry.kind == "export":
            _clear_export(world, entry, now)
        elif entry.kind == "base":
            bases.leave(entry.path, world.name)
        elif entry.kind == "model":
            with world.db.transaction():
                serving.give_up(world.db, world.settings.serve.where(), entry.name)
        else:
            if entry.kind == "version":
                with world.db.transaction():
                    serving.export_gone(world.db, int(entry.name), now)
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


def _clear_export(world: World, entry: Entry, now: str) -> None:
    """The row says so first, and `export.json` goes first: what is half gone is served by nobody."""
    with world.db.transaction():
        serving.export_gone(world.db, int(entry.name), now)
    for path in sorted(_parts(entry), key=lambda path: path.name != names.EXPORTED):
        durable.remove_durable(path)


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
    needed = outcome.needed_versions(world)
    protected = {str(version): why for version, why in (_served(world) | needed).items()}
    for row in jobs.versions(world.db):
        path = world.paths.root / "models" / f"v{row['id']}"
        if path.is_dir():
            found.append((Item(str(row["id"]), datetime.fromisoformat(row["created_at"])), path))
            if row["state"] == "candidate":
                protected[str(row["id"])] = "not judged yet"
            elif world.settings.versioning.keep_all_versions:
                protected.setdefault(str(row["id"]), "versioning.keep_all_versions is set")
    yield from _decided("version", found, world.settings.retention.versions, now, zone, protected)


def _served(world: World) -> dict[int, str]:
    """Versions whose GGUF stays, each with the reason."""
    found = {int(name): "pinned" for name in pins.names(world.db, "version")}
    for row in serving.lines(world.db).values():
        whose = f" as {row['alias']}" if row["alias"] else ""
        for version, why in ((row["version"], f"served{whose}"), (row["before"], "served before, to go back to")):
            if version is not None:
                found.setdefault(version, why)
    for head in jobs.heads(world.db).values():
        found.setdefault(head["version"], "the head")
    return found


def _exports(world: World, gone: Collection[str]) -> Iterator[Entry]:
    """The GGUF of a version that is neither served nor what one goes back to: it is made again where it is wanted. The
    adapter stays, and the merged model of versions that are all kept. `gone`: folders that go as a whole."""
    needed, rows, job = _served(world), serving.exports(world.db), jobs.open_job(world.db)
    at_work = serving.about(job).get(serving.OF) if job and job["kind"] == "export" else None
    stays = {names.PEFT_FOLDER, *([names.MODEL_FOLDER] if world.settings.versioning.keep_all_versions else [])}
    for path in _entries(world.paths.root / "models"):
        number = path.name.removeprefix("v")
        parts = tuple(one for one in _entries(path) if one.name in exporting.MADE and one.name not in stays)
        if not number.isdecimal() or not parts or number in gone:
            continue
        if int(number) == at_work:
            keep, why = True, "an export job is at it"
        elif int(number) not in rows:
            keep, why = False, "of an export that did not come to its end, or was given up"
        else:
            keep, why = int(number) in needed, needed.get(int(number), "neither served nor what one goes back to")
        yield Entry("export", number, keep, (why,), path, parts=parts)


def _bases(world: World, gone: Collection[str]) -> Iterator[Entry]:
    """GGUFs of bases below adapters; `gone`: exports that go. The profile that uses one last takes it away."""
    top, job = exporting.bases_of(world), jobs.open_job(world.db)
    used = {row["base"] for row in serving.exports(world.db).values() if str(row["version"]) not in gone}
    for path in bases.of_profile(top, world.name):
        name, others = str(path.relative_to(top)), bases.others(path, world.name)
        if job is not None and job["kind"] == "export":
            keep, why = True, "an export job is at work"
        elif name in used:
            keep, why = True, "below an adapter that is there"
        elif others:
            keep, why = True, f"below adapters of {', '.join(others)}"
        else:
            keep, why = False, "below no adapter that is there; it is made again when one needs it"
        yield Entry("base", name, keep, (why,), path, parts=(path, path.with_suffix(".json")))


def _names(world: World) -> Iterator[Entry]:
    """Models in Ollama, which the daemon takes away there when it answers."""
    host = world.settings.serve.where()
    for name, (keep, why) in sorted(names_decided(world, host).items()):
        yield Entry("model", name, keep, (why,), Path(host) / name, parts=())


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
        *_entries(paths.root / "models"), *_entries(exporting.bases_of(world)),
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

