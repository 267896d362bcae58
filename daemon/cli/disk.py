"""`engramd disk`: what uses how much, what is free, and what would free how much."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.home import Home


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "disk", usage="engramd disk [--profile NAME] [--json]")
    parser.add_argument("--profile", metavar="NAME", help="only this one (default: all)")
    parser.add_argument("--json", action="store_true", help="keys: free, reserve, uses, prune")
    parser.set_defaults(run=_disk)


def _disk(args: argparse.Namespace) -> int:
    from daemon import disk
    from daemon.cli.reading import profiles

    home, settings = home_of(args), settings_of(args)
    names = profiles(home, args.profile)
    places = _places(home, names)
    sizes = disk.used_bytes(path for _, _, path in places)
    uses: list[dict[str, Any]] = [{"profile": profile, "what": what, "path": str(path), "size": sizes[path]}
            for profile, what, path in places if path.exists()]  # fmt: skip
    prune = {name: freed for name in names if (freed := _prunable(args, home, name)) is not None}
    free, reserve = disk.free(home.root), settings.disk.reserve_mb * disk.MB
    if args.json:
        print_json({"free": free, "reserve": reserve, "uses": uses, "prune": prune})
        return Exit.OK
    rows = [[one["profile"] or "-", one["what"], shown(one["size"]), one["path"]] for one in uses]
    print(drawing.table(["profile", "what", "size", "where"], rows))
    print(f"{shown(sum(one['size'] for one in uses))} in all, linked files counted once; {shown(free)} free, of which "
          f"{shown(reserve)} are kept free (disk.reserve_mb)")  # fmt: skip
    for name, freed in prune.items():
        print(f"engramd prune --profile {name} would free {shown(freed)}")
    return Exit.OK


def _places(home: "Home", names: list[str]) -> list[tuple[str, str, Path]]:
    """What is used for itself comes before the snapshots, which mostly share its bytes."""
    found: list[tuple[str, str, Path]] = []
    for name in names:
        paths = home.profile(name)
        found += [
            (name, "checkpoints", paths.chains), (name, "jobs", paths.jobs), (name, "versions", paths.root / "models"),
            (name, "ledger", paths.ledger), (name, "ledger, not written back yet", paths.root / "ledger.db-wal"),
            (name, "files that were dropped", paths.archive), (name, "files not read yet", paths.claimed),
            (name, "files that failed", paths.failed),
        ]  # fmt: skip
    return [*found, ("", "snapshots, what only they hold", home.snapshots), ("", "log", home.log.parent)]


def _prunable(args: argparse.Namespace, home: "Home", name: str) -> Any:
    from daemon import ledger, pruning
    from daemon.cli.reading import opened, world_of
    from daemon.schedule import zone_of
    from daemon.service import utc_now

    try:
        ledger.open_profile(home.profile(name).ledger, write=False).close()
    except ledger.Absent:
        return None
    settings = settings_of(args)
    with opened(home, name) as db:
        return pruning.plan(world_of(home, name, db, settings), utc_now(), zone_of(settings.schedule.timezone)).freed
