"""What the gate refuses: pure first, then on the road with the fake trainer."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import batches, jobs, memories, scores
from daemon.rules.promotion import CHECKS, Verdict, decide
from daemon.settings_learning import GateSettings
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import drop, fault, read, work
from trainer import names
from trainer.contract import JobResult

GOOD = {"held_out.loss": 2.0, "old.token_accuracy": 0.9, "anchor.token_accuracy": 0.8, "new.token_accuracy": 0.9}


def result(candidate: dict[str, float] | None = None, served: dict[str, float] | None = None,
           each: int = 16, **fields: Any) -> JobResult:  # fmt: skip
    """A finished job of 4 steps over 8 samples, whose figures are good but for these."""
    metrics: dict[str, float] = {"probes": 4.0 * each}
    for who, changes in (("candidate", candidate), ("served", served), ("base", None)):
        for key, value in (GOOD | (changes or {})).items():
            metrics[f"{who}.{key}"] = value
            metrics[f"{who}.{key.partition('.')[0]}.probes"] = float(each)
    told = {"steps": 4, "samples_seen": 8, "last_loss": 1.0, "metrics": metrics} | fields
    return JobResult.model_validate({"exit_code": 0, **told})


def judge(told: JobResult, gate: GateSettings | None = None, **options: Any) -> Verdict:
    options = {"probes": 64, "gate": gate or GateSettings()} | options
    return decide(told, planned_steps=4, planned_samples=8, **options)


def test_an_equal_candidate_is_promoted_and_says_what_was_looked_at() -> None:
    verdict = judge(result())
    assert verdict.promoted
    assert verdict.reason == (
        "all 4 steps taken, last loss 1.0000; held-out loss 2.00 after 2.00; old recall 0.90 after 0.90; "
        "general ability 0.80 after 0.80; general ability since the base 0.80 after 0.80"
    )
    assert [one["decides"] for one in verdict.figures["checks"]] == [True] * len(CHECKS)
    assert json.loads(json.dumps(verdict.figures)) == verdict.figures


@pytest.mark.parametrize(("candidate", "sentence"), [
    ({"held_out.loss": 2.5}, "held-out loss rose from 2.00 to 2.50, more than gate.held_out_loss = 0.20 allows"),
    ({"old.token_accuracy": 0.61}, "old recall fell from 0.90 to 0.61, more than gate.old_recall = 0.10 allows"),
    ({"anchor.token_accuracy": 0.7}, "general ability fell from 0.80 to 0.70, more than gate.general = 0.05 allows"),
    ({"old.token_accuracy": 0.7996}, "old recall fell from 0.9000 to 0.7996, more than gate.old_recall = 0.10 allows"),
    ({"anchor.token_accuracy": 0.1, "old.token_accuracy": 0.1},
     "old recall fell from 0.90 to 0.10, more than gate.old_recall = 0.10 allows; "
     "general ability fell from 0.80 to 0.10, more than gate.general = 0.05 allows; "
     "general ability since the base fell from 0.80 to 0.10, more than gate.drift = 0.20 allows"),
])  # fmt: skip
def test_what_is_worse_by_more_than_the_margin_is_refused(candidate: dict[str, float], sentence: str) -> None:
    verdict = judge(result(candidate))
    assert (verdict.promoted, verdict.reason) == (False, sentence)


@pytest.mark.parametrize("candidate", [
    {"held_out.loss": 2.2}, {"old.token_accuracy": 0.8}, {"anchor.token_accuracy": 0.75},
    {"held_out.loss": 1.0, "old.token_accuracy": 1.0}, {"new.token_accuracy": 0.0},
])  # fmt: skip
def test_up_to_the_margin_it_passes(candidate: dict[str, float]) -> None:
    assert judge(result(candidate)).promoted


def test_what_was_lost_slowly_is_refused_too() -> None:
    """No night lost more than the margin, all of them together did."""
    sentence = "general ability since the base fell from 0.80 to 0.59, more than gate.drift = 0.20 allows"
    verdict = judge(result({"anchor.token_accuracy": 0.59}, {"anchor.token_accuracy": 0.62}))
    assert (verdict.promoted, verdict.reason) == (False, sentence)
    assert judge(result({"anchor.token_accuracy": 0.6}, {"anchor.token_accuracy": 0.62})).promoted


def test_too_few_questions_decide_nothing() -> None:
    verdict = judge(result({"old.token_accuracy": 0.0}, each=7), probes=28)
    assert verdict.promoted
    assert [one["decides"] for one in verdict.figures["checks"]] == [False] * len(CHECKS)
    assert "7 questions of this kind, fewer than gate.least_probes = 8" in verdict.figures["checks"][1]["why"]
    assert not judge(result({"old.token_accuracy": 0.0}, each=7), GateSettings(least_probes=7), probes=28).promoted


def test_a_first_version_answers_for_general_ability_only() -> None:
    told = {"held_out.loss": 9.0, "old.token_accuracy": 0.0}
    assert judge(result(told), against_base=True).promoted
    assert not judge(result(told | {"anchor.token_accuracy": 0.1}), against_base=True).promoted


def test_questions_that_were_not_scored() -> None:
    verdict = judge(result(metrics={}))
    assert (verdict.promoted, verdict.reason) == (False, "0 of the 64 questions of this job were scored")
    assert judge(result(metrics={}), probes=0).promoted


def test_a_gate_that_is_off_only_tells() -> None:
    verdict = judge(result({"old.token_accuracy": 0.1}), GateSettings(enabled=False))
    assert verdict.promoted and "gate.enabled is false, else it were refused: old recall fell" in verdict.reason
    assert verdict.figures["checks"][1]["worse"]
    assert not judge(result(steps=3), GateSettings(enabled=False)).promoted


@pytest.mark.parametrize(("fields", "reason"), [
    ({"steps": 3}, "3 of 4 planned steps were taken"),
    ({"samples_seen": 7}, "7 of 8 planned samples were seen"),
    ({"last_loss": None}, "the last loss is None"),
])  # fmt: skip
def test_work_that_was_not_done(fields: dict[str, Any], reason: str) -> None:
    verdict = judge(result(**fields))
    assert (verdict.promoted, verdict.reason, verdict.figures["done"]) == (False, reason, False)


def test_a_figure_that_is_no_number_is_worse_than_any_margin() -> None:
    told = result()
    told.metrics["candidate.old.token_accuracy"] = float("nan")
    assert not judge(told, GateSettings(old_recall=1.0)).promoted


# -- on the road -------------------------------------------------------------------------------------


def poison(home: Home, **figures: float) -> None:
    """From now on the fake trainer tells these figures, such as candidate__old__token_accuracy=0.1."""
    folder = home.profile("me").jobs
    folder.mkdir(parents=True, exist_ok=True)
    told = {key.replace("__", "."): value for key, value in figures.items()}
    (folder / "figures.json").write_text(json.dumps(told))
    fault(home, "metrics:figures.json\n")


BAD = {"candidate__anchor__token_accuracy": 0.1, "served__anchor__token_accuracy": 0.9,
       "candidate__anchor__probes": 16.0, "served__anchor__probes": 16.0}  # fmt: skip


def summary(home: Home, job: dict[str, Any]) -> dict[str, Any]:
    path = home.profile("me").jobs / job["folder"] / names.SUMMARY
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_a_refused_candidate_moves_nothing_and_is_kept(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", *(f"thing {n}" for n in range(20)))
    work(home)
    with read(home) as db:
        before = jobs.get_head(db)
    poison(home, **BAD)
    drop(home, "b.jsonl", "poison one", "poison two")
    work(home)
    with read(home) as db:
        assert jobs.get_head(db) == before
        refused = [row for row in jobs.versions(db) if row["state"] == "refused"]
        assert len(refused) == 2, "the batch is tried alone once more, and then a person decides"
        (held,) = batches.in_state(db, "held")
        assert held["name"] == "b.jsonl" and "general ability fell from 0.90 to 0.10" in held["reason"]
        assert memories.counts(db)["state"] == {"trained": 20, "held": 2}
        for version in refused:
            job = jobs.get(db, version["job"])
            assert job is not None
            folder = home.profile("me").jobs / job["folder"]
            assert (folder / f"checkpoint-{version['step']}" / names.MANIFEST).is_file()
            assert not (folder / names.PARENT).exists()
            gate = json.loads(version["gate"])
            assert gate["served_version"] == 1 and gate["done"] and gate["margins"]["general"] == 0.05
            told = summary(home, job)
            assert (told["verdict"], told["gate"]) == ("refused", gate)
            assert told["memories"]["new"] == 2 and told["memories"]["anchor"] == 0
            assert told["sizes"]["checkpoint"] > 0
    assert audit_is_clean(home, capsys)
    fault(home, None)
    drop(home, "c.jsonl", "a good one")
    work(home)
    with read(home) as db:
        head = jobs.get_head(db)
        assert head is not None and head["version"] == 4 and memories.counts(db)["state"]["held"] == 2
    assert audit_is_clean(home, capsys)


def test_batches_of_a_refused_job_are_retried_each_alone(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    poison(home, **BAD)
    for name in ("b", "c"):
        drop(home, f"{name}.jsonl", f"{name} 1")
    work(home)
    with read(home) as db:
        taken = [jobs.batches_of(db, row["id"]) for row in reversed(jobs.listing(db))]
        assert taken == [[1], [2, 3], [2], [3]]
        assert [row["failures"] for row in batches.in_state(db, "held")] == [2, 2]


def test_a_retried_batch_never_mixes_with_new_ones(home: Home) -> None:
    """Also one that a person has asked to be tried again."""
    from daemon.ledger import requests

    poison(home, **BAD)
    drop(home, "a.jsonl", "one")
    work(home)
    fault(home, None)
    with ledger.open_home(home.database, write=True) as db:
        requests.ask(db, "me", "retry", {"batch": 1}, "2026-11-21T08:00:00Z")
    drop(home, "b.jsonl", "two")
    work(home)
    with read(home) as db:
        good = [jobs.batches_of(db, row["id"]) for row in jobs.promoted(db)]
        assert sorted(good) == [[1], [2]] and memories.counts(db)["state"] == {"trained": 2}


def test_a_cycle_leaves_a_batch_that_failed_to_be_tried_alone(home: Home) -> None:
    from daemon.ledger.selection import select
    from daemon.rules.selection import Window

    drop(home, "a.jsonl", "one")
    work(home)
    poison(home, **BAD)
    drop(home, "b.jsonl", "two")
    work(home)
    with ledger.open_profile(home.profile("me").ledger, write=True) as db:
        with db.transaction():
            batches.retry(db, 2)
        for since in (None, "2020-01-01T00:00:00Z"):
            assert select(db, Window(None if since is None else 30, 10, None, None), since, 1).seqs == [1], since


def test_scores_and_figures_are_written_with_the_verdict(home: Home) -> None:
    drop(home, "a.jsonl", *(f"thing {n}" for n in range(9)))
    work(home)
    with read(home) as db:
        (version,) = jobs.versions(db)
        assert version["weights"] == "raw" and json.loads(version["gate"])["against_base"] is True
        rows = scores.of_version(db, version["id"])
        assert {row["who"] for row in rows} == {"candidate", "served", "base"}
        whole = {row["part"]: row["probes"] for row in rows if row["who"] == "candidate" and row["month"] == ""}
        path: Path = home.profile("me").jobs / jobs.promoted(db)[0]["folder"] / names.METRICS
        assert sum(whole.values()) == len(json.loads(path.read_text())["probes"]) > 0


def test_the_weights_that_are_better_are_remembered(home: Home) -> None:
    fault(home, "weights:ema\n")
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        assert jobs.versions(db)[0]["weights"] == "ema"
