"""What is learnt of a memory: which are skipped, and how the texts of samples are cleaned.

Memories are never changed; the cleaned texts go into samples only. The numbers and patterns are data:
`DEFAULTS` here, the same with comments in `etc/curation.toml`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from daemon.records import Memory, Turn
from daemon.rules.wording import cut_at_sentence

MODES = ("dual", "emulation", "agent", "environment")

_AFTER = r"(?:\s*[,;:.!…]+(?=\s|$)|\s+[-–—]+(?=\s))\s*"  # what must follow a filler word
DEFAULTS: dict[str, Any] = {
    "skip": {
        "tags": {
            "feedback": "feedback on a reply, no memory",
            "corrupted": "marked as corrupted",
            "curator": "a notice of the curator",
            "background-task": "a notice of a background task",
        },
        "contents": {"[corrupted content]": "marked as corrupted"},
    },
    "replies": {
        "assistant_sources": ["origin"],
        "trim": True,
        "short_words": 40,
        "long_words": 300,
        "long_form_share": 0.075,
        "remove_filler": True,
        "filler": [
            r"(?:okay|ok|alright|all right|sure|certainly)" + _AFTER,
            r"(?:okay|ok|alright|all right|sure|so)\s+(?=let me (?:start|think|figure)\b)",
            r"so\s*[,;:](?=\s)\s*",
            r"let me (?:start|think|figure)\b[^,.!?\n]*[,.!?…:;]+(?=\s)\s*",
            r"i['’]m just (?:here to|an ai)\b[^,.!?\n]*[,.!?…;]+(?=\s)\s*",
            r"as an? (?:ai|(?:large |ai )?language model)(?: (?:model|assistant|system))?"
            r"(?: (?:developed|created|made|trained|built)\b[^,.!?\n]*)?\s*,\s*",
            r"here['’]s what\b[^,.!?:\n]*:\s*",
        ],
    },
    "own_text": {"split_words": 300},
    "marks": [
        r"<\|?/?mode[:=\s]*[a-z]*\|?>",
        r"\[\s*(?:cognitive[ _])?mode\s*[:=]\s*[a-z]+\s*\]",
        r"\[(?:dual|emulation|agent|environment)(?: mode)?\]",
    ],
    "prefixes": ["User", "Assistant", "Human", "AI", "Me"],
    "modes": {
        "default": "emulation",
        "inner_dialogue": "dual",
        "reflection": "dual",
        "dream": "dual",
        "daydream": "dual",
        "conversation": "emulation",
        "chat": "emulation",
        "observation": "emulation",
        "journal": "emulation",
        "action": "agent",
        "task": "agent",
        "tool_use": "agent",
        "tool_invocation": "agent",
        "file_read": "agent",
        "file_write": "agent",
        "code_approval": "agent",
        "code_rejection": "agent",
    },
    "dual": {"flip": True, "flip_types": ["conversation", "chat"]},
}

_SPACES = re.compile(r"(?<=\S)[ \t]{2,}")
_LINE_ENDS = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_TRUNCATED = re.compile(r"\s*(?:\.\.\.|…) ?\[truncated\]\s*$")


@dataclass(frozen=True, slots=True)
class Verdict:
    keep: bool
    reason: str | None = None  # why not; None where it is kept


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The texts of one memory as samples hold them."""

    content: str
    response: str | None
    context: tuple[Turn, ...]


@dataclass(frozen=True)
class Curation:
    """The settings of curation, checked. `default()` reads no file."""

    skip_tags: dict[str, str]  # tag -> reason
    skip_contents: dict[str, str]
    assistant_sources: frozenset[str]  # readers whose replies an assistant wrote
    trim: bool
    short_words: int
    long_words: int
    long_form_share: float
    filler: tuple[re.Pattern[str], ...]
    split_words: int
    marks: re.Pattern[str]
    prefix: re.Pattern[str]
    modes: dict[str, str]
    default_mode: str
    dual_flip: bool
    dual_flip_types: frozenset[str]

    @classmethod
    def default(cls) -> Self:
        return cls.from_mapping({})

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """From the parsed `curation.toml`; what it leaves out keeps its default. ValueError, one sentence."""
        data = _merged(given)
        skip, replies, modes = data["skip"], data["replies"], dict(data["modes"])
        default_mode = modes.pop("default", "emulation")
        for kind, mode in {**modes, "default": default_mode}.items():
            if mode not in MODES:
                raise ValueError(f"modes.{kind} is {mode!r}; allowed are {', '.join(MODES)}")
        share = _number(replies, "replies.long_form_share", 0.0, 1.0)
        short = int(_number(replies, "replies.short_words", 1, 100_000))
        long = int(_number(replies, "replies.long_words", 1, 100_000))
        if long < short:
            raise ValueError(
                f"replies.long_words is {long}; it must not be below replies.short_words, {short}"
            )
        filler = (
            _patterns(replies["filler"], "replies.filler") if _flag(replies, "replies.remove_filler") else ()
        )
        marks = "|".join(f"(?:{one.pattern})" for one in _patterns(data["marks"], "marks"))
        prefixes = "|".join(re.escape(word) for word in _strings(data["prefixes"], "prefixes"))
        return cls(
            skip_tags={tag.lower(): why for tag, why in _texts(skip["tags"], "skip.tags").items()},
            skip_contents=_texts(skip["contents"], "skip.contents"),
            assistant_sources=frozenset(_strings(replies["assistant_sources"], "replies.assistant_sources")),
            trim=_flag(replies, "replies.trim"),
            short_words=short,
            long_words=long,
            long_form_share=share,
            filler=filler,
            split_words=int(_number(data["own_text"], "own_text.split_words", 20, 100_000)),
            marks=re.compile(marks or r"(?!)", re.IGNORECASE),
            prefix=re.compile(rf"\s*(?:{prefixes}):[ \t]+" if prefixes else r"(?!)"),
            modes=modes,
            default_mode=default_mode,
            dual_flip=_flag(data["dual"], "dual.flip"),
            dual_flip_types=frozenset(_strings(data["dual"]["flip_types"], "dual.flip_types")),
        )

    def mode(self, memory: Memory) -> str:
        """The cognitive mode: what the source says wins over the table of types."""
        if memory.mode in MODES:
            return memory.mode
        return self.modes.get(memory.type, self.default_mode)


def judge(memory: Memory, curation: Curation) -> Verdict:
    """Whether a memory is learnt at all, and if not, why."""
    for tag in memory.tags:
        if reason := curation.skip_tags.get(tag.lower()):
            return Verdict(False, reason)
    if memory.extra.get("reinforcementSignal") == -1:
        return Verdict(False, "marked as an unwanted reply")
    if memory.extra.get("suitableForTraining") is False:
        return Verdict(False, "marked as unsuitable for training")
    for text in (memory.content, memory.response):
        if text is not None and (reason := curation.skip_contents.get(text.strip())):
            return Verdict(False, reason)
    learnt = memory.content if memory.response is None else memory.response
    if not unmarked(learnt, curation) and not memory.payload:
        return Verdict(False, "empty")
    return Verdict(True)


# ---- cleaning -------------------------------------------------------------------------------------


def clean(memory: Memory, curation: Curation, memory_id: str | None = None) -> Cleaned:
    """The texts for samples. Only replies that an assistant wrote lose filler and length."""
    response = memory.response
    written = memory.source in curation.assistant_sources
    if response is not None:
        response = unmarked(response, curation)
        if written:
            response = reply(response, curation, memory_id or memory.id)
    context = tuple(Turn(turn.role, unmarked(turn.text, curation)) for turn in memory.context)
    return Cleaned(unmarked(memory.content, curation), response, tuple(turn for turn in context if turn.text))


def unmarked(text: str, curation: Curation) -> str:
    """Without mode tags, a speaker's prefix, and the mark of a cut. The words stay as they were said."""
    if "<" in text or "[" in text:
        text = curation.marks.sub("", text)
        text = _TRUNCATED.sub("", text)
    found = curation.prefix.match(text)
    if found and text[found.end() :].strip():
        text = text[found.end() :]
    return text.strip("\n").rstrip() if text[:1] != " " else text.strip()


def reply(text: str, curation: Curation, memory_id: str) -> str:
    """A reply that an assistant wrote: white space, filler, length. Never empty if the text is not."""
    text = _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("", _SPACES.sub(" ", text))).strip()
    text = without_filler(text, curation)
    if not curation.trim:
        return text
    long = is_long_form(memory_id, curation.long_form_share)
    return cut_at_sentence(text, curation.long_words if long else curation.short_words)


def without_filler(text: str, curation: Curation) -> str:
    """Cut opening phrases that say nothing, as often as one stands in front; a bare "Sure!" stays."""
    rest = text
    for _ in range(8):
        for pattern in curation.filler:
            found = pattern.match(rest)
            if found and found.end() and rest[found.end() :].strip(" \t\n.,;:!?"):
                rest = rest[found.end() :].lstrip()
                break
        else:
            break
    if rest is not text and text[:1].isupper():
        rest = rest[:1].upper() + rest[1:]
    return rest


def is_long_form(memory_id: str, share: float) -> bool:
    """The share of replies that may be long is chosen by the memory's id: the same one every time."""
    digest = hashlib.sha256(f"long-form:{memory_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


# ---- checking what the file says ------------------------------------------------------------------


def _merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with what is given over them; tables are merged one level deep."""
    data: dict[str, Any] = dict(DEFAULTS)
    for key, value in given.items():
        if key not in DEFAULTS:
            raise ValueError(f"{key} is no key of the curation; allowed are {', '.join(DEFAULTS)}")
        if not isinstance(DEFAULTS[key], dict):
            data[key] = value
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}; it must be a table")
        unknown = sorted(set(value) - set(DEFAULTS[key])) if key != "modes" else []
        if unknown:
            raise ValueError(f"{key}.{unknown[0]} is no key; allowed are {', '.join(DEFAULTS[key])}")
        data[key] = {**DEFAULTS[key], **value}
    return data


def _number(table: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = table[name.rsplit(".", 1)[-1]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return float(value)


def _flag(table: Mapping[str, Any], name: str) -> bool:
    value = table[name.rsplit(".", 1)[-1]]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of strings")
    return list(value)


def _texts(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(one, str) and one for one in value.values()):
        raise ValueError(f"{name} must be a table of reasons: {value!r}")
    return dict(value)


def _patterns(value: Any, name: str) -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(text, name) for text in _strings(value, name))


@lru_cache(maxsize=256)
def _pattern(text: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{name} holds {text!r}, which is no pattern: {error}") from None
