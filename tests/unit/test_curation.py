"""Which memories are learnt, and what cleaning does to their texts."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.records import Memory, Turn
from daemon.rules.curation import (
    DEFAULTS,
    Curation,
    clean,
    is_boilerplate,
    is_long_form,
    judge,
    reply,
    without_filler,
    without_private,
)
from daemon.rules.duplicates import Deduplicator
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples
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
        ({"skip": {"min_words": -1}}, "skip.min_words is -1; it must be a number from 0"),
        ({"skip": {"min_word": 1}}, "skip.min_word is no key"),
        (
            {"duplicates": {"threshold": 0.1}},
            "duplicates.threshold is 0.1; it must be a number from 0.5 to 1",
        ),
        ({"secrets": {"action": "hide"}}, "secrets.action is 'hide'; allowed are hold, redact, allow"),
        ({"secrets": {"allow": ["["]}}, "no pattern"),
        ({"secrets": {"kinds": {"cards": True}}}, "secrets.kinds.cards is no key; allowed are private_key"),
        ({"secrets": {"kinds": {"card": "on"}}}, "secrets.kinds.card is 'on'; it must be true or false"),
        ({"secrets": {"kinds": ["card"]}}, "secrets.kinds is ['card']; it must be a table"),
        ({"personal_data": {"score": 2}}, "personal_data.score is 2"),
        ({"personal_data": {"language": ""}}, "personal_data.language is ''; it must be a text"),
        ({"quality": {"short": 0.5}}, "quality.short is 0.5; it must be two numbers"),
        ({"quality": {"short": [0.5, 0.1]}}, "quality.short is [0.5, 0.1]"),
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
        (Memory("operator_feedback", "a b"), None),
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


SIGNS = "nothing but emoji or punctuation"


@pytest.mark.parametrize(
    ("text", "alone", "as_answer"),
    [
        ("Tired.", "too short", None),
        ("ok", "too short", None),
        ("Ok, thanks", None, None),
        ("-- 7 days", "too short", None),
        ("雨", "too short", None),
        ("下雨了", None, None),
        ("วันนี้ฝนตกหนักมาก", None, None),
        ("Heute Regen", None, None),
        ("😂", SIGNS, SIGNS),
        ("?!", SIGNS, SIGNS),
        ("❤️ ❤️ ...", SIGNS, SIGNS),
        ("1️⃣", "no words, only numbers and signs", None),
        ("1984", "no words, only numbers and signs", None),
        ("12 + 30 = 42; 42 * 2 = 84; 84 / 2 = 42; 42 - 30 = 12", "no words, only numbers and signs", None),
        ("aaaaaaaaa!!", *["the same letter again and again"] * 2),
        ("哈哈哈哈哈哈", *["the same letter again and again"] * 2),
        ("hmmmmmm", "too short", None),
        ("hahahaha no", None, None),
        ("https://example.org/a?b=1", *["nothing but web addresses"] * 2),
        ("www.example.org <https://example.org>", *["nothing but web addresses"] * 2),
        ("See https://example.org for more", None, None),
        ("aGVsbG8gd29ybGQsIHRoaXMgaXMgYmFzZTY0IGVuY29kZWQgdGV4dA==", *["a block of encoded data"] * 2),
        ("d41d8cd98f00b204e9800998ecf8427e " * 3, *["a block of encoded data"] * 2),
        ("def f(x):\n    return [y ** 2 for y in range(x) if y % 2]", None, None),
        ("/home/ines/projects/engram/source/version12/main.py is the file", None, None),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n|---|---|", *["hardly any letters"] * 2),
        ("Ich heiße Jörg und wohne in Köln", None, None),
        ("Сегодня идёт дождь", None, None),
        ("आज बारिश हो रही है", None, None),
    ],
)
def test_what_says_nothing_is_left_out(text: str, alone: str | None, as_answer: str | None) -> None:
    assert judge(Memory("journal", text), CURATION).reason == alone
    if as_answer != "hardly any letters":
        assert judge(Memory("chat", "And you?", response=text), CURATION).reason == as_answer


def test_tools_and_tasks_need_no_words() -> None:
    assert judge(Memory("tool_use", "42", payload={"tool": "x", "outputs": "42"}), CURATION).keep
    assert judge(Memory("task", "Tidy", payload={"title": "Tidy", "status": "todo"}), CURATION).keep


@pytest.mark.parametrize(
    ("count", "most", "is_one"), [(20, 20, False), (21, 20, True), (9999, 0, False), (1, 1, False)]
)
def test_boilerplate(count: int, most: int, is_one: bool) -> None:
    curation = Curation.from_mapping({"skip": {"recurs_more_than": most}})
    assert is_boilerplate(count, curation) is is_one


CARD = "my card is 4111 1111 1111 1111, or was"


@pytest.mark.parametrize(
    "memory",
    [
        Memory("journal", CARD),
        Memory("conversation", CARD, response="Thank you, noted."),
        Memory("conversation", "Which card?", response=CARD),
        Memory("conversation", "Which one?", response="That one there.", context=(Turn("user", CARD),)),
        Memory("tool_use", "Paid.", payload={"tool": "pay", "inputs": {"note": ["x", {"deep": CARD}]}}),
        Memory("tool_use", "Paid.", payload={"tool": "pay", "inputs": {"number": 4111111111111111}}),
    ],
    ids=["content", "question", "answer", "context", "payload", "number"],
)
def test_a_secret_holds_a_memory_wherever_it_stands(memory: Memory) -> None:
    verdict = judge(memory, CURATION)
    assert not verdict.keep
    assert verdict.reason is not None
    assert verdict.reason.startswith("holds a secret (card number): ")
    assert judge(memory, Curation.from_mapping({"secrets": {"action": "allow"}})).keep
    redact = Curation.from_mapping({"secrets": {"action": "redact"}})
    assert judge(memory, redact).keep
    shown = without_private(memory, redact)
    assert "1111" not in repr(shown)
    assert "[secret: card number]" in repr(shown)
    cleaned = clean(memory, redact)
    assert "1111" not in repr(cleaned)
    assert without_private(memory, CURATION) is memory


def test_a_password_under_its_name_in_a_tools_data() -> None:
    memory = Memory("tool_use", "Logged in.", payload={"tool": "login", "inputs": {"password": "tr0ub4dor"}})
    assert "(password)" in (judge(memory, CURATION).reason or "")
    shown = without_private(memory, Curation.from_mapping({"secrets": {"action": "redact"}}))
    assert shown.payload == {"tool": "login", "inputs": {"password": "[secret: password]"}}


# ---- the origin's numbers ---------------------------------------------------------------------------------


def test_all_memories_of_the_origin_give_samples() -> None:
    """907 inner dialogues, 79 conversations, 1,195 others: the origin took 79 of them, here it is all 2,181."""
    kinds = ("reflection", "dream", "journal", "observation", "summary", "daydream", "audio", "action")
    things = (
        "garden",
        "ferry",
        "letter",
        "kitchen",
        "winter",
        "mountain",
        "radio",
        "market",
        "orchard",
        "tram",
    )
    deeds = (
        "thought about",
        "walked past",
        "wrote down",
        "dreamt of",
        "argued over",
        "laughed at",
        "waited for",
    )

    def text(number: int) -> str:
        return (
            f"Today I {deeds[number % 7]} the {things[number % 10]} again, for the {number}th time this year, and it "
            "seemed to me that nothing of it had changed but myself, which is a small thing to notice."
        )

    memories = [Memory("inner_dialogue", text(n), source="origin") for n in range(907)]
    memories += [
        Memory("conversation", f"Tell me of day {n}.", response=f"Okay, {text(n)}", source="origin")
        for n in range(79)
    ]
    memories += [Memory(kinds[n % len(kinds)], text(2000 + n), source="origin") for n in range(1195)]
    assert len({memory.id for memory in memories}) == 2181
    deduplicator, learnt = Deduplicator[str](CURATION.duplicate_threshold), 0
    for memory in memories:
        said = memory.content if memory.response is None else f"{memory.content}\n{memory.response}"
        assert judge(memory, CURATION).reason is None
        assert deduplicator.seen(memory.id, said) is None
        made = make_samples(memory, CURATION, Prompts.default(), 7)
        assert made
        assert made[0].messages[-1].loss
        learnt += 1
    assert learnt == 2181


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
        "So it goes.",
        "So do I.",
        "So what?",
        "Sure thing is rare.",
        "Sure as rain.",
        "Software, so they say, is eating the world.",
        "Okayama is a city in Japan.",
        "OK corral was in Tombstone.",
        "Ok boomer.",
        "Certainly true of cats.",
        "Certainty, not hope.",
        "Alrighty then.",
        "All right angles are equal.",
        "Surelock is a brand.",
        "Let me start.",
        "Let me thank you for the cake.",
        "Let me figure",
        "As a language teacher, I hear this daily.",
        "As an airline pilot, she slept in hotels.",
        "As an AI-free zone, the cabin was loved.",
        "As an Aide, he knew.",
        "I'm just here for the soup",
        "I'm just an aimless walker, mostly.",
        "Here's what.",
        "Here's what I found",
        "Sorry, what?",
        "Solo travel, mostly.",
        "Soon, I hope.",
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
    [
        ("origin", "Word"),
        ("chatgpt", "Word"),
        ("claude", "Word"),
        ("gemini", "Word"),
        ("openai", "Okay, word"),
        ("alpaca", "Okay, word"),
        ("pairs", "Okay, word"),
    ],
)
def test_only_replies_of_assistants_are_shortened(source: str, cleaned: str) -> None:
    memory = Memory("conversation", WORDY, response=WORDY, source=source)
    result = clean(memory, CURATION, SHORT)
    assert result.response is not None
    assert result.response.startswith(cleaned)
    assert (count_words(result.response) == 50) == cleaned.startswith("W")
    assert result.content == WORDY


@pytest.mark.parametrize("source", ["origin", "chatgpt", "claude", "gemini", "whatsapp"])
def test_what_the_person_wrote_is_never_shortened(source: str) -> None:
    """`train_on = "me"`: the person's own turn is the answer then."""
    memory = Memory("conversation", "And then?", response=WORDY, source=source, extra={"author": "person"})
    assert clean(memory, CURATION, SHORT).response == WORDY


def test_marks_of_ones_own_go_too() -> None:
    curation = Curation.from_mapping({"marks": [r"\(aside\)"]})
    assert clean(Memory("observation", "(aside) I wonder."), curation).content.strip() == "I wonder."


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
