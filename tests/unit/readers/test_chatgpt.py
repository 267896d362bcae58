"""ChatGPT: which of a conversation's many messages were said, by whom and when, in all the shapes seen in exports."""

import io
import json
from typing import Any

import pytest

from daemon import readers
from daemon.records import LeftOut, Utterance

START = 1705309200.0  # 2024-01-15T09:00:00Z


def heard(value: Any, name: str = "conversations.json") -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), None))


def said(value: Any, name: str = "conversations.json") -> list[tuple[str | None, str]]:
    return [(one.role, one.text) for one in heard(value, name) if isinstance(one, Utterance)]


def reasons(value: Any) -> list[str]:
    return [one.reason for one in heard(value) if isinstance(one, LeftOut)]


def message(role: str, *parts: Any, at: float | None = START, kind: str = "text", **more: Any) -> dict[str, Any]:
    content = more.pop("content", {"content_type": kind, "parts": list(parts)})
    return {
        "id": f"m-{role}-{'-'.join(str(part)[:20] for part in parts)}",
        "author": {"role": role, "name": None, "metadata": {}}, "create_time": at, "update_time": None,
        "content": content, "status": "finished_successfully", "end_turn": None, "weight": 1.0, "metadata": {},
        "recipient": "all", "channel": None, **more,
    }  # fmt: skip


def conversation(*messages: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """A conversation in one line: root, then each message the child of the one before."""
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    last = "root"
    for number, one in enumerate(messages):
        key = f"n{number}"
        mapping[key] = {"id": key, "message": one, "parent": last, "children": []}
        mapping[last]["children"].append(key)
        last = key
    return {
        "title": "Tea", "create_time": START - 60, "update_time": START + 60, "mapping": mapping,
        "moderation_results": [], "current_node": last, "conversation_id": "c-1", "id": "c-1", **more,
    }  # fmt: skip


ASK, REPLY = message("user", "Which tea?"), message("assistant", "Green tea.", at=START + 5.7)
PAIR = [("user", "Which tea?"), ("assistant", "Green tea.")]


def forked(**more: Any) -> dict[str, Any]:
    """A question, two answers to it, and a further question to the first of them."""
    whole = conversation(ASK, message("assistant", "Old answer."), message("user", "More of the old?"), **more)
    whole["mapping"]["new"] = {"id": "new", "message": REPLY, "parent": "n0", "children": []}
    whole["mapping"]["n0"]["children"].append("new")
    return whole


# ---- the tree ---------------------------------------------------------------------------------------


def test_a_message_has_its_speaker_time_and_name() -> None:
    first, second = heard([conversation(ASK, REPLY)])
    assert (first.source, first.conversation, first.message) == ("chatgpt", "c-1", ASK["id"])
    assert (first.role, first.time, first.zone_known) == ("user", "2024-01-15T09:00:00Z", True)
    assert (second.role, second.time, second.timestamp) == ("assistant", "2024-01-15T09:00:05Z", "1705309205.7")


def test_the_line_that_was_last_on_the_screen_is_read() -> None:
    assert said([forked(current_node="new")]) == PAIR
    assert said([forked()]) == [PAIR[0], ("assistant", "Old answer."), ("user", "More of the old?")]


@pytest.mark.parametrize("current", [None, "gone", 5, ["new"]])
def test_without_a_current_node_the_leaf_made_last_counts(current: Any) -> None:
    whole = forked(current_node=current)
    assert said([whole]) == PAIR
    del whole["current_node"]
    assert said([whole]) == PAIR


def test_without_times_the_leaf_that_was_written_last_counts() -> None:
    whole = forked(current_node=None)
    for node in whole["mapping"].values():
        if node["message"]:
            node["message"] = {**node["message"], "create_time": None}
    assert said([whole]) == PAIR


def test_the_order_in_the_file_says_nothing() -> None:
    whole = conversation(ASK, REPLY, message("user", "Thanks.", at=START - 5000))
    whole["mapping"] = dict(reversed(whole["mapping"].items()))
    assert said([whole]) == [*PAIR, ("user", "Thanks.")]


def test_a_circle_of_parents_ends() -> None:
    whole = conversation(ASK, REPLY)
    whole["mapping"]["n0"]["parent"] = "n1"
    assert said([whole]) == PAIR
    whole["current_node"] = None
    assert sorted(said([whole])) == sorted(PAIR)
    whole["mapping"]["n1"]["parent"] = "n1"
    assert ("assistant", "Green tea.") in said([whole])
