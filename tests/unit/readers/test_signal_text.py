"""Signal: chat.md of signal-export in its old and new forms, rows of the database, and the texts of sigtop."""

import io
import json
import zipfile
from datetime import timedelta, timezone
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))


def heard(text: str | bytes, name: str = "chat.md") -> list[Any]:
    raw = text if isinstance(text, bytes) else text.encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None, locale=readers.Locale(ZONE)))


def between(body: str) -> Any:
    """What a message of the present form gives, between two others."""
    lines = ["[2023-01-15 10:02:03] Me: before  ", "", f"[2023-01-15 10:02:04] Anna: {body}", "",
             "[2023-01-15 10:02:05] Me: behind  ", ""]  # fmt: skip
    got = heard("\n".join(lines))
    assert [one.text for one in (got[0], got[-1])] == ["before", "behind"]
    (one,) = got[1:-1]
    return one


def text(body: str) -> str:
    one = between(body)
    assert isinstance(one, Utterance), one
    return one.text


def reason(body: str) -> str:
    one = between(body)
    assert isinstance(one, LeftOut), one
    return one.reason


# ---- chat.md ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "clock"), [
    ("[2019-05-29, 15:04] Me: Hi", "2019-05-29T15:04:00"), ("[2019-05-29 15:04] Me: Hi", "2019-05-29T15:04:00"),
    ("[2019-05-29 15:04:07] Me: Hi  ", "2019-05-29T15:04:07"), ("\ufeff[2019-05-29, 15:04:07] Me: Hi",
    "2019-05-29T15:04:07"),
])  # fmt: skip
def test_times(line: str, clock: str) -> None:
    (one,) = heard(line)
    assert (one.clock, one.zone_known, one.speaker, one.text, one.owner) == (clock, False, "Me", "Hi", True)


def test_who_is_the_owner() -> None:
    got = heard("[2019-05-29, 15:04] Me: a\n[2019-05-29, 15:05] Ben Okri: b\n[2019-05-29, 15:06] +4917012: c\n")
    assert [(one.speaker, one.owner) for one in got] == [("Me", True), ("Ben Okri", False), ("+4917012", False)]


def test_a_chat_in_which_the_owner_never_spoke_is_known_by_its_file() -> None:
    (one,) = heard("[2019-05-29 15:04:07] Anna: Hi  \n", "chat.md")
    assert (one.source, one.owner) == ("signal", False)


def test_a_text_of_several_lines() -> None:
    body = "One: a - b  \n\nTwo\n31/12/22, 10:00 - John: pasted\n[31/12/22, 10:00:00] John: too\n> mine\n# heading"
    assert text(body) == body.replace("  \n", "\n")


@pytest.mark.parametrize("body", [
    "Perfect  ![a.jpg](./media/a.jpg)  ", "Perfect  \n(- Me: 👍, Ben: ❤ -)",
    "\n\n> Shall we meet?\n> At ten?\n\nPerfect  ",
    "> Shall we meet?\nPerfect", "Perfect  [report (2).pdf](./media/report%20(2).pdf)  ", "Perfect\n(( 🙂 ))",
    "Perfect  [🙂](../exported_stickers/a/b.webp)  ", "Perfect  \n(- Me: 👍 -)![](media/a.png)  ",
    "Perfect  ![x](media/a.png)  ![y](media/b.png)  ",
])  # fmt: skip
def test_what_the_exporter_adds_is_no_part_of_the_text(body: str) -> None:
    assert text(body) == "Perfect"


def test_links_and_marks_of_a_person_stay() -> None:
    for body in ("see [the page](https://example.org/a)", "a > b", "ok (- maybe -) later", "(a) [b] (c)", "x\n> y\nz"):
        assert text(body) == body


@pytest.mark.parametrize(("body", "why"), [
    ("![a.jpg](./media/a.jpg)  ", "a picture, a sticker or a file alone"), ("  ", "it has no text"), ("",
    "it has no text"),
    ("[a b.pdf](./media/a%20b.pdf)  ", "a picture, a sticker or a file alone"),
    ("\n(( sticker ))", "a picture, a sticker or a file alone"), ("  \n(- Me: 👍 -)",
    "a picture, a sticker or a file alone"),
    ("(This message was deleted)", "a deleted message"), ("Incoming voice call (accepted, 3m 2s)  ", "a call"),
    ("Missed video call  ", "a call"), ("Outgoing call  ", "a call"), ("Incoming group call (declined)", "a call"),
    ("\n\n> a quote alone\n\n", "it has no text"),
])  # fmt: skip
def test_what_is_no_memory(body: str, why: str) -> None:
    assert reason(body) == why


def test_line_ends_make_no_difference() -> None:
    plain = "[2019-05-29 15:04:07] Me: One  \n\ntwo  \n\n[2019-05-29 15:05:07] Anna: Three  \n\n"
    for written in (plain, plain.replace("\n", "\r\n"), plain.rstrip("\n")):
        assert [one.text for one in heard(written)] == ["One\n\ntwo", "Three"]


def test_the_folder_is_the_name_of_the_chat() -> None:
    buffer = io.BytesIO()
    line = "[2019-05-29 15:04:07] Me: Hi  \n\n"
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("Anna", "Ben"):
            archive.writestr(f"out/{name}/chat.md", line)
            archive.writestr(f"out/{name}/media/a.jpg", "x")
    got = [one for one in heard(buffer.getvalue(), "out.zip") if isinstance(one, Utterance)]
    assert [(one.conversation, one.source) for one in got] == [("Anna", "signal"), ("Ben", "signal")]
    assert heard(line, "Anna (1).md")[0].conversation == "Anna"


@pytest.mark.parametrize(("name", "written"), [
    ("x.log", "[2024-01-05 10:00] ERROR: broke\n[2024-01-05 10:01] INFO: fine\n"),
    ("x.md", "# 2024\n\n[2024-01-05 10:00] Anna: a line in a journal\n"),
    ("_chat.txt", "[2024-01-05 10:00:01] Ann: of WhatsApp\n[2024-01-05 10:01:01] Ben: of WhatsApp\n"),
])  # fmt: skip
def test_files_that_are_not_claimed(name: str, written: str) -> None:
    try:
        assert not any(getattr(one, "source", "") == "signal" for one in heard(written, name))
    except Refused as refusal:
        pytest.fail(str(refusal))


# ---- rows -------------------------------------------------------------------------------------------


def row(**more: Any) -> dict[str, Any]:
    return {"id": "r1", "conversationId": "c9", "type": "incoming", "sent_at": 1705309200000, "body": "Hi",
            "source": "+49170", **more}  # fmt: skip


def test_rows() -> None:
    rows = [row(), row(id="r2", type="outgoing", body="Ho"), row(id="r3", type="keychange"), row(id="r4", body=None)]
    for written in (json.dumps(rows), "\n".join(map(json.dumps, rows)), json.dumps(rows, indent=1)):
        got = heard(written, "x.json")
        assert [type(one) for one in got] == [Utterance, Utterance, LeftOut, LeftOut]
        assert [(one.speaker, one.owner, one.time, one.zone_known, one.message) for one in got[:2]] == [
            ("+49170", False, "2024-01-15T09:00:00Z", True, "r1"), ("Me", True, "2024-01-15T09:00:00Z", True, "r2"),
        ]  # fmt: skip


# ---- sigtop -----------------------------------------------------------------------------------------

SIGTOP = """\
Conversation: Anna Berg (+49170)

From: Anna Berg (+49170)
Type: incoming
Sent: Mon, 15 Jan 2024 10:00:00 +0100
Received: Mon, 15 Jan 2024 10:00:02 +0100
Reaction: 👍 from Me

Shall we meet?
From: the train I can walk

At ten: by the gate

From: You
Type: outgoing
Sent: Mon, 15 Jan 2024 10:05:00 +0100

> From: Anna Berg (+49170)
> Sent: Mon, 15 Jan 2024 10:00:00 +0100
>
> Shall we meet?

Perfect
> this is mine

From: You
Type: outgoing
Sent: Mon, 15 Jan 2024 10:06:00 +0100
Attachment: a.jpg (image/jpeg, 100 bytes)

From: You
Type: outgoing
Sent: Mon, 15 Jan 2024 10:07:00 +0100
Edited: 2 versions

| Version: 2
| Sent: Mon, 15 Jan 2024 10:08:00 +0100
|
| At eleven
| by the gate
|
| Version: 1
| Sent: Mon, 15 Jan 2024 10:07:00 +0100
|
| At nine

Type: keychange
Received: Mon, 15 Jan 2024 10:09:00 +0100

From: Anna Berg (+49170)
Type: incoming
Sent: unknown
Received: unknown

x
"""


def test_the_texts_of_sigtop() -> None:
    got = heard(SIGTOP, "Anna Berg (+49170).txt")
    assert [type(one) for one in got] == [Utterance, Utterance, LeftOut, Utterance, LeftOut, BadItem]
    said = [one for one in got if isinstance(one, Utterance)]
    assert [(one.conversation, one.speaker, one.owner, one.time, one.zone_known) for one in said] == [
        ("Anna Berg", "Anna Berg", False, "2024-01-15T09:00:00Z", True),
        ("Anna Berg", "Me", True, "2024-01-15T09:05:00Z", True),
        ("Anna Berg", "Me", True, "2024-01-15T09:07:00Z", True),
    ]  # fmt: skip
    assert [one.text for one in said] == [
        "Shall we meet?\nFrom: the train I can walk\n\nAt ten: by the gate", "Perfect\n> this is mine",
        "At eleven\nby the gate",
    ]  # fmt: skip
    assert [one.reason for one in got if isinstance(one, LeftOut)] == [
        "a picture, a sticker or a file alone", "a notice of the kind keychange",
    ]  # fmt: skip
    assert said[0].speaker_id == "+49170"


def test_a_text_about_a_conversation_is_not_sigtops() -> None:
    (one,) = heard("Conversation: with Anna\n\nFrom: home\nWe spoke for long.\n", "notes.txt")
    assert one.source == "text"
