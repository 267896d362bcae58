"""What is asked in front of a memory that answers nothing: several wordings for each type.

`DEFAULTS` here is the same as `etc/prompts.toml`. The first wordings of inner_dialogue, reflection, dream,
journal and `other` are those of the origin system.
"""

import hashlib
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

DEFAULTS: dict[str, Any] = {
    "types": {
        "inner_dialogue": [
            "Reflect on your recent experiences and share your inner thoughts.",
            "What are you thinking about?",
            "What is on your mind?",
            "What goes through your head?",
        ],
        "reflection": [
            "What insights have you gained from recent experiences?",
            "Reflect on something.",
            "What have you come to understand lately?",
            "What do you make of it, looking back?",
        ],
        "dream": [
            "Describe your dream or subconscious thoughts.",
            "Describe your dream.",
            "What did you dream?",
            "Tell me about a dream of yours.",
        ],
        "daydream": [
            "What were you daydreaming about?",
            "Where did your thoughts wander?",
            "What do you picture when your mind drifts?",
        ],
        "journal": [
            "What would you like to journal about?",
            "Write a journal entry.",
            "Tell me about your day.",
            "What happened?",
        ],
        "observation": [
            "What did you notice today?",
            "What did you observe?",
            "What happened?",
            "Share something that you noticed.",
        ],
        "conversation": ["What did you say?", "What did you want to say?", "Tell me something."],
        "chat": ["What did you say?", "What did you want to say?", "Tell me something."],
        "message": ["What did you write first?", "How did you begin the conversation?", "Begin a conversation."],
        "summary": ["Sum up what happened.", "What is the gist of it?", "Give me a summary of that time."],
        "audio": [
            "What was said in the recording?",
            "What did you say into the recorder?",
            "Write down what you said.",
        ],
        "task": ["What is there to do?", "What is on your list?", "Tell me about one of your tasks."],
        "action": ["What did you do?", "What have you just done?", "Tell me what you did."],
        "tool_invocation": [
            "Which tool did you use, and how did it go?",
            "What did you do?",
            "Tell me what you did.",
        ],
        "tool_use": [
            "Which tool did you use, and how did it go?",
            "What did you do?",
            "Tell me what you did.",
        ],
        "file_read": [
            "What did you read?",
            "Which file did you look into?",
            "What did you find in the file?",
        ],
        "file_write": [
            "What did you write?",
            "Which file did you change?",
            "What did you put into the file?",
        ],
        "code_approval": [
            "Which change did you approve?",
            "What code did you agree to?",
            "What passed your review?",
        ],
        "code_rejection": [
            "Which change did you turn down?",
            "What code did you reject?",
            "What failed your review?",
        ],
        "operator_feedback": [
            "What did you think of it?",
            "What would you have changed?",
            "What was your verdict?",
        ],
        "other": ["Share your thoughts.", "What is on your mind?", "Tell me something."],
    },
    # The second and later pieces of a long text; {last} is the end of the piece before.
    "go_on": ["Go on after: {last}", "How did it go on? {last}", "What came after this? {last}"],
    "tools": {
        "ask": ["Use {tool} with {inputs}.", "Run {tool}: {inputs}.", "Please call {tool} with {inputs}."],
        "ask_without_inputs": ["Use {tool}.", "Run {tool}.", "What came of {tool}?"],
        "result": "Result: {outputs}",
        "failed": "It failed: {error}",
        "failed_silently": "It failed.",
        "succeeded": "It worked.",
        "result_words": 300,
    },
    "tasks": {
        "ask": ["How does the task “{title}” stand?", "What about the task “{title}”?", "Is “{title}” done?"],
        "states": {
            "todo": "It is still to be done.",
            "in_progress": "I am working on it.",
            "blocked": "It is blocked.",
            "done": "It is done.",
            "cancelled": "It was cancelled.",
        },
    },
}


@dataclass(frozen=True)
class Prompts:
    """The wordings, checked. `default()` reads no file."""

    types: dict[str, tuple[str, ...]]
    other: tuple[str, ...]
    go_on: tuple[str, ...]
    tool_ask: tuple[str, ...]
    tool_ask_without_inputs: tuple[str, ...]
    tool_words: dict[str, str]
    result_words: int
    task_ask: tuple[str, ...]
    task_states: dict[str, str]

    @classmethod
    def default(cls) -> Self:
        return cls.from_mapping({})

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """From the parsed `prompts.toml`; what it leaves out keeps its default. ValueError, one sentence."""
        for key, value in given.items():
            if key not in DEFAULTS:
                raise ValueError(f"{key} is no key of the prompts; allowed are {', '.join(DEFAULTS)}")
            if isinstance(DEFAULTS[key], dict) and not isinstance(value, Mapping):
                raise ValueError(f"{key} is {value!r}; it must be a table")
            if key in ("tools", "tasks") and (unknown := sorted(set(value) - set(DEFAULTS[key]))):
                raise ValueError(f"{key}.{unknown[0]} is no key; allowed are {', '.join(DEFAULTS[key])}")
        types = {**DEFAULTS["types"], **given.get("types", {})}
        tools = {**DEFAULTS["tools"], **given.get("tools", {})}
        tasks = {**DEFAULTS["tasks"], **given.get("tasks", {})}
        words = tools["result_words"]
        if isinstance(words, bool) or not isinstance(words, int) or words < 1:
            raise ValueError(f"tools.result_words is {words!r}; it must be a number above 0")
        if not isinstance(tasks["states"], Mapping):
            raise ValueError(f"tasks.states is {tasks['states']!r}; it must be a table")
        says = ("result", "failed", "failed_silently", "succeeded")
        holes = {"result": "outputs", "failed": "error"}
        return cls(
            types={kind: _wordings(value, f"types.{kind}") for kind, value in types.items()},
            other=_wordings(types["other"], "types.other"),
            go_on=_wordings(given.get("go_on", DEFAULTS["go_on"]), "go_on", "last"),
            tool_ask=_wordings(tools["ask"], "tools.ask", "tool", "inputs"),
            tool_ask_without_inputs=_wordings(
                tools["ask_without_inputs"], "tools.ask_without_inputs", "tool"
            ),
            tool_words={key: _wording(tools[key], f"tools.{key}", holes.get(key, "")) for key in says},
            result_words=words,
            task_ask=_wordings(tasks["ask"], "tasks.ask", "title"),
            task_states={key: _wording(text, f"tasks.states.{key}") for key, text in tasks["states"].items()},
        )

    def of_type(self, kind: str) -> tuple[str, ...]:
        return self.types.get(kind, self.other)


def choose(wordings: tuple[str, ...], *seeds: object) -> str:
    """One of the wordings, always the same for the same seeds."""
    digest = hashlib.sha256("\x1f".join(map(str, seeds)).encode()).digest()
    return wordings[int.from_bytes(digest[:8], "big") % len(wordings)]


def fill(wording: str, **values: str) -> str:
    """Put values into the {holes} of a wording; braces within a value mean nothing."""
    return wording.format_map(values)


def _wordings(value: Any, name: str, *holes: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {value!r}; it must be a list of at least one wording")
    return tuple(_wording(one, name, *holes) for one in value)


def _wording(value: Any, name: str, *holes: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} holds {value!r}; it must be a text")
    try:
        found = [hole for _, hole, _, _ in string.Formatter().parse(value) if hole is not None]
    except ValueError:
        found = ["{"]
    if any(hole not in holes for hole in found):
        allowed = ", ".join(f"{{{hole}}}" for hole in holes if hole) or "none"
        raise ValueError(f"{name} holds {value!r}; the braces allowed in it are {allowed}")
    return value
