"""Nights that are unlike all before them: noise, and answers that belong to other questions."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.records import Memory
from daemon.rules.probes import MOST_CROSSED, crossed, make_probes, of_each
from daemon.rules.unlike import night, why_unlike
from daemon.settings_learning import GateSettings
from trainer.contract import Message, Probe

GATE = GateSettings()
HONEST = {"questions": 64.0, "surprise": 1.5, "left": 0.3, "pairs": 40.0, "fit": 2.0, "error": 0.2}


def line(name: str, group: str, loss: float, form: str = "own", memory: str = "", left: float = 0.1) -> dict[str, Any]:
    told = {"served": {"loss": loss}, "candidate": {"loss": left}}
    return {"id": name, "memory": memory, "group": group, "form": form, **told}


def test_the_figures_of_a_night() -> None:
    lines = [
        line("a?", "new", 1.0), line("b?", "new", 2.0, left=0.3), line("c?", "new", 6.0), line("d?", "new", 7.0),
        line("c?template", "new", 99, "template"), line("a?crossed", "crossed", 3.0), line("b?crossed", "crossed", 3.0),
        line("o?", "old", 50.0), line("x?crossed", "crossed", 1.0),
    ]  # fmt: skip
    [told] = night(lines)
    assert told == {"questions": 4.0, "surprise": 2.0, "left": 0.1, "pairs": 2.0, "fit": 1.5, "error": 0.5}
    assert night([]) == [{"questions": 0.0, "pairs": 0.0}]
    assert night([{"id": "a?", "group": "new"}]) == [{"questions": 0.0, "pairs": 0.0}]


def test_the_figures_of_each_batch() -> None:
    lines = [line(f"{batch}{n}?", "new", float(n), memory=f"{batch}{n}") for batch in "ab" for n in range(4)]
    lines += [line("b1?crossed", "crossed", 4.0, memory="b1"), line("b2?crossed", "crossed", 4.0, memory="b2")]
    batch_of = {f"{batch}{n}": number for number, batch in enumerate("ab", 7) for n in range(4)}
    whole, a, b = night(lines, batch_of)
    assert (whole["questions"], a["questions"], b["questions"]) == (8.0, 4.0, 4.0) and "batch" not in whole
    assert (a["batch"], b["batch"], a["pairs"], b["pairs"]) == (7.0, 8.0, 0.0, 2.0) and b["fit"] == 2.5
    assert len(night(lines, dict.fromkeys(batch_of, 3))) == 1  # the only batch is the night


@pytest.mark.parametrize(
    ("this", "earlier", "refused"),
    [
        ({"surprise": 9.4, "left": 4.7, "fit": 0.0}, [HONEST] * 2, 1),  # letters
        ({"surprise": 8.0, "left": 1.3, "pairs": 0.0}, [HONEST] * 2, 1),  # words at random
        ({"surprise": 2.0, "fit": -1.5}, [HONEST] * 2, 1),  # answers swapped
        ({"surprise": 9.4, "left": 4.7, "fit": -1.5}, [HONEST] * 2, 2),
        ({"surprise": 2.1}, [HONEST] * 2, 0),
        ({"surprise": 6.0, "left": 0.5, "fit": 0.1}, [HONEST] * 2, 0),  # another kind of day, which was learnt
        ({"surprise": 3.9, "left": 2.0}, [HONEST] * 2, 0),  # hard to learn, but no surprise
        ({"fit": 0.0, "error": 0.05}, [HONEST] * 2, 0),  # small talk: every answer fits every question
        ({"fit": -0.4, "error": 0.05}, [HONEST] * 2, 0),
        ({"fit": -1.0, "error": 0.6}, [HONEST] * 2, 0),  # it may be chance
        ({"surprise": 9.4, "left": 4.7, "fit": -1.5}, [HONEST], 0),  # no history yet
        ({"questions": 15.0, "surprise": 9.4, "left": 4.7, "pairs": 0.0}, [HONEST] * 5, 0),
        ({"questions": 7.0, "surprise": 9.4, "left": 4.7, "pairs": 7.0, "fit": -1.5}, [HONEST] * 5, 0),
        ({"surprise": 9.4, "left": 4.7}, [HONEST, HONEST | {"surprise": 5.0}], 0),  # there was such a night
        ({"surprise": 9.4, "left": 4.7}, [HONEST, HONEST | {"left": 3.0}], 0),
        ({"fit": -1.5}, [HONEST, HONEST, HONEST | {"fit": 0.0}], 1),  # one night of small talk hides nothing
        ({"fit": -1.5}, [HONEST | {"fit": -0.1}] * 3, 0),  # whose answers never fitted
        ({"surprise": 9.4, "left": 4.7, "fit": -1.5}, [HONEST, {"questions": 3.0, "pairs": 0.0}], 0),
        ({"questions": 0.0, "pairs": 0.0}, [HONEST] * 5, 0),
    ],
)
def test_what_is_unlike(this: dict[str, float], earlier: list[dict[str, float]], refused: int) -> None:
    told, before = [HONEST | this], [[one] for one in earlier]
    reasons = why_unlike(told, before, GATE)
    assert len(reasons) == refused, reasons
    assert not why_unlike(told, before, GateSettings(surprise=0.0, fit=False))


def test_a_good_batch_hides_no_bad_one() -> None:
    parts = [HONEST | {"fit": 0.3}, HONEST | {"batch": 7.0}, HONEST | {"batch": 8.0, "fit": -1.5}]
    [reason] = why_unlike(parts, [[HONEST]] * 2, GATE)
    assert reason.startswith("batch 8: the new answers fit each other's questions better than their own, by 1.50 nats")
    assert why_unlike(parts[:2], [[HONEST]] * 2, GATE) == []
    assert why_unlike([HONEST | {"surprise": 9.0, "left": 4.0}], [[HONEST], parts], GATE)
    was_once = [HONEST, HONEST | {"batch": 2.0, "surprise": 8.0, "left": 3.0}]
    assert not why_unlike([HONEST | {"surprise": 9.0, "left": 4.0}], [[HONEST], was_once], GATE)


def test_the_history_of_a_home_without_questions() -> None:
    assert why_unlike([], [], GATE) == [] and why_unlike([HONEST | {"fit": -2.0}], [[], []], GATE) == []


def _pair(name: str, asked: str, answer: str) -> Probe:
    return Probe(id=f"{name}?", memory=name, answer=answer, messages=[Message(role="user", content=asked)])


def test_an_answer_goes_behind_the_question_that_is_most_like_it() -> None:
    asked = [
        ("a", "Where does Ulla live?", "Ulla lives in Oslo."), ("b", "What does Ulla eat?", "Ulla eats rice."),
        ("c", "Where does Bo live?", "Bo lives in Rome."), ("d", "What does Bo eat?", "Bo eats figs."),
    ]  # fmt: skip
    probes = [_pair(*one) for one in asked]
    found = crossed(probes, set("abcd"))
    assert [(one.id, one.memory, one.answer) for one in found] == [
        (f"{name}?crossed", name, answer) for name, _, answer in asked
    ]
    assert [one.messages[0].content for one in found] == [asked[n][1] for n in (1, 0, 3, 2)]
    mixed = [probe.model_copy(update={"answer": asked[n][2]}) for probe, n in zip(probes, (2, 3, 1, 0), strict=True)]
    back = {one.answer: one.messages[0].content for one in crossed(mixed, set("abcd"))}
    assert back["Bo lives in Rome."].endswith(("Bo live?", "Bo eat?"))
    assert back["Ulla lives in Oslo."].endswith(("Ulla live?", "Ulla eat?"))


def test_crossed_questions_are_never_an_answers_own() -> None:
    pairs = [Memory(type="conversation", content=f"Where is {n}?", response=f"It is at {n}.") for n in "abcde"]
    text = Memory(type="journal", content="A long day by the sea and some rain.", time="2026-03-01T00:00:00Z")
    new = make_probes([*pairs, text], 1, group="new", templates=True)
    found = crossed(new, {memory.id for memory in pairs})
    assert len(found) == 5 and {probe.group for probe in found} == {"crossed"}
    own = {probe.memory: probe for probe in new if probe.form == "own"}
    for probe in found:
        assert (probe.answer, probe.form, probe.free) == (own[probe.memory].answer, "own", False)
        assert probe.messages != own[probe.memory].messages and probe.id == f"{probe.memory}?crossed"
    assert crossed(new, set()) == [] and crossed(new[:1], {new[0].memory or ""}) == []
    assert crossed([_pair("a", "How?", "Well."), _pair("b", "How?", "Badly.")], {"a", "b"}) == []  # one question
    assert crossed([_pair("a", "How?", "Well."), _pair("b", "What?", "Well.")], {"a", "b"}) == []  # one answer


def test_many_questions_are_crossed_quickly_and_always_alike() -> None:
    dice = random.Random(1)
    words = ["".join(dice.choices("abcdefgh", k=4)) for _ in range(300)]
    probes = [_pair(str(n), " ".join(dice.choices(words, k=12)), " ".join(dice.choices(words, k=30)))
              for n in range(2000)]  # fmt: skip
    found = crossed(probes, {str(n) for n in range(2000)})
    assert len(found) == MOST_CROSSED and found == crossed(probes, {str(n) for n in range(2000)})


def test_no_batch_hides_behind_another_one() -> None:
    pairs = [Memory(type="conversation", content=f"Where is {n}?", response=f"It is at {n}.") for n in range(100)]
    texts = [Memory(type="journal", content=f"Day {n} was a long day by the sea, with some rain.") for n in range(30)]

    def make(memories: Sequence[Memory], limit: int) -> list[Probe]:
        return make_probes(memories, 1, limit)

    def chosen(*batches: list[Memory]) -> tuple[int, int]:
        found = of_each(batches, 64, make)
        assert len({probe.id for probe in found}) == len(found) <= 64
        known = {memory.id for memory in texts}
        return sum(probe.memory not in known for probe in found), sum(probe.memory in known for probe in found)

    assert chosen(pairs, texts) == (34, 30)
    assert chosen(pairs, texts[:5]) == (59, 5)
    assert chosen(pairs[:3], texts[:5]) == (3, 5)
    assert chosen(pairs + texts) == (64, 0)  # in one batch pairs come first
    assert sum(chosen(*([memory] for memory in pairs))) == 64
    assert of_each([], 64, make) == [] and of_each([pairs], 64, make) == make(pairs, 64)
