"""What each kind of memory becomes: the chats that are trained, and which turn is learnt."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from daemon.records import Memory, Turn
from daemon.rules.curation import Curation
from daemon.rules.prompts import DEFAULTS, Prompts, choose
from daemon.rules.samples import make_samples
from trainer.contract import Sample

CURATION = Curation.default()
PROMPTS = Prompts.default()

# Every type that the origin writes, and those of its curator's table.
TYPES = [
    "conversation", "chat", "inner_dialogue", "tool_invocation", "tool_use", "file_read", "file_write",
    "code_approval", "code_rejection", "summary", "observation", "reflection", "dream", "daydream", "task",
    "operator_feedback", "action", "journal", "audio", "unheard_of",
]  # fmt: skip


def samples(memory: Memory, **settings: Any) -> list[Sample]:
    return make_samples(memory, Curation.from_mapping(settings), PROMPTS, 7)


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in sample.messages]


def test_the_file_says_what_the_code_says() -> None:
    path = Path(__file__).parents[2] / "etc" / "prompts.toml"
    assert tomllib.loads(path.read_text()) == DEFAULTS


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "parts",
    [
        {"content": "It rained on the ferry."},
        {"content": "And the ferry?", "response": "It rained on the ferry."},
        {
            "content": "It rained on the ferry.",
            "payload": {"tool": "x", "inputs": {"a": 1}, "outputs": "wet"},
        },
        {"content": "It rained on the ferry.", "payload": {"success": False, "error": "sank"}},
        {"content": "", "payload": {"tool": "ferry", "outputs": "It rained on the ferry."}},
    ],
    ids=["text", "pair", "tool", "failed", "bare tool"],
)
def test_every_type_gives_samples(kind: str, parts: dict[str, Any]) -> None:
    memory = Memory(kind, source="origin", **parts)
    made = samples(memory)
    assert len(made) == 1
    (sample,) = made
    assert (sample.id, sample.memory) == (f"{memory.id}#0", memory.id)
    assert [turn.role for turn in sample.messages] == ["user", "assistant"]
    assert [turn.loss for turn in sample.messages] == [False, True]
    assert "It rained on the ferry." in sample.messages[1].content


@pytest.mark.parametrize("kind", [*DEFAULTS["types"], "unheard_of"])
def test_prompts_vary_with_the_memory(kind: str) -> None:
    wordings = PROMPTS.of_type(kind)
    used = {samples(Memory(kind, f"Text {n}."))[0].messages[0].content for n in range(60)}
    assert used == set(wordings)
    assert len(used) >= 3


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("inner_dialogue", "Reflect on your recent experiences and share your inner thoughts."),
        ("reflection", "What insights have you gained from recent experiences?"),
        ("dream", "Describe your dream or subconscious thoughts."),
        ("journal", "What would you like to journal about?"),
        ("other", "Share your thoughts."),
    ],
)
def test_the_prompts_of_the_origin_are_among_them(kind: str, prompt: str) -> None:
    assert prompt in DEFAULTS["types"][kind]


def test_samples_are_the_same_every_time() -> None:
    memory = Memory("dream", "I flew over Oslo.")
    assert samples(memory) == samples(memory)
    seeds = {make_samples(memory, CURATION, PROMPTS, seed)[0].messages[0].content for seed in range(40)}
    assert len(seeds) == 4


def test_a_pair_keeps_its_context_without_loss() -> None:
    context = (Turn("system", "Be kind."), Turn("user", "a?"), Turn("assistant", "User: b."))
    (sample,) = samples(Memory("conversation", "c?", response="d.", context=context))
    assert said(sample) == [
        ("system", "Be kind."), ("user", "a?"), ("assistant", "b."), ("user", "c?"), ("assistant", "d.")
    ]  # fmt: skip
    assert [turn.loss for turn in sample.messages] == [False, False, False, False, True]


def test_a_tool_answers_as_a_tool() -> None:
    (sample,) = samples(Memory("conversation", "4 C", response="Take a coat.", extra={"asked_by": "tool"}))
    assert [turn.role for turn in sample.messages] == ["tool", "assistant"]


def test_the_system_prompt_stands_first_unless_there_is_one() -> None:
    plain = Memory("dream", "I flew.")
    own = Memory("chat", "a", response="b", context=(Turn("system", "Mine."),))
    first = [
        make_samples(m, CURATION, PROMPTS, 1, "You are Mira.")[0].messages[0].content for m in (plain, own)
    ]
    assert first == ["You are Mira.", "Mine."]


# ---- dual mode ------------------------------------------------------------------------------------------

REPLY = "Okay, the dog waits at the gate. " + "It is there each day. " * 12


@pytest.mark.parametrize(
    ("memory", "count"),
    [
        (Memory("conversation", "Who waits?", response=REPLY, mode="dual", source="origin"), 2),
        (Memory("chat", "Who waits?", response=REPLY, mode="dual", source="pairs"), 2),
        (Memory("conversation", "Who waits?", response=REPLY, source="origin"), 1),
        (Memory("conversation", "Who waits?", response=REPLY, mode="agent", source="origin"), 1),
        (Memory("inner_dialogue", "Who waits?", source="origin"), 1),
        (Memory("inner_dialogue", "Who waits?", response=REPLY, source="origin"), 1),
        (Memory("conversation", "Who waits?", response=REPLY, mode="dual", extra={"asked_by": "tool"}), 1),
    ],
)
def test_dual_pairs_are_flipped_too(memory: Memory, count: int) -> None:
    made = samples(memory)
    assert len(made) == count
    assert len(samples(memory, dual={"flip": False})) == 1
    if count == 2:
        assert made[1].id == f"{memory.id}#1"
        assert said(made[1]) == [("user", REPLY.rstrip()), ("assistant", "Who waits?")]
        assert [turn.loss for turn in made[1].messages] == [False, True]


# ---- the person's own text --------------------------------------------------------------------------------


def test_own_text_is_split_and_never_trimmed() -> None:
    paragraphs = [" ".join([f"word{n}"] * 120) + "." for n in range(6)]
    text = "Okay, " + "\n\n".join(paragraphs)
    made = samples(Memory("journal", text, source="origin"))
    assert len(made) == 3
    assert [sample.id.split("#")[1] for sample in made] == ["0", "1", "2"]
    assert "\n\n".join(sample.messages[-1].content for sample in made) == text
    assert made[1].messages[0].content != made[0].messages[0].content
    assert "word1." in made[1].messages[0].content  # where the piece before ended


def test_one_endless_paragraph_is_split_at_sentences() -> None:
    text = " ".join(f"This is sentence number {n}." for n in range(200))
    made = samples(Memory("journal", text))
    assert len(made) == 4
    assert " ".join(sample.messages[-1].content for sample in made) == text


# ---- tools and tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "payload", "asked", "answered"),
    [
        ("Looked it up.", {"tool": "web", "inputs": {"q": "tea", "n": 3}, "outputs": "green"},
         ["web", "q: tea, n: 3"], "Looked it up.\nResult: green"),
        ("Looked it up: green", {"tool": "web", "inputs": {"q": "tea"}, "outputs": "green"},
         ["web", "q: tea"], "Looked it up: green"),
        ("Looked it up.", {"tool": "web", "outputs": {"a": [1, {"b": 2}]}},
         ["web"], 'Looked it up.\nResult: {"a": [1, {"b": 2}]}'),
        ("Looked it up.", {"tool": "web", "success": False, "error": "no {network}"},
         ["web"], "Looked it up.\nIt failed: no {network}"),
        ("", {"tool": "web", "success": False}, ["web"], "It failed."),
        ("", {"tool": "web", "success": True}, ["web"], "It worked."),
        ("Read my diary.", {"file": "a/{b}.md", "snippet": "Dear diary"}, ["a/{b}.md"],
         "Read my diary.\nResult: Dear diary"),
    ],
)  # fmt: skip
def test_tool_calls(content: str, payload: dict[str, Any], asked: list[str], answered: str) -> None:
    (sample,) = samples(Memory("tool_invocation", content, payload=payload, source="origin"))
    assert all(part in sample.messages[0].content for part in asked)
    assert sample.messages[1].content == answered


def test_a_flood_of_output_is_cut() -> None:
    payload = {"tool": "web", "outputs": "A line of output. " * 1_000}
    (sample,) = samples(Memory("tool_use", "Ran.", payload=payload))
    assert len(sample.messages[1].content.split()) <= 302


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("todo", "Buy beans. Red ones. It is still to be done."),
        ("done", "Buy beans. Red ones. It is done."),
        ("someday", "Buy beans. Red ones."),
    ],
)
def test_tasks(status: str, answer: str) -> None:
    payload = {"title": "Buy beans", "description": "Red ones", "status": status}
    (sample,) = samples(Memory("task", "Buy beans\nRed ones", payload=payload, source="origin"))
    assert "Buy beans" in sample.messages[0].content
    assert sample.messages[1].content == answer


@pytest.mark.parametrize("memory", [Memory("dream", "<mode:dual>"), Memory("chat", "a", response=" ")])
def test_nothing_to_learn_gives_no_sample(memory: Memory) -> None:
    assert samples(memory) == []


# ---- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"what": 1}, "what is no key"),
        ({"types": ["a"]}, "must be a table"),
        ({"types": {"dream": []}}, "types.dream"),
        ({"types": {"dream": "Dream?"}}, "list of at least one wording"),
        ({"types": {"dream": ["{dream}?"]}}, "the braces allowed in it are none"),
        ({"go_on": ["after {lost}"]}, "{last}"),
        ({"go_on": ["after {"]}, "{last}"),
        ({"tools": {"asks": []}}, "tools.asks is no key"),
        ({"tools": {"result_words": 0}}, "above 0"),
        ({"tasks": {"states": {"todo": ""}}}, "must be a text"),
    ],
)
def test_wrong_prompts_are_one_sentence(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Prompts.from_mapping(given)
    assert says in str(caught.value)


def test_new_types_may_have_prompts_of_their_own() -> None:
    prompts = Prompts.from_mapping({"types": {"letter": ["What did you write to her?"]}})
    (sample,) = make_samples(Memory("letter", "Dear Ingrid."), CURATION, prompts, 1)
    assert sample.messages[0].content == "What did you write to her?"
    assert prompts.of_type("dream") == PROMPTS.of_type("dream")


def test_choose_is_even() -> None:
    counts = [[choose(("a", "b", "c"), n) for n in range(3_000)].count(one) for one in "abc"]
    assert all(900 < count < 1_100 for count in counts)


def test_what_is_redacted_is_redacted_in_every_sample() -> None:
    curation = Curation.from_mapping({"secrets": {"action": "redact"}, "modes": {"conversation": "dual"}})
    key = "AKIAIOSFODNN7EXAMPLQ"
    pair = Memory(type="conversation", content=f"My key is {key}, keep it", response=f"I keep {key} for you")
    call = Memory(type="tool_use", content="It ran", payload={"tool": "deploy", "inputs": {"key": key}, "outputs": key})
    for memory in (pair, call):
        samples = make_samples(memory, curation, Prompts.default(), 0)
        assert samples and key not in "".join(sample.model_dump_json() for sample in samples)
        assert {sample.memory for sample in samples} == {memory.id}
