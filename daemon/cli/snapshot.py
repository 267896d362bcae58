"""`engramd snapshot create|list|show|verify|restore|export`: a profile's training state, day by day."""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_DURATION = re.compile(r"(\d{1,6})(s|m|h)?")
_SECONDS = {"s": 1, None: 60, "m": 60, "h": 3600}


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "snapshot",
        usage="engramd snapshot [create|list|show|verify|restore|export] ... [--profile NAME] [--json]",
        description="A snapshot is the training state of one profile under a date: the head's chain, what is not "
        "finished, the ledger. Sealed files in it are hard links: they cost nothing, and share what damages them. "
        "`export` copies one off the disk.",
    )  # fmt: skip
    parser.add_argument("what", nargs="?", default="list", help="what to do (default: list)",
                        choices=("create", "list", "show", "verify", "restore", "export"))  # fmt: skip
    parser.add_argument("name", nargs="?", metavar="DATE", help="a name that list shows, or the path of an exported "
                        "copy, with a / in it; verify takes all without it")  # fmt: skip
    parser.add_argument("--to", metavar="DIR", help="of export: the copy's folder, which must not be there yet")
    parser.add_argument("--dry-run", action="store_true", help="of restore: say what it means, and change nothing")
    parser.add_argument("--yes", action="store_true", help="of restore: do not ask")
    parser.add_argument("--max-duration", metavar="TIME", help="of verify: 10m, 2h; then it begins no further one")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_snapshot)


def _snapshot(args: argparse.Namespace) -> int:
    from daemon.cli.reading import declared

    declared(args)
    if args.what in ("show", "restore", "export") and not args.name:
        raise UserError(f"engramd snapshot {args.what}: name a snapshot: engramd snapshot list", Exit.USAGE)
    if args.what == "export" and not args.to:
        raise UserError("engramd snapshot export: say where: --to DIR", Exit.USAGE)
    steps = {
        "create": _create, "list": _list, "show": _show, "verify": _verify, "restore": _restore, "export": _export
    }  # fmt: skip
    return steps[args.what](args)


def _create(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask

    told = ask(args, args.profile, "snapshot", {}) or {}
    if args.json:
        print_json({"profile": args.profile, **told})
    else:
        print(f"{told['path']}: {told['files']:,} files, {shown(told['size'])}, of which {shown(told['new_bytes'])} "
              "are new on the disk")  # fmt: skip
    return Exit.OK


def _top(args: argparse.Namespace) -> Path:
    from daemon.snapshotting import folder_of

    return folder_of(home_of(args), args.profile)


def _names(args: argparse.Namespace) -> list[str]:
    from daemon.snapshots import names_in

    return names_in(_top(args))


def _folder(args: argparse.Namespace) -> Path:
    """Of the snapshot that was named: a date, or the path of an exported one."""
    names = _names(args)
    if args.name in names:
        return _top(args) / str(args.name)
    if os.sep in args.name and (Path(args.name) / "manifest.json").is_file():
        return Path(args.name).resolve()
    known = f"there are {', '.join(names[-5:])}" if names else "there is none yet: engramd snapshot create"
    raise UserError(f"there is no snapshot {args.name!r} of profile {args.profile}; {known}", Exit.NOTHING)


def _list(args: argparse.Namespace) -> int:
    from daemon import snapshots

    rows: list[dict[str, Any]] = []
    for name in _names(args):
        try:
            manifest = snapshots.read(_top(args) / name)
        except snapshots.Damaged as damage:
            rows.append({"snapshot": name, "at": None, "version": None, "step": None, "files": None, "size": None,
                         "problem": str(damage)})  # fmt: skip
            continue
        head = manifest["head"] or {}
        rows.append({
            "snapshot": name, "at": manifest["at"], "version": head.get("version"), "step": head.get("step"),
            "files": len(manifest["files"]), "size": sum(file["size"] for file in manifest["files"].values()),
            "problem": None,
        })  # fmt: skip
    if args.json:
        print_json({"profile": args.profile, "snapshots": rows})
    elif not rows:
        print(f"no snapshot of {args.profile} yet: engramd snapshot create, or wait for the night")
    else:
        table = [[row["snapshot"], f"v{row['version']}" if row["version"] else "-", row["step"] or "-",
                  row["files"] or "-", "-" if row["size"] is None else shown(row["size"]), row["problem"] or ""]
                 for row in rows]  # fmt: skip
        print(drawing.table(["snapshot", "head", "step", "files", "size", ""], table))
    return Exit.OK


def _show(args: argparse.Namespace) -> int:
    from daemon import snapshots

    folder = _folder(args)
    try:
        manifest = snapshots.read(folder)
    except snapshots.Damaged as damage:
        raise UserError(str(damage)) from None
    if args.json:
        print_json({"path": str(folder), **manifest})
        return Exit.OK
    head = manifest["head"]
    print(f"{folder}, taken {manifest['at']}")
    at = f"v{head['version']}, chain {head['chain']}, step {head['step']}" if head else "the base, untrained"
    print(f"head: {at}")
    counts = ", ".join(f"{number:,} {state}" for state, number in sorted(manifest["memories"].items()) if number)
    print(f"memories: {counts or 'none'}")
    for name, told in manifest["files"].items():
        print(f"  {shown(told['size']):>10}  {name}")
    return Exit.OK


def _verify(args: argparse.Namespace) -> int:
    from daemon import snapshots
    from daemon.cli.reading import opened
    from daemon.ledger import checks

    limit = _seconds(args.max_duration) if args.max_duration else None
    top, names = _top(args), [_folder(args).name] if args.name else _names(args)
    folders = [_folder(args)] if args.name else [top / name for name in names]
    begun, seen, found, done = time.monotonic(), dict[snapshots.Inode, str](), list[str](), 0
    with opened(home_of(args), args.profile) as db:
        redactions = checks.redactions(db)
    for folder in folders:
        if done and limit is not None and time.monotonic() - begun > limit:
            break
        _progress(f"verifying {folder.name} ({done + 1} of {len(folders)})")
        found += snapshots.problems(folder, seen, lambda sha256: checks.hashes_after(redactions, sha256))
        done += 1
    _progress("")
    left = [folder.name for folder in folders[done:]]
    if args.json:
        print_json({"profile": args.profile, "verified": done, "problems": found, "left": left})
    else:
        for problem in found:
            print(problem)
        rest = f"; {drawing.plural(len(left), 'snapshot')} from {left[0]} on not reached in time" if left else ""
        whole = "all is as it was written" if not found else f"{drawing.plural(len(found), 'problem')}"
        print(f"{drawing.plural(done, 'snapshot')} verified, {whole}{rest}")
    return Exit.FAILED if found else Exit.OK


def _restore(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask

    folder = _folder(args)
    told = _meaning(args, folder)
    if args.dry_run:
        _tell(args, told, dry=True)
        return Exit.OK
    if not args.yes and sys.stdin.isatty():
        print("\n".join(lines_of_move(told, dry=True)))
        if input("go back to it? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was changed")
            return Exit.OK
    answer = ask(args, args.profile, "restore", {"snapshot": str(folder) if os.sep in args.name else args.name}) or {}
    _tell(args, answer, dry=False)
    return Exit.OK


def _meaning(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a restore would do, from the same code, by this process and without a lock."""
    from daemon import going_back, ledger
    from daemon.cli.reading import opened, world_of

    home = home_of(args)
    try:
        ledger.open_profile(home.profile(args.profile).ledger, write=False).close()
    except ledger.Absent:
        return {"refilled": True}
    with opened(home, args.profile) as db:
        world = world_of(home, args.profile, db, settings_of(args))
        if going_back.is_empty(world):
            return {"refilled": True}
        try:
            return going_back.dry_run(world, going_back.target_of(world, folder))
        except ValueError as error:
            raise UserError(str(error)) from None


def _tell(args: argparse.Namespace, told: dict[str, Any], *, dry: bool) -> None:
    if args.json:
        print_json({"profile": args.profile, "dry_run": dry, **told})
    else:
        print("\n".join(lines_of_move(told, dry=dry)))


def lines_of_move(told: dict[str, Any], *, dry: bool) -> Iterator[str]:
    if told.get("refilled"):
        yield "nothing has happened in this home: the snapshot's files and its ledger " + (
            "would be put here" if dry else "are here now")  # fmt: skip
        return
    would = "would " if dry else ""
    where = f"v{told['version']}, step {told['step']}" if told["version"] else "the base, untrained"
    of = f" of line {told['line']}" if told.get("line") else ""
    yield f"the head{of} {would}go{'' if dry else 'es'} back to {where}"
    if told["undone"]:
        undone = ", ".join(f"v{one}" for one in told["undone"])
        yield f"  no longer in it: {undone}; their files stay until they are pruned"
    if told["redone"]:
        yield f"  in it again: {', '.join(f'v{one}' for one in told['redone'])}"
    if told["untrained"]:
        number = drawing.plural(told["untrained"], "memory")
        if told.get("held"):
            yield f"  {number} {would}be held until you say so: engramd status, then retry or discard each batch"
        else:
            yield f"  {number} {would}wait again, and train once more with the next job"
        some = told["batches"][:10]
        more = f" and {len(told['batches']) - 10} more" if len(told["batches"]) > 10 else ""
        yield f"    of {', '.join(some)}{more}"
        if not told.get("held"):
            yield "    one that should not: engramd forget --batch N, or engramd pause before it"
    else:
        yield "  no memory has to be trained again"
    yield "  kept: every ledger row, file and version; nothing is removed"


def _export(args: argparse.Namespace) -> int:
    from daemon import snapshots
    from daemon.cli.reading import opened_if_there
    from daemon.ledger import checks

    folder, target = _folder(args), Path(args.to).expanduser()
    if target.exists():
        raise UserError(f"{target} is there already: name a folder that is not", Exit.USAGE)
    try:
        with opened_if_there(home_of(args), args.profile) as db:
            redactions = checks.redactions(db) if db else {}
        size = snapshots.export(
            folder, target, lambda sha256: checks.hashes_after(redactions, sha256),
            pulse=lambda: _progress(f"copying {folder.name}"),
        )  # fmt: skip
    except snapshots.Damaged as damage:
        raise UserError(str(damage)) from None
    except OSError as error:
        raise UserError(f"{error.filename or target} could not be written: {error.strerror}") from None
    _progress("")
    if args.json:
        print_json({"snapshot": folder.name, "path": str(target), "size": size})
    else:
        print(f"{shown(size)} copied to {target}; to use it: engramd snapshot restore {target}")
    return Exit.OK


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UserError(f"--max-duration {text}: a time looks like 10m, 90s or 2h", Exit.USAGE)
    return float(int(found[1]) * _SECONDS[found[2]])


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
