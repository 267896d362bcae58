"""`engramd run`: the daemon in the foreground. `--once` does what is due, then exits."""

import argparse
import sys
from typing import TYPE_CHECKING

from daemon.cli import command
from daemon.cli.context import home_of, settings_of
from daemon.cli.exit_codes import Exit

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.home import Home


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers,
        "run",
        epilog="Exit codes: 0 stopped as asked, 69 another engramd runs on this home, 78 the settings are "
        "wrong; the others: see engramd --help.",
    )
    parser.add_argument(
        "--once", action="store_true", help="wait one quiet time, read and train what is due, then exit"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log to the file only")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    settings, home = settings_of(args), home_of(args)  # before the lock: wrong settings disturb nobody
    from daemon.cli.foreground import held_lock, loop

    line = args.once and not args.quiet and sys.stderr.isatty() and sys.stdout.isatty()
    with held_lock(home):
        loop(home, settings, once=args.once, quiet=args.quiet or line, progress=line)
    if line:  # else the log has said so
        _say_what_waits(home)
    return Exit.OK


def _say_what_waits(home: "Home") -> None:
    from daemon.cli.reading import opened_if_there, profiles
    from daemon.ledger import jobs

    for name in profiles(home, None):
        with opened_if_there(home, name) as db:
            if db is not None and (why := jobs.get_meta(db, "waits")):
                print(f"{name} waits: {why}", file=sys.stderr)
