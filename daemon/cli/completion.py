"""`engramd completion bash|zsh|tcsh`."""

import argparse
from typing import TYPE_CHECKING

from daemon.cli import build_parser, command
from daemon.cli.exit_codes import Exit

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_SHELLS = ("bash", "zsh", "tcsh")


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers,
        "completion",
        description="Print a completion script. For bash: engramd completion bash > "
        "~/.local/share/bash-completion/completions/engramd",
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(build_parser([]), shell=args.shell))
    return Exit.OK
