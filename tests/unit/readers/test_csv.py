"""Tables: which are claimed, what their rows are, and how their dates are understood."""

import io
import random
from datetime import timedelta, timezone

import pytest

from daemon import readers
from daemon.readers import csv_rows
from daemon.readers.shape import Sniff
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused, Utterance

BYTES = [b"", b"\x00", b'"', b";", b"\r", b"\xff", b"9", b"\xed\xa0\x80"]
ZONE = timezone(timedelta(hours=2))


def heard(text: str | bytes, name: str = "x.csv", day_first: bool | None = None) -> list[Heard]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(readers.read(io.BytesIO(data), name, len(data), None, locale=readers.Locale(ZONE, day_first)))


def memories(text: str | bytes, name: str = "x.csv", day_first: bool | None = None) -> list[Memory]:
    return [one for one in heard(text, name, day_first) if isinstance(one, Memory)]


def said(text: str | bytes) -> list[Utterance]:
    return [one for one in heard(text) if isinstance(one, Utterance)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_each_delimiter(delimiter: str) -> None:
    rows = [["date", "text"], ["2024-01-15", f'"One{delimiter} ""two""\nand three"'], ["2024-01-16", "Four, five; six"]]
    rows[2][1] = f'"{rows[2][1]}"'
    text = "\r\n".join(delimiter.join(row) for row in rows)
    assert [one.content for one in memories(text)] == [f'One{delimiter} "two"\nand three', "Four, five; six"]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_mark_at_the_beginning(mark: str) -> None:
    (memory,) = memories("Date;Note\n2024-01-15;Schnee für alle\n".encode(mark))
    assert (memory.content, memory.time) == ("Schnee für alle", "2024-01-14T22:00:00Z")


def test_what_is_claimed_without_the_name() -> None:
    def claims(text: str) -> bool:
        return csv_rows.READER.claims(Sniff("x.txt", text.encode(), whole=True))

    assert claims("date,text\n2024-01-15,One.\n2024-01-16,Two.\n")
    assert claims("Author;Message;Timestamp\nAnna;Hi;1\n")
    assert not claims("Time, content and text.\nA poem, in three lines.\nThe end.\n")
    assert not claims("Date, text\n\nWe wrote on, and on, and on, and then the day was over.\n")
    assert not claims('{"date": 1, "text": "x"}\n')
    assert not claims("text\nOne.\n")


def test_what_a_row_is() -> None:
    (pair,) = memories("Question,Answer\nWhere?,Here.\n")
    assert (pair.type, pair.content, pair.response) == ("conversation", "Where?", "Here.")
    (dream,) = memories("kind,body,tags\ndream,A train.,night; far\n")
    assert (dream.type, dream.content, dream.tags) == ("dream", "A train.", ("night; far",))
    (entry,) = memories("Entry,Created\nRain.,2024-01-15 10:00+01:00\n")
    assert (entry.type, entry.time, entry.zone_known) == ("journal", "2024-01-15T09:00:00Z", True)
    user, assistant = said("role,content\nuser,Hi\nassistant,Hello\n")
    assert (user.role, assistant.role) == ("user", "assistant")
    (message,) = said("user,message,date\nAnna,Hi,2024-01-15 10:00\n")
    assert (message.speaker, message.role, message.conversation) == ("Anna", None, "x.csv")
    assert message.clock == "2024-01-15 10:00"


def test_messages_come_oldest_first_and_equal_times_in_the_order_of_the_talk() -> None:
    newest_first = "sender,text,time\nB,three,2024-01-15 10:01\nA,two,2024-01-15 10:00\nA,one,2024-01-15 10:00\n"
    assert [one.text for one in said(newest_first)] == ["one", "two", "three"]
    oldest_first = "sender,text,time\nA,one,2024-01-15 10:00\nA,two,2024-01-15 10:00\nB,three,2024-01-15 10:01\n"
    assert [one.text for one in said(oldest_first)] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("dates", "day_first", "time"),
    [
        (["3/4/2024", "13/4/2024"], None, "2024-04-02T22:00:00Z"),
        (["3/4/2024", "4/13/2024"], True, "2024-03-03T22:00:00Z"),
        (["3/4/2024", "3/5/2024"], None, "2024-04-02T22:00:00Z"),
        (["3/4/2024", "3/5/2024"], False, "2024-03-03T22:00:00Z"),
        (["3/4/24 7:05 PM"], False, "2024-03-04T17:05:00Z"),
        (["31.12.2024 12:00 a.m."], None, "2024-12-30T22:00:00Z"),
        (["40/40/2024"], None, None),
    ],
)
def test_dates_with_slashes(dates: list[str], day_first: bool | None, time: str | None) -> None:
    text = "date,text\n" + "".join(f"{date},A day.\n" for date in dates)
    first = memories(text, day_first=day_first)[0]
    assert (first.timestamp, first.time, first.zone_known) == (dates[0], time, False)


def test_bad_rows_are_named_and_the_others_read() -> None:
    parts = heard("date,text\n2024-01-15\n2024-01-16,Good.\n2024-01-17,a,b\n2024-01-18,\n2024-01-19,Fine.,,\n")
    assert [one.content for one in parts if isinstance(one, Memory)] == ["Good.", "Fine."]
    assert [(one.where, one.reason) for one in parts if isinstance(one, BadItem)] == [
        ("row 1", "it has 1 fields and the header 2"), ("row 3", "it has 3 fields and the header 2"),
        ("row 4", "its text is empty"),
    ]  # fmt: skip


def test_a_table_without_a_known_column_says_which_it_wants() -> None:
    with pytest.raises(Refused, match="it has 'Amount', 'Account'; name one text, content, message"):
        heard("Amount,Account\n1,2\n")
    with pytest.raises(Refused, match="it holds no item"):
        heard("date,text\n")


def test_an_old_macs_lines_and_a_table_in_windows_1252_after_its_beginning() -> None:
    assert [one.content for one in memories(b"date,text\r2024-01-15,One.\r2024-01-16,Two.\r")] == ["One.", "Two."]
    late = b"date,text\n" + b"2024-01-15,Plain.\n" * 5000 + b"2024-01-16,Caf\xe9.\n"
    assert memories(late)[-1].content == "Café."


def test_no_bytes_make_it_raise_anything_else() -> None:
    rng = random.Random(5)
    seed = b'Date;Speaker;Text;Tags\n1/2/2024;Anna;"One ""two""\nthree";a, b\n2/3/2024 10:00 PM;Ben;Four;\n'
    for _ in range(1000):
        data = bytearray(seed)
        for _ in range(rng.randrange(1, 6)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(3)] = rng.choice(BYTES)
        try:
            for one in heard(bytes(data)):
                str(one).encode()
        except Refused as refused:
            assert str(refused)


@pytest.mark.parametrize(("written", "time"), [
    ("2024-01-05 9:30 PM", "2024-01-05T19:30:00Z"), ("2024-01-05, 12:05:07 am", "2024-01-04T22:05:07Z"),
    ("January 5, 2024 9:30 PM", "2024-01-05T19:30:00Z"), ("Jan 5, 2024, 9:30\u202fp.m.", "2024-01-05T19:30:00Z"),
    ("5 January 2024 21:30", "2024-01-05T19:30:00Z"), ("2024-01-05T21:30:00+01:00", "2024-01-05T20:30:00Z"),
    ("1/5/2024 9:30 PM", "2024-05-01T19:30:00Z"), ("soon, 9:30 PM", None), ("2024-13-45 9:30 PM", None),
])  # fmt: skip
def test_times_as_tables_have_them(written: str, time: str | None) -> None:
    (memory,) = memories(f'date,text\n"{written}",Hi\n')
    assert (memory.time, memory.timestamp) == (time, written)


def test_a_line_that_names_the_separator_is_no_header() -> None:
    for mark in ("", "\ufeff"):
        (memory,) = memories(f"{mark}sep=;\r\ndate;text\r\n2024-01-15;Hi\r\n")
        assert (memory.content, memory.timestamp) == ("Hi", "2024-01-15")


def test_a_message_without_a_text_is_left_out_and_no_fault() -> None:
    left, taken = heard("date,speaker,text\n2024-01-15 10:00,Ann,\n2024-01-15 10:01,Ben,Hi\n")
    assert isinstance(left, LeftOut) and (left.reason, left.speaker) == ("it has no text", "Ann")
    assert isinstance(taken, Utterance) and taken.text == "Hi"


def test_a_copy_of_a_chat_is_the_same_chat() -> None:
    text = "date,speaker,text\n2024-01-15 10:00,Ann,Hi\n"
    for name in ("x.csv", "x (1).csv", "x(2).csv"):
        (one,) = heard(text, name)
        assert isinstance(one, Utterance) and one.conversation == "x.csv"
