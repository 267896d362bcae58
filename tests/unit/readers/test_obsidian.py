"""Obsidian: what is taken out of a note, where its date comes from, and a diary in one file."""

import io
import time
from datetime import timedelta, timezone

import pytest

from daemon import readers
from daemon.readers.markdown import by_day, plain
from daemon.records import Memory

ZONE = timezone(timedelta(hours=2))


def memories(text: str, name: str = "a.md") -> list[Memory]:
    data = text.encode()
    parts = readers.read(io.BytesIO(data), name, len(data), 5.0, locale=readers.Locale(ZONE))
    return [one for one in parts if isinstance(one, Memory)]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[[a|b]] [[a#h|b]] [[a#h]] [[#h]] [[a]]", "b b a h a"),
        ("| [[a\\|b]] | [[a\\|]] |", "| b | a |"),
        ("a\n%%\nhidden\n```\ncode\n```\n%%\nb", "a\n\nb"),
        ("a\n%% kanban:settings\n```\n{}\n```\n%%", "a"),
        ("100 %% of it, never closed", "100 %% of it, never closed"),
        ("> [!note] Title\n> Text", "> Title\n> Text"),
        ("> [!quote]- \n> Text", "> Text"),
        ("> [!warning]\n>> [!tip]+ Deep\n>> Text", ">> Deep\n>> Text"),
        ("A [!] and a [link] stay.", "A [!] and a [link] stay."),
        ("It is `= this.day`, `$= dv.x`, `x = 1`.", "It is , , `x = 1`."),
        ("```tracker\nx\n```\nText ^a1\n\n![[x.png]]", "Text"),
    ],
)
def test_what_obsidian_adds(written: str, shown: str) -> None:
    assert plain(written) == shown


@pytest.mark.parametrize(
    ("name", "header", "timestamp", "time"),
    [
        ("a.md", "date: [[2024-01-15]]", "2024-01-15", "2024-01-14T22:00:00Z"),
        ("a.md", 'date: "[[2024-01-15]]"', "[[2024-01-15]]", "2024-01-14T22:00:00Z"),
        ("a.md", "date created: Monday, 15 January 2024", "Monday, 15 January 2024", "2024-01-14T22:00:00Z"),
        ("a.md", "date: 2024-01-15T09:00:00+01:00", "2024-01-15T09:00:00+01:00", "2024-01-15T08:00:00Z"),
        ("a.md", "date: 2024-01-15, in the evening", "2024-01-15, in the evening", "2024-01-14T22:00:00Z"),
        ("2024-03-01.md", "date: <% tp.date.now() %>", None, "2024-02-29T22:00:00Z"),
        ("2024-03-01.md", 'date: "{{date}}"\ncreated: 2024-01-15', "2024-01-15", "2024-01-14T22:00:00Z"),
        ("2024-03-01-title-of-jekyll.md", "title: x", None, "2024-02-29T22:00:00Z"),
        ("a.md", "date: 2024", "2024", None),
        ("a.md", "date: [1, 2]", None, "1970-01-01T00:00:05Z"),
    ],
)
def test_the_date_of_a_note(name: str, header: str, timestamp: str | None, time: str | None) -> None:
    (memory,) = memories(f"---\n{header}\n---\nText.", name)
    assert (memory.timestamp, memory.time) == (timestamp, time)
    assert memory.zone_known == (memory.time in ("2024-01-15T08:00:00Z", "1970-01-01T00:00:05Z"))


def test_a_heading_that_is_a_number_is_no_date() -> None:
    (memory,) = memories("# 42\nThe answer.")
    assert memory.time == "1970-01-01T00:00:05Z"  # the file's own


def test_tags_in_lists_of_lists() -> None:
    (memory,) = memories("---\ntags: [[a]]\n---\nText.")
    assert memory.tags == ("a",)
    (memory,) = memories("---\ntags:\n- [[a]]\n- '#b/c'\n- d\n---\nText.")
    assert memory.tags == ("a", "b/c", "d")


def test_a_diary_in_one_file_is_an_entry_for_each_day() -> None:
    days = "## 2024-01-15\nOne.\n\n### Deep\nMore.\n\n## 2024-01-16\nTwo."
    first, second = memories(f"---\ntags: diary\n---\n# Diary\n\n{days}")
    assert first.content == "One.\n\n### Deep\nMore."
    assert (first.timestamp, first.time) == ("2024-01-15", "2024-01-14T22:00:00Z")
    assert (second.content, second.tags) == ("Two.", ("diary",))


def test_days_keep_their_identity_when_the_diary_grows() -> None:
    days = "## 2024-01-15\nOne.\n\n## 2024-01-16\nTwo.\n"
    known = {memory.id for memory in memories(days)}
    assert {memory.id for memory in memories(days + "\n## 2024-01-17\nThree.\n", "b.md")} > known


@pytest.mark.parametrize(
    "text",
    [
        "## 2024-01-15\nOne.",
        "## 2024-01-15\nOne.\n\n## Plans\nTwo.\n\n## 2024-01-16\nThree.",
        "## 1\nOne.\n\n## 2\nTwo.",
        "## 2024\nOne.\n\n## 2025\nTwo.",
        "```\n## 2024-01-15\n## 2024-01-16\n```",
        "## [1.0.0] - 2024-01-15\nx\n\n## [1.1.0] - 2024-01-16\ny",
    ],
)
def test_what_is_no_diary_stays_whole(text: str) -> None:
    assert by_day(text) == (text, [])


def test_words_beside_the_days_are_kept() -> None:
    diary = "# 2024\n\n## 2024-01-15 – The first snow\nOne.\n\n# Later\nWords.\n\n## 2024-01-16\n\n"
    before, days = by_day(f"Who I am.\n\n{diary}")
    assert before == "Who I am.\n\n# Later\nWords."
    assert days == [("2024-01-15 – The first snow", "The first snow\n\nOne.")]


def test_hostile_notes_take_no_time() -> None:
    began = time.process_time()
    for piece in (
        "%%\n", "> ", ">\n", "[!", "> [!", "`= ", "# 2024-01-15\n", "#", "[[a\\|", "```\n## 2024-01-15\n", "![[",
    ):  # fmt: skip
        by_day(plain(piece * (200_000 // len(piece))))
    assert time.process_time() - began < 10
