"""Scores of versions by the month of the memories, and what `forget` leaves of the answers beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import checks, jobs, memories, scores
from daemon.rules.emptied import without_answers
from tests.unit.test_service import read, work
from trainer import names

JANUARY, MARCH = "2025-01-31T23:59:00Z", "2025-03-01T08:00:00Z"


def drop_dated(home: Home, name: str, *texts: tuple[str, str | None]) -> None:
    home.inbox.mkdir(parents=True, exist_ok=True)
    lines = []
    for text, time in texts:
        asked, answer = f"What about {text}?", f"It is {text}."
        dated = {"content": asked, "response": answer, "timestamp": time, "cognitiveMode": "dual"}
        lines.append(json.dumps(dated if time else {"prompt": asked, "response": answer}))
    (home.inbox / name).write_text("\n".join(lines) + "\n")


def line(memory: str | None, tokens: int, loss: float, right: float, exact: bool, group: str = "new") -> dict[str, Any]:
    score = {"loss": loss, "token_accuracy": right, "exact": exact}
    return {"id": f"{memory}?", "memory": memory, "group": group, "form": "own", "tokens": tokens,
            "candidate": score, "base": {**score, "loss": loss + 1.0, "exact": False}}  # fmt: skip


@pytest.fixture
def learnt(home: Home) -> Home:
    """One version of three memories: of January, of March, and one without a date."""
    drop_dated(home, "a.jsonl", ("one", JANUARY), ("two", MARCH), ("three", None))
    work(home)
    return home


def ids(db: ledger.Database) -> list[str]:
    return [row["id"].hex() for row in db.all("SELECT id FROM memories ORDER BY seq")]


def test_means_are_over_tokens_and_questions_by_month(learnt: Home) -> None:
    with ledger.open_profile(learnt.profile("me").ledger, write=True) as db:
        one, two, three = ids(db)
        claimed = db.all("SELECT claimed_at FROM batches")[0]["claimed_at"][:7]
        lines = [
            line(one, 10, 1.0, 0.5, False), line(one, 30, 2.0, 1.0, True), line(two, 10, 4.0, 0.2, False),
            line(three, 10, 1.0, 1.0, True), line(None, 10, 1.0, 0.4, False, "anchor"),
        ]  # fmt: skip
        for _ in range(2):  # a verdict that a crash cut off is written again
            with db.transaction():
                scores.record(db, 1, lines)
        found = {(row["part"], row["month"]): row for row in scores.of_version(db, 1) if row["who"] == "candidate"}
        assert list(found) == [("anchor", ""), ("new", ""), ("new", "2025-01"), ("new", "2025-03"), ("new", claimed)]
        january = found["new", "2025-01"]
        assert (january["probes"], january["loss"], january["token_accuracy"], january["exact"]) == (
            2, pytest.approx(1.75), pytest.approx(0.875), 0.5
        )  # fmt: skip
        assert found["new", ""]["probes"] == 4 and found["new", ""]["loss"] == pytest.approx(2.0)
        assert found["anchor", ""]["token_accuracy"] == pytest.approx(0.4)
        base = [row for row in scores.of_version(db, 1) if row["who"] == "base" and row["month"] == "2025-03"]
        assert [row["loss"] for row in base] == [5.0]
        assert not [row for row in scores.of_version(db, 1) if row["who"] == "served"]
        assert scores.of_versions(db, [1, 7])[0]["version"] == 1
        assert checks.verdicts_out_of_line(db) == []


def test_lines_in_another_form_count_for_nothing(learnt: Home) -> None:
    odd: list[dict[str, Any]] = [
        {}, {"group": 3, "tokens": 1}, {"group": "new", "tokens": 0}, {"group": "new", "tokens": "x"},
        {"group": "new", "tokens": 3, "memory": "no hex", "candidate": {"loss": None}},
        {"group": "new", "tokens": 3, "memory": ["x"], "candidate": []},
    ]  # fmt: skip
    with ledger.open_profile(learnt.profile("me").ledger, write=True) as db, db.transaction():
        scores.record(db, 1, [*odd, line("ab" * 32, 2, 1.0, 1.0, True)])
        assert [(row["month"], row["probes"]) for row in scores.of_version(db, 1) if row["who"] == "candidate"] == [
            ("", 1)
        ]


def test_an_audit_sees_what_no_verdict_wrote(learnt: Home) -> None:
    with ledger.open_profile(learnt.profile("me").ledger, write=True) as db:
        with db.transaction():
            db.execute("UPDATE scores SET probes = probes + 1 WHERE month <> '' AND who='candidate'")
        assert checks.verdicts_out_of_line(db)


# -- forgetting --------------------------------------------------------------------------------------


def test_free_answers_go_and_figures_stay() -> None:
    gone, stays = "ab" * 32, "cd" * 32
    told = {
        "metrics": {"probes": 2.0},
        "probes": [
            {"id": f"{gone}?", "memory": gone, "group": "old", "form": "own", "tokens": 4,
             "candidate": {"loss": 0.5, "free": "she lives in Lund", "free_exact": False}},
            {"id": f"{stays}?", "memory": stays, "group": "old", "form": "own", "tokens": 4,
             "candidate": {"loss": 0.5, "free": "blue", "free_exact": True}},
        ],
    }  # fmt: skip
    new = without_answers(json.dumps(told).encode(), frozenset((gone,)))
    assert new is not None and b"Lund" not in new
    first, second = json.loads(new)["probes"]
    assert first == {**told["probes"][0], "candidate": {"loss": 0.5, "free": "", "free_exact": False}}  # type: ignore[index]
    assert second == told["probes"][1]  # type: ignore[index]
    assert without_answers(new, frozenset((gone,))) == new, "said twice is said once"
    before = {"served": {f"{gone}?": {"loss": 1.0, "free": "in Lund"}, f"{stays}?": {"loss": 1.0, "free": "blue"}}}
    new = without_answers(json.dumps(before).encode(), frozenset((gone,)))
    assert new is not None and b"Lund" not in new and b"blue" in new
    assert without_answers(b"{not json", frozenset((gone,))) is None


def test_forget_reaches_the_answers_in_job_folders(learnt: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.cli import execute as main
    from tests.unit.test_going_back import audit_is_clean

    with read(learnt) as db:
        one, two, _ = ids(db)
        folder: Path = learnt.profile("me").jobs / jobs.promoted(db)[0]["folder"]
    answers = {"candidate": {"loss": 1.0, "free": "it is something about ONE, said in other words"}}
    kept = {"candidate": {"loss": 1.0, "free": "about two"}}
    told = {"metrics": {}, "probes": [{"id": f"{one}?", "memory": one, "group": "new", **answers},
                                      {"id": f"{two}?", "memory": two, "group": "new", **kept}]}  # fmt: skip
    for name, value in ((names.METRICS, told), (names.BEFORE, {"served": {f"{one}?": answers["candidate"]}})):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(value))
    with ledger.open_profile(learnt.profile("me").ledger, write=True) as db, db.transaction():
        seq = db.number("SELECT seq FROM memories WHERE id=?", (bytes.fromhex(one),))
        db.execute("INSERT OR REPLACE INTO memory_losses (memory, job, loss) VALUES (?, 1, 0.5)", (seq,))
    base = ["--home", str(learnt.root), "--set", "training.base_model=builtin:tiny"]
    assert main([*base, "forget", one, "--yes"]) == 0
    text = (folder / names.METRICS).read_text() + (folder / names.BEFORE).read_text()
    assert "other words" not in text and "about two" in text
    with read(learnt) as db:
        assert memories.counts(db)["state"]["forgotten"] == 1
        assert not db.number("SELECT count(*) FROM memory_losses WHERE memory=?", (seq,))
        assert checks.verdicts_out_of_line(db) == []
    assert audit_is_clean(learnt, capsys)
