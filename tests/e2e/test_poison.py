"""Poison on the daemon's own road, judged by the real trainer's figures: the short form of benchmarks/poison.py."""

import random
from pathlib import Path

import pytest

from benchmarks._days import exchanges, letters, swapped
from benchmarks.poison import Road
from daemon.ledger import memories
from tests.forked_trainer import command
from tests.unit.test_going_back import audit_is_clean
from tools.people import make_people

# What tells poison is how the version in service takes it, so little training will do.
QUICK = {
    "training.num_train_epochs": 1, "training.lora_rank": 8, "jobs.nice": 0, "training.mix.anchor_prompts": 24,
    "training.mix.anchor_tokens": 16, "evaluation.probes": 48, "evaluation.free_answers": 0,
}  # fmt: skip


@pytest.fixture
def road(tmp_path: Path) -> Road:
    return Road(tmp_path / "home", command(), QUICK)


def test_a_poisoned_night_is_refused_and_good_ones_go_on(road: Road, capsys: pytest.CaptureFixture[str]) -> None:
    dice, people = random.Random(5), make_people(5, 12)
    good = [exchanges(people[2 * night :][:2], dice) for night in range(4)]
    assert [one["state"] for night in range(2) for one in road.night(**{f"good-{night}": good[night]})] == [
        "promoted", "promoted"
    ]  # fmt: skip
    # Both poisons come with a good batch: one job, refused as a whole, then each batch alone.
    poison = {"swapped": swapped(exchanges(people[8:10], dice), dice), "letters": letters(32, dice)}
    night = road.night(**{"good-2": good[2]}, **poison)
    assert [one["state"] for one in night].count("promoted") == 1 and night[0]["state"] == "refused"
    assert road.states() == {"good-0": "done", "good-1": "done", "good-2": "done", "swapped": "held", "letters": "held"}
    reasons = {one["id"]: str(one["reason"]) for one in night if one["state"] == "refused"}
    alone = list(reasons.values())[1:]
    assert any("fit each other's questions better" in reason for reason in alone), reasons
    assert any("like noise" in reason for reason in alone), reasons
    served = road.head()["version"]
    assert served == next(one["id"] for one in night if one["state"] == "promoted")
    [last] = road.night(**{"good-3": good[3]})
    assert (last["state"], last["parent"]) == ("promoted", served), last["reason"]
    with road.ledger() as db:
        held = len(poison["swapped"]) + len(poison["letters"])
        assert memories.counts(db)["state"]["held"] == held
        assert not db.all(
            """SELECT 1 FROM job_memories jm JOIN memories m ON m.seq = jm.memory JOIN jobs j ON j.id = jm.job
            WHERE m.state='held' AND j.state='promoted'"""
        )
    assert audit_is_clean(road.home, capsys)
