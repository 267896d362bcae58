"""What is learnt of a memory: which are skipped, and how the texts of samples are cleaned.

Memories are never changed; the cleaned texts go into samples only. The numbers and patterns are data:
`DEFAULTS` here, the same with comments in `etc/curation.toml`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from daemon.records import Memory, Turn
from daemon.rules import checked, duplicates, language, personal_data, quality_targets, secrets
from daemon.rules.checked import flag, number, patterns, strings, texts, whole
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
        "recurs_more_than": 20,
        **language.DEFAULTS,
    },
    "duplicates": {"leave_out": True, "threshold": duplicates.THRESHOLD},
    "secrets": secrets.DEFAULTS,
    "personal_data": personal_data.DEFAULTS,
    "replies": {
        "assistant_sources": ["origin", "chatgpt", "claude", "gemini"],
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
    "quality": quality_targets.DEFAULTS,
}

HELD = "holds a secret ({kind}): look with engramd memories show ID, then set secrets.action or secrets.allow"

_SPACES = re.compile(r"(?<=\S)[ \t]{2,}")
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
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
    recurs_more_than: int  # memories with the same text; one more, and it is boilerplate
    language: language.LanguageRules
    duplicates: bool  # whether they are left out
    duplicate_threshold: float
    secrets: secrets.SecretRules
    personal_data: personal_data.PersonalDataRules | None  # None: off
    assistant_sources: frozenset[str]  # readers whose replies an assistant wrote
    trim: bool
    short_words: int
    long_words: int
    long_form_share: float
    filler: tuple[re.Pattern[str], ...]
    remove_filler: bool
    split_words: int
    marks: re.Pattern[str]
    own_marks: bool  # others than the defaults, which all begin with a bracket
    prefix: re.Pattern[str]
    modes: dict[str, str]
    default_mode: str
    dual_flip: bool
    dual_flip_types: frozenset[str]
    quality: quality_targets.Targets

    @classmethod
    def default(cls) -> Self:
        return cls.from_mapping({})

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """From the parsed `curation.toml`; what it leaves out keeps its default. ValueError, one sentence."""
        data = checked.merged(DEFAULTS, given, ("modes",))
        skip, replies, modes = data["skip"], data["replies"], dict(data["modes"])
        default_mode = modes.pop("default", "emulation")
        for kind, mode in {**modes, "default": default_mode}.items():
            if mode not in MODES:
                raise ValueError(f"modes.{kind} is {mode!r}; allowed are {', '.join(MODES)}")
        share = number(replies, "replies.long_form_share", 0.0, 1.0)
        short = whole(replies, "replies.short_words", 1, 100_000)
        long = whole(replies, "replies.long_words", 1, 100_000)
        if long < short:
            raise ValueError(
                f"replies.long_words is {long}; it must not be below replies.short_words, {short}"
            )
        marks = "|".join(f"(?:{one.pattern})" for one in patterns(data["marks"], "marks"))
        prefixes = "|".join(re.escape(word) for word in strings(data["prefixes"], "prefixes"))
        return cls(
            skip_tags={tag.lower(): why for tag, why in texts(skip["tags"], "skip.tags").items()},
            skip_contents=texts(skip["contents"], "skip.contents"),
            recurs_more_than=whole(skip, "skip.recurs_more_than", 0, 1_000_000_000),
            language=language.LanguageRules.from_mapping(skip),
            duplicates=flag(data["duplicates"], "duplicates.leave_out"),
            duplicate_threshold=number(data["duplicates"], "duplicates.threshold", 0.5, 1.0),
            secrets=secrets.SecretRules.from_mapping(data["secrets"]),
            personal_data=personal_data.PersonalDataRules.from_mapping(data["personal_data"]),
            assistant_sources=frozenset(strings(replies["assistant_sources"], "replies.assistant_sources")),
            trim=flag(replies, "replies.trim"),
            short_words=short,
            long_words=long,
            long_form_share=share,
            filler=patterns(replies["filler"], "replies.filler"),
            remove_filler=flag(replies, "replies.remove_filler"),
            split_words=whole(data["own_text"], "own_text.split_words", 20, 100_000),
            marks=re.compile(marks or r"(?!)", re.IGNORECASE),
            own_marks=data["marks"] != DEFAULTS["marks"],
            prefix=re.compile(rf"\s*(?:{prefixes}):[ \t]+" if prefixes else r"(?!)"),
            modes=modes,
            default_mode=default_mode,
            dual_flip=flag(data["dual"], "dual.flip"),
            dual_flip_types=frozenset(strings(data["dual"]["flip_types"], "dual.flip_types")),
            quality=quality_targets.Targets.from_mapping(data["quality"]),
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
    answers = memory.response is not None
    learnt = unmarked(memory.response or "" if answers else memory.content, curation)
    if not learnt and not memory.payload:
        return Verdict(False, "empty")
    if curation.secrets.action == "hold" and (kind := secrets.first_in(texts_of(memory), curation.secrets)):
        return Verdict(False, HELD.format(kind=secrets.KINDS[kind]))
    if not memory.payload and (
        reason := language.why_no_language(learnt, curation.language, answers=answers)
    ):
        return Verdict(False, reason)
    return Verdict(True)


def is_boilerplate(count: int, curation: Curation) -> bool:
    """Whether a text that this many memories hold word for word says nothing any more. 0 in the settings: never."""
    return 0 < curation.recurs_more_than < count


def texts_of(memory: Memory) -> Iterator[str]:
    """Every text that a sample may be made of."""
    yield memory.content
    if memory.response is not None:
        yield memory.response
    for turn in memory.context:
        yield turn.text
    if memory.payload:
        yield from _strings_of(memory.payload)


def _strings_of(value: Any) -> Iterator[str]:
    """The texts of a tool's data, names of keys with theirs: `{"password": "x"}` is read as it is written."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, (str, int)) and not isinstance(one, bool):
                yield f"{key}: {one}"
            else:
                yield from _strings_of(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings_of(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def without_private(memory: Memory, curation: Curation) -> Memory:
    """The memory with secrets (action "redact") and personal data replaced in all its texts; else itself.

    Its id is another one then: whoever needs the id takes that of the memory as it was.
    """
    personal, secret = curation.personal_data, curation.secrets
    if secret.action != "redact" and personal is None:
        return memory

    def hide(text: str) -> str:
        if secret.action == "redact":
            text = secrets.redacted(text, secret)
        return text if personal is None else personal_data.redacted(text, personal)

    payload = memory.payload
    return replace(
        memory,
        content=hide(memory.content),
        response=None if memory.response is None else hide(memory.response),
        context=tuple(Turn(turn.role, hide(turn.text)) for turn in memory.context),
        payload=None if payload is None else {key: _hidden(one, hide, key) for key, one in payload.items()},
    )


def _hidden(value: Any, hide: Callable[[str], str], key: str = "") -> Any:
    """A tool's data with its texts hidden; what stands under a key is looked at together with the key."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        before = f"{key}: {value}" if key else str(value)
        after = hide(before)
        return value if after == before else after.removeprefix(f"{key}: ") if key else after
    if isinstance(value, Mapping):
        return {name: _hidden(one, hide, str(name)) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(one, hide) for one in value]
    return value


# ---- cleaning -------------------------------------------------------------------------------------


def clean(memory: Memory, curation: Curation, memory_id: str | None = None) -> Cleaned:
    """The texts for samples. Only replies that an assistant wrote lose filler and length."""
    memory_id = memory_id or memory.id
    memory = without_private(memory, curation)
    response = memory.response
    if response is not None:
        response = unmarked(response, curation)
        if is_assistants(memory, curation):
            response = reply(response, curation, memory_id)
    context = tuple(Turn(turn.role, unmarked(turn.text, curation)) for turn in memory.context)
    return Cleaned(unmarked(memory.content, curation), response, tuple(turn for turn in context if turn.text))


def is_assistants(memory: Memory, curation: Curation) -> bool:
    """Whether an assistant wrote the reply. In a chat that is learnt from the person's side it did not."""
    return memory.source in curation.assistant_sources and memory.extra.get("author") != "person"


def unmarked(text: str, curation: Curation) -> str:
    """Without mode tags, a speaker's prefix, and the mark of a cut. The words stay as they were said."""
    if curation.own_marks or "<" in text or "[" in text:
        text = curation.marks.sub("", text)
    if "[" in text:
        text = _TRUNCATED.sub("", text)
    found = curation.prefix.match(text)
    if found and text[found.end() :].strip():
        text = text[found.end() :]
    return text.strip("\n").rstrip() if text[:1] != " " else text.strip()


def reply(text: str, curation: Curation, memory_id: str) -> str:
    """A reply that an assistant wrote: white space, filler, length. Never empty if the text is not."""
    text = _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("", _SPACES.sub(" ", text))).strip()
    if curation.remove_filler:
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
