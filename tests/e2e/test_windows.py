"""A window that ends in mid-job, again and again, gives the bits of a night without one; so do a machine that is busy
and a pause. Real trainer, real service."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import conditions, ledger
from daemon.ledger import jobs, requests
from daemon.lock import Lock
from daemon.progress_tail import last
from daemon.service import Service
from daemon.settings import load
from tests.faults.night import Night, bits
from tests.forked_trainer import command

ONLY_LONG = pytest.mark.skipif(os.environ.get("ENGRAMD_FAULTS_LONG") != "1", reason="a long one: make faults")

WINDOW = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
NOON, NIGHT = "2026-11-21T12:00:00Z", "2026-11-21T23:00:00Z"
SAMPLES, STEPS = 24, 24  # two epochs, two samples a step
SECONDS = 300.0


def chain(night: Night) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of each checkpoint that is kept."""
    return {path.name: bits(path) for path in night.head().parent.glob("checkpoint-*")}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    night = Night(tmp_path_factory.mktemp("quiet") / "home", forked=True)
    night.drop(0, SAMPLES)
    night.finish()
    found = chain(night)
    assert f"checkpoint-{STEPS}" in found
    return found


@pytest.fixture
def night(tmp_path: Path) -> Night:
    one = Night(tmp_path / "home", forked=True)
    one.drop(0, SAMPLES)
    return one


class Watched:
    """What the service's loop is asked after each tick: whether it is done, and on the way what to change."""

    def __init__(self, night: Night, change: Callable[["Watched"], None]) -> None:
        self._night, self._change = night, change
        self._deadline = time.monotonic() + SECONDS
        self.step, self.job, self.waits = 0, dict[str, Any](), ""

    def __call__(self) -> bool:
        assert time.monotonic() < self._deadline, (self.job, self.waits)
        with self._night.ledger() as db:
            done, self.job, self.waits = jobs.get_head(db), jobs.open_job(db) or {}, jobs.get_meta(db, "waits") or ""
        if done is None:
            line = last(self._night.home.profile("me").jobs / "1-finetune") if self.job else None
            self.step = (line or {}).get("step") or 0
            self._change(self)
        return done is not None


def work(
    night: Night, settings: dict[str, object], change: Callable[[Watched], None], now: Callable[[], str] | None = None
) -> dict[str, Any]:
    """Until the job is promoted; gives its row."""
    lock = Lock(night.home)
    more = {} if now is None else {"now": now}
    service = Service(night.home, load(night.home, settings, {}), trainer=command(), **more)  # type: ignore[arg-type]
    try:
        service.run(until=Watched(night, change))
    finally:
        lock.release()
    with night.ledger() as db:
        job = jobs.get(db, 1)
    assert job is not None and job["state"] == "promoted" and (job["crashes"], job["kills"]) == (0, 0)
    return job


def test_a_window_that_ends_in_mid_job_changes_no_bit(night: Night, quiet: dict[str, dict[str, str]]) -> None:
    now, closed, steps = [NIGHT], 0, 0

    def change(seen: Watched) -> None:
        nonlocal closed, steps
        if now[0] == NIGHT and seen.job.get("state") == "running" and closed < 3:
            if seen.step > steps:  # it has gone on by itself since it was opened
                now[0], closed = NOON, closed + 1
        elif now[0] == NOON and seen.job.get("state") == "frozen":
            assert seen.waits == "outside its window: it opens at 22:00 (training.when.window)"
            assert steps < seen.step < STEPS
            now[0], steps = NIGHT, seen.step

    job = work(night, dict(WINDOW), change, lambda: now[0])
    assert closed == 3 and job["attempts"] == 4
    assert chain(night) == quiet


@pytest.mark.faults
@ONLY_LONG
def test_a_gpu_that_others_take_changes_no_bit(
    night: Night, quiet: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "READ_SECONDS", 0.05)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    smi, used = tmp_path / "nvidia-smi", tmp_path / "used"
    told = f'read mb < {used}\ncase "$1" in --query-gpu*) echo "$mb, 50";; *) echo "1, $mb";; esac'
    smi.write_text(f"#!/bin/sh\n{told}\n")
    smi.chmod(0o755)

    def hold(mb: int) -> None:
        (tmp_path / "next").write_text(f"{mb}\n")
        (tmp_path / "next").rename(used)

    taken, steps = 0, 0
    hold(0)

    def change(seen: Watched) -> None:
        nonlocal taken, steps
        busy = used.read_text() != "0\n"
        if not busy and seen.job.get("state") == "running" and taken < 2 and seen.step > steps:
            hold(700)
            taken += 1
        elif busy and seen.job.get("state") == "frozen":
            assert seen.waits == "another program uses the GPU (training.when.gpu_busy_mb = 500)"
            steps = seen.step
            hold(0)

    settings: dict[str, object] = {"training.when.gpu_busy_mb": 500, "training.when.settle_minutes": 0.002}
    job = work(night, settings, change)
    assert taken == 2 and job["attempts"] == 3
    assert chain(night) == quiet


@pytest.mark.faults
@ONLY_LONG
def test_a_pause_before_the_first_step_and_later_changes_no_bit(night: Night, quiet: dict[str, dict[str, str]]) -> None:
    asked = 0

    def ask(command: str) -> None:
        with ledger.open_home(night.home.database, write=True) as db:
            requests.ask(db, "me", command, {"until": ""}, NOON)

    def change(seen: Watched) -> None:
        nonlocal asked
        state = seen.job.get("state")
        if asked == 0 and state == "running":  # it loads its model
            ask("pause")
            asked = 1
        elif asked == 2 and state == "running" and seen.step > 3:
            ask("pause")
            asked = 3
        elif asked in (1, 3) and state == "frozen" and seen.waits:
            assert seen.waits == "paused: engramd resume"
            assert asked == 3 or seen.step == 0
            ask("resume")
            asked += 1

    job = work(night, {}, change)
    assert asked == 4 and job["attempts"] == 3
    assert chain(night) == quiet
