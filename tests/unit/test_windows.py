"""Hours, conditions with patience, and a pause: when a job may run."""

import json
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from daemon import hours, ledger
from daemon.cli.exit_codes import UserError
from daemon.cli.pause import when
from daemon.conditions import READ_SECONDS, Sensors
from daemon.home import Home
from daemon.ledger import home_meta, jobs, requests
from daemon.lock import Lock
from daemon.rules.windows import Facts, Limits, Patience, next_opening, open_at, outside, unsettled
from daemon.service import Service
from daemon.settings import load
from daemon.settings_layers import SettingsError
from tests.unit.test_service import FAKE, QUICK, drop, work

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("windows", "local", "is_open"),
    [
        ([], "2026-11-21 12:00", True),
        (["22:00-07:00"], "2026-11-21 22:00", True),
        (["22:00-07:00"], "2026-11-21 21:59:59", False),
        (["22:00-07:00"], "2026-11-22 06:59:59", True),
        (["22:00-07:00"], "2026-11-22 07:00", False),
        (["mon-fri 22:00-07:00"], "2026-11-20 23:00", True),  # a Friday
        (["mon-fri 22:00-07:00"], "2026-11-21 06:00", True),  # it began on the Friday
        (["mon-fri 22:00-07:00"], "2026-11-21 23:00", False),
        (["mon-fri 22:00-07:00"], "2026-11-23 06:00", False),  # the Sunday has none
        (["mon-fri 22:00-07:00", "sat,sun 00:00-24:00"], "2026-11-22 15:00", True),
        (["sat-mon 10:00-12:00"], "2026-11-23 11:00", True),
        (["00:00-24:00"], "2026-11-23 23:59:59", True),
    ],
)
def test_windows(windows: list[str], local: str, is_open: bool) -> None:
    moment = datetime.fromisoformat(local).replace(tzinfo=BERLIN)
    assert open_at([hours.parse(text) for text in windows], moment) is is_open


@pytest.mark.parametrize(
    "text", ["22-07", "25:00-07:00", "22:00-22:00", "Mo 22:00-07:00", "22:60-07:00", "", "22:00-24:01"]
)
def test_what_is_no_window_is_one_sentence(home: Home, text: str) -> None:
    with pytest.raises(SettingsError, match="is no window"):
        load(home, {"training.when.window": text}, {})


def test_a_window_may_be_one_text_or_several(home: Home) -> None:
    assert load(home, {"training.when.window": "22:00-07:00"}, {}).training.when.window == ["22:00-07:00"]


def test_the_next_opening_over_a_change_of_clocks() -> None:
    night = [hours.parse("02:30-05:00")]
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)  # on the 29th 02:30 is not there in Berlin
    assert next_opening(night, before, BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    twice = datetime(2026, 10, 24, 12, tzinfo=UTC)  # on the 25th 02:30 comes twice
    assert next_opening(night, twice, BERLIN) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert next_opening([hours.parse("sat 10:00-11:00")], datetime(2026, 11, 21, 11, tzinfo=UTC), BERLIN) == datetime(
        2026, 11, 28, 9, tzinfo=UTC
    )


def test_the_sentence_says_when_it_opens() -> None:
    limits = Limits((hours.parse("22:00-07:00"),))
    noon = datetime(2026, 11, 21, 11, tzinfo=UTC)
    assert outside(limits, noon, BERLIN) == "outside its window: it opens at 22:00 (training.when.window)"
    assert outside(limits, noon.replace(hour=22), BERLIN) is None
    friday = Limits((hours.parse("fri 22:00-23:00"),))
    assert "it opens on Friday at 22:00" in str(outside(friday, noon, BERLIN))


def test_a_moment_of_load_stops_nothing_and_an_end_must_last() -> None:
    limits, patience = Limits(max_load=0.5, settle_minutes=2), Patience()
    busy, quiet = Facts(load=0.9), Facts(load=0.1)

    def why(facts: Facts, clock: float, *, running: bool) -> str | None:
        return unsettled(limits, facts, patience, clock, running=running)

    assert why(busy, 0, running=True) is None and why(quiet, 10, running=True) is None
    assert why(busy, 20, running=True) is None
    assert why(busy, 30, running=True) == "other programs are busy (training.when.max_load = 0.5)"
    assert str(why(quiet, 40, running=False)).startswith("waiting until it is over for 2 minutes: other programs")
    assert str(why(busy, 50, running=False)).startswith("other programs are busy")
    assert why(quiet, 169, running=False) is not None and why(quiet, 171, running=False) is None
    assert why(quiet, 172, running=True) is None


@pytest.mark.parametrize(
    ("limits", "good", "bad"),
    [
        (Limits(idle_minutes=10), Facts(idle_seconds=601), Facts(idle_seconds=599)),
        (Limits(on_battery=False), Facts(on_battery=False), Facts(on_battery=True)),
        (Limits(max_load=0.5), Facts(load=0.5), Facts(load=0.51)),
        (Limits(gpu_busy_mb=500), Facts(gpu_mb=500), Facts(gpu_mb=501)),
        (Limits(max_temperature=80), Facts(temperature=80), Facts(temperature=81)),
        (Limits(min_free_memory_mb=1000), Facts(free_memory_mb=1000), Facts(free_memory_mb=999)),
    ],
)
def test_each_condition(limits: Limits, good: Facts, bad: Facts) -> None:
    assert limits.looks and not Limits().looks
    assert unsettled(limits, good, Patience(), 0, running=False) is None
    assert unsettled(limits, Facts(), Patience(), 0, running=False) is None  # what cannot be known is no reason
    assert "training.when." in str(unsettled(limits, bad, Patience(), 0, running=False))


# -- sensors -----------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


def test_sensors_against_trees_and_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    told = 'case "$1" in --query-gpu*) echo 64;; *) printf "1, 700\\n2, [N/A]\\n";; esac'
    program(tmp_path / "bin", "nvidia-smi", told)
    program(tmp_path / "bin", "loginctl", "echo IdleHint=no; echo IdleSinceHint=0")
    sys = tmp_path / "sys"
    put(sys, "class/power_supply/AC/type", "Mains")
    put(sys, "class/power_supply/AC/online", "0")
    put(sys, "class/power_supply/BAT0/type", "Battery")
    put(sys, "class/power_supply/BAT0/status", "Discharging")
    put(sys, "class/thermal/thermal_zone0/temp", "51000")
    now = [100.0]
    limits = Limits((), 5, False, 0.5, 1, 1, 1)
    sensors = Sensors(limits, clock=lambda: now[0], sys=sys, dev=tmp_path / "none")
    facts = sensors.read(None)
    assert facts is not None and sensors.read(None) is None  # ten seconds have not passed
    assert (facts.idle_seconds, facts.on_battery, facts.gpu_mb, facts.temperature) == (0.0, True, 700.0, 64.0)
    assert facts.load is None and facts.free_memory_mb and facts.free_memory_mb > 10
    now[0] += READ_SECONDS
    put(sys, "class/power_supply/AC/online", "1")
    program(tmp_path / "bin", "nvidia-smi", "exit 9")
    program(tmp_path / "bin", "loginctl", "exit 1")
    facts = sensors.read(None)
    assert facts is not None and facts.load is not None and 0 <= facts.load < 5
    assert (facts.on_battery, facts.gpu_mb, facts.temperature) == (False, None, 51.0)
    assert facts.idle_seconds is not None and facts.idle_seconds > 10**6  # nobody was ever there


def test_a_machine_without_anything_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = Sensors(Limits((), 0, False, 0.0, 1, 1, 0), sys=tmp_path).read(None)
    assert facts == Facts()


# -- the service -------------------------------------------------------------------------------------


def test_outside_the_window_everything_but_training_goes_on(home: Home) -> None:
    noon = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
    drop(home, "a.jsonl", "one")
    lock = Lock(home)
    one = Service(home, load(home, QUICK | noon, {}), trainer=FAKE, now=lambda: "2026-11-21T12:00:00Z")
    one.run(until=one.idle)
    lock.release()
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.get_meta(db, "waits") == "outside its window: it opens at 22:00 (training.when.window)"
        assert jobs.get_head(db) is None and db.number("SELECT count(*) FROM memories") == 1
    lock = Lock(home)
    one = Service(home, load(home, QUICK | noon, {}), trainer=FAKE, now=lambda: "2026-11-21T22:00:00Z")
    one.run(until=one.idle)
    lock.release()
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.get_meta(db, "waits") is None and jobs.get_head(db) is not None


def test_train_now_is_stronger_than_hours_and_a_pause_stronger_than_both(home: Home) -> None:
    never = {"training.when.window": "22:00-07:00", "schedule.timezone": "UTC"}
    drop(home, "a.jsonl", "one")

    def asked(command: str, **arguments: object) -> dict[str, object]:
        with ledger.open_home(home.database, write=True) as db:
            number = requests.ask(db, "me", command, arguments, "2026-11-21T12:00:00Z")
        lock = Lock(home)
        one = Service(home, load(home, QUICK | never, {}), trainer=FAKE, now=lambda: "2026-11-21T12:00:00Z")
        states = ("done", "failed")
        one.run(until=lambda: (requests.get(one._db, number) or {}).get("state") in states)
        lock.release()
        with ledger.open_home(home.database, write=False) as db:
            row = requests.get(db, number)
        assert row is not None
        return json.loads(row["answer"])  # type: ignore[no-any-return]

    assert asked("pause", until="")["paused"] == "paused: engramd resume"
    assert asked("train", now=True)["error"] == "paused: engramd resume"
    assert asked("resume")["paused"] is None
    assert "outside its window" in str(asked("train", now=False)["error"])
    assert asked("train", now=True)["head"]


def test_a_pause_ends_by_itself(home: Home) -> None:
    work(home)
    with ledger.open_home(home.database, write=True) as db:
        home_meta.put(db, home_meta.PAUSED, "2026-11-22T07:00:00Z")
        assert home_meta.paused(db, "2026-11-22T06:59:59Z") == "paused until 2026-11-22 07:00 UTC: engramd resume"
        assert home_meta.paused(db, "2026-11-22T07:00:00Z") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("07:00", "2026-11-22T07:00:00+01:00"), ("23:30", "2026-11-21T23:30:00+01:00"),
     ("2h", "2026-11-21T20:00:00+00:00"),
     ("2026-12-24", "2026-12-24T00:00:00+01:00"), ("2026-12-24 18:00", "2026-12-24T18:00:00+01:00")],
)  # fmt: skip
def test_until(text: str, expected: str) -> None:
    now = datetime(2026, 11, 21, 19, tzinfo=BERLIN)
    assert when(text, now) == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", ["soon", "2020-01-01", "25:00", ""])
def test_until_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="--until"):
        when(text, datetime(2026, 11, 21, 19, tzinfo=BERLIN))
