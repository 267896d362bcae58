"""The schedule at work: claims, waits, failures, kills, what follows on what, requests, and the command."""

import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from daemon import ledger
from daemon.__main__ import main
from daemon.home import Home
from daemon.ledger import Database, requests, slots
from daemon.lock import Lock
from daemon.schedule import Do, Schedule, Unfinished, Waits, zone_of
from daemon.service import Service
from daemon.settings import load
from daemon.settings_sections import ScheduleSettings


@dataclass
class Clock:
    at: datetime = datetime(2026, 5, 1, 12, tzinfo=UTC)
    timer: float = 0.0

    def now(self) -> str:
        return self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def set(self, text: str) -> None:
        self.at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        self.timer += 31.0


@dataclass
class Tasks:
    """What is asked of the service, noted; what a task raises or says can be set."""

    answers: dict[str, list[str | BaseException]] = field(default_factory=dict)
    called: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, task: str, profile: str) -> str:
        self.called.append((task, profile))
        answer = self.answers[task].pop(0) if self.answers.get(task) else "done it"
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def db(home: Home) -> Iterator[Database]:
    with ledger.open_home(home.database, write=True) as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


def schedule(db: Database, clock: Clock, doable: str = "snapshot verify", **settings: Any) -> Schedule:
    given = {"timezone": "UTC", "prune_after_snapshot": False} | settings
    given["cycles"] = {"monthly": {"when": "off"}} | given.get("cycles", {})
    made = ScheduleSettings.model_validate(given)
    return Schedule(db, made, doable.split(), now=clock.now, clock=lambda: clock.timer)


def serve(one: Schedule, do: Do, profiles: tuple[str, ...] = ("me",)) -> None:
    """Ticks until nothing is left to do now."""
    for _ in range(100):
        if not one.serve(profiles, do):
            return
    raise AssertionError("the schedule did not come to rest")


def rows(db: Database) -> list[tuple[str, str, str, str | None]]:
    found = db.all("SELECT * FROM slots ORDER BY claimed_at, slot, task")
    return [(row["task"], row["slot"], row["state"], row["outcome"]) for row in found]


def test_the_first_start_runs_nothing_of_before_and_then_each_slot_once(
    db: Database, clock: Clock, tasks: Tasks
) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    assert tasks.called == []
    clock.set("2026-05-02T03:00")
    serve(one, tasks)
    serve(one, tasks)
    assert tasks.called == [("snapshot", "me")]
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "done", "done it")]
    clock.set("2026-05-05T08:00")  # the machine was off
    serve(schedule(db, clock), tasks)
    assert tasks.called == [("snapshot", "me"), ("verify", "me"), ("snapshot", "me")]
    assert rows(db)[1:] == [
        ("verify", "2026-05-03T04:30", "done", "done it"),
        ("snapshot", "2026-05-05T03:00", "done", "done it; it stands for 2 that were missed before"),
    ]


def test_between_two_looks_nothing_is_computed(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    clock.at += timedelta(days=1)
    clock.timer += 29.0
    serve(one, tasks)
    assert tasks.called == []
    clock.timer += 1.0
    serve(one, tasks)
    assert tasks.called == [("snapshot", "me")]


def test_each_profile_has_its_own_slots(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks, ("me", "ada"))
    clock.set("2026-05-02T03:00")
    serve(one, tasks, ("me", "ada"))
    assert tasks.called == [("snapshot", "me"), ("snapshot", "ada")]


def test_a_clock_set_back_runs_nothing_twice(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    for now in ("2026-05-02T03:00", "2026-05-01T01:00", "2026-05-01T03:00", "2026-05-02T03:00", "2026-05-02T23:00"):
        clock.set(now)
        serve(one, tasks)
    assert [row[1] for row in rows(db)] == ["2026-05-02T03:00"]
    assert len(tasks.called) == 1


def test_a_clock_that_was_years_ahead_does_not_end_the_nights(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock, verify="off")
    serve(one, tasks)
    for now in ("2030-01-01T12:00", "2026-05-01T12:10", "2026-05-02T03:00", "2026-05-03T03:00"):
        clock.set(now)
        serve(one, tasks)
    assert [row[1] for row in rows(db)] == ["2026-05-02T03:00", "2026-05-03T03:00", "2030-01-01T03:00"]
    clock.set("2030-01-01T04:00")
    serve(one, tasks)
    assert len(tasks.called) == 3  # its own slot is served


def test_a_clock_a_few_hours_wrong_does_not_undo_what_was_caught_up(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock, verify="off")
    serve(one, tasks)
    for now in ("2026-05-04T04:00", "2026-05-04T02:00", "2026-05-04T03:00"):  # it starts two hours ahead
        clock.set(now)
        serve(one, tasks)
    assert [row[1] for row in rows(db)] == ["2026-05-04T03:00"]


def test_a_first_start_under_a_clock_of_the_future_is_forgotten(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    clock.set("2036-05-01T12:00")
    serve(one, tasks)
    for now in ("2026-05-01T12:00", "2026-05-02T03:00"):
        clock.set(now)
        serve(one, tasks)
    assert tasks.called == [("snapshot", "me")]


def test_a_new_expression_counts_from_when_it_was_set(db: Database, clock: Clock, tasks: Tasks) -> None:
    serve(schedule(db, clock, snapshot="daily 03:00", verify="off"), tasks)
    clock.set("2026-05-02T12:00")
    serve(schedule(db, clock, snapshot="daily 11:00", verify="off"), tasks)
    assert tasks.called == []
    clock.set("2026-05-03T11:00")
    changed = schedule(db, clock, snapshot="daily 11:00", verify="off")
    serve(changed, tasks)
    clock.set("2026-05-03T12:00")
    serve(schedule(db, clock, snapshot="daily 11:30", verify="off"), tasks)
    assert tasks.called == [("snapshot", "me")]  # one a day, whatever the settings say


def test_a_task_that_comes_back_into_the_schedule_begins_anew(db: Database, clock: Clock, tasks: Tasks) -> None:
    serve(schedule(db, clock), tasks)
    clock.set("2026-05-02T12:00")
    serve(schedule(db, clock, doable="verify"), tasks)
    clock.set("2026-05-04T12:00")
    serve(schedule(db, clock), tasks)
    assert ("snapshot", "me") not in tasks.called


def test_what_waits_says_why_and_is_tried_again(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    tasks.answers["snapshot"] = [Waits("only 3 GB are free"), Waits("only 3 GB are free", again=600.0)]
    clock.set("2026-05-02T03:00")
    serve(one, tasks)
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "claimed", "waits: only 3 GB are free")]
    assert not one.busy
    clock.timer += 30.0
    serve(one, tasks)
    clock.timer += 599.0
    serve(one, tasks)
    assert len(tasks.called) == 2
    clock.timer += 1.0
    assert one.busy
    serve(one, tasks)
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "done", "done it")]


def test_a_wait_outlives_the_daemon_without_counting_as_a_kill(db: Database, clock: Clock, tasks: Tasks) -> None:
    serve(schedule(db, clock), tasks)
    tasks.answers["snapshot"] = [Waits("the disk is full")] * 3
    clock.set("2026-05-02T03:00")
    for _ in range(4):
        one = schedule(db, clock)
        one.recover()
        serve(one, tasks)
    assert len(tasks.called) == 4
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "done", "done it")]


def test_what_still_waits_when_the_next_comes_is_passed_over(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    tasks.answers["snapshot"] = [Waits("the disk is full")]
    for now in ("2026-05-02T03:00", "2026-05-03T03:00"):
        clock.set(now)
        serve(one, tasks)
    passed, done = rows(db)
    assert passed[2:] == ("failed", "it waited until the next one came, which stands for it")
    assert done == ("snapshot", "2026-05-03T03:00", "done", "done it")
    assert len(tasks.called) == 2


def test_work_in_slices_lets_others_pass(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock, verify="daily 02:00")
    serve(one, tasks)
    tasks.answers["verify"] = [Unfinished("1 of 3"), Unfinished("2 of 3"), "3 of 3"]
    clock.set("2026-05-02T03:00")
    assert one.serve(["me"], tasks) and one.busy
    assert rows(db)[0] == ("verify", "2026-05-02T02:00", "claimed", "waits: 1 of 3")
    serve(one, tasks)
    assert [name for name, _ in tasks.called] == ["verify", "snapshot", "verify", "verify"]
    assert rows(db)[0] == ("verify", "2026-05-02T02:00", "done", "3 of 3")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("it is\nbroken"), "it is broken"),
        (RuntimeError(), "RuntimeError"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), "No such file or directory: /x/y"),
    ],
)
def test_a_task_that_fails_ends_nothing(db: Database, clock: Clock, tasks: Tasks, error: Exception, said: str) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    tasks.answers["snapshot"] = [error]
    for now in ("2026-05-02T03:00", "2026-05-02T04:00", "2026-05-03T03:00"):
        clock.set(now)
        serve(one, tasks)
    assert rows(db) == [
        ("snapshot", "2026-05-02T03:00", "failed", said), ("snapshot", "2026-05-03T03:00", "done", "done it"),
    ]  # fmt: skip


def test_a_full_disk_is_waited_for(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    tasks.answers["snapshot"] = [OSError(errno.ENOSPC, "No space left on device", "/x")]
    clock.set("2026-05-02T03:00")
    serve(one, tasks)
    (row,) = rows(db)
    assert row[3] == "waits: No space left on device (/x): free some space; it goes on by itself"
    clock.timer += 30.0
    serve(one, tasks)
    assert rows(db)[0][2] == "done"


def test_a_killed_daemons_claim_is_taken_up_once(db: Database, clock: Clock, tasks: Tasks) -> None:
    serve(schedule(db, clock), tasks)
    tasks.answers["snapshot"] = [KeyboardInterrupt(), "done it now"]
    clock.set("2026-05-02T03:00")
    with pytest.raises(KeyboardInterrupt):
        serve(schedule(db, clock), tasks)
    assert rows(db)[0][2] == "claimed"
    for _ in range(2):
        one = schedule(db, clock)
        one.recover()
        serve(one, tasks)
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "done", "done it now")]
    assert len(tasks.called) == 2


def test_what_kills_the_daemon_each_time_does_not_do_so_for_ever(db: Database, clock: Clock, tasks: Tasks) -> None:
    serve(schedule(db, clock), tasks)
    tasks.answers["snapshot"] = [KeyboardInterrupt(), KeyboardInterrupt()]
    clock.set("2026-05-02T03:00")
    for _ in range(2):
        one = schedule(db, clock)
        one.recover()
        with pytest.raises(KeyboardInterrupt):
            serve(one, tasks)
    one = schedule(db, clock)
    one.recover()
    serve(one, tasks)
    assert rows(db) == [("snapshot", "2026-05-02T03:00", "failed", "the daemon was killed twice while at it")]


def test_pruning_follows_on_a_snapshot_and_on_nothing_else(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock, doable="snapshot prune verify", prune_after_snapshot=True)
    serve(one, tasks)
    tasks.answers["snapshot"] = [ValueError("no")]
    for now in ("2026-05-02T03:00", "2026-05-03T03:00", "2026-05-03T04:30"):
        clock.set(now)
        serve(one, tasks)
    assert [name for name, _ in tasks.called] == ["snapshot", "snapshot", "prune", "verify"]
    assert ("prune", "2026-05-03T03:00", "done", "done it") in rows(db)


def test_a_cycle_is_asked_for_once_with_its_own_selection(db: Database, clock: Clock, tasks: Tasks) -> None:
    cycles = {
        "long": {"when": "1st 03:30", "kind": "foundation", "method": "full", "profile": "ada"},
        "short": {"when": "every 2 weeks on fri from 2026-05-08", "mode": "agent", "days_recent": 14},
    }
    one = schedule(db, clock, cycles=cycles)
    serve(one, tasks, ("me", "ada"))
    for now in ("2026-06-01T03:29", "2026-06-01T03:30", "2026-06-01T03:31"):
        clock.set(now)
        serve(schedule(db, clock, cycles=cycles), tasks, ("me", "ada"))
    asked = [(row["profile"], json.loads(row["arguments"])) for row in requests.open_ones(db)]
    assert [(who, what["name"], what["slot"]) for who, what in asked] == [
        ("me", "short", "2026-05-22T03:30"), ("ada", "short", "2026-05-22T03:30"), ("ada", "long", "2026-06-01T03:30"),
    ]  # fmt: skip
    assert asked[0][1] == {
        "name": "short", "slot": "2026-05-22T03:30", "kind": "monthly", "method": "", "mode": "agent",
        "days_recent": 14, "old_samples": None, "max_samples": None, "dataset_builder": "", "where": "",
    }  # fmt: skip
    assert ("long", "2026-06-01T03:30", "done", "asked for: request 3") in rows(db)
    assert all(row["command"] == "cycle" for row in requests.open_ones(db))


# -- by hand ----------------------------------------------------------------------------------------


def by_hand(db: Database, clock: Clock, task: str) -> dict[str, Any]:
    asked = requests.ask(db, "me", "schedule_run", {"task": task}, clock.now())
    return requests.get(db, asked) or {}


def test_by_hand_is_no_slot(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    serve(one, tasks)
    clock.set("2026-05-02T01:00")
    request = by_hand(db, clock, "snapshot")
    assert one.run_now(request, "snapshot", tasks) == {"task": "snapshot", "profile": "me", "outcome": "done it"}
    assert one.run_now(request, "snapshot", tasks) is not None  # the daemon died before it could say so
    assert len(tasks.called) == 1
    clock.set("2026-05-02T03:00")
    serve(one, tasks)
    assert [row[1][:10] for row in rows(db)] == ["hand 2026-", "2026-05-02"]


def test_by_hand_says_why_not_and_what_there_is(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock, cycles={"long": {}})
    tasks.answers["verify"] = [Waits("a job runs"), ValueError("no snapshot is there")]
    with pytest.raises(ValueError, match="a job runs"):
        one.run_now(by_hand(db, clock, "verify"), "verify", tasks)
    with pytest.raises(ValueError, match="no snapshot is there"):
        one.run_now(by_hand(db, clock, "verify"), "verify", tasks)
    with pytest.raises(ValueError, match="no task 'dance' in the schedule; there is snapshot, verify, monthly, long"):
        one.run_now(by_hand(db, clock, "dance"), "dance", tasks)
    answer = one.run_now(by_hand(db, clock, "long"), "long", tasks)
    assert answer and answer["outcome"].startswith("asked for: request ")
    assert [row[2] for row in rows(db)] == ["failed", "failed", "done"]


def test_by_hand_in_slices_over_a_restart(db: Database, clock: Clock, tasks: Tasks) -> None:
    tasks.answers["verify"] = [Unfinished("1 of 2"), Unfinished("2 of 2")]
    request = by_hand(db, clock, "verify")
    assert schedule(db, clock).run_now(request, "verify", tasks) is None
    later = schedule(db, clock)
    later.recover()
    assert later.run_now(request, "verify", tasks) is None
    assert later.run_now(request, "verify", tasks) == {"task": "verify", "profile": "me", "outcome": "done it"}


# -- the punctual call ------------------------------------------------------------------------------


def test_apscheduler_calls_at_the_instant_and_only_wakes(db: Database) -> None:
    called, threads = threading.Event(), []

    def wake() -> None:
        threads.append(threading.current_thread().name)
        called.set()

    one = Schedule(
        db, ScheduleSettings(), ["snapshot"], now=lambda: datetime.now(UTC).isoformat(), clock=lambda: 0.0, wake=wake
    )
    one.start()
    try:
        instant = datetime.now(UTC) + timedelta(seconds=0.3)
        one._look_now = False
        one._call_me_at(instant)
        assert called.wait(10) and datetime.now(UTC) >= instant
        assert one._look_now and threads == ["APScheduler"]
        called.clear()
        one._call_me_at(datetime.now(UTC) - timedelta(days=1))  # missed: called once all the same
        assert called.wait(10)
        assert len(threads) == 2
    finally:
        one.stop()
    assert not any(thread.name == "APScheduler" for thread in threading.enumerate())


def test_after_a_look_the_call_is_for_the_next_slot(db: Database, clock: Clock, tasks: Tasks) -> None:
    one = schedule(db, clock)
    one.start()
    try:
        clock.at = datetime.now(UTC)
        serve(one, tasks)
        (job,) = one._scheduler.get_jobs()
        assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (None, True, 1)
        tomorrow = clock.at + timedelta(days=1)
        nights = [day.replace(hour=3, minute=0, second=0, microsecond=0) for day in (clock.at, tomorrow)]
        assert job.next_run_time <= next(night for night in nights if night > clock.at)
    finally:
        one.stop()


def test_the_zone_of_the_machine_is_taken_where_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(zone_of("Asia/Kathmandu")) == "Asia/Kathmandu"
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    assert str(zone_of("")) == "Pacific/Chatham"
    monkeypatch.setenv("TZ", "No/Where")
    assert zone_of("") is UTC


# -- in the service ---------------------------------------------------------------------------------

QUICK = {"inbox.quiet_seconds": 0.0, "service.tick_seconds": 0.01, "schedule.timezone": "UTC"}


def night(home: Home, clock: Clock, said: list[str], *, scheduled: bool = True) -> None:
    """What `run --once` does, with one task."""
    lock = Lock(home)
    one = Service(home, load(home, QUICK, {}), now=clock.now, scheduled=scheduled)

    def snapshot(world: Any, now: str) -> str:
        said.append(f"{world.name} {now}")
        return f"snapshot of {world.name}"

    one._tasks["snapshot"] = snapshot
    try:
        one.run(until=one.idle)
    finally:
        lock.release()


def test_the_service_does_what_is_due_before_it_comes_to_rest(home: Home, clock: Clock) -> None:
    said: list[str] = []
    night(home, clock, said)
    clock.set("2026-05-02T03:00")
    night(home, clock, said, scheduled=False)  # a command that wants something else
    assert said == []
    night(home, clock, said)
    night(home, clock, said)
    assert said == ["me 2026-05-02T03:00:00.000Z"]
    with ledger.open_home(home.database, write=False) as db:
        assert [row for row in rows(db) if row[0] != "prune"] == [
            ("snapshot", "2026-05-02T03:00", "done", "snapshot of me")
        ]
        assert ("prune", "2026-05-02T03:00", "done", "0 of 0 things removed, 0 bytes freed") in rows(db)


def test_the_service_answers_schedule_run(home: Home, clock: Clock) -> None:
    with ledger.open_home(home.database, write=True) as db:
        asked = [requests.ask(db, "me", "schedule_run", {"task": name}, clock.now()) for name in ("snapshot", "dance")]
    said: list[str] = []
    night(home, clock, said, scheduled=False)
    with ledger.open_home(home.database, write=False) as db:
        first, second = (requests.get(db, number) or {} for number in asked)
    assert json.loads(first["answer"])["outcome"] == "snapshot of me" and len(said) == 1
    assert second["state"] == "failed" and "snapshot" in second["answer"]


# -- the command ------------------------------------------------------------------------------------


def told(home: Home, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["schedule", "--json", "--home", str(home.root), "--set", "schedule.timezone=UTC", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_schedule_on_a_fresh_home(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(home, capsys, "--set", "schedule.verify=off")
    assert found["zone"] == "UTC" and found["daemon"] == {"running": False, "pid": None}
    by_name = {one["task"]: one for one in found["tasks"]}
    assert by_name.keys() == {"snapshot", "prune", "verify", "monthly"}
    assert by_name["monthly"]["when"] == "1st 03:30"
    assert by_name["snapshot"]["next_slot"].endswith("T03:00") and by_name["snapshot"]["state"] is None
    assert by_name["prune"]["when"] == "after snapshot"
    assert by_name["prune"]["next_run"] == by_name["snapshot"]["next_run"]
    assert (by_name["verify"]["when"], by_name["verify"]["next_slot"]) == ("off", None)
    assert not home.database.exists()


def test_schedule_tells_last_next_and_why_it_waits(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    now = datetime.now(UTC).replace(microsecond=0)
    days = [(now - timedelta(days=number)).date().isoformat() for number in range(5)]
    begun = [f"{day}T03:00:01.000Z" for day in days]
    slots.in_force_since(db, "snapshot", "me", "daily 03:00", now - timedelta(days=9))
    slots.claim(db, "snapshot", "me", f"{days[4]}T03:00", begun[4], begun[4])
    slots.finish(db, "snapshot", "me", f"{days[4]}T03:00", "12 files", begun[4], then="prune")
    slots.wait(db, "prune", "me", f"{days[4]}T03:00", "a job runs")
    by_name = {one["task"]: one for one in told(home, capsys)["tasks"]}
    snapshot = by_name["snapshot"]
    assert (snapshot["state"], snapshot["outcome"], snapshot["last_run"]) == ("done", "12 files", begun[4])
    assert snapshot["due"] and snapshot["missed"] in (2, 3)  # before three o'clock it is one less
    assert (by_name["prune"]["waits"], by_name["prune"]["outcome"]) == ("a job runs", None)
    assert main(["schedule", "--home", str(home.root), "--set", "schedule.timezone=UTC"]) == 0
    text = capsys.readouterr().out
    assert "12 files" in text and "(due)" in text and "waits: a job runs" in text and "No daemon runs" in text


def test_a_cycle_is_in_the_list_for_its_profile(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--set", 'schedule.cycles.long={"when": "quarterly", "profile": "ada"}', "--set", "profiles.ada.seed=1")
    found = told(home, capsys, *more)
    assert [(one["task"], one["profile"]) for one in found["tasks"] if one["task"] == "long"] == [("long", "ada")]
    assert {one["profile"] for one in told(home, capsys, *more, "--profile", "me")["tasks"]} == {"me"}
    assert main(["schedule", "--home", str(home.root), "--profile", "bob"]) == 3
    assert "engramd profile add bob" in capsys.readouterr().err


def test_schedule_run_says_what_is_wrong(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--home", str(home.root), "--set", "inbox.quiet_seconds=0.05"]
    assert main(["schedule", "run", *where]) == 2
    assert "which task?" in capsys.readouterr().err
    assert main(["schedule", "run", "dance", *where]) == 1
    said = capsys.readouterr().err
    assert "there is no task 'dance' in the schedule" in said and said.count("\n") == 1


def test_several_times_of_a_day_are_said(home: Home) -> None:
    settings = load(home, {"schedule.snapshot": "0 */6 * * *", "schedule.cycles.long.when": "5 4 * * *"}, {})
    (notice,) = settings.notices
    assert notice == 'schedule.snapshot = "0 */6 * * *" names several times of a day; engramd takes the first, 00:00'
