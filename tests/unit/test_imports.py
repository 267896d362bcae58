"""The daemon stays light: nothing that weighs, not even through a third module, and a quick command line."""

import argparse
import json
import pkgutil
import subprocess
import sys

import daemon
from daemon import cli

HEAVY = {"torch", "transformers", "tokenizers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy"}
SLOW = {"pydantic", "pydantic_settings", "structlog", "watchdog", "apscheduler", "asyncio", "rich", "shtab"}


def loaded_by(statements: str) -> set[str]:
    """Top-level names in sys.modules of a fresh Python that has run these statements."""
    code = f"{statements}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.rsplit("\n", 2)[-2])}


def daemon_modules() -> list[str]:
    found = pkgutil.walk_packages(daemon.__path__, "daemon.")
    return sorted(module.name for module in found if not module.name.endswith("__main__"))


def test_no_daemon_module_imports_anything_heavy() -> None:
    names = daemon_modules()
    assert "daemon.cli.config" in names
    loaded = loaded_by("\n".join(f"import {name}" for name in [*names, "daemon.__main__"]))
    assert loaded & HEAVY == set()


def test_no_command_imports_anything_slow_before_it_runs() -> None:
    loaded = loaded_by("from daemon import cli; cli.build_parser([])")
    assert loaded & (SLOW | HEAVY) == set()


def test_only_the_module_of_the_command_is_imported() -> None:
    code = "from daemon import cli; cli.build_parser(['--home', '/x', 'log', '-f']).parse_args(['log'])"
    code += "\nimport sys; print([n for n in sys.modules if n.startswith('daemon.cli.')], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "daemon.cli.log" in done.stderr
    assert "daemon.cli.config" not in done.stderr


def test_what_status_may_use_is_light() -> None:
    loaded = loaded_by("import daemon.home, daemon.logs, trainer.names, daemon.cli.context")
    assert loaded & (SLOW | HEAVY) == set()


def test_the_contract_needs_pydantic_alone() -> None:
    assert loaded_by("import trainer.contract") & (HEAVY | (SLOW - {"pydantic"})) == set()


def test_each_command_that_is_listed_registers_itself() -> None:
    for name in cli.available():
        parser = cli.build_parser([name])
        (action,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        assert name in action.choices, name
