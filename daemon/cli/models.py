"""`engramd models`: the versions and their lineage, and going back to one of them."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_SIGNS = {"promoted": "in the line", "undone": "gone back over", "refused": "refused", "candidate": "not judged yet"}


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "models",
        usage="engramd models [list | show vN | diff vA vB | lineage | load vN | export-card vN | promote vN | "
        "rollback vN | reset] [--profile NAME] [--json]",
        description="Each training that was judged is a version. rollback moves the head back to one, reset to the "
        "base: nothing is removed. Memories that were trained since are held until you say so: --train-again, or "
        "engramd retry and discard. load says how to talk to any version, also to a refused one; export-card prints "
        "what a version is, without a word of what it learnt.",
    )  # fmt: skip
    parser.add_argument(
        "what", nargs="?", default="list",
        choices=("list", "show", "diff", "lineage", "load", "export-card", "promote", "rollback", "reset"),
    )  # fmt: skip
    parser.add_argument("versions", nargs="*", metavar="vN")
    parser.add_argument("--line", default="", metavar="NAME", help="of reset: whose head; without it the main one")
    parser.add_argument("--train-again", action="store_true", help="of rollback, reset: train them with the next job")
    parser.add_argument("--dry-run", action="store_true", help="of promote, rollback, reset: change nothing")
    parser.add_argument("--yes", action="store_true", help="of rollback, reset: do not ask")
    parser.add_argument("--despite", metavar="REASON", help="of promote: why a refused version is right all the same")
    parser.add_argument("--to", metavar="FILE", help="of export-card: write it there instead of printing it")
    profile_option(parser)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_models)


def _models(args: argparse.Namespace) -> int:
    wanted = {"show": 1, "load": 1, "export-card": 1, "promote": 1, "rollback": 1, "diff": 2}.get(args.what, 0)
    if len(args.versions) != wanted:
        raise UserError(f"engramd models {args.what}: name {drawing.plural(wanted, 'version')}" if wanted else
                        f"engramd models {args.what} takes no version", Exit.USAGE)  # fmt: skip
    from daemon.cli import versions

    numbers = [versions.number_of(text) for text in args.versions]
    if args.what == "promote":
        from daemon.cli.promote import promote

        return promote(args, numbers[0])
    if args.line and args.what != "reset":
        raise UserError("--line belongs to engramd models reset: each version is of one line only", Exit.USAGE)
    if args.what in ("rollback", "reset"):
        return _go(args, numbers[0] if numbers else None)
    from daemon import registry
    from daemon.cli.reading import opened

    home = home_of(args)
    with opened(home, args.profile) as db:
        base = settings_of(args).recipe(args.profile).base_model
        told = registry.mirror(
            db, base_model=base, chains=home.profile(args.profile).chains, versioning=settings_of(args).versioning
        )
    known = {one["version"]: one for one in told["training_history"]}
    for number in numbers:
        if number not in known:
            raise UserError(f"there is no v{number} of profile {args.profile}: engramd models", Exit.NOTHING)
    if args.to is not None and args.what != "export-card":
        raise UserError("--to belongs to engramd models export-card vN", Exit.USAGE)
    if args.what == "show":
        one = known[numbers[0]]
        plain = {key: value for key, value in one.items() if key not in ("metrics", "gate")}
        _print(args, one, itertools.chain(_shown(plain), filter(None, [versions.figures(one)])))
    elif args.what == "diff":
        root = home.profile(args.profile).root
        with opened(home, args.profile) as db:
            changed = versions.difference(db, root, told, *(known[number] for number in numbers))
        _print(args, changed, versions.shown_difference(numbers[0], numbers[1], changed))
    elif args.what == "load":
        found = versions.load(args, known[numbers[0]])
        _print(args, found, versions.shown_load(known[numbers[0]], found))
    elif args.what == "export-card":
        found = versions.export_card(args, told, known[numbers[0]])
        _print(args, found, [found["card"]] if found["path"] is None else [f"written: {found['path']}"])
    elif args.what == "lineage":
        _print(args, told, _lineage(told))
    else:
        _print(args, told, [_table(told)])
    return Exit.OK


def _print(args: argparse.Namespace, value: Any, lines: Any) -> None:
    if args.json:
        print_json(value)
    else:
        print("\n".join(lines))


def _shown(one: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, one), default=0)
    for key, value in one.items():
        yield f"{key:<{width}}  {value}"


def _table(told: dict[str, Any]) -> str:
    if not told["training_history"]:
        return "no version yet: drop something in the inbox, or engramd train"
    heads = {one["version"]: line for line, one in told["heads"].items()}
    rows = []
    for one in told["training_history"]:
        loss = f"{one['loss']:.3f}" if isinstance(one["loss"], float) else "-"
        where = "the head" if one["version"] in heads else _SIGNS[one["state"]]
        where += f" of line {one['line']}" if one["line"] else ""
        name, made = f"v{one['version']}", one["timestamp"][:16]
        rows.append([name, where, one["step"], one["memories"].get("new", 0), loss, made])
    return drawing.table(["", "", "step", "memories", "loss", "made"], rows)


def _lineage(told: dict[str, Any]) -> Iterator[str]:
    """The line to the head, and what hangs off it, as a tree."""
    children: dict[int | None, list[dict[str, Any]]] = {}
    for one in told["training_history"]:
        children.setdefault(one["parent"], []).append(one)
    heads = {one["version"]: line for line, one in told["heads"].items()}
    yield told["original_base_model"] + ("  <- the head" if "" not in told["heads"] else "")
    stack = [(one, 1) for one in reversed(children.get(None, []))]
    while stack:
        one, depth = stack.pop()
        mark = "" if one["state"] == "promoted" else f"  ({one['state']})"
        mark = "  <- the head" if one["version"] in heads else mark
        mark += f"  (line {one['line']})" if one["line"] else ""
        yield f"{'  ' * depth}v{one['version']}  step {one['step']}{mark}"
        below = children.get(one["version"], [])
        stack += [(child, depth + (len(below) > 1)) for child in reversed(below)]


def _go(args: argparse.Namespace, number: int | None) -> int:
    from daemon import going_back
    from daemon.cli.asking import ask
    from daemon.cli.reading import opened, world_of
    from daemon.cli.snapshot import lines_of_move

    home = home_of(args)
    with opened(home, args.profile) as db:
        world = world_of(home, args.profile, db, settings_of(args))
        try:
            target = going_back.version_target(world, number, train_again=args.train_again, line=args.line)
        except ValueError as error:
            raise UserError(str(error)) from None
        told = going_back.dry_run(world, target)
    told["held"] = not args.train_again
    if not args.dry_run:
        if not args.yes and sys.stdin.isatty():
            print("\n".join(lines_of_move(told, dry=True)))
            if input("go back to it? [y/N] ").strip().lower() not in ("y", "yes"):
                print("nothing was changed")
                return Exit.OK
        asked = {"version": number, "train_again": args.train_again, "line": args.line}
        told = ask(args, args.profile, "rollback", asked) or {}
        told["held"] = not args.train_again
    _print(args, {"profile": args.profile, "dry_run": args.dry_run, **told}, lines_of_move(told, dry=args.dry_run))
    return Exit.OK
