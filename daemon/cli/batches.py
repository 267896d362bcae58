"""`engramd batches`, and a person's decision on a held one: `retry` and `discard`."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers



def register(subparsers: "Subparsers") -> None:
    listing = command(subparsers, "batches")
    profile_option(listing)
    listing.add_argument("-n", type=whole, default=50, metavar="N", help="the newest N (default: 50; 0: all)")
    listing.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    listing.set_defaults(run=_batches)
    for name, function in (("retry", _retry), ("discard", _discard)):
        parser = command(subparsers, name)
        parser.add_argument("batch", type=whole, metavar="BATCH", nargs="?" if name == "retry" else None,
                            help="its number, as engramd status shows it")  # fmt: skip
        profile_option(parser)
        if name == "retry":
            parser.add_argument("--all", action="store_true", help="each batch that is held")
        parser.set_defaults(run=function)
        if name == "discard":
            parser.add_argument("--dry-run", action="store_true", help="only say what would be given up")


def _batches(args: argparse.Namespace) -> int:
    from daemon.cli.reading import opened
    from daemon.ledger import batches

    with opened(home_of(args), args.profile) as db:
        rows = batches.listing(db, args.n or -1)
        found = [_fact(row, [one["job"] for one in batches.jobs_of(db, row["id"])]) for row in rows]
        by_state = batches.counts(db)
    if args.json:
        print_json({"profile": args.profile, "total": sum(by_state.values()), "by_state": by_state,
                    "batches": found})  # fmt: skip
        return Exit.OK
    head = ("id", "state", "memories", "known", "skipped", "bad", "claimed", "file", "reason")
    keys = ("id", "state", "memories", "duplicates", "skipped", "bad_items", "claimed_at", "name", "reason")
    print(drawing.table(head, [[fact[key] for key in keys] for fact in found]))
    return Exit.OK


def _fact(row: dict[str, Any], jobs: list[int]) -> dict[str, Any]:
    keys = ("id", "name", "state", "reason", "sha256", "size", "claimed_at", "read_at", "memories",
            "duplicates", "skipped", "bad_items", "forgotten", "failures")  # fmt: skip
    return {key: row[key] for key in keys} | {"jobs": jobs}


def _held(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, int]]:
    """The batch's row and its memories by state. Raises UserError unless it is held."""
    from daemon.cli.reading import opened
    from daemon.ledger import batches

    with opened(home_of(args), args.profile) as db:
        row = batches.get(db, args.batch)
        if row is None:
            raise UserError(f"there is no batch {args.batch} of {args.profile}: engramd batches", Exit.NOTHING)
        if row["state"] not in ("held", "needs_owner"):
            raise UserError(f"batch {args.batch} is {row['state']}; only a held one waits for a decision")
        return row, batches.memory_states(db, args.batch)


def _retry(args: argparse.Namespace) -> int:
    if args.all == (args.batch is not None):
        raise UserError("engramd retry: name a batch, or --all", Exit.USAGE)
    if not args.all:
        return _retry_one(args)
    from daemon.cli.reading import opened
    from daemon.ledger import batches

    with opened(home_of(args), args.profile) as db:
        held = [row["id"] for row in batches.in_state(db, "held")]
    for args.batch in held:
        _retry_one(args)
    if not held:
        print(f"no batch of {args.profile} is held")
    return Exit.OK if held else Exit.NOTHING


def _retry_one(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask

    row, states = _held(args)
    ask(args, args.profile, "retry", {"batch": args.batch})
    if row["state"] == "needs_owner":
        print(f"batch {args.batch} ({row['name']}) is read again")
        return Exit.OK
    memories = drawing.plural(states.get("held", 0), "memory")
    alone = ", alone in its job" if row["failures"] else ""
    print(f"batch {args.batch} ({row['name']}) waits again{alone}: {memories}")
    return Exit.OK


def _discard(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask

    row, states = _held(args)
    number = states.get("held", 0)
    memories = f"{drawing.plural(number, 'memory')} that {'was' if number == 1 else 'were'} never learnt"
    if row["state"] == "needs_owner":
        memories = "all its messages"
    if args.dry_run:
        print(f"would give up batch {args.batch} ({row['name']}): {memories}; held because: {row['reason']}")
        return Exit.OK
    ask(args, args.profile, "discard", {"batch": args.batch})
    print(f"batch {args.batch} ({row['name']}) is given up: {memories}; its file stays in the archive")
    return Exit.OK
