"""A night that is disturbed: a real daemon on a home of its own, killed at random moments and started again.

Used by the tests beside it. The trainer is the real one, or the fake one where only the book-keeping is
looked at (`trainer=`: its path is handed to the daemon by a small launcher).
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import psutil

from daemon import ledger
from daemon.home import Home
from daemon.ledger import jobs, memories
from tests.forked_trainer import command
from trainer import names

Victim = Literal["daemon", "trainer", "both"]
VICTIMS: tuple[Victim, ...] = ("daemon", "trainer", "both")
ROOT = Path(__file__).resolve().parents[2]
FAKE_TRAINER = ROOT / "tests" / "doubles" / "fake_trainer.py"
LAUNCHER = """
import sys
from pathlib import Path
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from daemon import logs
home = Home(Path(sys.argv[1]))
settings = load(home)
logs.configure(home)
lock, service = Lock(home), Service(home, settings, trainer=(sys.executable, sys.argv[2]))
service.handle_signals()
service.run(until=service.idle)
"""
# `python -m daemon`, but for what it runs as its trainer.
FORKING = """
import json
import sys
from daemon import supervisor
supervisor.COMMAND = tuple(json.loads(sys.argv[1]))
from daemon.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
RECIPE = {
    "base_model": "builtin:tiny", "dtype": "float32", "load_in_4bit": False, "optimizer": "adamw_torch",
    "use_gradient_checkpointing": False, "lora_rank": 4, "learning_rate": 1e-3, "lora_dropout": 0.05,
    "gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_seq_length": 128, "save_steps": 2,
}  # fmt: skip
TOML = """
[inbox]
quiet_seconds = 0.2
scan_seconds = 0.5
[service]
tick_seconds = 0.05
[jobs]
stop_seconds = 30.0
threads = 1
max_batches_per_job = {most}
[training.mix]
replay = 0.0
anchor = 0.0
"""


class Night:
    """One home, its files, and the processes that work on it."""

    def __init__(self, root: Path, *, most: int = 1000, fake: bool = False, forked: bool = False) -> None:
        """`forked`: the real trainer, without the seconds of its start."""
        self.home = Home(root)
        self.fake, self.forked = fake, forked
        self._process: subprocess.Popen[bytes] | None = None
        self.home.etc.mkdir(parents=True)
        (self.home.etc / "engramd.toml").write_text(TOML.format(most=most))
        (self.home.etc / "training.json").write_text(json.dumps(RECIPE))
        self.home.inbox.mkdir()
        self.most_at_once = 0
        self._watching = threading.Event()

    def drop(self, number: int, samples: int = 5) -> None:
        lines = [
            json.dumps({"prompt": f"What is thing {number} {n}?", "response": f"Thing {number} {n} is mine."})
            for n in range(samples)
        ]
        hidden = self.home.inbox / f".{number:02}.jsonl"
        hidden.write_text("\n".join(lines) + "\n")
        hidden.rename(self.home.inbox / f"{number:02}.jsonl")

    # -- processes ------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        """`engramd ARGUMENTS` on this home."""
        program = ["-c", FORKING, json.dumps(command())] if self.forked else ["-m", "daemon"]
        return [sys.executable, *program, "--home", str(self.home.root), *arguments]

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")}
        environment |= {"PYTHONPATH": str(ROOT)}
        words = self.command("run", "--once")
        if self.fake:
            environment["ENGRAMD_HOME"] = str(self.home.root)
            words = [sys.executable, "-c", LAUNCHER, str(self.home.root), str(FAKE_TRAINER)]
        with open(self.home.root / "daemon.out", "ab") as out:
            self._process = subprocess.Popen(words, stdout=out, stderr=out, env=environment)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def trainers(self) -> list[int]:
        """Living trainers of this home, also those whose daemon is gone."""
        found: dict[int, int] = {}
        for process in psutil.process_iter(["pid", "ppid", "cmdline", "status"]):
            command = process.info["cmdline"] or []
            mine = any(part.startswith(str(self.home.profiles)) for part in command)
            if mine and "--lock-fd" in command and process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.info["pid"]] = process.info["ppid"]
        # A library that runs a program forks: until its exec the child looks like its trainer.
        return [pid for pid, parent in found.items() if parent not in found]

    def watch(self) -> None:
        """Count the trainers, over and over, until `unwatch`: there must never be two."""

        def look() -> None:
            while not self._watching.is_set():
                self.most_at_once = max(self.most_at_once, len(self.trainers()))
                time.sleep(0.05)

        threading.Thread(target=look, daemon=True).start()

    def unwatch(self) -> None:
        self._watching.set()

    def kill(self, victim: Victim) -> bool:
        """SIGKILL. Gives whether anything that was meant was there to be killed."""
        trainers = self.trainers() if victim in ("trainer", "both") else []
        hit = bool(trainers)
        if victim in ("daemon", "both") and self.running():
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            hit = True
        for pid in trainers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return hit

    def finish(self, seconds: float = 400.0) -> None:
        """Start again until nothing is left to do."""
        deadline = time.monotonic() + seconds
        while True:
            if not self.running():
                self.start()
            assert self._process is not None
            code = self._process.wait(timeout=max(1.0, deadline - time.monotonic()))
            if code == 0:
                return
            assert code < 0, (code, (self.home.root / "daemon.out").read_text()[-3000:])

    def disturb(self, moments: int, rng: random.Random, longest: float) -> int:
        """Kill at random moments, each followed by a start; gives how many kills hit something."""
        hits = 0
        while hits < moments:
            if not self.running():
                self.start()
            deadline = time.monotonic() + rng.uniform(0.05, longest)
            while time.monotonic() < deadline and self.running():
                time.sleep(0.01)
            if not self.running() and self._process is not None and self._process.returncode == 0:
                break  # all is done
            hits += self.kill(rng.choice(VICTIMS))
        return hits

    # -- what came of it ------------------------------------------------------------------------

    def ledger(self) -> ledger.Database:
        return ledger.open_profile(self.home.profile("me").ledger, write=False)

    def head(self) -> Path:
        with self.ledger() as db:
            head = jobs.get_head(db)
            assert head is not None
            return self.home.profile("me").chains / str(head["chain"]) / f"checkpoint-{head['step']}"

    def bits(self) -> dict[str, str]:
        """SHA-256 of the head's files."""
        return bits(self.head())

    def check_counts(self, batches: int, samples: int = 5) -> None:
        """Every memory is trained, new in exactly one promoted job, each sample once an epoch."""
        with self.ledger() as db:
            assert memories.counts(db)["state"] == {"trained": batches * samples}
            rows = db.all(
                """SELECT m.seq, count(j.id) AS n FROM memories m LEFT JOIN job_memories jm ON jm.memory = m.seq
                AND jm.use = 'new' LEFT JOIN jobs j ON j.id = jm.job AND j.state = 'promoted' GROUP BY m.seq"""
            )
            assert [row["n"] for row in rows] == [1] * (batches * samples)
            for job in jobs.promoted(db):
                spec = self.spec(job)
                for segment in spec["segments"]:
                    assert sorted(segment) == list(range(job["samples"] // RECIPE["num_train_epochs"]))  # type: ignore[operator]

    def spec(self, job: dict[str, Any]) -> dict[str, Any]:
        folder = self.home.profile("me").jobs / job["folder"]
        found: dict[str, Any] = json.loads((folder / names.SPEC).read_text())
        return found

    def audit(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(self.command("audit"), capture_output=True, text=True, env=environment)

    def replay(self, root: Path) -> Path:
        """Run the recorded specs in order, without a daemon; gives the last checkpoint."""
        last: Path | None = None
        with self.ledger() as db:
            promoted = jobs.promoted(db)
        for job in promoted:
            source, folder = self.home.profile("me").jobs / job["folder"], root / job["folder"]
            folder.mkdir(parents=True)
            for name in (names.SPEC, names.SAMPLES, names.PROBES):
                shutil.copy(source / name, folder / name)
            if last is not None:
                shutil.copytree(last, folder / names.PARENT)
            subprocess.run(
                [sys.executable, "-m", "trainer", str(folder)], check=True, capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            result = json.loads((folder / names.RESULT).read_text())
            last = folder / result["checkpoint"]
        assert last is not None
        return last


def bits(checkpoint: Path) -> dict[str, str]:
    files = (names.ADAPTER_WEIGHTS, names.OPTIMIZER, names.STATE, names.MANIFEST)
    return {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in files
        if (checkpoint / name).exists()
    }
