"""Jobs that are trained over SSH, cut off at random moments: nothing lost, nothing trained twice, nobody left behind.

The line breaks, sshd stops, rsync, courier or daemon are killed, the network falls silent. The trainer over there is
the double: what is looked at is the way. `make test` runs the short form; ENGRAMD_FAULTS_LONG=1 (`make faults`) the
long one, and ENGRAMD_FAULTS_SEED chooses the moments.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.ledger import jobs, memories
from daemon.settings_compute import SshSettings
from tests.couriers import Errand, order, sha256_of, until
from tests.elsewhere import FAR_TRAINER, Machine, machine
from tests.faults.night import LAUNCHER, ROOT, Night
from trainer import names

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
CUTS = 20 if LONG else 4
BATCHES = 6 if LONG else 2
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))
KINDS = ("session", "rsync", "courier", "daemon", "network", "sshd")
SLOW = "step_seconds:0.15 bytes:2000000"

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def far() -> Iterator[Machine]:
    with machine() as made:
        yield made


class FarNight(Night):
    """A night whose jobs are trained on `far`, or, not `away`, by the same double at home."""

    def __init__(self, root: Path, far: Machine, *, away: bool, more: str = "") -> None:
        super().__init__(root, most=1, fake=True)
        self._home_of_faults = far.home
        if away:
            with open(self.home.etc / "engramd.toml", "a") as file:
                file.write(far.toml(fake=True, more=more))

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")}
        environment |= {"PYTHONPATH": str(ROOT), "ENGRAMD_HOME": str(self.home.root)}
        environment["HOME"] = str(self._home_of_faults)  # where the double looks for faults
        words = [sys.executable, "-c", LAUNCHER, str(self.home.root), str(FAR_TRAINER)]
        with open(self.home.root / "daemon.out", "ab") as out:
            self._process = subprocess.Popen(words, stdout=out, stderr=out, env=environment)

    def all_done(self) -> bool:
        if not self.home.profile("me").ledger.exists() or list(self.home.inbox.glob("*.jsonl")):
            return False
        with self.ledger() as db:
            return jobs.open_job(db) is None and not memories.any_waiting(db)

    def finish(self, seconds: float = 400.0) -> None:
        """`run --once` ends where a job waits for the other machine; a daemon that stays would try again."""
        until(lambda: super(FarNight, self).finish(seconds) or self.all_done(), lambda: "it waits", seconds)

    def rsyncs(self) -> list[int]:
        """Those that this home's couriers run."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if words[:1] == ["rsync"] and any(str(self.home.root) in word for word in words):
                found.append(process.info["pid"])
        return found

    def steps_told(self) -> list[list[int]]:
        """Of each job the steps that its trainer told of, as they came home."""
        found = []
        with self.ledger() as db:
            done = jobs.promoted(db)
        for job in done:
            text = (self.home.profile("me").jobs / job["folder"] / names.PROGRESS).read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            found.append([line["step"] for line in lines if line["phase"] == "training"])
        return found


class Watch:
    """Counts trainers over there until the end of the block: there must never be two."""

    def __init__(self, far: Machine) -> None:
        self._far, self._done, self.most = far, threading.Event(), 0

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, len(self._far.trainers()))

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def kill(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def cut(kind: str, night: FarNight, far: Machine, rng: random.Random) -> bool:
    """Whether anything was there to be cut."""
    if kind == "session":
        return far.kill_sessions()
    if kind == "rsync":
        return kill(night.rsyncs())
    if kind == "courier":
        return kill(night.trainers())
    if kind == "daemon":
        return night.kill("daemon")
    if kind == "network":
        far.relay.is_down.set()
        time.sleep(rng.uniform(0.1, 1.0))  # the length of the silence, not a wait for anything
        far.relay.cut()
        far.relay.is_down.clear()
        return True
    hit = bool(far.sessions())
    far.stop_sshd()
    time.sleep(rng.uniform(0.1, 1.0))
    far.start_sshd()
    return hit


def disturb(night: FarNight, far: Machine, kinds: list[str], rng: random.Random) -> list[str]:
    """Cut at random moments, each kind in its turn; gives those that found something, before all was done."""
    hits = []
    for kind in kinds:
        if not night.running():
            if night._process is not None and night.all_done():
                break
            night.start()
        until = time.monotonic() + rng.uniform(0.3, 4.0)
        while time.monotonic() < until and night.running():
            time.sleep(0.02)
        if kind == "rsync":  # which is there for moments only
            while night.running() and not night.rsyncs():
                time.sleep(0.005)
        if night.running() and cut(kind, night, far, rng):
            hits.append(kind)
    return hits


def nobody(far: Machine) -> bool:
    deadline = time.monotonic() + 20
    while far.trainers() or far.guardians():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_cuts_at_random_moments(tmp_path: Path, far: Machine) -> None:
    """The ledger, the bits and each step's single telling are those of a night that nothing disturbs."""
    (far.home / "faults").write_text(SLOW)
    far.relay.slowness = 1e-7  # ten megabytes a second
    quiet = FarNight(tmp_path / "quiet", far, away=False)
    for number in range(BATCHES):
        quiet.drop(number)
    quiet.finish()
    rng, hits, nights = random.Random(SEED), [], 0
    while len(hits) < CUTS:
        loud = FarNight(tmp_path / f"loud-{nights}", far, away=True)
        nights += 1
        for number in range(BATCHES):
            loud.drop(number)
        kinds = [KINDS[(len(hits) + one) % len(KINDS)] for one in range(CUTS - len(hits))]
        rng.shuffle(kinds)
        with Watch(far) as watch:
            hits += disturb(loud, far, kinds, rng)
            loud.finish()
        assert watch.most == 1, f"{watch.most} trainers at once"
        loud.check_counts(BATCHES)
        assert weights(loud.head()) == weights(quiet.head())
        for number, steps in enumerate(loud.steps_told()):  # no cut kills the trainer: each step is taken once
            assert steps == list(range(6 * number + 1, 6 * number + 7)), (hits, steps)
        assert loud.audit().returncode == 0
        print(hits, [folder.name for folder in loud.home.profile("me").jobs.iterdir()])
        assert nobody(far), [psutil.Process(pid).cmdline() for pid in far.processes()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def weights(checkpoint: Path) -> str:
    return str(json.loads((checkpoint / names.STATE).read_text())["weights"])


def test_a_download_that_is_cut(tmp_path: Path, far: Machine) -> None:
    """Cut at so many places of the largest file, it ends byte for byte as it lies over there; what is sent twice is
    a small part of it, counted where it passes. (A cut costs what rsync has not written yet, 256 KiB, and what is in
    pipes.)"""
    size = 160_000_000 if LONG else 32_000_000
    (far.home / "faults").write_text(f"bytes:{size}")
    far.relay.slowness = 0.0
    told = order(SshSettings(host="far", config=str(far.config), python=str(far.fake_python)))
    job = Errand(tmp_path / "job", told, {**os.environ, "PYTHONPATH": str(ROOT)})
    before = far.relay.home
    job.go()
    coming = job.folder / ".tmp-home" / "checkpoint-4" / names.ADAPTER_WEIGHTS
    until(lambda: coming.parent.exists(), job.told)
    far.relay.slowness = 1e-7  # ten megabytes a second
    cuts = 0
    for place in range(1, CUTS + 1):
        at = place * size // (CUTS + 1)
        until(lambda at=at: _size(coming) >= at or job.process is None or job.process.poll() is not None, job.told)
        cuts += _size(coming) >= at
        far.relay.cut()
    assert job.wait(300) == 0, job.told()
    job.leave()
    passed = far.relay.home - before
    last = job.folder / "checkpoint-4"
    there = far.folder / "checkpoints" / job.result["checkpoint_sha256"]
    assert {one.name: sha256_of(one) for one in last.iterdir()} == {one.name: sha256_of(one) for one in there.iterdir()}
    assert cuts >= CUTS - 1 and job.report["cuts"] >= 1
    needed = sum(one.stat().st_size for one in last.iterdir())
    talk = 8192 * (job.report["cuts"] + 12)  # what ssh and rsync say to each other, a connection
    print(f"{cuts} cuts, {passed:,} bytes of {needed:,}, {100 * (passed - needed) / needed:.2f} % more")
    assert passed <= 1.05 * needed + talk
