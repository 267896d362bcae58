"""`engramd train`: a job now, from what waits."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "train",
        description="Train what waits now, and wait for its end. Without a daemon the work is done here.",
    )  # fmt: skip
    profile_option(parser)
    parser.add_argument("--now", action="store_true", help="whatever [training.when] says of hours and conditions")
    parser.add_argument("--no-wait", action="store_true", help="only ask; the daemon does it in its own time")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import declared, opened_if_there
    from daemon.ledger import batches, jobs

    home = home_of(args)
    declared(args)
    with opened_if_there(home, args.profile) as db:
        open_one = jobs.open_job(db) if db else None
        newest = 0 if db is None else (open_one["id"] - 1 if open_one else jobs.newest_id(db))
    ask(args, args.profile, "train", {"now": args.now}, wait=not args.no_wait)
    if args.no_wait:
        print("asked for; engramd status shows how it goes")
        return Exit.OK
    with opened_if_there(home, args.profile) as db:
        rows = jobs.since(db, newest) if db else []
        ours: list[int] = []
        if db is not None:
            for row in rows:
                print(_sentence(row, jobs.version_of_job(db, row["id"])))
            numbers = {row["id"] for row in rows}
            for row in batches.in_state(db, "held"):
                if any(one["job"] in numbers for one in batches.jobs_of(db, row["id"])):
                    ours.append(row["id"])
    if not rows:
        print("nothing waited: every memory that can be trained is trained")
    if ours:
        which = ", ".join(map(str, ours))
        raise UserError(f"held, and yours to decide: batch {which} (engramd status)", Exit.FAILED)
    return Exit.OK


def _sentence(row: dict[str, Any], version: dict[str, Any] | None) -> str:
    if row["kind"] == "generate":
        return f"job {row['id']} {row['state']}: {row['reason'] or 'general text by the base model'}"
    if row["kind"] == "export":
        return f"job {row['id']} {row['state']}: {row['reason'] or 'the newest version, for where it is served'}"
    name = f", v{version['id']}" if version else ""
    steps = f"{drawing.plural(row['steps'], 'step')} over {drawing.plural(row['samples'], 'sample')}"
    why = f": {row['reason']}" if row["reason"] else ""
    return f"job {row['id']} {row['state']}{name}; {steps}{why}"
