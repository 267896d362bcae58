"""Day One: whose JSON it is, what is text in an entry, and what a torn or odd export gives."""

import io
import json
import random
from typing import Any

import pytest

from daemon import readers
from daemon.readers import day_one
from daemon.readers.shape import Sniff
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused

BYTES = [b"", b"\x00", b'"', b"{", b"]", b"\xff", b"\\ud800", b"1e9", b"null"]
ENTRY = {"uuid": "A1", "creationDate": "2024-01-15T22:30:00Z", "timeZone": "Europe/Oslo", "text": "Snow\\."}


def heard(data: Any) -> list[Heard]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return list(readers.read(io.BytesIO(raw), "Journal.json", len(raw), None))


def journal(*entries: Any) -> dict[str, Any]:
    return {"metadata": {"version": "1.0"}, "entries": list(entries)}


def test_it_is_known_by_its_structure() -> None:
    def claims(value: Any) -> bool:
        return day_one.READER.claims(Sniff("Journal.json", json.dumps(value).encode()))

    assert claims(journal(ENTRY))
    assert not claims({"entries": [{"text": "x", "date": "2024-01-15"}]})
    assert not claims([ENTRY])
    assert not claims({"uuid": "A", "creationDate": "x", "text": "y"})


def test_an_entry_exported_again_is_the_same_memory() -> None:
    (first,) = heard(journal(ENTRY))
    (again,) = heard(journal({**ENTRY, "uuid": "a1", "starred": True, "modifiedDate": "2024-02-01T00:00:00Z"}))
    assert isinstance(first, Memory) and isinstance(again, Memory)
    assert first.id == again.id
    assert (first.type, first.content, first.time) == ("journal", "Snow.", "2024-01-15T22:30:00Z")
    assert first.extra == {"id": "A1", "zone": "Europe/Oslo"}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (r"One \(two\) \- three\! 2\.5 \#no \\ end", r"One (two) - three! 2.5 #no \ end"),
        ("a `\\.` b\\.", "a `\\.` b."),
        ("```\n\\.\n```\n\\.", "```\n\\.\n```\n."),
        ("```\nopen \\.", "```\nopen \\."),
        ("One.\n\n![](dayone-moment://AB12)\n\nTwo.", "One.\n\nTwo."),
        ("![](dayone-moment:/audio/AB12)", ""),
        ("A [link](https://a.example/x) and [one](dayone://view?entryId=A).", "A [link](https://a.example/x) and one."),
        ("C:\\new", "C:\\new"),
    ],
)
def test_the_text_of_an_entry(written: str, shown: str) -> None:
    assert day_one.plain(written) == shown


def test_rich_text_stands_in_where_there_is_no_text() -> None:
    rich = json.dumps({"contents": [{"text": "One "}, {"embeddedObjects": []}, {"text": "two\\."}, "x", {"text": 5}]})
    (memory,) = heard(journal({**ENTRY, "text": "", "richText": rich}))
    assert isinstance(memory, Memory) and memory.content == "One two\\."
    for bad in ("{", "[]", '{"contents": 5}', 7, None, "5"):
        parts = heard(journal({**ENTRY, "text": None, "richText": bad}, ENTRY))
        assert isinstance(parts[0], LeftOut) and isinstance(parts[1], Memory)


def test_a_torn_journal_gives_what_was_good() -> None:
    whole = json.dumps(journal(ENTRY, ENTRY, ENTRY)).encode()
    *good, bad = heard(whole[: whole.rindex(b"creationDate")])
    assert len(good) == 2 and isinstance(bad, BadItem) and bad.where == "after entry 2"
    with pytest.raises(Refused, match="no entry of it can be read"):
        heard(whole[: whole.index(b'"Snow')])


def test_odd_values_are_no_reason_to_stop() -> None:
    odd = [None, 5, [], {}, "x", {"text": 5}, {"text": {}, "creationDate": 7}]
    kept = {"text": "Kept.", "creationDate": [], "tags": 5}
    half = {**ENTRY, "text": "a\ud800b", "tags": ["x", 5, None]}
    parts = heard(journal(*odd, kept, half))
    assert [type(one) for one in parts[:7]] == [BadItem, BadItem, BadItem, LeftOut, BadItem, LeftOut, LeftOut]
    assert isinstance(parts[7], Memory) and parts[7].content == "Kept."
    assert isinstance(parts[8], Memory) and parts[8].tags == ("x",)
    for one in parts:
        str(one).encode()


def test_no_bytes_make_it_raise_anything_else() -> None:
    rng = random.Random(9)
    seed = json.dumps(journal(ENTRY, {**ENTRY, "tags": ["a"], "richText": '{"contents": []}'})).encode()
    for _ in range(1000):
        data = bytearray(seed)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(data))
            data[place : place + rng.randrange(4)] = rng.choice(BYTES)
        try:
            for one in heard(bytes(data)):
                str(one).encode()
        except Refused as refused:
            assert str(refused)
