"""What `engramd models` says of one version, of two beside each other, and its card."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import drawing
from daemon.cli.context import home_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.home import Home
    from daemon.ledger import Database

USES = ("new", "replay", "anchor")


def opened_version(home: "Home", profile: str, number: int) -> tuple[Path, str]:
    """The checkpoint of a version, wherever its verdict has left it, and which of its weights are relied on. Raises
    UserError where there is no such version, or where its files are gone."""
    from daemon.cli.reading import opened
    from daemon.ledger import jobs
    from trainer import names

    paths = home.profile(profile)
    with opened(home, profile) as db:
        version = jobs.version(db, number)
        if version is None:
            raise UserError(f"there is no v{number} of profile {profile}: engramd models", Exit.NOTHING)
        points = [one for one in jobs.checkpoints(db) if one["sha256"] == version["checkpoint_sha256"]]
        job = jobs.get(db, version["job"]) or {}
    places = [(paths.chains / str(one["chain"]), one["step"]) for one in points]  # a chain may have begun anew from it
    places += [(place, version["step"]) for place in
               (paths.chains / str(version["chain"]), paths.jobs / str(job.get("folder")))]  # fmt: skip
    folders = [folder / f"{names.CHECKPOINT_PREFIX}{step}" for folder, step in places]
    found = next((folder for folder in folders if (folder / names.MANIFEST).is_file()), None)
    if found is None:
        raise UserError(f"the files of v{number} are no longer there: they were pruned; engramd snapshot list shows in "
                        "which days they may still be", Exit.NOTHING)  # fmt: skip
    return found, version["weights"]


def number_of(text: str) -> int:
    """`v3` or `3`. Raises UserError."""
    digits = text.removeprefix("v")
    if not (digits.isascii() and digits.isdecimal()):
        raise UserError(f"{text!r} is no version; one looks like v3", Exit.USAGE)
    return int(digits)


# -- figures -----------------------------------------------------------------------------------------


def figures(entry: dict[str, Any]) -> str:
    """This version beside the one that was in service and the base, by group of questions; empty without any."""
    from daemon import cards

    rows = [
        [cards.GROUPS[group], cards.MEASURES[measure], *(_figure(values.get(who)) for who in cards.WHO)]
        for group, measures in cards.figures(entry["metrics"]).items() for measure, values in measures.items()
    ]  # fmt: skip
    return drawing.table(["questions of", "measure", "this one", "served", "base"], rows) if rows else ""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# -- two beside each other ---------------------------------------------------------------------------


def difference(
    db: "Database", root: Path, told: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> dict[str, Any]:
    """Each key of the mirror that differs, with both values; and `recipe_changes`, `memories_by_use`, `figures`,
    `batches_between`: of what went in after the first where the second goes on from it, or the other way round."""
    from daemon import registry
    from daemon.ledger import jobs, learnt

    changed: dict[str, Any] = {key: [one[key], other[key]] for key in one if one[key] != other[key]}
    recipes = []
    for entry in (one, other):
        job = jobs.get(db, int(entry["run_id"])) or {}
        recipes.append(registry.summary(root, entry["version"], str(job.get("folder"))).get("recipe"))
    changed["recipe_changes"] = None  # not known where the records of a run are gone
    if recipes[0] and recipes[1]:
        changed["recipe_changes"] = _pairs(recipes[0], recipes[1])
    changed["memories_by_use"] = {
        use: [entry["memories"].get(use, 0) for entry in (one, other)]
        for use in USES if any(entry["memories"].get(use) for entry in (one, other))
    }  # fmt: skip
    changed["figures"] = {
        key: value for key, value in _pairs(one["metrics"] or {}, other["metrics"] or {}).items()
        if key.startswith("candidate.")
    }  # fmt: skip
    between = _between(told, one["version"], other["version"])
    changed["batches_between"] = (
        None if between is None else [row | {"version": entry["version"]} for entry in between
                                      for row in learnt.batches_of(db, [int(entry["run_id"])])]
    )  # fmt: skip
    return changed


def _pairs(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    keys = dict.fromkeys([*one, *other])
    return {key: [one.get(key), other.get(key)] for key in keys if one.get(key) != other.get(key)}


def _between(told: dict[str, Any], one: int, other: int) -> list[dict[str, Any]] | None:
    """The versions above the lower one up to the higher one, oldest first; None where neither goes on from the
    other."""
    from daemon import registry

    low, high = sorted((one, other))
    line = registry.line_of(told, high)
    numbers = [entry["version"] for entry in line]
    return line[: numbers.index(low)][::-1] if low in numbers else None


def shown_difference(one: int, other: int, found: dict[str, Any]) -> Iterator[str]:
    """For people: the settings, the memories, the figures, the files; then whatever else differs."""
    head = ["", f"v{one}", f"v{other}"]
    if found["recipe_changes"] is None:
        yield "the settings of one of the two were not kept"
    elif found["recipe_changes"]:
        yield drawing.table(["setting", *head[1:]], _cells(found["recipe_changes"]))
    else:
        yield "trained with the same settings"
    yield ""
    if found["memories_by_use"]:
        yield drawing.table(["memories", *head[1:]], _cells(found["memories_by_use"]))
        yield ""
    if found["figures"]:
        rows = _cells({key.removeprefix("candidate."): value for key, value in found["figures"].items()})
        yield drawing.table(["figure", *head[1:]], rows)
        yield ""
    if found["batches_between"] is None:
        yield "neither goes on from the other"
    else:
        rows = [[f"v{row['version']}", row["id"], row["memories"], row["name"]] for row in found["batches_between"]]
        yield drawing.table(["learnt by", "batch", "memories", "file"], rows) if rows else "no file between them"
    yield ""
    rest = {key: value for key, value in found.items() if key in _PLAIN}
    yield drawing.table(head, _cells(rest))


_PLAIN = (
    "line", "state", "decision", "parent", "chain", "step", "method", "weights", "samples_trained", "steps", "tokens",
    "loss", "seconds", "timestamp", "dataset_sha256",
)  # fmt: skip


def _cells(pairs: dict[str, list[Any]]) -> list[list[str]]:
    return [[key, *(_cell(value) for value in values)] for key, values in pairs.items()]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:64]


# -- card and load -----------------------------------------------------------------------------------


def export_card(args: argparse.Namespace, told: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The card as it stands today, written to `--to`, or as text. Never over a file that is there."""
    from daemon import cards, durable, registry
    from daemon.cli.reading import opened
    from daemon.ledger import jobs

    home = home_of(args)
    with opened(home, args.profile) as db:
        job = jobs.get(db, int(entry["run_id"])) or {}
        found = registry.summary(home.profile(args.profile).root, entry["version"], str(job.get("folder")))
        text = cards.card(db, registry.line_of(told, entry["version"]), found)
    if args.to is None:
        return {"version": entry["version"], "card": text, "path": None}
    path = Path(args.to).expanduser()
    if path.exists():
        raise UserError(f"{path} exists already: name another file with --to")
    try:
        durable.write_atomic(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return {"version": entry["version"], "card": text, "path": str(path.absolute())}


def load(args: argparse.Namespace, entry: dict[str, Any]) -> dict[str, Any]:
    """How to talk to a version, whatever became of it. Looks only: neither the head nor a file changes."""
    folder, weights = opened_version(home_of(args), args.profile, entry["version"])
    command = f"engramd chat --version v{entry['version']}"
    if args.profile != "me":
        command += f" --profile {args.profile}"
    return {"version": entry["version"], "state": entry["state"], "decision": entry["decision"],
            "metrics": entry["metrics"], "weights": weights, "path": str(folder),
            "command": command}  # fmt: skip


def shown_load(entry: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    state = {"promoted": "was promoted", "undone": "was gone back over", "refused": "was refused",
             "candidate": "is not judged yet"}[entry["state"]]  # fmt: skip
    yield f"v{entry['version']} {state}" + (f": {entry['decision']}" if entry["decision"] else "")
    yield figures(entry) or "it was not measured"
    yield f"talk to it: {found['command']}"
    yield "nothing was changed: the head stays where it is"
