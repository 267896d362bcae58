"""`engramd doctor`: is this machine fit? One line per check; torch is asked in a child process."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from daemon.cli import command
from daemon.cli.context import colours, home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.home import Home

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.settings import Settings

_GIB = 1 << 30
_OLLAMA_SECONDS = 3.0
_CHILD_SECONDS = 120  # importing torch on a cold disk is slow
_FREE_WARN, _FREE_FAIL = 20 * _GIB, 1 * _GIB
_WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)  # a clock before this is wrong
_MARKS = {"ok": ("ok", "32"), "warn": ("warn", "33"), "fail": ("FAIL", "31")}

# Run in a child: what it imports must not stay in this process, and may crash or hang.
_ASK_TORCH = """
import json, importlib.metadata as m
import torch
facts = {"torch": torch.__version__, "cuda": torch.cuda.is_available(), "threads": torch.get_num_threads()}
if facts["cuda"]:
    card = torch.cuda.get_device_properties(0)
    facts |= {"name": card.name, "memory": card.total_memory, "bf16": torch.cuda.is_bf16_supported()}
    facts["count"] = torch.cuda.device_count()
try:
    import bitsandbytes
    facts["bitsandbytes"] = m.version("bitsandbytes")
except Exception as error:
    facts["bitsandbytes_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(facts))
"""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "doctor")
    parser.add_argument("--json", action="store_true", help="{ok, checks: [{name, state, detail}]}")
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    home = home_of(args)
    settings, settings_check = _settings(args)
    checks = [_python(), settings_check, *_torch(settings)]
    checks += [_disk(home), _inbox(home), _clock()]
    if settings is not None:
        checks += [_base_model(settings.training.base_model), *_ollama(settings), *_ssh(settings)]
    checks.append(_llama_cpp())
    good = all(check.state != "fail" for check in checks)
    if args.json:
        print_json({"ok": good, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    return Exit.OK if good else Exit.FAILED


def _show(checks: list[Check]) -> None:
    for check in checks:
        mark, colour = _MARKS[check.state]
        shown = f"\x1b[{colour}m{mark:<4}\x1b[0m" if colours() else f"{mark:<4}"
        print(f"{shown}  {check.name:<13}  {check.detail}")


def _python() -> Check:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    return Check("Python", "ok" if sys.version_info >= (3, 11) else "fail", found)


def _settings(args: argparse.Namespace) -> tuple["Settings | None", Check]:
    try:
        settings = settings_of(args)
    except UserError as error:
        return None, Check("settings", "fail", str(error))
    if settings.notices:
        return settings, Check("settings", "warn", "; ".join(settings.notices))
    return settings, Check("settings", "ok", "valid")


def _torch(settings: "Settings | None") -> list[Check]:
    try:
        child = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Check("torch", "fail", f"importing it took more than {_CHILD_SECONDS} s")]
    try:
        facts = json.loads(child.stdout.strip().rsplit("\n", 1)[-1])
    except ValueError:
        reason = (child.stderr.strip() or f"exit code {child.returncode}").rsplit("\n", 1)[-1]
        return [Check("torch", "fail", f"cannot be imported: {reason}")]
    checks = [Check("torch", "ok", facts["torch"])]
    if facts["cuda"]:
        dtype = "" if facts["bf16"] else ", without bfloat16"
        card = f"{facts['name']}, {facts['memory'] / _GIB:.0f} GiB{dtype}"
        more = f" (of {facts['count']})" if facts["count"] > 1 else ""
        checks.append(Check("device", "ok", card + more))
    else:
        small = settings is not None and settings.training.base_model.startswith("builtin:")
        what = f"no CUDA device: the CPU trains, with {os.cpu_count()} cores"
        checks.append(
            Check(
                "device", "ok" if small else "warn", what + ("" if small else "; slow but for small models")
            )
        )
    if "bitsandbytes" in facts:
        checks.append(Check("bitsandbytes", "ok", facts["bitsandbytes"]))
    else:
        checks.append(
            Check("bitsandbytes", "warn", f"{facts['bitsandbytes_error']}; no 4 bits, no 8-bit optimizer")
        )
    return checks


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _disk(home: Home) -> Check:
    usage = shutil.disk_usage(_existing(home.root))
    state: Literal["ok", "warn", "fail"] = "ok"
    if usage.free < _FREE_WARN:
        state = "fail" if usage.free < _FREE_FAIL else "warn"
    return Check(
        "disk", state, f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {home.root}"
    )


def _inbox(home: Home) -> Check:
    inbox = home.inbox
    if not inbox.exists():
        parent = _existing(inbox)
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("inbox", "ok", f"{inbox} will be made at the first start")
        return Check("inbox", "fail", f"{inbox} is not there and {parent} may not be written by this user")
    if not inbox.is_dir():
        return Check("inbox", "fail", f"{inbox} is not a folder")
    if not os.access(inbox, os.R_OK | os.W_OK | os.X_OK):
        return Check("inbox", "fail", f"{inbox} may not be read and written by this user")
    if inbox.stat().st_mode & 0o002:
        return Check("inbox", "warn", f"{inbox} may be written by everybody on this machine")
    if home.state.exists() and home.state.stat().st_dev != inbox.stat().st_dev:
        return Check(
            "inbox", "warn", f"{inbox} is on another disk than {home.state}: files are copied, not renamed"
        )
    return Check("inbox", "ok", f"{inbox} can be read and written")


def _clock() -> Check:
    now = datetime.now().astimezone()
    zone = now.tzname() or "no zone"
    shown = f"{now:%Y-%m-%d %H:%M:%S} {zone} (UTC{now:%z})"
    if now < _WRITTEN:
        return Check("clock", "fail", f"{shown}: it is behind")
    return Check("clock", "ok", shown)


def _base_model(name: str) -> Check:
    from trainer.base_files import BaseMissing, resolve

    try:
        folder = resolve(name)
    except BaseMissing as error:
        return Check("base model", "warn", str(error))
    return Check("base model", "ok", f"{name} at {folder}")


def _ollama(settings: "Settings") -> list[Check]:
    from daemon.ollama import Ollama, Trouble

    host, wish = settings.serve.where(), settings.serve.ollama
    if wish == "off":
        return []
    with Ollama(host, _OLLAMA_SECONDS) as client:
        try:
            version = client.version()
            adapters = "" if client.takes_adapters() else "; it takes no adapters: nights are served merged"
        except Trouble as trouble:
            said = "versions wait for it" if wish == "always" else "nothing is served there until one answers"
            return [Check("Ollama", "warn" if wish == "always" else "ok", f"{trouble}; {said}")]
    return [Check("Ollama", "ok", f"{version} at {host}{adapters}")]


def _ssh(settings: "Settings") -> list[Check]:
    """Where jobs may go over SSH: the programs here, and what the other machine says of itself."""
    host = settings.compute.ssh.host
    if not host:
        return []
    wanted = "ssh" in (settings.compute.where, settings.compute.full, settings.compute.cycles)
    wrong: Literal["warn", "fail"] = "fail" if wanted else "warn"
    if missing := [name for name in ("ssh", "rsync") if shutil.which(name) is None]:
        return [Check("ssh", wrong, f"{' and '.join(missing)} not installed, which compute.where = \"ssh\" needs")]
    from daemon import sending
    from daemon.compute import places, ssh
    from daemon.compute.mirror import plain

    if why := sending.not_ready(settings, "ssh"):
        return [Check("ssh", wrong, why)]
    try:
        return [Check("ssh", "ok", plain(ssh.ask(settings.compute.ssh)))]
    except places.LineLost as lost:
        return [Check("ssh", "warn", f"{host} does not answer: {plain(str(lost))}")]
    except places.NotNow as reason:
        return [Check("ssh", wrong, plain(str(reason)))]


def _llama_cpp() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check("llama.cpp", "ok", f"llama-cpp-python {version('llama-cpp-python')}")
    except PackageNotFoundError:
        said = "not installed (pip install 'engramd[gguf]'): GGUFs are made in Q8_0 at most, ask and chat use torch"
        return Check("llama.cpp", "ok", said)
