"""SIGKILL of the courier, or of the daemon, at each step of a job on a rented pod: the meter stands within the
deadline, the budget is never passed, nothing is trained twice, and the key is in no file.

`make test` runs the short form; ENGRAMD_FAULTS_LONG=1 (`make faults`) kills at random moments too, chosen by
ENGRAMD_FAULTS_SEED.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import ledger
from daemon.ledger import jobs as job_rows
from daemon.ledger import spending
from tests import jobs
from tests.doubles.runpod_process import CANARY, RunPod
from tests.doubles.runpod_process import renting as renting_pods
from tests.faults.night import Night
from tests.renting import FAR_TRAINER, PRICE, Sent
from trainer import names

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
ROUNDS = 4 if LONG else 0  # each with MOMENTS kills
MOMENTS = 3
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))
SLACK = 3.0  # seconds that the API takes to stop a pod, on a machine that is busy

PYTHON = """#!/bin/sh
echo step_seconds:0.3 > "$HOME/faults"
if [ "$2" = trainer ]; then shift 2; exec {python} {double} "$@"; fi
exec {python} "$@"
"""

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("packages_and_root"),
]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunPod]:
    with renting_pods(tmp_path_factory.mktemp("account"), price=PRICE) as one:
        yield one


@pytest.fixture
def runpod(account: RunPod) -> Iterator[RunPod]:
    yield account
    account.faults()


def spent(runpod: RunPod, name: str) -> float:
    return sum(one["dollars"] for one in runpod.meter()["pods"].values() if one["name"] == name)


def made(runpod: RunPod) -> int:
    """How many pods were asked for."""
    return sum(one["call"] == "POST /pods" for one in runpod.calls())


def stands_in_time(sent: Sent, until: float) -> None:
    """Nobody is there any more: the pod itself has to."""
    sent.runpod.wait("the meter stands", lambda told: not told["running"], until - time.time() + SLACK)
    assert time.time() <= until + SLACK


def goes_on(sent: Sent) -> None:
    """The next courier brings it to its end, with what was done already."""
    sent.order(600.0)
    assert sent.run() == 0, sent.log() + sent.reason()
    assert sent.steps() == sorted(set(sent.steps())), "a step was trained twice"
    assert jobs.result(sent.job).global_step == sent.steps()[-1] == 4
    assert not sent.runpod.running()
    assert spent(sent.runpod, sent.name) <= sent.rent().dollars + 0.001, "a pod cost more than was counted"


def asked_for(sent: Sent) -> bool:
    """RunPod makes it, and nobody hears the answer."""
    return bool(sent.runpod.running())


def at_work(sent: Sent) -> bool:
    return len(sent.steps()) >= 1


def paused(sent: Sent) -> bool:
    """All is here, the pod is stopped and not removed yet, or just is."""
    return any(one["call"].endswith("/stop") for one in sent.runpod.calls()) and not sent.runpod.running()


@pytest.mark.parametrize(
    ("number", "moment", "seconds"), [(1, asked_for, 12.0), (2, at_work, 60.0), (3, paused, 120.0)]
)
def test_a_courier_is_killed(
    tmp_path: Path, runpod: RunPod, number: int, moment: Callable[[Sent], bool], seconds: float
) -> None:
    (runpod.folder / "requests.jsonl").unlink(missing_ok=True)
    sent = Sent(tmp_path, runpod, samples=16, name=f"engramd-0123456789ab-11111111-{number}")
    if moment is asked_for:
        runpod.faults(lose={"POST /pods": True}, slow={"GET /pods": 0.5})
    sent.faults(*(["step_seconds:0.5"] if moment is at_work else []))
    sent.order(seconds)
    until = time.time() + seconds
    sent.start()
    sent.until(moment.__name__, lambda: moment(sent), seconds)
    sent.kill()
    runpod.faults()
    stands_in_time(sent, until)
    assert spent(runpod, sent.name) <= seconds * PRICE / 3600, "what was reserved is passed"
    assert not (sent.job / names.RESULT).exists() or jobs.result(sent.job).exit_code == 0
    goes_on(sent)
    assert_nowhere(CANARY, tmp_path, runpod.folder)


def test_the_api_fails_when_the_meter_shall_stand(tmp_path: Path, runpod: RunPod) -> None:
    """Neither stop nor removal is heard: the job is home all the same, and the pod stops itself."""
    sent = Sent(tmp_path, runpod, name="engramd-0123456789ab-11111111-4")
    sent.order(50.0)
    until = time.time() + 50.0
    runpod.faults(fail={"DELETE /pods": True})
    assert sent.run() == 0, sent.log()
    stands_in_time(sent, until)
    assert jobs.result(sent.job).global_step == 2


def assert_nowhere(secret: str, *folders: Path) -> None:
    """Byte by byte, in every file below."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert secret.encode() not in path.read_bytes(), path


# -- with a daemon ---------------------------------------------------------------------------------------


class RentedNight(Night):
    """Its jobs are trained on pods, by the double of a trainer."""

    def __init__(self, root: Path, runpod: RunPod, *, month: float) -> None:
        super().__init__(root, most=1)
        python = root / "pod-python"
        python.write_text(PYTHON.format(python=sys.executable, double=FAR_TRAINER))
        python.chmod(0o755)
        with (self.home.etc / "engramd.toml").open("a") as file:
            file.write(
                f'[compute]\nwhere = "runpod"\n[compute.runpod]\napi = "{runpod.url}"\nimage = "any"\n'
                f'python = "{python}"\nidentity = "{runpod.identity}"\nprice_per_hour = {PRICE}\n'
                f"budget_per_job = 0.6\nbudget_per_month = {month}\nstart_minutes = 1\n"
            )

    def money(self) -> tuple[float, list[dict[str, object]]]:
        """Dollars of this month, and what is still open of them."""
        with ledger.open_home(self.home.database, write=False) as db:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            return spending.of_month(db, now), spending.open_ones(db)


def test_a_daemon_is_killed_and_the_month_is_not_passed(
    tmp_path: Path, runpod: RunPod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job fits into what is left of the month; it is disturbed; the second one waits and says why."""
    monkeypatch.setenv("RUNPOD_API_KEY", runpod.key)
    before, asked = runpod.meter()["dollars"], made(runpod)
    night = RentedNight(tmp_path / "home", runpod, month=0.61)
    night.drop(1)
    night.start()
    deadline = time.monotonic() + 90
    while not runpod.running() or not any(night.home.profiles.glob("*/jobs/*/progress.jsonl")):
        assert time.monotonic() < deadline and night.running(), (night.home.root / "daemon.out").read_text()[-3000:]
        time.sleep(0.05)
    night.watch()
    night.kill("daemon")
    night.finish(200.0)
    night.unwatch()
    assert night.most_at_once <= 1
    assert not runpod.running()
    dollars, still_open = night.money()
    assert not still_open and runpod.meter()["dollars"] - before <= dollars + 0.001 <= 0.61
    with night.ledger() as db:
        assert job_rows.get_head(db) is not None
    assert made(runpod) - asked == 1, "the pod was found again"
    settings = night.home.etc / "engramd.toml"
    settings.write_text(settings.read_text().replace("budget_per_month = 0.61", "budget_per_month = 0.3"))
    night.drop(2)
    night.start()
    said, deadline = None, time.monotonic() + 60
    while not said:
        assert time.monotonic() < deadline and night.running(), (night.home.root / "daemon.out").read_text()[-3000:]
        time.sleep(0.1)
        with night.ledger() as db:
            said = job_rows.get_meta(db, "waits")
    night.kill("daemon")
    assert "this month's budget would be passed" in said and "\n" not in said
    assert not runpod.running()
    assert_nowhere(runpod.key, night.home.root, runpod.folder)


@pytest.mark.skipif(not ROUNDS, reason="the long form: ENGRAMD_FAULTS_LONG=1")
@pytest.mark.parametrize("number", range(ROUNDS or 1))
def test_kills_at_random_moments(tmp_path: Path, runpod: RunPod, number: int) -> None:
    rng = random.Random(f"{SEED} {number}")
    sent = Sent(tmp_path, runpod, samples=16, name=f"engramd-0123456789ab-11111111-{100 + number}")
    sent.faults("step_seconds:1.5")
    reserved = 0.0
    for _ in range(MOMENTS):
        seconds = rng.uniform(20.0, 50.0)
        sent.order(seconds)
        until, reserved = time.time() + seconds, reserved + seconds * PRICE / 3600
        sent.start()
        moment = time.monotonic() + rng.uniform(0.1, 10.0)
        while time.monotonic() < moment and sent.process is not None and sent.process.poll() is None:
            time.sleep(0.01)
        sent.kill()
        stands_in_time(sent, until)
        assert spent(runpod, sent.name) <= reserved
        if (sent.job / names.RESULT).exists() and jobs.result(sent.job).exit_code == 0:
            break
    else:
        goes_on(sent)
    assert sent.steps() == [1, 2, 3, 4], "a step was trained twice, or not at all"
    assert_nowhere(CANARY, tmp_path, runpod.folder)
