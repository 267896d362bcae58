"""The lines of a conversation over stdio, whatever answers: one JSON object a line in, one out, until the input ends.

Request: `messages`, and optionally `prefix` (assistant text to go on from), `max_new_tokens`,
`temperature` (0 takes the likeliest token), `seed`. Answer: `text` and `tokens`, or `error`.
Imports neither torch nor transformers: they would be most of the time to the first answer.
"""

import json
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.contract import JobEnded, Message, what_is_wrong


class Request(BaseModel):
    """What may stand in a request line."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=1)
    prefix: str = ""
    max_new_tokens: int = Field(128, ge=1, le=65536)
    temperature: float = Field(0.0, ge=0.0, le=10.0)
    seed: int = Field(0, ge=0, lt=2**63)


def answer_all(source: TextIO, sink: TextIO, answer: Callable[[Request], tuple[str, int]]) -> None:
    """Answer each line until `source` ends. `answer` gives the text and its number of tokens, and may raise JobEnded,
    which becomes the line's error."""
    for line in source:
        if line.strip():
            say(sink, _answer(line, answer))


def say(sink: TextIO, content: dict[str, Any]) -> None:
    sink.write(json.dumps(content, ensure_ascii=False) + "\n")
    sink.flush()


def say_error(sink: TextIO, error: Exception) -> None:
    """As one line of plain words."""
    say(sink, {"error": " ".join(str(error).split())})


def _answer(line: str, answer: Callable[[Request], tuple[str, int]]) -> dict[str, Any]:
    try:
        text, tokens = answer(Request.model_validate_json(line))
    except ValidationError as error:
        return {"error": what_is_wrong(error)}
    except JobEnded as error:
        return {"error": str(error)}
    return {"text": text, "tokens": tokens}
