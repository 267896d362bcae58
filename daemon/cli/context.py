"""What a command gets from the global options: the home, the settings, a way to print JSON."""

import json
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from daemon.cli.exit_codes import Exit, UserError
from daemon.home import Home, find_home

if TYPE_CHECKING:
    from daemon.settings import Settings


def home_of(args: Namespace) -> Home:
    return Home(find_home(args.home))


def overrides_of(args: Namespace) -> dict[str, Any]:
    """`--set KEY=VALUE` as settings; the last of a key wins. A value that is JSON is read as JSON."""
    overrides: dict[str, Any] = {}
    for item in [*(args.set or []), *getattr(args, "set_after", [])]:
        key, equals, value = item.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {item}: write it as KEY=VALUE, such as training.lora_rank=16", Exit.USAGE)
        overrides[key.strip()] = _value(value.strip())
    return overrides


def settings_of(args: Namespace) -> "Settings":
    """Imports pydantic-settings, which takes 0.2 s: not for commands that must answer at once."""
    from daemon.settings import SettingsError, load

    try:
        return load(home_of(args), overrides_of(args))
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2, default=str)
    print()


def colours() -> bool:
    """Whether stdout is a terminal that wants colours."""
    import os

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
