"""Duplicates: what counts as the same, and that an index finds it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.rules.curation import Curation
from daemon.rules.duplicates import (
    BINS,
    ROWS,
    Deduplicator,
    are_alike,
    bands,
    bands_of,
    shingles,
    signature,
    similarity,
    words_of,
)

CURATION = Curation.default()
LONG = (
    "We took the early ferry to the island, walked around the lighthouse twice, ate soup in the only open inn, "
    "and came home with wet shoes and a very good mood."
)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (LONG, LONG, True),
        (LONG, LONG.upper().replace(",", " -"), True),
        (LONG, LONG.replace("very", "rather"), True),
        (LONG, LONG + " Again.", True),
        (LONG, LONG.replace("soup", "bread").replace("wet", "dry"), False),
        (LONG, LONG.replace("twice", "2 times"), False),
        (LONG + " It was 3 May.", LONG + " It was 4 May.", False),
        (LONG + " It was 3 May.", LONG + " It was May, the 3rd.", False),
        ("Good morning!", "good morning", True),
        ("Good morning!", "Good evening!", False),
        ("one two three four five six seven", "one two three four five six eight", False),
        ("😂", "😂", True),
        ("😂", "👍", False),
        ("今日は雨が降っています。", "今日は雨が降っています", True),
        ("今日は雨が降っています。", "明日は晴れると思います。", False),
        ("Straße und Café", "STRASSE UND CAFE\u0301", True),
        ("a\ud800b", "a\ud800b", True),
    ],
)
def test_what_is_alike(one: str, other: str, alike: bool) -> None:
    assert are_alike(one, other, CURATION) is alike
    assert are_alike(other, one, CURATION) is alike
    if alike:
        assert set(bands_of(one)) & set(bands_of(other))
        assert not are_alike(one, other, Curation.from_mapping({"duplicates": {"leave_out": False}}))


def test_similarity_is_that_of_the_shingles() -> None:
    changed = LONG.replace("soup", "bread")
    left, right = shingles(words_of(LONG)), shingles(words_of(changed))
    assert similarity(LONG, changed) == pytest.approx(len(left & right) / len(left | right))
    assert len(left) == len(words_of(LONG)) - 2


def test_a_threshold_of_one_is_the_same_words() -> None:
    exact = Curation.from_mapping({"duplicates": {"threshold": 1.0}})
    assert are_alike(LONG, LONG.lower(), exact)
    assert not are_alike(LONG, LONG.replace("very", "rather"), exact)


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(max_size=300))
def test_bands_fit_any_text_and_any_index(text: str) -> None:
    found = bands_of(text)
    assert all(0 <= band < 2**63 for band in found)
    assert len(found) in (0, 1, BINS // ROWS)
    assert found == bands(signature(text))
    assert bool(found) == bool(text.strip())
    assert similarity(text, text) == 1.0


def test_bands_are_the_same_in_another_process() -> None:
    code = f"from daemon.rules.duplicates import bands_of; print(bands_of({LONG!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env={"PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert done.stdout.strip() == str(bands_of(LONG))
    assert bands_of(LONG)[:2] == [1274395357700455328, 1657363370761205128]  # an index on disk holds them


def _texts(count: int, draw: random.Random) -> list[str]:
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(3000)]
    return [" ".join(draw.choices(words, k=draw.randint(40, 60))) for _ in range(count)]


def test_planted_copies_are_found_and_nothing_else() -> None:
    draw = random.Random(5)
    originals = _texts(1500, draw)
    deduplicator: Deduplicator[int] = Deduplicator()
    assert [deduplicator.seen(number, text) for number, text in enumerate(originals)] == [None] * 1500
    found = 0
    for number, text in enumerate(originals[:500]):
        words = text.split()
        words[draw.randrange(len(words))] = "changed"
        found += deduplicator.seen(10_000 + number, " ".join(words).capitalize() + ".") == number
    assert found >= 495
    assert [deduplicator.seen(20_000 + n, text) for n, text in enumerate(_texts(500, draw))] == [None] * 500


def test_the_first_stays() -> None:
    deduplicator: Deduplicator[str] = Deduplicator(0.8)
    assert deduplicator.seen("a", LONG) is None
    assert deduplicator.seen("b", LONG.lower()) == "a"
    assert deduplicator.seen("c", LONG.upper()) == "a"
    assert deduplicator.seen("d", "ok") is None
    assert deduplicator.seen("e", "OK!") == "d"
    assert deduplicator.seen("f", "") is None
    assert deduplicator.seen("g", "") is None


def test_a_template_is_no_copy_and_no_trap() -> None:
    """A thousand fillings of one form: all stay, and a bucket that holds them all is looked at in part only."""
    deduplicator: Deduplicator[int] = Deduplicator()
    names = ["".join(random.Random(n).choices("abcdefghij", k=8)) for n in range(1000)]
    texts = [
        f"Dear {name}, we thank you for {name} and wish {name} all the best for the year" for name in names
    ]
    assert [deduplicator.seen(number, text) for number, text in enumerate(texts)] == [None] * 1000
