"""Runs one trainer: its own process group, a lock, a pipe, a heartbeat, a timeout, an outcome.

The daemon takes the lock of the job folder and hands it down, so that it is held from before the
child exists until its last process is gone. The other end of the pipe tells a trainer that its daemon
has died; it then saves and ends as after SIGTERM.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from daemon.home import python_path
from daemon.settings_compute import KEY_VARIABLE
from trainer import names

COMMAND = (sys.executable, "-m", "trainer")
_KEYS = (KEY_VARIABLE,)


class Locked(Exception):
    """Another trainer still holds the job folder."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the process ended. `signal` names the signal that killed it, where one did."""

    code: int | None = None
    signal: str | None = None
    asked: bool = False  # to stop, by the supervisor
    why_asked: str | None = None  # "heartbeat" or "timeout": its limits; "held": it has no leave now


@dataclass(frozen=True, slots=True)
class Limits:
    heartbeat_seconds: float
    timeout_seconds: float
    stop_seconds: float
    nice: int
    threads: int
    processes: int = 1  # that share the job; 0: one for each GPU
    sharded: str = "auto"  # whether they hold one model in pieces


def threads_for(setting: int) -> int:
    """Threads of the trainer: the setting, or half of the processors.

    Not by the load of the moment: the count is part of what makes bits equal, and a trainer with as
    many threads as a busy machine has processors crawls.
    """
    return setting or max(1, (os.cpu_count() or 1) // 2)


def is_locked(folder: Path) -> bool:
    try:
        fd = os.open(folder / names.LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def kill_leftover(folder: Path, pid: int | None, pid_start: float | None) -> None:
    """SIGKILL the group of a trainer whose daemon died and that did not end by itself.

    The recorded pid counts only with its start time (pids come again); a trainer that was started but
    not yet recorded is found by its command line, as are those that share its job, each in a group of its own.
    """
    for process in psutil.process_iter(["pid", "create_time", "cmdline"]):
        info = process.info
        recorded = info["pid"] == pid and pid_start is not None and abs(info["create_time"] - pid_start) < 1.0
        command = info["cmdline"] or []
        if recorded or (str(folder) in command and {"--lock-fd", "--line"} & {*command}):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(info["pid"]), signal.SIGKILL)


class Trainer:
    """A running child. `poll` must be called regularly; it also enforces the limits."""

    def __init__(
        self, folder: Path, limits: Limits, command: Sequence[str] = COMMAND, *, keys: bool = False
    ) -> None:
        """Start the trainer on a job folder. Raises Locked. `command` is any program that obeys the contract; only one
        that rents machines gets the `keys` for that."""
        self.folder = folder
        self._keys = keys
        self._limits = limits
        self._started = time.monotonic()
        self._progress_seen = self._started
        self._progress_mtime = 0
        self._asked: float | None = None
        self._why: str | None = None
        lock = os.open(folder / names.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        read_end, self._alive = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"another trainer is still at work in {folder}") from None
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            with open(os.open(folder / names.LOG, flags, 0o600), "ab") as log:
                self._process = subprocess.Popen(
                    [*command, str(folder), "--alive-fd", str(read_end), "--lock-fd", str(lock)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=self._environment(),
                    pass_fds=(read_end, lock), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(lock)  # the child has its own copy; the lock lives as long as that one
            os.close(read_end)
        self.pid = self._process.pid
        self.pid_start = psutil.Process(self.pid).create_time()
        with contextlib.suppress(OSError, psutil.Error):
            psutil.Process(self.pid).nice(limits.nice)

    def _environment(self) -> dict[str, str]:
        threads = str(threads_for(self._limits.threads))
        own = {name: value for name, value in os.environ.items() if self._keys or name not in _KEYS}
        return {
            **own, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
            "ENGRAMD_PROCESSES": str(self._limits.processes), "ENGRAMD_SHARDED": self._limits.sharded,
        }  # fmt: skip

    def _silence(self) -> float:
        """Seconds since the last sign of life: a progress line, or the start.

        Measured on the monotonic clock between changes of the file, so that a set clock kills nobody.
        """
        try:
            mtime = (self.folder / names.PROGRESS).stat().st_mtime_ns
        except FileNotFoundError:
            mtime = 0
        if mtime != self._progress_mtime:
            self._progress_mtime = mtime
            self._progress_seen = time.monotonic()
        return time.monotonic() - self._progress_seen

    def poll(self) -> Ended | None:
        """None while it works. A trainer past its limits is asked to stop, then killed."""
        code = self._process.poll()
        now = time.monotonic()
        if code is None:
            if self._asked is None and self._silence() > self._limits.heartbeat_seconds:
                self.stop("heartbeat")
            elif self._asked is None and now - self._started > self._limits.timeout_seconds:
                self.stop("timeout")
            elif self._asked is not None and now - self._asked > self._limits.stop_seconds:
                self.kill()
            return None
        os.close(self._alive)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it may have left behind in its group
        name = signal.Signals(-code).name if code < 0 else None
        return Ended(code if code >= 0 else None, name, self._asked is not None, self._why)

    def stop(self, why: str | None = None) -> None:
        """Ask it to save and end. Asking twice is asking once."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._why = why
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
