"""The classic builder: nothing cut, the same pair once."""

from daemon.records import Memory
from daemon.rules import classic
from daemon.rules.curation import Curation, judge
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples
from trainer.contract import Message, Sample

PLAIN = classic.plain(Curation.default())
WORDY = "Okay, " + " ".join(["word"] * 50) + ". And more."


def sample(identity: str, *turns: str) -> Sample:
    roles = ("user", "assistant") * len(turns)
    messages = [
        Message(role=roles[n], content=text, loss=n == len(turns) - 1)  # type: ignore[arg-type]
        for n, text in enumerate(turns)
    ]
    return Sample(id=identity, messages=messages, memory=identity)


def test_the_same_pair_is_taken_once() -> None:
    given = [
        sample("a", "Where?", "Here."),
        sample("b", "Where?", "There."),
        sample("c", "Where?", " Here. "),
        sample("d", "When?", "Here."),
        sample("e", "Where?", "here."),
        sample("f", "Hello.", "Hi.", "Where?", "Here."),
    ]
    assert [one.id for one in classic.build(given)] == ["a", "b", "d", "e", "f"]
    assert next(classic.build(given)) is given[0]


def test_nothing_is_cut() -> None:
    memory = Memory("conversation", "And then?", response=WORDY, source="origin", mode="dual")
    (only,) = make_samples(memory, PLAIN, Prompts.default(), 1)
    assert only.messages[-1].content == WORDY


def test_what_is_left_out_all_the_same() -> None:
    assert judge(Memory("chat", "How?", response="😂"), PLAIN).keep
    assert judge(Memory("journal", "Tired."), PLAIN).keep
    assert judge(Memory("journal", "1984"), PLAIN).keep
    assert not judge(Memory("journal", " "), PLAIN).keep
    assert not judge(Memory("journal", "Good day.", tags=("feedback",)), PLAIN).keep
    assert not judge(Memory("journal", "My card is 4111 1111 1111 1111."), PLAIN).keep
