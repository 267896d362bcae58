"""`engramd cycle`: a job over selected memories, most of them trained before; or what it would be."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_MODES = ("dual", "emulation", "agent")


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "cycle",
        usage="engramd cycle [--foundation | --monthly] [--days-recent N] [--old-samples N] [--max N] [--mode MODE] "
        "[--dry-run] [--wait] [--profile NAME] [--json]",
        description="monthly: recent memories and a seeded draw of old ones, on the chain as it is. foundation: all "
        "memories, on a new chain from the base. Without either: a foundation if there is no version yet.",
    )  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--foundation", action="store_const", const="foundation", dest="kind", help="all memories, anew")
    kind.add_argument("--monthly", action="store_const", const="monthly", dest="kind", help="recent and some old ones")
    parser.add_argument("--method", choices=("lora", "full"), help="must be that of the nights (training.method)")
    parser.add_argument("--days-recent", type=whole, metavar="N", help="recent (setting: cycle.days_recent)")
    parser.add_argument("--old-samples", type=whole, metavar="N", help="how many old ones (setting: cycle.old_samples)")
    parser.add_argument("--max", type=whole, metavar="N", help="at most so many memories; old ones are left out first")
    parser.add_argument("--mode", choices=_MODES, help="only memories of this cognitive mode")
    parser.add_argument("--dataset-builder", choices=("advanced", "classic"), help="(setting: cycle.dataset_builder)")
    parser.add_argument("--strict", action="store_true", help="refuse where the quality misses its limits")
    parser.add_argument("--dry-run", action="store_true", help="show dataset, steps and disk, and train nothing")
    parser.add_argument("--wait", action="store_true", help="wait for its end (without a daemon it is done here)")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_cycle)


def _cycle(args: argparse.Namespace) -> int:
    from daemon import cycles
    from daemon.cli.reading import opened
    from daemon.ledger import jobs

    settings = settings_of(args)
    most = args.max
    if most is None and args.mode and not args.kind and args.days_recent is None and args.old_samples is None:
        most = settings.cycle.max_samples  # the origin's cap of cycles that are asked for by a mode alone
    with opened(home_of(args), args.profile) as db:
        kind = cycles.kind_of(args.kind, any_version=jobs.get_head(db) is not None)
    asked: dict[str, Any] = {
        "kind": kind, "method": args.method, "days_recent": args.days_recent, "old_samples": args.old_samples,
        "max_samples": most, "mode": args.mode, "dataset_builder": args.dataset_builder,
    }  # fmt: skip
    if why := cycles.refusal(settings, args.profile, asked):
        raise UserError(why, Exit.USAGE)
    found = None
    if args.dry_run or args.strict:
        found = _plan(args, kind, most)
    if args.dry_run:
        assert found is not None
        if args.json:
            print_json(found)
        else:
            _tell(found)
        return Exit.OK if found["samples"] else Exit.NOTHING
    if found is not None and found["quality"]["verdict"] == "no-go":
        raise UserError("; ".join(found["quality"]["reasons"]) + ": nothing was trained (--strict)", Exit.FAILED)
    from daemon.cli.asking import ask

    told = ask(args, args.profile, "cycle", asked, wait=args.wait)
    if args.json:
        print_json({"profile": args.profile, "kind": kind, **(told or {})})
    elif told is None:
        print(f"a {kind} cycle is asked for; engramd status shows how it goes")
    else:
        version = f", v{told['version']}" if told["version"] else ""
        print(f"job {told['job']} {told['state']}{version}: {told['reason']}")
    return Exit.OK if told is None or told["state"] == "promoted" else Exit.FAILED


def _plan(args: argparse.Namespace, kind: str, most: int | None) -> dict[str, Any]:
    """The dataset as `engramd preview` shows it, with the disk that the job takes."""
    from daemon import disk
    from daemon.cli import preview
    from trainer import base_files

    args.foundation, args.monthly, args.max, args.out = kind == "foundation", kind == "monthly", most, None
    found = preview.facts(args)
    recipe = settings_of(args).recipe(args.profile)
    try:
        size = disk.checkpoint_bytes(recipe, base_files.resolve(recipe.base_model))
    except base_files.BaseMissing:
        size = 0
    steps = found["plan"]["steps"] if found["plan"] else 0
    return {**found, "kind": kind, "method": recipe.method, "steps": steps,
            "disk_bytes": disk.job_bytes(size, steps, recipe) if size else None}  # fmt: skip


def _tell(found: dict[str, Any]) -> None:
    from daemon.cli import preview

    print("\n".join(preview.lines(found)))
    size = "unknown" if found["disk_bytes"] is None else shown(found["disk_bytes"])
    print(f"{found['kind']} cycle, method {found['method']}: {found['steps']} steps, about {size} of disk at work")
