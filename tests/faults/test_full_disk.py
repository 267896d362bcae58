"""A disk that is full at random moments of a whole night: nothing is lost or torn, and the night goes on by itself.

The home lies on a small tmpfs, so these tests need root. `make test` runs the short form; ENGRAMD_FAULTS_LONG=1
(`make faults`) the long one, and ENGRAMD_FAULTS_SEED chooses the moments.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import chains
from daemon.ledger import jobs
from tests.faults.full_disk import FullNight, small_disk
from tests.faults.night import Night

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
    night.disturb_by_filling(FILLS, list(range(BATCHES)), random.Random(SEED + seed))
    check(night, quiet, BATCHES)


def test_with_the_real_trainer(tmp_path: Path, disk: Path) -> None:
    count = 6 if LONG else 2
    quiet = quiet_night(tmp_path / "quiet", count, fake=False)
    night = FullNight(disk, tmp_path / "out", fake=False)
    night.start()
    night.disturb_by_filling(60 if LONG else 10, list(range(count)), random.Random(SEED), longest=2.0)
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
