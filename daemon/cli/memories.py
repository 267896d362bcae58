"""`engramd memories`: list them, search them, show one, and why it is in the state that it is in."""

import argparse
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon import ledger
    from daemon.cli import Subparsers

_STATES = ("waiting", "frozen", "trained", "held", "held_out", "skipped", "discarded", "forgotten")
_SHORT_ID = 12  # characters; enough for any life


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers,
        "memories",
        usage="engramd memories [--state STATE] [--type TYPE] [-n N] [--json] [search TEXT | show ID | why ID]",
    )
    parser.add_argument("verb", nargs="?", choices=("search", "show", "why"), help="without it: list them")
    parser.add_argument("what", nargs="?", metavar="TEXT|ID", help="a text, or the beginning of a memory's id")
    profile_option(parser)
    parser.add_argument("--state", choices=_STATES, help="only those in this state")
    parser.add_argument("--type", metavar="TYPE", help="only those of this type")
    parser.add_argument("-n", type=whole, default=50, metavar="N", help="the newest N (default: 50; 0: all)")
    parser.add_argument("--json", action="store_true", help="keys: see docs/cli.md")
    parser.set_defaults(run=_memories)


def _memories(args: argparse.Namespace) -> int:
    from daemon.cli.reading import opened

    if args.verb and not args.what:
        raise UserError(f"engramd memories {args.verb}: {'a text' if args.verb == 'search' else 'an id'} is missing",
                        Exit.USAGE)  # fmt: skip
    with opened(home_of(args), args.profile) as db:
        if args.verb in ("show", "why"):
            row = _one(db, args.what)
            return (_show if args.verb == "show" else _why)(db, row, args)
        return _list(db, args)


def _list(db: "ledger.Database", args: argparse.Namespace) -> int:
    from daemon.ledger import memories

    rows = list(memories.listing(db, state=args.state, type_=args.type, text=args.what, limit=args.n or -1))
    if args.json:
        counts = memories.counts(db)
        print_json({
            "profile": args.profile, "total": memories.total(db), "by_state": counts["state"],
            "by_type": counts["type"], "trained_exactly_once": memories.trained_exactly_once(db),
            "memories": [_fact(db, row) for row in rows],
        })  # fmt: skip
        return Exit.OK
    cells = [(row["id"].hex()[:_SHORT_ID], row["state"], row["type"], (row["time"] or "")[:16], row["batch"],
              row["response"] or row["content"]) for row in rows]  # fmt: skip
    print(drawing.table(("id", "state", "type", "time", "batch", "text"), cells))
    if not args.verb:
        states = memories.counts(db)["state"]
        parts = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))
        print(f"\n{drawing.plural(sum(states.values()), 'memory')}{': ' + parts if parts else ''}")
    return Exit.OK if rows or not args.verb else Exit.NOTHING


def _fact(db: "ledger.Database", row: dict[str, Any]) -> dict[str, Any]:
    from daemon.ledger import memories

    keys = ("seq", "type", "state", "reason", "time", "batch")
    return {"id": row["id"].hex()} | {key: row[key] for key in keys} | {
        "uses": memories.uses_in_promoted(db, row["seq"])
    }  # fmt: skip


def _one(db: "ledger.Database", prefix: str) -> dict[str, Any]:
    from daemon.ledger import memories

    rows = memories.get(db, prefix.lower())
    if not rows:
        raise UserError(f"no memory's id begins with {prefix!r}", Exit.NOTHING)
    if len(rows) > 1:
        some = ", ".join(row["id"].hex()[: max(_SHORT_ID, len(prefix) + 2)] for row in rows[:3])
        raise UserError(f"several memories begin with {prefix!r}: {some}, ...", Exit.USAGE)
    return rows[0]


def _show(db: "ledger.Database", row: dict[str, Any], args: argparse.Namespace) -> int:
    from daemon.ledger import memories

    memory = memories.from_row(row)
    found = _fact(db, row) | {
        "timestamp": memory.timestamp, "source": memory.source, "mode": memory.mode, "tags": list(memory.tags),
        "context": [{"role": turn.role, "text": turn.text} for turn in memory.context],
        "content": memory.content, "response": memory.response, "payload": memory.payload,
    }  # fmt: skip
    if args.json:
        print_json(found)
        return Exit.OK
    print(f"{found['id']}\n{memory.type}, {found['state']}, {memory.time or memory.timestamp or 'no time'}, "
          f"batch {found['batch']}, read by {memory.source}")  # fmt: skip
    for turn in memory.context:
        print(f"\n[{turn.role}] {turn.text}")
    if memory.response is None:
        print(f"\n{memory.content}")
    else:
        print(f"\n[content] {memory.content}\n\n[response] {memory.response}")
    if memory.payload is not None:
        print_json(memory.payload)
    return Exit.OK


def _why(db: "ledger.Database", row: dict[str, Any], args: argparse.Namespace) -> int:
    """The story of a memory: its file, its batch, what was decided, its jobs and their versions."""
    from daemon.ledger import batches, jobs

    batch = batches.get(db, row["batch"]) or {}
    uses = jobs.jobs_of_memory(db, row["seq"])
    story = _fact(db, row) | {
        "file": {"batch": row["batch"], "name": batch.get("name"), "state": batch.get("state"),
                 "sha256": batch.get("sha256"), "claimed_at": batch.get("claimed_at"),
                 "read_at": batch.get("read_at")},
        "source": row["source"], "jobs": uses,
        "explanation": _explanation(row, batch, uses),
    }  # fmt: skip
    if args.json:
        print_json(story)
        return Exit.OK
    print(f"{story['id']}  {row['type']}")
    print(f"dropped   {batch.get('name')}, claimed {batch.get('claimed_at')} as batch {row['batch']}")
    print(f"read      {batch.get('read_at') or 'not finished yet'}, by the reader {row['source']}")
    for use in uses:
        version = f", v{use['version']}" if use["version"] else ""
        line = f" of line {use['line']}" if use["line"] else ""
        samples = drawing.plural(use["samples"], "sample")
        print(f"job {use['job']:<6}{use['at'][:10]}, {use['use']}, {samples}: {use['state']}{version}{line}")
    print(f"now       {story['explanation']}")
    return Exit.OK


def _explanation(row: dict[str, Any], batch: dict[str, Any], uses: list[dict[str, Any]]) -> str:
    """One sentence on why it is in its state."""
    state, reason = str(row["state"]), row["reason"]
    learnt = [use for use in uses if use["use"] == "new" and use["state"] == "promoted"]
    if state == "trained" and learnt:
        return f"trained, in job {learnt[0]['job']}, and part of every version from v{learnt[0]['version']} on"
    if state == "frozen" and uses:
        return f"frozen into job {uses[-1]['job']}, which is {uses[-1]['state']}"
    if state == "held":
        return f"held with batch {row['batch']}: {reason}; engramd retry or discard {row['batch']}"
    if state == "waiting" and uses:
        return f"waits for another try; job {uses[-1]['job']} {uses[-1]['state']}"
    if state == "waiting" and batch.get("state") == "held":
        return f"waits; its batch is held: {batch.get('reason')}"
    return state.replace("_", " ") + (f": {reason}" if reason else ": for the next job" if state == "waiting" else "")
