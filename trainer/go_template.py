"""The part of Go's `text/template` in which our chat templates for Ollama are written, evaluated as Ollama does it.

Standard library only. It exists to prove a template: what is not understood here is an error, never left out.
Of the language: text, strings, fields, variables, `if`, `else if`, `else`, `range $i, $_ := .Messages`, `end`, trim
marks, and the functions `and`, `eq`, `len`, `not`, `or`, `slice`
(https://pkg.go.dev/text/template). Of Ollama: how it puts messages together before it renders them (`collate`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_RANGE = re.compile(r"range (\$\w+), (\$\w+) := (.+)", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\(|\)|-?\d+|[$.\w]+)')


class NotUnderstood(ValueError):
    """The template uses what this evaluator does not know."""


@dataclass
class _Node:
    """`kind`: text, show, if, range. Of an `if`, `branches` are pairs of a condition ("" for else) and nodes."""

    kind: str
    text: str = ""
    branches: list[tuple[str, list["_Node"]]] = field(default_factory=list)


def render(template: str, messages: Sequence[tuple[str, str]]) -> str:
    """What Ollama makes of these messages (role, content) with this template: the prompt up to where it answers.

    Raises NotUnderstood.
    """
    system, together = collate(messages)
    root = {"System": system, "Messages": [{"Role": role, "Content": content} for role, content in together]}
    nodes, rest = _parse(_pieces(template), [])
    if rest:
        raise NotUnderstood(f"an end without a beginning: {rest[0]}")
    return _run(nodes, root, {"$": root})


def collate(messages: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt, and the messages with neighbours of one role made one, as Ollama hands them to a template."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    together: list[tuple[str, str]] = []
    for role, content in messages:
        if together and together[-1][0] == role != "tool":
            together[-1] = (role, f"{together[-1][1]}\n\n{content}")
        else:
            together.append((role, content))
    return system, together


def quoted(text: str) -> str:
    """`text` for a template, outside of actions: as it is, or as a string where Go would misread it."""
    return text if "{{" not in text and '"' not in text else "{{ " + _string(text) + " }}"


def _string(text: str) -> str:
    """A Go string literal; quotes are written as \\x22, so that three of them never end a Modelfile's text."""
    return '"' + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', "\\x22") + '"'


def _pieces(template: str) -> list[str]:
    """Texts and actions in turn; an action keeps its braces, trim marks are carried out."""
    pieces: list[str] = []
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        pieces += [text.rstrip() if match[1] else text, "{{" + match[2].strip() + "}}"]
        at, trim = match.end(), bool(match[3])
    rest = template[at:]
    if "{{" in rest:
        raise NotUnderstood("an action that does not end")
    return [*pieces, rest.lstrip() if trim else rest]


def _parse(pieces: list[str], nodes: list[_Node]) -> tuple[list[_Node], list[str]]:
    """Nodes up to an `else` or `end` that belongs to whoever called, and the pieces from there on."""
    while pieces:
        piece, pieces = pieces[0], pieces[1:]
        if not piece.startswith("{{"):
            nodes.append(_Node("text", piece))
            continue
        action = piece[2:-2]
        if action == "end" or action.split(" ")[0] == "else":
            return nodes, [piece, *pieces]
        if action.startswith(("if ", "range ")):
            node, pieces = _block(action, pieces)
            nodes.append(node)
        else:
            nodes.append(_Node("show", action))
    return nodes, []


def _block(action: str, pieces: list[str]) -> tuple[_Node, list[str]]:
    kind, _, head = action.partition(" ")
    node = _Node(kind, action)
    while True:
        inner, pieces = _parse(pieces, [])
        node.branches.append((head, inner))
        if not pieces:
            raise NotUnderstood(f"{action} has no end")
        closing, pieces = pieces[0][2:-2], pieces[1:]
        if closing == "end":
            return node, pieces
        if kind == "range" or not (closing == "else" or closing.startswith("else if ")):
            raise NotUnderstood(closing)
        head = closing.removeprefix("else").strip().removeprefix("if").strip()


def _run(nodes: list[_Node], dot: Any, variables: dict[str, Any]) -> str:
    said = []
    for node in nodes:
        if node.kind == "text":
            said.append(node.text)
        elif node.kind == "show":
            value = _value(node.text, dot, variables)
            if not isinstance(value, str):
                raise NotUnderstood(f"{node.text} is no text")
            said.append(value)
        elif node.kind == "if":
            taken = (inner for head, inner in node.branches if not head or _value(head, dot, variables))
            said.append(_run(next(taken, []), dot, variables))
        else:
            said.append(_loop(node, dot, variables))
    return "".join(said)


def _loop(node: _Node, dot: Any, variables: dict[str, Any]) -> str:
    match = _RANGE.fullmatch(node.text)
    if match is None:
        raise NotUnderstood(node.text)
    items = _value(match[3], dot, variables)
    inner = node.branches[0][1]
    return "".join(_run(inner, item, {**variables, match[1]: n, match[2]: item}) for n, item in enumerate(items))


def _value(text: str, dot: Any, variables: dict[str, Any]) -> Any:
    """The value of an expression: one operand, or a function with its operands."""
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotUnderstood(text)
        tokens.append(match[1])
        at = match.end()
    value, rest = _expression(tokens, dot, variables)
    if rest:
        raise NotUnderstood(text)
    return value


def _expression(tokens: list[str], dot: Any, variables: dict[str, Any]) -> tuple[Any, list[str]]:
    operands: list[Any] = []
    name = tokens[0] if tokens and tokens[0] in _FUNCTIONS else ""
    tokens = tokens[1:] if name else tokens
    while tokens and tokens[0] != ")":
        token, tokens = tokens[0], tokens[1:]
        if token == "(":
            value, tokens = _expression(tokens, dot, variables)
            if tokens[:1] != [")"]:
                raise NotUnderstood("a bracket that does not close")
            operands.append(value)
            tokens = tokens[1:]
        else:
            operands.append(_operand(token, dot, variables))
    if name:
        return _FUNCTIONS[name](*operands), tokens
    if len(operands) != 1:
        raise NotUnderstood("an expression of several values")
    return operands[0], tokens


def _operand(token: str, dot: Any, variables: dict[str, Any]) -> Any:
    if token.startswith('"'):
        return json.loads(token.replace("\\x22", '\\"'))
    if token.lstrip("-").isdigit():
        return int(token)
    start, *path = token.split(".")
    if start and start not in variables:
        raise NotUnderstood(token)
    value = variables[start] if start else dot
    for name in path:
        if not isinstance(value, dict) or name not in value:
            raise NotUnderstood(token)
        value = value[name]
    return value


_FUNCTIONS: dict[str, Any] = {
    "and": lambda *all_: next((one for one in all_ if not one), all_[-1]),
    "or": lambda *all_: next((one for one in all_ if one), all_[-1]),
    "not": lambda one: not one,
    "eq": lambda one, other: one == other,
    "len": len,
    "slice": lambda items, start: items[start:],
}
