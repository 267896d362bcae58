"""Instruction and chat data: OpenAI messages, ShareGPT, Alpaca, preferences, pairs, `{text}`."""

import re
from collections.abc import Iterator
from typing import Any

from daemon.readers.shape import (
    SPEAKER_KEYS,
    FileFacts,
    Item,
    ItemReader,
    Shared,
    kind_of,
    normal_text,
    stamp,
    tags_of,
)
from daemon.readers.turns import Said, memories_of, role_of, said_of
from daemon.records import BadItem, Memory

ABOUT = """\
**Data for training** as other tools write it. One memory is one assistant turn that is learnt. The turn before it is
its question, and at most 12 turns before that are its context, beside a system turn. Neighbouring turns of one
side are joined. A list may also stand under `memories`, `samples`, `items`, `data`, `events` or `tasks`.

**OpenAI messages.** `{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content":
"Hello."}]}`. Content may be a list of parts, of which the texts are read. `developer` is a system turn. Tool
calls become text: `<tool_call>`, a line of JSON with `name` and `arguments`, `</tool_call>`. A turn with
`"weight": 0`, `"train": false` or `"loss_weight": 0` is context and not learnt. An answer to a picture is
passed over.

**ShareGPT.** `{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
"system": "..."}`.

**Preferences.** `{"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}`. Each may be a text or a list of
turns. The rejected answer is not used.

**Alpaca.** `{"instruction": "Translate.", "input": "hei", "output": "hi", "system": "...", "history": [["a",
"b"]]}`. The history is context.

**Pairs.** `{"prompt": "Hi", "response": "Hello."}`; also `question`, `query` or `input`, and `completion`, `answer` or
`output`. With `"label": false` an item is passed over as unwanted.

**Texts.** `{"text": "Jonas sold the blue van.", "date": "2025-03-21"}`.
"""

MESSAGE_KEYS = (
    ("role", "content"),
    ("from", "value"),
    ("role", "value"),
    ("from", "content"),
    ("role", "text"),
)
ASKED = ("prompt", "question", "query", "input", "user", "instruction")
ANSWERED = ("response", "completion", "answer", "output", "assistant", "reply")
_MARKS = frozenset(
    ("importance", "reinforcementSignal", "suitableForTraining", "conversationId", "sessionId")
)
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|User|Assistant): ?")

Taken = Iterator[Memory | BadItem]


def shared_facts(item: Item, facts: FileFacts, source: str, kind: str = "conversation") -> Shared:
    """What an item says beside its text. Content and response are still to be filled in."""
    timestamp, time, zone_known = stamp(item, facts)
    metadata = item.get("metadata")
    mode = item.get("cognitiveMode")
    if mode is None and isinstance(metadata, dict):
        mode = metadata.get("cognitiveMode")
    return {
        "type": kind,
        "timestamp": timestamp,
        "time": time,
        "zone_known": zone_known,
        "tags": tags_of(item["tags"]) if "tags" in item else (),
        "mode": mode if isinstance(mode, str) and mode else None,
        "source": source,
        "extra": marks_of(item, metadata) if metadata or not _MARKS.isdisjoint(item) else {},
    }


def marks_of(item: Item, metadata: Any) -> dict[str, Any]:
    """The marks that curation reads: reinforcement, suitability, importance, conversation."""
    found: dict[str, Any] = {}
    for place in (metadata, item):
        if not isinstance(place, dict):
            continue
        for key in ("reinforcementSignal", "importance"):
            value = place.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[key] = value
        if isinstance(place.get("suitableForTraining"), bool):
            found["suitableForTraining"] = place["suitableForTraining"]
        chat = place.get("conversationId") or place.get("sessionId")
        if isinstance(chat, str):
            found["conversation"] = chat
    return found


# ---- message lists --------------------------------------------------------------------------------


def message_keys(turns: Any) -> tuple[str, str] | None:
    """Which keys a list of turns uses for the speaker and the text; None where it is no such list."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
        return None
    first = turns[0]
    if "content" in first and role_of(first.get("role")):
        return "role", "content"
    for role_key, text_key in MESSAGE_KEYS:
        if text_key in first and role_of(first.get(role_key)):
            return role_key, text_key
    if role_of(first.get("role")) and ("tool_calls" in first or "function_call" in first):
        return "role", "content"
    return None


def _chat(turns: list[Any], shared: Shared, system: Any = None) -> Taken:
    keys = message_keys(turns)
    said: list[Said] = []
    if isinstance(system, str) and system.strip():
        said.append(Said("system", normal_text(system)))
    for turn in turns:
        one = said_of(turn, *keys) if keys and isinstance(turn, dict) else "a turn is no object"
        if isinstance(one, str):
            yield BadItem("", one)
            return
        said.append(one)
    yield from memories_of(said, shared)


def read_messages(item: Item, facts: FileFacts, source: str = "openai", kind: str = "conversation") -> Taken:
    if item.get("label") is False:
        yield BadItem("", "its label marks it as unwanted")
        return
    yield from _chat(item["messages"], shared_facts(item, facts, source, kind), item.get("system"))


def _misses_messages(item: Item) -> str | None:
    return None if message_keys(item.get("messages")) else "no `messages` with role and content"


def _read_sharegpt(item: Item, facts: FileFacts) -> Taken:
    key = "conversations" if "conversations" in item else "conversation"
    yield from _chat(item[key], shared_facts(item, facts, "sharegpt"), item.get("system"))


def _misses_sharegpt(item: Item) -> str | None:
    turns = item.get("conversations", item.get("conversation"))
    return None if message_keys(turns) else "no `conversations` with from and value"


# ---- preferences: the chosen answer is learnt, the rejected one is left aside -----------------------


def _misses_preferences(item: Item) -> str | None:
    return None if "chosen" in item and "rejected" in item else "no `chosen` and `rejected`"


def _read_preferences(item: Item, facts: FileFacts) -> Taken:
    asked = item.get("prompt", item.get("instruction", item.get("question")))
    yield from _asked_and_answered(asked, item["chosen"], item, shared_facts(item, facts, "preferences"))


# ---- Alpaca ---------------------------------------------------------------------------------------


def _misses_alpaca(item: Item) -> str | None:
    if isinstance(item.get("instruction"), str) and isinstance(item.get("output"), str):
        return None
    return "no `instruction` with `output`"


def _read_alpaca(item: Item, facts: FileFacts) -> Taken:
    more = item.get("input")
    asked = normal_text(item["instruction"])
    if isinstance(more, str) and more.strip():
        asked = f"{asked}\n{normal_text(more)}"
    yield from _asked_and_answered(asked, item["output"], item, shared_facts(item, facts, "alpaca"))


def _history(value: Any) -> Iterator[Said]:
    """Earlier pairs are context; they carry no loss, since most sets hold them as items of their own."""
    for pair in value if isinstance(value, list) else []:
        if isinstance(pair, list) and len(pair) == 2:
            yield Said("user", normal_text(pair[0]))
            yield Said("assistant", normal_text(pair[1]), learn=False)


# ---- pairs ----------------------------------------------------------------------------------------


def _first(item: Item, keys: tuple[str, ...]) -> Any:
    for key in keys:
        value = item.get(key)
        if isinstance(value, (str, list)):
            return value
    return None


def _misses_pair(item: Item) -> str | None:
    if _first(item, ASKED) is None:
        return "no `prompt` (or question, query, input)"
    return None if _first(item, ANSWERED) is not None else "no `response` (or completion, answer, output)"


def read_pair(item: Item, facts: FileFacts, source: str = "pairs", kind: str = "conversation") -> Taken:
    if item.get("label") is False:
        yield BadItem("", "its label marks it as unwanted")
        return
    shared = shared_facts(item, facts, source, kind)
    yield from _asked_and_answered(_first(item, ASKED), _first(item, ANSWERED), item, shared)


def _asked_and_answered(asked: Any, answered: Any, item: Item, shared: Shared) -> Taken:
    """A question and an answer, each a text or a list of turns."""
    simple = isinstance(asked, str) and isinstance(answered, str)
    if simple and not item.get("system") and not item.get("history"):
        yield from _plain_pair(normal_text(asked), normal_text(answered), shared)
        return
    said: list[Said] = []
    if isinstance(item.get("system"), str):
        said.append(Said("system", normal_text(item["system"])))
    said.extend(_history(item.get("history")))
    for value, role in ((asked, "user"), (answered, "assistant")):
        keys = message_keys(value)
        if keys is None:
            text = normal_text(value)
            spoken = split_speakers(text) if asked is None else None
            said.extend(spoken or [Said("user" if role == "user" else "assistant", text)])
            continue
        turns = [said_of(turn, *keys) if isinstance(turn, dict) else "a turn is no object" for turn in value]
        bad = [turn for turn in turns if isinstance(turn, str)]
        if bad:
            yield BadItem("", bad[0])
            return
        whole = [turn for turn in turns if isinstance(turn, Said)]
        # What stands in the question is context, whoever said it; so is a question repeated in the answer.
        said = whole if whole[0].role != "assistant" and role == "assistant" else [*said, *whole]
        if role == "user":
            said = [Said(turn.role, turn.text, learn=False) for turn in said]
    yield from memories_of((turn for turn in said if turn.text or turn.role != "user"), shared)


def _plain_pair(asked: str, answered: str, shared: Shared) -> Taken:
    if not asked.strip() or not answered.strip():
        yield BadItem("", "the answer is empty" if asked.strip() else "the question is empty")
        return
    yield Memory(content=asked, response=answered, **shared)


def split_speakers(text: str, pattern: re.Pattern[str] = _SPEAKER) -> list[Said] | None:
    """The turns of `User: ...\\n\\nAssistant: ...` in one string; None where it does not begin so."""
    parts = pattern.split(text.lstrip())
    if len(parts) < 3 or parts[0].strip():
        return None
    return [
        Said(role_of(name) or "assistant", said.strip())
        for name, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


# ---- one text -------------------------------------------------------------------------------------


def _misses_text(item: Item) -> str | None:
    if not isinstance(item.get("text"), str):
        return "no `text`"
    return "it names a speaker" if not SPEAKER_KEYS.isdisjoint(item) else None


def _read_text(item: Item, facts: FileFacts) -> Taken:
    text = normal_text(item["text"])
    if not text.strip():
        yield BadItem("", "the text is empty")
        return
    shared = shared_facts(item, facts, "texts", kind_of(item.get("type"), "observation"))
    yield Memory(content=text, **shared)


READERS = (
    ItemReader("openai", frozenset(("messages",)), _misses_messages, read_messages),
    ItemReader("sharegpt", frozenset(("conversations", "conversation")), _misses_sharegpt, _read_sharegpt),
    ItemReader("preferences", frozenset(("chosen",)), _misses_preferences, _read_preferences),
    ItemReader("alpaca", frozenset(("instruction",)), _misses_alpaca, _read_alpaca),
    ItemReader("pairs", frozenset(ASKED), _misses_pair, read_pair),
    ItemReader("texts", frozenset(("text",)), _misses_text, _read_text),
)
