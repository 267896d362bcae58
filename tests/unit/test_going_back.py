"""Restore: the head goes back, the ledger and the disk agree, and what was trained above waits once more."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from daemon import ledger, snapshots
from daemon.cli import execute as main
from daemon.home import Home
from daemon.ledger import batches, jobs, lineage, memories
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from tests.unit.test_service import FAKE, QUICK, drop, service, work


def snapshot(home: Home, profile: str = "me") -> str:
    lock, one = Lock(home), service(home)
    try:
        world = one._worlds[profile][0]
        return one._nights.snapshot(world, "2026-11-21T03:00:00Z").partition(":")[0]
    finally:
        one.stop()
        lock.release()


def restore(home: Home, name: str, profile: str = "me") -> dict[str, object]:
    from daemon.ledger import requests

    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, profile, "restore", {"snapshot": name}, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home)
    try:
        while True:
            one.recover()
            one._answer_requests("2026-11-21T08:00:00Z")
            row = requests.get(one._db, number)
            assert row is not None
            if row["state"] in ("done", "failed"):
                return json.loads(row["answer"])  # type: ignore[no-any-return]
    finally:
        one.stop()
        lock.release()


def head(home: Home) -> dict[str, object] | None:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return jobs.get_head(db)


def audit_is_clean(home: Home, capsys: pytest.CaptureFixture[str]) -> bool:
    capsys.readouterr()
    code = main(["--home", str(home.root), "--set", "training.base_model=builtin:tiny", "audit"])
    assert code == 0, capsys.readouterr()
    return True


def test_back_and_on_again_gives_what_never_going_past_would(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, "a.jsonl", "one", "two")
    work(home)
    day = snapshot(home)
    for name, text in (("b.jsonl", "three"), ("c.jsonl", "four")):
        drop(home, name, text)
        work(home)
    assert head(home)["version"] == 3  # type: ignore[index]
    told = restore(home, day)
    assert (told["version"], told["undone"], told["untrained"]) == (1, [2, 3], 2)
    assert told["batches"] == ["b.jsonl", "c.jsonl"]
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert memories.any_waiting(db) and not jobs.open_job(db)
        assert [row["state"] for row in jobs.versions(db)] == ["promoted", "undone", "undone"]
        assert jobs.get_head(db)["chain"] == 2 and jobs.get_head(db)["step"] == 2  # type: ignore[index]
    assert audit_is_clean(home, capsys)
    work(home)
    assert audit_is_clean(home, capsys)
    never = Home(tmp_path / "never")
    drop(never, "a.jsonl", "one", "two")
    work(never)
    drop(never, "b.jsonl", "three")
    drop(never, "c.jsonl", "four")
    work(never)
    ours, theirs = head(home), head(never)
    assert ours and theirs and ours["sha256"] == theirs["sha256"] and ours["version"] == 4
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert memories.trained_exactly_once(db) == 4 == memories.total(db)


def test_a_version_that_was_undone_can_come_back(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    first = snapshot(home)
    drop(home, "b.jsonl", "two")
    work(home)
    second = snapshot(home)
    assert second == f"{first}-2"
    restore(home, first)
    told = restore(home, second)
    assert (told["redone"], told["undone"], told["retrained"], told["untrained"]) == ([2], [], 1, 0)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert memories.trained_exactly_once(db) == 2
        assert {row["state"] for row in batches.listing(db)} == {"done"}
        assert [row["reason"] for row in lineage.moves(db)] == [
            f"restored from the snapshot {first}", f"restored from the snapshot {second}"
        ]  # fmt: skip
    assert audit_is_clean(home, capsys)


def test_before_the_first_version_lies_the_base(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    work(home)
    day = snapshot(home)
    drop(home, "a.jsonl", "one")
    work(home)
    before = head(home)
    assert restore(home, day)["version"] is None and head(home) is None
    assert audit_is_clean(home, capsys)
    work(home)
    after = head(home)
    assert before and after and before["sha256"] == after["sha256"] and after["version"] == 2
    assert audit_is_clean(home, capsys)


def test_a_checkpoint_that_was_pruned_comes_from_the_snapshot(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    drop(home, "b.jsonl", "two")
    work(home)
    shutil.rmtree(home.profile("me").chains / "1" / "checkpoint-2")
    assert restore(home, day)["version"] == 1
    assert audit_is_clean(home, capsys)


def test_a_damaged_snapshot_is_refused_and_nothing_moves(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    drop(home, "b.jsonl", "two")
    work(home)
    shutil.rmtree(home.profile("me").chains / "1" / "checkpoint-2")
    manifest = home.snapshots / day / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text().replace('"me"', '"mx"'))
    assert "is damaged" in str(restore(home, day)["error"]) and head(home)["version"] == 2  # type: ignore[index]
    assert "no snapshot '1999-01-01'" in str(restore(home, "1999-01-01")["error"])


def everything(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in (".db-shm", ".db-wal"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_profile_is_untouched_to_the_byte(home: Home) -> None:
    settings = {"profiles": {"anna": {}}}
    load(home, QUICK | settings, {})
    drop(home, "a.jsonl", "one")
    (home.inbox / "anna").mkdir()
    lock, one = Lock(home), Service(home, load(home, QUICK | settings, {}), trainer=FAKE)
    (home.inbox / "anna" / "x.jsonl").write_text('{"prompt": "Who is Anna?", "response": "She is."}\n')
    one.run(until=one.idle)
    lock.release()
    day = snapshot(home)
    drop(home, "b.jsonl", "two")
    work(home)
    others = home.profiles / "anna"
    before = everything(others)
    assert len(before) > 10
    restore(home, day)
    assert everything(others) == before


def test_into_an_empty_home_the_ledger_comes_too(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    off = tmp_path / "off"
    snapshots.export(home.snapshots / day, off)
    new = Home(tmp_path / "new")
    work(new)
    assert restore(new, str(off))["refilled"] is True
    assert head(new) == head(home)
    assert audit_is_clean(new, capsys)
    drop(new, "b.jsonl", "two")
    work(new)
    drop(home, "b.jsonl", "two")
    work(home)
    assert head(new)["sha256"] == head(home)["sha256"]  # type: ignore[index]
    assert audit_is_clean(new, capsys)
    other = Home(tmp_path / "other")
    load(other, QUICK | {"profiles": {"anna": {}}}, {})
    (other.inbox / "anna").mkdir(parents=True)
    lock, one = Lock(other), Service(other, load(other, QUICK | {"profiles": {"anna": {}}}, {}), trainer=FAKE)
    one.run(until=one.idle)
    lock.release()
    assert "is a snapshot of profile me, not of anna" in str(restore(other, str(off), "anna")["error"])


def test_a_crash_between_the_links_and_the_transaction_leaves_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    day = snapshot(home)
    drop(home, "b.jsonl", "two")
    work(home)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lineage, "move", crash)
        with pytest.raises(KeyboardInterrupt):
            restore(home, day)
    assert (home.profile("me").chains / "2").is_dir()
    assert restore(home, day)["version"] == 1  # the request was still there
    assert audit_is_clean(home, capsys)


def test_the_command_line(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.supervisor.COMMAND", FAKE)
    base = ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]
    drop(home, "a.jsonl", "one")
    work(home)
    capsys.readouterr()
    assert main([*base, "snapshot", "create", "--json"]) == 0
    day = json.loads(capsys.readouterr().out)["snapshot"]
    drop(home, "b.jsonl", "two")
    work(home)
    assert main([*base, "snapshot"]) == 0 and day in capsys.readouterr().out
    assert main([*base, "snapshot", "show", day]) == 0 and "head: v1" in capsys.readouterr().out
    assert main([*base, "snapshot", "verify"]) == 0
    assert "1 snapshot verified, all is as it was written" in capsys.readouterr().out
    assert main([*base, "snapshot", "restore", day, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "the head would go back to v1" in told and "1 memory would wait again" in told and "b.jsonl" in told
    assert head(home)["version"] == 2  # type: ignore[index]
    victim = next((home.snapshots / day).rglob("trainer_state.json"), None)
    victim = victim or next(path for path in (home.snapshots / day / "chains").rglob("*") if path.is_file())
    victim.chmod(0o600)
    victim.write_bytes(b"damaged")
    assert main([*base, "snapshot", "verify"]) == 1
    assert f"{victim} is damaged" in capsys.readouterr().out


def test_in_a_new_home_a_job_of_general_text_is_no_loss_and_a_cycle_is_a_new_one(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.test_cycles import cycle

    mix = {"training__mix__anchor": 0.5}
    drop(home, "a.jsonl", "one")
    work(home, **mix)
    assert cycle(home, kind="monthly")["job"] == 3
    assert cycle(home, kind="monthly")["job"] == 4
    day = snapshot(home)
    off = tmp_path / "off"
    snapshots.export(home.snapshots / day, off)
    new = Home(tmp_path / "new")
    work(new)
    restore(new, str(off))
    assert audit_is_clean(new, capsys)
    assert cycle(new, kind="monthly")["job"] == 5  # not that of the request with this number in the old home
    assert audit_is_clean(new, capsys)
