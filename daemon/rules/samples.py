"""From a memory to its training samples: pure, and the same for the same memory and settings."""

import json
from typing import Any, Literal

from daemon.records import Memory
from daemon.rules.curation import Cleaned, Curation, clean, unmarked, without_private
from daemon.rules.prompts import Prompts, choose, fill
from daemon.rules.wording import cut_at_sentence, last_sentence, split_text
from trainer.contract import Message, Sample


def make_samples(
    memory: Memory, curation: Curation, prompts: Prompts, profile_seed: int | str, system_prompt: str = ""
) -> list[Sample]:
    """The samples of one memory, `<memory id>#0` and so on. None where cleaning leaves nothing to learn.

    A pair is learnt as it was said. A text that answers nothing is learnt as the answer to a prompt of its
    type, long ones in pieces. Tool calls and tasks are learnt as what was asked and what came of it.
    """
    memory_id = memory.id
    memory = without_private(memory, curation)
    cleaned = clean(memory, curation, memory_id)
    if cleaned.response is not None:
        chats = _pair(memory, cleaned, curation)
    elif memory.payload and "title" in memory.payload:
        chats = [_task(memory, prompts, memory_id, profile_seed)]
    elif memory.payload:
        chats = [_tool_call(memory, cleaned, prompts, memory_id, profile_seed)]
    else:
        chats = _own_text(memory, cleaned.content, curation, prompts, memory_id, profile_seed)
    samples: list[Sample] = []
    for chat in chats:
        if not chat or not chat[-1].content.strip():
            continue
        if system_prompt and chat[0].role != "system":
            chat = [Message(role="system", content=system_prompt), *chat]
        samples.append(Sample(id=f"{memory_id}#{len(samples)}", messages=chat, memory=memory_id))
    return samples


def _exchange(asked: str, answered: str) -> list[Message]:
    return [Message(role="user", content=asked), Message(role="assistant", content=answered, loss=True)]


def _pair(memory: Memory, cleaned: Cleaned, curation: Curation) -> list[list[Message]]:
    """The pair with its context; in dual mode the person's own turn is learnt too, as an answer."""
    assert cleaned.response is not None
    content = cleaned.content or memory.content
    context = [Message(role=turn.role, content=turn.text) for turn in cleaned.context]
    role: Literal["tool", "user"] = "tool" if memory.extra.get("asked_by") == "tool" else "user"
    chats = [
        [
            *context,
            Message(role=role, content=content),
            Message(role="assistant", content=cleaned.response, loss=True),
        ]
    ]
    flips = curation.dual_flip and memory.type in curation.dual_flip_types and curation.mode(memory) == "dual"
    if flips and role == "user" and content.strip() and cleaned.response.strip():
        # The reply in full is what the person would have reacted to; only what carries loss is trimmed.
        chats.append(_exchange(unmarked(memory.response or "", curation), content))
    return chats


def _own_text(
    memory: Memory, content: str, curation: Curation, prompts: Prompts, memory_id: str, seed: int | str
) -> list[list[Message]]:
    """What the person wrote, all of it: split at paragraph ends, never trimmed."""
    chats: list[list[Message]] = []
    before = ""
    for number, piece in enumerate(split_text(content, curation.split_words)):
        if number == 0:
            asked = choose(prompts.of_type(memory.type), seed, memory_id)
        else:
            asked = fill(choose(prompts.go_on, seed, memory_id, number), last=last_sentence(before))
        chats.append(_exchange(asked, piece))
        before = piece
    return chats


# ---- tools and tasks ------------------------------------------------------------------------------


def _tool_call(
    memory: Memory, cleaned: Cleaned, prompts: Prompts, memory_id: str, seed: int | str
) -> list[Message]:
    """What was asked of the tool, then the record of it and what came out."""
    payload = memory.payload or {}
    tool, inputs = payload.get("tool"), shown(payload.get("inputs", payload.get("file")))
    if isinstance(tool, str) and tool.strip():
        forms = prompts.tool_ask if inputs else prompts.tool_ask_without_inputs
        asked = fill(choose(forms, seed, memory_id), tool=tool.strip(), inputs=inputs)
    else:
        asked = choose(prompts.of_type(memory.type), seed, memory_id)
        asked = f"{asked} {inputs}" if inputs else asked
    said = prompts.tool_words
    outputs = shown(payload.get("outputs", payload.get("snippet")))
    error = shown(payload.get("error"))
    parts = [cleaned.content]
    if payload.get("success") is False or (error and not outputs):
        parts.append(fill(said["failed"], error=error) if error else said["failed_silently"])
    elif outputs and outputs not in cleaned.content:
        parts.append(fill(said["result"], outputs=cut_at_sentence(outputs, prompts.result_words)))
    elif not cleaned.content:
        parts.append(said["succeeded"])
    return _exchange(asked, "\n".join(part for part in parts if part.strip()))


def _task(memory: Memory, prompts: Prompts, memory_id: str, seed: int | str) -> list[Message]:
    payload = memory.payload or {}
    title = str(payload["title"])
    asked = fill(choose(prompts.task_ask, seed, memory_id), title=title)
    parts = [f"{title}.".replace("..", "."), _sentence(payload.get("description"))]
    parts.append(prompts.task_states.get(str(payload.get("status")), ""))
    return _exchange(asked, " ".join(part for part in parts if part))


def _sentence(value: Any) -> str:
    text = str(value or "").strip()
    return text if not text or text[-1] in ".!?…" else text + "."


def shown(value: Any) -> str:
    """A tool's data as text: a plain object as `key: value`, a nested one as JSON."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict) and all(isinstance(one, (str, int, float, bool)) for one in value.values()):
        return ", ".join(f"{key}: {shown(one)}" for key, one in value.items())
    return json.dumps(value, ensure_ascii=False)
