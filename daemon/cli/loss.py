"""`engramd loss`: the loss over all jobs of a chain, with their borders: it should go on smoothly there."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.home import ProfilePaths

_NEAR = 5  # steps on each side of a border that its numbers are the mean of


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "loss")
    profile_option(parser)
    parser.add_argument("--chain", type=whole, metavar="N", help="another chain than the head's")
    parser.add_argument("--raw", action="store_true", help="every step instead of the smoothed curve")
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_loss)


def _loss(args: argparse.Namespace) -> int:
    from daemon.cli.reading import opened

    home = home_of(args)
    with opened(home, args.profile) as db:
        found = facts(db, home.profile(args.profile), args.chain)
    if args.json:
        print_json({"profile": args.profile} | found)
        return Exit.OK
    if not found["points"]:
        raise UserError("no job of this chain has told of its losses yet", Exit.NOTHING)
    print("\n".join(_drawn(found, raw=args.raw)))
    return Exit.OK


def facts(db: "ledger.Database", paths: "ProfilePaths", chain: int | None = None) -> dict[str, Any]:
    """The points and borders of a chain, out of its promoted jobs' folders."""
    from daemon import progress_tail
    from daemon.ledger import jobs

    if chain is None:
        head = jobs.get_head(db)
        if head is None:
            raise UserError("nothing was trained yet, so there is no loss to show: engramd status", Exit.NOTHING)
        chain = int(head["chain"])
    elif jobs.get_chain(db, chain) is None:
        raise UserError(f"there is no chain {chain}", Exit.NOTHING)
    points, borders = [], []
    previous: list[float] = []
    previous_job = None
    for job in jobs.promoted_of_chain(db, chain):
        told = list(progress_tail.steps(paths.jobs / str(job["folder"])))
        points += [{"step": line["step"], "loss": line["loss"], "job": job["id"]} for line in told]
        losses = [float(line["loss"]) for line in told]
        if previous_job is not None:
            borders.append({
                "step": job["parent_step"], "job_before": previous_job, "job_after": job["id"],
                "last_before": _mean(previous[-1:]), "first_after": _mean(losses[:1]),
                "mean_before": _mean(previous[-_NEAR:]), "mean_after": _mean(losses[:_NEAR]),
            })  # fmt: skip
        previous, previous_job = losses, job["id"]
    return {"chain": chain, "points": points, "borders": borders}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _drawn(found: dict[str, Any], *, raw: bool) -> list[str]:
    from daemon.cli.plotting import curve, smoothed

    steps = [point["step"] for point in found["points"]]
    losses = [point["loss"] for point in found["points"]]
    begins: dict[int, float] = {}
    of_job: dict[int, list[float]] = {}
    for point in found["points"]:
        begins.setdefault(point["job"], point["step"])
        of_job.setdefault(point["job"], []).append(point["loss"])
    reach = max(1, len(steps) // 25)  # each job by itself: smoothing over a border would hide a jump
    shown = losses if raw else [loss for told in of_job.values() for loss in smoothed(told, reach)]
    borders = [(step, f"job {job}") for job, step in begins.items()]
    lines = [f"loss of chain {found['chain']}, {drawing.plural(len(steps), 'step')} in "
             f"{drawing.plural(len(begins), 'job')}{'' if raw else ', smoothed'}", ""]  # fmt: skip
    lines += curve(list(zip(steps, shown, strict=True)), borders, drawing.width())
    lines.append(f"{'':8}steps {steps[0]} to {steps[-1]}; last loss {losses[-1]:.4f}")
    if found["borders"]:
        head = ("border", "at step", f"mean of {_NEAR} before", f"mean of {_NEAR} after", "last", "first")
        rows = [
            (f"job {one['job_before']} to {one['job_after']}", one["step"], _four(one["mean_before"]),
             _four(one["mean_after"]), _four(one["last_before"]), _four(one["first_after"]))
            for one in found["borders"]
        ]  # fmt: skip
        lines += ["", drawing.table(head, rows)]
    return lines


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
