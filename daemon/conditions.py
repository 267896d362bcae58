"""What this machine is at: who uses it, battery, load, GPU, heat, memory. A sensor that fails knows nothing.

Read from `/sys` and `/proc` (psutil), from logind by `loginctl` and from NVIDIA's driver by `nvidia-smi`; none of
these has to be there. The trainer's own share is left out, else it would stop itself.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from daemon.rules.windows import Facts, Limits

READ_SECONDS = 10.0  # between two readings
_PROGRAM_SECONDS = 5.0  # a driver that hangs must not hold up the daemon


class Sensors:
    """Readings, each at most every `READ_SECONDS`; only what a limit asks for is looked at."""

    def __init__(
        self, limits: Limits, *, clock: Callable[[], float] = time.monotonic, sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
    ) -> None:  # fmt: skip
        self._limits, self._clock, self._sys, self._dev = limits, clock, sys, dev
        self._facts = Facts()
        self._read_at: float | None = None
        self._busy: tuple[float, float] | None = None  # seconds of the processors: all that worked, ours

    def read(self, trainer: int | None) -> Facts | None:
        """New facts, None where the last ones are still young. `trainer` is the pid of ours."""
        now = self._clock()
        if self._read_at is not None and now - self._read_at < READ_SECONDS:
            return None
        elapsed = None if self._read_at is None else now - self._read_at
        self._read_at = now
        limits, own = self._limits, _family(trainer)
        self._facts = Facts(
            idle_seconds=self._idle() if limits.idle_minutes else None,
            on_battery=None if limits.on_battery else self._on_battery(),
            load=self._load(own, elapsed) if limits.max_load else None,
            gpu_mb=_gpu_of_others(own) if limits.gpu_busy_mb else None,
            temperature=self._hottest() if limits.max_temperature else None,
            free_memory_mb=_free_memory(own) if limits.min_free_memory_mb else None,
        )
        return self._facts

    def _idle(self) -> float | None:
        """Seconds since anybody typed or moved: as logind says, else by the terminals; with nobody there, for ever."""
        told = dict(
            line.split("=", 1) for line in _program("loginctl", "show-session", "-p", "IdleHint", "-p", "IdleSinceHint")
            if "=" in line
        )  # fmt: skip
        terminals = [*self._dev.glob("pts/[0-9]*"), *self._dev.glob("tty[0-9]*")]
        used = [_atime(path) for path in terminals]
        typed = time.time() - max(filter(None, used), default=0.0)
        if told.get("IdleHint") == "no":
            return min(typed, 0.0)
        since = told.get("IdleSinceHint", "")
        if told.get("IdleHint") == "yes" and since.isdecimal() and int(since):
            return max(0.0, min(typed, time.time() - int(since) / 1e6))
        return max(0.0, typed)

    def _on_battery(self) -> bool | None:
        """As the power supplies of /sys say: mains that are off, or a battery that discharges."""
        mains, discharging = [], False
        for supply in sorted((self._sys / "class/power_supply").glob("*")):
            kind = _text(supply / "type")
            if kind in ("Mains", "USB") and (online := _text(supply / "online")):
                mains.append(online == "1")
            elif kind == "Battery" and _text(supply / "scope") != "Device":  # a mouse has one, too
                discharging |= _text(supply / "status") == "Discharging"
        if any(mains):
            return False
        return discharging if mains or discharging else None

    def _load(self, own: list[psutil.Process], elapsed: float | None) -> float | None:
        times = psutil.cpu_times()
        busy = times.user + times.system + times.nice
        ours = 0.0
        for process in own:
            try:
                used = process.cpu_times()
                ours += used.user + used.system
            except psutil.Error:
                continue
        before, self._busy = self._busy, (busy, ours)
        if before is None or not elapsed:
            return None
        others = (busy - before[0]) - max(0.0, ours - before[1])
        return max(0.0, others / elapsed / (os.cpu_count() or 1))

    def _hottest(self) -> float | None:
        """Degrees Celsius."""
        found = [int(text) / 1000 for path in (*self._sys.glob("class/thermal/thermal_zone*/temp"),
                                               *self._sys.glob("class/hwmon/hwmon*/temp*_input"))
                 if (text := _text(path)).isdecimal()]  # fmt: skip
        lines = _program("nvidia-smi", "--query-gpu=temperature.gpu", "--format=csv,noheader,nounits")
        found += [float(line) for line in lines if line.strip().isdecimal()]
        return max((degrees for degrees in found if degrees < 150), default=None)


def _family(pid: int | None) -> list[psutil.Process]:
    """The trainer and what it started."""
    if pid is None:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _gpu_of_others(own: list[psutil.Process]) -> float | None:
    """Mebibytes that other programs hold on all cards; None where the driver tells nothing."""
    lines = _program("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    if not lines:
        return 0.0 if _program("nvidia-smi", "-L") else None
    ours = {process.pid for process in own}
    total = 0.0
    for line in lines:
        pid, _, used = (part.strip() for part in line.partition(","))
        if pid.isdecimal() and int(pid) not in ours and used.isdecimal():
            total += int(used)
    return total


def _free_memory(own: list[psutil.Process]) -> float:
    """Mebibytes that could be had, with what our trainer holds."""
    free = float(psutil.virtual_memory().available)
    for process in own:
        try:
            free += process.memory_info().rss
        except psutil.Error:
            continue
    return free / 2**20


def _program(*command: str) -> list[str]:
    """The lines that it prints; none where it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _atime(path: Path) -> float | None:
    try:
        return path.stat().st_atime
    except OSError:
        return None
