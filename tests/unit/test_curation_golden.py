"""A change of a setting changes only what it names: the samples of sixty-odd memories, before and after."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from daemon.records import Memory, Turn
from daemon.rules import duplicates
from daemon.rules.curation import DEFAULTS, Curation, is_boilerplate, judge
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples

FOLDER = Path(__file__).parents[1] / "fixtures" / "curation"
GOLDEN = FOLDER / "samples.golden.json"
Outcome = dict[str, Any]  # name of a memory -> its chats, or why it is left out


def memories() -> dict[str, Memory]:
    found = {}
    for item in json.loads((FOLDER / "memories.json").read_text()):
        name = item.pop("name")
        item["context"] = tuple(Turn(**turn) for turn in item.get("context", ()))
        found[name] = Memory(**{**item, "tags": tuple(item.get("tags", ()))})
    return found


MEMORIES = memories()


def learnt(memory: Memory) -> str:
    return memory.content if memory.response is None else memory.response


def curated(settings: dict[str, Any], seed: int = 7) -> Outcome:
    """The whole road of a dataset, in the order of arrival."""
    curation, prompts = Curation.from_mapping(settings), Prompts.default()
    times = Counter(learnt(memory) for memory in MEMORIES.values())
    outcome: Outcome = {}
    firsts: dict[str, str] = {}
    for name, memory in MEMORIES.items():
        said = learnt(memory) if memory.response is None else f"{memory.content}\n{memory.response}"
        verdict = judge(memory, curation)
        like = next(
            (other for other, text in firsts.items() if duplicates.are_alike(said, text, curation)), None
        )
        if not verdict.keep:
            outcome[name] = verdict.reason
        elif learnt(memory) and is_boilerplate(times[learnt(memory)], curation):
            outcome[name] = "boilerplate"
        elif like is not None and said.strip():
            outcome[name] = f"like {like}"
        else:
            firsts[name] = said
            made = make_samples(memory, curation, prompts, seed)
            outcome[name] = [
                [f"{turn.role}{' (learnt)' if turn.loss else ''}: {turn.content}" for turn in sample.messages]
                for sample in made
            ]
    return outcome


PLAIN = curated({})


def changed_by(settings: dict[str, Any]) -> set[str]:
    now = curated(settings)
    return {name for name in PLAIN if PLAIN[name] != now[name]}


def test_what_becomes_of_each() -> None:
    text = json.dumps(PLAIN, ensure_ascii=False, indent=1)
    if os.environ.get("REWRITE_GOLDEN"):
        GOLDEN.write_text(text + "\n")
    assert json.loads(GOLDEN.read_text()) == PLAIN


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two = (json.dumps(curated({}, seed)).encode() for seed in (7, 7))
    assert one == two
    assert json.dumps(curated({}, 8)).encode() != one


def test_another_seed_changes_only_the_questions() -> None:
    for name, now in curated({}, 8).items():
        answers = (
            [[turn for turn in chat if "(learnt)" in turn] for chat in now] if isinstance(now, list) else now
        )
        before = PLAIN[name]
        then = (
            [[t for t in chat if "(learnt)" in t] for chat in before] if isinstance(before, list) else before
        )
        assert answers == then


TAGS, FILLER = DEFAULTS["skip"]["tags"], DEFAULTS["replies"]["filler"]
TRIMMED = {"long reply", "long form", "assistant of chatgpt"}
OPEN = {"filler", "assistant of claude"}
SECRET = {"card", "password", "iban", "key in a tool"}
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"marks": [*DEFAULTS["marks"], r"\(\(note\)\)"]}, {"tag of its own"}),
    ({"marks": []}, {"mode tag", "between people"}),
    ({"prefixes": [*DEFAULTS["prefixes"], "Greg"]}, {"prefix of its own"}),
    ({"prefixes": []}, {"prefix"}),
    ({"skip": {"tags": {**TAGS, "private": "private"}}}, {"tag of mine"}),
    ({"skip": {"tags": {}}}, {"skipped tag"}),
    ({"skip": {"contents": {}}}, {"skipped content"}),
    (
        {
            "skip": {
                "contents": {
                    **DEFAULTS["skip"]["contents"],
                    "nothing to see here, please move along": "empty",
                }
            }
        },
        {"content of mine"},
    ),
    ({"skip": {"recurs_more_than": 2}}, {"boilerplate 1", "boilerplate 2", "boilerplate 3"}),
    ({"skip": {"recurs_more_than": 3}}, set()),
    ({"skip": {"recurs_more_than": 0}}, set()),
    ({"skip": {"min_words": 0}}, {"one word"}),
    ({"skip": {"min_words": 3}}, {"two words"}),
    ({"skip": {"only_signs": False}}, {"emoji"}),
    ({"skip": {"only_addresses": False}}, {"address alone"}),
    ({"skip": {"repeated_signs": 0}}, {"one letter"}),
    ({"skip": {"repeated_signs": 9}}, {"one letter"}),
    ({"skip": {"letter_share": 0.0}}, {"few letters"}),
    ({"skip": {"blob_signs": 100}}, {"blob"}),
    ({"skip": {"blob_share": 0.3}}, {"half a blob"}),
    ({"duplicates": {"leave_out": False}}, {"same again", "nearly the same"}),
    ({"duplicates": {"threshold": 1.0}}, {"nearly the same"}),
    ({"duplicates": {"threshold": 0.6}}, {"less the same"}),
    ({"secrets": {"action": "allow"}}, SECRET),
    ({"secrets": {"action": "redact"}}, SECRET),
    ({"secrets": {"allow": ["^4111"]}}, {"card"}),
    ({"secrets": {"password_length": 5, "entropy": 2.0}}, {"short password"}),
    ({"secrets": {"password_length": 10}}, {"password"}),
    ({"secrets": {"token_length": 12}}, {"token"}),
    ({"secrets": {"entropy": 1.5}}, {"plain token"}),
    ({"secrets": {"kinds": {"card": False}}}, {"card"}),
    ({"secrets": {"kinds": {"iban": False}}}, {"iban"}),
    ({"secrets": {"kinds": {"password": False}}}, {"password"}),
    ({"secrets": {"kinds": {"aws_access_key": False}}}, {"key in a tool"}),
    ({"secrets": {"kinds": {"jwt": False}}}, set()),
    ({"replies": {"assistant_sources": []}}, TRIMMED | OPEN),
    ({"replies": {"assistant_sources": ["origin"]}}, {"assistant of chatgpt", "assistant of claude"}),
    (
        {"replies": {"assistant_sources": [*DEFAULTS["replies"]["assistant_sources"], "openai"]}},
        {"instruction data"},
    ),
    ({"replies": {"trim": False}}, TRIMMED),
    ({"replies": {"short_words": 20}}, TRIMMED - {"long form"}),
    ({"replies": {"long_words": 50}}, {"long form"}),
    ({"replies": {"long_form_share": 1.0}}, TRIMMED - {"long form"}),
    ({"replies": {"remove_filler": False}}, OPEN),
    ({"replies": {"filler": []}}, OPEN),
    ({"replies": {"filler": [*FILLER, r"indeed yes:\s*"]}}, {"filler of its own"}),
    ({"own_text": {"split_words": 150}}, {"long journal"}),
    ({"modes": {"letter": "dual"}}, set()),
    ({"modes": {"chat": "dual"}}, set()),  # filled in below: every chat that is learnt is flipped too
    ({"dual": {"flip": False}}, {"dual pair", "dual chat"}),
    ({"dual": {"flip_types": ["chat"]}}, {"dual pair"}),
    ({"personal_data": {"entities": ["PERSON"], "language": "de", "model": "x", "score": 0.9}}, set()),
    ({"quality": {"short_words": 10, "foundation_memories": 1}}, set()),
]
CHATS = {name for name, memory in MEMORIES.items() if memory.type == "chat" and isinstance(PLAIN[name], list)}


@pytest.mark.parametrize(("settings", "names"), CHANGES, ids=[json.dumps(one)[:60] for one, _ in CHANGES])
def test_a_setting_changes_only_what_it_names(settings: dict[str, Any], names: set[str]) -> None:
    if settings == {"modes": {"chat": "dual"}}:
        names = CHATS - {"dual chat"}
    assert changed_by(settings) == names


def test_each_setting_is_tried() -> None:
    tried = {key if not isinstance(value, dict) else f"{key}.{name}" for one, _ in CHANGES
             for key, value in one.items() for name in (value if isinstance(value, dict) else [""])}  # fmt: skip
    there = {key if not isinstance(value, dict) else f"{key}.{name}" for key, value in DEFAULTS.items()
             if key not in ("modes", "quality") for name in (value if isinstance(value, dict) else [""])}  # fmt: skip
    assert there - tried == {"personal_data.presidio"}
