"""The nouns that pass between readers, rules, ledger and hands. Plain data, immutable."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    text: str


class Utterance(NamedTuple):
    """One message of an export, as it was said. Who is "me", and what is learnt, `rules/sessions` decides."""

    source: str  # the reader's name
    conversation: str  # tells this chat from others, and is the same in a later export of it
    speaker: str  # the name as the export shows it; "" where it shows none
    text: str  # never empty: what has no text is LeftOut
    timestamp: str | None = None  # raw
    time: str | None = None  # UTC, ISO 8601, of one width ("2024-01-15T09:00:00Z")
    zone_known: bool = True  # False: the raw time has no zone, and `time` was made with the profile's
    message: str | None = None  # its id within the conversation, where the export has one
    clock: str | None = None  # local ISO time, where there is neither id nor zone: part of the identity
    role: Role | None = None  # as recorded in a chat with an AI; None between people
    speaker_id: str | None = None  # user id, mail address, phone number
    owner: bool | None = None  # True or False where the export itself says who is its owner
    group: bool | None = None  # more than two people; None where the reader cannot know
    where: str = ""  # "line 12", "message 3"


class LeftOut(NamedTuple):
    """A message that is no memory (a system line, media alone, deleted), shown with its reason, never silently gone."""

    reason: str
    speaker: str = ""
    text: str = ""  # what stood there, shortened where it is long
    timestamp: str | None = None
    time: str | None = None
    zone_known: bool = True
    where: str = ""


class Part(NamedTuple):
    """One message inside a memory. A message that was edited keeps its key and has another digest."""

    key: bytes  # 16 bytes: source, conversation and message
    digest: bytes  # 8 bytes: its text
    text: str


@dataclass(frozen=True, slots=True)
class Memory:
    """One recorded experience, as it was read; curation happens later and never changes it.

    A content-only memory (journal, dream, ...) has no `response`. In a conversation `content` is the
    last turn of the other side, `response` the turn that is learnt, `context` the turns before.
    `timestamp` is the raw text; `time` is UTC ISO 8601 or None where the raw text gives no time.
    `payload` is a tool call's data (`tool`, `inputs`, `outputs`, `success`, `error`).
    """

    type: str
    content: str
    response: str | None = None
    timestamp: str | None = None
    time: str | None = None
    context: tuple[Turn, ...] = ()
    payload: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    mode: str | None = None  # metadata.cognitiveMode, where the source says it
    source: str = "text"  # the reader's name
    extra: dict[str, Any] = field(default_factory=dict)  # marks that curation reads; no part of the identity
    parts: tuple[Part, ...] = ()  # of an export: the messages that carry loss; they alone are its identity
    speaker: str | None = None  # who said what is learnt, where an export names them
    conversation: str | None = None
    zone_known: bool = True

    @property
    def id(self) -> str:
        """SHA-256 (hex): of an export's messages, else of the compact JSON of type, timestamp, content, response,
        payload and, in chats, context."""
        if self.parts:
            digest = hashlib.sha256()
            for part in self.parts:
                digest.update(part.key + part.digest)
            return digest.hexdigest()
        parts: list[Any] = [self.type, self.timestamp, self.content, self.response, self.payload]
        if self.context:
            parts.append([[turn.role, turn.text] for turn in self.context])
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class BadItem:
    """A part of a file that could not be taken; the rest was."""

    where: str  # "line 12", "item 3", "notes/a.json"
    reason: str


Heard = Utterance | LeftOut | Memory | BadItem  # what a reader gives
Hearing = Iterator[Heard]


class Refused(Exception):
    """The whole file cannot be taken. The message is one sentence for the person."""
