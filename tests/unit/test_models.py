"""Versions, their mirror, and going back to one by hand."""

import json
import shutil
from pathlib import Path

import pytest

from daemon import ledger
from daemon.cli import execute as main
from daemon.cli.exit_codes import UserError
from daemon.cli.talking import Talk, TalkError
from daemon.home import Home
from daemon.ledger import batches, jobs, memories
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import FAKE, QUICK, drop, fault, work


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
    assert told["current_base_model"] == "builtin:tiny"  # an adapter is no base
    first, second, _ = told["training_history"]  # type: ignore[misc]
    assert (first["version"], first["base_model_used"], first["training_success"]) == (1, "builtin:tiny", True)
    assert second["base_model_used"] == first["output_model_path"] and second["memories"]["new"] == 1
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


def test_two_versions_beside_each_other(home: Home, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "more.jsonl", "four", "five")
    work(home, training__num_train_epochs=1, training__lora_dropout=0.1)
    capsys.readouterr()
    assert main([*base, "models", "diff", "v1", "v4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe_changes"] == {"num_train_epochs": [2, 1], "lora_dropout": [0.05, 0.1]}
    assert told["memories_by_use"]["new"] == [1, 2]
    assert [(one["version"], one["name"]) for one in told["batches_between"]] == [
        (2, "1.jsonl"), (3, "2.jsonl"), (4, "more.jsonl")
    ]  # fmt: skip
    assert main([*base, "models", "diff", "v4", "v4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["recipe_changes"], told["figures"], told["batches_between"]) == ({}, {}, [])
    assert main([*base, "models", "diff", "v4", "v2"]) == 0
    shown = capsys.readouterr().out
    assert ["num_train_epochs", "1", "2"] in map(str.split, shown.splitlines())
    assert "more.jsonl" in shown and "parent" in shown
    assert main([*base, "models", "rollback", "v2", "--train-again"]) == 0
    work(home)
    assert main([*base, "models", "diff", "v4", "v5"]) == 0
    assert "neither goes on from the other" in capsys.readouterr().out


def test_a_card_is_printed_or_written_but_never_over_a_file(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    assert main([*base, "models", "export-card", "v2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("---\nbase_model: builtin:tiny\n") and "# engramd v2" in printed
    target = tmp_path / "card.md"
    assert main([*base, "models", "export-card", "v2", "--to", str(target)]) == 0
    assert target.read_text() + "\n" == printed
    for words, why in ((["export-card", "v2", "--to", str(target)], "exists already"),
                       (["export-card", "v2", "--to", "/dev/null/x"], "cannot be written"),
                       (["show", "v2", "--to", "x"], "--to belongs to"),
                       (["export-card", "v9"], "there is no v9")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            main([*base, "models", *words])
    assert target.read_text() + "\n" == printed


def test_any_version_can_be_talked_to_and_none_moves_the_head(
    home: Home, base: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(home, "wrong_count")
    drop(home, "bad.jsonl", "nine")
    work(home)
    fault(home, None)
    asked: list[list[str]] = []

    def child(words: list[str]) -> Talk:
        asked.append(words)
        raise TalkError("enough")

    monkeypatch.setattr("daemon.cli.talking.Talk", child)
    places = ((4, "refused", "jobs/4-finetune/checkpoint-8"), (2, "promoted", "chains/1/checkpoint-4"))
    for version, state, folder in places:
        capsys.readouterr()
        assert main([*base, "models", "load", f"v{version}", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["state"] == state and told["path"].endswith(folder)
        assert told["command"] == f"engramd chat --version v{version}"
        assert main([*base, "models", "load", f"v{version}"]) == 0
        assert f"talk to it: {told['command']}\nnothing was changed" in capsys.readouterr().out
        with pytest.raises(UserError, match="enough"):
            main([*base, "ask", "Who?", "--version", f"v{version}"])
        assert asked[-1][-2:] == ["chat", told["path"]]
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE versions SET weights='ema' WHERE id IN (2, 3)")
    for words, folder in ((["--version", "2"], "checkpoint-4"), ([], "checkpoint-6")):
        with pytest.raises(UserError, match="enough"):
            main([*base, "ask", "Who?", *words])
        assert asked[-1][-2:] == ["--weights", "ema"] and asked[-1][-3].endswith(folder)
    shutil.rmtree(home.profile("me").chains / "1" / "checkpoint-2")
    for words, why in ((["models", "load", "v1"], "the files of v1 are no longer there"),
                       (["ask", "Who?", "--version", "v9"], "there is no v9"),
                       (["ask", "Who?", "--version", "v2", "--base"], "one of them")):  # fmt: skip
        with pytest.raises(UserError, match=why):
            main([*base, *words])
    assert head(home)["version"] == 3  # type: ignore[index]


def test_what_cannot_be_gone_to(home: Home, base: list[str]) -> None:
    with pytest.raises(UserError, match="v9 is no version to go back to: there is none"):
        main([*base, "models", "rollback", "v9", "--dry-run"])
