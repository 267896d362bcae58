"""Cycles: what they select, what is new in them, and what the books say afterwards."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import ledger, supervisor
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import jobs, memories, requests
from daemon.lock import Lock
from daemon.service import Service
from tests.forked_trainer import command
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import FAKE, QUICK, drop, service, work


@pytest.fixture
def base(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A home with two nights behind it, and the options of the command line."""
    monkeypatch.setitem(Service.__init__.__kwdefaults__, "trainer", FAKE)  # of commands that do the work themselves
    monkeypatch.setattr(supervisor, "COMMAND", command())  # of dry runs, which ask the real one
    for number in range(2):
        drop(home, f"{number}.jsonl", f"thing {number} one", f"thing {number} two")
        work(home)
    return ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]


def cycle(home: Home, settings: dict[str, object] | None = None, **asked: object) -> dict[str, object]:
    """Asked for as the clock does, and done by the service."""
    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, "me", "cycle", asked, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home, **(settings or {}))
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


def test_an_empty_selection_is_a_sentence(home: Home, base: list[str]) -> None:
    assert "no memory that it selects" in str(cycle(home, kind="monthly", mode="agent"))


def test_the_command_line(
    home: Home, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*base, "cycle", "--wait", "--json"]) == 0
    told = json.loads("{" + capsys.readouterr().out.partition("{")[2])
    assert (told["kind"], told["state"], told["version"]) == ("monthly", "promoted", 3)
    with pytest.raises(UserError, match="cannot merge an adapter into its base yet"):
        main([*base, "--set=versioning.merge_into_base=true", "cycle"])
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


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_dry_run_tells_what_it_takes_and_leaves_nothing(
    home: Home, base: list[str], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = home.root / "text.jsonl"
    own.write_text("".join(json.dumps({"prompt": f"What is {n}?", "response": f"A number, {n}."}) + "\n"
                           for n in range(40)))  # fmt: skip
    text = {"training.mix.anchor": 0.4, "training.mix.anchors": str(own)}
    base += [f"--set={key}={json.dumps(value)}" for key, value in text.items()]

    def everything() -> dict[str, tuple[int, int]]:
        kept = [one for one in home.root.rglob("*") if one.is_file() and not one.name.endswith(("-shm", "-wal"))]
        return {str(one): (one.stat().st_size, one.stat().st_mtime_ns) for one in kept}

    before = everything()
    capsys.readouterr()
    assert main([*base, "cycle", "--method", method, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert everything() == before and not list(home.state.glob("preview-*"))
    assert main([*base, "cycle", "--method", method, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "of general text" in told and "memory    about " in told and "weights " in told
    with monkeypatched_settings(text):
        done = cycle(home, method=method)
    assert planned["exact"] and planned["steps"] == done["steps"] > 0 and planned["anchors"] > 0
    assert planned["memory"]["total_bytes"] == sum(planned["memory"]["parts"].values())
    assert {"weights", "gradients", "optimizer", "activations", "logits"} <= planned["memory"]["parts"].keys()
    assert planned["disk_bytes"] > 0 and (planned["line"], planned["method"]) == (done["line"], method)
    time = "about" if method == "lora" else "unknown: no job of this home"
    assert f"time      {time}" in told


@contextmanager
def monkeypatched_settings(changed: dict[str, object]) -> Iterator[None]:
    """The service of `cycle` with these settings too."""
    before = dict(QUICK)
    QUICK.update(changed)
    try:
        yield
    finally:
        QUICK.clear()
        QUICK.update(before)


def test_the_same_dataset_can_be_made_again(
    home: Home, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from daemon import again
    from tests.unit.test_pruning import opened

    drop(home, "new.jsonl", "thing new")
    work(home, training__mix__replay=0.5)
    cycle(home, kind="monthly", old_samples=2)
    cycle(home, kind="foundation", dataset_builder="classic")
    cycle(home, mode="emulation", max_samples=3)
    world = opened(home)
    try:
        for job in range(1, 7):
            found = again.rebuild(world, job, tmp_path / f"{job}.jsonl")
            assert found.sha256 == found.recorded and (found.why, found.forgotten) == (None, 0), job
            there = home.profile("me").jobs / f"{job}-finetune" / "samples.jsonl"
            assert (tmp_path / f"{job}.jsonl").read_bytes() == there.read_bytes()
        assert len((tmp_path / "6.jsonl").read_bytes().splitlines()) == 3
        with pytest.raises(ValueError, match="there is no job 99"):
            again.rebuild(world, 99, tmp_path / "99.jsonl")
        id_ = world.db.all("SELECT lower(hex(id)) AS id FROM memories WHERE seq=1")[0]["id"]
    finally:
        world.db.close()
    assert main([*base, "forget", id_, "--yes"]) == 0
    world = opened(home)
    try:
        found = again.rebuild(world, 5, tmp_path / "5-again.jsonl")
        assert (found.forgotten, found.why) == (1, "1 of its memories were forgotten since")
        before = (tmp_path / "5.jsonl").read_bytes().splitlines()
        assert (tmp_path / "5-again.jsonl").read_bytes().splitlines() == [one for one in before if b"0 one" not in one]
    finally:
        world.db.close()


def test_changed_rules_are_named(home: Home, base: list[str], tmp_path: Path) -> None:
    from daemon import again
    from tests.unit.test_pruning import opened

    cycle(home, kind="monthly")
    home.etc.mkdir(exist_ok=True)
    world = opened(home, **{"curation.system_prompt": "You are me."})
    try:
        found = again.rebuild(world, 3, tmp_path / "3.jsonl")
        assert found.why is not None and found.why.startswith("the rules were changed since")
    finally:
        world.db.close()


def test_an_earlier_jobs_memories_once_more(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*base, "cycle", "--again", "1", "--wait", "--json"]) == 0
    assert uses(home, 3) == {"replay": 2}
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert {row["memory"] for row in db.all("SELECT memory FROM job_memories WHERE job=3")} == {1, 2}
    with pytest.raises(UserError, match="there is no job 99"):
        main([*base, "cycle", "--again", "99", "--dry-run"])


def test_the_rules_have_the_same_hash_in_every_process(home: Home, base: list[str]) -> None:
    from daemon import again
    from tests.unit.test_pruning import opened

    world = opened(home)
    try:
        here = again.rules_sha256(world)
    finally:
        world.db.close()
    code = (
        "import sys; from pathlib import Path\n"
        "from daemon.home import Home; from tests.unit.test_pruning import opened; "
        "from daemon import again; print(again.rules_sha256(opened(Home(Path(sys.argv[1])))))"
    )
    for seed in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", code, str(home.root)], capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."})  # fmt: skip
        assert done.stdout.strip() == here


def test_a_base_that_was_chosen_stays(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 24: flag, environment, registry, training.json."""
    import shutil

    from daemon.settings import load
    from trainer import base_files

    quick = {key: value for key, value in QUICK.items() if key != "training.base_model"}
    monkeypatch.setattr("tests.unit.test_service.QUICK", quick)
    other = tmp_path / "other"
    shutil.copytree(base_files.resolve("builtin:tiny"), other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    home.etc.mkdir(parents=True)
    (home.etc / "training.json").write_text(json.dumps({"base_model": "builtin:tiny"}))

    def bases() -> list[str]:
        with ledger.open_profile(home.profile("me").ledger, write=False) as db:
            return [json.loads(row["key"])["base_model"] for row in jobs.chains(db)]

    def night(number: int, environ: dict[str, str]) -> dict[str, object]:
        drop(home, f"{number}.jsonl", f"thing {number}")
        lock, one = Lock(home), Service(home, load(home, quick, environ), trainer=FAKE)
        one.run(until=one.idle)
        lock.release()
        return head(home) or {}

    first = night(0, {})
    told = cycle(home, base_model=str(other))
    assert told["state"] == "promoted" and uses(home, 2) == {"replay": 1}
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        row, job = jobs.get_chain(db, 2), jobs.get(db, 2)
    assert row and row["reason"].endswith(f"base_model changed from builtin:tiny to {other}")
    assert job and json.loads(job["cycle"])["kind"] == "foundation"  # another base knows nothing
    assert night(1, {})["chain"] == 2 and bases() == ["builtin:tiny", str(other)]  # the registry wins over the file
    cycle(home, kind="monthly", base_model=str(other))
    assert (head(home) or {})["chain"] == 2  # the base that it is on already: it goes on
    assert cycle(home, mode="emulation")["version"] == 5 and bases()[2] == str(other)  # a new line is on it too
    assert night(2, {"ENGRAMD_BASE_MODEL": "builtin:tiny"})["chain"] == 4  # the environment wins over the registry
    assert bases()[3] == "builtin:tiny"
    assert "base model nobody/nothing is not on this disk" in str(cycle(home, base_model="nobody/nothing"))
    assert first["chain"] == 1 and audit_is_clean(home, capsys)


def test_a_dataset_that_does_not_pass_stops_before_a_weight_is_loaded(
    home: Home, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from trainer import base_files

    strange = tmp_path / "strange"
    shutil.copytree(base_files.resolve("builtin:tiny"), strange)
    (strange / "chat_template.jinja").write_text("{{ messages[0].content }}")  # no answer would ever be seen
    (strange / "model.safetensors").write_bytes(b"no weights at all")
    options = ["cycle", "--monthly", "--base-model", str(strange)]
    with pytest.raises(UserError, match=r"line 1 .* leaves out an answer.*: nothing was trained .--strict"):
        main([*base, *options, "--strict"])
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.count(db) == 2
    Service.__init__.__kwdefaults__["trainer"] = supervisor.COMMAND  # type: ignore[index]  # put back by the fixture
    assert main([*base, *options, "--wait"]) == 1
    assert "job 3 failed: samples.jsonl line 1" in capsys.readouterr().out
    assert (head(home) or {})["version"] == 2 and not (home.profile("me").jobs / "3-finetune" / "losses.jsonl").exists()
    assert audit_is_clean(home, capsys)


def test_a_full_fine_tune_that_cannot_fit_is_not_begun(
    home: Home, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemon import estimates

    small = estimates.Device("gpu", "a small card", 1 << 20)
    monkeypatch.setattr(estimates, "device", lambda wish="auto": small)
    sentence = "training all layers of builtin:tiny takes at least "
    assert sentence in str(cycle(home, method="full"))
    assert cycle(home, kind="monthly")["state"] == "promoted"
    drop(home, "new.jsonl", "thing new")
    work(home, training__method="full")  # the nights wait, and the memory with them
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert (jobs.get_meta(db, "waits") or "").startswith(sentence)
        assert memories.counts(db)["state"] == {"trained": 4, "waiting": 1} and jobs.open_job(db) is None


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


def test_a_cycle_waits_for_room_and_says_so(home: Home, base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no memory waits, which else means that nothing does."""
    room = {"free": 10 << 20}
    monkeypatch.setattr("daemon.disk.free", lambda path: room["free"])
    monkeypatch.setattr("daemon.training.DISK_PAUSE", 0.3)
    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, "me", "cycle", {"kind": "monthly"}, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home)
    seen: list[str] = []

    def done() -> bool:
        with ledger.open_profile(home.profile("me").ledger, write=False) as db:
            if waits := jobs.get_meta(db, "waits"):
                seen.append(waits)
        if len(seen) > 5:
            room["free"] = 100 << 30
        return (requests.get(one._db, number) or {}).get("state") in ("done", "failed")

    one.run(until=done)
    lock.release()
    assert set(seen) == {seen[0]} and seen[0].startswith("the disk is too full for the cycle")
    with ledger.open_home(home.database, write=False) as db:
        assert json.loads((requests.get(db, number) or {})["answer"])["state"] == "promoted"


def test_a_wrong_file_of_general_text_is_the_answer(home: Home, base: list[str]) -> None:
    mix = {"training__mix__anchor": 0.5, "training__mix__anchors": "general.jsonl"}
    for _ in range(2):
        assert "general.jsonl cannot be read" in str(cycle(home, mix, kind="monthly")["error"])


def test_without_a_word_the_cap_of_the_settings_holds(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 8: a kind, a window or --max of one's own takes its place."""
    base = [*base, "--set=cycle.max_samples=3"]
    for flags, count in (([], 3), (["--foundation"], 4), (["--monthly"], 4), (["--max", "2"], 2)):
        capsys.readouterr()
        assert main([*base, "cycle", *flags, "--dry-run", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["memories"] == count
        assert told["selection"]["left_out_recent"] == 4 - count
