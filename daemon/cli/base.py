"""`engramd base`: the base model in force; `base fetch MODEL` is the one command that downloads anything."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_WANTED_WITH_BIN = (*_WANTED, "pytorch_model*.bin")


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "base", usage="engramd base [--profile NAME] [--json] | engramd base fetch MODEL")
    parser.add_argument(
        "verb", nargs="?", choices=("fetch",), help="download a base model once; nothing else ever does"
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a hub id, such as Qwen/Qwen3-1.7B")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_base)


def _base(args: argparse.Namespace) -> int:
    if args.verb:
        return _fetch(args.model)
    found = facts(settings_of(args).recipe(args.profile).base_model)
    if args.json:
        print_json({"profile": args.profile, "home": str(home_of(args).root)} | found)
        return Exit.OK
    print(f"base      {found['base_model']}")
    if found["on_disk"]:
        print(f"on disk   {found['path']} ({found['bytes'] / 1e6:,.1f} MB of weights)")
    else:
        print(f"missing   {found['problem']}")
    return Exit.OK


def facts(name: str) -> dict[str, Any]:
    from trainer import base_files

    try:
        folder = base_files.resolve(name)
    except base_files.BaseMissing as missing:
        return {"base_model": name, "on_disk": False, "path": None, "bytes": None, "problem": str(missing)}
    size = sum(path.stat().st_size for path in base_files.weight_files(folder))
    return {"base_model": name, "on_disk": True, "path": str(folder), "bytes": size, "problem": None}


def _fetch(model: str | None) -> int:
    from trainer import base_files

    if not model:
        raise UserError("engramd base fetch: which one? Such as Qwen/Qwen3-1.7B", Exit.USAGE)
    if model.startswith(base_files.BUILTIN_PREFIX):
        print(f"{model} comes with engramd: {base_files.resolve(model)}")
        return Exit.OK
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{model!r} is no hub id, such as Qwen/Qwen3-1.7B; a folder needs no fetching", Exit.USAGE)
    folder = download(model, base_files.hub_cache(os.environ))
    try:
        folder = base_files.resolve(model)
    except base_files.BaseMissing as missing:
        raise UserError(f"downloaded to {folder}, but it cannot be used: {missing}") from None
    print(f"{model} is on disk: {folder}")
    return Exit.OK


def download(model: str, cache: Path) -> Path:
    """Into the Hugging Face cache, where the trainer looks. Goes on where an earlier call was cut off."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    except ImportError:
        raise UserError("huggingface_hub is not installed: pip install huggingface_hub", Exit.UNAVAILABLE) from None
    try:
        print(f"fetching {model} into {cache}", file=sys.stderr)
        files = HfApi().model_info(model, timeout=20.0).siblings or []  # no retries: no network shows at once
        has_safetensors = any(file.rfilename.endswith(".safetensors") for file in files)
        wanted = list(_WANTED if has_safetensors else _WANTED_WITH_BIN)
        return Path(snapshot_download(model, cache_dir=cache, allow_patterns=wanted))
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: unset it to fetch a model", Exit.UNAVAILABLE) from None
    except HfHubHTTPError as error:
        raise UserError(_http_sentence(model, error), Exit.UNAVAILABLE) from None
    except (OSError, ValueError) as error:
        if _is_network(error):
            raise UserError(
                f"{model} cannot be fetched: the hub is not reachable from here; the same command goes on "
                "where it stopped once there is a network",
                Exit.UNAVAILABLE,
            ) from None
        raise UserError(f"{model} cannot be fetched: {str(error).splitlines()[0]}") from None
    except Exception as error:  # the hub's client brings its own network library, whose errors are not ours
        if not _is_network(error):
            raise
        raise UserError(f"{model} cannot be fetched: the hub is not reachable from here", Exit.UNAVAILABLE) from None


def _is_network(error: BaseException) -> bool:
    """A failed connection, whichever library says so: by the classes' names along the chain of causes."""
    here: BaseException | None = error
    while here is not None:
        kinds = {kind.__name__ for kind in type(here).__mro__}
        if kinds & {"ConnectionError", "ConnectError", "TransportError", "gaierror", "TimeoutException", "ProxyError"}:
            return True
        here = here.__cause__ or here.__context__
    return False


def _http_sentence(model: str, error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{model} cannot be fetched: it is gated or does not exist; accept its terms, then set HF_TOKEN"
    if status == 404:
        return f"{model} cannot be fetched: the hub has no model of this name"
    return f"{model} cannot be fetched: the hub answers {status or 'with an error'}; try again later"
