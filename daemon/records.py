"""The nouns that pass between readers, rules, ledger and hands. Plain data, immutable."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
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

    @property
    def id(self) -> str:
        """SHA-256 (hex) of the compact JSON of type, timestamp, content, response, payload and, in chats, context."""
        parts: list[Any] = [self.type, self.timestamp, self.content, self.response, self.payload]
        if self.context:
            parts.append([[turn.role, turn.text] for turn in self.context])
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class BadItem:
    """A part of a file that could not be taken; the rest was."""

    where: str  # "line 12", "item 3", "notes/a.json"
    reason: str


class Refused(Exception):
    """The whole file cannot be taken. The message is one sentence for the person."""
