"""The figures of a dataset against the origin's targets and limits."""

import json
from typing import Any

import pytest

from daemon.records import Memory
from daemon.rules.curation import Curation
from daemon.rules.prompts import Prompts
from daemon.rules.quality import Item, Quality, has_filler, metrics
from daemon.rules.samples import make_samples

CURATION = Curation.default()


def item(kind: str, words: int, number: int, filler: bool = False) -> Item:
    text = ("Sure, " if filler else "") + " ".join([f"word{number}"] * (words - filler)) + "."
    memory = Memory(kind, f"Question {number}?", response=text, source="origin")
    return memory, make_samples(memory, CURATION, Prompts.default(), 1)


def dataset(
    short: int, medium: int, long: int, filler: int = 0, dual: int = 30, agent: int = 15, times: int = 1
) -> list[Item]:
    """Of a hundred; the first `dual` of them are dreams, the next `agent` actions."""
    kinds = ["dream"] * dual + ["action"] * agent + ["conversation"] * (100 - dual - agent)
    lengths = [10] * short + [70] * medium + [150] * long
    return [
        item(kinds[n], lengths[(n * 37) % 100], n, filler=n % 100 < filler)
        for _ in range(times)
        for n in range(100)
    ]


def row(found: Quality, name: str) -> Any:
    return next(one for one in found.rows if one.metric == name)


def test_a_good_dataset() -> None:
    found = metrics(dataset(45, 38, 17), CURATION)
    assert (found.verdict, found.reasons, found.memories, found.samples) == ("go", (), 100, 100)
    assert {one.metric: one.figure for one in found.rows} == {
        "short": 0.45, "medium": 0.38, "long": 0.17, "filler": 0.0, "dual": 0.3, "emulation": 0.55, "agent": 0.15,
        "memories": 100,
    }  # fmt: skip
    assert row(found, "short").after > 0.55  # trimming makes more of them short
    assert row(found, "short").shown()[0::3] == ("short", "below 50%, limit 60%")
    assert row(found, "long").shown()[1] == "17.0%"


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        ((50, 35, 15), "warn", "50.0% short answers: the target is below 50%"),
        ((59, 31, 10), "warn", "59.0% short answers: the target is below 50%"),
        ((60, 30, 10), "no-go", "60.0% short answers: the limit is 60%"),
        ((93, 5, 2), "no-go", "93.0% short answers: the limit is 60%"),
        ((45, 45, 10), "warn", "45.0% answers of medium length: the target is 30% to 40%"),
        ((45, 30, 25), "warn", "25.0% long answers: the target is 10% to 20%"),
        ((45, 38, 17, 10), "warn", "10.0% answers that begin with filler: the target is below 10%"),
        ((45, 38, 17, 15), "no-go", "15.0% answers that begin with filler: the limit is 15%"),
        ((45, 38, 17, 0, 50, 10), "warn", "50.0% memories of mode dual: the target is 20% to 40%"),
        ((45, 38, 17, 0, 30, 0), "warn", "0.0% memories of mode agent: the target is 10% to 20%"),
    ],
)
def test_targets_and_limits(given: tuple[int, ...], verdict: str, reason: str) -> None:
    found = metrics(dataset(*given), CURATION)
    assert found.verdict == verdict
    assert reason in found.reasons
    assert len(found.reasons) == sum(one.verdict != "go" for one in found.rows)


def test_filler_before_and_after() -> None:
    found = metrics(dataset(45, 38, 17, 9), CURATION)
    assert (row(found, "filler").figure, row(found, "filler").after) == (0.09, 0.0)
    assert has_filler("Certainly! It is red.", CURATION)
    assert not has_filler("Sorry, it is red.", CURATION)
    mine = Memory("chat", "Coming?", response="Okay, I am coming now.", source="whatsapp")
    assert row(metrics([(mine, [])], CURATION), "filler").figure == 0.0


@pytest.mark.parametrize(
    ("count", "cycle", "new", "verdict", "reason"),
    [
        (3000, "foundation", None, "warn", "3,000 memories: a smoke test; a foundation needs over 3,000"),
        (3001, "foundation", None, "go", None),
        (200, "monthly", 500, "no-go", "500 new memories: a monthly cycle needs over 500"),
        (200, "monthly", 501, "go", None),
        (200, None, None, "go", None),
        (0, None, None, "no-go", "there is nothing to learn"),
        (0, "foundation", None, "no-go", "there is nothing to learn"),
    ],
)
def test_the_number_of_memories(
    count: int, cycle: Any, new: int | None, verdict: str, reason: str | None
) -> None:
    hundred = dataset(45, 38, 17)
    found = metrics((hundred[n % 100] for n in range(count)), CURATION, cycle, new)
    last = found.rows[-1]
    assert (last.verdict, last.reason) == (verdict, reason)
    assert found.smoke_test is (cycle == "foundation" and count <= 3000)


def test_content_only_and_tools_are_measured_too() -> None:
    curation = CURATION
    memories = [
        Memory("journal", " ".join(["word"] * 500)),
        Memory("tool_use", "", payload={"tool": "x", "outputs": " ".join(["wet"] * 60)}),
    ]
    found = metrics([(m, make_samples(m, curation, Prompts.default(), 1)) for m in memories], curation)
    assert (row(found, "medium").figure, row(found, "long").figure) == (0.5, 0.5)


def test_it_is_json() -> None:
    told = json.loads(json.dumps(metrics(dataset(60, 30, 10), CURATION, "foundation").as_dict()))
    assert told["verdict"] == "no-go"
    assert told["smoke_test"] is True
    assert told["metrics"][0] == {
        "metric": "short", "figure": 0.6, "after": told["metrics"][0]["after"], "target": "below 50%, limit 60%",
        "verdict": "no-go", "reason": "60.0% short answers: the limit is 60%",
    }  # fmt: skip


def test_the_targets_are_settings() -> None:
    mild = Curation.from_mapping({"quality": {"short": [0.0, 1.0], "short_limit": 1.0, "short_words": 5}})
    found = metrics(dataset(93, 5, 2), mild)
    assert row(found, "short").figure == 0.0
    assert row(found, "medium").figure == 0.98
