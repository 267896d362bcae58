"""`engramd owner`: by what names a person is known in chats, so that their turns are told from those of others."""

import argparse
from typing import TYPE_CHECKING

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "owner", usage="engramd owner [NAME ...] [--remove] [--profile NAME] [--json]")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="a name, mail address or phone number as in chats; without it: list them")  # fmt: skip
    parser.add_argument("--remove", action="store_true", help="take these names away again")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: profile, aliases, batches")
    parser.set_defaults(run=_owner)


def _owner(args: argparse.Namespace) -> int:
    names = [name.strip() for name in args.names]
    if not all(names):
        raise UserError("engramd owner: an empty name", Exit.USAGE)
    if not names:
        return _list(args)
    from daemon.cli.asking import ask
    from daemon.cli.reading import check_name

    check_name(args.profile)
    answer = ask(args, args.profile, "owner", {"names": names, "add": not args.remove}) or {}
    if args.json:
        print_json({"profile": args.profile, **answer})
        return Exit.OK
    print(f"{args.profile} is known as {', '.join(answer['aliases']) or 'nobody yet'}")
    if answer["batches"]:
        print(f"{drawing.plural(answer['batches'], 'file')} waited for it, and will be read now: engramd status")
    return Exit.OK


def _list(args: argparse.Namespace) -> int:
    aliases = known(args)
    if args.json:
        print_json({"profile": args.profile, "aliases": aliases, "batches": 0})
    else:
        print("\n".join(aliases) or f"no name of {args.profile} is known yet: engramd owner \"NAME\"")
    return Exit.OK


def known(args: argparse.Namespace) -> list[str]:
    """The names in the settings, and those that `engramd owner` added."""
    import json

    from daemon.cli.reading import opened_if_there
    from daemon.ledger import jobs

    aliases = list(settings_of(args).person(args.profile).aliases)
    with opened_if_there(home_of(args), args.profile) as db:
        return [*aliases, *json.loads((jobs.get_meta(db, "aliases") if db else None) or "[]")]
