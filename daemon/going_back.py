"""Moving the head: to a snapshot's day, to another version, to the base. One operation for all of them.

A new chain begins at a hard link of the target's checkpoint, moments included, and one transaction moves the head and
calls what was trained only above it untrained: it waits again in its old order, and is trained once more. Ids and
numbers are never given again. Nothing is removed: what the head went back over stays until it is pruned.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon import chains, durable, outcome, snapshots, snapshotting
from daemon.ledger import batches, checks, forgetting, jobs, lineage, memories, requests, serving
from daemon.logs import get_logger
from daemon.snapshotting import LEDGER, folder_of
from daemon.training import Training
from daemon.world import World
from trainer import names

ENDED = ("promoted", "refused", "failed", "undone", "forgotten", "done")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """Where the head is to go. `checkpoint` is where the bytes are; `version` None is the base."""

    version: int | None
    checkpoint: Path | None
    step: int
    sha256: str
    reason: str
    hold: bool = False  # what is untrained by it waits for a person, not for the next job
    line: str = ""  # whose head it is


def is_empty(world: World) -> bool:
    """Nothing has happened in this profile yet: a snapshot may bring its ledger with it."""
    db = world.db
    return not (batches.counts(db) or memories.total(db) or jobs.count(db) or jobs.versions(db))


def snapshot_folder(world: World, which: str) -> Path:
    """The folder of a snapshot: a date of this profile's, or the path of an exported one. Raises ValueError."""
    top = folder_of(world.home, world.name)
    known = snapshots.names_in(top)
    if which in known:
        return top / which
    if os.sep in which and (Path(which) / snapshots.MANIFEST).is_file():
        return Path(which)
    listed = f"there are {', '.join(known[-5:])}" if known else "there is none yet: engramd snapshot create"
    raise ValueError(f"there is no snapshot {which!r} of profile {world.name}; {listed}")


def _of_profile(world: World, folder: Path) -> dict[str, Any]:
    try:
        manifest = snapshots.read(folder)
    except snapshots.Damaged as damage:
        raise ValueError(str(damage)) from None
    if manifest["profile"] != world.name:
        raise ValueError(f"{folder} is a snapshot of profile {manifest['profile']}, not of {world.name}")
    return manifest


def target_of(world: World, folder: Path) -> Target:
    """To where a snapshot's main head is. Raises ValueError where it is damaged or of another ledger."""
    return _target_of(world, folder, _of_profile(world, folder)["head"], "")


def targets_of(world: World, folder: Path) -> list[Target]:
    """That, and then where each other line's head goes that is elsewhere now. Raises ValueError as `target_of`."""
    then = _of_profile(world, folder).get("heads")
    found = [target_of(world, folder)]
    if then is None:  # of a release that had one line only
        return found
    now = jobs.heads(world.db)
    for line in sorted((then.keys() | now.keys()) - {""}):
        head = then.get(line)
        if (head or {}).get("version") != now.get(line, {}).get("version"):
            found.append(_target_of(world, folder, head, line))
    return found


def _target_of(world: World, folder: Path, head: dict[str, Any] | None, line: str) -> Target:
    reason = f"restored from the snapshot {folder.name}" + (f" (line {line})" if line else "")
    if head is None:
        return Target(None, None, 0, "", reason, line=line)
    version = jobs.version(world.db, head["version"])
    if version is None or version["checkpoint_sha256"] != head["sha256"]:
        raise ValueError(
            f"the ledger of profile {world.name} knows nothing of v{head['version']} as it is in {folder}: restore it "
            "into an empty home (engramd --home NEW snapshot restore)"
        )
    name = f"{names.CHECKPOINT_PREFIX}{head['step']}"
    live = chains.folder(world.paths.chains, head["chain"], head["step"])
    for place in (live, folder / "chains" / str(head["chain"]) / name):
        try:
            chains.verify(place, head["sha256"])
        except chains.DamagedCheckpoint:
            continue
        return Target(version["id"], place, head["step"], head["sha256"], reason, line=line)
    raise ValueError(f"the checkpoint of v{version['id']} is whole neither in {folder} nor at {live}: "
                     f"engramd snapshot verify shows which snapshots are whole")  # fmt: skip


def version_target(world: World, number: int | None, *, train_again: bool, line: str = "") -> Target:
    """Of a version that was promoted once, and then the head of its own line; or of the base (None), for `line`.
    Raises ValueError where it cannot be gone to."""
    if number is None:
        if line and line not in jobs.lines(world.db):
            raise ValueError(f"there is no line {line!r} of profile {world.name}: engramd models lists the lines")
        whose = f" (line {line})" if line else ""
        return Target(None, None, 0, "", f"reset to the base by hand{whose}", hold=not train_again, line=line)
    row = jobs.version(world.db, number)
    if row is None or row["state"] not in ("promoted", "undone"):
        state = "there is none" if row is None else f"it is {row['state']}"
        raise ValueError(f"v{number} is no version to go back to: {state}; engramd models lists them")
    whose = f" (line {row['line']})" if row["line"] else ""
    reason, step = f"rolled back to v{number} by hand{whose}", row["step"]
    places = [chains.folder(world.paths.chains, point["chain"], point["step"])
              for point in jobs.checkpoints(world.db) if point["sha256"] == row["checkpoint_sha256"]]  # fmt: skip
    top = folder_of(world.home, world.name)
    for name in reversed(snapshots.names_in(top)):
        places += sorted((top / name / "chains").glob(f"*/{names.CHECKPOINT_PREFIX}{step}"))
    for place in places:
        try:
            chains.verify(place, row["checkpoint_sha256"])
        except chains.DamagedCheckpoint:
            continue
        return Target(
            number, place, step, row["checkpoint_sha256"], reason, hold=not train_again, line=row["line"]
        )
    raise ValueError(f"the checkpoint of v{number} is on this disk no more: it was pruned, and no snapshot has it")


def dry_run(world: World, target: Target) -> dict[str, Any]:
    """What `go` would do. Changes nothing."""
    change = lineage.move_to(world.db, target.version, target.line)
    return {
        "line": target.line, "version": target.version, "step": target.step,
        "undone": change.undone, "redone": change.redone, "untrained": change.untrained,
        "retrained": change.retrained, "batches": change.batches,
    }  # fmt: skip


def job_out_of_the_way(world: World, training: Training, reason: str, line: str = "") -> bool:
    """The open job began at a head that is about to change: it is stopped and thrown back, unless it is of another
    line, or asks the base model. False: not yet."""
    db = world.db
    job = jobs.open_job(db)
    if job is not None and _goes_on(job, line):
        if job["state"] != "frozen" or training.occupied:
            if job["state"] == "running":
                training.stop()
            return False
        with db.transaction():
            forgetting.throw_back(db, job["id"], reason, "undone")
        _log.info("job_thrown_back", profile=world.name, job=job["id"], reason=reason)
    for folder in forgetting.folders_of_forgotten_jobs(db):
        durable.remove(world.paths.jobs / folder)
    if world.paths.jobs.is_dir():
        durable.remove_gone(world.paths.jobs)
    return True


def _goes_on(job: dict[str, Any], line: str) -> bool:
    """Whether an open job starts from the head of this line."""
    return job["kind"] == "finetune" and str(job["line"]) == line


def go(world: World, home_db: Any, target: Target, now: str) -> dict[str, Any]:
    """Move the head. No job of its line may be open. Gives what `dry_run` gives."""
    db, paths = world.db, world.paths
    job = jobs.open_job(db)
    assert job is None or not _goes_on(job, target.line)
    told = dry_run(world, target)
    chain = 0
    if target.checkpoint is not None:
        chain = requests.next_id(home_db, world.name, "chain", at_least=jobs.newest_chain(db) + 1)
        chains.begin(target.checkpoint, paths.chains, chain, target.step)
    with db.transaction():
        if chain:
            version = jobs.version(db, target.version or 0)
            old = jobs.get_chain(db, version["chain"]) if version else None
            assert old is not None
            jobs.insert_chain(db, chain, old["key_sha256"], json.loads(old["key"]), target.reason, now)
            lineage.add_checkpoint(db, chain, target.step, target.sha256, now)
        place = {"chain": chain, "step": target.step, "sha256": target.sha256} if chain else None
        lineage.move(db, target.version, place, target.reason, now, hold=target.hold, of=target.line)
    outcome.tidy(world)
    _log.info("head_moved", profile=world.name, reason=target.reason, version=target.version, step=target.step,
              undone=told["undone"], untrained=told["untrained"])  # fmt: skip
    return told


def refill(world: World, folder: Path) -> dict[str, Any]:
    """Put a snapshot into a profile to which nothing has happened: its files, and its ledger last. The caller opens
    the profile anew afterwards. Raises ValueError where the snapshot is damaged; then nothing was changed."""
    found = list(snapshots.problems(folder, {}))
    if found:
        raise ValueError(f"{found[0]}; nothing was restored (engramd snapshot export, where it was taken, leaves out "
                         "what was forgotten since)")  # fmt: skip
    manifest, paths = _of_profile(world, folder), world.paths
    for name in sorted(manifest["files"]):
        if name == LEDGER or name.startswith("etc/"):  # the settings of this home stand; those are there to compare
            continue
        target = paths.root / name
        durable.make_folder(target.parent)
        target.unlink(missing_ok=True)
        durable.copy_durable(folder / name, target, mode=0o400 if name.startswith(("chains/", "jobs/")) else 0o600)
    durable.fsync_tree(paths.root)
    world.db.close()
    staged = durable.temp_beside(paths.ledger)
    durable.copy_durable(folder / LEDGER, staged)
    for suffix in ("-wal", "-shm"):
        paths.ledger.with_name(paths.ledger.name + suffix).unlink(missing_ok=True)
    durable.rename_durable(staged, paths.ledger)
    head = manifest["head"]
    _log.info("snapshot_restored", profile=world.name, snapshot=str(folder), files=len(manifest["files"]))
    return {"version": head["version"] if head else None, "step": head["step"] if head else 0, "undone": [],
            "redone": [], "untrained": 0, "retrained": 0, "batches": [], "refilled": True}  # fmt: skip


def settle_in(world: World, home_db: Any, now: str) -> None:
    """After `refill`, on the ledger that came: numbers go on above its own, and what a snapshot does not hold (files
    that were read, folders of ended jobs) is not expected any more."""
    requests.raise_marks(home_db, world.name, checks.newest_ids(world.db))
    with world.db.transaction():
        for row in jobs.all_ended(world.db, ENDED):
            if not (world.paths.jobs / row["folder"]).is_dir():
                jobs.pruned(world.db, row["id"], now)
        for version in serving.exports(world.db):  # GGUFs are in no snapshot: they are made again where they are wanted
            serving.export_gone(world.db, version, now)
        for line in serving.lines(world.db):  # this may be another machine, with another Ollama
            serving.lost(world.db, line)
        last = max((row["id"] for row in checks.all_batches(world.db)), default=0)
        jobs.set_meta(world.db, checks.RESTORED, str(last))


def sweep(world: World) -> None:
    """What a crash between the links and the transaction has left, and one in the middle of a snapshot."""
    snapshotting.sweep(world)
    known = {row["id"] for row in jobs.chains(world.db)}
    for name in chains.sweep(world.paths.chains, known):
        _log.info("unrecorded_chain_removed", profile=world.name, chain=name)
