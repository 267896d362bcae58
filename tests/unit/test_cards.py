"""Model cards: what a version is, in a form that tools read, and without a word of what it learnt."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon import cards, ledger, pruning, registry
from daemon.cli import execute as main
from daemon.home import Home
from daemon.ledger import jobs
from daemon.lock import Lock
from daemon.schedule import zone_of
from tests.unit.test_service import QUICK, drop, service, work

SECRET = "Wilhelmina of Thistledown Lane"


def told(home: Home) -> dict[str, Any]:
    return json.loads(home.profile("me").registry.read_text())  # type: ignore[no-any-return]


def card_of(home: Home, version: int) -> str:
    return (home.profile("me").root / "models" / f"v{version}" / cards.CARD).read_text()


def header_of(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    return yaml.safe_load(header)  # type: ignore[no-any-return]


@pytest.fixture
def nights(home: Home) -> Home:
    drop(home, "Wilhelmina-and-me.jsonl", SECRET, "the second thing")
    work(home)
    drop(home, "b.jsonl", "three")
    work(home)
    return home


def test_each_promoted_version_has_a_folder_with_a_card_and_a_summary(nights: Home) -> None:
    for version in (1, 2):
        folder = nights.profile("me").root / "models" / f"v{version}"
        assert {path.name for path in folder.iterdir()} == {cards.CARD, "run-summary.json"}
        summary = json.loads((folder / "run-summary.json").read_text())
        assert summary["version"] == version
        job = nights.profile("me").jobs / f"{version}-finetune" / "run-summary.json"
        assert job.read_bytes() == (folder / "run-summary.json").read_bytes()


def test_the_header_is_what_the_hub_reads(nights: Home) -> None:
    header = header_of(card_of(nights, 2))
    assert header["base_model"] == "builtin:tiny" and header["library_name"] == "peft"
    assert header["base_model_relation"] == "adapter" and header["language"] == "und"
    assert {"engramd", "lora"} <= set(header["tags"])


def test_it_tells_counts_kinds_recipe_and_lineage(nights: Home) -> None:
    card = card_of(nights, 2)
    assert "In this step: 1 new memory; 2 uses of samples in 2 optimizer steps." in card
    assert "In all 2 versions of its line" in card and "| conversation | 3 |" in card
    assert "| num_train_epochs | `2` |" in card
    assert told(nights)["training_history"][1]["dataset_sha256"] in card
    assert "- v2: step 4, 1 new memory" in card and "- v1: step 2, 2 new memories" in card
    assert "- `builtin:tiny`, untouched" in card and "engramd chat --version v2" in card


def test_no_text_no_name_and_no_folder_of_a_person_is_in_it(nights: Home) -> None:
    for version in (1, 2):
        card = card_of(nights, version)
        for word in ("Wilhelmina", "Thistledown", "second thing", "jsonl", str(nights.root), "profile"):
            assert word not in card, word
        summary = (nights.profile("me").root / "models" / f"v{version}" / "run-summary.json").read_text()
        assert "Thistledown" not in summary and "second thing" not in summary


def entry_with(home: Home, **changes: Any) -> str:
    paths = home.profile("me")
    with ledger.open_profile(paths.ledger, write=False) as db:
        found = registry.mirror(db, base_model="builtin:tiny", chains=paths.chains)
        line = registry.line_of(found, 2)
        return cards.card(db, [line[0] | changes, *line[1:]], {"recipe": {"base_model": "/home/anna/qwen"}})


def test_figures_of_candidate_served_and_base_stand_beside_each_other(nights: Home) -> None:
    metrics = {f"{who}.{group}.{measure}": 0.25 + n / 8 for n, who in enumerate(cards.WHO)
               for group in ("old", "anchor") for measure in ("loss", "token_accuracy")}  # fmt: skip
    metrics |= {"candidate.old.probes": 12.0, "probe_loss": 3.0}
    gate = {"checks": [{"name": "old recall", "before": 0.9, "candidate": 0.25, "margin": 0.1, "decides": True,
                        "worse": True}]}  # fmt: skip
    card = entry_with(nights, metrics=metrics, gate=gate, weights="ema", state="refused", despite="Anna insisted")
    assert "| learnt before that | tokens known | 0.250 | 0.375 | 0.500 |" in card
    assert "12 learnt before that" in card and "(`ema`)" in card
    assert "| old recall | 0.900 | 0.250 | 0.1 | refused |" in card
    assert "a person promoted it all the same" in card and "Anna" not in card
    (old, general) = header_of(card)["model-index"][0]["results"]
    assert {one["type"]: one["value"] for one in old["metrics"]} == {"loss": 0.25, "token_accuracy": 0.25}
    assert general["dataset"]["type"] == "engramd-anchor"


def test_odd_values_leave_a_card_that_can_be_read(nights: Home) -> None:
    card = entry_with(
        nights, method="full", line="emulation", metrics=None, gate=None, sizes=None, tokens=None, seconds=None,
        decision="/home/anna/x is damaged", cycle={"kind": "monthly", "mode": "dual", "name": "Anna's", "recent": 3},
    )  # fmt: skip
    header = header_of(card)
    assert header["library_name"] == "transformers" and "line-emulation" in header["tags"]
    assert "It was not measured" in card and "anna" not in card.lower()
    assert "kind monthly, mode dual, recent 3" in card


def test_a_base_in_a_folder_gives_only_its_last_name() -> None:
    assert cards.shown_base("/home/anna/models/Qwen3-14B") == "Qwen3-14B"
    assert cards.shown_base("Qwen/Qwen3-14B") == "Qwen/Qwen3-14B"


def test_what_was_forgotten_is_said_and_no_longer_counted(nights: Home) -> None:
    with ledger.open_profile(nights.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE memories SET state='forgotten', content='', response=NULL, time=NULL WHERE seq=1")
    card = entry_with(nights)
    assert "1 of the memories that it was trained on were forgotten since" in card
    assert "| conversation | 2 |" in card


def test_a_start_makes_the_folder_that_a_crash_has_left_out(nights: Home) -> None:
    folder = nights.profile("me").root / "models" / "v2"
    (folder / cards.CARD).unlink()
    (folder / "run-summary.json").unlink()
    before = (nights.profile("me").root / "models" / "v1" / cards.CARD).stat().st_mtime_ns
    work(nights)
    assert {path.name for path in folder.iterdir()} == {cards.CARD, "run-summary.json"}
    assert (nights.profile("me").root / "models" / "v1" / cards.CARD).stat().st_mtime_ns == before


def plan(home: Home, **settings: object) -> dict[str, pruning.Entry]:
    lock, one = Lock(home), service(home, **settings)
    try:
        world = one._worlds["me"][0]
        found = pruning.plan(world, "2027-11-21T00:00:00Z", zone_of("UTC"))
        return {entry.name: entry for entry in found.entries if entry.kind == "version"}
    finally:
        one.stop()
        lock.release()


def test_retention_takes_folders_of_versions_unless_all_are_kept(nights: Home) -> None:
    drop(nights, "c.jsonl", "four")
    work(nights)
    keep: dict[str, object] = {
        f"retention__versions__keep_{key}": int(key == "last")
        for key in ("last", "daily", "weekly", "monthly", "yearly")
    }
    found = plan(nights, **keep)
    assert [found[str(n)].keep for n in (1, 2, 3)] == [False, True, True]  # the head, and its parent
    found = plan(nights, versioning__keep_all_versions=True, **keep)
    assert found["1"].keep and found["1"].reasons == ("versioning.keep_all_versions is set",)
    lock, one = Lock(nights), service(nights, **keep)
    try:
        pruning.prune(one._worlds["me"][0], "2027-11-21T00:00:00Z", zone_of("UTC"))
    finally:
        one.stop()
        lock.release()
    work(nights)  # what was pruned does not come back
    assert not (nights.profile("me").root / "models" / "v1").exists()
    with ledger.open_profile(nights.profile("me").ledger, write=False) as db:
        assert len(jobs.versions(db)) == 3


def test_forgetting_goes_through_cards_and_summaries(nights: Home, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--home", str(nights.root), *(f"--set={key}={json.dumps(value)}" for key, value in QUICK.items())]
    folder: Path = nights.profile("me").root / "models" / "v1"
    (folder / cards.CARD).write_text(f"# v1\n\nIt is {SECRET}.\n\nstays\n")  # as no release writes it
    assert main([*base, "forget", "--batch", "1", "--yes"]) == 0
    text = (folder / cards.CARD).read_text() if (folder / cards.CARD).exists() else ""
    assert "Thistledown" not in text
