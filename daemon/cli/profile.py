"""`engramd profile add NAME` and `profile list`: one profile is one person's separate world."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.home import Home


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "profile", usage="engramd profile add NAME | engramd profile list [--json]")
    parser.add_argument("verb", choices=("add", "list"), help="make one, or list those of this home")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a-z, 0-9, _ and -, at most 32 characters")
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_profile)


def _profile(args: argparse.Namespace) -> int:
    return _add(args) if args.verb == "add" else _list(args)


def _add(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import check_name

    if not args.name:
        raise UserError("engramd profile add: the name is missing", Exit.USAGE)
    check_name(args.name)
    home = home_of(args)
    if args.name in home.profile_names():
        raise UserError(f"there is a profile {args.name!r} already")
    ask(args, args.name, "profile_add", {"name": args.name})
    print(f"profile {args.name} is ready; its inbox: {home.profile(args.name).inbox}")
    return Exit.OK


def _list(args: argparse.Namespace) -> int:
    home = home_of(args)
    found = [_fact(home, name) for name in home.profile_names()]
    if args.json:
        print_json({"profiles": found})
        return Exit.OK
    rows = [
        (one["profile"], one["memories"], one["trained"], f"v{one['version']}" if one["version"] else "", one["inbox"])
        for one in found
    ]
    print(drawing.table(("profile", "memories", "trained", "version", "inbox"), rows))
    return Exit.OK


def _fact(home: "Home", name: str) -> dict[str, Any]:
    from daemon.cli.reading import opened_if_there
    from daemon.ledger import jobs, memories

    found: dict[str, Any] = {"profile": name, "inbox": str(home.profile(name).inbox), "memories": 0,
                             "trained": 0, "version": None}  # fmt: skip
    with opened_if_there(home, name) as db:
        if db is not None:
            states, head = memories.counts(db)["state"], jobs.get_head(db)
            found |= {"memories": sum(states.values()), "trained": states.get("trained", 0)}
            found["version"] = head["version"] if head else None
    return found
