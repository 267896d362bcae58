"""Which questions are asked after a job."""

from pathlib import Path

import pytest

from daemon import ledger
from daemon.ledger import probing
from daemon.records import Memory
from daemon.rules.probes import make_probes, of_anchors, template, with_free_answers
from trainer.contract import Message, Sample


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


def test_a_text_of_a_known_day_is_asked_about_by_a_template_too() -> None:
    dream = Memory("dream", "I flew over the sea.", time="2024-03-05T06:00:00Z")
    own, by_template = make_probes([dream], seed=1, templates=True, group="old", system_prompt="You are Mira.")
    assert (own.form, by_template.form) == ("own", "template")
    assert own.answer == by_template.answer == "I flew over the sea."
    assert [turn.content for turn in by_template.messages] == ["You are Mira.", "What did you dream on 5 March 2024?"]
    assert own.id != by_template.id and {own.group, by_template.group} == {"old"}
    assert template(Memory("ode", "O wind!", time="2024-12-31")) == "What did you write on 31 December 2024?"
    assert template(pair(1)) is None and template(text(1)) is None
    assert len(make_probes([dream, pair(1)], seed=1, limit=2, templates=True)) == 2


def test_free_answers_are_shared_among_the_groups() -> None:
    groups = [make_probes([pair(n) for n in range(start, start + 8)], seed=1) for start in (0, 10, 20)]
    probes = with_free_answers([*groups, []], 7)
    assert len(probes) == 24
    assert [sum(probe.free for probe in probes[start : start + 8]) for start in (0, 8, 16)] == [3, 2, 2]
    assert not any(probe.free for probe in with_free_answers(groups, 0))


def anchor(number: int, answer: str = "Because.") -> Sample:
    turns = [Message(role="user", content=f"Why {number}?"), Message(role="assistant", content=answer, loss=True)]
    return Sample(id=f"anchor-{number}", messages=turns, use="anchor")


def test_general_text_is_asked_for_as_it_was() -> None:
    anchors = [anchor(number) for number in range(50)]
    probes = of_anchors(anchors, 10)
    assert len(probes) == 10 and of_anchors(reversed(anchors), 10) == probes
    assert {probe.group for probe in probes} == {"anchor"} and probes[0].memory is None
    assert len(probes[0].messages) == 1 and probes[0].answer == "Because."
    assert of_anchors([anchor(1, "word " * 100)], 10) == []


@pytest.fixture
def db(tmp_path: Path) -> ledger.Database:
    """Three years of memories, a job a month, the last one undated; every tenth is held out."""
    db = ledger.open_profile(tmp_path / "ledger.db", write=True)
    with db.transaction():
        db.execute("INSERT INTO batches (id, sha256, name, path, size, state, claimed_at) "
                   "VALUES (1, '', '', '', 0, 'done', '')")  # fmt: skip
        seq = 0
        for month in range(36):
            db.execute("INSERT INTO jobs (id, kind, state, folder, spec_sha256, steps, samples, created_at) "
                       "VALUES (?, 'finetune', 'promoted', '', '', 1, 1, '')", (month + 1,))  # fmt: skip
            for number in range(10):
                seq += 1
                held = number == 0
                id_ = (seq if held else 2**31 + seq).to_bytes(4, "big") + bytes(28)
                day = f"{2021 + month // 12}-{month % 12 + 1:02}-{2 * number + 1:02}"
                time = None if month == 35 else f"{day}T10:00:00Z"
                db.execute("INSERT INTO memories (seq, id, batch, state, type, source, content, response, time) "
                           "VALUES (?, ?, 1, ?, 'conversation', 'x', ?, 'Yes.', ?)",
                           (seq, id_, "held_out" if held else "trained", f"Question {seq}?", time))  # fmt: skip
                if not held:
                    db.execute("INSERT INTO job_memories VALUES (?, ?, 'new', 1)", (month + 1, seq))
    return db


def test_old_ones_are_of_all_months_and_recent_ones_of_the_last_jobs(db: ledger.Database) -> None:
    old = probing.old(db, 64, seed=1)
    months = [(memory.time or "unknown")[:7] for memory in old]
    assert len(set(months)) == 36 - probing.RECENT_JOBS  # those of the last jobs are recent
    assert max(map(months.count, set(months))) <= 9
    assert [memory.id for memory in probing.old(db, 64, seed=1)] == [memory.id for memory in old]
    recent = probing.recent(db, 64, seed=1)
    numbers = {int(memory.content.split()[1].rstrip("?")) for memory in recent}
    assert numbers and min(numbers) > (36 - probing.RECENT_JOBS) * 10
    assert not {memory.content for memory in recent} & {memory.content for memory in old}
    held = probing.held_out(db, 8, 2.0)
    assert [int(memory.content.split()[1].rstrip("?")) for memory in held] == list(range(1, 241, 10))
    assert probing.held_out(db, 8, 0.0) == []


def test_of_few_jobs_half_are_old(tmp_path: Path) -> None:
    with ledger.open_profile(tmp_path / "ledger.db", write=True) as db:
        assert probing.recent(db, 64, 1) == probing.old(db, 64, 1) == probing.held_out(db, 64, 2.0) == []
