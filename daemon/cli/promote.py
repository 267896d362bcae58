"""`engramd promote vN --despite "reason"`: rely on a version that the gate refused."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "promote",
        description="The gate refused this version because it was worse than the one in service. Promoting it moves "
        "the head to it, and what was new in its job counts as trained. Your reason is kept with it.",
    )  # fmt: skip
    parser.add_argument("version", metavar="vN")
    parser.add_argument("--despite", metavar="REASON", help="why it is right all the same")
    parser.add_argument("--dry-run", action="store_true", help="say what it means, change nothing")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_promote)


def _promote(args: argparse.Namespace) -> int:
    from daemon.cli.versions import number_of

    return promote(args, number_of(args.version))


def promote(args: argparse.Namespace, number: int) -> int:
    """Also `engramd models promote vN`. Raises UserError."""
    from daemon import promoting
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened, world_of

    home = home_of(args)
    if not args.dry_run and not (args.despite or "").strip():
        raise UserError(f'say why: engramd promote v{number} --despite "..."', Exit.USAGE)
    with opened(home, args.profile) as db:
        try:
            told = promoting.dry_run(world_of(home, args.profile, db, settings_of(args)), number)
        except ValueError as error:
            raise UserError(str(error)) from None
    if not args.dry_run:
        told = ask(args, args.profile, "promote", {"version": number, "despite": args.despite}) or {}
    if args.json:
        print_json({"profile": args.profile, "dry_run": args.dry_run, **told})
    else:
        print("\n".join(_lines(told, dry=args.dry_run)))
    return Exit.OK


def _lines(told: dict[str, Any], *, dry: bool) -> list[str]:
    before = f"v{told['instead_of']}" if told["instead_of"] else "the base"
    line = f" of line {told['line']}" if told["line"] else ""
    verb = "would be" if dry else "is"
    back = f"rollback {before}" if told["instead_of"] else "reset"
    count = drawing.plural(told["trained"], "memory")
    return [
        f"v{told['version']} {verb} the head{line} in the place of {before}, at step {told['step']}",
        f"it had been refused: {told['refused']}",
        f"{count} that {'was' if told['trained'] == 1 else 'were'} new in it {'would count' if dry else 'count'} as "
        f"trained; engramd models {back} goes back to {before}",
    ]
