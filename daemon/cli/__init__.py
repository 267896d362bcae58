"""The command line. One module per noun; only the module of the command that was asked for is imported.

A module has `register(subparsers)`, which makes its commands by `command(subparsers, NAME)` and gives each
`set_defaults(run=function)`, where `function(args) -> int` is an exit code. At import a module needs argparse
and the standard library alone; what weighs something is imported inside functions.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli.exit_codes import MEANINGS

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# command: (module, what it does). The order is that of the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "watch the inbox and train; --once does what is due and exits"),
    "status": ("status", "what waits, what runs, what comes next"),
    "add": ("add", "copy files into the inbox"),
    "import-metahuman": ("import_metahuman", "take over the memories of a MetaHuman OS profile"),
    "train": ("train", "train what waits now"),
    "jobs": ("jobs", "list the jobs"),
    "job": ("jobs", "one job in full"),
    "memories": ("memories", "list the memories"),
    "batches": ("batches", "list the batches"),
    "retry": ("batches", "try a held batch again"),
    "discard": ("batches", "give a held batch up"),
    "preview": ("preview", "show what the next job would be trained on"),
    "forget": ("forget", "take memories out of every place"),
    "read": ("read", "show what a file would give, without taking it"),
    "owner": ("owner", "say by what names you are known in chats"),
    "profile": ("profile", "add and list profiles"),
    "pause": ("pause", "no training until a time, or until resume"),
    "resume": ("pause", "training may go on"),
    "cycle": ("cycle", "train on selected memories, old ones too"),
    "models": ("models", "the versions: list, compare, go back"),
    "promote": ("promote", "rely on a refused version all the same"),
    "export": ("export", "a version's files for elsewhere"),
    "serve": ("serving", "bring the newest version to Ollama now"),
    "forgetting": ("forgetting", "what each version still knows of each month"),
    "snapshot": ("snapshot", "take, list, check, restore and copy snapshots"),
    "prune": ("prune", "remove what no retention rule keeps"),
    "pin": ("prune", "keep a snapshot, version or job whatever retention says"),
    "unpin": ("prune", "leave it to retention again"),
    "disk": ("disk", "what uses how much of the disk"),
    "schedule": ("schedule", "what is done by the clock, and when next"),
    "base": ("base", "the base model: fetch, show"),
    "loss": ("loss", "the loss curve over all batches"),
    "chat": ("chat", "talk to the newest model"),
    "ask": ("chat", "ask the newest model one question"),
    "audit": ("audit", "compare ledger and disk"),
    "doctor": ("doctor", "check this machine"),
    "config": ("config", "print the settings and where each came from"),
    "log": ("log", "read the log"),
    "install": ("install", "make it a service of systemd"),
    "uninstall": ("install", "take the service away; the memories stay"),
    "completion": ("completion", "print a shell completion script"),
}

_DESCRIPTION = "engramd turns your memories into the weights of your own local language model, overnight."
_WITH_VALUE = ("--home", "--set")


def command(subparsers: "Subparsers", name: str, **options: Any) -> argparse.ArgumentParser:
    """A command's parser, with the global options also accepted after the command."""
    summary = COMMANDS[name][1]
    options.setdefault("description", summary[0].upper() + summary[1:] + ".")
    options.setdefault("epilog", "Exit codes: see engramd --help.")
    parser = subparsers.add_parser(name, help=summary, **options)
    _global_options(parser, after_command=True)
    return parser


def whole(text: str) -> int:
    """An argument's type: a whole number that the ledger can hold."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is out of range")
    return number


def profile_option(parser: argparse.ArgumentParser, *, default: str | None = "me") -> None:
    """`--profile`, for commands that are about one person."""
    parser.add_argument(
        "--profile", default=default, metavar="NAME", help=f"whose (default: {default or 'all'})"
    )


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments: with the one command that they name, else with all of them."""
    parser = argparse.ArgumentParser(
        prog="engramd",
        description=_DESCRIPTION,
        epilog=_exit_codes(),
        formatter_class=_Help,
    )
    _global_options(parser)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    asked = _asked(argv)
    if asked is not None:
        _register(subparsers, asked)
        return parser
    for name in available():
        if name not in subparsers.choices:  # a module may have brought several
            _register(subparsers, name)
    return parser


def available() -> list[str]:
    """The commands whose modules are here."""
    here = Path(__file__).parent
    return [name for name, (module, _) in COMMANDS.items() if (here / f"{module}.py").is_file()]


def execute(argv: Sequence[str]) -> int:
    """Parse and do. Raises what the command raises; `daemon.__main__` turns it into an exit code."""
    parser = build_parser(argv)
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help()
        return 0
    return int(args.run(args))


def _register(subparsers: "Subparsers", name: str) -> None:
    import_module(f"daemon.cli.{COMMANDS[name][0]}").register(subparsers)


def _asked(argv: Sequence[str]) -> str | None:
    """The command in these arguments, where nothing before it asks for more than it."""
    words = iter(argv)
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return word if word in available() else None
        elif word.split("=", 1)[0] not in _WITH_VALUE:
            return None
    return None


def _global_options(parser: argparse.ArgumentParser, after_command: bool = False) -> None:
    default = argparse.SUPPRESS if after_command else None  # so that it does not hide what stood before
    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--home", default=default, metavar="DIR", help="the home (default: ENGRAMD_HOME, else this checkout)"
    )
    group.add_argument(
        "--set",
        action="append",
        dest="set_after" if after_command else "set",
        default=default,
        metavar="KEY=VALUE",
        help="a setting for this call, such as training.lora_rank=16; may be repeated",
    )


def _exit_codes() -> str:
    lines = [f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\n".join(["exit codes:", *lines, "", "Help for one command: engramd COMMAND --help"])


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse forgets that commands are indented when it makes room for the longest of them."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, COMMANDS)) + 4


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata takes its time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("engramd")
        except PackageNotFoundError:
            found = "(not installed)"
        print(f"engramd {found}")
        sys.exit(0)
