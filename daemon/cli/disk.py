"""`engramd disk`: what uses how much, what is free, and what would free how much."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.home import Home
    from daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class _Place:
    profile: str  # empty: of all
    what: str
    path: Path
    parts: tuple[Path, ...] = ()  # what lies there; empty: all


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "disk", usage="engramd disk [--profile NAME] [--json]")
    parser.add_argument("--profile", metavar="NAME", help="only this one (default: all)")
    parser.add_argument("--json", action="store_true", help="keys: free, reserve, uses, prune, pinned")
    parser.set_defaults(run=_disk)


def _disk(args: argparse.Namespace) -> int:
    from daemon import disk
    from daemon.cli.reading import profiles

    home, settings = home_of(args), settings_of(args)
    names = profiles(home, args.profile)
    uses = _uses([*_places(home, names), *_bases(settings, names)])
    plans = {name: plan for name in names if (plan := _plan(home, settings, name)) is not None}
    prune = {name: plan.freed for name, plan in plans.items()}
    pinned = [
        {"profile": name, "kind": one.kind, "name": one.name, "size": one.size}
        for name, plan in plans.items() for one in plan.entries if one.reasons == ("pinned",)
    ]  # fmt: skip
    free, reserve = disk.free(home.root), settings.disk.reserve_mb * disk.MB
    if args.json:
        print_json({"free": free, "reserve": reserve, "uses": uses, "prune": prune, "pinned": pinned})
        return Exit.OK
    rows = [
        [one["profile"] or "-", one["what"], shown(one["size"]), shown(one["shared"]) if one["shared"] else "",
         one["path"]]
        for one in uses
    ]  # fmt: skip
    print(drawing.table(["profile", "what", "size", "shared", "where"], rows))
    print(f"{shown(sum(one['size'] for one in uses))} in all; what several names share counts once, where it is first. "
          f"{shown(free)} free, of which {shown(reserve)} are kept free (disk.reserve_mb)")  # fmt: skip
    for name, freed in prune.items():
        print(f"engramd prune --profile {name} would free {shown(freed)}")
    for one in pinned:
        name = f"v{one['name']}" if one["kind"] == "version" else one["name"]
        print(f"engramd unpin {one['kind']} {name} --profile {one['profile']} would let a prune free "
              f"{shown(one['size'])} more")  # fmt: skip
    return Exit.OK


def _places(home: "Home", names: list[str]) -> list[_Place]:
    """What is used for itself comes before the snapshots, which mostly share its bytes."""
    from daemon import snapshots
    from daemon.snapshotting import folder_of

    found: list[_Place] = []
    for name in names:
        paths = home.profile(name)
        books = tuple(sorted(paths.root.glob("ledger.db*")))
        found += [
            _Place(name, "checkpoints", paths.chains), _Place(name, "jobs", paths.jobs),
            _Place(name, "versions", paths.root / "models"), _Place(name, "ledger", paths.ledger, books),
            _Place(name, "files that were dropped", paths.archive), _Place(name, "files not read yet", paths.claimed),
            _Place(name, "files that failed", paths.failed),
        ]  # fmt: skip
    for name in names:
        top = folder_of(home, name)
        if taken := snapshots.names_in(top):
            found.append(_Place(name, f"{len(taken)} snapshots", top, tuple(top / one for one in taken)))
    return [*found, _Place("", "log", home.log.parent),
            _Place("", "requests and schedule", home.database, tuple(sorted(home.state.glob("home.db*"))))]  # fmt: skip


def _bases(settings: "Settings", names: list[str]) -> list[_Place]:
    """The base models of these profiles, where they are on this machine; that of the checkout itself not."""
    from trainer import base_files

    found: list[_Place] = []
    for base in dict.fromkeys(settings.recipe(name).base_model for name in names):
        try:
            folder = base_files.resolve(base)
        except base_files.BaseMissing:
            continue
        if not base.startswith(base_files.BUILTIN_PREFIX):
            files = tuple(path.resolve() for path in sorted(folder.iterdir()))  # the cache's are links
            found.append(_Place("", f"base model {base}", folder, files))
    return found


def _uses(places: list[_Place]) -> list[dict[str, Any]]:
    """`size` counts what has several names where it is met first, `shared` is what was met before."""
    from daemon import disk

    sizes = disk.used_bytes(path for place in places for path in place.parts or (place.path,))
    found = []
    for place in places:
        if place.path.exists():
            parts = place.parts or (place.path,)
            own, whole = sum(sizes[path] for path in parts), sum(disk.used_bytes(parts).values())
            found.append({"profile": place.profile, "what": place.what, "path": str(place.path), "size": own,
                          "shared": whole - own})  # fmt: skip
    return found


def _plan(home: "Home", settings: "Settings", name: str) -> Any:
    """What a prune would do; None where there is no ledger yet, or none that can be read: what uses the disk must be
    seen then, too."""
    from daemon import pruning
    from daemon.cli.reading import opened_if_there, world_of
    from daemon.schedule import zone_of
    from daemon.service import utc_now

    try:
        with opened_if_there(home, name) as db:
            if db is None:
                return None
            return pruning.plan(world_of(home, name, db, settings), utc_now(), zone_of(settings.schedule.timezone))
    except UserError as error:
        print(f"engramd: {error}", file=sys.stderr)
        return None
