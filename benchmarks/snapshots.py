"""What a night's snapshot costs on the disk and in time, against `cp -a` of the same state.

The profile has a chain of 100 sealed checkpoints of 20 MB, a job that is not finished, a ledger with memories and
seven snapshots of the nights before. Each round adds one checkpoint, takes the snapshot and copies the profile's
folder, in turns of who comes first; all dirty pages are written back before each of the two. The snapshot ends with
its last fsync, the copy as `cp` leaves it, in memory.

    python benchmarks/snapshots.py [--smoke] [--json FILE] [--dir DIR]

Bars: new disk use since the last snapshot, with the new checkpoint itself, <= 30 MB; time <= 0.1 of `cp -a`, median of
the rounds' ratios.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon import disk, durable, jobdir, logs, snapshots, snapshotting  # noqa: E402 (after the path)
from daemon.home import Home  # noqa: E402
from daemon.ledger import jobs  # noqa: E402
from daemon.lock import Lock  # noqa: E402
from daemon.service import Service  # noqa: E402
from daemon.settings import load  # noqa: E402
from daemon.world import World, open_world  # noqa: E402
from trainer import names  # noqa: E402
from trainer.contract import JobSpec, TrainingRecipe  # noqa: E402

MB = 1_000_000
STAMP = "2026-01-01T02:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Size:
    """How large the profile is, and how often it is measured."""

    checkpoints: int
    checkpoint: int  # bytes
    memories: int
    before: int  # snapshots that are there already
    rounds: int


FULL = Size(checkpoints=100, checkpoint=20 * MB, memories=5_000, before=7, rounds=5)
SMOKE = Size(checkpoints=5, checkpoint=MB // 5, memories=50, before=2, rounds=2)


def ingest(home: Home, count: int) -> None:
    """Memories in the ledger, by a real daemon whose base model is not on disk, so that none is trained."""
    home.inbox.mkdir(parents=True)
    with open(home.inbox / "memories.jsonl", "w") as file:
        for number in range(count):
            text = f"On day {number} I walked along the river and counted {number * 7919 % 100_003} stones. " * 4
            file.write(json.dumps({"type": "journal", "content": text}) + "\n")
    settings = load(home, {"training.base_model": "nobody/none", "inbox.quiet_seconds": 0.0}, {})
    lock, service = Lock(home), Service(home, settings, scheduled=False)
    service.run(until=service.idle)
    lock.release()


def sealed_checkpoint(folder: Path, size: int, dice: random.Random) -> str:
    """A checkpoint as the trainer leaves one, of random bytes: one third weights, the rest moments. Gives its
    identity, the SHA-256 of its manifest."""
    folder.mkdir(parents=True)
    shares = {names.ADAPTER_WEIGHTS: size // 3, names.OPTIMIZER: size - size // 3, names.ADAPTER_CONFIG: 900,
              names.SCHEDULER: 1_400, names.RNG: 13_900, names.STATE: 700}  # fmt: skip
    for name, bytes_ in shares.items():
        (folder / name).write_bytes(dice.randbytes(bytes_))
    files = {name: {"sha256": durable.sha256_file(folder / name), "size": size} for name, size in shares.items()}
    (folder / names.MANIFEST).write_text(json.dumps({"files": files}, indent=1, sort_keys=True))
    for path in folder.iterdir():
        path.chmod(0o400)
    durable.fsync_tree(folder)
    return durable.sha256_file(folder / names.MANIFEST)


def night(world: World, number: int, size: Size, dice: random.Random) -> None:
    """A finished job: its checkpoint is the head now, and the oldest of the chain goes."""
    db, paths = world.db, world.paths
    sha256 = sealed_checkpoint(paths.chains / "1" / f"checkpoint-{number}", size.checkpoint, dice)
    with db.transaction():
        if number == 1:
            jobs.insert_chain(db, 1, "k", {"method": "lora", "rank": 8}, "the first", STAMP)
        _insert(world, number, sha256 if number > 1 else None)
        jobs.start(db, number, STAMP)
        jobs.finish(db, number, {"exit_code": 0}, STAMP)
        jobs.insert_version(db, version=number, job=number, chain=1, step=number, sha256=sha256, now=STAMP)
        version = jobs.version(db, number)
        assert version is not None
        jobs.promote(db, version, "good", STAMP)
    old = paths.chains / "1" / f"checkpoint-{number - size.checkpoints}"
    if old.exists():
        shutil.rmtree(old)


def _insert(world: World, number: int, parent: str | None) -> None:
    jobs.insert(world.db, job=number, kind="finetune", folder=f"{number}-finetune", spec_sha256="", chain=1,
                parent_sha256=parent, parent_step=number - 1, steps=1, samples=1, now=STAMP, memories=[],
                batches=[])  # fmt: skip


def unfinished_job(world: World, parent: int, size: Size, dice: random.Random) -> None:
    """One that was stopped on its way: frozen files, the parent by links, a checkpoint of its own."""
    number = 1_000_000  # out of the way of the others, which come while it is open
    with world.db.transaction():
        _insert(world, number, "0" * 64)
    staged = jobdir.stage(world.paths.jobs, number)
    (staged / names.SAMPLES).write_bytes(dice.randbytes(MB // 5))
    (staged / names.SAMPLES).chmod(0o400)
    durable.link_tree(world.paths.chains / "1" / f"checkpoint-{parent}", staged / names.PARENT)
    sealed_checkpoint(staged / f"checkpoint-{number}", size.checkpoint, dice)
    spec = JobSpec(recipe=TrainingRecipe(), segments=[[0]], samples_sha256="0" * 64, probes_sha256="0" * 64, seed=1)
    jobdir.seal(staged, spec, world.paths.jobs / f"{number}-finetune")


def build(home: Home, size: Size, dice: random.Random) -> World:
    """The profile, with the snapshots of the nights before the first round."""
    ingest(home, size.memories)
    settings = {"training.base_model": "nobody/none", "training.save_total_limit": size.checkpoints}
    world = open_world(home, "me", load(home, settings, {}))
    for number in range(1, size.checkpoints + 1):
        night(world, number, size, dice)
        if number == size.checkpoints - size.before:
            unfinished_job(world, number, size, dice)
        if number > size.checkpoints - size.before:
            snapshotting.take(world, _day(number), STAMP)
    return world


def _day(number: int) -> str:
    return f"2026-{1 + number // 28:02}-{1 + number % 28:02}"


def used(home: Home) -> int:
    return sum(disk.used_bytes([home.root]).values())


def take(world: World, number: int) -> tuple[float, snapshots.Made]:
    os.sync()
    began = time.perf_counter()
    made = snapshotting.take(world, _day(number), STAMP)
    return time.perf_counter() - began, made


def copy(world: World, target: Path) -> float:
    os.sync()
    began = time.perf_counter()
    subprocess.run(["cp", "-a", str(world.paths.root), str(target)], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return seconds


def measure(folder: Path, size: Size) -> dict[str, Any]:
    home, dice = Home(folder / "home"), random.Random(1)
    logs.configure(home, "warning", quiet=True)
    world = build(home, size, dice)
    rows: list[tuple[float, float, int]] = []
    made: snapshots.Made | None = None
    for turn in range(size.rounds):
        number = size.checkpoints + 1 + turn
        before = used(home)
        night(world, number, size, dice)
        if turn % 2:
            copied = copy(world, folder / "copy")
            taken, made = take(world, number)
        else:
            taken, made = take(world, number)
            copied = copy(world, folder / "copy")
        rows.append((taken, copied, used(home) - before))
    assert made is not None
    world.db.close()
    return {
        "state_mb": made.size / MB,
        "files": made.files,
        "snapshots": len(snapshots.names_in(home.snapshots)),
        "new_mb": max(row[2] for row in rows) / MB,
        "snapshot_seconds": statistics.median(row[0] for row in rows),
        "cp_seconds": statistics.median(row[1] for row in rows),
        "ratio": statistics.median(row[0] / row[1] for row in rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark of a night's snapshot.")
    parser.add_argument("--smoke", action="store_true", help="small sizes, no bars")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--dir", type=Path, help="make the profile there (4.5 GB); else in the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engramd-snapshots-", dir=options.dir) as folder:
        found = measure(Path(folder), SMOKE if options.smoke else FULL)
    for name, value in found.items():
        print(f"{name:20}{value:>12,.3f}" if isinstance(value, float) else f"{name:20}{value:>12,}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    bars = {
        "new disk use <= 30 MB": found["new_mb"] <= 30,
        "time <= 0.1 of cp -a": found["ratio"] <= 0.1,
    }
    if options.smoke:
        return 0
    for name, held in bars.items():
        print(f"{'held' if held else 'MISSED'}: {name}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
