"""Which of the names that we gave in an Ollama stay: what is served, what one goes back to, the newest few."""

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def decide(
    names: Iterable[Row], lines: Mapping[str, Row], wanted: Mapping[str, int], aliases: Iterable[str], keep_tags: int
) -> dict[str, tuple[bool, str]]:
    """name: (whether it stays, why). `names` are rows of `served_names` of one Ollama, `lines` rows of `serving` there,
    `wanted` the version of each line's head. What is being made of a version that is not wanted any more goes."""
    rows = {str(row["name"]): row for row in names}
    aliases = set(aliases)
    found = dict(_versions(rows, lines, wanted, keep_tags))
    pointed_at = {row["name"] for row in lines.values()}
    bases = {rows[name]["base"] for name, (keep, _) in found.items() if keep}
    for name, row in rows.items():
        if row["kind"] == "alias":
            found[name] = (name in aliases, "the name of a line" if name in aliases else "no line has this name")
        elif row["kind"] == "base":
            keep = name in bases or name in pointed_at
            found[name] = (keep, "below a version that stays" if keep else "no version that stays is on top of it")
    return found


def _versions(
    rows: Mapping[str, Row], lines: Mapping[str, Row], wanted: Mapping[str, int], keep_tags: int
) -> Iterable[tuple[str, tuple[bool, str]]]:
    of_lines: dict[str, list[str]] = {}
    for name, row in sorted(rows.items(), key=lambda item: -(item[1]["version"] or 0)):
        if row["kind"] == "version":
            of_lines.setdefault(row["line"], []).append(name)
    for line, mine in of_lines.items():
        now = lines.get(line, {})
        ready = [name for name in mine if rows[name]["state"] in ("made", "answered")]
        for name in mine:
            version = rows[name]["version"]
            if now.get("name") == name:
                yield name, (True, "served")
            elif rows[name]["state"] == "leaving":
                yield name, (False, "did not answer as it should, or was on its way out")
            elif version == wanted.get(line):
                yield name, (True, "wanted")
            elif name not in ready:
                yield name, (False, "never came to be served")
            elif version is not None and version == now.get("before"):
                yield name, (True, "served before, to which one can go back")
            elif name in ready[:keep_tags]:
                yield name, (True, "serve.keep_tags")
            else:
                yield name, (False, f"not among the newest {keep_tags} (serve.keep_tags)")
