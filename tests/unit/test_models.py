"""Versions, their mirror, and going back to one by hand."""

import json

import pytest

from daemon import ledger
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.home import Home
from daemon.ledger import batches, jobs, memories
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import FAKE, QUICK, drop, work


@pytest.fixture
def base(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A home with three versions, and the options of the command line."""
    monkeypatch.setattr("daemon.supervisor.COMMAND", FAKE)
    for number in range(3):
        drop(home, f"{number}.jsonl", f"thing {number}")
        work(home)
    return ["--home", str(home.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]


def mirrored(home: Home) -> dict[str, object]:
    return json.loads((home.profile("me").root / "model-registry.json").read_text())  # type: ignore[no-any-return]


def test_the_mirror_has_the_origins_fields(home: Home, base: list[str]) -> None:
    told = mirrored(home)
    assert told["original_base_model"] == "builtin:tiny" and told["model_type"] == "local"
    assert str(told["current_base_model"]).endswith("chains/1/checkpoint-6")
    first, second, _ = told["training_history"]  # type: ignore[misc]
    assert (first["version"], first["base_model_used"], first["training_success"]) == (1, "builtin:tiny", True)
    assert second["base_model_used"] == first["output_model_path"] and second["memories"] == {"new": 1}
    assert {"run_id", "timestamp", "gguf_path", "samples_trained"} <= first.keys()


def test_list_show_diff_and_lineage(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*base, "models"]) == 0
    table = capsys.readouterr().out
    assert "v3  the head" in table and "v1  in the line" in table
    assert main([*base, "models", "show", "v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    assert main([*base, "models", "diff", "v1", "v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == [2, 4]
    assert main([*base, "models", "lineage"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "builtin:tiny", "  v1  step 2", "  v2  step 4", "  v3  step 6  <- the head"
    ]  # fmt: skip
    for wrong in (["show"], ["show", "x"], ["rollback", "v1", "v2"], ["list", "v1"]):
        with pytest.raises(UserError):
            main([*base, "models", *wrong])


def test_a_rollback_holds_what_was_learnt_since(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*base, "models", "rollback", "v1", "--dry-run"]) == 0
    assert "2 memories would be held until you say so" in capsys.readouterr().out
    assert head(home)["version"] == 3  # type: ignore[index]
    assert main([*base, "models", "rollback", "v1", "--json"]) == 0
    assert head(home)["version"] == 1 and mirrored(home)["head"]["version"] == 1  # type: ignore[index,call-overload]
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        held = batches.in_state(db, "held")
        assert [row["name"] for row in held] == ["1.jsonl", "2.jsonl"]
        assert memories.counts(db)["state"] == {"trained": 1, "held": 2}
    assert audit_is_clean(home, capsys)
    work(home)  # nothing is trained by itself
    assert head(home)["version"] == 1  # type: ignore[index]
    with pytest.raises(UserError, match="name a batch, or --all"):
        main([*base, "retry"])
    assert main([*base, "discard", "3"]) == 0 and main([*base, "retry", "--all"]) == 0
    assert "batch 2 (1.jsonl) waits again: 1 memory" in capsys.readouterr().out
    assert main([*base, "retry", "--all"]) == 3
    work(home)
    assert head(home)["version"] == 4  # type: ignore[index]
    assert audit_is_clean(home, capsys)


def test_reset_and_back_to_where_one_was(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*base, "models", "reset", "--train-again"]) == 0
    assert head(home) is None or head(home)["version"] > 3  # type: ignore[index]
    work(home)
    assert head(home)["version"] == 4  # type: ignore[index]
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert memories.trained_exactly_once(db) == 3
    assert main([*base, "models", "rollback", "v3"]) == 0
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert memories.trained_exactly_once(db) == 3 and jobs.get_head(db)["version"] == 3  # type: ignore[index]
        assert [row["state"] for row in jobs.versions(db)] == ["promoted"] * 3 + ["undone"]
    assert audit_is_clean(home, capsys)


def test_what_cannot_be_gone_to(home: Home, base: list[str]) -> None:
    with pytest.raises(UserError, match="v9 is no version to go back to: there is none"):
        main([*base, "models", "rollback", "v9", "--dry-run"])
