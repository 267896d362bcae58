"""Nights whose jobs are trained over SSH: a real sshd and rsync on loopback, another user, another home."""

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.compute import telling
from daemon.ledger import jobs
from tests.elsewhere import Machine, machine
from tests.faults.night import ROOT, Night
from trainer import names

CANARY = "canary-7f3a91c2e5"


@pytest.fixture(scope="module")
def far() -> Iterator[Machine]:
    with machine() as made:
        yield made


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def reports(night: Night) -> list[dict[str, Any]]:
    with night.ledger() as db:
        done = jobs.promoted(db)
    return [telling.read(night.home.profile("me").jobs / job["folder"]) for job in done]


def append(night: Night, text: str) -> None:
    with open(night.home.etc / "engramd.toml", "a") as file:
        file.write(text)


def test_the_bits_of_a_night_at_home(tmp_path: Path, far: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs of the real trainer: every file of the last checkpoint is the same; only what the next job needs comes
    home, and nothing that is there is sent again. A key in the daemon's environment is in no file, here or there."""
    at_home, away = Night(tmp_path / "home", most=1, forked=True), Night(tmp_path / "away", most=1)
    append(away, far.toml(fake=False))
    monkeypatch.setenv("RUNPOD_API_KEY", CANARY)
    for night in (at_home, away):
        night.drop(0)
        night.drop(1)
        night.finish()
        night.check_counts(2)
    assert files_of(away.head()) == files_of(at_home.head())
    assert away.audit().returncode == 0

    first, second = reports(away)
    for one, size in ((first, _needed(away, 0)), (second, _needed(away, 1))):
        assert one["fetched"] <= 1.02 * size + 16_384, (one, size)  # tiny files: the talk of rsync itself is seen
    assert second["saved"] > 0.9 * _size(away.head()), "the parent was there already"
    assert second["sent"] < 0.1 * first["sent"], "neither code nor parent goes twice"
    assert not list(away.home.profile("me").jobs.glob("*/.tmp-*"))
    assert sorted(path.name for path in (far.folder / "jobs").iterdir()) == []
    for root in (away.home.root, far.home):
        assert not _holding(root, CANARY.encode()), "a secret is in a file"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _needed(night: Night, number: int) -> int:
    """Bytes of what the next job, and the ledger, need of a job: its last checkpoint and what lies beside."""
    with night.ledger() as db:
        job = jobs.promoted(db)[number]
        chain = night.home.profile("me").chains / str(job["chain"])
        step = json.loads(job["result"])["global_step"]
    folder = night.home.profile("me").jobs / job["folder"]
    beside = (names.RESULT, names.METRICS, names.PLAN, names.LOSSES, names.BEFORE)
    return _size(chain / f"checkpoint-{step}") + sum((folder / name).stat().st_size for name in beside)


def _holding(root: Path, text: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and text in path.read_bytes()]


def test_a_stop_comes_home_and_goes_on(tmp_path: Path, far: Machine) -> None:
    """SIGTERM of the daemon: the trainer over there saves and ends, its checkpoint is here; the next start goes on."""
    (far.home / "faults").write_text("step_seconds:1.5")
    night = Night(tmp_path / "night", fake=True)
    append(night, far.toml(fake=True))
    night.drop(0)
    night.start()
    folder = night.home.profile("me").jobs / "1-finetune"
    _until(lambda: '"step":2' in _text(folder / names.PROGRESS), night)
    assert night._process is not None
    night._process.send_signal(signal.SIGTERM)
    assert night._process.wait(60) == 0
    assert far.trainers() == []
    stopped = json.loads((folder / names.RESULT).read_text())
    assert stopped["exit_code"] == names.ExitCode.INTERRUPTED
    assert (folder / stopped["checkpoint"] / names.MANIFEST).is_file()
    night.finish()
    night.check_counts(1)
    assert '"event": "job_came_home"' in _text(night.home.log)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _until(what: Any, night: Night, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline and night.running(), _text(night.home.root / "daemon.out")[-3000:]
        time.sleep(0.05)


def test_a_host_key_that_nobody_knows(tmp_path: Path, far: Machine) -> None:
    """The job waits with one sentence, and goes on once a person has said yes."""
    known = far.root / "known_hosts"
    before = known.read_text()
    known.write_text("")
    try:
        night = Night(tmp_path / "night", fake=True)
        append(night, far.toml(fake=True))
        night.drop(0)
        night.start()
        _until(lambda: "host key of far is not known" in _text(night.home.log), night)
        doctor = subprocess.run(night.command("doctor", "--json"), capture_output=True, text=True, cwd=ROOT)
        ssh = next(one for one in json.loads(doctor.stdout)["checks"] if one["name"] == "ssh")
        assert ssh["state"] == "fail" and "host key" in ssh["detail"]
        night.kill("both")
        with night.ledger() as db:
            job = jobs.open_job(db)
            assert job is not None and (job["crashes"], job["state"]) == (0, "frozen")
    finally:
        known.write_text(before)
    (far.home / "faults").write_text("")
    night.finish()
    night.check_counts(1)


def test_a_trainer_that_crashes_there(tmp_path: Path, far: Machine) -> None:
    """Over there is as here: a crash is tried again, then the job has failed, with the trainer's last words."""
    (far.home / "faults").write_text("crash:")
    night = Night(tmp_path / "night", fake=True)
    append(night, far.toml(fake=True) + "\n")
    night.drop(0)
    night.finish()
    with night.ledger() as db:
        failed = db.all("SELECT state, reason FROM jobs")
    assert {row["state"] for row in failed} == {"failed"}
    assert "asked to crash" in failed[0]["reason"]
    assert far.trainers() == far.guardians() == []
