"""The records of a job without the texts of some memories: pure functions from bytes to bytes.

A record keeps its place and its id, because a job names its samples by line, and an audit counts them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_ID = re.compile(rb'"([0-9a-f]{64})[#?"]')
_ABOUT = re.compile("[#?]")  # what follows a memory's id in that of a sample or probe of it
_KEPT_KEYS = frozenset(("id", "memory", "role", "use", "type", "mode", "cognitiveMode", "source", "group", "form"))

_CROSSED = b'"group":"crossed"'  # questions with the answer of another memory of the file, nobody says whose

Cut = Callable[[str], str]


def named_in(data: bytes) -> set[str]:
    """The ids of memories that a file of records names."""
    return {raw.decode() for raw in _ID.findall(data)}


def without_records(data: bytes, gone: frozenset[str], touched: frozenset[str], cut: Cut) -> bytes | None:
    """A file of one JSON object a line, or of a list of them: the records of the memories in `gone` are emptied,
    those in `touched` lose their context; so are questions that may have an answer of one in `gone`. None where it is
    no such file."""
    lines, out, asked = data.splitlines(keepends=True), [], gone | touched
    mixed = not named_in(data).isdisjoint(gone)
    try:
        if data[:1] == b"[" and (len(lines) < 3 or lines[1].rstrip() == b"{"):  # an object takes several lines
            items = [_emptied(item, gone, touched, cut) for item in json.loads(data)]
            return b"[\n" + b",\n".join(dumped(item) for item in items) + b"\n]\n"
        for line in lines:
            body = line.strip().rstrip(b",")
            crossed = mixed and _CROSSED in body
            if not body.startswith(b"{") or (named_in(body).isdisjoint(asked) and not crossed):
                out.append(line)
                continue
            item = json.loads(body)
            new = dumped(_blank(item) if crossed else _emptied(item, gone, touched, cut))
            out.append(new + line[line.rindex(body) + len(body) :])
    except ValueError:
        return None
    return b"".join(out)


def without_answers(data: bytes, gone: frozenset[str]) -> bytes | None:
    """A file of scores, one JSON document: those of questions about the memories in `gone` keep their figures, and
    lose what the model answered in its own words. None where it is no such file."""
    try:
        value = json.loads(data)
        new = _unanswered(value, gone)
    except (ValueError, RecursionError):
        return None
    if new == value:
        return data
    return json.dumps(new, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass") + b"\n"


def _unanswered(value: Any, gone: frozenset[str]) -> Any:
    if isinstance(value, list):
        return [_unanswered(one, gone) for one in value]
    if not isinstance(value, dict):
        return value
    if _memory_of(value) in gone:
        return _blank(value)
    return {key: _blank(one) if _ABOUT.split(key)[0] in gone else _unanswered(one, gone) for key, one in value.items()}


def _memory_of(item: dict[str, Any]) -> str:
    """The id of the memory that a record belongs to."""
    return str(item.get("memory") or _ABOUT.split(str(item.get("id", "")))[0])


def dumped(item: Any) -> bytes:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _emptied(item: Any, gone: frozenset[str], touched: frozenset[str], cut: Cut) -> Any:
    if not isinstance(item, dict):
        return item
    who = _memory_of(item)
    if who in gone:
        return _blank(item)
    if who in touched:
        return {key: _without_context(key, one, item, cut) for key, one in item.items()}
    return item


def _without_context(key: str, value: Any, item: dict[str, Any], cut: Cut) -> Any:
    """Of a memory that stays: of its turns the last question and the answer, without forgotten lines."""
    if key == "context":
        return []
    if key in ("text", "sequences"):  # rendered text does not show where a turn ends
        return _blank(value)
    if key != "messages" or not isinstance(value, list):
        return cut(value) if isinstance(value, str) else value
    last = len(value) - (1 if "answer" in item else 2)
    kept = []
    for number, turn in enumerate(value):
        text = turn.get("content")
        if not turn.get("loss") and turn.get("role") != "system":
            text = cut(text) if number >= last and isinstance(text, str) else ""
        kept.append({**turn, "content": text})
    return kept


def _blank(value: Any) -> Any:
    if isinstance(value, str):
        return ""
    if isinstance(value, list):
        return [_blank(one) for one in value]
    if isinstance(value, dict):
        return {key: one if key in _KEPT_KEYS else _blank(one) for key, one in value.items()}
    return value
