"""Claude's data export: `conversations.json` with `chat_messages`, and the file of memories (seen in exports).

Of a message the blocks of text are read. Thoughts, calls and results of tools, and attached files are left out:
a tool's result comes with the sender `human` and is nobody's words. Where messages name their parents, the line
that ends in the newest one is read.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, BinaryIO

from daemon.readers.ai_chats import conversations, latest_leaf, line_of_descent, name_of, text_of
from daemon.readers.dates import parse_time
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Memory, Utterance

ABOUT = """\
**Claude.** Settings, Privacy, Export data; drop the zip as it is, or its `conversations.json`. The texts of both sides
are read, also in chats of Claude Design; thoughts, tools, attached files and projects are left out. What Claude
remembers of you (the file of memories) becomes observations, one for each section. The answers are learnt; with
`[sources.claude] train_on = "me"` your own words are.
"""

SOURCE = "claude"
_ROLES = {"human": "user", "assistant": "assistant"}
_NOBODY = "00000000-0000-4000-8000-000000000000"  # the parent that a first message names
# Beside a `uuid`: of a conversation whose messages lie far behind, of a chat of Claude Design, of a project.
_ONLY_CLAUDES = frozenset((
    "account.uuid", "messages.item.content.authorAccountUuid", "messages.item.content.contentBlocks", "prompt_template",
    "is_starter_project",
))  # fmt: skip
_PROJECT = frozenset(("uuid", "name", "created_at", "docs"))
_SILENT = frozenset(("thinking", "redacted_thinking", "token_budget"))  # kinds that the old field `text` never repeats
_NOTE = re.compile(r"```\s*\n?\s*This block is not supported on your current device yet\.?\s*\n?\s*```|"
                   r"This block is not supported on your current device yet\.?")  # fmt: skip
_LONE_HEADING = re.compile(r"#{1,6} .{1,80}|\*\*[^*\n]{1,80}\*\*\s*")
# In exports of 2024 the answers hold what the page never showed as text.
_THOUGHT = re.compile(r"<antThinking>.*?</antThinking>\s*", re.DOTALL)
_TAG = re.compile(r"</?antArtifact(?:\s[^<>]*)?>\n?")
_HEADING = re.compile(r"\n(?=#{1,6} |\*\*[^*\n]{1,80}\*\*\s*\n)|\n\s*\n")


def _claims(sniff: Sniff) -> bool:
    keys = {key.removeprefix("conversations.").removeprefix("item.") for key in sniff.keys}
    return bool(keys & {"chat_messages", "conversations_memory", "project_memories"}) or keys >= _PROJECT or (
        "uuid" in keys and bool(keys & _ONLY_CLAUDES)
    )


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    for number, one in enumerate(conversations(stream), 1):
        if isinstance(one, BadItem):
            yield one
        elif isinstance(one.get("chat_messages"), list):
            yield from _conversation(one, number)
        elif not one.keys().isdisjoint(("conversations_memory", "project_memories", "memory_files")):
            yield from _remembered(one, facts)
        elif isinstance(one.get("messages"), list):
            yield from _design(one, number)
        elif "docs" in one or "prompt_template" in one:
            yield LeftOut("a project of Claude, which holds no conversation", text=text_of(one.get("name"))[:100],
                          time=_time(one.get("created_at"))[1], where=f"project {number}")  # fmt: skip
        else:
            yield BadItem(f"conversation {number}", "it has no `chat_messages`")


def _conversation(one: dict[str, Any], number: int) -> Iterator[Heard]:
    where = f"conversation {number}"
    name = name_of(one.get("uuid")) or where
    messages = [message for message in one["chat_messages"] if isinstance(message, dict)]
    if not messages:
        yield LeftOut("an empty conversation", text=text_of(one.get("name"))[:100], timestamp=None,
                      time=_time(one.get("created_at"))[1], where=where)  # fmt: skip
    for message in _last_line(messages, one.get("current_leaf_message_uuid")):
        yield from _message(message, name, where)


def _last_line(messages: list[dict[str, Any]], current: Any) -> list[dict[str, Any]]:
    """The messages in order; where some were written anew, those that lead to `current`, else to the newest."""
    known = {message["uuid"]: message for message in messages if isinstance(message.get("uuid"), str)}
    named = {key: message.get("parent_message_uuid") for key, message in known.items()}
    if len(known) < len(messages) or not any(isinstance(parent, str) and parent in known for parent in named.values()):
        return messages
    linked: dict[str, str | None] = {}
    before: str | None = None
    for key, parent in named.items():
        # A parent that the export does not hold cannot tell a branch: the message goes on from the one before it.
        missing = isinstance(parent, str) and parent not in known and parent != _NOBODY
        linked[key] = before if missing else parent if isinstance(parent, str) else None
        before = key
    if not isinstance(current, str) or current not in known:
        places = {key: float(place) for place, key in enumerate(known)}
        current = latest_leaf(linked, lambda key: places[key])
    return [known[key] for key in line_of_descent(linked, current)] if current is not None else messages


def _message(message: dict[str, Any], name: str, where: str) -> Iterator[Heard]:
    sender = message.get("sender")
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    raw, time = _time(message.get("created_at"))
    blocks = message.get("content")
    texts, kinds = [], []
    for block in blocks if isinstance(blocks, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "text":
            texts.append(text_of(block.get("text")))
        else:
            kinds.append(" ".join(text_of(block.get("type"))[:40].split()) or "unknown")
    texts = [part for part in texts if part and not part.isspace()]
    if not texts and _SILENT.issuperset(kinds):
        texts = [text_of(message.get("text"))]
    text = "\n\n".join(texts) if len(texts) != 1 else texts[0]
    if "is not supported" in text:
        text = _NOTE.sub("", text)
    if role == "assistant" and "<ant" in text:
        text = _TAG.sub("", _THOUGHT.sub("", text))
    text = text.strip()
    for kind in kinds:
        yield LeftOut(f"a block of the kind {kind}", str(sender or "")[:100], "", raw, time, True, where)
    for key in ("attachments", "files"):
        files = message.get(key)
        for file in files if isinstance(files, list) else []:
            shown = text_of(file.get("file_name")) if isinstance(file, dict) else ""
            pasted = text_of(file.get("extracted_content")) if isinstance(file, dict) and not shown else ""
            kinds.append("file")
            yield LeftOut("a long text that was pasted in" if pasted else "an attached file", str(sender or "")[:100],
                          (shown or pasted)[:200], raw, time, True, where)  # fmt: skip
    if role is None:
        yield LeftOut("nobody's words", str(sender or "")[:100], text[:300], raw, time, True, where)
    elif text:
        yield Utterance(SOURCE, name, "", text, raw, time, True, name_of(message.get("uuid")), None,
                        "user" if role == "user" else "assistant")  # fmt: skip
    elif not kinds:
        yield LeftOut("an empty message", str(sender or "")[:100], "", raw, time, True, where)


def _time(value: Any) -> tuple[str | None, str | None]:
    if not isinstance(value, str) or not value:
        return None, None
    clock = value[11:19]
    if (
        20 <= len(value) < 32 and value[-1] == "Z" and value[10] == "T" and clock[2] == clock[5] == ":"
        and clock[:2].isdigit() and clock[3:5].isdigit() and clock[6:].isdigit() and clock[:2] < "24"
        and clock[3] < "6" and clock[6] < "6" and value.isascii() and _is_day(value[:10])
    ):  # fmt: skip
        return value, f"{value[:19]}Z"  # as every time of these exports is, at a tenth of the cost
    return text_of(value)[:64], parse_time(value)


def _design(one: dict[str, Any], number: int) -> Iterator[Heard]:
    """A chat of Claude Design: `role`, and the text in `content.content` or in blocks."""
    where = f"conversation {number}"
    name = name_of(one.get("uuid")) or where
    messages = [message for message in one["messages"] if isinstance(message, dict)]
    if not messages:
        yield LeftOut("an empty conversation", text=text_of(one.get("title"))[:100],
                      time=_time(one.get("created_at"))[1], where=where)  # fmt: skip
    for place, message in enumerate(messages, 1):
        content = message.get("content")
        content = content if isinstance(content, dict) else {"content": content}
        raw, time = _time(message.get("created_at") or content.get("timestamp") or one.get("created_at"))
        role, key = message.get("role"), name_of(message.get("uuid")) or f"message {place}"
        blocks = content.get("contentBlocks")
        said: list[tuple[Any, str]] = []
        for block in blocks if isinstance(blocks, list) else ():
            if not isinstance(block, dict):
                continue
            if block.get("type") == "text":
                said.append((role, text_of(block.get("text"))))
            elif block.get("type") == "user_interjection":
                words = block.get("message")
                said.append(("user", text_of(words.get("content") if isinstance(words, dict) else words)))
            else:
                kind = " ".join(text_of(block.get("type"))[:40].split()) or "unknown"
                yield LeftOut(f"a block of the kind {kind}", str(role or "")[:100], "", raw, time, True, where)
        if not blocks:
            said = [(role, text_of(content.get("content")))]
        for part, (speaker, text) in enumerate(said):
            text = text.strip()
            if speaker not in ("user", "assistant") or content.get("pill") is True:
                yield LeftOut("nobody's words", str(speaker or "")[:100], text[:300], raw, time, True, where)
            elif text:
                yield Utterance(SOURCE, name, "", text, raw, time, True, f"{key} {part}" if part else key, None,
                                "user" if speaker == "user" else "assistant")  # fmt: skip
            elif not blocks:
                yield LeftOut("an empty message", str(speaker), "", raw, time, True, where)


@lru_cache(maxsize=4096)
def _is_day(text: str) -> bool:
    return len(text) == 10 and text[4] == text[7] == "-" and parse_time(text) is not None


def _remembered(one: dict[str, Any], facts: FileFacts) -> Iterator[Heard]:
    projects = one.get("project_memories")
    files = one.get("memory_files")
    files = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    texts = [(text, facts.modified) for text in
             (one.get("conversations_memory"), *(projects.values() if isinstance(projects, dict) else []))]  # fmt: skip
    texts += [(file.get("content"), _time(file.get("updated_at"))[1] or facts.modified) for file in files]
    for text, time in texts:
        heading = ""
        for section in _HEADING.split(text_of(text)):
            section = section.strip()
            if not any(map(str.isalnum, section)):
                continue  # a rule between two sections
            if section.startswith(("#", "**")) and "\n" not in section:
                heading = section.strip("#* ")
            else:
                first = section.partition("\n")[0]
                if _LONE_HEADING.fullmatch(first):
                    heading = first.strip("#* ")  # of the paragraphs that follow as well
                content = f"{heading}\n{section}" if heading and not section.startswith(("#", "**")) else section
                yield Memory(type="observation", content=content, time=time, tags=("profile",), source=SOURCE)


READER = StreamReader(SOURCE, _claims, _read, frozenset(("users.json", "projects.json", "login_history.json")))
