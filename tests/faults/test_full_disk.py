"""A disk that is full at random moments of a whole night: nothing is lost or torn, and the night goes on by itself.

The home lies on a small tmpfs, so these tests need root. `make test` runs the short form; ENGRAMD_FAULTS_LONG=1
(`make faults`) the long one, and ENGRAMD_FAULTS_SEED chooses the moments.
"""

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import chains, ledger, snapshots, snapshotting
from daemon.cli.exit_codes import Exit
from daemon.home import Home
from daemon.ledger import jobs, requests, slots
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from daemon.world import open_world
from tests import jobs as real
from tests.faults.full_disk import Disk, FullNight, small_disk
from tests.faults.night import ROOT, Night
from tests.forked_trainer import ForkedTrainer
from tests.unit.test_service import FAKE, QUICK, drop, work
from trainer import names
from trainer.names import ExitCode

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
FILLS = 400 if LONG else 40
BATCHES = 60 if LONG else 8
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk") as folder:
            yield folder
    except OSError as error:
        pytest.skip(str(error))


def quiet_night(root: Path, batches: int, *, fake: bool) -> Night:
    night = Night(root, most=1, fake=fake)
    for number in range(batches):
        night.drop(number)
    night.finish()
    night.check_counts(batches)
    return night


def check(night: FullNight, quiet: Night, count: int) -> None:
    """After the last fill: all is trained, once and in order, and books and disk agree."""
    night.until(lambda: night.all_trained(count) and night.answered(), 300)
    night.stop()
    night.check_counts(count)
    with night.ledger() as db:
        promoted = jobs.promoted(db)
        assert [row["state"] for row in jobs.versions(db)] == ["promoted"] * count
        assert len(promoted) == count and all(job["crashes"] == job["kills"] == 0 for job in promoted)
        chains.verify(night.head(), (jobs.get_head(db) or {})["sha256"])
    audit = night.audit()
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert night.bits() == quiet.bits()
    night.check_snapshots()
    assert night.log_lines()


@pytest.mark.parametrize("seed", range(3 if LONG else 1))
def test_a_whole_night(tmp_path: Path, disk: Path, seed: int) -> None:
    quiet = quiet_night(tmp_path / "quiet", BATCHES, fake=True)
    night = FullNight(disk, tmp_path / "out")
    night.start()
    night.disturb_by_filling(FILLS, list(range(BATCHES)), random.Random(SEED + seed), longest=0.3)
    check(night, quiet, BATCHES)


@pytest.mark.skipif(not LONG, reason="a long one: make faults")
def test_with_the_real_trainer(tmp_path: Path, disk: Path) -> None:
    count = 6 if LONG else 1
    quiet = quiet_night(tmp_path / "quiet", count, fake=False)
    night = FullNight(disk, tmp_path / "out", fake=False)
    night.start()
    night.disturb_by_filling(60 if LONG else 8, list(range(count)), random.Random(SEED), longest=1.2)
    check(night, quiet, count)


def test_the_reserve_keeps_a_job_waiting_until_there_is_room(tmp_path: Path, disk: Path) -> None:
    night = FullNight(disk, tmp_path / "out", reserve=40)
    night.disk.fill(leave=30 << 8)  # pages: 30 MiB are free
    night.start()
    night.drop(0)
    night.until(lambda: night.waits() is not None)
    said = night.waits()
    assert said is not None and said.startswith("the disk is too full for the next job: it needs about ")
    assert "reserve of 42 MB (disk.reserve_mb)" in said and said.endswith("engramd disk shows what would free how much")
    night.disk.let_go()
    night.until(lambda: night.all_trained(1))
    assert night.waits() is None
    night.stop()
    night.check_counts(1)


# -- one piece at a time, with any number of pages left ----------------------------------------------

FEW = (0, 1, 2, 3, 5, 9, 17, 40, 90, 200, 400, 700)  # pages


def test_a_trainer_leaves_its_last_good_checkpoint(tmp_path: Path, disk: Path) -> None:
    recipe = real.recipe(num_train_epochs=2, save_steps=1, save_total_limit=2)
    real.write_job(tmp_path / "quiet", real.some_samples(6), recipe=recipe)
    quiet = real.run(tmp_path / "quiet")
    filled, codes = Disk(disk), []
    for leave in FEW if LONG else FEW[1::4]:
        job = disk / f"job-{leave}"
        real.write_job(job, real.some_samples(6), recipe=recipe)
        filled.fill(leave)
        codes.append(ForkedTrainer(job).wait())
        assert codes[-1] in (ExitCode.DONE, ExitCode.NO_DEVICE), (job / names.LOG).read_text()
        if codes[-1] == ExitCode.NO_DEVICE and (job / names.RESULT).exists():
            assert "the disk is full" in (real.result(job).reason or "")
        for checkpoint in job.glob("checkpoint-*"):
            chains.verify(checkpoint)
        assert not list(job.glob(".tmp-checkpoint-*"))
        filled.let_go()
        again = real.run(job)
        assert again.exit_code == ExitCode.DONE and again.checkpoint_sha256 == quiet.checkpoint_sha256
        shutil.rmtree(job)
    assert ExitCode.NO_DEVICE in codes


def test_a_ledger_without_room_goes_back_and_on(disk: Path) -> None:
    filled = Disk(disk)
    with ledger.open_home(disk / "home.db", write=True) as db:
        count, refused = 0, 0
        for turn in range(60):
            filled.fill(turn % 12)
            try:
                with db.transaction():
                    for _ in range(4):
                        requests.insert(db, "me", "x", {"long": "x" * 9_000}, "2026-11-21T03:00:00Z")
                count += 4
            except sqlite3.OperationalError as error:
                assert ledger.is_disk_trouble(error), error
                refused += 1
            filled.let_go()
            assert len(requests.open_ones(db)) == count
    assert refused > 20


def test_a_snapshot_without_room_leaves_nothing(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotting, "_new_bytes", lambda world: 0)  # past the estimate, to meet each write
    home, filled, taken = Home(disk / "home"), Disk(disk), 0
    drop(home, "a.jsonl", "one", "two")
    work(home)
    world = open_world(home, "me", load(home, QUICK | {"disk.reserve_mb": 0}, {}))
    try:
        for leave in (*range(0, 60, 3), *range(60, 240, 9)):
            filled.fill(leave)
            before = snapshots.names_in(home.snapshots)
            try:
                snapshotting.take(world, "2026-11-21", "2026-11-21T03:00:00Z")
                taken += 1
            except OSError as error:
                assert error.errno == errno.ENOSPC
            except sqlite3.OperationalError as error:
                assert ledger.is_disk_trouble(error)
            filled.let_go()
            found = snapshots.names_in(home.snapshots)
            assert found[: len(before)] == before and len(found) == taken
            assert not [name for name in os.listdir(home.snapshots) if name.startswith(".")]
            assert not [name for name in os.listdir(world.paths.root) if name.startswith(".")]
        assert 0 < taken < 40
        for name in snapshots.names_in(home.snapshots):
            assert not list(snapshots.problems(home.snapshots / name, {}))
    finally:
        world.db.close()


def test_a_slot_waits_for_room_and_a_person_is_told(disk: Path) -> None:
    home, filled, now = Home(disk / "home"), Disk(disk), ["2026-11-20T12:00:00Z"]
    settings = load(home, QUICK | {"disk.reserve_mb": 0, "schedule.timezone": "UTC"}, {})
    lock, service = Lock(home), Service(home, settings, trainer=FAKE, now=lambda: now[0])
    asked = -1

    def slot() -> str:
        row = slots.newest(service._db, "snapshot", "me")
        return f"{row['state']} {row['outcome']}" if row else ""

    def step() -> bool:
        nonlocal asked
        service._schedule._next_look = 0.0
        for claim in service._schedule._claims.values():
            claim.again = 0.0
        if now[0] < "2026-11-21":
            now[0] = "2026-11-21T03:00:05Z"
            filled.fill(leave=200)
        elif "waits: the disk is too full for the snapshot: it needs about" in slot() and asked < 0:
            asked = requests.ask(service._db, "me", "snapshot", {}, now[0])
        elif asked > 0 and (requests.get(service._db, asked) or {})["state"] == "failed":
            filled.let_go()
        return slot().startswith("done")

    service.run(until=step)
    lock.release()
    with ledger.open_home(home.database, write=False) as db:
        assert "the disk is too full for the snapshot" in (requests.get(db, asked) or {})["answer"]
    assert snapshots.names_in(home.snapshots) == ["2026-11-21"]


def test_a_start_on_a_full_disk_is_one_sentence(disk: Path) -> None:
    filled = Disk(disk)
    command = [sys.executable, "-m", "daemon", "--home", str(disk / "home"), "run", "--once"]
    filled.fill()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    filled.let_go()
    assert done.returncode == Exit.TRY_AGAIN and done.stderr.count("\n") == 1, done.stderr
    assert f"the disk of {disk / 'home'} cannot be written" in done.stderr and "free some space" in done.stderr
