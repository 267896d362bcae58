"""`engramd forget`: memories out of every place, with a dry run that lists each of them."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.home import Home

_SHORT = 12  # characters of an id


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "forget",
        usage="engramd forget ID... | --batch N | --source NAME [--dry-run] [--yes] [--profile NAME] [--json]",
        description="Take memories out of every place: ledger, archive, job folders, logs, snapshots. Their ids stay, "
        "so that they are refused when they are dropped again. Models that learnt them are listed, not changed.",
    )  # fmt: skip
    parser.add_argument("ids", nargs="*", metavar="ID", help="the beginning of a memory's id: engramd memories")
    parser.add_argument("--batch", type=whole, metavar="N", help="all that came with this file, and the file")
    parser.add_argument("--source", metavar="NAME", help="all that this reader read, such as whatsapp")
    parser.add_argument("--dry-run", action="store_true", help="list every place, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_forget)


def _forget(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened

    if (bool(args.ids), args.batch is not None, args.source is not None).count(True) != 1:
        raise UserError("engramd forget: name ids, or one --batch, or one --source", Exit.USAGE)
    home = home_of(args)
    with opened(home, args.profile) as db:
        arguments = {"ids": _full_ids(db, args.ids), "batch": args.batch, "source": args.source}
        number = _number(db, arguments)
        if args.dry_run:
            return _dry_run(args, home, db, arguments)
    if not args.yes and sys.stdin.isatty() and not _sure(number, arguments):
        print("nothing was changed")
        return Exit.OK
    told = ask(args, args.profile, "forget", arguments) or {}
    if args.json:
        print_json({"profile": args.profile, "dry_run": False, **told})
    else:
        print("\n".join(_lines(told)))
    return Exit.OK


def _full_ids(db: "ledger.Database", prefixes: list[str]) -> list[str]:
    from daemon.ledger import memories

    found = []
    for prefix in prefixes:
        rows = memories.get(db, prefix.lower())
        if not rows:
            raise UserError(f"no memory's id begins with {prefix!r}", Exit.NOTHING)
        if len(rows) > 1:
            some = ", ".join(row["id"].hex()[: max(_SHORT, len(prefix) + 2)] for row in rows[:3])
            raise UserError(f"several memories begin with {prefix!r}: {some}, ...", Exit.USAGE)
        found.append(rows[0]["id"].hex())
    return found


def _number(db: "ledger.Database", arguments: dict[str, Any]) -> int:
    from daemon import forgetting

    try:
        return len(forgetting.chosen(db, arguments))
    except ValueError as error:
        raise UserError(str(error), Exit.NOTHING) from None


def _sure(number: int, arguments: dict[str, Any]) -> bool:
    what = f" and the file of batch {arguments['batch']}" if arguments["batch"] is not None else ""
    answer = input(f"forget {drawing.plural(number, 'memory')}{what} for ever? It cannot be undone. [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _dry_run(args: argparse.Namespace, home: "Home", db: "ledger.Database", arguments: dict[str, Any]) -> int:
    """What would be done, from the same code, by this process and without a lock."""
    from daemon import forgetting
    from daemon.cli.reading import world_of

    told = forgetting.dry_run(world_of(home, args.profile, db, settings_of(args)), arguments)
    if args.json:
        print_json({"profile": args.profile, "dry_run": True, **told})
    else:
        print("\n".join(_lines(told, dry=True)))
    return Exit.OK


def _lines(told: dict[str, Any], *, dry: bool = False) -> Iterator[str]:
    number = drawing.plural(told["memories"], "memory")
    yield f"would forget {number}; nothing is changed" if dry else f"forgot {number}"
    for place in told["places"]:
        times = f", {place['times']:,} times" if place.get("times", 1) > 1 else ""
        why = f": {place['why']}" if place.get("why") else ""
        yield f"  {place['what']:<9} {place['path']}{times}{why}"
    if told["context_of"]:
        yield f"  cut out of the context of {drawing.plural(told['context_of'], 'other memory')}"
    yield "  kept      the ids, as tombstones: what is dropped again is refused"
    if told["said_by"]:
        ids = " ".join(one[:_SHORT] for one in told["said_by"][:5])
        more = f" and {len(told['said_by']) - 5} more" if len(told["said_by"]) > 5 else ""
        yield f"  kept      words that other memories say, too: engramd forget {ids}{more}"
    if there := told["elsewhere"]:
        remove = shlex.join(["ssh", there["host"], "rm", "-r", there["folder"]])
        yield (f"  kept      on {there['host']}: a job that was broken off leaves its samples there for up to 30 days, "
               f"and the last checkpoints stay; while none is at work there: {remove}")  # fmt: skip
    yield from _models(told)


def _models(told: dict[str, Any]) -> Iterator[str]:
    if not told["learnt_by"]:
        yield "no model has learnt it"
        return
    yield "models that learnt it, and are not changed:"
    for version in told["learnt_by"]:
        where = f"v{version['version']} ({version['state']}, chain {version['chain']}, step {version['step']})"
        if version["in_use"]:
            yield f"  {where}: in use; the next job goes on from it"
            for path in version["paths"]:
                yield f"    {path}: once another version is in use, rm -r {shlex.quote(path)}"
        elif version["paths"]:
            yield f"  {where}:"
            for path in version["paths"]:
                yield f"    rm -r {shlex.quote(path)}"
        else:
            yield f"  {where}: no file of it is left"
        if version["served_as"]:
            yield f"    in Ollama as {', '.join(version['served_as'])}: until another version is served and pruned"
    rebuild = told["rebuild"]
    if rebuild["path"]:
        yield f"the last checkpoint from before its first training is {rebuild['path']} (step {rebuild['step']}): " \
              "a model without it is rebuilt from there"  # fmt: skip
    else:
        yield f"there is no checkpoint from before its first training: a model without it is rebuilt from the base, " \
              f"{rebuild['base_model']}"  # fmt: skip
