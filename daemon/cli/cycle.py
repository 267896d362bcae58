"""`engramd cycle`: a job over selected memories, most of them trained before; or what it would be."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.sizes import shown
from daemon.rules.lines import MODES

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.world import World


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "cycle",
        usage="engramd cycle [--foundation | --monthly] [--method METHOD] [--mode MODE] [--base-model MODEL] "
        "[--where WHERE] [--days-recent N] [--old-samples N] [--max N] [--again JOB] [--strict] [--dry-run] [--wait] "
        "[--profile NAME] [--json]",
        description="monthly: recent memories and a seeded draw of old ones, on the chain as it is. foundation: all "
        "memories, on a new chain from the base. Without either: a foundation if there is no version yet. With --mode, "
        "or another method than the nights', a line of its own is trained, with its own head: it learns nothing new, "
        "and engramd chat --line NAME talks to it.",
    )  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--foundation", action="store_const", const="foundation", dest="kind", help="all memories, anew")
    kind.add_argument("--monthly", action="store_const", const="monthly", dest="kind", help="recent and some old ones")
    parser.add_argument("--method", choices=("lora", "full"), help="another than training.method is a line of its own")
    parser.add_argument("--base-model", metavar="MODEL", help="a new chain on this base, and the nights go on with it")
    parser.add_argument("--where", choices=("local", "ssh", "runpod"), help="on which machine (settings: [compute])")
    parser.add_argument("--again", type=whole, metavar="JOB", help="the memories of an earlier job once more")
    parser.add_argument("--days-recent", type=whole, metavar="N", help="recent (setting: cycle.days_recent)")
    parser.add_argument("--old-samples", type=whole, metavar="N", help="how many old ones (setting: cycle.old_samples)")
    parser.add_argument("--max", type=whole, metavar="N", help="at most so many memories; old ones are left out first")
    parser.add_argument("--mode", choices=MODES, help="a line for memories of this cognitive mode")
    parser.add_argument("--dataset-builder", choices=("advanced", "classic"), help="(setting: cycle.dataset_builder)")
    parser.add_argument("--strict", action="store_true", help="refuse where the quality misses its limits")
    parser.add_argument("--dry-run", action="store_true", help="show dataset, steps, memory, disk, time; train nothing")
    parser.add_argument("--wait", action="store_true", help="wait for its end (without a daemon it is done here)")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_cycle)


def _cycle(args: argparse.Namespace) -> int:
    from daemon import cycles
    from daemon.cli.reading import opened, world_of
    from daemon.service import utc_now

    settings, home = settings_of(args), home_of(args)
    most = args.max
    flags = (args.kind, args.days_recent, args.old_samples, args.again)
    if most is None and all(flag is None for flag in flags):
        most = settings.cycle.max_samples  # the origin's cap of cycles that say nothing of what they take
    asked: dict[str, Any] = {
        "kind": args.kind, "method": args.method, "days_recent": args.days_recent, "old_samples": args.old_samples,
        "max_samples": most, "mode": args.mode, "dataset_builder": args.dataset_builder,
        "base_model": args.base_model, "again": args.again, "where": args.where,
    }  # fmt: skip
    wanted = {**asked, "where": None} if args.dry_run else asked  # costs are reckoned before anything is set up
    if why := cycles.refusal(settings, args.profile, wanted):
        raise UserError(why, Exit.USAGE)
    with opened(home, args.profile) as db:
        world = world_of(home, args.profile, db, settings)
        try:
            found = cycles.cycle_of(world, asked, utc_now())
            told = _plan(world, asked) if args.dry_run or args.strict else None
        except ValueError as error:
            raise UserError(str(error)) from None
    asked["kind"] = found.kind
    if args.dry_run:
        assert told is not None
        _print(args, told)
        return Exit.OK if told["samples"] else Exit.NOTHING
    if told is not None and told["samples"] and told["no_plan"]:
        raise UserError(f"{told['no_plan']}: nothing was trained (--strict)", Exit.FAILED)
    if told is not None and told["quality"]["verdict"] == "no-go":
        raise UserError("; ".join(told["quality"]["reasons"]) + ": nothing was trained (--strict)", Exit.FAILED)
    return _ask(args, asked, found.kind, found.line)


def _ask(args: argparse.Namespace, asked: dict[str, Any], kind: str, line: str) -> int:
    from daemon.cli.asking import ask

    told = ask(args, args.profile, "cycle", asked, wait=args.wait)
    if args.json:
        print_json({"profile": args.profile, "kind": kind, "line": line, **(told or {})})
    elif told is None:
        of = f" of line {line}" if line else ""
        print(f"a {kind} cycle{of} is asked for; engramd status shows how it goes")
    else:
        version = f", v{told['version']}" if told["version"] else ""
        print(f"job {told['job']} {told['state']}{version}: {told['reason']}")
        for which in ("recent", "old"):
            if number := told.get(f"left_out_{which}"):
                print(f"{number:,} {which} memories were not selected")
    return Exit.OK if told is None or told["state"] == "promoted" else Exit.FAILED


def _plan(world: "World", asked: dict[str, Any]) -> dict[str, Any]:
    """The dataset as `engramd preview` shows it, with what the job takes of disk, memory and time."""
    from daemon import anchors, cycles, preview
    from daemon.dataset import Dataset
    from daemon.ledger import memories
    from daemon.service import utc_now

    now = utc_now()
    cycle, material = cycles.cycle_of(world, asked, now), cycles.select(world, 0, asked, now)
    assert material.cycle is not None
    chosen = {key: material.cycle[key] for key in ("since", "recent", "old", "left_out_recent", "left_out_old", "mode")}
    dataset = Dataset(
        world.db, world.curation, world.prompts, world.seed, world.settings.curation.system_prompt, material.builder
    )
    try:
        mixed = cycles.mixed_of(world, cycle, dataset)
    except anchors.Wrong as wrong:
        raise UserError(str(wrong)) from None
    found = preview.report(
        dataset, material.rows, cycle.recipe, world.home.state, cycle=cycle.kind, new=chosen["recent"], tell=_tell,
        mixed=mixed,
    )  # fmt: skip
    missing = world.settings.training.mix.anchor and found["samples"] and not found["anchors"]
    return {
        "profile": world.name, "selection": {"what": f"{cycle.kind} cycle", "cycle": cycle.kind, **chosen},
        **found, "left_out_before": memories.reasons(world.db), "kind": cycle.kind, "line": cycle.line,
        "method": cycle.recipe.method, "base_model": cycle.recipe.base_model, "new_chain": cycle.anew,
        "exact": found["plan"] is not None and not missing,
        "steps": found["plan"]["steps"] if found["plan"] else 0, **_takes(world, asked, cycle, found["plan"]),
        **_costs(world, asked, cycle, found["plan"], now),
    }  # fmt: skip


def _costs(world: "World", asked: dict[str, Any], cycle: Any, plan: dict[str, Any] | None, now: str) -> dict[str, Any]:
    """Where it would be trained, and on a rented pod for how much."""
    from daemon import budgets, ledger, sending

    where = sending.where(world.settings, cycle.recipe, {"where": asked["where"]})
    if where != "runpod":
        return {"where": where, "costs": None}
    try:
        home_db = ledger.open_home(world.home.database, write=False)
    except ledger.Absent:
        home_db = None
    try:
        told = budgets.outlook(home_db, world.db, world.name, cycle.recipe, plan["tokens"] if plan else None,
                               world.settings.compute.runpod, world.settings.jobs.timeout_hours, now)  # fmt: skip
    finally:
        if home_db is not None:
            home_db.close()
    return {"where": where, "costs": told}


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)


def _takes(world: "World", asked: dict[str, Any], cycle: Any, plan: dict[str, Any] | None) -> dict[str, Any]:
    """Disk, memory and time here, each None where it cannot be known."""
    from daemon import disk, estimates, sending
    from trainer import base_files

    recipe = cycle.recipe
    where = estimates.device(os.environ.get("ENGRAMD_DEVICE", "auto"))
    told: dict[str, Any] = {"device": {"kind": where.kind, "name": where.name, "total_bytes": where.total},
                            "disk_bytes": None, "memory": None, "cannot": None}  # fmt: skip
    speed = estimates.speed(world.db, recipe)
    told["tokens_per_second"] = speed
    told["seconds"] = plan["tokens"] / speed if plan and speed else None
    try:
        base = base_files.resolve(recipe.base_model)
    except base_files.BaseMissing as missing:
        return {**told, "cannot": str(missing)}
    size = disk.checkpoint_bytes(recipe, base)
    told["disk_bytes"] = disk.job_bytes(size, plan["steps"], recipe) if plan else None
    needed = estimates.memory(recipe, base, where.kind, plan["longest"] if plan else None)
    told["memory"] = needed.told() if needed else None
    if sending.where(world.settings, recipe, {"where": asked["where"]}) == "local":
        told["cannot"] = estimates.cannot_hold(recipe, base, where)
    return told


def _print(args: argparse.Namespace, found: dict[str, Any]) -> None:
    from daemon.cli import preview

    if args.json:
        print_json(found)
    else:
        print("\n".join([*preview.lines(found), *_lines(found)]))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    from daemon.estimates import shown as gibs

    of = f", line {found['line']}" if found["line"] else ""
    yield f"\n{found['kind']} cycle{of}, method {found['method']}, base model {found['base_model']}"
    if found["new_chain"]:
        yield f"a new chain: {found['new_chain']}"
    size = "unknown" if found["disk_bytes"] is None else shown(found["disk_bytes"])
    text = f", with {drawing.plural(found['anchors'], 'sample')} of general text" if found["anchors"] else ""
    yield f"{'steps':<10}{found['steps']:,}{text}"
    if found["plan"] and not found["exact"]:
        yield f"{'':<10}without the general text (training.mix.anchor), which a job of its own makes first"
    yield f"{'disk':<10}about {size} at work"
    if found["memory"] is None:
        yield f"{'memory':<10}unknown"
    else:
        where, needed = found["device"], found["memory"]
        has = f", which has {gibs(where['total_bytes'])}" if where["total_bytes"] else ""
        yield f"{'memory':<10}about {gibs(needed['total_bytes'])} of {where['name']}{has}"
        parts = ", ".join(f"{part} {gibs(size)}" for part, size in needed["parts"].items())
        yield f"{'':<10}{parts}"
        if needed["evictable_bytes"]:
            yield f"{'':<10}the optimizer's part may lie in the machine's own memory"
    if found["seconds"] is None:
        yield f"{'time':<10}unknown: no job of this home has trained this base by this method yet"
    else:
        yield (f"{'time':<10}about {drawing.duration(found['seconds'])}, at {found['tokens_per_second']:,.0f} tokens a "
               "second as in the last jobs")  # fmt: skip
    if found["costs"]:
        yield from _cost_lines(found["costs"])
    if found["cannot"]:
        yield str(found["cannot"])


def _cost_lines(told: dict[str, Any]) -> Iterator[str]:
    """The origin's table (monthly training, "Per-Run Costs")."""
    from daemon.rules.costs import shown as dollars

    yield f"{'where':<10}a rented pod, at {dollars(told['price_per_hour'])} an hour"
    if not told["rows"]:
        yield f"{'costs':<10}unknown: no job has been measured yet; compute.runpod.tokens_per_second says it by hand"
    elif told["measured"] == "here":
        yield (f"{'':<10}reckoned by this machine's own pace: a pod's is known after its first job, or by "
               "compute.runpod.tokens_per_second")  # fmt: skip
    for number, row in enumerate(told["rows"]):
        time = drawing.duration(row["seconds"]) if row["seconds"] is not None else ""
        yield f"{'' if number else 'costs':<10}{row['what']:<28}{time:>14}{dollars(row['dollars']):>12}"
    spent, month = dollars(told["spent_this_month"]), dollars(told["budget_per_month"])
    yield f"{'month':<10}{spent} of {month} are spent or reserved; a job may cost {dollars(told['budget_per_job'])}"
    if told["waits"]:
        yield f"{'':<10}it would wait: {told['waits']}"
