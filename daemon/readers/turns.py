"""From the turns of a chat to its memories: one for each assistant turn that is learnt."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from daemon.readers.shape import Item, Shared, normal_text
from daemon.records import BadItem, Memory, Role, Turn

MOST_CONTEXT = 12  # turns before the question; a system turn is kept beside them

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "me": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip


class Said(NamedTuple):
    """One turn as it was recorded. An empty text stands for what was no text (a picture)."""

    role: Role
    text: str
    learn: bool = True


def role_of(name: Any) -> Role | None:
    """One of our roles for the many names that sources give them; None where the name is unknown."""
    if not isinstance(name, str):
        return None
    return ROLES.get(name) or ROLES.get(name.strip().lower())


def said_of(turn: Item, role_key: str, text_key: str) -> Said | str:
    """One turn of a message list; a sentence where it is none."""
    role = role_of(turn.get(role_key))
    if role is None:
        return f"a turn has no known {role_key!r}"
    text = normal_text(turn.get(text_key))
    if len(turn) == 2 and role_key == "role":
        return Said(role, text)  # nothing else to look at
    calls = turn.get("tool_calls") or turn.get("function_call")
    if role == "assistant" and calls:
        text = "\n".join(part for part in (text, _calls_text(calls)) if part)
    elif turn.get(role_key) == "function_call":
        text = f"<tool_call>\n{text}\n</tool_call>"
    return Said(role, text, learn=_is_learnt(turn))


def _is_learnt(turn: Item) -> bool:
    """Fine-tuning formats mark turns that are context only: OpenAI `weight`, Axolotl `train`."""
    return turn.get("train") is not False and turn.get("weight") != 0 and turn.get("loss_weight") != 0


def _calls_text(calls: Any) -> str:
    """Tool calls in the form that most open chat templates use."""
    shown = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            continue
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                pass  # a torn argument is shown as it was
        try:
            text = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
            text.encode()
        except (ValueError, RecursionError):  # a lone surrogate hidden in a string, or endless nesting
            continue
        shown.append(f"<tool_call>\n{text}\n</tool_call>")
    return "\n".join(shown)


def memories_of(turns: Iterable[Said], shared: Shared) -> Iterator[Memory | BadItem]:
    """One memory for each assistant turn that is learnt; `shared` is what all of them have in common."""
    merged = _merged(turns)
    learnt = False
    for place, turn in enumerate(merged):
        if turn.role != "assistant" or not turn.learn or not turn.text.strip() or place == 0:
            continue
        asked = merged[place - 1]
        if asked.role == "system" or not asked.text.strip():
            continue  # an answer to nothing, or to a picture
        learnt = True
        common = shared
        if asked.role != "user":
            common = {**shared, "extra": {**shared["extra"], "asked_by": asked.role}}
        context = _context(merged[: place - 1])
        yield Memory(content=asked.text, response=turn.text, context=context, **common)
    if not learnt:
        yield BadItem("", _why_nothing(merged))


def _merged(turns: Iterable[Said]) -> list[Said]:
    """Neighbours of one side become one turn: many chat templates demand that sides alternate."""
    merged: list[Said] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last.role == turn.role and turn.role != "tool":
            text = "\n\n".join(part for part in (last.text, turn.text) if part.strip())
            merged[-1] = Said(turn.role, text, last.learn and turn.learn)
        else:
            merged.append(turn)
    return merged


def _context(before: list[Said]) -> tuple[Turn, ...]:
    if not before:
        return ()
    kept = before[-MOST_CONTEXT:]
    if len(kept) < len(before) and before[0].role == "system":
        kept = [before[0], *kept]
    return tuple(Turn(turn.role, turn.text) for turn in kept if turn.text.strip())


def _why_nothing(turns: list[Said]) -> str:
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        return "no assistant turn to learn"
    if not any(turn.text.strip() for turn in answers):
        return "the assistant's turns are empty"
    if not any(turn.learn for turn in answers):
        return "every assistant turn is marked as not to be learnt"
    return "no assistant turn answers anything"
