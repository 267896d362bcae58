"""Values of a settings table, checked one by one. Each ValueError is one sentence that names the key."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

Table = Mapping[str, Any]


def number(table: Table, name: str, low: float, high: float) -> float:
    """`name` is the full one ("replies.short_words"); its last part is the key within the table."""
    value = table[name.rsplit(".", 1)[-1]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return float(value)


def whole(table: Table, name: str, low: int, high: int) -> int:
    return int(number(table, name, low, high))


def flag(table: Table, name: str) -> bool:
    value = table[name.rsplit(".", 1)[-1]]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def one_of(table: Table, name: str, allowed: tuple[str, ...]) -> str:
    value = table[name.rsplit(".", 1)[-1]]
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    return str(value)


def text(table: Table, name: str) -> str:
    value = table[name.rsplit(".", 1)[-1]]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}; it must be a text")
    return value


def strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"{name} is {value!r}; it must be a list of strings")
    return list(value)


def texts(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(one, str) and one for one in value.values()):
        raise ValueError(f"{name} must be a table of reasons: {value!r}")
    return dict(value)


def span(table: Table, name: str, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """[least, most] of a figure."""
    value = table[name.rsplit(".", 1)[-1]]
    fits = isinstance(value, list) and len(value) == 2
    if fits and all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value):
        least, most = float(value[0]), float(value[1])
        if low <= least <= most <= high:
            return least, most
    raise ValueError(
        f"{name} is {value!r}; it must be two numbers, the least and the most, from {low:g} to {high:g}"
    )


def patterns(value: Any, name: str) -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(text, name) for text in strings(value, name))


@lru_cache(maxsize=256)
def _pattern(text: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{name} holds {text!r}, which is no pattern: {error}") from None


def merged(
    defaults: Mapping[str, Any], given: Mapping[str, Any], open_tables: tuple[str, ...]
) -> dict[str, Any]:
    """The defaults with what is given over them; tables are merged key by key.

    Only the tables that `open_tables` names ("modes") may hold keys that the defaults do not have.
    """
    return _merged(defaults, given, "", open_tables)


_REPLACED = ("skip.tags", "skip.contents")  # lists in the form of tables: what is given is all there is


def _merged(defaults: Table, given: Table, path: str, open_tables: tuple[str, ...]) -> dict[str, Any]:
    data = dict(defaults)
    for key, value in given.items():
        name = f"{path}{key}"
        if key not in defaults:
            if path.rstrip(".") in open_tables:
                data[key] = value
                continue
            of = "" if path else " of the curation"
            raise ValueError(f"{name} is no key{of}; allowed are {', '.join(defaults)}")
        if not isinstance(defaults[key], dict) or name in _REPLACED:
            data[key] = value
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {value!r}; it must be a table")
        data[key] = _merged(defaults[key], value, f"{name}.", open_tables)
    return data
