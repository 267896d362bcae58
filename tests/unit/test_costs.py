"""What rented machines may cost: reserved before, never passed, settled after, swept where nobody did."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import budgets, ledger, supervisor
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.compute import renting, sweep
from daemon.home import Home
from daemon.ledger import Database, spending
from daemon.rules import costs
from daemon.service import utc_now
from daemon.settings_compute import ComputeSettings, SshSettings
from tests import jobs
from tests.couriers import order
from tests.forked_trainer import command
from tests.unit.test_service import QUICK, drop, work

NOW = "2026-11-21T12:00:00.000Z"
TERMS = costs.Terms(price_per_hour=2.0, budget_per_job=5.0, budget_per_month=20.0)
DAY = 86400.0
HOUR = 3600.0


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return ledger.open_home(tmp_path / "home.db", write=True)


def reserve(db: Database, job: int = 1, *, now: str = NOW, terms: costs.Terms = TERMS, **more: Any) -> Any:
    told: dict[str, Any] = {"seconds": None, "longest": DAY, "name": f"engramd-{'0' * 12}-a-{job}", "profile": "me"}
    return spending.reserve(db, job=job, terms=terms, now=now, **{**told, **more})


# -- the rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "seconds", "dollars"),
    [
        (costs.Spent(), None, 5.0),  # nobody knows how long: all of the job's budget
        (costs.Spent(), HOUR, 5.0),
        (costs.Spent(job=2.0), HOUR, 3.0),
        (costs.Spent(month=17.0), HOUR, 3.0),  # known to be short: what is left of the month is enough
        (costs.Spent(month=15.0), None, 5.0),
    ],
)
def test_what_is_allowed(spent: costs.Spent, seconds: float | None, dollars: float) -> None:
    found = costs.allow(TERMS, spent, seconds, DAY)
    assert isinstance(found, costs.Allowance)
    assert found.dollars == pytest.approx(dollars)
    assert costs.dollars(found.seconds, TERMS.price_per_hour) == pytest.approx(found.dollars)


@pytest.mark.parametrize(
    ("terms", "spent", "seconds", "said"),
    [
        (costs.Terms(0.0, 5.0, 20.0), costs.Spent(), HOUR, "price_per_hour is 0"),
        (TERMS, costs.Spent(), 3 * HOUR, "raise compute.runpod.budget_per_job"),
        (TERMS, costs.Spent(job=4.9), HOUR, "raise compute.runpod.budget_per_job"),
        (TERMS, costs.Spent(job=5.0), None, "$0.00 of its $5.00"),
        (TERMS, costs.Spent(month=15.01), None, "this month's budget would be passed"),
        (TERMS, costs.Spent(month=18.0), HOUR, "$2.00 of $20.00 are left"),
        (TERMS, costs.Spent(month=25.0), HOUR, "$0.00 of $20.00 are left"),
    ],
)  # fmt: skip
def test_what_waits(terms: costs.Terms, spent: costs.Spent, seconds: float | None, said: str) -> None:
    found = costs.allow(terms, spent, seconds, DAY)
    assert isinstance(found, str) and said in found and "\n" not in found


def test_no_longer_than_a_job_may_take() -> None:
    found = costs.allow(TERMS, costs.Spent(), None, HOUR)
    assert isinstance(found, costs.Allowance) and found.seconds == pytest.approx(HOUR)


def test_time_is_left_to_bring_the_result_home() -> None:
    for seconds in (300.0, 600.0, HOUR, 10 * HOUR, DAY):
        left = seconds - costs.time_to_train(seconds)
        assert costs.HOME_LEAST <= left <= costs.HOME_MOST
    assert costs.time_to_train(60.0) == 30.0 and costs.time_to_train(-1.0) == 0.0


def test_months_are_those_of_utc() -> None:
    assert costs.month_of("2026-12-01T00:30:00+02:00") == "2026-11"
    assert costs.month_of("2026-11-30T23:30:00-02:00") == "2026-12"


def test_the_origins_table() -> None:
    """Two hours at $1.89: $3.78, five minutes around it $0.16, about $4 a run (monthly training, Per-Run Costs)."""
    rows = {row.what: row for row in costs.table(2 * HOUR, costs.Terms(1.89, 5.0, 20.0))}
    assert costs.shown(rows["GPU time"].dollars) == "$3.78"
    assert costs.shown(rows["pod start, up- and download"].dollars) == "$0.16"
    assert rows["a run"].dollars == pytest.approx(3.94, abs=0.005)
    assert rows["a year of monthly runs"].dollars == pytest.approx(12 * rows["a run"].dollars)


@pytest.mark.parametrize(("cost", "dear"), [(None, False), (2.0, False), (2.001, False), (2.01, True), (0.5, False)])
def test_a_pod_that_costs_more_than_was_set(cost: float | None, dear: bool) -> None:
    assert costs.too_dear(2.0, cost) is dear


# -- the ledger ----------------------------------------------------------------------------------------


def test_a_month_is_never_passed(db: Database) -> None:
    """Whatever is settled or left open: reservations end where the month's budget does."""
    said = ""
    for job in range(1, 20):
        found = reserve(db, job)
        if isinstance(found, str):
            said = found
            break
        if job % 2:
            spending.settle(db, f"engramd-{'0' * 12}-a-{job}", 1.5, "done", NOW)
    assert "this month's budget" in said
    assert spending.of_month(db, NOW) <= TERMS.budget_per_month
    assert spending.of_month(db, "2026-12-01T00:00:00Z") == 0.0
    assert not isinstance(reserve(db, 50, now="2026-12-01T00:00:00Z"), str)


def test_an_attempt_that_was_broken_off_is_gone_on_with(db: Database) -> None:
    first = reserve(db)
    again = reserve(db, now=spending.later(NOW, 60.0))
    assert (again.until, again.dollars, again.again) == (first.until, first.dollars, True)
    assert spending.of_month(db, NOW) == pytest.approx(5.0)
    assert len(spending.open_ones(db)) == 1


def test_a_clock_that_was_set_back_makes_no_time(db: Database) -> None:
    """Reserved by a clock a month ahead: once it is right, that end is no end, and what was reserved is gone."""
    first = reserve(db, now=spending.later(NOW, 30 * DAY), terms=costs.Terms(2.0, 8.0, 20.0), longest=2 * HOUR)
    again = reserve(db, terms=costs.Terms(2.0, 8.0, 20.0), longest=2 * HOUR)
    assert not again.again and again.until == spending.later(NOW, 2 * HOUR)
    assert spending.of_job(db, "me", 1) == pytest.approx(first.dollars + again.dollars)
    assert reserve(db, now=spending.later(NOW, -60.0), terms=costs.Terms(2.0, 8.0, 20.0)).again, "a minute is none"


def test_what_was_reserved_pays_for_no_dearer_pod(db: Database) -> None:
    """A price that was raised since holds for the next attempt; a lower one at once."""
    first = reserve(db)
    for price, holds in ((TERMS.price_per_hour * 5, TERMS.price_per_hour), (0.5, 0.5)):
        again = reserve(db, now=spending.later(NOW, 60.0), terms=costs.Terms(price, 5.0, 20.0))
        assert again.until == first.until and again.price == pytest.approx(holds)
    assert first.price == TERMS.price_per_hour


def test_an_attempt_that_ran_out_is_taken_for_spent(db: Database) -> None:
    first = reserve(db, terms=costs.Terms(2.0, 8.0, 20.0), longest=2 * HOUR)
    again = reserve(db, terms=costs.Terms(2.0, 8.0, 20.0), longest=2 * HOUR, now=first.until)
    assert not again.again and again.until > first.until
    assert spending.of_job(db, "me", 1) == pytest.approx(first.dollars + again.dollars)
    third = reserve(db, terms=costs.Terms(2.0, 8.0, 20.0), longest=2 * HOUR, now=again.until)
    assert isinstance(third, str) and "budget_per_job" in third


def test_settled_is_never_more_than_reserved_and_never_less_than_nothing(db: Database) -> None:
    for job, (told, spent) in enumerate([(99.0, 5.0), (-1.0, 0.0), (1.25, 1.25)], start=1):
        reserve(db, job)
        assert spending.settle(db, f"engramd-{'0' * 12}-a-{job}", told, "x", NOW)
        assert spending.of_job(db, "me", job) == pytest.approx(spent)
        assert not spending.settle(db, f"engramd-{'0' * 12}-a-{job}", 3.0, "twice", NOW)
    assert not spending.open_ones(db)


def test_an_older_home_gets_the_table(tmp_path: Path) -> None:
    from daemon import migrations

    old = Database(tmp_path / "home.db", migrations.HOME_STEPS[:2], write=True)
    old.close()
    db = ledger.open_home(tmp_path / "home.db", write=True)
    assert spending.of_month(db, NOW) == 0.0


# -- what is expected ----------------------------------------------------------------------------------


def test_tokens_are_those_of_the_plan_or_of_earlier_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job"
    spec = jobs.write_job(job, jobs.some_samples(4), recipe=jobs.recipe(num_train_epochs=2))
    told = [{"tokens": tokens, "seconds": 10.0, "samples_seen": 50} for tokens in (1000, 3000)]
    monkeypatch.setattr(budgets.uses, "results", lambda *_: told)
    db: Any = None
    assert budgets.uses.pace(db, spec.recipe) == (200.0, 40.0)
    assert budgets._tokens(db, spec, job) == 40 * 8
    (job / "plan.json").write_text(json.dumps({"tokens": 77}))
    assert budgets._tokens(db, spec, job) == 77
    monkeypatch.setattr(budgets.uses, "results", lambda *_: [])
    assert budgets.uses.pace(db, spec.recipe) == (None, None)
    assert costs.expected(77, None) is None and costs.expected(600, 2.0) == 300.0 + costs.STARTUP_SECONDS


def test_what_is_trained_already_need_not_be_paid_again(tmp_path: Path) -> None:
    for own, share in ((None, 1.0), (14, 0.6), (20, 0.0), (30, 0.0)):
        if own is not None:
            (tmp_path / f"checkpoint-{own}").mkdir()
        assert budgets._share_left({"parent_step": 10, "steps": 10}, tmp_path) == pytest.approx(share)
    assert budgets._share_left({"parent_step": None, "steps": None}, tmp_path) == 1.0


def test_a_dry_run_tells_what_a_pod_costs(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "COMMAND", command())
    drop(home, "0.jsonl", "thing one", "thing two")
    work(home)
    run = {**QUICK, "compute.runpod.price_per_hour": 1.89, "compute.runpod.tokens_per_second": 100.0}
    base = ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in run.items())]
    capsys.readouterr()
    assert main([*base, "cycle", "--dry-run", "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert (here["where"], here["costs"]) == ("local", None)
    assert main([*base, "cycle", "--dry-run", "--where", "runpod", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["where"] == "runpod" and told["costs"]["waits"] is None
    rows = {row["what"]: row for row in told["costs"]["rows"]}
    assert rows["GPU time"]["seconds"] == pytest.approx(told["plan"]["tokens"] / 100.0)
    assert rows["a run"]["dollars"] == pytest.approx(rows["a run"]["seconds"] * 1.89 / 3600, abs=1e-4)
    assert main([*base, "cycle", "--dry-run", "--where", "runpod"]) == 0
    text = capsys.readouterr().out
    assert "where     a rented pod, at $1.89 an hour" in text and "$0.00 of $20.00 are spent" in text
    with pytest.raises(UserError, match=r"compute\.runpod\.template or compute\.runpod\.image"):
        main([*base, "cycle", "--where", "runpod"])
    with ledger.open_home(home.database, write=True) as db:
        reserve(db, terms=costs.Terms(1.89, 19.9, 20.0), now=utc_now())
    assert main([*base, "cycle", "--dry-run", "--where", "runpod"]) == 0
    assert "it would wait: this month's budget would be passed" in capsys.readouterr().out


# -- the sweep, as the daemon sees it ------------------------------------------------------------------


class Sweeps:
    """A sweeper whose child prints what the test wants, and notes what it was asked."""

    def __init__(self, root: Path, db: Database, answer: dict[str, Any], **settings: Any) -> None:
        self.root, self.db, self.clock = root, db, 0.0
        self.job = root / "job"
        self.job.mkdir()
        self.at_work = False
        self.open: set[str] = set()
        self.answers(answer)
        script = root / "child.py"
        script.write_text(
            "import sys, pathlib\nroot = pathlib.Path(__file__).parent\n"
            "with (root / 'asked').open('a') as file: file.write(sys.stdin.read() + '\\n')\n"
            "print((root / 'answer').read_text())\n"
        )
        self.sweeper = budgets.Sweeper(
            db, ComputeSettings.model_validate({"where": "runpod", **settings}), lambda: "0" * 12,
            lambda profile, job: (self.job, self.at_work), lambda: self.open, lambda: self.clock,
            (sys.executable, "-I", str(script)),
        )  # fmt: skip

    def answers(self, answer: dict[str, Any]) -> None:
        (self.root / "answer").write_text(json.dumps(answer))

    def asked(self) -> list[dict[str, Any]]:
        path = self.root / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [sweep.Asked.model_validate_json(line).model_dump(mode="json") for line in lines]

    def ticks(self, seconds: float = 2.0) -> None:
        """Time passes; a child that was started ends."""
        self.clock += seconds
        deadline = time.monotonic() + 30
        self.sweeper.tick(NOW)
        while self.sweeper._child is not None:
            assert time.monotonic() < deadline
            self.sweeper.tick(NOW)
            time.sleep(0.01)


def test_a_start_looks_for_pods_once(tmp_path: Path, db: Database) -> None:
    one = Sweeps(tmp_path, db, {"stands": [], "pods": []})
    one.ticks()
    one.ticks(1000.0)
    assert [asked["attempts"] for asked in one.asked()] == [[]]


def test_nobody_looks_where_nothing_is_rented(tmp_path: Path, db: Database) -> None:
    one = Sweeps(tmp_path, db, {}, where="local")
    one.ticks()
    assert not one.asked()


def test_who_rents_no_more_is_looked_after_for_a_while(tmp_path: Path, db: Database) -> None:
    reserve(db)
    spending.settle(db, f"engramd-{'0' * 12}-a-1", 1.0, "x", NOW)
    one = Sweeps(tmp_path, db, {"stands": [], "pods": []}, where="local")
    one.ticks()
    assert len(one.asked()) == 1
    assert not spending.lately(db, spending.later(NOW, 50 * DAY))


def test_a_meter_that_stands_is_settled_without_asking_anybody(tmp_path: Path, db: Database) -> None:
    one = Sweeps(tmp_path, db, {"stands": [], "pods": []}, where="local")
    reserve(db)
    renting.Rent(pod="p", name=f"engramd-{'0' * 12}-a-1", dollars=0.75).write(one.job)
    one.sweeper._first = False
    one.open = {f"engramd-{'0' * 12}-a-1"}
    one.ticks()
    assert spending.of_month(db, NOW) == pytest.approx(0.75) and not one.asked()
    reserve(db)  # the same job again: only what it cost more is added
    renting.Rent(pod="p", name=f"engramd-{'0' * 12}-a-1", dollars=1.0).write(one.job)
    one.ticks()
    assert spending.of_job(db, "me", 1) == pytest.approx(1.0)
    one.open = set()  # the job is over: its stopped pod is not left there
    one.ticks(100.0)
    assert len(one.asked()) == 1


def test_a_job_that_was_never_sent_has_cost_nothing(tmp_path: Path, db: Database) -> None:
    one = Sweeps(tmp_path, db, {"stands": [], "pods": []})
    reserve(db)
    one.ticks()
    assert spending.of_month(db, NOW) == 0.0


def test_a_meter_that_may_run_is_swept_until_it_stands(tmp_path: Path, db: Database) -> None:
    name = f"engramd-{'0' * 12}-a-1"
    one = Sweeps(tmp_path, db, {"error": "RunPod's API cannot be reached"})
    reserve(db)
    renting.Rent(pod="p", name=name, since=time.time(), until=time.time() + 60, price=2.0).write(one.job)
    one.at_work = True
    one.ticks()
    assert one.asked()[-1]["busy"] == [name] and one.asked()[-1]["attempts"] == []
    one.at_work = False
    one.ticks(100.0)
    one.answers({"stands": [], "pods": []})
    one.ticks(1000.0)
    assert len(spending.open_ones(db)) == 1, "it is not believed to stand"
    one.answers({"stands": [{"name": name, "dollars": 0.5}], "pods": []})
    one.ticks(1000.0)
    assert [len(asked["attempts"]) for asked in one.asked()] == [0, 1, 1, 1]
    assert not spending.open_ones(db) and spending.of_month(db, NOW) == pytest.approx(0.5)


def test_a_courier_that_began_while_a_sweep_was_under_way(tmp_path: Path, db: Database) -> None:
    """What the sweep tells of its attempt is old: the row stays open."""
    name = f"engramd-{'0' * 12}-a-1"
    one = Sweeps(tmp_path, db, {"stands": [{"name": name, "dollars": 0.0}], "pods": []})
    reserve(db)
    renting.Rent(pod="p", name=name, since=time.time(), until=time.time() + 60, price=2.0).write(one.job)
    one.clock += 2.0
    one.sweeper.tick(NOW)
    one.at_work = True
    one.ticks(0.0)
    assert len(one.asked()) == 1 and len(spending.open_ones(db)) == 1


def test_what_nobody_can_tell_is_taken_for_spent(tmp_path: Path, db: Database) -> None:
    name = f"engramd-{'0' * 12}-a-1"
    one = Sweeps(tmp_path, db, {"stands": [{"name": name, "dollars": None}], "pods": []})
    reserve(db)
    one.job.rmdir()
    one.ticks()
    assert spending.of_month(db, NOW) == pytest.approx(5.0) and not spending.open_ones(db)


# -- a pod's own notes ---------------------------------------------------------------------------------


def test_a_pod_is_given_no_more_seconds_than_are_paid_for() -> None:
    told = order(SshSettings(), where="runpod", budget=2.0, until=1e9 + 30 * DAY)
    told = told.model_copy(update={"runpod": told.runpod.model_copy(update={"price_per_hour": 4.0})})
    assert renting.environment(told, 1e9, "")["ENGRAMD_SECONDS"] == "1800"
    assert renting.environment(told.model_copy(update={"until": 1e9 + 600}), 1e9, "")["ENGRAMD_SECONDS"] == "580"


def test_a_pod_costs_up_to_its_end_and_no_longer(tmp_path: Path) -> None:
    rent = renting.Rent(pod="p", name="n", since=1000.0, until=1000.0 + HOUR, price=2.0, dollars=0.5)
    assert rent.spent(1000.0 + HOUR / 2) == pytest.approx(1.5)
    assert rent.spent(1e9) == pytest.approx(2.5)
    rent.write(tmp_path)
    again = renting.read(tmp_path)
    again.stand(1000.0 + HOUR / 2)
    assert again.since is None and again.spent(1e9) == pytest.approx(1.5)
    (tmp_path / renting.FILE).write_text("{")
    assert renting.read(tmp_path) == renting.Rent()
