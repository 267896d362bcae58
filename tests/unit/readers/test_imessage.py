"""iMessage: texts of imessage-exporter, with all that it writes between the words of people."""

import io
from datetime import timedelta, timezone
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))


def heard(text: str, name: str = "Anna.txt") -> list[Any]:
    raw = text.encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None, locale=readers.Locale(ZONE)))


def message(body: str, who: str = "Anna", when: str = "May 17, 2022  5:29:42 PM") -> str:
    return f"{when}\n{who}\n{body}\n\n"


def between(body: str, who: str = "Anna") -> list[Any]:
    """What a message gives that stands between two others."""
    got = heard(message("before", "Me") + message(body, who) + message("behind", "Me"))
    assert [one.text for one in (got[0], got[-1])] == ["before", "behind"]
    return got[1:-1]


def text(body: str) -> str:
    (one,) = between(body)
    assert isinstance(one, Utterance), one
    return one.text


def reason(body: str) -> str:
    (one,) = between(body)
    assert isinstance(one, LeftOut), one
    return one.reason


@pytest.mark.parametrize(("when", "clock"), [
    ("May 17, 2022  5:29:42 PM", "2022-05-17T17:29:42"), ("May 17, 2022 12:05:00 AM", "2022-05-17T00:05:00"),
    ("May 17, 2022 12:05:00 PM", "2022-05-17T12:05:00"), ("Jan 05, 2022 11:05:00 AM", "2022-01-05T11:05:00"),
    ("May 17, 2022 5:29:42\u202fPM", "2022-05-17T17:29:42"),
    ("May 17, 2022  5:29:42 PM (Read by you after 1 hour, 49 seconds)", "2022-05-17T17:29:42"),
    ("May 17, 2022  5:29:42 PM (Read by Ben (work) after 3 minutes)", "2022-05-17T17:29:42"),
])  # fmt: skip
def test_times(when: str, clock: str) -> None:
    (one,) = heard(message("Hi", when=when))
    assert (one.clock, one.zone_known, one.speaker, one.text) == (clock, False, "Anna", "Hi")
    assert one.timestamp == when.partition(" (")[0]


def test_who_is_the_owner() -> None:
    got = heard(message("a", "Me") + message("b", "Anna") + message("c", "+15550100"))
    assert [(one.speaker, one.owner) for one in got] == [("Me", True), ("Anna", False), ("+15550100", False)]


def test_an_owner_by_another_name_is_known_by_who_has_read_his_messages() -> None:
    read = "May 17, 2022  5:29:42 PM (Read by them after 2 seconds)"
    own = "May 17, 2022  5:29:42 PM (Read by Bo after 2 seconds)"
    got = heard(message("a", "Anna", own) + message("b", "Bo", read) + message("c", "Bo"))
    assert [(one.speaker, one.owner) for one in got] == [("Anna", False), ("Bo", True), ("Bo", True)]


def test_a_text_of_several_lines() -> None:
    body = (
        "One: a - b\n\nTwo\n    four spaces ahead\n[31/12/22, 10:00:00] John: pasted\n"
        "12/31/22, 9:41 PM - Ann: pasted"
    )
    assert text(body) == body
    assert text("May 17, 2022 was a good day") == "May 17, 2022 was a good day"


def test_line_ends_and_a_mark_at_the_beginning_make_no_difference() -> None:
    plain = message("One\n\ntwo") + message("Three", "Me")
    for written in (plain.replace("\n", "\r\n"), "\ufeff" + plain, plain.rstrip("\n")):
        assert [one.text for one in heard(written)] == ["One\n\ntwo", "Three"]


@pytest.mark.parametrize("body", [
    "Tapbacks:\nLoved by Me", "Tapbacks:\n👍 by Ben\nSticker from Me: /x/y.heic\n", "Reactions:\nLiked by Me",
    "Sent with Confetti", "This message responded to an earlier message.",
    "Tapbacks:\nLaughed by +15550100\nEmphasized by Anna Berg\n\nThis message responded to an earlier message.",
    "Tapbacks:\n    Loved by Me",
])  # fmt: skip
def test_what_the_exporter_adds_is_no_part_of_the_text(body: str) -> None:
    assert text("Perfect\n" + body) == "Perfect"


def test_a_second_part_behind_reactions_is_kept() -> None:
    assert text("attachments/1/a.heic\nTapbacks:\nLoved by Me\n\nlook at this") == "look at this"


def test_words_that_look_like_the_exporters_stay() -> None:
    for body in ("Tapbacks:\nI like them", "Edited", "it was sent with Confetti", "a/b.txt and more", "and/or"):
        assert text(body) == body


@pytest.mark.parametrize("body", [
    "/Users/me/Library/Messages/Attachments/ab/IMG_1.heic", "attachments/27/12.mov", "Attachment missing!",
    "~/Library/Messages/Attachments/a b/IMG 1.heic", "/Users/me/Backup/0a/0a3f5e", "IMG_0001.HEIC", "\ufffc",
    "C:\\export\\attachments\\1\\a.jpg", "attachments/1/a.heic\nattachments/1/b.heic",
])  # fmt: skip
def test_attachments_alone(body: str) -> None:
    assert reason(body) == "an attachment alone"


def test_a_text_with_an_attachment() -> None:
    assert text("attachments/1/a.heic\nLook at the label") == "Look at the label"
    assert text("attachments/1/a.caf\nTranscription: I am late") == "I am late"


def test_of_an_edited_message_the_last_version_counts() -> None:
    body = "May 17, 2022  5:29:42 PM At nine\nEdited 10 seconds later: At ten:\nby the gate"
    assert text(body) == "At ten:\nby the gate"
    assert text(body + "\nEdited 1 hour later: At noon") == "At noon"


@pytest.mark.parametrize(("body", "why"), [
    ("You unsent this message part 10 seconds after sending!", "an unsent message"),
    ("Anna unsent this message part 1 hour, 49 seconds after sending!", "an unsent message"),
    ("Anna unsent this message", "an unsent message"), ("SharePlay Message\nEnded", "a notice"),
    ("Started sharing location!", "a notice"),
    ("This message was deleted from the conversation!\nHello world", "a deleted message"), ("", "it has no text"),
])  # fmt: skip
def test_what_is_no_memory(body: str, why: str) -> None:
    assert reason(body) == why


def test_announcements() -> None:
    got = heard(
        message("Hi") + "May 17, 2022  5:34:00 PM You named the conversation Sea (side)\n\n"
        "Unable to format announcement!\n\n" + message("Ho", "Me") +
        "May 18, 2022  5:34:00 PM Anna left the conversation.\n\n"
    )  # fmt: skip
    assert [type(one) for one in got] == [Utterance, LeftOut, Utterance, LeftOut]
    assert [one.text for one in got] == [
        "Hi", "You named the conversation Sea (side)", "Ho", "Anna left the conversation.",
    ]  # fmt: skip


def test_a_reply_is_read_in_its_own_place_alone() -> None:
    reply = (
        "    May 17, 2022  5:40:00 PM\n    Ben\n    first line\n\n    second paragraph\n"
        "    Tapbacks:\n    Loved by Me\n"
    )
    assert text("At the lighthouse?\n" + reply) == "At the lighthouse?"
    assert text("At the lighthouse?\nTapbacks:\nLoved by Me\n\n" + reply) == "At the lighthouse?"


def test_lines_of_a_reply_that_are_not_indented_are_nobodys() -> None:
    reply = "    May 17, 2022  5:40:00 PM\n    Ben\n    first line\nsecond line\n"
    said, left = between("At the lighthouse?\n" + reply)
    assert said.text == "At the lighthouse?"
    assert isinstance(left, LeftOut) and left.text == "second line"


def test_a_day_that_is_none() -> None:
    bad = message("x", when="Feb 31, 2022  5:29:42 PM") + message("y", when="Xyz 1, 2022  5:29:42 PM")
    got = heard(message("Hi") + bad)
    assert [type(one) for one in got] == [Utterance, BadItem, BadItem]


def test_a_copy_is_the_same_chat() -> None:
    for name in ("Anna.txt", "Anna (1).txt", "Anna(2).txt"):
        assert heard(message("Hi"), name)[0].conversation == "Anna"
    assert heard(message("Hi"), "+15550100, Ben.txt")[0].conversation == "+15550100, Ben"


@pytest.mark.parametrize("written", [
    "Jan 5, 2024 9:15:00 AM Woke up early: rain.\nJan 5, 2024 10:15:00 AM Coffee\n",
    "My log\n\nMay 17, 2022  5:29:42 PM\nAnna\nHi\n", "12/31/23, 9:41 PM - Ann: Hi\n",
    "[2019-05-29, 15:04] Me: hello\n",
    "May 17, 2022\nAnna\nHi\n",
])  # fmt: skip
def test_files_that_are_not_claimed(written: str) -> None:
    try:
        assert not any(getattr(one, "source", "") == "imessage" for one in heard(written, "x.txt"))
    except Refused as refusal:
        pytest.fail(str(refusal))
