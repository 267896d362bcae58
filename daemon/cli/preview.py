"""`engramd preview`: the next job's dataset, or a cycle's, looked at before anything is trained."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.rules.selection import Window

_MODES = ("dual", "emulation", "agent", "environment")


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "preview")
    profile_option(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--foundation", action="store_true", help="all memories, instead of what waits")
    kind.add_argument("--monthly", action="store_true", help="recent memories and a draw of the old ones")
    parser.add_argument("--days-recent", type=whole, metavar="N", help="recent (setting: cycle.days_recent)")
    parser.add_argument("--old-samples", type=whole, metavar="N", help="how many old ones (setting: cycle.old_samples)")
    parser.add_argument("--max", type=whole, metavar="N", help="at most so many memories; old ones are left out first")
    parser.add_argument("--mode", choices=_MODES, help="only memories of this cognitive mode")
    parser.add_argument("--dataset-builder", choices=("advanced", "classic"), help="(setting: cycle.dataset_builder)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the samples there, one JSON object a line")
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_preview)


def _preview(args: argparse.Namespace) -> int:
    found = facts(args)
    if args.json:
        print_json(found)
    else:
        print("\n".join(lines(found)))
    return Exit.OK if found["samples"] else Exit.NOTHING


def _window(args: argparse.Namespace, settings: Any) -> "Window | None":
    from daemon.rules.selection import Window

    cycle = settings.cycle
    by_hand = args.days_recent is not None or args.old_samples is not None
    if args.foundation:
        return Window(None, 0, args.max, args.mode)
    if not args.monthly and not by_hand:
        return None
    days = cycle.days_recent if args.days_recent is None else args.days_recent
    old = cycle.old_samples if args.old_samples is None else args.old_samples
    return Window(days, old, args.max, args.mode)


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints."""
    from daemon import preview
    from daemon.cli.reading import opened
    from daemon.dataset import Dataset
    from daemon.ledger import jobs, memories
    from daemon.service import utc_now
    from daemon.settings import SettingsError
    from daemon.world import rules_of

    settings, home = settings_of(args), home_of(args)
    try:
        curation, prompts = rules_of(home)
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    with opened(home, args.profile) as db:
        seed = int(jobs.get_meta(db, "seed") or settings.seed(args.profile))
        most = args.max if args.max is not None else settings.jobs.max_memories_per_job
        seqs, chosen = preview.rows_of(db, _window(args, settings), utc_now(), seed, most)
        builder = args.dataset_builder or (settings.cycle.dataset_builder if chosen["cycle"] else "advanced")
        dataset = Dataset(db, curation, prompts, seed, settings.curation.system_prompt, builder)
        try:
            found = preview.report(
                dataset, memories.by_seq(db, seqs), settings.recipe(args.profile), home.state, mode=args.mode,
                cycle=chosen["cycle"], new=chosen.get("recent"),
                out=args.out, tell=_tell,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{error.filename or args.out}: {error.strerror}") from None
        known = memories.reasons(db)
    return {"profile": args.profile, "selection": chosen, **found, "left_out_before": known}


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)


def lines(found: dict[str, Any]) -> Iterator[str]:
    chosen = found["selection"]
    memories, samples = drawing.plural(found["memories"], "memory"), drawing.plural(found["samples"], "sample")
    yield f"{chosen['what']}: {memories}, {samples}"
    for key in ("type", "mode", "source", "month"):
        parts = ", ".join(f"{name} {number:,}" for name, number in list(found[key].items())[:12])
        yield f"{key:<10}{parts}"
    if found["words"]:
        words = found["words"]
        yield f"{'words':<10}{words['shortest']} to {words['longest']:,}, median {words['median']}"
        most = max(words["histogram"].values()) or 1
        for name, number in words["histogram"].items():
            yield f"  {name:>12}  {drawing.bar(number, most)} {number:,}"
    yield ""
    rows = [_row(one) for one in found["quality"]["metrics"]]
    yield drawing.table(("quality", "figure", "after", "target", "verdict"), rows)
    yield from (f"  {reason}" for reason in found["quality"]["reasons"])
    yield ""
    before = found["left_out_before"]
    for title, reasons in (("left out now", found["left_out"]), ("left out when it was read", before)):
        if reasons:
            yield f"{title}:"
            yield from (f"  {number:>7,}  {reason}" for reason, number in reasons.items())
    for title, number in (("recent", chosen.get("left_out_recent")), ("old", chosen.get("left_out_old"))):
        if number:
            yield f"  {number:>7,}  {title} memories that the selection does not take"
    yield from _plan_lines(found)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    """A metric as text: counts as numbers, all else as shares."""
    count = one["metric"].endswith("memories")

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if count else f"{value:.1%}"

    return one["metric"], text(one["figure"]), text(one["after"]), one["target"], one["verdict"]


def _plan_lines(found: dict[str, Any]) -> Iterator[str]:
    plan = found["plan"]
    if plan is None:
        yield f"no plan: {found['no_plan']}"
        return
    yield (f"plan: {drawing.plural(plan['steps'], 'step')}, {plan['tokens']:,} tokens of which {plan['loss_tokens']:,} "
           f"are learnt, longest {plan['longest']:,}")  # fmt: skip
    if plan["split_samples"] or plan["cut_prompts"] or plan["dropped_turns"]:
        yield (f"too long: {plan['split_samples']:,} answers go in parts, {plan['dropped_turns']:,} old turns "
               f"of context are left out, {plan['cut_prompts']:,} prompts keep only their end")  # fmt: skip
    for one in found["examples"]:
        yield f"\n--- {one['id'][:12]}: {one['tokens']:,} tokens, {one['loss_tokens']:,} learnt (between ⟦ and ⟧)"
        yield from one["texts"]
