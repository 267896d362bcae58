"""`engramd audit`: the ledger against the disk. Exit code 1 where they disagree."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit
from daemon.cli.presence import daemon_pid

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.home import Home


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "audit", epilog="Exit codes: 0 all agrees, 1 something does not.")
    profile_option(parser, default=None)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_audit)


def _audit(args: argparse.Namespace) -> int:
    from daemon.cli.reading import profiles

    home = home_of(args)
    runs = daemon_pid(home) is not None
    told = [_profile(home, name, runs=runs) for name in profiles(home, args.profile)]
    clean = not any(one["findings"] for one in told)
    if args.json:
        print_json({"home": str(home.root), "clean": clean, "profiles": told})
        return Exit.OK if clean else Exit.FAILED
    for one in told:
        for finding in one["findings"]:
            print(f"{one['profile']}: {finding['problem']}")
        for note in one["notes"]:
            print(f"{one['profile']}: note: {note}")
        if not one["findings"]:
            print(f"{one['profile']}: ledger and disk agree ({drawing.plural(one['batches'], 'batch')}, "
                  f"{drawing.plural(one['memories'], 'memory')}, {drawing.plural(one['jobs'], 'job')})")  # fmt: skip
    return Exit.OK if clean else Exit.FAILED


def _profile(home: "Home", name: str, *, runs: bool) -> dict[str, Any]:
    from contextlib import ExitStack

    from daemon import audit, chains, inbox
    from daemon.cli.reading import opened_home, opened_if_there
    from daemon.cli.running import ProgressLine
    from daemon.ledger import batches, jobs, memories

    found: dict[str, Any] = {"profile": name, "batches": 0, "memories": 0, "jobs": 0, "findings": [], "notes": []}
    line = ProgressLine(home)
    with ExitStack() as stack:
        db = stack.enter_context(opened_if_there(home, name))
        if db is None:
            return found
        stack.callback(line.clear)
        home_db = stack.enter_context(opened_home(home)) if home.database.exists() else None
        one = audit.Audit(
            home.profile(name), db, home_db, chains.why_damaged, inbox.folder_sha256, runs,
            lambda text: line.say(f"{name}: {text}"),
        )  # fmt: skip
        findings = one.run()
        found |= {
            "batches": sum(batches.counts(db).values()), "memories": memories.total(db), "jobs": jobs.count(db),
            "findings": [{"check": f.check, "subject": f.subject, "problem": f.problem} for f in findings],
            "notes": one.notes,
        }  # fmt: skip
    return found
