"""Where settings are read from, and how an error in them is said. Knows no single key."""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_settings
from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

ENV_PREFIX = "ENGRAMD_"
_SHOWN = 80  # characters of a wrong value


class SettingsError(Exception):
    """The settings cannot be used. The message is one sentence for the person; the CLI exits with 78."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of settings: the nested values that it gives, and how to name where one stands."""

    name: str
    values: dict[str, Any]
    variables: Mapping[str, str] | None = None  # dotted key -> variable, for the environment

    def where(self, key: str) -> str:
        if self.variables is None:
            return self.name
        parts = key.split(".")
        prefixes = (
            ".".join(parts[:n]) for n in range(len(parts), 0, -1)
        )  # a section may be one JSON variable
        return next((self.variables[p] for p in prefixes if p in self.variables), self.name)


def lookup(values: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether a dotted key is in nested values, and what it holds."""
    here: Any = values
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False, None
        here = here[part]
    return True, here


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty table is a leaf."""
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"inbox.quiet_seconds": 1}` as `{"inbox": {"quiet_seconds": 1}}`; nested values stay as they are."""
    result: dict[str, Any] = {}
    for key, value in leaves(values):
        *sections, name = key.split(".")
        here = result
        for section in sections:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                raise SettingsError(
                    f"command line: {key} is given beside {section}, which is a value already"
                )
        here[name] = value
    return result


# -- reading ----------------------------------------------------------------------------------------


def read_toml(path: Path, name: str) -> dict[str, Any]:
    text = _read(path, name)
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(_torn(name, "TOML", str(error))) from None


def read_json(path: Path, name: str) -> dict[str, Any]:
    text = _read(path, name)
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        place = f" (at line {error.lineno}, column {error.colno})"
        raise SettingsError(_torn(name, "JSON", error.msg + place)) from None
    except (RecursionError, ValueError) as error:
        raise SettingsError(f"{name} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{name} must hold one JSON object, with settings by name")
    return values


def _read(path: Path, name: str) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise SettingsError(f"{name} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(f"{name} cannot be read: {error.strerror}") from None


def _torn(name: str, form: str, message: str) -> str:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if not found:
        return f"{name} cannot be read as {form}: {message}"
    return (
        f"{name}, line {found[1]}, cannot be read as {form}: {message[: found.start()]} (column {found[2]})"
    )


def read_environment(
    environ: Mapping[str, str], model: type[BaseSettings], short: Mapping[str, str]
) -> tuple[Layer, Layer]:
    """`ENGRAMD_SECTION__KEY` (or a whole section as JSON), and the short names, which it wins over."""
    source = EnvSettingsSource(model, case_sensitive=False, env_prefix=ENV_PREFIX, env_nested_delimiter="__")
    ours = {name: value for name, value in environ.items() if name.upper().startswith(ENV_PREFIX)}
    source.env_vars = {name.lower(): value for name, value in ours.items()}
    try:
        values = source()
    except pydantic_settings.SettingsError as error:
        section = re.search(r'field "(\w+)"', str(error))
        variable = ENV_PREFIX + (section[1].upper() if section else "...")
        raise SettingsError(
            f"{variable} cannot be read as JSON; use {variable}__KEY for a single key"
        ) from None
    variables = {name[len(ENV_PREFIX) :].lower().replace("__", "."): name for name in ours}
    given = {name: key for name, key in short.items() if name in environ}
    flat = nested({key: environ[name] for name, key in given.items()})
    return (
        Layer("environment", values, variables),
        Layer("environment", flat, {key: name for name, key in given.items()}),
    )


# -- saying what is wrong ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: `problem` goes on after the place."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def faults(
    error: ValidationError, schema: Mapping[str, Any], where: Callable[[str], str], before: str = ""
) -> list[Fault]:
    """Pydantic's errors in our words. `where` names the layer of a dotted key; `before` its section."""
    found = []
    for item in error.errors(include_url=False):
        local = [str(part) for part in item["loc"]]
        key = before + ".".join(local)
        if item["type"] == "extra_forbidden":
            known = _properties(schema, local[:-1])
            found.append(Fault(where(key), unknown_key(key, known)))
        elif item["type"] == "value_error":  # a validator of ours: its sentence says more than the type
            found.append(Fault(where(key), wrong_value(key, item["input"], reason=str(item["ctx"]["error"]))))
        else:
            found.append(
                Fault(where(key), wrong_value(key, item["input"], allowed(schema, local) or item["msg"]))
            )
    return found


def raise_first(found: list[Fault]) -> None:
    """One sentence for the first, and how many more there are."""
    if found:
        rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise SettingsError(f"{found[0]}{rest}")


def unknown_key(key: str, known: list[str]) -> str:
    *section, name = key.split(".")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    nearest = (
        f"the nearest is {'.'.join([*section, near[0]])}" if near else f"known are {', '.join(sorted(known))}"
    )
    return f"{key} is no setting; {nearest}"


def wrong_value(key: str, value: Any, may_be: str = "", reason: str = "") -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
    rule = f": {reason}" if reason else f"; it must be {may_be}"
    return f"{key} = {shown} is not allowed{rule}"


def _resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _node(schema: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    node = _resolve(schema, schema)
    for part in path:
        node = (
            node.get("properties", {}).get(part)
            or node.get("additionalProperties")
            or node.get("items")
            or {}
        )
        node = _resolve(schema, node if isinstance(node, Mapping) else {})
    return node


def _properties(schema: Mapping[str, Any], path: list[str]) -> list[str]:
    return list(_node(schema, path).get("properties", {}))


def allowed(schema: Mapping[str, Any], path: list[str]) -> str | None:
    """What a setting may be, from its JSON schema: `a whole number from 1 to 1024`."""
    node = _node(schema, path)
    node = next((one for one in node.get("anyOf", ()) if one.get("type") != "null"), node)  # or left out
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _bounds(node)
    words = {
        "boolean": "true or false",
        "string": "a text" + _length(node),
        "array": "a list of texts",
        "object": "a section with keys of its own",
    }
    return words.get(str(kind))


def _bounds(node: Mapping[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if abs(high) < 1e6 else f" from {low:g} to {high}"
    limits = [
        f"{word} {limit:g}" if abs(limit) < 1e6 else f"{word} {limit}"
        for word, limit in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if limit is not None
    ]
    return f" {' and '.join(limits)}" if limits else ""


def _length(node: Mapping[str, Any]) -> str:
    low, high = node.get("minLength"), node.get("maxLength")
    if high is not None:
        return f" of at most {high} characters"
    return " that is not empty" if low else ""
