"""Sensors against trees of files and programs of our own; none of them may hold up or end the daemon."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from daemon import conditions
from daemon.conditions import (
    FIRST_SECONDS,
    HINT_SECONDS,
    PROGRAM_SECONDS,
    READ_SECONDS,
    Sensors,
    gpu_of_others,
)
from daemon.rules.windows import Facts, Limits

NVIDIA = 'case "$1" in --query-gpu*) echo "%s";; *) printf "%s";; esac'


def wait_for(state: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.002)


class Bench:
    """A machine of files, a clock that is turned by hand."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys, self.dev, self.bin, self.now = root / "sys", root / "dev", root / "bin", 1000.0
        self.bin.mkdir()
        monkeypatch.setenv("PATH", f"{self.bin}:/bin:/usr/bin")

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def put(self, path: str, text: str) -> None:
        (self.sys / path).parent.mkdir(parents=True, exist_ok=True)
        (self.sys / path).write_text(f"{text}\n")

    def sensors(self, limits: Limits) -> Sensors:
        return Sensors(limits, clock=lambda: self.now, sys=self.sys, dev=self.dev)

    def facts(self, sensors: Sensors, trainer: int | None = None) -> Facts:
        """The next reading, by real programs."""
        self.now += READ_SECONDS
        found: list[Facts] = []

        def look() -> bool:
            found.extend(filter(None, [sensors.read(trainer)]))
            return bool(found)

        wait_for(look)
        return found[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_machine_without_anything_knows_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.bin))
    limits = Limits((), 0, False, 0.0, 1, 1, 0)
    assert bench.facts(bench.sensors(limits)) == Facts()


def test_only_what_a_limit_asks_for_is_looked_at(bench: Bench) -> None:
    for name in ("nvidia-smi", "loginctl"):
        bench.program(name, f"touch {bench.bin}/was-asked-{name}")
    facts = bench.facts(bench.sensors(Limits(min_free_memory_mb=1)))
    assert facts.free_memory_mb and facts.free_memory_mb > 10
    assert facts == Facts(free_memory_mb=facts.free_memory_mb)
    assert not list(bench.bin.glob("was-asked-*"))


def test_a_reading_stays_for_ten_seconds(bench: Bench) -> None:
    sensors = bench.sensors(Limits(on_battery=False))
    assert sensors.read(None) is not None
    bench.now += READ_SECONDS - 0.1
    assert sensors.read(None) is None
    bench.now += 0.2
    assert sensors.read(None) is not None


# -- power -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, None),
        ({"BAT0": ("Battery", "status", "Discharging")}, True),
        ({"BAT0": ("Battery", "status", "Full")}, None),
        ({"AC": ("Mains", "online", "0"), "BAT0": ("Battery", "status", "Discharging")}, True),
        ({"AC": ("Mains", "online", "1"), "BAT0": ("Battery", "status", "Discharging")}, False),  # a weak charger
        ({"AC": ("Mains", "online", "0"), "ucsi": ("USB", "online", "1")}, False),
        ({"ucsi": ("USB", "online", "0")}, False),  # a desktop's own port
        ({"ups": ("UPS", "status", "Discharging")}, True),
    ],
)
def test_battery(bench: Bench, supplies: dict[str, tuple[str, str, str]], expected: bool | None) -> None:
    for name, (kind, file, text) in supplies.items():
        bench.put(f"class/power_supply/{name}/type", kind)
        bench.put(f"class/power_supply/{name}/{file}", text)
    assert bench.facts(bench.sensors(Limits(on_battery=False))).on_battery is expected


def test_the_battery_of_a_mouse_is_none(bench: Bench) -> None:
    for file, text in (("type", "Battery"), ("status", "Discharging"), ("scope", "Device")):
        bench.put(f"class/power_supply/hidpp_battery_0/{file}", text)
    assert bench.facts(bench.sensors(Limits(on_battery=False))).on_battery is None


# -- GPU and heat ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cards", "apps", "ours", "trains", "expected"),
    [
        ([], [], [], False, None),
        ([[None, 50.0]], [[7, 100]], [], False, None),
        ([[300, 50]], [], [], False, 300),  # a game: no computing program, and memory held all the same
        ([[900, 50], [100, 40]], [[7, 600], [8, 100]], [7], True, 400),
        ([[900, 50]], [[7, 890]], [7], True, 10),
        ([[900, 50]], [], [7], True, 0),  # a container hides its processes: what is held may be ours
        ([[900, 50]], [[7, None], [8, 200]], [7], True, 200),
        ([[600, 50]], [[7, 700]], [7], True, 0),
    ],
)
def test_gpu_memory_of_others(
    cards: list[list[float | None]], apps: list[list[float | None]], ours: list[int], trains: bool,
    expected: float | None,
) -> None:  # fmt: skip
    assert gpu_of_others(cards, apps, ours, trains=trains) == expected


def test_gpu_by_nvidia_smi_without_what_our_trainer_holds(bench: Bench) -> None:
    own = os.getpid()
    bench.program("nvidia-smi", NVIDIA % ("5000, 64", rf"{own}, 4200\n2, [N/A]\n"))
    sensors = bench.sensors(Limits(gpu_busy_mb=1, max_temperature=1))
    facts = bench.facts(sensors, own)
    assert (facts.gpu_mb, facts.temperature) == (800, 64)
    assert bench.facts(sensors).gpu_mb == 5000
    bench.program("nvidia-smi", "echo '9999, 99'; exit 9")
    assert bench.facts(sensors) == Facts()


def test_a_driver_that_hangs_holds_nobody_up(bench: Bench) -> None:
    asked = bench.bin / "asked"
    bench.program("nvidia-smi", f"echo $$ > {asked}.new; mv {asked}.new {asked}; exec sleep 600")
    bench.put("class/thermal/thermal_zone0/temp", "51000")
    bench.put("class/thermal/thermal_zone0/type", "x86_pkg_temp")
    sensors = bench.sensors(Limits(max_temperature=80))
    assert sensors.read(None) is None  # it is listened for
    wait_for(asked.exists)
    bench.now += PROGRAM_SECONDS - 0.1
    assert sensors.read(None) is None
    bench.now += 0.1
    assert sensors.read(None) == Facts(temperature=51.0)
    hanging = psutil.Process(int(asked.read_text()))
    wait_for(lambda: not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE)  # it was killed
    sensors.close()


def test_a_hanging_program_is_killed_and_asked_again(bench: Bench) -> None:
    bench.program("nvidia-smi", "exec sleep 600")
    sensors = bench.sensors(Limits(gpu_busy_mb=1))
    assert sensors.read(None) is None
    bench.now += PROGRAM_SECONDS
    assert sensors.read(None) == Facts()
    bench.program("nvidia-smi", NVIDIA % ("700, 64", ""))
    wait_for(lambda: bench.facts(sensors).gpu_mb == 700)
    sensors.close()


def test_the_heat_of_disks_and_radios_does_not_count(bench: Bench) -> None:
    for number, (chip, degrees) in enumerate([("nvme", 84850), ("iwlwifi_1", 90000), ("k10temp", 61250)]):
        bench.put(f"class/hwmon/hwmon{number}/name", chip)
        bench.put(f"class/hwmon/hwmon{number}/temp1_input", str(degrees))
    bench.put("class/thermal/thermal_zone0/type", "iwlwifi_1")
    bench.put("class/thermal/thermal_zone0/temp", "90000")
    bench.program("nvidia-smi", "exit 9")
    sensors = bench.sensors(Limits(max_temperature=80))
    assert bench.facts(sensors).temperature == 61.25
    bench.put("class/hwmon/hwmon2/temp1_input", "-128000")  # as a broken one says
    assert bench.facts(sensors).temperature is None


# -- load and memory ---------------------------------------------------------------------------------


def test_load_is_what_others_do(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [100.0]
    used: dict[int, float] = {}
    me = os.getpid()

    def process(pid: int = me) -> SimpleNamespace:
        times = SimpleNamespace(user=used.get(pid, 0.0), system=0.0)
        return SimpleNamespace(pid=pid, cpu_times=lambda: times, children=lambda recursive: [])

    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=busy[0], system=0.0, nice=0.0))
    monkeypatch.setattr(psutil, "Process", process)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    sensors = bench.sensors(Limits(max_load=0.5))
    assert sensors.read(None) is None  # the first one takes a moment
    bench.now += FIRST_SECONDS
    busy[0] += 2
    first = sensors.read(None)
    assert first is not None and first.load == pytest.approx(0.5)
    busy[0] += 20  # in ten seconds of four processors
    used[7] = 10.0  # half of it our trainer's
    used[me] = 2.0  # and some the daemon's own
    assert bench.facts(sensors, 7).load == pytest.approx(0.2)
    busy[0] += 4  # a trainer that is a new process is no other program either
    used[8] = 4.0
    assert bench.facts(sensors, 8).load == pytest.approx(0.0)


def test_a_sensor_that_raises_knows_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As psutil does where a service may not see /proc/stat or /proc/meminfo."""

    def gone() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", gone)
    monkeypatch.setattr(psutil, "virtual_memory", gone)
    sensors = bench.sensors(Limits(max_load=0.5, min_free_memory_mb=100))
    assert bench.facts(sensors) == Facts()
    assert bench.facts(sensors, 2**22 + 1) == Facts()  # nor does a trainer that has ended


def test_our_trainers_memory_counts_as_free(bench: Bench) -> None:
    sensors = bench.sensors(Limits(min_free_memory_mb=1))
    without, with_us = bench.facts(sensors).free_memory_mb, bench.facts(sensors, os.getpid()).free_memory_mb
    memory = psutil.Process().memory_info()
    assert without is not None and with_us is not None
    assert with_us - without > 0.2 * (memory.rss - memory.shared) / 2**20  # others take and give meanwhile


# -- somebody there ----------------------------------------------------------------------------------


def typed(bench: Bench, seconds_ago: float, name: str = "pts/3") -> None:
    path = bench.dev / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() - seconds_ago, 0))


def idle(bench: Bench, sensors: Sensors) -> float:
    found = bench.facts(sensors).idle_seconds
    assert found is not None
    return found


def test_somebody_is_there(bench: Bench) -> None:
    sensors = bench.sensors(Limits(idle_minutes=5))
    bench.program("loginctl", "exit 1")
    assert idle(bench, sensors) > 1e6  # without logind or terminals nobody was ever there
    typed(bench, 300)
    typed(bench, 5000, "tty1")
    assert 299 <= idle(bench, sensors) < 330
    bench.program("loginctl", f"echo IdleHint=yes; echo IdleSinceHint={int((time.time() - 100) * 1e6)}")
    assert 99 <= idle(bench, sensors) < 130
    bench.program("loginctl", f"echo IdleHint=yes; echo IdleSinceHint={int((time.time() - 9000) * 1e6)}")
    assert 299 <= idle(bench, sensors) < 330
    bench.program("loginctl", "echo IdleHint=no; echo IdleSinceHint=0")
    assert idle(bench, sensors) == 0


def test_a_desktop_that_never_tells_of_a_pause_is_not_believed_for_ever(bench: Bench) -> None:
    sensors = bench.sensors(Limits(idle_minutes=5))
    bench.program("loginctl", "echo IdleHint=no; echo IdleSinceHint=0")
    assert idle(bench, sensors) == 0
    bench.now += HINT_SECONDS / 2
    assert idle(bench, sensors) == 0
    bench.now += HINT_SECONDS / 2
    typed(bench, 400)
    assert 399 <= idle(bench, sensors) < 430
    bench.program("loginctl", "echo IdleHint=no; echo IdleSinceHint=5")  # it has told something new
    assert idle(bench, sensors) == 0


def test_a_terminal_used_tomorrow_says_nothing(bench: Bench) -> None:
    """Where a clock was set back."""
    bench.program("loginctl", "exit 1")
    typed(bench, -86400)
    typed(bench, 700, "pts/4")
    assert 699 <= idle(bench, bench.sensors(Limits(idle_minutes=5))) < 730


# -- programs ----------------------------------------------------------------------------------------


def test_a_child_that_keeps_the_pipe_open_is_not_waited_for(bench: Bench) -> None:
    bench.program("told", f"echo one; sleep 600 & echo $! > {bench.bin}/kept; echo two")
    program = conditions.Program("told")
    program.ask()
    began = time.monotonic()
    wait_for(lambda: not program.silent)
    assert program.lines() == ["one", "two"]
    os.kill(int((bench.bin / "kept").read_text()), signal.SIGKILL)
    assert time.monotonic() - began < 60  # the child had 600


def test_what_is_not_text_or_not_there_is_no_trouble(bench: Bench) -> None:
    missing = conditions.Program(str(bench.bin / "none"))
    missing.ask()
    assert not missing.silent and missing.lines() == []
    odd = conditions.Program(sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xff\n1')")
    odd.ask()
    wait_for(lambda: not odd.silent)
    assert odd.lines() == ["�", "1"]
