"""Cycles: what they select, what is new in them, and what the books say afterwards."""

import json
from pathlib import Path

import pytest

from daemon import ledger
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import jobs, memories, requests
from daemon.service import Service
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import FAKE, QUICK, drop, service, work


@pytest.fixture
def base(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A home with two nights behind it, and the options of the command line."""
    monkeypatch.setitem(Service.__init__.__kwdefaults__, "trainer", FAKE)  # of commands that do the work themselves
    for number in range(2):
        drop(home, f"{number}.jsonl", f"thing {number} one", f"thing {number} two")
        work(home)
    return ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]


def cycle(home: Home, **asked: object) -> dict[str, object]:
    """Asked for as the clock does, and done by the service."""
    from daemon.lock import Lock

    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, "me", "cycle", asked, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home)
    one.run(until=lambda: (requests.get(one._db, number) or {}).get("state") in ("done", "failed"))
    lock.release()
    with ledger.open_home(home.database, write=False) as db:
        row = requests.get(db, number)
    assert row is not None
    return json.loads(row["answer"])  # type: ignore[no-any-return]


def uses(home: Home, job: int) -> dict[str, int]:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return jobs.uses_of(db, job)


def test_a_monthly_cycle_goes_on_with_the_head(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, "new.jsonl", "thing new")
    told = cycle(home, kind="monthly")
    assert (told["state"], told["version"]) == ("promoted", 4)  # what was dropped was trained as a night's before it
    assert uses(home, 4) == {"replay": 5}
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        job = jobs.get(db, 4)
        assert job is not None and job["parent_step"] > 0 and memories.trained_exactly_once(db) == 5
        selected = json.loads(job["cycle"])
    assert (selected["kind"], selected["recent"], selected["seed"]) == ("monthly", 5, 0)
    assert audit_is_clean(home, capsys)
    drop(home, "later.jsonl", "thing later")
    work(home)
    assert head(home)["version"] == 5  # type: ignore[index]
    assert audit_is_clean(home, capsys)


def test_a_foundation_begins_a_new_chain(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = cycle(home, kind="foundation")
    assert told["state"] == "promoted" and uses(home, 3) == {"replay": 4}
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        job, chain = jobs.get(db, 3), jobs.get_chain(db, 2)
    assert job is not None and (job["chain"], job["parent_step"], job["parent_sha256"]) == (2, 0, None)
    assert chain is not None and chain["reason"] == "a foundation begins anew from the base"
    assert audit_is_clean(home, capsys)


def test_what_waits_is_new_in_a_cycle(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE memories SET state='waiting' WHERE seq IN (SELECT memory FROM job_memories WHERE job=2)")
        db.execute("UPDATE batches SET state='read' WHERE id=2")
        db.execute("DELETE FROM job_memories WHERE job=2")
    from daemon import cycles
    from tests.unit.test_pruning import opened

    world = opened(home)
    try:
        material = cycles.select(world, 1, {"kind": "monthly"}, "2026-11-21T08:00:00Z")
        assert material.rehearsed == {1, 2} and [row[0] for row in material.rows] == [1, 2, 3, 4]
        few = cycles.select(world, 1, {"kind": "monthly", "max_samples": 3}, "2026-11-21T08:00:00Z")
        assert [row[0] for row in few.rows] == [2, 3, 4]  # the newest stay
        assert few.cycle and few.cycle["most"] == 3
    finally:
        world.db.close()


def test_the_same_selection_gives_the_same_dataset(home: Home, base: list[str]) -> None:
    for _ in range(2):
        cycle(home, kind="monthly", days_recent=30, old_samples=10)
    folders = home.profile("me").jobs
    one, two = ((folders / f"{number}-finetune" / "samples.jsonl").read_bytes() for number in (3, 4))
    assert one == two


def test_another_method_and_an_empty_selection_are_sentences(home: Home, base: list[str]) -> None:
    assert "the nights of this profile train with method lora" in str(cycle(home, kind="monthly", method="full"))
    assert "no memory that it selects" in str(cycle(home, kind="monthly", mode="agent"))


def test_the_command_line(
    home: Home, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*base, "cycle", "--wait", "--json"]) == 0
    told = json.loads("{" + capsys.readouterr().out.partition("{")[2])
    assert (told["kind"], told["state"], told["version"]) == ("monthly", "promoted", 3)
    with pytest.raises(UserError, match="train with method lora"):
        main([*base, "cycle", "--method", "full"])
    with pytest.raises(UserError, match="nothing was trained"):
        main([*base, "cycle", "--strict", "--wait"])
    assert head(home)["version"] == 3  # type: ignore[index]


def test_a_dry_run_tells_the_exact_steps(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*base, "cycle", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert head(home)["version"] == 2  # type: ignore[index]
    told = cycle(home, kind="monthly")
    assert planned["steps"] == told["steps"] > 0 and planned["disk_bytes"] > 0


def test_the_draw_is_seeded_even_and_the_same_every_time(tmp_path: Path) -> None:
    from daemon.ledger.selection import select
    from daemon.rules.selection import Window

    with ledger.open_profile(tmp_path / "ledger.db", write=True) as db:
        with db.transaction():
            db.execute("INSERT INTO batches (id,sha256,name,path,size,state,claimed_at) VALUES (1,'','','',0,'x','')")
            db.executemany(
                "INSERT INTO memories (seq,id,batch,state,type,source,time,content) VALUES (?,?,1,?,'','',?,'')",
                [(n, n.to_bytes(4, "big"), "waiting" if n % 10 == 0 else "discarded" if n % 10 == 1 else "trained",
                  None if n == 2 else f"2026-{1 + n // 1000:02}-01T00:00:00Z") for n in range(1, 10_000)],
            )  # fmt: skip
        window = Window(30, 1000)
        one, again = (select(db, window, "2026-10-01T00:00:00Z", 7) for _ in range(2))
        other = select(db, window, "2026-10-01T00:00:00Z", 8)
        assert one == again and one.seqs != other.seqs and one.seqs == sorted(set(one.seqs))
        assert (one.recent, one.old, one.left_out_old) == (901, 1000, 7098)
        assert 2 in one.seqs and not [n for n in one.seqs if n % 10 == 1]
        assert one.trained == {n for n in one.seqs if n % 10}
        tenths = [sum(n // 900 == part for n in one.seqs if n < 9000) for part in range(10)]
        assert all(60 <= count <= 140 for count in tenths), tenths  # of 100 each: no part of the past is left out
        few = select(db, Window(30, 1000, most=950), "2026-10-01T00:00:00Z", 7)
        assert (few.recent, few.old, few.left_out_recent) == (901, 49, 0) and set(few.seqs) <= set(one.seqs)
        assert select(db, Window(None), None, 7).recent == 8999
