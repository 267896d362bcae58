"""`engramd jobs` lists the jobs; `engramd job ID` shows one in full."""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.home import ProfilePaths


def register(subparsers: "Subparsers") -> None:
    listing = command(subparsers, "jobs")
    profile_option(listing)
    listing.add_argument("-n", type=whole, default=20, metavar="N", help="the newest N (default: 20; 0: all)")
    listing.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    listing.set_defaults(run=_jobs)
    one = command(subparsers, "job")
    one.add_argument("job", type=whole, metavar="ID", help="its number, as engramd jobs shows it")
    profile_option(one)
    one.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    one.set_defaults(run=_job)


def _jobs(args: argparse.Namespace) -> int:
    from daemon.cli.reading import opened
    from daemon.ledger import jobs

    home = home_of(args)
    with opened(home, args.profile) as db:
        found = [_fact(db, home.profile(args.profile), row) for row in jobs.listing(db, args.n or -1)]
    if args.json:
        print_json({"profile": args.profile, "jobs": found})
        return Exit.OK
    rows = [
        (one["id"], one["kind"], one["state"], one["steps"], one["samples"], one["memories"].get("new", 0),
         _loss(one["last_loss"]), drawing.duration(one["seconds"]) if one["seconds"] is not None else "",
         f"v{one['version']}" if one["version"] else "", one["reason"] or "")
        for one in found
    ]  # fmt: skip
    head = ("id", "kind", "state", "steps", "samples", "memories", "loss", "took", "version", "reason")
    print(drawing.table(head, rows))
    return Exit.OK


def _fact(db: "ledger.Database", paths: "ProfilePaths", row: dict[str, Any]) -> dict[str, Any]:
    """The keys of `jobs --json`; `job --json` has more."""
    from daemon.ledger import jobs

    result = json.loads(row["result"]) if row["result"] else {}
    version = jobs.version_of_job(db, row["id"])
    keys = ("id", "kind", "state", "reason", "chain", "parent_step", "steps", "samples", "attempts", "crashes",
            "kills", "exit_code", "created_at", "started_at", "finished_at")  # fmt: skip
    return {key: row[key] for key in keys} | {
        "batches": jobs.batches_of(db, row["id"]),
        "memories": jobs.uses_of(db, row["id"]),
        "version": version["id"] if version else None,
        "last_loss": result.get("last_loss"),
        "seconds": _between(row["started_at"], row["finished_at"]),
        "folder": str(paths.jobs / str(row["folder"])),
    }


def _job(args: argparse.Namespace) -> int:
    from daemon.cli.reading import one_job, opened
    from daemon.cli.running import describe

    home = home_of(args)
    paths = home.profile(args.profile)
    with opened(home, args.profile) as db:
        row = one_job(db, args.job, args.profile)
        found = _fact(db, paths, row)
    result = json.loads(row["result"]) if row["result"] else {}
    found |= {
        "profile": args.profile,
        "spec_sha256": row["spec_sha256"],
        "parent_sha256": row["parent_sha256"],
        "plan": _json_of(Path(found["folder"]) / "plan.json"),
        "progress": describe(paths, row) if row["state"] in ("frozen", "running") else None,
        "result": {key: result.get(key) for key in _RESULT_KEYS} if result else None,
        "metrics": result.get("metrics") or {},
        "notices": result.get("notices") or [],
    }
    if args.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    return Exit.OK


_RESULT_KEYS = ("checkpoint", "checkpoint_sha256", "start_step", "global_step", "steps", "samples_seen",
                "tokens", "last_loss", "seconds")  # fmt: skip


def _lines(one: dict[str, Any]) -> list[str]:
    start = f"checkpoint-{one['parent_step']} of chain {one['chain']}" if one["parent_sha256"] else "the base model"
    uses = ", ".join(f"{number} {use}" for use, number in one["memories"].items())
    state = one["state"] + (f", v{one['version']}" if one["version"] else "")
    pairs: list[tuple[str, object]] = [
        ("job", f"{one['id']} ({one['kind']}) of {one['profile']}"),
        ("state", state),
        ("reason", one["reason"]),
        ("batches", ", ".join(map(str, one["batches"]))),
        ("memories", uses),
        ("starts from", start),
        ("steps", f"{one['steps']} over {drawing.plural(one['samples'], 'sample')}, epochs counted"),
        ("attempts", f"{one['attempts']} ({one['crashes']} crashed, {one['kills']} killed)"),
        ("frozen at", one["created_at"]),
        ("started at", one["started_at"]),
        ("finished at", one["finished_at"]),
        ("took", drawing.duration(one["seconds"]) if one["seconds"] is not None else None),
    ]
    pairs += [(name, _listed(one[name])) for name in ("plan", "result", "metrics")]
    pairs += [("notice", notice) for notice in one["notices"]]
    pairs += [("folder", one["folder"])]
    if one["progress"]:
        from daemon.cli.running import line

        pairs.insert(2, ("progress", line(one["progress"])))
    return [f"{name:<12} {value}" for name, value in pairs if value not in (None, "")]


def _listed(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {_short(value)}" for key, value in (values or {}).items() if value is not None)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _between(started: str | None, finished: str | None) -> float | None:
    if not started or not finished:
        return None
    return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()


def _json_of(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
