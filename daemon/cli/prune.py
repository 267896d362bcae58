"""`engramd prune`, `pin`, `unpin`: what is kept, what goes, and why."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_KINDS = ("snapshot", "version", "job")


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "prune", usage="engramd prune [--dry-run] [--all] [--profile NAME] [--json]",
        description="Remove snapshots, checkpoints, files of versions and of ended jobs that no rule of [retention] "
        "keeps. Never: the head, its parent, what an open job or a pin needs, the last snapshot, a row of the ledger.",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and change nothing")
    parser.add_argument("--all", action="store_true", help="show what is kept, too (always with --dry-run)")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: profile, dry_run, freed, entries")
    parser.set_defaults(run=_prune)
    for name, what in (("pin", "keep it whatever retention says; without arguments: list what is pinned"),
                       ("unpin", "leave it to retention again")):  # fmt: skip
        which = "snapshot DATE | version vN | job N"
        usage = f"engramd {name} " + (f"[{which}]" if name == "pin" else f"({which})") + " [--profile NAME] [--json]"
        parser = command(subparsers, name, usage=usage)
        parser.add_argument("kind", nargs="?", choices=_KINDS, help=what)
        parser.add_argument("name", nargs="?", metavar="NAME", help="its date, or its number")
        profile_option(parser)
        parser.add_argument("--json", action="store_true", help="keys: profile, and kind, name or pins")
        parser.set_defaults(run=_pin, command=name)


def _prune(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened, world_of

    home = home_of(args)
    with opened(home, args.profile) as db:
        if args.dry_run:
            from daemon import pruning
            from daemon.schedule import zone_of
            from daemon.service import utc_now

            settings = settings_of(args)
            world = world_of(home, args.profile, db, settings)
            told = pruning.plan(world, utc_now(), zone_of(settings.schedule.timezone)).told()
    if not args.dry_run:
        told = ask(args, args.profile, "prune", {}) or {}
    if args.json:
        print_json({"profile": args.profile, "dry_run": args.dry_run, **told})
        return Exit.OK
    rows = [
        ["keep" if one["keep"] else "remove", one["kind"], one["name"], shown(one["size"]), "; ".join(one["reasons"])]
        for one in told["entries"] if args.all or args.dry_run or not one["keep"]
    ]  # fmt: skip
    if rows:
        print(drawing.table(["", "what", "name", "alone", "why"], rows))
    gone = sum(not one["keep"] for one in told["entries"])
    would = "would be " if args.dry_run else ""
    kept = len(told["entries"]) - gone
    print(f"{gone} {would}removed, {shown(told['freed'])} {would}freed; {kept} kept")
    return Exit.OK


def _pin(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened
    from daemon.ledger import pins

    if args.kind is None or args.name is None:
        if args.command == "unpin" or args.kind is not None:
            raise UserError(f"engramd {args.command}: name what: snapshot DATE, version vN or job N", Exit.USAGE)
        with opened(home_of(args), args.profile) as db:
            rows = pins.listing(db)
        if args.json:
            print_json({"profile": args.profile, "pins": rows})
        else:
            print(drawing.table(["what", "name", "since"], [list(row.values()) for row in rows]) if rows
                  else "nothing is pinned")  # fmt: skip
        return Exit.OK
    name = _number(args) if args.kind != "snapshot" else args.name
    told: dict[str, Any] = ask(args, args.profile, args.command, {"kind": args.kind, "name": name}) or {}
    if args.json:
        print_json({"profile": args.profile, **told})
    elif args.command == "pin":
        print(f"{args.kind} {args.name} is kept until engramd unpin {args.kind} {args.name}")
    else:
        print(f"{args.kind} {args.name} " + ("is left to retention" if told["was_pinned"] else "was not pinned"))
    return Exit.OK


def _number(args: argparse.Namespace) -> str:
    digits = str(args.name).removeprefix("v") if args.kind == "version" else str(args.name)
    if not (digits.isascii() and digits.isdecimal()):
        raise UserError(f"{args.name!r} is no number of a {args.kind}", Exit.USAGE)
    return str(int(digits))  # 007 is job 7
