"""A courier and its job folder without a daemon; over a stand-in of ssh, or with the sshd of `tests/elsewhere.py`.

The stand-in runs what it is given in another home, so that all but the crossing is real: rsync, Python over there, the
guardian, the trainer's double. A file `down` beside it is a line that is lost.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from daemon.compute import orders, telling
from daemon.settings_compute import RunPodSettings, SshSettings
from tests.jobs import recipe, some_samples, write_job
from trainer import base_files, names

ROOT = Path(__file__).resolve().parents[1]
FAR_TRAINER = ROOT / "tests" / "doubles" / "far_trainer.py"
_SSH = """#!/bin/sh
while :; do case "$1" in -T) shift ;; -F | -p | -i | -o | -l) shift 2 ;; --) shift; break ;; *) break ;; esac; done
shift
if [ -e {root}/down ]; then cat {root}/down >&2; exit 255; fi
cd {root}/home && HOME={root}/home exec sh -c "$*"
"""
_PYTHON = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = trainer ]; then shift 2; exec {python} {double} "$@"; fi
exec {python} "$@"
"""


class Elsewhere:
    """Another home behind a program that is called ssh. `environment` is for whoever calls it."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        self.home.mkdir(parents=True)
        for name, text in (("ssh", _SSH.format(root=root)),
                           ("python", _PYTHON.format(python=sys.executable, double=FAR_TRAINER))):  # fmt: skip
            (root / name).write_text(text)
            (root / name).chmod(0o755)
        self.down = root / "down"
        self.environment = {**os.environ, "PATH": f"{root}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    @property
    def settings(self) -> SshSettings:
        return SshSettings(host="far", python=str(self.root / "python"))

    @property
    def folder(self) -> Path:
        return self.home / "engramd-compute"

    def faults(self, text: str) -> None:
        (self.home / "faults").write_text(text)

    def trainers(self) -> list[int]:
        return [pid for pid, words in commands() if str(self.folder) in " ".join(words) and "--lock-fd" in words]

    def jobs(self) -> list[Path]:
        return sorted((self.folder / "jobs").iterdir()) if (self.folder / "jobs").is_dir() else []


def commands() -> list[tuple[int, list[str]]]:
    return [(one.info["pid"], one.info["cmdline"] or []) for one in psutil.process_iter(["pid", "cmdline", "status"])
            if one.info["status"] != psutil.STATUS_ZOMBIE]  # fmt: skip


def order(settings: SshSettings, **changes: Any) -> orders.Order:
    told: dict[str, Any] = {
        "where": "ssh", "ssh": settings, "runpod": RunPodSettings(), "name": "engramd-test-1", "home": "0" * 12,
        "base_fingerprint": base_files.fingerprint(base_files.resolve("builtin:tiny")), "heartbeat_seconds": 60.0,
        "timeout_seconds": 600.0, "stop_seconds": 20.0, "deadline_hours": 1.0, "threads": 1, **changes,
    }  # fmt: skip
    return orders.Order(**told)


class Errand:
    """One job folder, and couriers sent with it, one after the other."""

    def __init__(self, folder: Path, order: orders.Order, environment: Mapping[str, str], **job: Any) -> None:
        self.folder, self._environment = folder, environment
        own = recipe(**job.pop("recipe", {}))
        write_job(folder, some_samples(8), [list(range(8)), list(range(8))], recipe=own, **job)
        orders.write(folder, order)
        self._alive: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def go(self) -> None:
        """As the supervisor starts a trainer."""
        reading, self._alive = os.pipe()
        (self.folder / names.RESULT).unlink(missing_ok=True)
        with open(self.folder / names.LOG, "ab") as log:
            self.process = subprocess.Popen(
                [*orders.COMMAND, str(self.folder), "--alive-fd", str(reading)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=dict(self._environment), pass_fds=(reading,), start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        os.close(reading)

    def wait(self, seconds: float = 90.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.told()) from None

    def run(self) -> int:
        self.go()
        try:
            return self.wait()
        finally:
            self.leave()

    def leave(self) -> None:
        """The daemon is gone: its end of the pipe closes."""
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """With all that it started."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.leave()

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / names.RESULT).read_text())
        return found

    @property
    def report(self) -> dict[str, Any]:
        return telling.read(self.folder)

    def text(self, name: str = names.PROGRESS) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def steps(self) -> list[int]:
        lines = [json.loads(line) for line in self.text().splitlines()]
        return [line["step"] for line in lines if line["phase"] == "training"]

    def told(self) -> str:
        return self.text() + self.text(names.LOG)


def until(what: Callable[[], object], told: Callable[[], object], seconds: float = 60.0) -> None:
    """Look again and again until it is so; past the deadline fail with what `told` has to say."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
