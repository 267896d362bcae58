"""`model-registry.json`: what it says of versions, and that it costs as little in the thousandth night."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger, registry
from daemon.home import Home
from daemon.ledger import jobs
from daemon.settings_learning import VersioningSettings
from tests.unit.test_service import drop, fault, work

ORIGIN = {
    "version", "run_id", "timestamp", "base_model_used", "output_model_path", "gguf_path", "samples_trained",
    "training_success",
}  # fmt: skip


def mirrored(home: Home, **versioning: Any) -> dict[str, Any]:
    paths = home.profile("me")
    with ledger.open_profile(paths.ledger, write=False) as db:
        return registry.mirror(
            db, base_model="builtin:tiny", chains=paths.chains, versioning=VersioningSettings(**versioning)
        )


def filed(home: Home) -> dict[str, Any]:
    return json.loads(home.profile("me").registry.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def nights(home: Home) -> Home:
    for number in range(2):
        drop(home, f"{number}.jsonl", f"thing {number}", f"another {number}")
        work(home)
    return home


def test_an_entry_says_where_a_version_comes_from(nights: Home) -> None:
    first, second = filed(nights)["training_history"]
    assert set(first) >= ORIGIN and [first["version"], second["version"]] == [1, 2]
    assert first["base_model_used"] == "builtin:tiny" and second["base_model_used"] == first["output_model_path"]
    assert Path(second["output_model_path"], "manifest.json").is_file()
    assert first["recipe_sha256"] == second["recipe_sha256"] and len(first["recipe_sha256"]) == 64
    assert first["dataset_sha256"] != second["dataset_sha256"] and first["memories"]["new"] == 2
    assert (second["parent"], second["chain"], second["line"], second["weights"]) == (1, 1, "", "raw")
    assert second["sizes"]["checkpoint_bytes"] > second["sizes"]["weights_bytes"] == 64  # the fake's hash
    assert second["decision"] and second["frozen_at"] <= second["started_at"] <= second["finished_at"]
    assert second["seconds"] is not None


def test_the_hashes_are_those_of_the_frozen_job(nights: Home) -> None:
    told = filed(nights)["training_history"][1]
    folder = nights.profile("me").jobs / "2-finetune"
    spec = json.loads((folder / "spec.json").read_text())
    assert told["dataset_sha256"] == spec["samples_sha256"]
    assert told["recipe_sha256"] == registry.recipe_sha256(dict(reversed(spec["recipe"].items())))


def test_hashes_stay_when_the_jobs_folder_is_pruned(nights: Home) -> None:
    before = filed(nights)["training_history"]
    for number in (1, 2):
        for path in (nights.profile("me").jobs / f"{number}-finetune").iterdir():
            path.unlink()
    after = mirrored(nights)["training_history"]
    assert [one["recipe_sha256"] for one in after] == [one["recipe_sha256"] for one in before]


def test_an_adapter_is_no_base_and_a_whole_model_is(nights: Home) -> None:
    assert filed(nights)["current_base_model"] == "builtin:tiny" and filed(nights)["model_type"] == "local"
    with ledger.open_profile(nights.profile("me").ledger, write=True) as db, db.transaction():
        key = jobs.chain_key(db, 1)
        assert key is not None
        db.execute("UPDATE chains SET key=?", (json.dumps({**key, "method": "full", "base_model": "Qwen/Qwen3-14B"}),))
    told = mirrored(nights)
    assert told["original_base_model"] == "Qwen/Qwen3-14B"
    assert told["current_base_model"].endswith("chains/1/checkpoint-4") and told["model_type"] == "local"
    told = mirrored(nights, auto_update_base=False)
    assert told["current_base_model"] == "Qwen/Qwen3-14B" and told["model_type"] == "huggingface"
    assert told["versioning"] == {
        "enabled": True, "auto_update_base": False, "merge_into_base": False, "keep_all_versions": False,
    }  # fmt: skip


def test_a_refused_version_is_named_with_its_reason_and_place(nights: Home) -> None:
    fault(nights, "wrong_count")
    drop(nights, "bad.jsonl", "thing 9")
    work(nights)
    told = filed(nights) if len(filed(nights)["training_history"]) > 2 else mirrored(nights)
    refused = [one for one in told["training_history"] if one["state"] == "refused"]
    assert refused and "samples were seen" in refused[0]["decision"] and not refused[0]["training_success"]
    assert "/jobs/" in refused[0]["output_model_path"]
    assert told["head"]["version"] == 2 == told["heads"][""]["version"]


def test_ten_years_of_nights_are_mirrored_in_a_moment(nights: Home) -> None:
    paths = nights.profile("me")
    with ledger.open_profile(paths.ledger, write=True) as db, db.transaction():
        made = "2026-11-21T00:00:00Z"
        for number in range(3, 3653):
            jobs.insert(
                db, job=number, kind="finetune", folder=f"{number}-finetune", spec_sha256="0" * 64, chain=1,
                parent_sha256="1" * 64, parent_step=number, steps=1, samples=1, now=made, memories=[], batches=[],
            )  # fmt: skip
            db.execute(
                """INSERT INTO versions (id, job, state, parent, chain, step, checkpoint_sha256, created_at)
                VALUES (?, ?, 'promoted', ?, 1, ?, ?, ?)""",
                (number, number, number - 1, number + 1, f"{number:064}", made),
            )
    begin = time.process_time()
    told = mirrored(nights)
    assert time.process_time() - begin < 2.0
    assert len(registry.line_of(told, 3652)) == 3652
    assert registry.line_of(told, None) == [] == registry.line_of(told, 9999)
