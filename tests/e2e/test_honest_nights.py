"""Twenty honest nights and two cycles with the real trainer and the builtin model: the books agree, and the gate, as it
is shipped, refuses none of them. Only in the long form (`make faults`): it trains for minutes.
"""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.home import Home
from daemon.ledger import jobs, memories
from tests.e2e.test_year import Life, check_lineage, check_rebuilds, head, main_line
from tests.forked_trainer import command
from tests.year import Year, quiet
from tools.people import Person, make_people

NIGHTS, CYCLES_AFTER, PEOPLE, EPOCHS = 20, (9, 19), 3, 3  # of so many, each kind of check decides
SETTINGS: dict[str, Any] = {
    "training.dtype": "float32", "training.load_in_4bit": False, "training.optimizer": "adamw_torch",
    "training.use_gradient_checkpointing": False, "training.lora_rank": 32, "training.lora_alpha": 64,
    "training.learning_rate": 1e-3, "training.num_train_epochs": EPOCHS, "training.gradient_accumulation_steps": 8,
    "training.max_seq_length": 256, "training.mix.replay": 0.35, "training.mix.strategy": "random",
    "training.mix.anchor": 0.25, "training.mix.anchor_prompts": 64, "training.mix.anchor_tokens": 32,
    "evaluation.probes": 48, "evaluation.free_answers": 2, "evaluation.held_out_percent": 5.0,
    "evaluation.held_out_from": 0, "jobs.threads": 1, "schedule.cycles.monthly.when": "off", "cycle.old_samples": 32,
    "cycle.days_recent": 4,
}  # fmt: skip

pytestmark = pytest.mark.faults


def evening(people: list[Person], rng: random.Random) -> list[dict[str, str]]:
    """What a day brings of these people: an exchange and a journal entry for each fact."""
    found = []
    for telling in (one for person in people for fact in person.facts for one in fact.tellings(rng, 2)):
        asked = {"prompt": telling.prompt, "response": telling.text} if telling.prompt else None
        found.append(asked or {"text": telling.text, "type": telling.kind})
    return found


def figures(row: dict[str, Any]) -> str:
    """What the gate saw of a version, in a line: candidate after served."""
    told = json.loads(row["gate"])
    checks = [f"{one['name']} {one['candidate']:.3f} after {one['before']:.3f}{'' if one['decides'] else ' (few)'}"
              for one in told["checks"] if one["candidate"] is not None and one["before"] is not None]  # fmt: skip
    new = [", ".join(f"{key} {value:.2f}" for key, value in part.items()) for part in told["night"]]
    return f"v{row['id']} {row['state']}: {'; '.join(checks)}; what is new: {'; '.join(new)}"


def test_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_faults: bool) -> None:
    if not long_faults:
        pytest.skip("it trains for minutes: make faults")
    people, begun = make_people(1, NIGHTS * PEOPLE), time.monotonic()
    with quiet():
        year = Year(Home(tmp_path / "home"), monkeypatch, SETTINGS, command())
        for night in range(NIGHTS):
            year.until(0, 30)
            year.put(evening(people[night * PEOPLE :][:PEOPLE], random.Random(night)))
            year.night()
            print(f"{time.monotonic() - begun:6.0f} s  {figures(jobs.versions(year.db)[-1])}", flush=True)
            if night in CYCLES_AFTER:
                assert year.ask("cycle", kind="monthly")["state"] == "promoted"
                year.note()
                print(f"{time.monotonic() - begun:6.0f} s  {figures(jobs.versions(year.db)[-1])}  (cycle)", flush=True)
        life = Life(year)
        versions, states = check_lineage(year, life), memories.counts(year.db)["state"]
        assert versions == {"promoted": NIGHTS + len(CYCLES_AFTER)}
        assert memories.trained_exactly_once(year.db) == states["trained"]
        assert states["trained"] + states.get("held_out", 0) == year.told.dropped["me"]
        assert year.findings() == []
        told = check_rebuilds(year, life, tmp_path / "again")
        last, row = main_line(year)[0], head(year)
        assert last["id"] == row["version"]
        newest, first = (jobs.get(year.db, one["job"]) for one in (last, main_line(year)[-1]))
        year.close()
    assert newest and first
    metrics = json.loads(newest["result"])["metrics"]
    known = {who: metrics[f"{who}.old.token_accuracy"] for who in ("candidate", "base")}
    known["first"] = json.loads(first["result"])["metrics"]["candidate.new.token_accuracy"]
    print(f"{NIGHTS} nights, {len(CYCLES_AFTER)} cycles: memories {states}, {told}; "
          f"of old ones {known['candidate']:.3f} of the tokens are known (the base: {known['base']:.3f}, "
          f"v1 of its own: {known['first']:.3f}); {time.monotonic() - begun:.0f} s")  # fmt: skip
    assert known["candidate"] > known["base"] + 0.1
