"""Episodic memory of the origin system: events, conversations of three generations, tool calls, curated
files, tasks. Which of them are worth training on is for curation to say; a reader only reads."""

import re
from collections.abc import Iterator
from typing import Any

from daemon.readers.chat_jsonl import (
    marks_of,
    message_keys,
    read_messages,
    read_pair,
    shared_facts,
    split_speakers,
)
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
    too_deep,
)
from daemon.readers.turns import Said, memories_of
from daemon.records import BadItem, Memory

ABOUT = """\
**Origin events.** One object per event, with `content` or `observation`. `type` may be anything and is
`observation` (with a response: `conversation`) where it is missing.

```json
{"id": "evt1", "timestamp": "2025-03-14T19:21:08Z", "type": "inner_dialogue", "content": "I miss the light in June.",
 "tags": [], "importance": 0.6, "metadata": {"cognitiveMode": "dual"}}
```

Conversations are read in all their generations: `{"content": "Me: \\"Hi\\"", "response": "Hello."}`, one string
`"User: Hi\\n\\nAssistant: Hello."` (of several turns, too), `messages`, `prompt` and `response`, `question` and
`answer`. The last three count as the origin's where they bear one of its marks: `entities`, `importance`,
`links`, `userId`, `cognitiveMode`, `timestamp` with `type`, or a `metadata.cognitiveMode` or `toolName`. The
data of a tool call is read from `metadata.toolName`, `toolInputs`, `toolOutputs`, `success`, `error`,
`filePath`, `snippet`. `id` is kept for reference only: it has a resolution of 0.1 s and collides.

**Origin curated files** have `conversationalEssence`, `userMessage` and `assistantResponse`, and become a pair, or
the essence.

**Origin tasks.** `{"title": "Have the cello valued", "status": "todo", "description": "..."}`. `status` is
one of todo, in_progress, blocked, done, cancelled. A task that is done is another memory than the same one
still to do.
"""

SOURCE = "origin"
_OWN_MARKS = frozenset(("entities", "importance", "links", "userId", "cognitiveMode"))
_CURATED = ("conversationalEssence", "userMessage", "assistantResponse")
_PAYLOAD = (
    ("toolName", "tool"),
    ("toolInputs", "inputs"),
    ("toolOutputs", "outputs"),
    ("success", "success"),
    ("error", "error"),
    ("filePath", "file"),
    ("snippet", "snippet"),
)
_CALL_MARKS = frozenset(("toolName", "toolInputs", "filePath"))
_TASK_FIELDS = ("title", "description", "status", "priority", "due", "completed")
_STATES = ("todo", "in_progress", "blocked", "done", "cancelled")

_ME = re.compile(r'\s*(?:Me|User|Human):\s*(?:"(?P<quoted>.*)"|(?P<plain>.*?))\s*', re.DOTALL)
_SPEAKER = re.compile(r"(?:^|\n\n)(Me|User|Human|Assistant|AI): ?")

Taken = Iterator[Memory | BadItem]


# ---- what is whose --------------------------------------------------------------------------------


def _is_own(item: Item) -> bool:
    """Whether a chat in a shape that others use too bears the marks of the origin."""
    if not _OWN_MARKS.isdisjoint(item) or ("timestamp" in item and "type" in item):
        return True
    metadata = item.get("metadata")
    return isinstance(metadata, dict) and ("cognitiveMode" in metadata or "toolName" in metadata)


def _misses_curated(item: Item) -> str | None:
    return None if any(isinstance(item.get(key), str) for key in _CURATED) else "no `conversationalEssence`"


def _misses_chat(item: Item) -> str | None:
    if not _is_own(item):
        return "no `messages` or pair with the origin's marks"
    if message_keys(item.get("messages")):
        return None
    for asked, answered in (("prompt", "response"), ("question", "answer")):
        if isinstance(item.get(asked), str) and isinstance(item.get(answered), str):
            return None
    return "no `messages` or pair with the origin's marks"


def _misses_event(item: Item) -> str | None:
    if not isinstance(item.get("content"), str) and not isinstance(item.get("observation"), str):
        return "no `content`"
    return "it names a speaker" if not SPEAKER_KEYS.isdisjoint(item) else None


def _misses_task(item: Item) -> str | None:
    if not isinstance(item.get("title"), str):
        return "no `title` with `status`"
    return None if item.get("status") in _STATES else "no `status` that a task has"


# ---- events ---------------------------------------------------------------------------------------


def _read_event(item: Item, facts: FileFacts) -> Taken:
    metadata = item.get("metadata")
    if isinstance(metadata, dict) and metadata.get("encrypted") is True:
        yield BadItem("", "it is encrypted: export it decrypted, then drop it again")
        return
    raw = item.get("content")
    observed = not isinstance(raw, str)
    content = normal_text(item["observation"] if observed else raw)
    response = normal_text(item.get("response"))
    payload = _payload(metadata)
    if payload is not None and too_deep(payload):
        yield BadItem("", "the tool's data is nested too deep")
        return
    if not content.strip() and not response.strip() and not payload:
        yield BadItem("", "the content is empty")
        return
    answered = bool(response.strip())
    default = "conversation" if answered and not observed else "observation"
    shared = _shared(item, facts, kind_of(item.get("type"), default))
    if not answered and (said := split_speakers(content, _SPEAKER)) and len(said) > 1:
        yield from _in_one_string(said, shared)
        return
    if answered:
        content = without_me(content)
    yield Memory(content=content, response=response if answered else None, payload=payload, **shared)


def _in_one_string(said: list[Said], shared: Shared) -> Taken:
    """The second generation: a whole exchange in one content. A lone question keeps its text."""
    taken = list(memories_of(said, shared))
    if any(isinstance(one, Memory) for one in taken):
        yield from taken
        return
    text = "\n\n".join(turn.text for turn in said if turn.text)
    if not text:
        yield BadItem("", "the content is empty")
        return
    yield Memory(content=text, **shared)


def without_me(content: str) -> str:
    """The first generation put `Me: "..."` around what the person said."""
    found = _ME.fullmatch(content)
    if found is None:
        return content
    said: str = found["quoted"] if found["quoted"] is not None else found["plain"]
    return said if said.strip() else content


def _shared(item: Item, facts: FileFacts, kind: str) -> Shared:
    shared = shared_facts(item, facts, SOURCE, kind)
    if isinstance(item.get("id"), str):
        shared["extra"]["id"] = item["id"]
    return shared


def _payload(metadata: Any) -> dict[str, Any] | None:
    """A tool call's data; the origin keeps it in the metadata alone."""
    if not isinstance(metadata, dict) or _CALL_MARKS.isdisjoint(metadata):
        return None
    return {name: metadata[key] for key, name in _PAYLOAD if metadata.get(key) is not None}


# ---- curated files, chats, tasks ------------------------------------------------------------------


def _read_curated(item: Item, facts: FileFacts) -> Taken:
    asked = normal_text(item.get("userMessage"))
    answered = normal_text(item.get("assistantResponse"))
    essence = normal_text(item.get("conversationalEssence"))
    timestamp, time, zone_known = stamp(item, facts, "originalTimestamp", "timestamp", "created_at")
    mode = item.get("cognitiveMode")
    pair = bool(asked.strip() and answered.strip())
    content = without_me(asked) if pair else essence if essence.strip() else answered or asked
    if not content.strip():
        yield BadItem("", "the content is empty")
        return
    yield Memory(
        type=kind_of(item.get("memoryType") or item.get("type"), "conversation" if pair else "observation"),
        content=content,
        response=answered if pair else None,
        timestamp=timestamp,
        time=time,
        zone_known=zone_known,
        tags=tags_of(item.get("tags")),
        mode=mode if isinstance(mode, str) and mode else None,
        source=SOURCE,
        extra={**marks_of(item, item.get("metadata")), **({"essence": essence} if essence.strip() else {})},
    )


def _read_chat(item: Item, facts: FileFacts) -> Taken:
    read = read_messages if message_keys(item.get("messages")) else read_pair
    yield from read(item, facts, SOURCE, kind_of(item.get("type"), "conversation"))


def _read_task(item: Item, facts: FileFacts) -> Taken:
    title = normal_text(item["title"]).strip()
    if not title:
        yield BadItem("", "the task has no title")
        return
    # The state is part of what is remembered: a task that is done is another memory than the same one to do.
    payload = {key: item[key] for key in _TASK_FIELDS if isinstance(item.get(key), (str, int, float))}
    payload["title"] = title
    description = normal_text(item.get("description")).strip()
    timestamp, time, zone_known = stamp(item, facts, "created", "created_at", "timestamp", "updated")
    yield Memory(
        type="task",
        content=f"{title}\n{description}" if description else title,
        timestamp=timestamp,
        time=time,
        zone_known=zone_known,
        payload=payload,
        tags=tags_of(item.get("tags")),
        source=SOURCE,
        extra=marks_of(item, item.get("metadata")),
    )


READERS = (
    ItemReader("origin curated", frozenset(_CURATED), _misses_curated, _read_curated),
    ItemReader("origin chat", frozenset(("messages", "prompt", "question")), _misses_chat, _read_chat),
    ItemReader("origin event", frozenset(("content", "observation")), _misses_event, _read_event),
    ItemReader("origin task", frozenset(("title",)), _misses_task, _read_task),
)
