"""What this machine is at: who uses it, battery, load, GPU, heat, memory. A sensor that fails knows nothing.

Read from `/sys` and `/proc` (psutil), from logind by `loginctl` and from NVIDIA's driver by `nvidia-smi`; none of
these has to be there. The trainer's own share is left out, else it would stop itself. Programs are not waited for:
a driver that hangs must not hold up the daemon, nor training for ever.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from daemon.rules.windows import Facts, Limits

READ_SECONDS = 10.0  # between two readings
FIRST_SECONDS = 1.0  # from the start to the first one where load counts: it needs a stretch of time
PROGRAM_SECONDS = 5.0  # after that a program has told nothing
HINT_SECONDS = 86_400.0  # a day: so long without an idle moment it is a desktop that never tells of any
_ODD_CLOCK = 60.0  # seconds that a terminal may have been used "in the future"
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "amdgpu", "nouveau", "radeon", "i915", "xe")
_ZONES = ("cpu", "pkg", "soc", "gpu")  # in the type of a thermal zone
_FAILS = (OSError, psutil.Error, ValueError, LookupError, AttributeError, RuntimeError)  # as psutil without /proc

Rows = Sequence[Sequence[float | None]]  # what a program printed, in numbers; None for such as [N/A]
T = TypeVar("T")


class Program:
    """A program that is asked now and heard later, with nobody waiting for it."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self) -> None:
        """Start it, unless the last one hangs still: one stuck in its driver outlives even SIGKILL."""
        if self.silent:
            return
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )

    @property
    def silent(self) -> bool:
        """It has been asked and has not ended."""
        return self._process is not None and self._process.poll() is None

    def lines(self) -> list[str]:
        """What it printed; nothing where it is not there, fails or hangs, and then it is killed."""
        if self._process is None:
            return []
        if self.silent:
            self._process.kill()
            return []
        process, self._process = self._process, None
        assert process.stdout is not None
        with process.stdout as out, contextlib.suppress(OSError):
            os.set_blocking(out.fileno(), False)  # a child of its own may hold the pipe open
            text = os.read(out.fileno(), 1 << 16).decode("utf-8", "replace")
            return text.splitlines() if process.returncode == 0 else []
        return []

    def close(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.2)


class Sensors:
    """Readings, each at most every `READ_SECONDS`; only what a limit asks for is looked at."""

    def __init__(
        self, limits: Limits, *, clock: Callable[[], float] = time.monotonic, sys: Path = Path("/sys"),
        dev: Path = Path("/dev"),
    ) -> None:  # fmt: skip
        self._limits, self._clock, self._sys, self._dev = limits, clock, sys, dev
        self._login = Program("loginctl", "show-session", "-p", "IdleHint", "-p", "IdleSinceHint")  # of all of them
        query, form = "memory.used,temperature.gpu", "--format=csv,noheader,nounits"
        self._cards = Program("nvidia-smi", f"--query-gpu={query}", form)
        self._apps = Program("nvidia-smi", "--query-compute-apps=pid,used_memory", form)
        self._programs = [
            *([self._login] if limits.idle_minutes else []),
            *([self._cards] if limits.gpu_busy_mb or limits.max_temperature else []),
            *([self._apps] if limits.gpu_busy_mb else []),
        ]
        self._asked_at: float | None = None  # while programs are listened for
        self._due = clock()
        self._hint: tuple[str, float] = ("", 0.0)  # what logind says of use, and since when it says just that
        self._busy = (self._due, 0.0, dict[int, float]())  # when; seconds of the processors: all that worked, ours
        if limits.max_load:
            self._due += FIRST_SECONDS
            _known(lambda: self._load([]))

    def read(self, trainer: int | None) -> Facts | None:
        """New facts; None while the last ones are young or programs are still listened for. `trainer` is the pid of
        ours."""
        now = self._clock()
        if self._asked_at is None:
            if now < self._due:
                return None
            for program in self._programs:
                program.ask()
            self._asked_at = now
        if any(program.silent for program in self._programs) and now - self._asked_at < PROGRAM_SECONDS:
            return None
        self._asked_at, self._due = None, now + READ_SECONDS
        limits, own = self._limits, _family(trainer)
        cards, apps = self._numbers(self._cards), self._numbers(self._apps)
        ours = {process.pid for process in own}
        return Facts(
            idle_seconds=_known(self._idle) if limits.idle_minutes else None,
            on_battery=None if limits.on_battery else _known(self._on_battery),
            load=_known(lambda: self._load(own)) if limits.max_load else None,
            gpu_mb=gpu_of_others(cards, apps, ours, trains=trainer is not None) if limits.gpu_busy_mb else None,
            temperature=_known(lambda: self._hottest(cards)) if limits.max_temperature else None,
            free_memory_mb=_known(lambda: _free_memory(own)) if limits.min_free_memory_mb else None,
        )

    def close(self) -> None:
        for program in self._programs:
            program.close()

    def _numbers(self, program: Program) -> Rows:
        if program not in self._programs:
            return []
        return [[_number(field) for field in line.split(",")] for line in program.lines()]

    def _idle(self) -> float:
        """Seconds since anybody typed or moved: as logind says, else by the terminals; with nobody there, for ever."""
        now = time.time()
        used = [_atime(path) for path in (*self._dev.glob("pts/[0-9]*"), *self._dev.glob("tty[0-9]*"))]
        last = max((at for at in used if at <= now + _ODD_CLOCK), default=0.0)
        typed = max(0.0, now - last)
        told = dict(line.split("=", 1) for line in self._login.lines() if "=" in line)
        hint, since = told.get("IdleHint", ""), told.get("IdleSinceHint", "")
        if (heard := f"{hint} {since}") != self._hint[0]:
            self._hint = (heard, self._clock())
        if hint == "no" and self._clock() - self._hint[1] < HINT_SECONDS:
            return 0.0
        if hint == "yes" and since.isdecimal() and int(since):
            return max(0.0, min(typed, now - int(since) / 1e6))
        return typed

    def _on_battery(self) -> bool | None:
        """As the power supplies of /sys say: mains that are off, or a battery that discharges."""
        mains, discharging = [], False
        for supply in sorted((self._sys / "class/power_supply").glob("*")):
            kind = _text(supply / "type")
            if kind in ("Mains", "USB", "Wireless") and (online := _text(supply / "online")):
                mains.append(online != "0")
            elif kind in ("Battery", "UPS") and _text(supply / "scope") != "Device":  # a mouse has one, too
                discharging |= _text(supply / "status") == "Discharging"
        if any(mains):
            return False
        return discharging if mains or discharging else None

    def _load(self, own: list[psutil.Process]) -> float | None:
        """The share of all processors that others kept busy since the last reading; this daemon is none of them."""
        now, times = self._clock(), psutil.cpu_times()
        busy, ours = times.user + times.system + times.nice, dict[int, float]()
        for process in (*own, psutil.Process()):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                ours[process.pid] = used.user + used.system
        (then, before, were), self._busy = self._busy, (now, busy, ours)
        if now <= then or not before:
            return None
        own_share = sum(max(0.0, used - were.get(pid, 0.0)) for pid, used in ours.items())
        return max(0.0, busy - before - own_share) / (now - then) / (os.cpu_count() or 1)

    def _hottest(self, cards: Rows) -> float | None:
        """Degrees Celsius of processors and GPUs; disks and radios have sensors of their own, which do not count."""
        chips = [path for path in self._sys.glob("class/hwmon/hwmon*") if _text(path / "name") in _CHIPS]
        zones = sorted(self._sys.glob("class/thermal/thermal_zone*"))
        known = [path for path in zones if any(word in _text(path / "type").lower() for word in _ZONES)]
        files = [*(file for path in chips for file in path.glob("temp*_input")), *(path / "temp" for path in known)]
        files = files or [path / "temp" for path in zones]
        found = [int(text) / 1000 for path in files if (text := _text(path)).isdecimal()]
        found += [card[1] for card in cards if len(card) == 2 and card[1] is not None]
        return max((degrees for degrees in found if 0 < degrees < 150), default=None)


def gpu_of_others(cards: Rows, apps: Rows, ours: Iterable[int], *, trains: bool) -> float | None:
    """Mebibytes that other programs hold on all cards; None where the driver tells nothing. What is held less what is
    ours, so that a game counts, of which the list of computing programs says nothing. Where our trainer is at work and
    not in that list (it only starts; a container hides it), the list alone counts."""
    held = [card[0] for card in cards if card and card[0] is not None]
    if not held:
        return None
    own = set(ours)
    listed = [(int(app[0]), app[1] or 0.0) for app in apps if len(app) == 2 and app[0] is not None]
    mine = sum(used for pid, used in listed if pid in own)
    if trains and not mine:
        return sum(used for pid, used in listed if pid not in own)
    return max(0.0, sum(held) - mine)


def _known(sensor: Callable[[], T]) -> T | None:
    try:
        return sensor()
    except _FAILS:
        return None


def _family(pid: int | None) -> list[psutil.Process]:
    """The trainer and what it started."""
    if pid is None:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except _FAILS:
        return []


def _free_memory(own: list[psutil.Process]) -> float:
    """Mebibytes that could be had, with what our trainer holds for itself: its files in memory count as free anyway."""
    free = float(psutil.virtual_memory().available)
    for process in own:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_info()
            free += max(0, memory.rss - getattr(memory, "shared", 0))
    return free / 2**20


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _atime(path: Path) -> float:
    """When something was last typed there; 0.0 where it is gone."""
    try:
        return path.stat().st_atime
    except OSError:
        return 0.0
