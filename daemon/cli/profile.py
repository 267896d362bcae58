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
    parser = command(subparsers, "profile")
    verbs = parser.add_subparsers(metavar="add|list", required=True)
    add = verbs.add_parser("add", help="make a profile: its own inbox, ledger and model")
    add.add_argument("name", help="a-z, 0-9, _ and -, at most 32 characters")
    add.set_defaults(run=_add)
    listing = verbs.add_parser("list", help="the profiles of this home")
    listing.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    listing.set_defaults(run=_list)


def _add(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import check_name

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
