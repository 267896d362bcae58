"""A job that goes to a rented pod: its folder, its order, and its courier as a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.compute import orders, renting
from daemon.settings_compute import RunPodSettings, SshSettings
from tests import jobs
from tests.doubles.runpod_process import RunPod
from trainer import base_files, names

HOME = "0123456789ab"
NAME = f"engramd-{HOME}-11111111-1"
PRICE = 3.6  # dollars an hour: a tenth of a cent a second
FAR_TRAINER = jobs.ROOT / "tests" / "doubles" / "far_trainer.py"
_PYTHON = """#!/bin/sh
[ -f {faults} ] && cp {faults} "$HOME/faults"
if [ "$1" = -m ] && [ "$2" = trainer ]; then shift 2; exec {python} {double} "$@"; fi
exec {python} "$@"
"""


class Sent:
    """A job's folder with its order; pods run the double of a trainer, whose faults are the lines of `faults`."""

    def __init__(self, root: Path, runpod: RunPod, *, samples: int = 8, name: str = NAME, **settings: Any) -> None:
        self.root, self.runpod, self.name = root, runpod, name
        self.job = root / f"job-{name.rpartition('-')[2]}"
        jobs.write_job(self.job, jobs.some_samples(samples), recipe=jobs.recipe(save_steps=1))
        self.python = root / "pod-python"
        self.python.write_text(_PYTHON.format(faults=root / "faults", python=sys.executable, double=FAR_TRAINER))
        self.python.chmod(0o755)
        self.settings = RunPodSettings.model_validate(
            {"api": runpod.url, "image": "any", "price_per_hour": PRICE, "identity": str(runpod.identity),
             "python": str(self.python), "start_minutes": 0.5, **settings}
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.order(600.0)

    def order(self, seconds: float, **more: Any) -> None:
        """What the daemon writes: so many seconds are paid for."""
        base = base_files.resolve(jobs.TINY)
        told = {
            "where": "runpod", "ssh": SshSettings(), "runpod": self.settings, "name": self.name, "home": HOME,
            "base_fingerprint": base_files.fingerprint(base), "threads": 1, "heartbeat_seconds": 600.0,
            "timeout_seconds": 3600.0, "stop_seconds": 30.0, "deadline_hours": seconds / 3600,
            "until": time.time() + seconds, **more,
        }  # fmt: skip
        orders.write(self.job, orders.Order.model_validate(told))

    def faults(self, *lines: str) -> None:
        """Of the trainer over there: fake_trainer.py says which there are."""
        (self.root / "faults").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        (self.job / names.RESULT).unlink(missing_ok=True)
        with (self.job / names.LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [*orders.COMMAND, str(self.job)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**jobs.environment(), **self.runpod.api_key()}, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float = 60.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the courier did not end: {self.log()}") from None

    def run(self) -> int:
        self.start()
        return self.wait()

    def until(self, what: str, reached: Callable[[], object], seconds: float = 40.0) -> None:
        """Wait for a state; the courier must not end before."""
        deadline = time.monotonic() + seconds
        while not reached():
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, f"the courier ended before {what}: {self.log()}"
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        path = self.job / names.LOG
        return path.read_text()[-3000:] if path.exists() else ""

    def steps(self) -> list[int]:
        return [line.step or 0 for line in jobs.training_steps(self.job)]

    def rent(self) -> renting.Rent:
        return renting.read(self.job)

    def reason(self) -> str:
        return jobs.result(self.job).reason or ""
