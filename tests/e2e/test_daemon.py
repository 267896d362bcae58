"""A real daemon, the real trainer, the builtin model: what a person does in a night and a morning."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.ledger import batches, jobs, memories
from tests.faults.night import ROOT, Night


def until(what: Callable[[], object], seconds: float = 120.0, pause: float = 0.05) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause)


class Daemon:
    """`engramd run` on a home, and the command line beside it."""

    def __init__(self, night: Night) -> None:
        self.night = night
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")}
        self.environment["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            self.command("run"), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        until(lambda: night.home.log.exists() and "profile_ready" in night.home.log.read_text())

    def command(self, *arguments: str) -> list[str]:
        return self.night.command(*arguments)

    def say(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(90)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path / "home")


@pytest.fixture
def daemon(night: Night) -> Iterator[Daemon]:
    one = Daemon(night)
    yield one
    one.stop()


def events(night: Night, name: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in night.home.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_a_night_and_a_morning(night: Night, daemon: Daemon) -> None:
    """Two drops, one broken file, a stop in mid-training, an exact count, an answer."""
    (night.home.inbox / "broken.json").write_text('{"content": "torn')
    night.drop(0, 4)
    until(lambda: events(night, "version_promoted"))
    night.drop(1, 24)
    until(lambda: len(events(night, "job_started")) == 2)
    folder = night.home.profile("me").jobs / "2-finetune"
    until(lambda: (folder / "progress.jsonl").exists() and '"training"' in (folder / "progress.jsonl").read_text())
    assert daemon.stop() == 0, daemon.process.stderr.read() if daemon.process.stderr else ""
    with night.ledger() as db:
        job = jobs.get(db, 2)
        assert job is not None and job["state"] in ("frozen", "promoted")  # it may just have ended
    assert not night.trainers()

    second = Daemon(night)
    try:
        until(lambda: len(events(night, "version_promoted")) == 2)
        status = json.loads(second.say("status", "--json").stdout)
        assert status["daemon"]["running"] is True
        resumed = events(night, "resuming_from_checkpoint")
        assert resumed and str(resumed[-1]["path"]) and isinstance(resumed[-1]["global_step"], int)
        answer = json.loads(second.say("ask", "What is thing 0 1?", "--json").stdout)
        assert isinstance(answer["answer"], str) and answer["version"] == 2
        assert second.say("audit").returncode == 0, second.say("audit").stdout
    finally:
        assert second.stop() == 0
    with night.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 28}
        assert batches.counts(db) == {"done": 2, "refused": 1}
        steps = [job["steps"] for job in jobs.promoted(db)]
    assert steps == [4, 24]
    assert (night.home.failed / "me" / "broken.json").exists()
    assert not any("Thing 0 1" in line for line in night.home.log.read_text().splitlines())


def test_thousands_of_files_while_the_daemon_is_stopped(tmp_path: Path, long_faults: bool) -> None:
    """The queue of hints overflows (16,384 of them, some three a file); the scan is the truth."""
    files = 20_000 if long_faults else 7_000
    night = Night(tmp_path / "home")
    (night.home.etc / "training.json").write_text('{"base_model": "nobody/none"}')
    daemon = Daemon(night)
    try:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        for number in range(files):
            (night.home.inbox / f"{number}.txt").write_text(f"On day {number} I saw {number} birds at the river.")
        os.kill(daemon.process.pid, signal.SIGCONT)

        def all_read() -> bool:
            with night.ledger() as db:
                counts = batches.counts(db)  # a batch of which every memory is held out is done at once
                return counts.get("read", 0) + counts.get("done", 0) == files

        until(all_read, 240, pause=1.0)
    finally:
        assert daemon.stop() == 0
    with night.ledger() as db:
        assert memories.total(db) == files
        assert db.number("SELECT count(DISTINCT id) FROM memories") == files
    assert not list(night.home.inbox.glob("*.txt"))


def test_a_second_daemon_is_refused(night: Night, daemon: Daemon) -> None:
    other = daemon.say("run", "--once")
    assert other.returncode == 69
    assert "another engramd" in other.stderr and "Traceback" not in other.stderr


def test_add_and_train_with_and_without_a_daemon(tmp_path: Path) -> None:
    night = Night(tmp_path / "home", forked=True)
    note = tmp_path / "note.md"
    note.write_text("# Monday\n\nI planted three apple trees behind the house.\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in (("add", str(note)), ("train",)):
        done = subprocess.run(night.command(*arguments), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with night.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 1}
    daemon = Daemon(night)
    try:
        note.write_text("# Tuesday\n\nThe apple trees were eaten by deer.\n")
        assert daemon.say("add", str(note)).returncode == 0
        done = daemon.say("train")
        assert done.returncode == 0, done.stderr
        with night.ledger() as db:
            assert memories.counts(db)["state"] == {"trained": 2}
    finally:
        daemon.stop()
