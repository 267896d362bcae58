"""Which questions are asked after a job."""

from daemon.records import Memory
from daemon.rules.probes import make_probes


def pair(number: int, answer: str = "Yes.") -> Memory:
    return Memory("conversation", f"Question {number}?", response=answer)


def text(number: int) -> Memory:
    return Memory("dream", f"Dream number {number}.")


def test_a_pair_asks_its_own_question_and_a_text_its_prompt() -> None:
    asked, dreamt = make_probes([text(1), pair(1)], seed=1)
    assert [turn.content for turn in asked.messages] == ["Question 1?"]
    assert (asked.answer, asked.memory) == ("Yes.", pair(1).id)
    assert dreamt.answer == "Dream number 1."
    assert dreamt.messages[-1].role == "user"
    assert not any(turn.loss for probe in (asked, dreamt) for turn in probe.messages)
    assert len({asked.id, dreamt.id}) == 2


def test_the_choice_depends_on_the_seed_alone() -> None:
    memories = [pair(n) for n in range(300)]
    first = make_probes(memories, seed=1)
    assert len(first) == 64
    assert make_probes(reversed(memories), seed=1) == first
    assert make_probes(memories + memories, seed=1) == first
    assert make_probes(memories, seed=2) != first


def test_pairs_come_before_texts() -> None:
    probes = make_probes([*(text(n) for n in range(50)), *(pair(n) for n in range(5))], seed=1, limit=20)
    assert [probe.answer == "Yes." for probe in probes] == [True] * 5 + [False] * 15


def test_what_is_no_good_question_is_left_out() -> None:
    memories = [
        pair(1, "word " * 61),
        pair(2, "x" * 5_000),
        Memory("conversation", "a", response="b", tags=("feedback",)),
        Memory("conversation", "4 C", response="Cold.", extra={"asked_by": "tool"}),
        Memory("dream", "  "),
    ]
    assert make_probes(memories, seed=1) == []
    assert make_probes([], seed=1) == []
    assert make_probes([pair(1)], seed=1, limit=0) == []


def test_the_system_prompt_is_asked_with() -> None:
    (probe,) = make_probes([pair(1)], seed=1, system_prompt="You are Mira.")
    assert [turn.role for turn in probe.messages] == ["system", "user"]
