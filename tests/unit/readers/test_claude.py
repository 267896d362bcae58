"""Claude: whose words are in a message of many blocks, which branch was the last, and what else an export holds."""

import io
import json
import zipfile
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Memory, Refused, Utterance

NOBODY = "00000000-0000-4000-8000-000000000000"
MTIME = 1_700_000_000.0


def heard(value: Any, name: str = "conversations.json") -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), MTIME))


def said(value: Any, name: str = "conversations.json") -> list[tuple[str | None, str]]:
    return [(one.role, one.text) for one in heard(value, name) if isinstance(one, Utterance)]


def reasons(value: Any) -> list[str]:
    return [one.reason for one in heard(value) if isinstance(one, LeftOut)]


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"start_timestamp": None, "stop_timestamp": None, "type": "text", "text": words, "citations": [], **more}


def message(ident: str, sender: str, *blocks: Any, **more: Any) -> dict[str, Any]:
    content = [text(block) if isinstance(block, str) else block for block in blocks]
    return {
        "uuid": ident, "text": "".join(block for block in blocks if isinstance(block, str)), "content": content,
        "sender": sender, "created_at": f"2025-03-01T10:00:0{int(ident[-1]) % 10}.123456Z",
        "updated_at": "2025-03-01T10:09:00.123456Z", "attachments": [], "files": [], **more,
    }  # fmt: skip


def conversation(*messages: Any, **more: Any) -> dict[str, Any]:
    return {
        "uuid": "c-1", "name": "Roses", "summary": "", "created_at": "2025-03-01T09:59:00.000000Z",
        "updated_at": "2025-03-01T10:09:00.000000Z", "account": {"uuid": "acc"},
        "chat_messages": list(messages), **more,
    }  # fmt: skip


ASK, REPLY = message("m1", "human", "When do I prune?"), message("m2", "assistant", "In late winter.")
PAIR = [("user", "When do I prune?"), ("assistant", "In late winter.")]


def test_a_message_has_its_speaker_time_and_name() -> None:
    first, second = heard([conversation(ASK, REPLY)])
    assert (first.source, first.conversation, first.message, first.role) == ("claude", "c-1", "m1", "user")
    assert (first.time, first.timestamp) == ("2025-03-01T10:00:01Z", "2025-03-01T10:00:01.123456Z")
    assert (second.role, second.time, second.zone_known) == ("assistant", "2025-03-01T10:00:02Z", True)


# ---- blocks -------------------------------------------------------------------------------------------


def test_blocks_of_text_are_read_and_the_others_named() -> None:
    mixed = message(
        "m2", "assistant", {"type": "thinking", "thinking": "hm"}, "Let me look.",
        {"type": "tool_use", "name": "web_search", "input": {}}, {"type": "tool_result", "content": []},
        "In late winter.", {"type": "token_budget"},
    )  # fmt: skip
    whole = [conversation(ASK, mixed)]
    assert said(whole) == [PAIR[0], ("assistant", "Let me look.\n\nIn late winter.")]
    kinds = ["thinking", "tool_use", "tool_result", "token_budget"]
    assert reasons(whole) == [f"a block of the kind {kind}" for kind in kinds]


def test_the_result_of_a_tool_is_not_the_persons_though_it_comes_with_their_name() -> None:
    result = {"type": "tool_result", "name": "repl", "content": [{"type": "text", "text": "42"}]}
    given = message("m3", "human", result, text="42")
    assert said([conversation(ASK, given, REPLY)]) == PAIR
    assert reasons([conversation(ASK, given, REPLY)]) == ["a block of the kind tool_result"]


@pytest.mark.parametrize("content", [None, [], "", {}, [text("")], [text("  \n")]])
def test_where_no_block_has_words_the_old_field_is_read(content: Any) -> None:
    assert said([conversation({**ASK, "content": content}, REPLY)]) == PAIR


def test_blocks_win_over_the_old_field_with_its_notes() -> None:
    note = "```\nThis block is not supported on your current device yet.\n```"
    assert said([conversation(ASK, {**REPLY, "text": f"In late {note} winter."})]) == PAIR
    assert said([conversation(ASK, {**REPLY, "content": [], "text": f"In late winter.\n\n{note}"})]) == PAIR


def test_what_the_page_never_showed_is_no_text_of_an_old_answer() -> None:
    old = ('Here.\n\n<antThinking>A page is best.</antThinking>\n\n<antArtifact identifier="x" type="text/markdown" '
           'title="T">\n# Roses\n</antArtifact>\n\nEnjoy.')  # fmt: skip
    assert said([conversation(ASK, message("m2", "assistant", old))])[1][1] == "Here.\n\n# Roses\n\nEnjoy."
    assert said([conversation(message("m1", "human", "What is <antThinking>?"))]) == [
        ("user", "What is <antThinking>?")]  # fmt: skip


def test_an_empty_message_is_left_out() -> None:
    assert reasons([conversation(ASK, message("m2", "assistant"))]) == ["an empty message"]


def test_attached_files_are_named_and_not_read() -> None:
    with_files = {
        **ASK, "files": [{"file_name": "frame.png"}, {"file_uuid": "x"}],
        "attachments": [{"file_name": "notes.txt", "file_size": 9, "extracted_content": "nobody said this"}],
    }  # fmt: skip
    got = heard([conversation(with_files, REPLY)])
    assert [(one.reason, one.text) for one in got if isinstance(one, LeftOut)] == [
        ("an attached file", "notes.txt"), ("an attached file", "frame.png"), ("an attached file", ""),
    ]  # fmt: skip
    assert said([conversation(with_files, REPLY)]) == PAIR


def test_a_message_that_is_a_pasted_text_alone_has_one_reason() -> None:
    pasted = message("m1", "human", attachments=[{"file_name": "", "file_type": "txt", "extracted_content": "long"}])
    assert reasons([conversation(pasted, REPLY)]) == ["a long text that was pasted in"]


@pytest.mark.parametrize("sender", ["system", "", None, 5, ["human"]])
def test_who_is_neither_side_is_nobody(sender: Any) -> None:
    assert said([conversation(ASK, {**message("m3", "human", "?"), "sender": sender}, REPLY)]) == PAIR


# ---- branches -------------------------------------------------------------------------------------------


def branched() -> list[dict[str, Any]]:
    """A first question written anew, and an answer made anew."""
    return [
        message("a1", "human", "Name a river", parent_message_uuid=NOBODY),
        message("a2", "assistant", "The Elbe", parent_message_uuid="a1"),
        message("b3", "human", "Name a lake", parent_message_uuid=NOBODY),
        message("b4", "assistant", "Garda", parent_message_uuid="b3"),
        message("b5", "assistant", "Como", parent_message_uuid="b3"),
    ]


def test_of_branches_the_one_that_leads_to_the_newest_message_is_read() -> None:
    assert said([conversation(*branched())]) == [("user", "Name a lake"), ("assistant", "Como")]


def test_a_conversation_may_say_which_message_was_on_the_screen() -> None:
    whole = conversation(*branched(), current_leaf_message_uuid="a2")
    assert said([whole]) == [("user", "Name a river"), ("assistant", "The Elbe")]
    assert len(said([{**whole, "current_leaf_message_uuid": "gone"}])) == 2


def test_a_parent_that_is_not_there_loses_no_message() -> None:
    line = [message(f"m{n}", "human" if n % 2 else "assistant", f"line {n}",
                    parent_message_uuid=f"m{n - 1}" if n > 1 else NOBODY) for n in range(1, 7)]  # fmt: skip
    del line[2]
    assert [words for _, words in said([conversation(*line)])] == [f"line {n}" for n in (1, 2, 4, 5, 6)]


def test_a_circle_of_parents_ends() -> None:
    line = [message("m1", "human", "a", parent_message_uuid="m2"),
            message("m2", "assistant", "b", parent_message_uuid="m1")]  # fmt: skip
    assert [words for _, words in said([conversation(*line)])] == ["a", "b"]


def test_without_parents_all_messages_are_read_in_their_order() -> None:
    assert said([conversation(ASK, REPLY, {**ASK, "uuid": None})]) == [*PAIR, PAIR[0]]


# ---- shapes ---------------------------------------------------------------------------------------------


def test_an_empty_conversation_without_a_name_is_said_to_be_one() -> None:
    (left_out, *_) = heard([conversation(name=""), conversation(ASK)])
    assert (left_out.reason, left_out.text, left_out.time) == ("an empty conversation", "", "2025-03-01T09:59:00Z")


def test_a_list_one_conversation_and_lines_are_all_read() -> None:
    one = conversation(ASK, REPLY)
    line = json.dumps(one).encode()
    assert said([one]) == said(one) == said(line + b"\n", "x.jsonl") == said(json.dumps(one, indent=1).encode()) == PAIR
    assert said(line + b"\n{broken\n" + line) == PAIR * 2
    assert said({"conversations": [one]}) == PAIR


def test_a_torn_export_gives_what_was_whole() -> None:
    raw = json.dumps([conversation(ASK, REPLY, uuid=f"c{n}") for n in range(30)]).encode()
    got = heard(raw[:-300])
    assert [one.conversation for one in got[:-1]] == [f"c{n}" for n in range(29) for _ in (1, 2)]
    assert (type(got[-1]), got[-1].where) == (BadItem, "after conversation 29")


def test_half_of_a_surrogate_pair_does_no_harm() -> None:
    one = json.dumps(conversation(message("m1", "human", "prune \ud83c"), name="\udf39"), indent=2).encode()
    for raw in (one, b"[" + one + b"]"):
        assert [words.encode() for _, words in said(raw)] == ["prune \ufffd".encode()]


def test_broken_parts_leave_the_rest() -> None:
    got = heard([conversation(None, 7, ASK, REPLY), 5, {"uuid": "x", "name": "y"}, conversation(ASK)])
    assert [type(one) for one in got] == [Utterance, Utterance, BadItem, BadItem, Utterance]


@pytest.mark.parametrize("raw", ["yesterday", "", None, 5, "2025-13-01T10:00:00.000000Z", "x" * 5000])
def test_a_time_that_is_none_is_no_time(raw: Any) -> None:
    assert heard([conversation({**ASK, "created_at": raw})])[0].time is None


def test_a_time_with_another_zone_is_turned_to_utc() -> None:
    assert heard([conversation({**ASK, "created_at": "2025-03-01T12:00:00+02:00"})])[0].time == "2025-03-01T10:00:00Z"


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, [None, 5, {"text": 7}], {"a": 1}, True])
@pytest.mark.parametrize(
    "key", ["uuid", "text", "content", "sender", "created_at", "attachments", "files", "parent_message_uuid"]
)
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    got = heard([conversation(ASK, {**message("m3", "human", "odd"), key: odd}, REPLY)])
    texts = [one.text for one in got if isinstance(one, Utterance)]
    assert [one for one in texts if one not in ("odd", "x")] == ["When do I prune?", "In late winter."]


# ---- memory, projects, designs --------------------------------------------------------------------------


def test_what_claude_remembers_becomes_observations() -> None:
    remembered = {
        "account_uuid": "acc", "conversations_memory": "**Work**\n\nShe mends violins.\n\n---\n\n## Home\nTwo cats.",
        "project_memories": {"p1": "The boat is green."},
        "memory_files": [None, {"path": "/a.md", "content": "Likes tea.", "updated_at": "2026-02-03T04:05:06Z"}],
    }  # fmt: skip
    for value in (remembered, [remembered]):
        got = heard(value, "memories.json")
        assert [(one.type, one.content) for one in got] == [
            ("observation", "Work\nShe mends violins."), ("observation", "## Home\nTwo cats."),
            ("observation", "The boat is green."), ("observation", "Likes tea."),
        ]  # fmt: skip
        assert [one.time for one in got] == ["2023-11-14T22:13:20Z"] * 3 + ["2026-02-03T04:05:06Z"]


def test_a_chat_about_a_design_is_read() -> None:
    def turn(role: str, content: Any, at: int) -> dict[str, Any]:
        return {"uuid": f"d{at}", "role": role, "created_at": f"2026-04-01T10:00:0{at}Z", "content": content}

    blocks = [
        {"type": "thinking", "text": "hm"}, {"type": "text", "text": "A box it is."},
        {"type": "tool_call", "toolCall": {"name": "write"}},
        {"type": "user_interjection", "message": {"content": "Make it red"}},
    ]  # fmt: skip
    chat = {
        "uuid": "design-1", "title": "Box", "created_at": "2026-04-01T10:00:00Z", "project": {"uuid": "p", "name": "P"},
        "messages": [
            turn("user", {"id": "1", "role": "user", "content": "Draw a box", "authorAccountUuid": "acc"}, 1),
            turn("assistant", {"role": "assistant", "content": "", "contentBlocks": blocks}, 2),
            turn("user", {"content": "Verifier check completed", "pill": True}, 3), None,
        ],
    }  # fmt: skip
    got = heard(chat, "design_chats/d.json")
    assert [(one.role, one.text, one.time, one.conversation) for one in got if isinstance(one, Utterance)] == [
        ("user", "Draw a box", "2026-04-01T10:00:01Z", "design-1"),
        ("assistant", "A box it is.", "2026-04-01T10:00:02Z", "design-1"),
        ("user", "Make it red", "2026-04-01T10:00:02Z", "design-1"),
    ]  # fmt: skip
    assert [one.reason for one in got if isinstance(one, LeftOut)] == [
        "a block of the kind thinking", "a block of the kind tool_call", "nobody's words"
    ]  # fmt: skip


PROJECT = {"uuid": "p1", "name": "Boat", "description": "", "prompt_template": "Be brief.", "creator": {"uuid": "acc"},
           "created_at": "2025-01-01T00:00:00Z", "docs": [{"filename": "a.md", "content": "Not said."}]}  # fmt: skip


def test_a_project_holds_no_conversation_and_says_so() -> None:
    with pytest.raises(Refused, match="a project of Claude, which holds no conversation"):
        heard(PROJECT, "p1.json")


def test_a_zip_is_read_with_all_that_comes_with_it() -> None:
    files = {
        "conversations.json": [conversation(ASK, REPLY)], "users.json": [{"uuid": "acc", "full_name": "Ada"}],
        "projects.json": [PROJECT], "projects/p1.json": PROJECT, "login_history.json": [{"ip": "::1"}],
        "memories.json": [{"conversations_memory": "She mends violins.", "project_memories": {}}],
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, value in files.items():
            archive.writestr(path, json.dumps(value))
    got = heard(out.getvalue(), "data-2025-batch-0000.zip")
    assert [one.text for one in got if isinstance(one, Utterance)] == ["When do I prune?", "In late winter."]
    assert [one.content for one in got if isinstance(one, Memory)] == ["She mends violins."]
    assert {one.where.partition(",")[0] for one in got if isinstance(one, LeftOut)} == {
        "users.json", "projects.json", "projects/p1.json", "login_history.json"}  # fmt: skip
    assert not [one for one in got if isinstance(one, BadItem)]


def test_a_paragraph_bears_the_heading_that_it_stands_under() -> None:
    memory = "**Work**\n\nShe mends violins.\n\n**Home**\nTwo cats.\n\nA garden."
    found = [one.content for one in heard([{"account_uuid": "a", "conversations_memory": memory}], "memories.json")]
    assert found == ["Work\nShe mends violins.", "**Home**\nTwo cats.", "Home\nA garden."]


def test_an_answer_whose_blocks_hold_thoughts_alone_is_in_the_old_field() -> None:
    thoughts = {**message("m2", "assistant", {"type": "thinking", "thinking": "hm"}), "text": "In late winter."}
    assert said([conversation(ASK, thoughts)]) == PAIR
