"""A year of daily use in seconds: real books, snapshots and prunes; checkpoints of a known size that hold nothing.
`make test` has its first 120 nights, ENGRAMD_FAULTS_LONG=1 (`make faults`) all.

What a year takes at most is computed from the policy and from the sizes that a few nights of another home show, before
the first night of the year. Only what must survive a power cut is left out: fsync does nothing here.
"""

import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from daemon import disk, durable, ledger, outcome, pruning, snapshots, snapshotting
from daemon.home import Home
from daemon.ledger import jobs
from daemon.rules import retention
from daemon.settings import load
from daemon.world import open_world
from tests.unit.test_service import QUICK

ZONE = ZoneInfo("Europe/Berlin")
BEGIN = datetime(2026, 1, 1, 2, tzinfo=UTC)
CHECKPOINT = 1 << 20  # bytes
JOB = 200_000


class Nights:
    """One profile that trains and is backed up each night."""

    def __init__(self, home: Home) -> None:
        self.home, self.world = home, open_world(home, "me", load(home, QUICK, {}))
        self.now, self.number, self.peak = BEGIN, 0, 0
        self.dice = random.Random(3)

    def night(self) -> None:
        self.number += 1
        self._train()
        outcome.tidy(self.world)
        self.now += timedelta(hours=1)
        snapshotting.take(self.world, self.stamp[:10], self.stamp)
        if self.number % 7 == 0 or self.number % 120 > 100:
            self.peak = max(self.peak, used(self.home.root))  # the newest is there, and nothing has gone for it yet
        pruning.prune(self.world, self.stamp, ZONE)
        self.now += timedelta(hours=23)

    @property
    def stamp(self) -> str:
        return self.now.isoformat().replace("+00:00", "Z")

    def _train(self) -> None:
        """What a night's job leaves: its folder, a promoted version, a checkpoint in the chain."""
        db, number = self.world.db, self.number
        folder = self.world.paths.jobs / f"{number}-finetune"
        folder.mkdir()
        (folder / "samples.jsonl").write_bytes(self.dice.randbytes(JOB))
        (folder / "run-summary.json").write_text("{}")
        sha256 = self._checkpoint(self.world.paths.chains / "1" / f"checkpoint-{number}")
        with db.transaction():
            if number == 1:
                jobs.insert_chain(db, 1, "k", {"method": "lora", "rank": 8}, "the first", self.stamp)
            jobs.insert(db, job=number, kind="finetune", folder=folder.name, spec_sha256="", chain=1,
                        parent_sha256=None, parent_step=number - 1, steps=1, samples=1, now=self.stamp, memories=[],
                        batches=[])  # fmt: skip
            jobs.start(db, number, self.stamp)
            jobs.finish(db, number, {"exit_code": 0}, self.stamp)
            jobs.insert_version(db, version=number, job=number, chain=1, step=number, sha256=sha256, now=self.stamp)
            version = jobs.version(db, number)
            assert version is not None
            jobs.promote(db, version, "good", self.stamp)

    def _checkpoint(self, folder: Path) -> str:
        folder.mkdir(parents=True)
        with open(folder / "weights", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, CHECKPOINT)
        told = {"step": self.number, "files": {"weights": {"sha256": ZEROS, "size": CHECKPOINT}}}
        (folder / "manifest.json").write_text(json.dumps(told))
        for path in folder.iterdir():
            path.chmod(0o400)
        return durable.sha256_file(folder / "manifest.json")


ZEROS = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"  # of CHECKPOINT bytes


def used(place: Path) -> int:
    return disk.used_bytes([place])[place]


def sizes_of(home: Home, days: int) -> retention.Sizes:
    """As a home of 24 nights shows them; the ledger as it will be after so many days."""
    probe, books, rest = Nights(home), [], []
    for night in range(1, 25):
        probe.night()
        if night % 12 == 0:
            newest = home.snapshots / snapshots.names_in(home.snapshots)[-1]
            parts = disk.used_bytes([newest / "ledger.db", newest / "chains", newest])
            books.append(parts[newest / "ledger.db"])
            rest.append(parts[newest])
    job = probe.world.paths.jobs / "24-finetune"
    probe.world.db.close()
    return retention.Sizes(
        checkpoint=used(newest / "chains" / "1" / "checkpoint-24"), job=used(job),
        record=used(job) - used(job / "samples.jsonl"), ledger=later(books, days), snapshot=later(rest, days),
    )  # fmt: skip


def later(sizes: list[int], days: int) -> int:
    """What has one size after 12 nights and another after 24, if it goes on to grow like that."""
    return sizes[1] + (sizes[1] - sizes[0]) * (days - 24) // 12


@pytest.mark.faults
def test_a_year_stays_under_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_faults: bool) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)
    days = 365 if long_faults else 120
    sizes = sizes_of(Home(tmp_path / "probe"), days)
    year = Nights(Home(tmp_path / "home"))
    keep = year.world.settings.retention
    limit = retention.bound(keep.snapshots, keep.jobs, sizes, checkpoints=year.world.most_checkpoints, days=days)
    for _ in range(days):
        year.night()
    kept, paths = snapshots.names_in(year.home.snapshots), year.world.paths
    year.world.db.close()
    print(f"bound {limit:,}, peak {year.peak:,}, ratio {limit / year.peak:.2f}")
    assert year.peak <= limit <= (1.5 if long_faults else 2.0) * year.peak, (year.peak, limit, limit / year.peak)
    middle = ("2026-06-30", "2026-06-29") if long_faults else ("2026-02-28", "2026-02-27")
    assert year.stamp[:10] > kept[-1] and middle[0] in kept and middle[1] not in kept and len(kept) <= 32
    assert sorted(path.name for path in (paths.chains / "1").iterdir()) == [
        f"checkpoint-{n}" for n in (days - 2, days - 1, days)
    ]  # fmt: skip
    with ledger.open_profile(paths.ledger, write=False) as db:
        assert jobs.count(db) == days
