"""Discord: the exporter's files, and the data package with one's own messages alone."""

import io
import json
import zipfile
from typing import Any

import pytest

from daemon import readers
from daemon.readers import json_chats
from daemon.records import BadItem, LeftOut, Utterance


def heard(raw: Any, name: str = "x.json") -> list[Any]:
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None))


def channel(*messages: Any, kind: str = "DirectTextChat") -> dict[str, Any]:
    return {"guild": {"id": "0", "name": "g"}, "channel": {"id": "91", "type": kind, "name": "c"},
            "messages": list(messages), "messageCount": len(messages)}  # fmt: skip


def message(ident: int, content: Any = "hi", **more: Any) -> dict[str, Any]:
    author = {"id": "11", "name": "ada", "nickname": "Ada", "isBot": False}
    return {"id": str(ident), "type": "Default", "timestamp": "2024-01-15T11:00:00.123+02:00", "content": content,
            "author": author, "attachments": [], **more}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "time"),
    [
        ("2024-01-15T11:00:00.123+02:00", "2024-01-15T09:00:00Z"),
        ("2024-01-15T11:00:00+05:30", "2024-01-15T05:30:00Z"),
        ("2024-01-15T11:00:00Z", "2024-01-15T11:00:00Z"),
        ("2024-01-15T23:30:00.1234567-02:00", "2024-01-16T01:30:00Z"),
        ("2024-01-15T11:75:00+00:00", None),
        ("nonsense", None),
    ],
)
def test_times(raw: str, time: str | None) -> None:
    assert heard(channel(message(1, timestamp=raw)))[0].time == time


def test_a_group_is_told_from_two() -> None:
    assert heard(channel(message(1)))[0].group is False
    assert heard(channel(message(1), kind="DirectGroupTextChat"))[0].group is True


def test_a_reply_counts_and_a_name_falls_back() -> None:
    author = {"id": "12", "name": "bo", "nickname": None, "isBot": False}
    (one,) = heard(channel(message(1, type="Reply", author=author)))
    assert (one.speaker, one.speaker_id) == ("bo", "12")


@pytest.mark.parametrize("odd", [None, 5, [], {}, [5], {"name": 5}])
@pytest.mark.parametrize("key", ["id", "type", "timestamp", "content", "author", "attachments", "stickers"])
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    got = heard(channel(message(1), message(2, **{key: odd})))
    assert len(got) == 2
    assert all(isinstance(one, Utterance | LeftOut) for one in got)


PACKAGE = [
    {"ID": 700000000000000000 + n, "Timestamp": f"2023-01-05 12:{n:02d}:00", "Contents": f"n{n}", "Attachments": ""}
    for n in range(9, -1, -1)
]


def test_the_package_is_turned_round_also_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.text for one in heard(PACKAGE)] == [f"n{n}" for n in range(10)]
    monkeypatch.setattr(json_chats, "BLOCK", 4)
    assert [one.text for one in heard(PACKAGE)] == [f"n{n}" for n in range(10)]
    assert [one.text for one in heard(PACKAGE[::-1])] == [f"n{n}" for n in range(10)]
    torn = heard(json.dumps(PACKAGE).encode()[:-120])
    assert [one.text for one in torn[:-1]] == [f"n{n}" for n in range(2, 10)]
    assert isinstance(torn[-1], BadItem)


def test_a_zip_of_the_package_names_its_channels() -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("package/messages/index.json", '{"700000000000000001": "Direct Message with ada"}')
        for ident, kind in ((700000000000000001, "DM"), (700000000000000002, "GUILD_TEXT")):
            archive.writestr(f"package/messages/c{ident}/channel.json", json.dumps({"id": str(ident), "type": kind}))
            archive.writestr(f"package/messages/c{ident}/messages.json", json.dumps(PACKAGE[-2:]))
    got = heard(raw.getvalue(), "package.zip")
    assert [(one.conversation, one.group, one.owner, one.text) for one in got] == [
        ("700000000000000001", False, True, "n0"), ("700000000000000001", False, True, "n1"),
        ("700000000000000002", True, True, "n0"), ("700000000000000002", True, True, "n1"),
    ]  # fmt: skip


def test_a_torn_table_gives_what_was_whole() -> None:
    good = b"ID,Timestamp,Contents,Attachments\n700000000000000001,2020-03-01 08:00:00,one,\n"
    got = heard(good + b'5,2020,"' + b"x" * 200_000)
    assert got[0].text == "one"
    assert isinstance(got[-1], BadItem)
