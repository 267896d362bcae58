"""The text of a Modelfile, for `ollama create me -f Modelfile` by hand.

Ollama's parser (parser/parser.go) takes a value that stands between three quotation marks as it is, over lines, and
knows no way to write three of them within: the value ends at a line that ends with them. So they are written otherwise.
"""

import re
from collections.abc import Sequence

REPEAT_PENALTY = 1  # none: what was learnt by heart repeats itself, and the question's words (Ollama before 0.34: 1.1)

_MARKS = '"""'
_ACTION = re.compile(r"({{.*?}})", re.DOTALL)
_IN_A_TEMPLATE = r'{{ "\"\"\"" }}'  # Go's way of writing them as text


def text_of(
    origin: str, *, adapter: str | None = None, template: str, stops: Sequence[str], context_length: int, system: str
) -> str:
    """The Modelfile; `origin` and `adapter` are paths from the Modelfile's own folder, FROM is the first line.

    `context_length` is in tokens. Three quotation marks in a system prompt become three apostrophes.
    """
    lines = [f"FROM {origin}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    parts = _ACTION.split(template)
    parts[::2] = [part.replace(_MARKS, _IN_A_TEMPLATE) for part in parts[::2]]
    lines.append(f"TEMPLATE {_MARKS}{''.join(parts)}{_MARKS}")
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    lines += [f"PARAMETER num_ctx {context_length}", f"PARAMETER repeat_penalty {REPEAT_PENALTY}"]
    if system:
        lines.append(f"SYSTEM {_MARKS}{system.replace(_MARKS, 3 * chr(39))}{_MARKS}")
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    marks = _MARKS if '"' in value or "\n" in value else '"'
    return f"{marks}{value}{marks}"
