"""`engramd read FILE`: what a file would give, without taking it. The first thing to try with an export."""

import argparse
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option, whole
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.records import Hearing, LeftOut, Memory, Utterance
    from daemon.rules.sessions import Sessions

_LEARNT, _CONTEXT, _LEFT_OUT = "learnt", "context", "left out"


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "read")
    parser.add_argument("file", type=Path, metavar="FILE", help="a file, zip or folder, as it would be dropped")
    profile_option(parser)
    parser.add_argument("-n", type=whole, default=40, metavar="N", help="the first N turns (default: 40; 0: all)")
    parser.add_argument("--json", action="store_true", help="all of them; keys: see docs/cli.md")
    parser.set_defaults(run=_read)


def _read(args: argparse.Namespace) -> int:
    found = story(args)
    if args.json:
        print_json(found)
    else:
        print("\n".join(_lines(found, args.n)))
    return Exit.FAILED if found["refused"] else Exit.OK


def story(args: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints: the turns of the file in order, the memories that they give, and all that was decided."""
    from daemon.cli.owner import known
    from daemon.cli.reading import check_name
    from daemon.records import BadItem, LeftOut, Refused
    from daemon.rules.sessions import NeedsOwner, Sessions
    from daemon.settings import SettingsError
    from daemon.world import chat_rules, rules_of

    check_name(args.profile)
    settings = settings_of(args)
    try:
        curation, prompts = rules_of(home_of(args))
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    sessions = Sessions(known(args), chat_rules(settings), args.profile)
    turns = _Turns(sessions)
    told: dict[str, Any] = {
        "file": str(args.file), "profile": args.profile, "readers": [], "refused": None,
        "owner": {"known": True, "speakers": {}, "reason": None, "command": None},
        "turns": turns.rows, "memories": [], "bad_items": [],
    }  # fmt: skip
    try:
        for item in sessions.memories(turns.listen(_heard(args, settings))):
            if isinstance(item, BadItem):
                told["bad_items"].append({"where": item.where, "reason": item.reason})
            elif not isinstance(item, LeftOut):
                told["memories"].append(_decided(item, curation, prompts, settings.curation.system_prompt, turns))
    except NeedsOwner as unknown:
        told["owner"] = {"known": False, "speakers": unknown.speakers, "reason": str(unknown),
                         "command": unknown.command}  # fmt: skip
        turns.forget_roles()
    except (Refused, OSError) as error:
        told["refused"] = str(error) if isinstance(error, Refused) else f"it cannot be read: {error}"
    if told["owner"]["known"]:
        told["owner"]["speakers"] = sessions.speakers
    told["readers"] = sorted(turns.readers)
    return told


def _heard(args: argparse.Namespace, settings: Any) -> "Hearing":
    from daemon import readers
    from daemon.hearing import heard
    from daemon.world import locale_of

    path: Path = args.file.expanduser()
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", Exit.NOTHING) from None
    limits = readers.Limits(settings.inbox.max_file_mb * 2**20, settings.inbox.max_document_mb * 2**20)
    person = settings.person(args.profile)
    return heard(path, path.name, status.st_size, status.st_mtime, limits,
                 locale_of(person.timezone, person.day_first))  # fmt: skip


class _Turns:
    """Each message of the file, and what becomes of it."""

    def __init__(self, sessions: "Sessions") -> None:
        self.rows: list[dict[str, Any]] = []
        self.readers: set[str] = set()
        self._sessions = sessions
        self._between_people: list[dict[str, Any]] = []
        self._open: dict[tuple[str, str | None, str], deque[dict[str, Any]]] = {}

    def listen(self, heard: "Hearing") -> "Hearing":
        """Pass everything on, and write down the turns."""
        from daemon.records import LeftOut, Memory, Utterance

        for item in heard:
            if isinstance(item, Utterance):
                self._utterance(item)
            elif isinstance(item, LeftOut):
                self._left_out(item)
            elif isinstance(item, Memory):
                self._memory(item)
            yield item

    def _row(self, item: "Utterance | LeftOut | Memory", role: str | None, text: str, use: str) -> dict[str, Any]:
        row = {
            "speaker": item.speaker or None, "role": role, "timestamp": item.timestamp, "time": item.time,
            "zone_known": item.zone_known, "text": text, "use": use, "reason": None, "memory": None,
            "conversation": getattr(item, "conversation", None), "where": getattr(item, "where", "") or None,
        }  # fmt: skip
        self.rows.append(row)
        return row

    def _utterance(self, said: "Utterance") -> None:
        self.readers.add(said.source)
        role = self._sessions.role(said)
        row = self._row(said, role, said.text, _CONTEXT)
        row["speaker"] = row["speaker"] or said.role  # chats with an AI name nobody
        if said.role is None and said.owner is None:
            self._between_people.append(row)
        if role == "assistant":
            self._open.setdefault((said.source, said.conversation, said.text), deque()).append(row)

    def _left_out(self, left: "LeftOut") -> None:
        self._row(left, None, left.text, _LEFT_OUT)["reason"] = left.reason

    def _memory(self, memory: "Memory") -> None:
        """What is no chat of an export: its text, or its question and answer."""
        self.readers.add(memory.source)
        for turn in memory.context:
            self._row(memory, turn.role, turn.text, _CONTEXT)
        if memory.response is not None:
            self._row(memory, "user", memory.content, _CONTEXT)
        text = memory.content if memory.response is None else memory.response
        row = self._row(memory, "assistant", text, _LEARNT)
        row["memory"] = memory.id

    def learnt(self, memory: "Memory", reason: str | None) -> None:
        """The turns that a memory was made of."""
        for part in memory.parts:
            rows = self._open.get((memory.source, memory.conversation, part.text))
            if rows:
                row = rows.popleft()
                row |= {"use": _LEFT_OUT if reason else _LEARNT, "reason": reason, "memory": memory.id}

    def forget_roles(self) -> None:
        """Nobody knows who is who."""
        why = "who you are in this chat is not known yet"
        for row in self._between_people:
            row |= {"role": "unknown", "use": "unknown", "memory": None, "reason": why}


def _decided(memory: "Memory", curation: Any, prompts: Any, system_prompt: str, turns: _Turns) -> dict[str, Any]:
    """One memory with what curation decides about it, and its samples as they would be trained."""
    from daemon.rules.curation import clean, judge
    from daemon.rules.samples import make_samples

    verdict = judge(memory, curation)
    learnt = memory.content if memory.response is None else memory.response
    samples = make_samples(memory, curation, prompts, 0, system_prompt) if verdict.keep else []
    reasons = [] if verdict.reason is None else [verdict.reason]
    if verdict.keep:
        cleaned = clean(memory, curation)
        text = cleaned.content if memory.response is None else cleaned.response
        if text != learnt:
            reasons.append(f"cleaned: {len(learnt.split()):,} words became {len((text or '').split()):,}")
        if len(samples) > 1:
            reasons.append(f"gives {len(samples)} samples")
    turns.learnt(memory, verdict.reason)
    return {
        "id": memory.id, "type": memory.type, "reader": memory.source, "conversation": memory.conversation,
        "speaker": memory.speaker, "role": "assistant", "timestamp": memory.timestamp, "time": memory.time,
        "zone_known": memory.zone_known, "text": learnt,
        "asked": memory.content if memory.response is not None else None,
        "context": [{"role": turn.role, "text": turn.text} for turn in memory.context], "tags": list(memory.tags),
        "payload": memory.payload, "decision": "taken" if verdict.keep and samples else "left out",
        "reasons": reasons if reasons or samples else ["it gives no sample"],
        "samples": [[turn.model_dump() for turn in sample.messages] for sample in samples],
    }  # fmt: skip


def _lines(told: dict[str, Any], most: int) -> Iterator[str]:
    turns, memories = told["turns"], told["memories"]
    for row in turns[: most or None]:
        when = (row["time"] or row["timestamp"] or "no time")[:19].replace("T", " ")
        zone = "" if row["zone_known"] else " (no zone in the file)"
        who = row["speaker"] or row["role"] or ""
        role = f" [{row['role']}]" if row["role"] else ""
        what = row["use"] + (f": {row['reason']}" if row["reason"] else "")
        yield drawing.fit(f"{when}{zone}  {who}{role}, {what}")
        yield from (drawing.fit(f"    {line}") for line in row["text"].split("\n")[:4])
    if most and len(turns) > most:
        yield f"... and {len(turns) - most:,} more: -n 0 shows all"
    yield ""
    if told["refused"]:
        yield f"refused: {told['refused']}"
        return
    left = Counter(row["reason"] for row in turns if row["use"] == _LEFT_OUT)
    taken = sum(memory["decision"] == "taken" for memory in memories)
    yield f"{told['file']}: read by {', '.join(told['readers']) or 'no reader'}; nothing was taken"
    yield f"{drawing.plural(len(turns), 'turn')}, {drawing.plural(taken, 'memory')} to learn"
    for reason, number in left.most_common():
        yield f"  left out: {number:,} × {reason}"
    for bad in told["bad_items"][:20]:
        yield f"  bad: {bad['where']}: {bad['reason']}"
    if len(told["bad_items"]) > 20:
        yield f"  bad: and {len(told['bad_items']) - 20:,} more"
    if not told["owner"]["known"]:
        yield told["owner"]["reason"]
