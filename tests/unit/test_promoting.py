"""`engramd promote vN --despite`: what it moves, and when it is refused."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from daemon import ledger, promoting
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.cli.reading import world_of
from daemon.home import Home
from daemon.ledger import batches, jobs, memories, scores
from daemon.settings import load
from tests.unit.test_gate import BAD, poison
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import FAKE, QUICK, drop, fault, read, work


@pytest.fixture
def base(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """v1 is the head; v2 and v3, both of b.jsonl, were refused. The options of the command line."""
    monkeypatch.setattr("daemon.supervisor.COMMAND", FAKE)
    drop(home, "a.jsonl", "one", "two")
    work(home)
    poison(home, **BAD)
    drop(home, "b.jsonl", "three", "four")
    work(home)
    fault(home, None)
    return ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]


def states(home: Home) -> list[str]:
    with read(home) as db:
        return [row["state"] for row in jobs.versions(db)]


def mirrored(home: Home) -> dict[str, Any]:
    return json.loads(home.profile("me").registry.read_text())  # type: ignore[no-any-return]


def test_a_refused_version_becomes_the_head(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert states(home) == ["promoted", "refused", "refused"]
    capsys.readouterr()
    assert main([*base, "promote", "v3", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "v3 would be the head in the place of v1" in told and "2 memories that were new in it would count" in told
    assert "it had been refused: general ability fell" in told and states(home)[2] == "refused"
    assert main([*base, "promote", "v3", "--despite", "  the probes \n were wrong ", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["instead_of"], answer["trained"]) == (3, 1, 2)
    assert states(home) == ["promoted", "refused", "promoted"] and head(home)["version"] == 3  # type: ignore[index]
    with read(home) as db:
        row = jobs.version(db, 3)
        assert row is not None and row["despite"] == "the probes were wrong"
        assert row["reason"].startswith("promoted by hand: the probes were wrong; it had been refused: general")
        assert memories.trained_exactly_once(db) == 4 == memories.total(db)
        assert batches.counts(db) == {"done": 2}
    assert mirrored(home)["head"]["version"] == 3
    assert mirrored(home)["training_history"][2]["despite"] == "the probes were wrong"
    assert audit_is_clean(home, capsys)
    drop(home, "c.jsonl", "five")
    work(home)
    with read(home) as db:
        newest = jobs.version(db, 4)
        assert newest is not None and (newest["state"], newest["parent"]) == ("promoted", 3)
    assert audit_is_clean(home, capsys)


def test_a_batch_that_was_asked_for_again_is_not_trained_twice(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits, or is even in an open job, when the version that has learnt it is promoted."""
    from daemon.ledger import requests
    from daemon.lock import Lock
    from tests.unit.test_service import service

    fault(home, "step_seconds:0.4\n")
    with ledger.open_home(home.database, write=True) as db:
        requests.ask(db, "me", "retry", {"batch": 2}, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home)
    asked = []

    def running_then_promoted() -> bool:
        training = one._worlds["me"][2]
        if not asked and training.running:
            asked.append(requests.ask(one._db, "me", "promote", {"version": 3, "despite": "x"}, "2026-11-21T08:00:00Z"))
        return bool(asked) and one.idle()

    one.run(until=running_then_promoted)
    lock.release()
    assert states(home) == ["promoted", "refused", "promoted"]
    with read(home) as db:
        assert memories.trained_exactly_once(db) == 4
        assert [row["state"] for row in reversed(jobs.listing(db))] == ["promoted", "refused", "promoted", "undone"]
    assert audit_is_clean(home, capsys)


def world(home: Home, db: ledger.Database) -> Any:
    return world_of(home, "me", db, load(home, QUICK, {}))


def test_what_cannot_be_promoted_says_why(home: Home, base: list[str]) -> None:
    for wrong, sentence in (
        (["v9", "--despite", "x"], "there is no v9 of profile me"),
        (["v1", "--despite", "x"], "v1 is promoted already"),
        (["v3"], "say why: engramd promote v3"),
        (["v3", "--despite", "  "], "say why"),
        (["v3", "--despite", "x" * 501], "in at most 500 characters"),
        (["three", "--despite", "x"], "'three' is no version"),
    ):
        with pytest.raises(UserError, match=sentence):
            main([*base, "promote", *wrong])
    drop(home, "c.jsonl", "five", "six")
    work(home)
    with pytest.raises(UserError, match=r"was made when v1 was in service, and now v4 is: .*models rollback v1"):
        main([*base, "promote", "v3", "--despite", "x"])
    assert main([*base, "models", "rollback", "v1", "--yes"]) == 0
    with pytest.raises(UserError, match="job 4 took the place of v2 in chain 1 meanwhile"):
        main([*base, "models", "promote", "v2", "--dry-run"])


def test_one_whose_checkpoint_is_gone_or_damaged(home: Home, base: list[str]) -> None:
    with read(home) as db:
        row = jobs.version(db, 3)
        assert row is not None
        job = jobs.get(db, row["job"])
        assert job is not None
        place = home.profile("me").jobs / job["folder"] / f"checkpoint-{row['step']}"
        victim = place / "adapter_model.safetensors"
        victim.chmod(0o600)
        victim.write_text("damaged")
        with pytest.raises(ValueError, match=r"v3 cannot be relied on: .*is damaged"):
            promoting.dry_run(world(home, db), 3)
        shutil.rmtree(place)
        with pytest.raises(ValueError, match="retention pruned the folder of job 3"):
            promoting.dry_run(world(home, db), 3)


def test_one_that_was_not_trained_to_its_end(home: Home) -> None:
    fault(home, "wrong_count")
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db, pytest.raises(ValueError, match=r"v1 was not trained to its end \(1 of 2 planned samples"):
        promoting.dry_run(world(home, db), 1)


def test_one_that_learnt_what_was_forgotten(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with read(home) as db:
        first = db.all("SELECT id FROM memories ORDER BY seq")[2]["id"].hex()
    assert main([*base, "forget", first, "--yes"]) == 0
    with pytest.raises(UserError, match="v3 has learnt a memory that was forgotten since"):
        main([*base, "promote", "v3", "--despite", "x"])
    assert audit_is_clean(home, capsys)


def test_a_first_version_can_be_promoted_too(home: Home, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("daemon.supervisor.COMMAND", FAKE)
    poison(home, **BAD)
    drop(home, "a.jsonl", "one")
    work(home)
    fault(home, None)
    base = ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]
    assert head(home) is None
    with read(home) as db:
        newest = scores.newest_refused(db)
        assert newest is not None and newest["id"] == 2
    assert main([*base, "models", "promote", "v2", "--despite", "there is no other"]) == 0
    assert head(home)["version"] == 2  # type: ignore[index]
    assert audit_is_clean(home, capsys)


def test_status_says_the_way_on(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*base, "status"]) == 0
    told = capsys.readouterr().out
    assert "refused   v3: general ability fell" in told and 'engramd promote v3 --despite "..."' in told
    assert "engramd retry 2 or engramd discard 2" in told
    assert main([*base, "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profiles"][0]["refused"]["version"] == 3
    drop(home, "c.jsonl", "five")
    work(home)
    capsys.readouterr()
    assert main([*base, "status"]) == 0
    assert "refused   v3" not in capsys.readouterr().out, "the head has gone on"


def test_one_that_is_pinned_is_not_pruned(home: Home, base: list[str]) -> None:
    from datetime import UTC

    from daemon import pruning
    from daemon.ledger import pins

    with ledger.open_profile(home.profile("me").ledger, write=True) as db:
        pins.pin(db, "version", "2", "2026-11-21T09:00:00Z")
        here = world(home, db)
        jobs_of = here.settings.retention.jobs.model_copy(update={"keep_last": 1, "keep_monthly": 0})
        kept = here.settings.retention.model_copy(update={"jobs": jobs_of})
        entries = pruning.plan(
            replace(here, settings=here.settings.model_copy(update={"retention": kept})), "2030-01-01T00:00:00Z", UTC
        ).entries
    assert {(one.name, one.keep): one.reasons for one in entries if one.kind == "job" and one.name == "2"} == {
        ("2", True): ("the checkpoint of v2: pinned",)
    }
