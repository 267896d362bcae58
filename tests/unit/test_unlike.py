"""Nights that are unlike all before them: noise, and answers that belong to other questions."""

import pytest

from daemon.records import Memory
from daemon.rules.probes import crossed, make_probes
from daemon.rules.unlike import night, why_unlike
from daemon.settings_learning import GateSettings

GATE = GateSettings()
HONEST = {"questions": 64.0, "surprise": 1.5, "pairs": 40.0, "fit": 1.8}


def line(name: str, group: str, loss: float, form: str = "own") -> dict[str, object]:
    return {"id": name, "group": group, "form": form, "served": {"loss": loss}, "candidate": {"loss": 0.1}}


def test_the_figures_of_a_night() -> None:
    lines = [
        line("a?", "new", 1.0), line("b?", "new", 2.0), line("c?", "new", 6.0),
        line("c?template", "new", 99, "template"), line("a?crossed", "crossed", 3.0), line("b?crossed", "crossed", 3.0),
        line("o?", "old", 50.0),
    ]  # fmt: skip
    assert night(lines) == {"questions": 3.0, "surprise": 3.0, "pairs": 2.0, "fit": 1.5}
    assert night([]) == {"questions": 0.0, "pairs": 0.0}
    assert night([{"id": "a?", "group": "new"}]) == {"questions": 0.0, "pairs": 0.0}


@pytest.mark.parametrize(
    ("this", "earlier", "refused"),
    [
        # Measured with builtin:tiny: honest nights 1.4 to 2.1 nats and a fit of 1.5 to 1.9.
        ({"questions": 64.0, "surprise": 9.4, "pairs": 40.0, "fit": 0.0}, [HONEST] * 2, 2),  # letters
        ({"questions": 64.0, "surprise": 8.0, "pairs": 0.0}, [HONEST] * 2, 1),  # words at random
        ({"questions": 64.0, "surprise": 3.6, "pairs": 40.0, "fit": -0.03}, [HONEST] * 2, 1),  # answers swapped
        ({"questions": 64.0, "surprise": 2.1, "pairs": 40.0, "fit": 1.5}, [HONEST] * 2, 0),
        ({"questions": 64.0, "surprise": 3.9, "pairs": 40.0, "fit": 0.5}, [HONEST] * 2, 0),  # another kind of day
        ({"questions": 64.0, "surprise": 9.4, "pairs": 40.0, "fit": 0.0}, [HONEST], 0),  # no history yet
        ({"questions": 15.0, "surprise": 9.4, "pairs": 15.0, "fit": 0.0}, [HONEST] * 5, 0),  # too few to tell
        ({"questions": 64.0, "surprise": 9.4}, [HONEST, HONEST | {"surprise": 5.0}], 0),  # there was such a night
        ({"questions": 64.0, "pairs": 40.0, "surprise": 1.0, "fit": 0.0}, [HONEST, HONEST | {"fit": 0.1}], 0),
        ({"questions": 64.0, "surprise": 9.4, "pairs": 40.0, "fit": 0.0}, [HONEST, {"questions": 3.0}], 0),
        ({"questions": 0.0, "pairs": 0.0}, [HONEST] * 5, 0),
    ],
)
def test_what_is_unlike(this: dict[str, float], earlier: list[dict[str, float]], refused: int) -> None:
    reasons = why_unlike(this, earlier, GATE)
    assert len(reasons) == refused, reasons
    assert not why_unlike(this, earlier, GateSettings(surprise=0.0, fit=False))


def test_crossed_questions_have_answers_of_others() -> None:
    pairs = [Memory(type="conversation", content=f"Where is {n}?", response=f"It is at {n}.") for n in "abcde"]
    text = Memory(type="journal", content="A long day by the sea and some rain.", time="2026-03-01T00:00:00Z")
    new = make_probes([*pairs, text], 1, group="new", templates=True)
    found = crossed(new, {memory.id for memory in pairs})
    assert len(found) == 5 and {probe.group for probe in found} == {"crossed"}
    answers = {probe.memory: probe.answer for probe in new if probe.form == "own"}
    assert all(probe.answer != answers[probe.memory] and probe.id == f"{probe.memory}?crossed" for probe in found)
    assert sorted(probe.answer for probe in found) == sorted(answers[memory.id] for memory in pairs)
    assert crossed(new, set()) == [] and crossed(found[:1], {found[0].memory or ""}) == []
