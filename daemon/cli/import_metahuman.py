"""`engramd import-metahuman FOLDER`: the memories of a MetaHuman OS profile, and what was left and why."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, drawing, profile_option
from daemon.cli.context import home_of, print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.presence import daemon_pid

if TYPE_CHECKING:
    from daemon.cli import Subparsers
    from daemon.importing import Import, Row
    from daemon.inheriting import Inherited
    from daemon.settings import Settings

NO_WEIGHTS = "No weights are taken over: the memories are trained anew from this home's base model."


_SHOWN = 40  # lines of the table


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "import-metahuman")
    parser.add_argument("folder", type=Path, metavar="PROFILE_DIR", help="such as metahuman-os/profiles/anna")
    profile_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="the same report, and nothing is written")
    parser.add_argument("--settings", action="store_true", help="take its training.json over, where ours is unchanged")
    parser.add_argument("--verbose", action="store_true", help="every file with what became of it")
    parser.add_argument("--json", action="store_true", help="all of it; keys: see docs/cli.md")
    parser.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    from daemon import inheriting
    from daemon.cli.reading import declared

    home, settings = home_of(args), settings_of(args)
    known = declared(args)
    done = _looked(args, settings)
    inherited = inheriting.look(done, settings)
    told: dict[str, Any] = {"batches": [], "waiting": [], "problems": []}
    told["beside"] = [str(path) for path in inheriting.beside(done)]
    if not args.dry_run:
        _hand_over(args, done, known, told)
    _keep(args, done, inherited, told)
    report = _report(args, done, inherited, told)
    if args.json:
        print_json(report)
    else:
        print("\n".join(_lines(args, report, daemon_pid(home) is not None)))
    return Exit.FAILED if told["problems"] else Exit.OK


def _looked(args: argparse.Namespace, settings: "Settings") -> "Import":
    """Everything read, nothing written. Raises UserError."""
    from daemon import importing, readers
    from daemon.cli.reading import opened_if_there
    from daemon.ledger import jobs
    from daemon.settings import SettingsError
    from daemon.world import locale_of, rules_of

    home = home_of(args)
    try:
        curation, _ = rules_of(home)
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    person = settings.person(args.profile)
    limits = readers.Limits(settings.inbox.max_file_mb * 2**20, settings.inbox.max_document_mb * 2**20)
    with opened_if_there(home, args.profile) as db:
        try:
            locale = locale_of(person.timezone, person.day_first)
            source = importing.source_of(args.folder, home, limits, locale, curation)
            seed = int((jobs.get_meta(db, "seed") if db else None) or settings.seed(args.profile))
            done = importing.Import(source, db, seed)
            done.look()
        except importing.NoProfile as error:
            raise UserError(str(error), Exit.NOTHING) from None
        except OSError as error:
            raise UserError(f"{args.folder} cannot be read: {error.strerror}") from None
    return done


def _hand_over(args: argparse.Namespace, done: "Import", known: list[str], told: dict[str, Any]) -> None:
    from daemon import handing_over

    home = home_of(args)
    batches = list(handing_over.batches_of(done))
    for number, batch in enumerate(batches):
        try:
            path = handing_over.hand_over(done, batch, home, args.profile, known)
        except OSError as error:
            place = error.filename or home.profile(args.profile).inbox
            why = f"{error.strerror} ({place}); the same command goes on where it stopped"
            told["problems"].append(f"{batch.name} could not be put into the inbox: {why}")
            for row in (row for later in batches[number:] for row in later.rows):
                row.reason = row.reason or f"it could not be copied: {error.strerror}"
            return
        if path is not None:
            told["batches"].append({"path": str(path), "kind": batch.kind, "files": sum(r.taken for r in batch.rows)})
        elif any(row.taken for row in batch.rows):
            told["waiting"].append(batch.name)


def _keep(args: argparse.Namespace, done: "Import", inherited: "Inherited", told: dict[str, Any]) -> None:
    """The registry's copy, and the settings where they were asked for."""
    from daemon import inheriting

    home = home_of(args)
    told["settings"] = None
    told["copies"] = []
    if args.dry_run:
        return
    try:
        for row, _ in inherited.registries:
            told["copies"].append(str(inheriting.keep_registry(done, row, home, args.profile)))
        if args.settings:
            told["settings"] = inheriting.take_settings(home, inherited.differs)
    except OSError as error:
        told["problems"].append(f"{error.filename or home.root} cannot be written: {error.strerror}")


# ---- the report ------------------------------------------------------------------------------------


def _report(
    args: argparse.Namespace, done: "Import", inherited: "Inherited", told: dict[str, Any]
) -> dict[str, Any]:
    rows = done.rows
    left: Counter[str] = Counter()
    for row in rows:
        left.update(row.left_out if row.taken else {})
    sums = {name: sum(getattr(row, name) for row in rows) for name in _COUNTS}
    stayed = sum(row.new for row in rows if not row.taken)  # their files could not be copied
    return {
        "folder": str(done.source.folder), "profile": args.profile, "dry_run": args.dry_run,
        "files": {
            "found": sum(row.found.files for row in rows),
            "taken": sum(row.found.files for row in rows if row.taken),
            "left": sum(row.found.files for row in rows if not row.taken),
        },
        "memories": {"read": sums["memories"], "new": sums["new"] - stayed, "not_copied": stayed,
                     **{name: sums[name] for name in _COUNTS[2:]}, "left_out": dict(left.most_common())},
        "kinds": list(_kinds(rows)),
        "rows": [_row(row) for row in rows],
        "settings": [one._asdict() for one in inherited.differs], "settings_written": told["settings"],
        "registries": [{"path": row.path, **history} for row, history in inherited.registries],
        "copies": told["copies"], "batches": told["batches"], "waiting": told["waiting"], "beside": told["beside"],
        "problems": told["problems"],
    }  # fmt: skip


_COUNTS = ("memories", "new", "known", "twice", "made_of", "forgotten", "messages", "bad")


def _row(row: "Row") -> dict[str, Any]:
    return {
        "path": row.path, "kind": row.kind, "decision": "taken" if row.taken else "left", "reason": row.reason or None,
        "files": row.found.files, "size": row.found.size, **{name: getattr(row, name) for name in _COUNTS},
        "left_out": dict(row.left_out), "items": None if row.parts is None else len(row.parts),
        "problems": row.problems,
    }  # fmt: skip


def _kinds(rows: list["Row"]) -> Iterator[dict[str, Any]]:
    """A line for each kind that is taken, and one for each reason why something is left."""
    taken: dict[str, list[Row]] = {}
    left: dict[str, list[Row]] = {}
    for row in rows:
        if row.taken:
            taken.setdefault(row.kind, []).append(row)
        else:
            left.setdefault(_short(row.reason), []).append(row)
    for kind, some in taken.items():
        yield {"decision": "taken", "kind": kind, "files": sum(r.found.files for r in some),
               "new": sum(r.new for r in some), "messages": sum(r.messages for r in some), "reason": None,
               "example": some[0].path}  # fmt: skip
    for reason, some in sorted(left.items(), key=lambda one: -sum(r.found.files for r in one[1])):
        yield {"decision": "left", "kind": some[0].kind, "files": sum(r.found.files for r in some), "new": 0,
               "messages": 0, "reason": reason, "example": some[0].path}  # fmt: skip


def _short(reason: str) -> str:
    """Reasons that name a file or a number count as one."""
    for begin, short in (
        ("the same as in ", "the same as in another file of the profile"),
        ("no reader knows this JSON", "no reader knows this JSON"),
        ("the JSON cannot be read", "the JSON cannot be read"),
        ("The file has ", "larger than max_file_mb under [inbox] in etc/engramd.toml"),
    ):
        if reason.startswith(begin):
            return short
    return reason


def _lines(args: argparse.Namespace, told: dict[str, Any], runs: bool) -> Iterator[str]:
    files, memories = told["files"], told["memories"]
    verb = "would be taken" if told["dry_run"] else "taken"
    found = drawing.plural(files["found"], "file")
    yield f"{told['folder']}: {found}, {files['taken']:,} {verb}, {files['left']:,} left"
    kinds = told["kinds"][:_SHOWN]
    cells = [(one["decision"], one["files"], one["new"] or None, one["reason"] or one["kind"]) for one in kinds]
    yield drawing.table(("", "files", "memories", "what, or why not"), cells)
    if len(told["kinds"]) > _SHOWN:
        yield f"... and {len(told['kinds']) - _SHOWN:,} more reasons: --verbose lists every file"
    if args.verbose:
        yield ""
        for row in told["rows"]:
            yield f"{row['decision']:5}  {row['path']}" + (f": {row['reason']}" if row["reason"] else "")
            yield from (f"         {problem}" for problem in row["problems"] if problem != row["reason"])
    yield ""
    yield from _memory_lines(memories)
    yield from _setting_lines(args, told)
    for one in told["registries"]:
        yield from _registry_lines(one)
    if told["registries"]:
        yield NO_WEIGHTS
    yield from (f"kept: {path}" for path in told["copies"])
    for path in told["beside"]:
        yield f"outside of the profile, and not read: {path}; copy it into {told['folder']}/etc to have it looked at"
    yield from (f"problem: {problem}" for problem in told["problems"])
    yield from _next_lines(told, runs)


def _memory_lines(memories: dict[str, Any]) -> Iterator[str]:
    yield f"{drawing.plural(memories['read'], 'memory')} read: {memories['new']:,} new"
    for key, words in (
        ("known", "known here already"), ("twice", "the same as another one of the profile"),
        ("made_of", "made of a memory that is there itself (curated, or trained on before)"),
        ("forgotten", "forgotten here, and stay forgotten"), ("not_copied", "in files that could not be copied"),
        ("messages", "messages of chats, which the daemon makes memories of"),
        ("bad", "things in the files that cannot be taken: --verbose lists them"),
    ):  # fmt: skip
        if memories[key]:
            yield f"  {memories[key]:,} {words}"
    for reason, number in memories["left_out"].items():
        yield f"  of the new: {number:,} that curation leaves out: {reason}"


def _setting_lines(args: argparse.Namespace, told: dict[str, Any]) -> Iterator[str]:
    for one in told["settings"]:
        name = one["setting"] or one["key"]
        here = f" here {one['here']}" if one["setting"] else ""
        yield f"{name} {one['theirs']}{here}" + (f" ({one['problem']})" if one["problem"] else "")
    if told["settings_written"]:
        yield told["settings_written"]
    elif any(one["setting"] and not one["problem"] for one in told["settings"]):
        yield "--settings writes these into etc/training.json, where nobody has changed it"


def _registry_lines(one: dict[str, Any]) -> Iterator[str]:
    yield f"{one['path']}: {drawing.plural(len(one['versions']), 'version')}, begun on {one['original_base_model']}"
    for version in one["versions"]:
        samples = version["samples_trained"]
        ended = "" if version["training_success"] is not False else ", failed"
        yield drawing.fit(
            f"  v{version['version']}  {version['timestamp']}  {samples} samples on {version['base_model_used']}{ended}"
        )


def _next_lines(told: dict[str, Any], runs: bool) -> Iterator[str]:
    for batch in told["batches"]:
        yield f"added: {batch['path']}"
    for name in told["waiting"]:
        yield f"{name} waits in the inbox already"
    if told["dry_run"]:
        yield "Nothing was written."
    elif (told["batches"] or told["waiting"]) and runs:
        yield "The daemon takes it once it has not changed for the quiet time: engramd status"
    elif told["batches"] or told["waiting"]:
        yield "No daemon runs on this home: engramd run (stays), or engramd run --once (does what is due)"
    else:
        yield "There was nothing new to take."
