"""Sizes before they are written, against what really came; and work that waits for room."""

import os
from pathlib import Path

import pytest

from daemon import disk, ledger
from daemon.home import Home
from daemon.ledger import jobs, requests
from daemon.lock import Lock
from daemon.service import Service, utc_now
from daemon.settings import load
from tests import jobs as real
from tests.unit.test_service import FAKE, QUICK, drop, work
from trainer import base_files


@pytest.mark.parametrize(("method", "mean"), [("lora", 0.0), ("full", 0.0), ("full", 0.5)])
def test_the_estimate_of_a_checkpoint_is_near_the_truth(tmp_path: Path, method: str, mean: float) -> None:
    recipe = real.recipe(method=method, num_train_epochs=1, ema_decay=mean)
    real.write_job(tmp_path / "job", real.some_samples(3), recipe=recipe)
    assert real.run(tmp_path / "job").steps
    checkpoint = real.checkpoint(tmp_path / "job")
    truth = disk.used_bytes([checkpoint])[checkpoint]
    estimate = disk.checkpoint_bytes(recipe, base_files.resolve("builtin:tiny"))
    assert truth <= estimate <= 1.5 * truth + 3 * disk.MB


def test_linked_bytes_count_once(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.mkdir()
    (one / "x").write_bytes(os.urandom(100_000))
    other.mkdir()
    os.link(one / "x", other / "x")
    sizes = disk.used_bytes([one, other, tmp_path / "gone"])
    assert sizes[one] >= 100_000 and sizes[other] < 20_000 and sizes[tmp_path / "gone"] == 0


def test_a_job_waits_for_room_and_goes_on_by_itself(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"free": 10 * disk.MB}
    monkeypatch.setattr("daemon.disk.free", lambda path: room["free"])
    monkeypatch.setattr("daemon.training.DISK_PAUSE", 0.05)
    settings = load(home, QUICK | {"disk.reserve_mb": 100}, {})
    drop(home, "a.jsonl", "one")
    lock, one = Lock(home), Service(home, settings, trainer=FAKE)
    seen: list[str] = []

    def waits() -> str | None:
        with ledger.open_profile(home.profile("me").ledger, write=False) as db:
            return jobs.get_meta(db, "waits")

    def look() -> bool:
        if not seen and (reason := waits()):
            seen.append(reason)
            room["free"] = 10_000 * disk.MB
        with ledger.open_profile(home.profile("me").ledger, write=False) as db:
            return jobs.get_head(db) is not None

    one.run(until=look)
    lock.release()
    assert seen and seen[0].startswith("the disk is too full for the next job: it needs about ")
    assert "reserve of 105 MB (disk.reserve_mb), and 10 MB are free" in seen[0]
    assert waits() is None


def test_run_once_ends_where_the_disk_is_too_full(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.disk.free", lambda path: 0)
    drop(home, "a.jsonl", "one")
    work(home, seconds=20)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert "too full" in (jobs.get_meta(db, "waits") or "") and jobs.get_head(db) is None


def asked_for_a_snapshot(home: Home) -> str:
    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, "me", "snapshot", {}, utc_now())
    work(home)
    with ledger.open_home(home.database, write=False) as db:
        row = requests.get(db, number)
    assert row is not None and row["state"] == "failed"
    return str(row["answer"])


def test_a_snapshot_that_cannot_be_taken_is_answered(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    weights = home.profile("me").current_model / "checkpoint-2" / "adapter_model.safetensors"
    weights.unlink()
    said = asked_for_a_snapshot(home)
    assert "No such file or directory: " in said and weights.name in said
    monkeypatch.setattr("daemon.disk.free", lambda path: 5 * disk.MB)
    assert "the disk is too full for the snapshot: it needs about 2 MB" in asked_for_a_snapshot(home)
    assert not list(home.snapshots.iterdir())


def test_a_sharded_base_counts_each_tensor(tmp_path: Path) -> None:
    base = base_files.resolve("builtin:tiny")
    lora, full = disk.trained_weights(base, 8), disk.trained_weights(base, None)
    assert disk.trained_weights(base, 16) == 2 * lora and 0 < lora < full
    assert full == pytest.approx((base / "model.safetensors").stat().st_size / 2, rel=0.01)
