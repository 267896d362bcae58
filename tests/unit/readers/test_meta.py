"""Facebook and Instagram: letters put right, the newest first turned round, notices out."""

import io
import json
import zipfile
from typing import Any

import pytest

from daemon import readers
from daemon.readers import meta_messages
from daemon.readers.meta_messages import repaired
from daemon.records import BadItem, LeftOut, Refused, Utterance

T = 1705309200000


def broken(text: str) -> str:
    return text.encode().decode("latin-1")


def message(at: int, content: Any = "hi", sender: str = "Ada Berg", **more: Any) -> dict[str, Any]:
    return {"sender_name": sender, "timestamp_ms": T + 1000 * at, "content": content, **more}


def thread(*messages: Any, path: str = "inbox/ada_1", people: int = 2) -> dict[str, Any]:
    return {"participants": [{"name": f"p{n}"} for n in range(people)], "messages": list(messages), "title": "t",
            "thread_path": path}  # fmt: skip


def heard(value: Any, name: str = "message_1.json") -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None))


@pytest.mark.parametrize("text", ["café", "Привет", "🙂", "naïve", "日本", "plain", "Ã", "£5 – ok"])
def test_letters_are_put_right_and_right_ones_stay(text: str) -> None:
    assert repaired(broken(text)) == text
    assert repaired(text) == text


def test_the_oldest_comes_first_and_equal_times_keep_their_order() -> None:
    got = heard(thread(message(3, "d"), message(2, "c"), message(2, "b"), message(1, "a")))
    assert [one.text for one in got] == ["a", "b", "c", "d"]
    assert [one.clock for one in got] == [str(T + 1000), str(T + 2000), str(T + 2000), str(T + 3000)]
    assert all(one.message is None for one in got)


def test_a_thread_of_several_files_is_one_conversation() -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        folder = "your_facebook_activity/messages/inbox/ada_1"
        for number in range(1, 12):
            newest = 100 - number * 2
            one = thread(message(newest, f"m{newest}"), message(newest - 1, f"m{newest - 1}"))
            archive.writestr(f"{folder}/message_{number}.json", json.dumps(one))
        archive.writestr("your_facebook_activity/messages/inbox/bo_2/message_1.json",
                         json.dumps(thread(message(1, "other"), path="inbox/bo_2", people=3)))  # fmt: skip
    got = heard(raw.getvalue(), "facebook.zip")
    assert [one.text for one in got] == [f"m{n}" for n in range(77, 99)] + ["other"]
    assert {one.conversation for one in got[:-1]} == {"inbox/ada_1"}
    assert (got[-1].conversation, got[-1].group, got[0].group) == ("inbox/bo_2", True, False)


@pytest.mark.parametrize(
    "text",
    [
        "Ada sent an attachment.", "You sent a photo.", "Ada Berg missed your video call.", "Ada liked a message",
        "Reacted 😂 to your message ", "Liked a message", "You changed the theme to Sunset.",
        "Ada named the group Walk.", "Ada left the group.", "Ada added Bo Lind to the group.",
        "Ada hat einen Anhang gesendet.",
        "Ada set the nickname for Bo to Bosse.", "You are now connected on Messenger.", "The video chat ended.",
    ],
)  # fmt: skip
def test_notices_are_left_out(text: str) -> None:
    said = message(2, broken(text))
    assert [type(one) for one in heard(thread(said, message(1)))] == [Utterance, LeftOut]


@pytest.mark.parametrize(
    "text",
    [
        "You sent a photo of the wrong house.", "You called me yesterday?", "Ada sent me here", "You missed the bus",
        "Reacted badly, I did", "I sent an attachment.", "You left the group chat muted", "The call was awful",
        "You started a fire", "Ada set the table for six",
    ],
)  # fmt: skip
def test_sentences_that_look_like_notices_stay(text: str) -> None:
    assert [one.text for one in heard(thread(message(1, text)))] == [text]


def test_a_torn_or_large_file_is_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = thread(*[message(n, f"m{n}") for n in range(20, 0, -1)])
    torn = heard(json.dumps(whole).encode()[:-180])
    assert isinstance(torn[-1], BadItem)
    assert torn[-2].text == "m20"
    assert torn[-2].group is False
    plain = heard(whole)
    monkeypatch.setattr(meta_messages, "HELD_BYTES", 100)
    monkeypatch.setattr("daemon.readers.json_chats.HELD_BYTES", 100)
    assert heard(whole) == plain


@pytest.mark.parametrize("odd", [None, 5, 1.5, [], {}, [5], 10**25])
@pytest.mark.parametrize("key", ["sender_name", "timestamp_ms", "content", "type", "photos", "is_unsent", "reactions"])
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    got = heard(thread(message(3), message(2, **{key: odd}), message(1)))
    lost = 2 if odd == 10**25 else 0  # a number that no parser holds ends the file
    assert sum(isinstance(one, Utterance | LeftOut) for one in got) >= 3 - lost


@pytest.mark.parametrize("key", ["participants", "title", "thread_path", "joinable_mode"])
@pytest.mark.parametrize("odd", [None, 5, [], {}, [5]])
def test_no_header_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    assert [one.text for one in heard({**thread(message(1)), key: odd})] == ["hi"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("order", [1, -1, 0])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_long_file_is_turned_round_block_by_block(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, order: int, zipped: bool
) -> None:
    messages: list[Any] = [message(n, f"m{n} {'x' * (n % 150)}" + "é{]\"[," * (n % 3)) for n in range(3000)]
    messages[77:77] = [5, None]
    messages = messages[:: order or -1]
    if not order:
        messages[100:120] = reversed(messages[100:120])  # nearly in order
    raw = json.dumps(thread(*messages), indent=indent, ensure_ascii=bool(order)).encode()
    if zipped:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inbox/ada_1/message_1.json", raw)
        raw = packed.getvalue()
    plain = heard(raw, "m.zip" if zipped else "message_1.json")
    monkeypatch.setattr(meta_messages, "HELD_BYTES", 100)
    monkeypatch.setattr("daemon.readers.json_backwards.WHOLE", 100)
    long = heard(raw, "m.zip" if zipped else "message_1.json")
    assert [one.where for one in long if isinstance(one, Utterance)] == [
        one.where for one in plain if isinstance(one, Utterance)
    ]
    assert sorted(map(str, long)) == sorted(map(str, plain))
    assert sum(isinstance(one, BadItem) for one in long) == 2


@pytest.mark.parametrize("cut", [1, 150, 40_000, 200_000])
def test_a_long_file_that_is_torn_gives_what_was_whole(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    raw = json.dumps(thread(*[message(n, f"m{n} {'x' * 40}") for n in range(3000, 0, -1)])).encode()[:-cut]
    monkeypatch.setattr(meta_messages, "HELD_BYTES", 100)
    monkeypatch.setattr("daemon.readers.json_backwards.WHOLE", 100)
    got = heard(raw)
    said = [int(one.text.split()[0][1:]) for one in got if isinstance(one, Utterance)]
    assert said == list(range(3001 - len(said), 3001))
    assert "ends too early" in got[-1].reason
    assert got[-1].where == f"after message {len(said)}"


def test_a_list_that_never_opens_is_refused() -> None:
    with pytest.raises(Refused, match="ends too early"):
        heard(b'{"participants": [{"name": "Ada"}], "thread_path": "inbox/a", "messages": ')
