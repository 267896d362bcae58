"""`engramd schedule`: what is done by the clock, when it was done last, and when it comes next."""

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.presence import daemon_pid

if TYPE_CHECKING:
    from datetime import datetime, tzinfo

    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.schedule import Task


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "schedule",
        usage="engramd schedule [--profile NAME] [--json] | engramd schedule run TASK [--profile NAME] [--json]",
    )  # fmt: skip
    parser.add_argument("verb", nargs="?", choices=("run",), help="do a task now; the next slot comes all the same")
    parser.add_argument("task", nargs="?", metavar="TASK", help="snapshot, prune, verify, or the name of a cycle")
    profile_option(parser, default=None)
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_schedule)


def _schedule(args: argparse.Namespace) -> int:
    if args.verb:
        return _run(args)
    found = facts(args)
    if args.json:
        print_json(found)
        return Exit.OK
    several = len({one["profile"] for one in found["tasks"]}) > 1
    head = ("task", *(("profile",) if several else ()), "when", "last", "next", "outcome")
    rows = [
        (one["task"], *((one["profile"],) if several else ()), one["when"], _last(one), _next(one), _outcome(one))
        for one in found["tasks"]
    ]
    print(drawing.table(head, rows))
    print(f"\nTimes are those of {found['zone']}.")
    if not found["daemon"]["running"]:
        print("No daemon runs: what comes due is done once, when `engramd run` is started again.")
    return Exit.OK


def _run(args: argparse.Namespace) -> int:
    from daemon.cli.asking import ask
    from daemon.cli.reading import check_name

    if not args.task:
        raise UserError("engramd schedule run: which task? engramd schedule lists them", Exit.USAGE)
    profile = args.profile or "me"
    check_name(profile)
    answer = ask(args, profile, "schedule_run", {"task": args.task}) or {}
    if args.json:
        print_json(answer)
    else:
        print(f"{answer['task']} of {answer['profile']}: {answer['outcome']}")
    return Exit.OK


def facts(args: argparse.Namespace, now: "datetime | None" = None) -> dict[str, Any]:
    """What `--json` prints. `now` is that of this machine where it is left out."""
    from datetime import UTC, datetime

    from daemon.cli.reading import declared, opened_home
    from daemon.schedule import plan, zone_of

    home, settings = home_of(args), settings_of(args)
    profiles = [args.profile] if args.profile else []
    if args.profile:
        declared(args)
    else:
        profiles = list(dict.fromkeys([*home.profile_names(), *settings.profiles]))
    zone = zone_of(settings.schedule.timezone)
    moment, pid = now or datetime.now(UTC), daemon_pid(home)
    tasks = plan(settings.schedule, profiles)
    told = {"home": str(home.root), "zone": str(zone), "daemon": {"running": pid is not None, "pid": pid}}
    with opened_home(home) if home.database.exists() else nullcontext() as db:
        found = [_fact(db, task, zone, moment) for task in tasks]
    times = {(one["task"], one["profile"]): one for one in found}
    for one, task in zip(found, tasks, strict=True):
        if task.after:  # it comes when the other one has been done
            one |= {key: times[task.after, task.profile][key] for key in ("next_slot", "next_run")}
            one |= {"due": False, "missed": 0}
    return told | {"tasks": found}


def _fact(db: "ledger.Database | None", task: "Task", zone: "tzinfo", now: "datetime") -> dict[str, Any]:
    from daemon.ledger import slots
    from daemon.rules.slots import due_slot, next_slot

    row, have, since = None, slots.Served(None, frozenset()), now
    if db is not None:
        row = slots.newest(db, task.name, task.profile)
        have = slots.served(db, task.name, task.profile, now)
        since = slots.in_force_since(db, task.name, task.profile, task.when.text, now, write=False)
    due = due_slot(task.when, zone, now, have.last, since=since, taken=have.ahead)
    coming = due[0] if due else next_slot(task.when, zone, now, have.last, taken=have.ahead)
    row = row or dict.fromkeys(("state", "slot", "claimed_at", "outcome"))
    outcome = row["outcome"] or ""
    waits = outcome.removeprefix(slots.WAITS) if row["state"] == "claimed" and outcome.startswith(slots.WAITS) else None
    return {
        "task": task.name,
        "profile": task.profile,
        "when": task.when.text,
        "state": row["state"],
        "last_slot": None if (row["slot"] or slots.BY_HAND).startswith(slots.BY_HAND) else row["slot"],
        "last_run": row["claimed_at"],
        "last_run_local": row["claimed_at"] and _local(row["claimed_at"], zone),
        "outcome": None if waits else row["outcome"],
        "waits": waits,
        "next_slot": coming.key if coming else None,
        "next_run": coming.due.isoformat().replace("+00:00", "Z") if coming else None,
        "due": due is not None,
        "missed": due[1] if due else 0,
    }


def _local(stamp: str, zone: "tzinfo") -> str:
    from datetime import datetime

    return datetime.fromisoformat(stamp).astimezone(zone).strftime("%Y-%m-%d %H:%M")


def _last(one: dict[str, Any]) -> str:
    return one["last_run_local"] or "never"


def _next(one: dict[str, Any]) -> str:
    if one["next_slot"] is None:
        return "never"
    slot = one["next_slot"].replace("T", " ")
    return f"{slot} (due)" if one["due"] else slot


def _outcome(one: dict[str, Any]) -> str:
    if one["waits"]:
        return f"waits: {one['waits']}"
    if one["state"] == "failed":
        return f"failed: {one['outcome']}"
    if one["state"] == "claimed":
        return one["outcome"] or "at work"
    return one["outcome"] or ""
