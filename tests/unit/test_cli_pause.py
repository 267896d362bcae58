"""`engramd pause` and `resume`, with and without a daemon; what a person asks for against hours and conditions."""

import functools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon import ledger, logs
from daemon import service as service_module
from daemon.__main__ import main
from daemon.cli.exit_codes import UserError
from daemon.cli.pause import when
from daemon.home import Home
from daemon.ingestion import Ingestion
from daemon.ledger import home_meta, jobs, requests
from daemon.lock import Lock
from daemon.service import Service, utc_now
from daemon.settings import load
from tests.unit.test_service import FAKE, QUICK, drop, fault

BERLIN = ZoneInfo("Europe/Berlin")
SHUT = {"training.when.window": "00:00-00:01", "schedule.timezone": "UTC"}  # nearly always


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture(autouse=True)
def _fake_trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(service_module, "Service", functools.partial(Service, trainer=FAKE))
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class Cli:
    """One call of the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], home: Home) -> None:
        self._capsys, self._home = capsys, home
        self.settings: dict[str, Any] = dict(QUICK)

    def __call__(self, *words: str, code: int = 0) -> str:
        flags = [part for key, value in self.settings.items() for part in ("--set", f"{key}={value}")]
        found = main([words[0], "--home", str(self._home.root), *flags, *words[1:]])
        self.out, self.err = self._capsys.readouterr()
        assert found == code, (found, self.out, self.err)
        assert "Traceback" not in self.err
        return self.out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], home: Home) -> Cli:
    return Cli(capsys, home)


@pytest.fixture
def daemon_of() -> Iterator[Callable[..., Service]]:
    """Runs the service on a home, in a thread, until the test ends."""
    running: list[tuple[threading.Thread, Service, Lock]] = []
    ready = threading.Event()

    def start(home: Home, **settings: object) -> Service:
        ready.clear()
        holder: list[Service] = []

        def live() -> None:
            logs.configure(home, quiet=True)
            lock = Lock(home)
            one = Service(home, load(home, QUICK | settings, {}), trainer=FAKE)
            holder.append(one)
            running.append((thread, one, lock))
            ready.set()
            try:
                one.run()
            finally:
                lock.release()

        thread = threading.Thread(target=live)
        thread.start()
        assert ready.wait(20)
        return holder[0]

    yield start
    for thread, one, _ in running:
        one.ask_to_stop()
        thread.join(30)


def wait_for(state: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not state():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def job(home: Home) -> dict[str, Any]:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return jobs.get(db, 1) or {"state": "none"}


def steps(home: Home) -> int:
    try:
        lines = (home.profile("me").jobs / "1-finetune" / "progress.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum('"phase":"training"' in line.replace(" ", "") for line in lines)


def waits(home: Home) -> str | None:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return jobs.get_meta(db, "waits")


THINGS = [f"thing {n}" for n in range(60)]  # 40 steps


# -- without a daemon --------------------------------------------------------------------------------


def test_a_pause_outlives_its_command_and_holds_the_next_start(cli: Cli, home: Home) -> None:
    drop(home, "a.jsonl", "one", "two")
    assert cli("pause") == "paused: engramd resume\n"
    assert cli.json("status")["paused"] == "paused: engramd resume"
    cli("run", "--once", "--quiet")
    assert job(home)["state"] == "none" and waits(home) == "paused: engramd resume"
    assert "training  paused: engramd resume" in cli("status")
    assert "waits: paused: engramd resume; and no daemon runs" in cli.out
    cli("train", code=1)
    assert cli.err == "engramd: paused: engramd resume\n"
    assert cli.json("resume") == {"paused": None}
    assert job(home)["state"] == "none"  # a command that has its answer begins no job on its way out
    cli("run", "--once", "--quiet")
    assert job(home)["state"] == "promoted" and waits(home) is None


def test_a_pause_ends_by_itself(cli: Cli, home: Home) -> None:
    cli.settings["schedule.timezone"] = "Europe/Berlin"
    until = (datetime.now(BERLIN) + timedelta(hours=2)).strftime("%H:%M")
    assert cli("pause", "--until", until) == f"paused until {until}: engramd resume\n"
    cli("pause", "--until", "2999-12-24")
    assert cli.out == "paused until 2999-12-24 00:00: engramd resume\n"
    with ledger.open_home(home.database, write=True) as db:
        home_meta.pause(db, "2026-11-22T07:00:00+01:00")
        assert home_meta.paused(db, "2026-11-22T05:59:59.999Z") == "paused until 07:00: engramd resume"
        assert home_meta.paused(db, "2026-11-20T05:00:00Z") == "paused until 2026-11-22 07:00: engramd resume"
        assert home_meta.paused(db, "2026-11-22T06:00:00.000Z") is None
        for wrong in ("soon", "2026-11-22T07:00:00"):
            with pytest.raises(ValueError):
                home_meta.pause(db, wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("07:00", "2026-11-22T07:00:00+01:00"), ("7:00", "2026-11-22T07:00:00+01:00"),
     ("23:30", "2026-11-21T23:30:00+01:00"), ("24:00", "2026-11-22T00:00:00+01:00"),
     ("19:00", "2026-11-22T19:00:00+01:00"), ("2h", "2026-11-21T20:00:00+00:00"), ("90m", "2026-11-21T19:30:00+00:00"),
     ("3d", "2026-11-24T18:00:00+00:00"), ("2026-12-24", "2026-12-24T00:00:00+01:00"),
     ("2026-12-24 18:00", "2026-12-24T18:00:00+01:00"), ("2026-12-24T18:00Z", "2026-12-24T18:00:00+00:00")],
)  # fmt: skip
def test_until(text: str, expected: str) -> None:
    assert when(text, datetime(2026, 11, 21, 19, tzinfo=BERLIN)) == datetime.fromisoformat(expected)


def test_until_in_the_hour_that_comes_twice() -> None:
    now = datetime(2026, 10, 25, 2, 50, tzinfo=BERLIN)  # for the first time
    assert when("02:10", now).date().isoformat() == "2026-10-26"
    assert when("10m", now) == datetime(2026, 10, 25, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["soon", "2020-01-01", "25:00", "24:30", "12:60", "", "0h", "2026", "2026-13-01", "9h9m"]
)
def test_until_that_is_none(cli: Cli, home: Home, text: str) -> None:
    with pytest.raises(UserError, match="--until"):
        when(text, datetime(2026, 11, 21, 19, tzinfo=BERLIN))
    cli("pause", "--until", text, code=2)
    assert cli.err.count("\n") == 1 and not home.database.exists()


def test_run_once_measures_the_load_before_it_trains(cli: Cli, home: Home) -> None:
    """And does not end meanwhile as if nothing were due."""
    cli.settings["training.when.max_load"] = 64.0
    drop(home, "a.jsonl", "one", "two")
    cli("run", "--once", "--quiet")
    assert job(home)["state"] == "promoted"


def test_run_once_on_a_machine_that_is_not_free_ends_and_says_why(
    cli: Cli, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 4000, 50\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    cli.settings["training.when.gpu_busy_mb"] = 500
    drop(home, "a.jsonl", "one", "two")
    cli("run", "--once", "--quiet")
    assert job(home)["state"] == "none"
    assert waits(home) == "another program uses the GPU (training.when.gpu_busy_mb = 500)"
    assert "job 1 promoted" in cli("train", "--now")


# -- with a daemon -----------------------------------------------------------------------------------


def test_a_running_job_stops_at_its_next_step_and_goes_on_from_there(
    cli: Cli, home: Home, daemon_of: Callable[..., Service]
) -> None:
    fault(home, "step_seconds:0.05")
    drop(home, "a.jsonl", *THINGS)
    daemon_of(home)
    wait_for(lambda: home.profile("me").ledger.exists() and job(home)["state"] == "running" and steps(home) >= 2)
    cli("pause", "--until", "2h")
    assert cli.out.startswith("paused until ")
    wait_for(lambda: job(home)["state"] == "frozen")
    stopped, held = job(home), steps(home)
    assert (stopped["crashes"], stopped["kills"], stopped["attempts"]) == (0, 0, 1)
    assert 2 <= held < 40
    told = cli.json("status")
    assert told["paused"] == told["profiles"][0]["waits"] == cli.json("pause", "--until", "2h")["paused"]
    for words in (("train",), ("train", "--now")):
        cli(*words, code=1)
        assert cli.err.startswith("engramd: paused until ")
    assert job(home)["attempts"] == 1 and steps(home) == held
    cli("resume")
    assert "job 1 promoted" in cli("train")  # it is not told of a pause that is over
    assert job(home)["attempts"] == 2 and steps(home) == 40  # no step twice
    assert cli.json("status")["profiles"][0]["waits"] is None


def test_a_job_stops_also_while_files_are_read(
    cli: Cli, home: Home, daemon_of: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(home, "step_seconds:0.05")
    drop(home, "a.jsonl", *THINGS)
    daemon_of(home)
    wait_for(lambda: home.profile("me").ledger.exists() and job(home)["state"] == "running" and steps(home) >= 1)
    monkeypatch.setattr(Ingestion, "busy", property(lambda self: True))  # a file of hours
    cli("pause")
    wait_for(lambda: job(home)["state"] == "frozen")
    assert steps(home) < 40 and waits(home) == "paused: engramd resume"


def test_a_trainer_that_never_answers_is_killed_and_that_is_nobodys_fault(
    cli: Cli, home: Home, daemon_of: Callable[..., Service]
) -> None:
    fault(home, "hang")
    drop(home, "a.jsonl", "one", "two")
    daemon_of(home, **{"jobs.stop_seconds": 0.2})
    progress = home.profile("me").jobs / "1-finetune" / "progress.jsonl"
    wait_for(progress.exists)
    cli("pause")
    wait_for(lambda: job(home)["state"] == "frozen")
    stopped = job(home)
    assert (stopped["crashes"], stopped["kills"]) == (0, 0) and "SIGKILL" in stopped["reason"]
    fault(home, None)
    cli("resume")
    assert "job 1 promoted" in cli("train")


def test_train_now_in_a_daemon_that_has_been_waiting(cli: Cli, home: Home, daemon_of: Callable[..., Service]) -> None:
    if datetime.now(UTC).strftime("%H:%M") == "00:00":
        pytest.skip("the one minute of the day in which its window is open")
    drop(home, "a.jsonl", "one", "two")
    daemon_of(home, **SHUT)
    wait_for(lambda: home.profile("me").ledger.exists() and waits(home) is not None)
    cli("train", code=1)
    assert cli.err.startswith("engramd: outside its window: it opens ")
    assert "job 1 promoted" in cli("train", "--now")
    drop(home, "b.jsonl", "three")
    wait_for(lambda: str(waits(home)).startswith("outside its window"))  # the next job is held again


def test_a_request_that_makes_no_sense_pauses_nothing(home: Home, daemon_of: Callable[..., Service]) -> None:
    """Whoever may write requests must not be able to end the daemon."""
    daemon_of(home)
    for arguments in ({"until": "soon"}, {"until": "2026-11-22T07:00:00"}, {}, {"until": None}):
        number = requests.ask_beside(home.database, "me", "pause", arguments, utc_now())

        def state(number: int = number) -> str:
            with ledger.open_home(home.database, write=False) as db:
                return str((requests.get(db, number) or {}).get("state"))

        wait_for(lambda: state() in ("done", "failed"))
        assert state() == "failed", arguments
    with ledger.open_home(home.database, write=False) as db:
        assert home_meta.paused(db, utc_now()) is None


def test_a_job_that_ends_while_it_is_paused_leaves_nothing_that_waits(
    cli: Cli, home: Home, daemon_of: Callable[..., Service]
) -> None:
    fault(home, "step_seconds:0.5")
    drop(home, "a.jsonl", "one")
    daemon_of(home, **{"training.num_train_epochs": 1})  # one step: there is nothing to stop before
    wait_for((home.profile("me").jobs / "1-finetune" / "progress.jsonl").exists)
    cli("pause")
    wait_for(lambda: job(home)["state"] == "promoted")
    wait_for(lambda: waits(home) is None)
    assert cli.json("status")["paused"]
