"""Which memories are learnt, and what cleaning does to their texts."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.records import Memory
from daemon.rules.curation import DEFAULTS, Curation, clean, is_long_form, judge, reply, without_filler
from daemon.rules.wording import count_words, cut_at_sentence, last_sentence, split_text

CURATION = Curation.default()
SHORT = next(str(n) for n in range(99) if not is_long_form(str(n), 0.075))
LONG = next(str(n) for n in range(999) if is_long_form(str(n), 0.075))


def test_the_file_says_what_the_code_says() -> None:
    path = Path(__file__).parents[2] / "etc" / "curation.toml"
    assert tomllib.loads(path.read_text()) == DEFAULTS


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"nonsense": 1}, "nonsense is no key"),
        ({"replies": 3}, "must be a table"),
        ({"replies": {"trimm": True}}, "replies.trimm is no key"),
        ({"replies": {"trim": "yes"}}, "replies.trim is 'yes'; it must be true or false"),
        ({"replies": {"short_words": 0}}, "replies.short_words is 0"),
        ({"replies": {"short_words": True}}, "must be a number"),
        ({"replies": {"long_words": 5}}, "must not be below"),
        ({"replies": {"long_form_share": 1.5}}, "from 0 to 1"),
        ({"replies": {"filler": ["("]}}, "no pattern"),
        ({"replies": {"assistant_sources": "origin"}}, "list of strings"),
        ({"modes": {"dream": "sleepy"}}, "modes.dream is 'sleepy'; allowed are dual"),
        ({"skip": {"tags": ["feedback"]}}, "skip.tags"),
    ],
)
def test_wrong_settings_are_one_sentence(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        Curation.from_mapping(given_)
    assert says in str(caught.value)


def test_settings_replace_only_what_they_name() -> None:
    curation = Curation.from_mapping({"replies": {"trim": False}, "modes": {"letter": "dual"}})
    assert not curation.trim
    assert curation.short_words == 40
    assert curation.mode(Memory("letter", "x")) == "dual"
    assert curation.mode(Memory("dream", "x")) == "dual"


# ---- which are learnt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        (Memory("conversation", "a", response="b"), None),
        (Memory("operator_feedback", "a"), None),
        (Memory("conversation", "a", response="b", tags=("x", "Feedback")), "feedback on a reply, no memory"),
        (Memory("conversation", "a", response="b", extra={"reinforcementSignal": -1}), "marked as an unwanted reply"),
        (Memory("conversation", "a", response="b", extra={"reinforcementSignal": 1}), None),
        (Memory("observation", "a", tags=("corrupted",)), "marked as corrupted"),
        (Memory("observation", " [corrupted content]\n"), "marked as corrupted"),
        (Memory("inner_dialogue", "Curated 12", tags=("curator",)), "a notice of the curator"),
        (Memory("inner_dialogue", "Ran", tags=("background-task",)), "a notice of a background task"),
        (Memory("conversation", "a", response="b", extra={"suitableForTraining": False}),
         "marked as unsuitable for training"),
        (Memory("conversation", "a", response="b", extra={"suitableForTraining": True}), None),
        (Memory("observation", "  "), "empty"),
        (Memory("observation", "<mode:dual>"), "empty"),
        (Memory("conversation", "a", response=" "), "empty"),
        (Memory("tool_use", "", payload={"tool": "x"}), None),
    ],
)  # fmt: skip
def test_judge(memory: Memory, reason: str | None) -> None:
    verdict = judge(memory, CURATION)
    assert (verdict.keep, verdict.reason) == (reason is None, reason)


@pytest.mark.parametrize(
    ("kind", "said", "mode"),
    [
        ("inner_dialogue", None, "dual"),
        ("dream", "emulation", "emulation"),
        ("tool_invocation", None, "agent"),
        ("tool_use", "nonsense", "agent"),
        ("conversation", "dual", "dual"),
        ("never heard of", None, "emulation"),
    ],
)
def test_mode(kind: str, said: str | None, mode: str) -> None:
    assert CURATION.mode(Memory(kind, "x", mode=said)) == mode


# ---- filler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Sorry about that.",
        "Software is eating the world.",
        "Okay is what she said.",
        "Okay-ish weather today.",
        "So far so good.",
        "So I went home.",
        "Sure!",
        "Okay.",
        "Sure-footed goats live there.",
        "Surely not.",
        "Certainly not.",
        "Certainly the best bread in town.",
        "Oklahoma is far.",
        "OK Computer came out in 1997.",
        "Alright by me.",
        "Let me know when you are home.",
        "Let me think.",
        "Let me figure this out",
        "As an AI researcher, I read a lot.",
        "As a baker, I rise early.",
        "As an aide, she wrote his speeches.",
        "Here's what she wore.",
        "Here's whatever you asked for: a hat.",
        "I'm just here.",
        "I'm just an airport away.",
        "Social life is slow in winter.",
        "",
    ],
)
def test_no_filler_is_seen_where_there_is_none(text: str) -> None:
    assert without_filler(text, CURATION) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Okay, let me start by saying that I agree. It rains.", "It rains."),
        ("Okay let me think about it, it is red.", "It is red."),
        ("Sure! The shop is open.", "The shop is open."),
        ("OK: the shop is open.", "The shop is open."),
        ("Alright - the shop is open.", "The shop is open."),
        ("Certainly. Here's what I found: three trains.", "Three trains."),
        ("So, I went home.", "I went home."),
        ("As an AI, I cannot taste tea.", "I cannot taste tea."),
        ("As an AI language model, I cannot taste tea.", "I cannot taste tea."),
        ("As an AI assistant trained by a lab, I cannot taste tea.", "I cannot taste tea."),
        ("I'm just an AI, but I like tea.", "But I like tea."),
        ("I’m just here to help. Tea is fine.", "Tea is fine."),
        ("okay, so, sure, yes it is", "yes it is"),
    ],
)
def test_filler_goes(text: str, left: str) -> None:
    assert without_filler(text, CURATION) == left


# ---- length ---------------------------------------------------------------------------------------------


def test_replies_are_cut_at_a_sentence_end() -> None:
    text = " ".join(f"This is sentence number {n} of the reply." for n in range(60))
    short = reply(text, CURATION, SHORT)
    assert count_words(short) == 40
    assert short.endswith("reply.")
    assert text.startswith(short)
    long = reply(text, CURATION, LONG)
    assert 290 < count_words(long) <= 300
    assert reply(text, Curation.from_mapping({"replies": {"trim": False}}), SHORT) == text


def test_one_in_thirteen_may_be_long() -> None:
    share = sum(is_long_form(str(n), 0.075) for n in range(20_000)) / 20_000
    assert 0.07 < share < 0.08
    assert not any(is_long_form(str(n), 0.0) for n in range(100))
    assert all(is_long_form(str(n), 1.0) for n in range(100))


@pytest.mark.parametrize(
    ("text", "most", "cut"),
    [
        ("One two. Three four.", 4, "One two. Three four."),
        ("One two. Three four.", 3, "One two."),
        ("One two three. Four.", 2, "One two three."),
        ("a b c d e f g h", 2, "a b"),
        ("a b c d, e f g h i j k l", 5, "a b c d"),
        ("Dr. Berg came. She left.", 3, "Dr. Berg came."),
        ("I met J. Smith. He left.", 4, "I met J. Smith."),
        ("It cost 3.5 crowns. Cheap.", 4, "It cost 3.5 crowns."),
        ("So do I. And you?", 3, "So do I."),
        ("“Yes!” he said. Then no.", 3, "“Yes!” he said."),
        ("- one thing\n- another thing", 3, "- one thing"),
        ("今日は雨。明日は晴れ。", 6, "今日は雨。"),
    ],
)
def test_cut_at_sentence(text: str, most: int, cut: str) -> None:
    assert cut_at_sentence(text, most) == cut


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(alphabet="aI .,!?\n雨。-–Okay", min_size=1, max_size=200), st.integers(1, 20))
def test_cutting_never_empties_and_never_invents(text: str, most: int) -> None:
    cut = cut_at_sentence(text, most)
    assert text.startswith(cut)
    assert bool(cut.strip()) == bool(text.strip())
    cleaned = reply(text, CURATION, SHORT)
    assert bool(cleaned) == bool(text.strip())
    assert last_sentence(text).strip() in text


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(alphabet="ab .!\n", max_size=300), st.integers(1, 30))
def test_splitting_loses_nothing(text: str, about: int) -> None:
    pieces = split_text(text, about)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() for piece in pieces)


def test_texts_are_split_at_paragraph_ends() -> None:
    paragraphs = [" ".join([f"p{n}"] * 100) for n in range(7)]
    pieces = split_text("\n\n".join(paragraphs), 300)
    assert pieces == ["\n\n".join(paragraphs[i : i + 3]) for i in (0, 3, 6)]


# ---- whose text is cleaned --------------------------------------------------------------------------------

WORDY = "Okay, " + " ".join(["word"] * 50) + ". And more."


@pytest.mark.parametrize(
    ("source", "cleaned"),
    [("origin", "Word"), ("openai", "Okay, word"), ("alpaca", "Okay, word"), ("pairs", "Okay, word")],
)
def test_only_replies_of_the_origin_are_shortened(source: str, cleaned: str) -> None:
    memory = Memory("conversation", WORDY, response=WORDY, source=source)
    result = clean(memory, CURATION, SHORT)
    assert result.response is not None
    assert result.response.startswith(cleaned)
    assert (count_words(result.response) == 50) == (source == "origin")
    assert result.content == WORDY


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<mode:dual> I wonder.", "I wonder."),
        ("<|mode:agent|>I did it.", "I did it."),
        ("[MODE: emulation] Hello.", "Hello."),
        ("[dual] Hello.", "Hello."),
        ("User: Hello.", "Hello."),
        ("Assistant: Hello.", "Hello."),
        ("User:", "User:"),
        ("Users: many.", "Users: many."),
        ("A long text... [truncated]", "A long text"),
        ("I read [1] in <b>.", "I read [1] in <b>."),
        ("a  b\n\n\n\n    code", "a  b\n\n\n\n    code"),
        ("  indented", "indented"),
    ],
)
def test_marks_and_prefixes_go_from_every_text(text: str, left: str) -> None:
    assert clean(Memory("observation", text), CURATION).content == left


def test_white_space_of_a_reply() -> None:
    memory = Memory("chat", "a", response="One   two \n\n\n\nthree\n    four", source="origin")
    assert clean(memory, CURATION).response == "One two\n\nthree\n    four"
