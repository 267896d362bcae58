"""`engramd forgetting`: what each version still knows of each month, and what is forgotten on the way."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.rules.forgetting_curve import Curve, Recall

_COLUMNS = 12  # months in a terminal: the newest; a PNG and --json have all


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "forgetting",
        description="For each version below the head: the share of the answers' tokens that it knows, by the month of "
        "the memories; what is kept of what was known right after learning; and the general ability beside the base's.",
    )  # fmt: skip
    profile_option(parser)
    parser.add_argument("--line", default="", metavar="NAME", help="another line than the main one (engramd models)")
    parser.add_argument("--exact", action="store_true", help="the share of answers that are right as a whole instead")
    parser.add_argument("--png", type=Path, metavar="FILE", help="the table as a picture")
    parser.add_argument("--json", action="store_true", help="keys: see docs/gate.md")
    parser.set_defaults(run=_forgetting)


def _forgetting(args: argparse.Namespace) -> int:
    from daemon.cli.reading import opened

    with opened(home_of(args), args.profile) as db:
        found = curve_of(db, args.line)
    if not found.matrix or not any(found.matrix.values()):
        raise UserError(
            "no version of this line was asked about a memory yet: evaluation.probes says how many questions there are",
            Exit.NOTHING,
        )
    measure = "exact" if args.exact else "token_accuracy"
    if args.png:
        _draw(found, measure, args.png)
    if args.json:
        print_json({"profile": args.profile, "line": args.line, **told(found)})
    else:
        print("\n".join(_lines(found, measure)))
        if args.png:
            print(f"\nthe whole table is in {args.png}")
    return Exit.OK


def curve_of(db: "ledger.Database", line: str = "") -> "Curve":
    """Of the versions that lead to the head of a line. Raises UserError where it has none."""
    from daemon.ledger import jobs, lineage, scores
    from daemon.rules.forgetting_curve import curve

    head = jobs.get_head(db, line)
    if head is None:
        what = f"there is no line {line!r}: engramd models" if line else "nothing was trained yet: engramd status"
        raise UserError(what, Exit.NOTHING)
    versions = list(reversed(lineage.line(db, head["version"])))
    return curve(scores.of_versions(db, versions), versions)


def told(found: "Curve") -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "versions": [
            {"version": version, "months": {month: _one(cell) for month, cell in found.matrix[version].items()},
             "general": _one(found.general.get(version))}
            for version in found.versions
        ],
        "months": [
            {"month": one.month, "base": _one(one.base), "learnt": _one(one.learnt), "latest": _one(one.latest),
             "change": one.change}
            for one in found.months
        ],
        "general_base": _one(found.general_base), "backward_transfer": found.backward_transfer,
        "retained": found.retained, "general_kept": found.general_kept,
    }  # fmt: skip


def _one(recall: "Recall | None") -> dict[str, Any] | None:
    if recall is None:
        return None
    return {"questions": recall.probes, "token_accuracy": recall.token_accuracy, "exact": recall.exact,
            "loss": recall.loss}  # fmt: skip


def _table(found: "Curve", measure: str) -> tuple[list[str], list[list[float | None]]]:
    """Names of the rows and their cells: the base first, then each version."""
    names, cells = ["base"], [[getattr(month.base, measure, None) for month in found.months]]
    for version in found.versions:
        names.append(f"v{version}")
        cells.append([getattr(found.matrix[version].get(month.month), measure, None) for month in found.months])
    return names, cells


def _draw(found: "Curve", measure: str, path: Path) -> None:
    from daemon import durable
    from daemon.cli.heatmap import png

    names, cells = _table(found, measure)
    try:
        durable.write_atomic(path, png([month.month for month in found.months], names, cells), 0o644)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the picture could not be written to {path}: {why}") from None


def _lines(found: "Curve", measure: str) -> list[str]:
    names, cells = _table(found, measure)
    months = found.months[-_COLUMNS:]
    what = "answers that are right as a whole" if measure == "exact" else "the answers' tokens that are known"
    lines = [f"share of {what}, by version and month of the memories"]
    if len(months) < len(found.months):
        lines[0] += f" (the newest {_COLUMNS} of {len(found.months)} months)"
    told = [found.general_base, *(found.general.get(version) for version in found.versions)]
    general = ["-" if one is None else f"{getattr(one, measure):.2f}" for one in told]
    rows = [
        [name, *("-" if cell is None else f"{cell:.2f}" for cell in row[-len(months) :]), know]
        for name, row, know in zip(names, cells, general, strict=True)
    ]
    lines += ["", drawing.table(["", *(month.month for month in months), "general"], rows), ""]
    return lines + [
        f"backward transfer  {_signed(found.backward_transfer)}  mean over the months of now less right after learning",
        f"retained           {_share(found.retained)}  of what was known right after learning is known now",
        f"general ability    {_share(found.general_kept)}  of what the base model knows of general text",
    ]


def _signed(value: float | None) -> str:
    return "     -" if value is None else f"{value:+6.3f}"


def _share(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.1%}"
