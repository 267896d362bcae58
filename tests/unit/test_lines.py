"""Lines beside the main one: specialists by mode, cycles of another method; each with chains and a head of its own."""

import json
import sqlite3
from pathlib import Path

import pytest

from daemon import ledger, outcome, pruning, snapshots
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import jobs, lineage, memories
from daemon.rules import lines
from tests.unit.test_cycles import base, cycle, uses  # noqa: F401  # `base` is a fixture
from tests.unit.test_going_back import audit_is_clean, head, restore, snapshot
from tests.unit.test_pruning import opened
from tests.unit.test_service import drop, work


def heads(home: Home) -> dict[str, int]:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return {line: one["version"] for line, one in jobs.heads(db).items()}


def states(home: Home) -> dict[str, int]:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        return memories.counts(db)["state"]


def job(home: Home, number: int) -> dict[str, object]:
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        row = jobs.get(db, number)
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("mode", "method", "nights", "line"),
    [(None, None, "lora", ""), (None, "lora", "lora", ""), (None, "full", "lora", "full"), (None, "full", "full", ""),
     (None, "lora", "full", "lora"), ("emulation", None, "full", "emulation"), ("agent", "full", "lora", "agent-full")],
)  # fmt: skip
def test_names(mode: str | None, method: str | None, nights: str, line: str) -> None:
    assert lines.name_of(mode, method, nights) == line
    assert lines.name_of(*lines.parts_of(line), nights) == line  # type: ignore[misc]


def test_other_names_are_none() -> None:
    for wrong in ("x", "full-emulation", "emulation-full-lora", "-", "emulation-"):
        with pytest.raises(ValueError, match="is no line; one is named by a mode"):
            lines.parts_of(wrong)
    assert (lines.called("me", ""), lines.called("me", "dual")) == ("me", "me-dual")


def test_a_specialist_begins_at_the_base_and_goes_on(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    before = head(home)
    told = cycle(home, mode="emulation")
    assert (told["line"], told["state"], told["version"]) == ("emulation", "promoted", 3)
    assert heads(home) == {"": 2, "emulation": 3} and head(home) == before and states(home) == {"trained": 4}
    first = job(home, 3)
    assert (first["line"], first["parent_sha256"], uses(home, 3)) == ("emulation", None, {"replay": 4})
    again = cycle(home, mode="emulation")
    assert again["version"] == 4 and job(home, 4)["parent_step"] == told["steps"]
    assert job(home, 4)["chain"] == first["chain"] == 2
    assert home.profile("me").current_model.resolve().name == "1"
    drop(home, "later.jsonl", "thing later")
    work(home)  # the nights go on with their own head, and their versions' parents are their own
    assert heads(home) == {"": 5, "emulation": 4} and job(home, 5)["parent_step"] == before["step"]  # type: ignore[index]
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert {row["id"]: row["parent"] for row in jobs.versions(db)} == {1: None, 2: 1, 3: None, 4: 3, 5: 2}
        assert memories.trained_exactly_once(db) == 5
    assert audit_is_clean(home, capsys)


def test_what_waits_is_rehearsed_by_a_line_and_waits_on(home: Home, base: list[str]) -> None:  # noqa: F811
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE memories SET state='waiting' WHERE seq IN (SELECT memory FROM job_memories WHERE job=2)")
        db.execute("DELETE FROM job_memories WHERE job=2")
    told = cycle(home, mode="emulation")
    assert told["state"] == "promoted" and uses(home, told["job"]) == {"replay": 4}  # type: ignore[arg-type]
    assert states(home) == {"trained": 2, "waiting": 2}


def test_another_method_than_the_nights_is_a_line_of_its_own(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    told = cycle(home, method="full")
    assert (told["line"], told["state"]) == ("full", "promoted")
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        key = jobs.chain_key(db, 2)
        row = jobs.get_chain(db, 2)
    assert key and row and (key["method"], key["base_model"]) == ("full", "builtin:tiny")
    assert row["reason"] == "the first chain of line full"
    assert cycle(home, method="lora")["line"] == ""
    assert cycle(home, method="full", mode="emulation")["line"] == "emulation-full"
    assert audit_is_clean(home, capsys)


def test_a_rollback_of_a_specialist_moves_its_head_alone(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    cycle(home, mode="emulation")
    cycle(home, mode="emulation")
    before = states(home)
    capsys.readouterr()
    assert main([*base, "models", "rollback", "v3", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["line"], told["undone"], told["untrained"]) == ("emulation", [4], 0)
    assert heads(home) == {"": 2, "emulation": 3} and states(home) == before
    assert audit_is_clean(home, capsys)
    assert main([*base, "models", "rollback", "v1", "--yes"]) == 0  # the main line's
    assert heads(home) == {"": 1, "emulation": 3} and states(home) == {"trained": 2, "held": 2}
    assert audit_is_clean(home, capsys)
    assert main([*base, "models", "reset", "--line", "emulation", "--yes"]) == 0
    assert heads(home) == {"": 1}
    assert audit_is_clean(home, capsys)
    with pytest.raises(UserError, match="there is no line 'agent'"):
        main([*base, "models", "reset", "--line", "agent", "--dry-run"])


def test_a_line_is_of_one_line(home: Home, base: list[str]) -> None:  # noqa: F811
    cycle(home, mode="emulation")
    db = ledger.open_profile(home.profile("me").ledger, write=False)
    with db, pytest.raises(ledger.LedgerError, match="v3 is no version of the main line"):
        lineage.move_to(db, 3)


def test_heads_of_lines_are_kept_and_snapshotted(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    cycle(home, mode="emulation")
    day = snapshot(home)
    manifest = snapshots.read(home.snapshots / day)
    assert {line: one["version"] for line, one in manifest["heads"].items()} == {"": 2, "emulation": 3}
    assert any(name.startswith("chains/2/") for name in manifest["files"])
    cycle(home, mode="emulation")
    cycle(home, mode="agent", kind="foundation")  # nothing of that mode: no version
    world = opened(home)
    try:
        assert outcome.needed_versions(world)[4] == "the head of line emulation"
        from datetime import UTC

        plan = pruning.plan(world, "2027-11-21T08:00:00Z", UTC)
        kept = {entry.name: entry.keep for entry in plan.entries if entry.kind == "checkpoint"}
    finally:
        world.db.close()
    assert all(kept.values()) and len(kept) == 4
    drop(home, "later.jsonl", "thing later")
    work(home)
    told = restore(home, day)
    assert (told["version"], told["undone"]) == (2, [5]) and heads(home) == {"": 2, "emulation": 3}
    assert audit_is_clean(home, capsys)


def test_keep_all_versions(home: Home, base: list[str]) -> None:  # noqa: F811
    from datetime import UTC

    for number in range(3):
        drop(home, f"more{number}.jsonl", f"thing more {number}")
        work(home, versioning__keep_all_versions=True)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert len(jobs.checkpoints(db)) == 5
    chain = home.profile("me").chains / "1"
    assert len(list(chain.glob("checkpoint-*"))) == 5  # save_total_limit is 3
    world = opened(home, **{"versioning.keep_all_versions": True})
    try:
        reasons = {entry.name: entry.reasons for entry in pruning.plan(world, "2027-11-21T08:00:00Z", UTC).entries
                   if entry.kind == "checkpoint" and entry.keep}  # fmt: skip
    finally:
        world.db.close()
    assert len(reasons) == 5 and "versioning.keep_all_versions is set" in str(reasons["1/checkpoint-2"])
    work(home)
    assert len(list(chain.glob("checkpoint-*"))) == 3


def test_why_tells_of_the_lines(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    cycle(home, mode="emulation")
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        id_ = db.all("SELECT lower(hex(id)) AS id FROM memories WHERE seq=1")[0]["id"]
    capsys.readouterr()
    assert main([*base, "memories", "why", id_]) == 0
    told = capsys.readouterr().out
    assert "v3" in told and "line emulation" in told and "trained, in job 1" in told


def test_a_damaged_line_is_found(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    cycle(home, mode="emulation")
    db = sqlite3.connect(home.profile("me").ledger)
    db.execute("DELETE FROM heads WHERE line='emulation'")
    db.commit()
    db.close()
    capsys.readouterr()
    assert main([*base, "audit"]) == 1
    assert "there is no head of line emulation" in capsys.readouterr().out


def test_only_memories_of_the_mode_are_drawn(tmp_path: Path) -> None:
    from daemon.ledger.selection import select
    from daemon.rules.curation import MODES, Curation
    from daemon.rules.selection import Window, of_mode

    rules = Curation.default()
    types = {"conversation": "dual", "journal": rules.modes.get("journal", rules.default_mode), "o'dd": "emulation"}
    with ledger.open_profile(tmp_path / "ledger.db", write=True) as db:
        with db.transaction():
            db.execute("INSERT INTO batches (id,sha256,name,path,size,state,claimed_at) VALUES (1,'','','',0,'x','')")
            db.executemany(
                "INSERT INTO memories (seq,id,batch,state,type,source,time,mode,content) "
                "VALUES (?,?,1,'trained',?,'',?,?,'')",
                [(n, n.to_bytes(4, "big"), list(types)[n % 3], f"2026-{1 + n % 9:02}-01T00:00:00Z",
                  ("agent", "nonsense", None, "dual")[n % 4]) for n in range(1, 1000)],
            )  # fmt: skip
        for mode in MODES:
            only = of_mode(mode, rules.modes, rules.default_mode, MODES)
            for since in (None, "2026-07-01T00:00:00Z"):
                window = Window(None if since is None else 30, 10_000, mode=mode)
                found = select(db, window, since, 7, only)
                expected = [row[0] for row in memories.by_seq(db, range(1, 1000)) if rules.mode(row[3]) == mode]
                assert found.seqs == expected, (mode, since)
        few = select(db, Window(0, 5, mode="dual"), "2027-01-01T00:00:00Z", 7, of_mode("dual", rules.modes,
                     rules.default_mode, MODES))  # fmt: skip
        assert few.old == 5 and few.left_out_old > 100  # of the mode alone, and all of them of it
