"""Each reader by tables: what a file says, and the memories that it becomes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from daemon.readers import read
from daemon.readers.markdown import plain
from daemon.records import BadItem, Memory, Refused, Turn

FIXTURES = Path(__file__).parents[2] / "fixtures"


def parts_of(name: str, data: bytes, mtime: float | None = None) -> list[Memory | BadItem]:
    return list(read(io.BytesIO(data), name, len(data), mtime))


def fixture(path: str) -> list[Memory | BadItem]:
    return parts_of(Path(path).name, (FIXTURES / path).read_bytes())


def one(item: Any) -> Memory:
    (memory,) = parts_of("x.json", json.dumps(item).encode())
    assert isinstance(memory, Memory)
    return memory


def all_of(item: Any) -> list[Memory]:
    parts = parts_of("x.json", json.dumps(item).encode())
    assert all(isinstance(part, Memory) for part in parts)
    return [part for part in parts if isinstance(part, Memory)]


def why_not(item: Any) -> str:
    with pytest.raises(Refused) as caught:
        parts_of("x.json", json.dumps(item).encode())
    return str(caught.value)


# ---- origin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "kind", "content", "response"),
    [
        ({"content": "A walk."}, "observation", "A walk.", None),
        ({"content": "A walk.", "type": "dream", "timestamp": "2025-01-01"}, "dream", "A walk.", None),
        ({"observation": "A fox."}, "observation", "A fox.", None),
        ({"content": 'Me: "Hi there"', "response": "Hello."}, "conversation", "Hi there", "Hello."),
        ({"content": "Me: Hi", "response": "Hello.", "type": "chat"}, "chat", "Hi", "Hello."),
        ({"content": 'Say "Me: yes"', "response": "No."}, "conversation", 'Say "Me: yes"', "No."),
        ({"content": "User: a?\n\nAssistant: b.\n\nReally."}, "observation", "a?", "b.\n\nReally."),
        ({"content": "User: a?\n\nAssistant: b.", "type": "conversation"}, "conversation", "a?", "b."),
        ({"content": "User: a?\n\nAssistant: ", "type": "conversation"}, "conversation", "a?", None),
        ({"prompt": "a?", "response": "b.", "importance": 0.5}, "conversation", "a?", "b."),
        ({"question": "a?", "answer": "b.", "entities": []}, "conversation", "a?", "b."),
        ({"conversationalEssence": "e", "userMessage": "a?", "assistantResponse": "b."}, "conversation", "a?", "b."),
        ({"conversationalEssence": "e", "userMessage": "", "assistantResponse": ""}, "observation", "e", None),
        ({"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}],
          "type": "chat", "timestamp": "2025-01-01"}, "chat", "a?", "b."),
        ({"content": "A walk.", "type": "x" * 99}, "observation", "A walk.", None),
        ({"content": "A walk.", "type": 7}, "observation", "A walk.", None),
        ({"title": "Buy beans", "status": "todo"}, "task", "Buy beans", None),
        ({"title": "Buy beans", "status": "done", "description": "Red."}, "task", "Buy beans\nRed.", None),
    ],
)  # fmt: skip
def test_shapes_of_the_origin(item: dict[str, Any], kind: str, content: str, response: str | None) -> None:
    memory = one(item)
    assert (memory.type, memory.content, memory.response, memory.source) == (
        kind,
        content,
        response,
        "origin",
    )


def test_several_turns_in_one_string() -> None:
    first, second = all_of(
        {"content": "User: a?\n\nAssistant: b.\n\nUser: c?\n\nAssistant: d.", "type": "chat"}
    )
    assert (first.content, first.response, first.context) == ("a?", "b.", ())
    assert (second.content, second.response) == ("c?", "d.")
    assert second.context == (Turn("user", "a?"), Turn("assistant", "b."))


def test_origin_marks_go_with_the_memory() -> None:
    memory = one(
        {
            "id": "evt1",
            "timestamp": "2025-10-22T10:11:12.123Z",
            "content": "Hm.",
            "tags": ["feedback", 3, " "],
            "importance": 0.9,
            "metadata": {"reinforcementSignal": -1, "conversationId": "c1", "cognitiveMode": "dual"},
        }
    )
    assert memory.tags == ("feedback",)
    assert memory.mode == "dual"
    assert memory.timestamp == "2025-10-22T10:11:12.123Z"
    assert memory.time == "2025-10-22T10:11:12Z"
    assert memory.extra == {"importance": 0.9, "reinforcementSignal": -1, "conversation": "c1", "id": "evt1"}


@pytest.mark.parametrize("kind", ["tool_invocation", "tool_use", "action", "file_read"])
def test_tool_payload(kind: str) -> None:
    metadata = {
        "toolName": "web",
        "toolInputs": {"q": "x"},
        "toolOutputs": ["y"],
        "success": False,
        "error": "e",
    }
    memory = one({"content": "Ran web.", "type": kind, "metadata": metadata})
    assert memory.payload == {
        "tool": "web",
        "inputs": {"q": "x"},
        "outputs": ["y"],
        "success": False,
        "error": "e",
    }
    other = one({"content": "Ran web.", "type": kind, "metadata": {**metadata, "toolInputs": {"q": "z"}}})
    assert other.id != memory.id


def test_a_task_that_is_done_is_another_memory() -> None:
    task = {"title": "Buy beans", "status": "todo", "created": "2025-01-01T00:00:00Z"}
    assert one(task).id != one({**task, "status": "done"}).id


def test_a_tree_of_the_origin() -> None:
    parts = fixture("origin/tree.json")
    taken = [part for part in parts if isinstance(part, Memory)]
    assert [memory.type for memory in taken] == [
        "reflection", "reflection", "journal", "inner_dialogue", "observation"
    ]  # fmt: skip
    assert len({memory.id for memory in taken}) == 5  # ids of the origin collide
    assert taken[2].time is None  # unreadable: unknown, not old
    bad = {part.where: part.reason for part in parts if isinstance(part, BadItem)}
    assert bad["item 4"] == "the content is empty"
    assert "encrypted" in bad["item 5"]


def test_payloads_nested_too_deep_are_refused() -> None:
    deep: Any = "end"
    for _ in range(200):
        deep = [deep]
    assert "too deep" in why_not({"content": "a", "metadata": {"toolName": "x", "toolInputs": deep}})


# ---- chats ----------------------------------------------------------------------------------------------


def test_tool_calls_weights_pictures_and_bad_lines() -> None:
    parts = fixture("chat_jsonl/tools.jsonl")
    call, answer, weighted = [part for part in parts if isinstance(part, Memory)]
    assert call.response == '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert call.context == (Turn("system", "Be brief."),)
    assert (answer.content, answer.response) == ("rain, 4 C", "Yes, take a coat.")
    assert answer.extra == {"asked_by": "tool"}
    assert [turn.role for turn in answer.context] == ["system", "user", "assistant"]
    assert (weighted.content, weighted.response) == ("And now?", "Learnt.")
    assert [part.where for part in parts if isinstance(part, BadItem)] == [
        "line 2",
        "line 4",
        "line 6",
        "line 7",
    ]


@pytest.mark.parametrize(
    ("item", "source", "content", "response"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "openai", "a", "b"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "c"}]},
                       {"role": "model", "content": "b"}]}, "openai", "a\nc", "b"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "c"},
                       {"role": "assistant", "content": "b"}]}, "openai", "a\n\nc", "b"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt", "a", "b"),
        ({"conversations": [{"from": "user", "value": "a"}, {"from": "bing", "value": "b"}]}, "sharegpt", "a", "b"),
        ({"conversation": [{"role": "user", "content": "a"}, {"role": "chatgpt", "content": "b"}]},
         "sharegpt", "a", "b"),
        ({"instruction": "a", "output": "b"}, "alpaca", "a", "b"),
        ({"instruction": "a", "input": "c", "output": "b"}, "alpaca", "a\nc", "b"),
        ({"prompt": "a", "completion": "b"}, "pairs", "a", "b"),
        ({"question": "a", "answer": "b"}, "pairs", "a", "b"),
        ({"input": "a", "output": "b"}, "pairs", "a", "b"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
         "pairs", "a", "b"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences", "a", "b"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
         "preferences", "a", "b"),
        ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": []},
         "preferences", "a", "b"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
          "rejected": []}, "preferences", "a", "b"),
    ],
)  # fmt: skip
def test_chat_shapes(item: dict[str, Any], source: str, content: str, response: str) -> None:
    memory = one(item)
    assert (memory.source, memory.content, memory.response) == (source, content, response)
    assert memory.context == ()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "answers anything"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]}, "answers anything"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "are empty"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]},
         "not to be learnt"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "??", "content": "b"}]}, "no known 'role'"),
        ({"messages": [{"role": "user", "content": "a"}, 7]}, "no object"),
        ({"prompt": "a", "completion": "b", "label": False}, "unwanted"),
        ({"prompt": "a", "response": " "}, "answer is empty"),
        ({"instruction": "", "output": "b"}, "question is empty"),
    ],
)  # fmt: skip
def test_chats_that_teach_nothing_say_why(item: dict[str, Any], says: str) -> None:
    assert says in why_not(item)


def test_alpaca_history_and_system_are_context() -> None:
    memory = one({"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]})
    assert memory.context == (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))
    assert (memory.content, memory.response) == ("c", "d")


def test_context_is_capped_and_keeps_the_system_turn() -> None:
    turns = [{"role": "system", "content": "s"}]
    for number in range(20):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    memories = all_of({"messages": turns})
    assert len(memories) == 20
    last = memories[-1]
    assert (last.content, last.response) == ("q19", "a19")
    assert [turn.text for turn in last.context[:2]] == ["s", "q13"]
    assert len(last.context) == 13


# ---- Markdown and text -----------------------------------------------------------------------------------


def test_obsidian_note() -> None:
    (memory,) = fixture("markdown/obsidian.md")
    assert isinstance(memory, Memory)
    assert (memory.type, memory.timestamp, memory.time) == ("journal", "2024-01-15", "2024-01-15T00:00:00Z")
    assert memory.tags == ("journal", "garden")
    assert memory.content == (
        "# The garden\n\nDug with Ingrid and Jonas.  See Plan.\n\n"
        '```python\nx = "%%kept%%"  # [[kept]]\n```\n\nBeans in May.'
    )


def test_a_header_that_is_no_yaml_stays_in_the_text() -> None:
    (memory,) = fixture("markdown/template.md")
    assert isinstance(memory, Memory)
    assert memory.content.endswith("The header is no YAML.")
    assert "tags: [a" in memory.content
    assert memory.timestamp is None


@pytest.mark.parametrize(
    "header",
    [
        'title: "\\ud800"',
        'title: "\\U0000DFFF"',
        "a: &a [*a]",
        "? [x]\n: y",
        "[" * 3_000,
        "- a",
        "a: b: c",
        "\t",
        "x",
    ],
)
def test_any_header_leaves_the_text(header: str) -> None:
    (memory,) = parts_of("x.md", f"---\n{header}\n---\nThe text.".encode())
    assert isinstance(memory, Memory)
    assert memory.content.endswith("The text.")
    assert len(memory.id) == 64
    str(memory.extra).encode()


@pytest.mark.parametrize(
    ("name", "text", "timestamp", "time"),
    [
        ("2024-03-01 a.md", "---\ndate: 2024-01-15\n---\nx", "2024-01-15", "2024-01-15T00:00:00Z"),
        ("2024-03-01 a.md", "---\ndate: soon\n---\nx", "soon", None),
        ("2024-03-01 a.md", "---\ntags: a\n---\n# 2024-05-05\nx", None, "2024-03-01T00:00:00Z"),
        ("a.md", "# 5 May 2024\nx", None, "2024-05-05T00:00:00Z"),
        ("a.md", "# Diary of 2024-05-05\nx", None, "2024-05-05T00:00:00Z"),
        ("a.md", "x", None, "1970-01-01T00:00:05Z"),
        ("20240301.txt", "x", None, "2024-03-01T00:00:00Z"),
        ("2024_03_01-title.txt", "x", None, "2024-03-01T00:00:00Z"),
        ("2024-13-01.txt", "x", None, "1970-01-01T00:00:05Z"),
    ],
)
def test_dates_of_notes(name: str, text: str, timestamp: str | None, time: str | None) -> None:
    (memory,) = parts_of(name, text.encode(), 5.0)
    assert isinstance(memory, Memory)
    assert (memory.timestamp, memory.time) == (timestamp, time)


def test_a_renamed_note_is_the_same_memory() -> None:
    names = ("2024-03-01.md", "2024-03-02.md")
    first, second = (part for name in names for part in parts_of(name, b"A day."))
    assert isinstance(first, Memory)
    assert isinstance(second, Memory)
    assert first.id == second.id


def test_old_encodings_are_read() -> None:
    (memory,) = fixture("plain_text/cp1252.txt")
    assert isinstance(memory, Memory)
    assert memory.content.startswith("Café déjà vu, une journée d’été")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Gestern war ich müde und habe früh geschlafen, es war schön draußen."),
        ("cp1252", "I går gikk jeg på ski. Det var kaldt, men været var fint på fjellet."),
        ("cp1252", "Mañana iré al mercado, ¿quieres algo? Sí, piña."),
        ("cp1252", "I “liked” it – a lot. It’s fine…"),
        ("cp1250", "Wczoraj byłem zmęczony i poszedłem spać wcześnie, było źle."),
        ("cp1251", "Сегодня я гулял по лесу и думал о лете."),
        ("cp1253", "Χθες ήμουν κουρασμένος και κοιμήθηκα νωρίς."),
        ("shift_jis", "今日は森を散歩して、夏のことを考えました。とても楽しかったです。"),
        ("gb18030", "今天我在森林里散步，想着夏天。"),
        ("utf-16", "Gestern war ich müde."),
    ],
)
def test_encodings(encoding: str, text: str) -> None:
    (memory,) = parts_of("x.txt", text.encode(encoding))
    assert isinstance(memory, Memory)
    assert memory.content == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[[a]] [[b|c]] [[d#e]] [[#f]] [[g#h|i]]", "a c d f i"),
        ("x %%open", "x %%open"),
        ("a <!-- b --> c", "a  c"),
        ("a <% tp.date %> b", "a  b"),
        ("~~~\n%%x%%\n~~~\nend", "~~~\n%%x%%\n~~~\nend"),
        ("```tasks\nnot done", ""),
        ("x^2 stays ^id-1", "x^2 stays"),
        ("[text](http://x)", "[text](http://x)"),
    ],
)
def test_obsidian_marks(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_hostile_marks_take_no_time() -> None:
    for mark in ("<!--", "%%", "[[", "![[", "<%", "```\n", "![a]("):
        plain(mark * 50_000)
