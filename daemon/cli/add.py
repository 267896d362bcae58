"""`engramd add FILE...`: copies of a person's files into the inbox, each at once or not at all."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli import command, profile_option
from daemon.cli.context import home_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.presence import daemon_pid

if TYPE_CHECKING:
    from daemon.cli import Subparsers


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "add")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file, or a folder as one batch")
    profile_option(parser)
    parser.set_defaults(run=_add)


def _add(args: argparse.Namespace) -> int:
    from daemon import inbox
    from daemon.cli.reading import declared
    from daemon.records import Refused

    home = home_of(args)
    known = declared(args)
    failed = 0
    for source in args.files:
        try:
            print(f"added: {inbox.add(home, args.profile, source, profiles=known)}")
        except Refused as refusal:
            print(f"engramd: {refusal}", file=sys.stderr)
            failed += 1
    added = len(args.files) - failed
    if added and daemon_pid(home) is not None:
        print("The daemon takes it once it has not changed for the quiet time: engramd status")
    elif added:
        print("No daemon runs on this home: engramd run (stays), or engramd run --once (does what is due)")
    if failed:
        raise UserError(f"{failed} of {len(args.files)} could not be added", Exit.FAILED)
    return Exit.OK
