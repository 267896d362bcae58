"""`engramd export vN --to DIR`: a version's files for elsewhere: for peft, transformers, vLLM, llama.cpp, Ollama."""

import argparse
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_STAGED = ".tmp-engramd-export"  # of a copy that was cut off: the folder counts as empty
QUANTISATIONS = ("f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "export",
        description="Copy a version to a folder of yours: model/ (the merged model, as transformers and vLLM open it), "
        "model.gguf and a Modelfile; with --adapter-only adapter/ (as peft opens it) and adapter.gguf. Also of a "
        "version that was refused. The head and what is served stay as they are.",
    )  # fmt: skip
    parser.add_argument("version", metavar="vN", help="also one that was refused")
    parser.add_argument("--to", required=True, metavar="DIR", help="a folder that is not there yet, or empty")
    parser.add_argument(
        "--quant", choices=QUANTISATIONS,
        help="of the GGUF (default: as [serve] says); K-quants need the extra gguf, else Q8_0 is made",
    )  # fmt: skip
    parser.add_argument("--adapter-only", action="store_true", help="not merged: megabytes, to be put onto the base")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened
    from daemon.cli.versions import number_of
    from daemon.ledger import jobs

    number, target, home = number_of(args.version), Path(os.path.abspath(Path(args.to).expanduser())), home_of(args)
    _look_at(target)
    with opened(home, args.profile) as db:
        if jobs.version(db, number) is None:
            raise UserError(f"there is no v{number} of profile {args.profile}: engramd models", Exit.NOTHING)
    asked = {"version": number, "quant": args.quant, "adapter_only": args.adapter_only}
    told = ask(args, args.profile, "export", asked) or {}
    size = _copy(Path(told["folder"]), target, told["files"], adapter_only=args.adapter_only)
    if told["job"] is not None:
        ask(args, args.profile, "export_fetched", {"job": told["job"]}, wait=False)
    found = {"version": number, "state": told["state"], "path": str(target), "size": size, "notice": told["notice"]}
    if args.json:
        print_json({"profile": args.profile, **found})
        return Exit.OK
    for line in filter(None, [told["notice"]]):
        print(line)
    files = drawing.plural(len([one for one in target.rglob("*") if one.is_file()]), "file")
    state = "" if told["state"] == "promoted" else f" ({told['state']})"
    print(f"v{number}{state} is in {target}: {files}, {shown(size)}")
    return Exit.OK


def _look_at(target: Path) -> None:
    """Never over anything that is there. Raises UserError."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: name a folder with --to")
    if target.is_dir() and any(entry.name != _STAGED for entry in target.iterdir()):
        raise UserError(f"{target} is not empty: name another folder with --to")


def _copy(folder: Path, target: Path, files: list[str], *, adapter_only: bool) -> int:
    """Under a temporary name first: a folder that has export.json is whole. Gives the bytes. Raises UserError."""
    from trainer import names

    there = target.is_dir()  # and empty: it may be where the person stands, or a link, so it stays
    staged = target / _STAGED if there else target.with_name(f".tmp-{target.name}")
    wanted = [*files, *([names.MODELFILE] if (folder / names.MODELFILE).is_file() else []), names.EXPORTED]
    if adapter_only:  # the base below it is another model's, and large
        wanted = [name for name in wanted if name not in (names.BASE_GGUF, names.MODELFILE)]
    try:
        shutil.rmtree(staged, ignore_errors=True)
        size = 0
        for name in dict.fromkeys(wanted):
            place = staged / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place)
            size += place.stat().st_size
        if there:
            for name in dict.fromkeys(Path(name).parts[0] for name in wanted):  # export.json last
                (staged / name).rename(target / name)
            staged.rmdir()
        else:
            staged.rename(target)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise UserError(f"{target} cannot be written: {error.strerror}: {error.filename}") from None
    return size
