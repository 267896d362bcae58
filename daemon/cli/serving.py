"""What `engramd status` says of where each line is served; `engramd serve`: now."""

import argparse
from datetime import datetime
from typing import TYPE_CHECKING, Any

from daemon.cli import command, profile_option
from daemon.cli.context import print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.ledger import Database


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "serve",
        description="Bring the newest version to Ollama (or to serve.command) at once, whatever went wrong before; "
        "what is served is looked at, and made again where it was lost.",
    )  # fmt: skip
    profile_option(parser)
    parser.add_argument("--no-wait", action="store_true", help="only ask; the daemon does it in its own time")
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened

    with opened(_home(args), args.profile):
        pass  # a profile without a ledger has nothing to serve, and is told so
    told = ask(args, args.profile, "serve", {}, wait=not args.no_wait)
    if told is None:
        print("asked for; engramd status shows how it goes")
        return Exit.OK
    if args.json:
        print_json({"profile": args.profile, **told})
    else:
        lines = [line for row in told["lines"] for line in sentences(row)]
        print("\n".join([*lines, *([told["note"]] if told["note"] else [])] or ["nothing was promoted yet"]))
    behind = any(row["reason"] for row in told["lines"])
    if behind:
        raise UserError("what waits is said above, and by engramd status", Exit.TRY_AGAIN)
    return Exit.OK


def _home(args: argparse.Namespace) -> Any:
    from daemon.cli.context import home_of

    return home_of(args)


def facts(db: "Database") -> dict[str, Any]:
    """`lines`: one for each line that is served or was tried; `note`: why nothing is, if so."""
    from daemon.ledger import jobs, serving

    heads = jobs.heads(db)
    lines = [{**row, "wanted": heads[line]["version"] if line in heads else None}
             for line, row in serving.lines(db).items()]  # fmt: skip
    return {"lines": lines, "note": jobs.get_meta(db, "serving")}


def sentences(row: dict[str, Any]) -> list[str]:
    """`v12 as me since 03:10`; `v13 waits, next try 03:12: ...`."""
    found = []
    if row["name"] and row["version"] is not None:
        found.append(f"v{row['version']} as {row['alias']} since {_at(row['since'])}")
    elif row["name"]:
        found.append(f"the base model as {row['alias']} since {_at(row['since'])}")
    elif row["told"] is not None and row["told"] == row["wanted"]:
        found.append(f"v{row['told']} by serve.command")
    what = f"v{row['tried']}" if row["tried"] is not None else "the base model"
    if row["reason"] and row["next_try"]:
        found.append(f"{what} waits, next try {_at(row['next_try'])}: {row['reason']}")
    elif row["reason"]:
        found.append(f"{what} is not served: {row['reason']}; engramd serve tries again")
    elif row["wanted"] is not None and row["wanted"] not in (row["version"], row["told"]):
        found.append(f"v{row['wanted']} is next")
    return found


def _at(time: str) -> str:
    """In this machine's zone; the time alone where it is today."""
    moment = datetime.fromisoformat(time).astimezone()
    return f"{moment:%H:%M}" if moment.date() == datetime.now().astimezone().date() else f"{moment:%Y-%m-%d %H:%M}"
