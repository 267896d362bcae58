"""`engramd status`: what waits, what runs, what comes next. Must answer at once: no settings are loaded."""

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit
from daemon.cli.presence import daemon_pid

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers
    from daemon.home import Home

_BETWEEN_LOOKS = 1.0  # seconds, of --watch
_BATCH_STATES = ("claimed", "reading", "needs_owner", "read", "held", "done", "refused", "discarded")
_LOOKED_AT = 100_000  # files in an inbox; a count beyond is of no use


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "status")
    profile_option(parser, default=None)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    form.add_argument("-w", "--watch", action="store_true", help="again each second, until Ctrl-C")
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    home = home_of(args)
    if args.json:
        print_json(facts(home, args.profile))
        return Exit.OK
    while True:
        text = "\n".join(drawing.fit(line) for line in _lines(facts(home, args.profile)))
        if not args.watch:
            print(text)
            return Exit.OK
        sys.stdout.write(f"\x1b[H\x1b[J{text}\n" if sys.stdout.isatty() else f"{text}\n\n")
        sys.stdout.flush()
        time.sleep(_BETWEEN_LOOKS)


def facts(home: "Home", profile: str | None = None) -> dict[str, Any]:
    """What `--json` prints."""
    from daemon.cli.reading import profiles

    pid = daemon_pid(home)
    names = profiles(home, profile)
    return {
        "home": str(home.root),
        "daemon": {"running": pid is not None, "pid": pid},
        "paused": _paused(home),
        "profiles": [_profile(home, name, runs=pid is not None) for name in names],
    }


def _paused(home: "Home") -> str | None:
    from daemon.cli.reading import opened_home
    from daemon.ledger import home_meta

    if not home.database.exists():
        return None
    with opened_home(home) as db:
        return home_meta.paused(db, datetime.now(UTC).isoformat())


def _profile(home: "Home", name: str, *, runs: bool) -> dict[str, Any]:
    from daemon.cli.reading import opened_if_there

    found: dict[str, Any] = {
        "profile": name, "inbox": str(home.profile(name).inbox), "files_in_inbox": _in_inbox(home, name),
        "batches": dict.fromkeys(_BATCH_STATES, 0), "waiting_memories": 0, "job": None, "head": None,
        "last_loss": None, "waits": None, "notes": [], "held": [], "needs_owner": [], "refused": None,
        "serving": {"lines": [], "note": None},
    }  # fmt: skip
    with opened_if_there(home, name) as db:
        if db is not None:
            found |= _from_ledger(home, name, db)
    found["next"] = what_next(found, runs=runs)
    return found


def _from_ledger(home: "Home", name: str, db: "ledger.Database") -> dict[str, Any]:
    from daemon.cli import running, serving
    from daemon.ledger import batches, jobs, scores

    job, head = jobs.open_job(db), jobs.get_head(db)
    described = running.describe(home.profile(name), job) if job else None
    last = jobs.last_result(db)
    loss = described["loss"] if described and described["loss"] is not None else last.get("last_loss")
    held = [
        {
            "batch": row["id"], "name": row["name"], "reason": row["reason"], "failures": row["failures"],
            "memories": row["memories"],
            "commands": [f"engramd retry {row['id']}{_for(name)}", f"engramd discard {row['id']}{_for(name)}"],
        }
        for row in batches.in_state(db, "held")
    ]  # fmt: skip
    return {
        "batches": dict.fromkeys(_BATCH_STATES, 0) | batches.counts(db),
        "waiting_memories": batches.waiting_memories(db),
        "job": described,
        "head": head and {"chain": head["chain"], "step": head["step"], "version": head["version"],
                          "sha256": head["sha256"]},
        "last_loss": loss,
        "waits": jobs.get_meta(db, "waits"),
        "notes": [note for note in (jobs.get_meta(db, "anchors"),) if note],
        "held": held,
        "serving": serving.facts(db),
        "refused": _refused(scores.newest_refused(db), name),
        "needs_owner": [
            {"batch": row["id"], "name": row["name"], "reason": row["reason"]}
            for row in batches.in_state(db, "needs_owner")
        ],
    }  # fmt: skip


def _refused(row: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The newest version that was refused, as long as the head is the one that it was compared with."""
    if row is None:
        return None
    return {"version": row["id"], "reason": row["reason"],
            "command": f'engramd promote v{row["id"]} --despite "..."{_for(name)}'}  # fmt: skip


def _for(profile: str) -> str:
    return "" if profile == "me" else f" --profile {profile}"


def _in_inbox(home: "Home", name: str) -> int:
    """Files and folders that were not claimed yet; hidden ones and the daemon's own folders are none."""
    from daemon.home import DEFAULT_PROFILE, RESERVED_NAMES

    own = {*RESERVED_NAMES, *home.profile_names()} if name == DEFAULT_PROFILE else set()
    count = 0
    try:
        with os.scandir(home.profile(name).inbox) as entries:
            for entry in entries:
                count += not entry.name.startswith(".") and entry.name not in own
                if count >= _LOOKED_AT:
                    break
    except OSError:
        return 0
    return count


def what_next(found: dict[str, Any], *, runs: bool) -> str:
    """One sentence on what will happen, or on what a person has to do for anything to happen."""
    counts, job = found["batches"], found["job"]
    unread = counts["claimed"] + counts["reading"] + found["files_in_inbox"]
    waiting = found["waiting_memories"]
    if found["waits"] and runs:
        return f"waits: {found['waits']}"
    if found["waits"]:
        return f"waits: {found['waits']}; and no daemon runs: `engramd run`"
    if not runs and (job or unread or waiting):
        begun = f"job {job['id']} goes on" if job else "what waits is trained"
        return f"no daemon runs: {begun} once you start `engramd run` or `engramd train{_for(found['profile'])}`"
    if job and job["state"] == "running":
        after = "what has come meanwhile is the next job" if unread or waiting else "nothing else waits"
        ends = {"export": "ends, and what it makes is served or fetched", "generate": "ends, and training goes on"}
        return f"job {job['id']} {ends.get(job.get('kind'), 'ends, is judged and becomes the head')}; {after}"
    if job:
        return f"job {job['id']} is {job['state']}: {job['reason'] or 'it is next'}"
    if unread:
        return f"{drawing.plural(unread, 'file')} to read, then the next job"
    if waiting:
        return f"a job over {drawing.plural(waiting, 'memory')} starts with the next look"
    if found["needs_owner"]:
        return f"a word on who you are in {drawing.plural(len(found['needs_owner']), 'chat')}: see above"
    if found["held"]:
        return f"a decision on {drawing.plural(len(found['held']), 'held batch')}"
    if runs:
        return f"nothing waits; drop files into {found['inbox']}"
    return f"nothing waits; drop files into {found['inbox']} and start `engramd run`"


def _lines(told: dict[str, Any]) -> list[str]:
    daemon = told["daemon"]
    lines = [f"daemon    {'runs, pid ' + str(daemon['pid']) if daemon['running'] else 'does not run'}"]
    if told["paused"]:
        lines.append(f"training  {told['paused']}")
    for one in told["profiles"]:
        lines += ["", f"profile   {one['profile']}", *_profile_lines(one)]
    return lines


def _profile_lines(one: dict[str, Any]) -> list[str]:
    counts, head = one["batches"], one["head"]
    queue = [f"{drawing.plural(one['files_in_inbox'], 'file')} in the inbox"] if one["files_in_inbox"] else []
    queue += [f"{number} {state}" for state, number in counts.items() if number]
    lines = [f"batches   {', '.join(queue) or 'none yet'}"]
    lines.append(f"waiting   {drawing.plural(one['waiting_memories'], 'memory')}")
    if one["job"]:
        lines.append(f"running   {_job_line(one['job'])}")
    if head:
        lines.append(f"head      v{head['version']}: chain {head['chain']}, checkpoint-{head['step']}")
    else:
        lines.append("head      none yet: nothing was trained")
    lines += [f"{'serving' if not number else '':<9} {told}" for number, told in enumerate(_serving(one["serving"]))]
    if one["last_loss"] is not None:
        lines.append(f"loss      {one['last_loss']:.4f}")
    if one["refused"]:
        lines.append(f"refused   v{one['refused']['version']}: {one['refused']['reason']}")
        lines.append(f"          {one['refused']['command']}, or decide on what is held")
    for held in one["held"]:
        lines.append(f"held      batch {held['batch']} ({held['name']}): {held['reason']}")
        lines.append(f"          {' or '.join(held['commands'])}")
    for chat in one["needs_owner"]:
        lines.append(f"owner?    batch {chat['batch']} ({chat['name']}): {chat['reason']}")
    lines += [f"note      {note}" for note in one["notes"]]
    lines.append(f"next      {one['next']}")
    return lines


def _serving(told: dict[str, Any]) -> list[str]:
    from daemon.cli.serving import sentences

    found = [f"{line['line']}: {text}" if line["line"] else text for line in told["lines"] for text in sentences(line)]
    return found or ([told["note"]] if told["note"] else [])


def _job_line(job: dict[str, Any]) -> str:
    from daemon.cli import running

    return running.line(job)
