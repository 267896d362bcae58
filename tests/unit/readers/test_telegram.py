"""Telegram: the points in which its exports differ from each other, and what may not be lost by it."""

import io
import json
import tracemalloc
from datetime import timedelta, timezone
from typing import Any

import pytest

from daemon import readers
from daemon.readers.json_chats import DEEPEST, Chats, local, utc
from daemon.records import BadItem, LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))


def heard(value: Any, name: str = "result.json") -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value, indent=1).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None, locale=readers.Locale(ZONE)))


def message(ident: int, text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {
        "id": ident, "type": "message", "date": "2024-01-15T11:00:00", "date_unixtime": "1705309200",
        "from": "Ada", "from_id": "user4001", "text": text, "text_entities": [], **more,
    }  # fmt: skip


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"name": "Ada", "type": "personal_chat", "id": 4001, **more, "messages": list(messages)}


def account(*chats: Any, **more: Any) -> dict[str, Any]:
    return {"personal_information": {"user_id": 4002}, "chats": {"about": "", "list": list(chats)}, **more}


def test_parts_of_a_text_follow_each_other_without_a_gap() -> None:
    (one,) = heard(chat(message(1, ["un", {"type": "bold", "text": "believ"}, "able"])))
    assert one.text == "unbelievable"


def test_entities_give_the_text_where_there_is_a_list() -> None:
    entities = [{"type": "plain", "text": "a"}, {"type": "custom_emoji", "text": "🙂"}]
    (one,) = heard(chat(message(1, ["x"], text_entities=entities)))
    assert one.text == "a🙂"


def test_an_export_without_unix_times_is_local_and_says_so() -> None:
    old = message(1)
    del old["date_unixtime"]
    (one,) = heard(chat(old))
    assert (one.time, one.zone_known, one.timestamp) == ("2024-01-15T09:00:00Z", False, "2024-01-15T11:00:00")


def test_one_chat_does_not_say_who_its_owner_is_and_an_account_does() -> None:
    assert heard(chat(message(1)))[0].owner is None
    mine = message(2, **{"from": "Bo", "from_id": "user4002"})
    assert [one.owner for one in heard(account(chat(message(1), mine)))] == [False, True]
    old = message(3, **{"from": "Bo", "from_id": 4002})
    assert heard(account(chat(old)))[0].owner is True


def test_the_owner_is_found_behind_the_chats() -> None:
    whole = account(chat(message(1, from_id="user4002")))
    whole["personal_information"] = whole.pop("personal_information")
    assert list(whole) == ["chats", "personal_information"]
    assert heard(whole)[0].owner is True


def test_saved_messages_are_the_owners() -> None:
    assert heard(chat(message(1), type="saved_messages"))[0].owner is True


def test_what_stands_behind_the_messages_still_names_the_chat() -> None:
    late = {"messages": [message(1)], "id": 77, "type": "private_group", "name": "Order"}
    for value in (late, account(late), account(chat(message(3)), late), [late, chat(message(5))]):
        said = [one for one in heard(value) if one.conversation == "77"]
        assert [one.message for one in said] == ["1"]
        assert said[0].group is True


def test_a_word_in_a_text_opens_no_chat() -> None:
    tricky = ['"messages": [', '{"id": 5, "messages": [', "\\", '\\"', '"left_chats":', "[" * 500 + "{" * 500]
    got = heard(account(chat(*[message(n, text) for n, text in enumerate(tricky)]), chat(message(99), id=5)))
    assert [one.text for one in got[:-1]] == tricky
    assert [one.conversation for one in got] == ["4001"] * 6 + ["5"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 61, 4096])
def test_chats_are_told_apart_however_the_bytes_come(size: int) -> None:
    class Slow(io.BytesIO):
        def read(self, most: int | None = -1) -> bytes:
            return super().read(size)

    chats = [chat(*[message(10 * n + k, '"messages": [\\') for k in range(n % 3)], id=n) for n in range(9)]
    whole = account(*chats[:5], left_chats={"list": chats[5:]}, other={"messages": [{"id": 1}]})
    renamed = {b'"left_chats"': b'"chats"'}
    feed = Chats(Slow(json.dumps(whole).encode()), "chats.list.item", lambda header: "id" in header, renamed)
    for one in feed.messages():
        assert feed.header["id"] == one["id"] // 10
    assert feed.number == 8


def test_a_torn_export_gives_what_was_whole() -> None:
    raw = json.dumps(chat(*[message(n) for n in range(50)])).encode()
    got = heard(raw[:-300])
    assert [one.message for one in got[:-1]] == [str(n) for n in range(len(got) - 1)]
    assert len(got) > 45
    assert got[-1].where == f"after message {len(got) - 2}"
    assert "ends too early" in got[-1].reason


def test_a_broken_part_leaves_the_rest() -> None:
    got = heard(chat(message(1), 5, None, message(2)))
    assert [type(one) for one in got] == [Utterance, BadItem, BadItem, Utterance]


def test_nesting_without_end_fills_no_memory() -> None:
    good = json.dumps(chat(*[message(n) for n in range(1500)])).encode()
    tracemalloc.start()
    try:
        got = heard(good[:-2] + b',{"id":' + b"[" * 3_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [type(one) for one in got] == [Utterance] * (len(got) - 1) + [BadItem]
    assert len(got) > 1000
    assert "nested too deep" in got[-1].reason
    assert peak < 30_000_000
    assert DEEPEST < 1000


@pytest.mark.parametrize("odd", [None, 5, 1.5, [], {}, "", [None, 5, {"text": 7}], "x\x00y", {"text": "x"}])
@pytest.mark.parametrize("key", ["id", "type", "date", "date_unixtime", "from", "from_id", "text", "text_entities"])
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    try:
        got = heard(chat(message(1), message(2, **{key: odd}), message(3)))
    except Refused:
        pytest.fail("two of the three are good")
    assert len(got) == 3
    assert all(isinstance(one, Utterance | LeftOut) for one in got)
    assert all(isinstance(one, LeftOut) or (one.text.strip() and "\x00" not in one.text) for one in got)


def test_times_are_those_of_the_slow_way() -> None:
    from daemon.readers.dates import as_utc, parse_time

    for second in (0, -1, 59, 3599, 3600, 1705309200, 1711846799, 1711846800, 4102444800, 10**11, -(10**12), 10**25):
        assert utc(second) == as_utc(second)
    assert local("2024-01-15T11:00:07", ZONE) == parse_time("2024-01-15T11:00:07", ZONE)
    for bad in ("2024-01-15T11:00:7x", "2024-01-15T25:00:00", "2024-01-15T11:00", "", "x" * 19, "2024-01-15T11:00:99"):
        assert local(bad, ZONE) is None
