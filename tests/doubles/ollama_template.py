"""How the stand-in for Ollama renders a chat: the part of Go's text/template that engramd writes, and no more.

Text, fields, variables, strings, numbers, `if`, `else if`, `else`, `end`, `range .Messages` and `range $i, $m :=
.Messages`, the functions below, parentheses, and the trims `{{-` and `-}}`. Anything else is refused by name. It is
written apart from the trainer's own evaluator on purpose: what that one proves, this one finds wrong or right.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ollama_blobs import Refused

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|\$\w*(?:\.\w+)*|\.\w*(?:\.\w+)*|:=|-?\d+|\w+|\S')
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda first, *others: first in others,
    "ne": lambda first, second: first != second,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "slice": lambda values, start=0, end=None: values[start:end],
}


@dataclass
class Node:
    """A text (`words` is empty), a value, an `if` with its branches, or a `range`."""

    kind: str
    text: str = ""
    words: list[str] = field(default_factory=list)
    branches: list[tuple[list[str] | None, list["Node"]]] = field(default_factory=list)


def parse(template: str) -> list[Node]:
    """The template as a tree; Refused(500) names what is not understood."""
    nodes: list[Node] = []
    open_ones: list[tuple[Node, list[Node]]] = []
    target, at, trim = nodes, 0, False
    for action in _ACTION.finditer(template):
        text = template[at : action.start()]
        text = text.lstrip() if trim else text
        target.append(Node("text", text.rstrip() if action[1] else text))
        at, trim = action.end(), bool(action[3])
        words = _WORD.findall(action[2])
        first = words[0] if words else ""
        if first in ("if", "range"):
            node = Node(first, branches=[(_known(words[1:]), [])])
            target.append(node)
            open_ones.append((node, target))
            target = node.branches[0][1]
        elif first == "else" and open_ones and open_ones[-1][0].kind == "if" and words[1:2] in ([], ["if"]):
            node = open_ones[-1][0]
            node.branches.append((_known(words[2:]) if words[1:] else None, []))
            target = node.branches[-1][1]
        elif words == ["end"] and open_ones:
            target = open_ones.pop()[1]
        elif words and first not in ("else", "end"):
            target.append(Node("value", words=_known(words)))
        else:
            raise Refused(500, f"template: {action[0]} is not understood by this stand-in")
    if open_ones:
        raise Refused(500, "template: unexpected EOF")
    text = template[at:]
    target.append(Node("text", text.lstrip() if trim else text))
    return nodes


def _known(words: list[str]) -> list[str]:
    """The words, none of which is beyond us."""
    for word in words:
        if word[0].isalpha() and word not in _FUNCTIONS and word not in ("true", "false"):
            raise Refused(500, f'template: function "{word}" not defined')
        if word not in ("(", ")", ",", ":=") and not word[0].isalnum() and word[0] not in '$.`"-':
            raise Refused(
                500, f"template: {word} in {{{{ {' '.join(words)} }}}} is not understood by this stand-in"
            )
    return words


def _value(words: list[str], scope: dict[str, Any]) -> Any:
    """A pipeline of one command: an operand, or a function with its arguments."""
    values, at = _operands(words, 0, scope)
    if at != len(words) or not values:
        raise Refused(500, f"template: {{{{ {' '.join(words)} }}}} is not understood by this stand-in")
    return _called(values)


def _called(values: list[Any]) -> Any:
    if callable(values[0]):
        try:
            return values[0](*values[1:])
        except (TypeError, IndexError) as error:
            raise Refused(500, f"template: error calling a function: {error}") from None
    if len(values) > 1:
        raise Refused(500, f"template: can't give argument to non-function {values[0]!r}")
    return values[0]


def _operands(words: list[str], at: int, scope: dict[str, Any]) -> tuple[list[Any], int]:
    values: list[Any] = []
    while at < len(words) and words[at] != ")":
        if words[at] == "(":
            inner, at = _operands(words, at + 1, scope)
            if at >= len(words) or not inner:
                raise Refused(500, "template: unclosed left paren")
            values.append(_called(inner))
        else:
            values.append(_operand(words[at], scope))
        at += 1
    return values, at


def _operand(word: str, scope: dict[str, Any]) -> Any:
    if word[0] == '"':
        return _ESCAPE.sub(_unescaped, word[1:-1])
    if word[0] == "`":
        return word[1:-1]
    if word in _FUNCTIONS:
        return _FUNCTIONS[word]
    if word in ("true", "false"):
        return word == "true"
    if word.lstrip("-").isdigit():
        return int(word)
    variable, *names = word.split(".")
    if (variable or "dot") not in scope:
        raise Refused(500, f"template: undefined variable {word!r}")
    value = scope[variable or "dot"]
    for name in names:
        if name:
            if not isinstance(value, dict) or name not in value:
                raise Refused(500, f"template: can't evaluate field {name}")
            value = value[name]
    return value


def _unescaped(match: re.Match[str]) -> str:
    what = match[1]
    return chr(int(what[1:], 16)) if len(what) > 1 else _ESCAPES.get(what, what)


class _Cut(Exception):
    """What comes after the answer's place is not part of the question."""


def _run(nodes: list[Node], scope: dict[str, Any], out: list[str], cut: bool) -> None:
    for node in nodes:
        if node.kind == "text":
            out.append(node.text)
        elif node.kind == "value":
            if cut and node.words == [".Response"]:
                raise _Cut
            out.append(str(_value(node.words, scope)))
        elif node.kind == "if":
            for condition, body in node.branches:
                if condition is None or _value(condition, scope):
                    _run(body, scope, out, cut)
                    break
        else:
            words, body = node.branches[0]
            names = [word for word in (words or [])[:-1] if word not in (",", ":=")]
            if len(names) not in (0, 2):
                raise Refused(
                    500, f"template: {{{{ range {' '.join(words or [])} }}}} is not understood here"
                )
            for number, one in enumerate(_value((words or [])[-1:], scope)):
                here = dict(zip(names, (number, one), strict=False))
                _run(body, {**scope, **here, "dot": one}, out, cut)


def render(template: str, messages: list[dict[str, str]]) -> str:
    """A chat as the model reads it. A template with `.Messages` gets all at once, one without turn by turn."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    out: list[str] = []
    if ".Messages" in template:
        system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        root: dict[str, Any] = {"System": system, "Messages": joined, "Response": "", "Tools": []}
        _run(parse(template), {"dot": root, "$": root}, out, cut=False)
        return "".join(out)
    nodes = parse(template if ".Response" in template else template + "{{ .Response }}")
    turn = {"System": "", "Prompt": "", "Response": ""}
    places = {"system": "System", "user": "Prompt", "assistant": "Response"}
    for message in joined:
        place = places[message["Role"]]
        if any(turn[later] for later in list(turn)[list(turn).index(place) :]) or turn["Response"]:
            _run(nodes, {"dot": turn, "$": turn}, out, cut=False)
            turn = {"System": "", "Prompt": "", "Response": ""}
        turn[place] = message["Content"]
    try:
        _run(nodes, {"dot": turn, "$": turn}, out, cut=not turn["Response"])
    except _Cut:
        pass
    return "".join(out)
