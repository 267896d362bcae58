"""ChatGPT: which of a conversation's many messages were said, by whom and when, in all the shapes seen in exports."""

import io
import json
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Memory, Utterance

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


def test_a_node_may_only_be_known_as_a_child() -> None:
    whole = conversation(ASK, REPLY)
    for node in whole["mapping"].values():
        del node["parent"]
    assert said([whole]) == PAIR


# ---- what is left out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        (message("system", "You are helpful."), "a message of the system"),
        (message("tool", "42", kind="execution_output"), "what a tool gave"),
        (message("tool", content={"content_type": "execution_output", "text": "42"}), "what a tool gave"),
        (message("user", "Unseen", metadata={"is_visually_hidden_from_conversation": True}), "a hidden message"),
        (message("assistant", "Passed over", weight=0), "a message that ChatGPT itself passed over"),
        (message("assistant", "Passed over", weight=0.0), "a message that ChatGPT itself passed over"),
        (message("assistant", content={"content_type": "code", "language": "python", "text": "1+1"},
                 recipient="python"), "a call of a tool"),
        (message("assistant", "search(tea)", recipient="browser"), "a call of a tool"),
        (message("assistant", "Let me think.", channel="analysis"), "a thought of the model"),
        (message("assistant", "I look it up.", channel="commentary"), "a thought of the model"),
        (message("assistant", content={"content_type": "thoughts", "thoughts": [{"summary": "Tea", "content": "Hm"}],
                                       "source_analysis_msg_id": "x"}), "a thought of the model"),
        (message("assistant", content={"content_type": "reasoning_recap", "content": "Thought for 7s"}),
         "a thought of the model"),
        (message("assistant", content={"content_type": "system_error", "name": "E", "text": "Too long"}),
         "content of the kind system_error"),
        (message("user", {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1"},
                 kind="multimodal_text"), "a picture, sound or file alone"),
        (message("assistant", "", metadata={"finish_details": {"type": "interrupted"}}), "an empty message"),
        (message("user"), "an empty message"),
    ],
)  # fmt: skip
def test_what_nobody_said_is_left_out_with_its_reason(left_out: dict[str, Any], reason: str) -> None:
    whole = [conversation(ASK, left_out, REPLY)]
    assert said(whole) == PAIR
    assert reasons(whole) == [reason]


def test_the_final_channel_is_the_answer() -> None:
    assert said([conversation(ASK, {**REPLY, "channel": "final"})]) == PAIR


def test_an_empty_message_of_the_system_is_not_worth_a_word() -> None:
    assert reasons([conversation(message("system", ""), ASK, REPLY)]) == []


@pytest.mark.parametrize("mapping", [{}, {"root": {"id": "root", "message": None, "parent": None, "children": []}}])
def test_an_empty_conversation_is_said_to_be_one(mapping: dict[str, Any]) -> None:
    empty = conversation(mapping=mapping, current_node=None)
    (left_out, *_) = heard([empty, conversation(ASK, REPLY)])
    assert (left_out.reason, left_out.text, left_out.time) == ("an empty conversation", "Tea", "2024-01-15T08:59:00Z")


# ---- texts ------------------------------------------------------------------------------------------


def one_text(*parts: Any, kind: str = "text") -> str:
    return said([conversation(message("assistant", *parts, kind=kind))])[0][1]


def test_of_a_message_with_pictures_and_sound_the_words_are_read() -> None:
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-1", "size_bytes": 5}
    sound = {"content_type": "real_time_user_audio_video_asset_pointer", "audio_asset_pointer": {"format": "wav"}}
    spoken = {"content_type": "audio_transcription", "text": "And this one?", "direction": "in", "decoding_id": None}
    assert one_text(picture, "What is this?", kind="multimodal_text") == "What is this?"
    assert one_text(sound, spoken, kind="multimodal_text") == "And this one?"
    assert one_text("One.", "", "Two.") == "One.\nTwo."


def test_marks_of_citations_are_not_words() -> None:
    marks = "\ue200cite\ue202turn0search1\ue202turn0news2\ue201", "\ue200filecite\ue202turn0file0\ue201"
    assert one_text(f"Smoke calms bees.{marks[0]} Slowly!{marks[1]}") == "Smoke calms bees. Slowly!"
    assert one_text("So it is.【4:0†source】 Really【12†L3-L9】.") == "So it is. Really."
    assert one_text("Old :contentReference[oaicite:3]{index=3} style【oaicite:0】.") == "Old  style."
    assert one_text("See\ue200image_group\ue202{\"query\":[\"tea\",\n\"cup\"]}\ue201 it.") == "See it."
    assert one_text("【注】看這裡") == "【注】看這裡"


def test_names_and_links_inside_a_mark_are_words() -> None:
    assert one_text('In \ue200entity\ue202["city","Paris","France"]\ue201 it rains.') == "In Paris it rains."
    assert one_text("Ask \ue200url\ue202the office\ue202https://a.example\ue201 first.") == "Ask the office first."
    assert one_text("Read \ue200link_title\ue202A Book\ue202turn0search1\ue201.") == "Read A Book."
    assert one_text('A \ue200entity\ue202["broken\ue201 mark, \ue200and one without an end') == (
        "A  mark, and one without an end"
    )


def test_half_of_a_surrogate_pair_does_no_harm() -> None:
    whole = conversation(message("user", "tea \ud83d"), message("assistant", "\udd75 green"), title="\ud83d")
    one = json.dumps(whole).encode()
    assert b"\\ud83d" in one
    for raw in (b"[" + one + b"]", one, one + b"\n" + one):
        texts = [text for _, text in said(raw)]
        assert len(texts) in (2, 4)
        assert all(text.encode() and ("tea" in text or "green" in text) for text in texts)


# ---- times ------------------------------------------------------------------------------------------


def test_a_message_without_a_time_has_that_of_what_came_before() -> None:
    first, second, third = heard([conversation({**ASK, "create_time": None}, REPLY, message("user", "Ta", at=None))])
    assert (first.time, first.timestamp) == ("2024-01-15T08:59:00Z", None)
    assert (second.time, third.time, third.timestamp) == ("2024-01-15T09:00:05Z", "2024-01-15T09:00:05Z", None)


@pytest.mark.parametrize("odd", [True, "soon", -5, 0, 1e30, [], {}])
def test_a_time_that_is_none_is_not_believed(odd: Any) -> None:
    assert heard([conversation({**ASK, "create_time": odd})])[0].time == "2024-01-15T08:59:00Z"


def test_a_time_in_words_of_iso_is_a_time() -> None:
    assert heard([conversation({**ASK, "create_time": "2024-01-15T10:00:00+02:00"})])[0].time == "2024-01-15T08:00:00Z"


# ---- what ChatGPT was told of the person --------------------------------------------------------------


def about(**more: Any) -> dict[str, Any]:
    return message("user", metadata={"is_visually_hidden_from_conversation": True, "is_user_system_message": True,
                                     **more.pop("metadata", {})},
                   content={"content_type": "user_editable_context", **more})  # fmt: skip


FRAMED_PROFILE = (
    "The user provided the following information about themselves. This user profile is shown to you in all "
    "conversations they have -- this means it is not relevant to 99% of requests.\nBefore answering, quietly think."
    "\nUser profile:\n```Preferred name: Ada\nRole: keeper of bees\n```"
)
FRAMED_WISHES = (
    "The user provided the additional info about how they would like you to respond:\n```Follow the instructions "
    "below naturally, without repeating any of their wording!\n\nAll the following instructions should guide your "
    "behavior silently!\n\nShow code as\n```py\n1\n```\nand be brief.```"
)


def test_what_the_person_wrote_of_themselves_is_taken_once() -> None:
    told = about(user_profile="I keep bees.", user_instructions="Be brief.")
    got = heard([conversation(told, ASK, REPLY), conversation(told, ASK, REPLY, conversation_id="c-2")])
    profile = [one for one in got if isinstance(one, Memory)]
    assert [(one.type, one.content, one.tags) for one in profile] == [
        ("observation", "I keep bees.", ("profile",)), ("observation", "Be brief.", ("profile",))
    ]  # fmt: skip
    assert len([one for one in got if isinstance(one, Utterance)]) == 4


def test_the_words_of_chatgpt_around_them_are_not_the_persons() -> None:
    told = about(user_profile=FRAMED_PROFILE, user_instructions=FRAMED_WISHES)
    mine = ["Preferred name: Ada\nRole: keeper of bees", "Show code as\n```py\n1\n```\nand be brief."]
    assert [one.content for one in heard([conversation(told)])] == mine
    data = {"about_user_message": "I am Ada.", "about_model_message": "Be kind."}
    told = about(user_profile=FRAMED_PROFILE, user_instructions="x", metadata={"user_context_message_data": data})
    assert [one.content for one in heard([conversation(told)])] == ["I am Ada.", "Be kind."]


def test_the_older_message_of_the_system_tells_it_too() -> None:
    data = {"about_user_message": "I am Ada.", "about_model_message": ""}
    told = message("system", "", metadata={"is_user_system_message": True, "user_context_message_data": data})
    assert [one.content for one in heard([conversation(told)])] == ["I am Ada."]


def test_each_entry_that_chatgpt_noted_is_taken_once_with_its_day() -> None:
    def noted(text: str) -> dict[str, Any]:
        return message("assistant", content={"content_type": "model_editable_context", "model_set_context": text})

    early = "1. [2024-05-01]. User keeps bees.\n\n2. [2024-06-02]. User likes tea,\nand cake."
    late = "1. [2024-06-02]. User likes tea,\nand cake.\n\n2. [2024-07-03]. User moved."
    got = heard([conversation(noted(early)), conversation(noted(late)), conversation(noted(""), ASK)])
    assert [(one.content, one.time) for one in got if isinstance(one, Memory)] == [
        ("User keeps bees.", "2024-05-01T00:00:00Z"), ("User likes tea,\nand cake.", "2024-06-02T00:00:00Z"),
        ("User moved.", "2024-07-03T00:00:00Z"),
    ]  # fmt: skip
    (whole, *_) = heard([conversation(noted("User keeps bees and has no list."), ASK)])
    assert (whole.content, whole.time) == ("User keeps bees and has no list.", "2024-01-15T09:00:00Z")


# ---- shapes of the file -------------------------------------------------------------------------------


def test_a_list_one_conversation_and_lines_are_all_read() -> None:
    one = conversation(ASK, REPLY)
    line = json.dumps(one).encode()
    assert said([one]) == said(one) == said(line, "chat.jsonl") == PAIR
    assert said(line + b"\n" + line + b"\n", "chat.jsonl") == PAIR * 2
    assert said(b"\xef\xbb\xbf [ " + line + b" ]", "renamed.txt") == PAIR
    assert said({"conversations": [one, one]}) == PAIR * 2


def test_a_torn_export_gives_what_was_whole() -> None:
    raw = json.dumps([conversation(ASK, REPLY) for _ in range(40)]).encode()
    got = heard(raw[:-200])
    assert [one.text for one in got[:-1]] == ["Which tea?", "Green tea."] * 39
    assert isinstance(got[-1], BadItem)
    assert got[-1].where == "after conversation 39"


def test_broken_conversations_leave_the_rest() -> None:
    got = heard([conversation(ASK), 5, None, {"title": "x", "mapping": [1]}, conversation(REPLY)])
    assert [type(one) for one in got] == [Utterance, BadItem, BadItem, BadItem, Utterance]


def test_a_conversation_without_an_id_has_its_time_for_one() -> None:
    one = conversation(ASK)
    del one["id"], one["conversation_id"]
    assert heard([one])[0].conversation == "of 2024-01-15T08:59:00Z"
    assert heard([conversation(REPLY), one])[1].conversation == "of 2024-01-15T08:59:00Z"


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, [None, 5, {"text": 7}], {"parts": {"a": 1}}, True])
@pytest.mark.parametrize(
    "key", ["id", "author", "create_time", "content", "recipient", "channel", "metadata", "weight"]
)
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    got = heard([conversation(ASK, {**message("user", "odd"), key: odd}, REPLY)])
    assert all(isinstance(one, Utterance | LeftOut) and one.time for one in got)
    assert [one.text for one in got if isinstance(one, Utterance) and one.text != "odd"] == ["Which tea?", "Green tea."]
