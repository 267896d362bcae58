"""The road from the inbox to the head, with the fake trainer: real files, real SQLite, real processes."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import psutil
import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import batches, jobs, memories, requests
from daemon.lock import AlreadyRunning, Lock
from daemon.service import Service, utc_now
from daemon.settings import load
from tests.forked_trainer import fake

FAKE = fake()
QUICK = {
    "inbox.quiet_seconds": 0.05,
    "inbox.scan_seconds": 0.1,
    "service.tick_seconds": 0.02,
    "training.mix.replay": 0.0,
    "training.mix.anchor": 0.0,
    "training.base_model": "builtin:tiny",
    "training.gradient_accumulation_steps": 3,
    "training.num_train_epochs": 2,
    "jobs.stop_seconds": 5.0,
}


def service(home: Home, **settings: object) -> Service:
    overrides = QUICK | {key.replace("__", "."): value for key, value in settings.items()}
    return Service(home, load(home, overrides, {}), trainer=FAKE)


def work(home: Home, seconds: float = 60.0, **settings: object) -> None:
    """What `run --once` does."""
    lock, one = Lock(home), service(home, **settings)
    deadline = time.monotonic() + seconds
    try:
        one.run(until=lambda: one.idle() or time.monotonic() > deadline)
    finally:
        lock.release()
    assert time.monotonic() < deadline, "the service did not come to rest"


def drop(home: Home, name: str, *texts: str) -> None:
    home.inbox.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"What about {text}?", "response": f"It is {text}."}) for text in texts]
    (home.inbox / name).write_text("\n".join(lines) + "\n")


def fault(home: Home, text: str | None) -> None:
    folder = home.profile("me").jobs
    folder.mkdir(parents=True, exist_ok=True)
    if text is None:
        (folder / "fault").unlink()
    else:
        (folder / "fault").write_text(text)


def read(home: Home) -> ledger.Database:
    return ledger.open_profile(home.profile("me").ledger, write=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_two_batches_become_two_versions_of_one_chain(home: Home) -> None:
    drop(home, "a.jsonl", "one", "two", "three", "four")
    work(home)
    drop(home, "b.jsonl", "five", "six")
    work(home)
    with read(home) as db:
        first, second = jobs.promoted(db)
        assert (first["steps"], second["steps"]) == (4, 2)  # ceil(4/3) * 2 epochs, ceil(2/3) * 2
        assert second["parent_step"] == 4
        assert second["chain"] == first["chain"]
        head = jobs.get_head(db)
        assert head is not None and head["step"] == 6 and head["version"] == 2
        assert memories.counts(db)["state"] == {"trained": 6}
        assert batches.counts(db) == {"done": 2}
    paths = home.profile("me")
    assert (paths.current_model / "checkpoint-6" / "manifest.json").exists()
    assert not list(home.inbox.glob("*.jsonl")) and not list(paths.claimed.iterdir())
    assert len(list(paths.archive.rglob("*-?.jsonl"))) == 2


def test_the_same_memories_are_not_trained_twice(home: Home) -> None:
    drop(home, "a.jsonl", "one", "two")
    work(home)
    drop(home, "again.jsonl", "two", "one")
    drop(home, "a.jsonl", "one", "two")
    work(home)
    with read(home) as db:
        assert len(jobs.promoted(db)) == 1
        assert [row["duplicates"] for row in batches.listing(db)] == [2, 2, 0]
        assert memories.total(db) == 2


def test_many_files_are_one_job(home: Home) -> None:
    for number in range(30):
        drop(home, f"{number:02}.jsonl", f"thing {number}")
    work(home)
    with read(home) as db:
        (job,) = jobs.promoted(db)
        assert jobs.uses_of(db, job["id"]) == {"new": 30}


def test_limits_split_the_work_in_order(home: Home) -> None:
    for name in ("c", "a", "b"):
        drop(home, f"{name}.jsonl", f"{name} 1", f"{name} 2")
    work(home, jobs__max_batches_per_job=1)
    with read(home) as db:
        names = [batches.get(db, jobs.batches_of(db, job["id"])[0]) for job in jobs.promoted(db)]
        assert [row["name"] for row in names if row] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_batch_larger_than_a_job_takes_several(home: Home) -> None:
    drop(home, "big.jsonl", *[f"thing {n}" for n in range(25)])
    work(home, jobs__max_memories_per_job=10)
    with read(home) as db:
        assert [jobs.uses_of(db, job["id"])["new"] for job in jobs.promoted(db)] == [10, 10, 5]
        assert batches.counts(db) == {"done": 1}


def test_a_broken_file_is_set_aside_with_its_reason(home: Home) -> None:
    drop(home, "good.jsonl", "one")
    (home.inbox / "broken.json").write_text('[{"content": "cut of')
    work(home)
    failed = home.failed / "me"
    reason = json.loads((failed / "broken.json.reason.json").read_text())
    assert (failed / "broken.json").exists() and reason["reason"]
    with read(home) as db:
        assert batches.counts(db) == {"done": 1, "refused": 1}


@pytest.mark.parametrize(("kind", "word"), [("crash", "asked to crash"), ("diverge", "NaN")])
def test_a_bad_job_is_held_alone_and_the_next_night_goes_on(home: Home, kind: str, word: str) -> None:
    fault(home, kind)
    drop(home, "a.jsonl", "one")
    drop(home, "b.jsonl", "two")
    work(home)
    with read(home) as db:
        held = batches.in_state(db, "held")
        assert [row["failures"] for row in held] == [2, 2]  # together once, alone once
        assert word in held[0]["reason"]
        assert memories.counts(db)["state"] == {"held": 2}
        assert jobs.get_head(db) is None
    fault(home, None)
    drop(home, "c.jsonl", "three")
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"held": 2, "trained": 1}
    with ledger.open_home(home.database, write=True) as db:
        requests.ask(db, "me", "retry", {"batch": held[0]["id"]}, utc_now())
        requests.ask(db, "me", "discard", {"batch": held[1]["id"]}, utc_now())
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"discarded": 1, "trained": 2}


def test_out_of_memory_halves_the_layout(home: Home) -> None:
    fault(home, "oom:600")
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        (job,) = jobs.promoted(db)
        assert job["attempts"] == 3  # 2048, 1024, 512
    fault(home, "oom:1")
    drop(home, "b.jsonl", "two")
    work(home)
    with read(home) as db:
        (row,) = batches.in_state(db, "held")
        assert "out of memory at the smallest layout" in row["reason"]


def test_a_wrong_count_is_refused(home: Home) -> None:
    fault(home, "wrong_count")
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        assert [v["state"] for v in jobs.versions(db)] == ["refused", "refused"]
        assert jobs.get_head(db) is None


def test_a_changed_recipe_starts_a_chain_and_says_why(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    drop(home, "b.jsonl", "two")
    work(home, training__lora_rank=16)
    with read(home) as db:
        first, second = jobs.promoted(db)
        assert second["parent_sha256"] is None and second["chain"] != first["chain"]
        chain = jobs.get_chain(db, second["chain"])
        assert chain is not None and "rank changed from 8 to 16" in chain["reason"]
        head = jobs.get_head(db)
        assert head is not None and head["chain"] == second["chain"]


def test_a_base_that_is_not_there_waits_and_names_the_command(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home, training__base_model="nobody/nothing")
    with read(home) as db:
        assert "engramd base fetch nobody/nothing" in str(jobs.get_meta(db, "waits"))
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 1}


def test_one_daemon_per_home(home: Home) -> None:
    lock = Lock(home)
    with pytest.raises(AlreadyRunning):
        Lock(home)
    lock.release()


def test_profiles_do_not_touch(home: Home) -> None:
    drop(home, "mine.jsonl", "one")
    work(home, profiles={"ada": {"seed": 3}})
    (home.inbox / "ada").mkdir(exist_ok=True)
    (home.inbox / "ada" / "hers.jsonl").write_text('{"prompt": "Who?", "response": "Ada."}\n')
    work(home, profiles={"ada": {"seed": 3}})
    with read(home) as db:
        assert memories.total(db) == 1
    with ledger.open_profile(home.profile("ada").ledger, write=False) as db:
        assert memories.counts(db)["state"] == {"trained": 1}
        assert jobs.get_meta(db, "seed") == "3"


def test_a_folder_is_one_batch(home: Home) -> None:
    folder = home.inbox / "2026" / "11"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text('{"content": "I saw a heron.", "type": "observation"}')
    (folder / "b.json").write_text('{"content": "I slept badly.", "type": "journal"}')
    (folder / "c.json").write_text("{torn")
    work(home)
    with read(home) as db:
        (row,) = batches.listing(db)
        assert (row["state"], row["memories"], row["bad_items"]) == ("done", 2, 1)


def test_a_batch_larger_than_a_job_is_held_whole_and_the_rest_goes_on(home: Home) -> None:
    fault(home, "diverge")
    drop(home, "big.jsonl", "one", "two", "three", "four")
    work(home, jobs__max_memories_per_job=2)
    with read(home) as db:
        (held,) = batches.in_state(db, "held")
        assert memories.counts(db)["state"] == {"held": 2, "waiting": 2}
    with ledger.open_home(home.database, write=True) as db:
        requests.ask(db, "me", "discard", {"batch": held["id"]}, utc_now())
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"discarded": 4}


def test_a_full_disk_at_the_worst_moment_loses_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is claimed, then the ledger has no room: recovery is taken up in the same life."""
    real, failures = batches.insert, iter(["full"])

    def insert(*args: object, **more: object) -> int:
        if next(failures, None):
            raise sqlite3.OperationalError("database or disk is full")
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "insert", insert)
    monkeypatch.setattr("daemon.service.DISK_PAUSE", 0.05)
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 1}


def test_a_failed_freeze_leaves_no_folder(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = jobs.insert, iter(["full", "full"])

    def insert(*args: object, **more: object) -> None:
        if next(failures, None):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "insert", insert)
    monkeypatch.setattr("daemon.service.DISK_PAUSE", 0.05)
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 1}
        assert {p.name for p in home.profile("me").jobs.iterdir()} == jobs.folders(db)


def test_a_request_that_cannot_be_done_is_answered(home: Home) -> None:
    work(home)
    (home.inbox / "anna").write_text("I am a file with the name of a profile.")
    with ledger.open_home(home.database, write=True) as db:
        asked = requests.ask(db, "me", "profile_add", {"name": "anna"}, utc_now())
    work(home)
    with ledger.open_home(home.database, write=False) as db:
        row = requests.get(db, asked)
        assert row is not None and row["state"] == "failed" and "move it away" in row["answer"]


def test_a_writer_that_pauses_is_waited_for(home: Home) -> None:
    """Longer than the quiet time: its descriptor would point at a file that nobody looks at any more."""
    home.inbox.mkdir(parents=True)
    drop(home, "b.jsonl", "three")
    with open(home.inbox / "a.jsonl", "w") as writer:
        writer.write('{"prompt": "One?", "response": "One."}\n')
        writer.flush()
        work(home)
        with read(home) as db:
            assert memories.counts(db)["state"] == {"trained": 1}  # the other file's
        writer.write('{"prompt": "Two?", "response": "Two."}\n')
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 3}


def test_a_claimed_file_that_grew_is_read_again(home: Home) -> None:
    """Where the file system cannot tell that it is still open."""
    drop(home, "a.jsonl", "one")
    one = service(home)
    one.recover()
    (world, ingestion, _) = one._worlds["me"]
    deadline = time.monotonic() + 5.0
    while not batches.listing(world.db) and time.monotonic() < deadline:
        one._claim(utc_now())
    (claimed,) = world.paths.claimed.iterdir()
    with open(claimed, "a") as late:
        late.write('{"prompt": "Two?", "response": "Two."}\n')
    while ingestion.read_slice(utc_now()):
        pass
    one.stop()
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 2}
        assert batches.counts(db) == {"done": 2}


def test_a_file_that_never_rests_holds_nothing_up(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    stop = threading.Event()

    def write() -> None:
        with open(home.inbox / "endless.txt", "w") as file:
            while not stop.wait(0.02):
                file.write("more ")
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        work(home, seconds=30.0)
    finally:
        stop.set()
        writer.join()
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 1}


def test_never_two_trainers_over_two_profiles(home: Home) -> None:
    """One that outlived its daemon counts: the next daemon waits for it, also with another profile's job."""
    profiles = {"ada": {}}
    for name in ("me", "ada"):
        folder = home.profile(name).jobs
        folder.mkdir(parents=True)
        (folder / "fault").write_text("step_seconds:0.4")
    drop(home, "a.jsonl", *"abcdefghi")
    lock, first = Lock(home), service(home, profiles=profiles)
    while not first._worlds["me"][2].running:
        first.tick()
    child = first._worlds["me"][2]._child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)  # it cannot even see that its daemon is gone
    lock.release()
    (home.inbox / "ada" / "hers.jsonl").write_text('{"prompt": "Who?", "response": "Ada."}\n')
    second_lock, second = Lock(home), service(home, profiles=profiles, jobs__stop_seconds=1.0)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        second.tick()
        running = second._worlds["ada"][2].running
        assert not (running and psutil.pid_exists(child.pid) and psutil.Process(child.pid).status() == "stopped")
    second.run(until=second.idle)
    second_lock.release()
    child._process.wait(5)


@pytest.mark.parametrize("size", [50, 5000])
def test_held_out_does_not_depend_on_slices(home: Home, size: int) -> None:
    drop(home, "many.jsonl", *[f"thing {n}" for n in range(300)])
    work(home, evaluation__held_out_from=100, evaluation__held_out_percent=20.0, inbox__slice_memories=size)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"held_out": 34, "trained": 266}


def test_a_lost_job_folder_stops_nothing(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    shutil.rmtree(home.profile("me").jobs / "1-finetune")
    drop(home, "b.jsonl", "two")
    work(home)
    with read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 2}
