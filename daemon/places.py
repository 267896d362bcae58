"""What is to be forgotten, what it is found by, and every place of a profile in which it may stand."""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from daemon import durable, ledger, migrations
from daemon.durable import Pulse, no_pulse
from daemon.forget import Eraser, Place
from daemon.ledger import Database, forgetting, jobs, memories
from daemon.logs import get_logger
from daemon.records import Memory
from daemon.redaction import Listener, folder_files, recorder
from daemon.rules.emptied import named_in
from daemon.rules.needles import Needles, learnt_texts, pieces_of
from daemon.rules.samples import make_samples
from daemon.world import World
from trainer import names

_SUFFIXES = ("", "-wal", "-shm")

_log = get_logger()


@dataclass(slots=True)
class Subject:
    """What is to be forgotten, and what it is found by."""

    seqs: list[int]
    ids: frozenset[str]  # of the rows, and of the memories as they are read from them
    keys: frozenset[bytes]  # of their messages
    needles: Needles
    lines: list[str]  # that were learnt, and that nothing else says
    touched: frozenset[str] = frozenset()  # ids of memories that stay and have it in their question or context
    context_of: int = 0  # how many those are
    said_by: list[str] = field(default_factory=list)  # ids of memories that stay and say the same words

    def is_gone(self, memory: Memory) -> bool:
        return memory.id in self.ids or (bool(memory.parts) and all(part.key in self.keys for part in memory.parts))


def subject_of(world: World, seqs: list[int], pulse: Pulse = no_pulse) -> Subject:
    """Only words that no other memory says are looked for in files: of a text that two say, one stays."""
    db = world.db
    learnt: set[str] = set()
    asked: set[str] = set()
    around: set[str] = set()
    ids: set[str] = set()
    keys: set[bytes] = set()
    for row in forgetting.rows(db, seqs):
        memory = memories.from_row(row)
        ids |= {row["id"].hex(), memory.id}
        keys |= {part.key for part in memory.parts}
        _add(learnt, [*learnt_texts(memory), *_as_samples(world, memory)])
        _add(asked, [memory.content] if memory.response is not None else [])
        _add(around, (turn.text for turn in memory.context))
    found, near, said_by = Needles(learnt | asked | around), [], []
    for number, row in enumerate(forgetting.others(db, set(seqs)) if found else ()):
        if number % 256 == 0:
            pulse()
        other = memories.from_row(row)
        own = set(found.in_text("\n".join(learnt_texts(other))))
        if own:
            said_by += [row["id"].hex()] if own & learnt else []
            learnt -= own
            asked -= own
            around -= own
        question = set(found.in_text(other.content)) if other.response is not None else set()
        context = set(found.in_text("\n".join(turn.text for turn in other.context)))
        asked -= question
        around -= question | context
        if question or context:
            near.append(row["seq"])
    needles = Needles(learnt | asked | around)
    touched: set[str] = set()
    context_of = 0
    for row in forgetting.rows(db, near):
        other = memories.from_row(row)
        if forgetting.without_lines(other, needles.cut) is not other:
            touched |= {row["id"].hex(), other.id}
            context_of += 1
    return Subject(seqs, frozenset(ids), frozenset(keys), needles, sorted(learnt), frozenset(touched), context_of,
                   said_by)  # fmt: skip


def _add(pieces: set[str], texts: Iterable[str]) -> None:
    for text in texts:
        pieces.update(pieces_of(text))


def _as_samples(world: World, memory: Memory) -> list[str]:
    """The texts as they were cleaned for training, which is how context and logs may quote them."""
    made = make_samples(memory, world.curation, world.prompts, world.seed)
    return [turn.content for sample in made for turn in sample.messages if turn.loss]


def eraser_of(world: World, subject: Subject, now: str, reason: str, *, dry: bool, pulse: Pulse) -> Eraser:
    listener = Listener(world, subject.needles, subject.is_gone, subject.keys.__contains__)
    return Eraser(
        subject.needles, subject.ids, subject.touched, listener.look, recorder(world, now, reason), folder_files,
        dry=dry, pulse=pulse,
    )  # fmt: skip


def go_through(world: World, eraser: Eraser, subject: Subject) -> None:
    """Every place of this profile under the home, but for its ledger."""
    home, paths = world.home, world.paths
    job = jobs.open_job(world.db) if eraser.dry else None
    open_folder = paths.jobs / job["folder"] if job and holds(world.db, job, subject, paths.jobs) else None
    if open_folder is not None:  # only ever true of a dry run: else it was thrown back before
        eraser.places.append(Place(open_folder, 1, "removed", "its job is stopped and frozen anew without it"))
    eraser.records_below(paths.root, lambda path: path == open_folder)
    eraser.dropped_below(paths.failed)
    eraser.records_below(home.log.parent)
    for folder in snapshots_of(world):
        eraser.records_below(folder)
        for copy in sorted(folder.rglob("*.db")):
            _clean_copy(world, copy, eraser, subject)


def snapshots_of(world: World) -> list[Path]:
    """This profile's snapshots: of `me` they lie beside the folders of the others."""
    top = world.home.snapshots
    others = set(world.home.profile_names())
    if world.name != "me":
        top = top / world.name
        others = set()
    entries = sorted(top.iterdir()) if top.is_dir() else []
    return [entry for entry in entries if entry.is_dir() and entry.name not in others]


def _clean_copy(world: World, copy: Path, eraser: Eraser, subject: Subject) -> None:
    """A ledger in a snapshot: cleaned beside its place and renamed over it, so that linked bytes elsewhere are
    left to the visit there."""
    eraser.pulse()
    try:
        if eraser.dry:
            if times := _times_in_copy(copy, subject):
                eraser.places.append(Place(copy, times, "rewritten"))
            return
        beside = durable.temp_beside(copy)
        try:
            for suffix in _SUFFIXES:
                if _named(copy, suffix).exists():
                    durable.copy_durable(_named(copy, suffix), _named(beside, suffix))
            if changed := _cleaned(world, beside, subject, copy.parent / "jobs"):
                eraser.places.append(Place(copy, changed, "rewritten"))
                durable.fsync_file(beside)
                eraser.record(copy, durable.sha256_file(copy), durable.sha256_file(beside))
                beside.chmod(copy.stat().st_mode & 0o777)
                durable.rename_durable(beside, copy)
                for suffix in _SUFFIXES[1:]:
                    _named(copy, suffix).unlink(missing_ok=True)
        finally:
            for suffix in _SUFFIXES:
                _named(beside, suffix).unlink(missing_ok=True)
    except (sqlite3.DatabaseError, migrations.SchemaError, ledger.LedgerError) as error:
        _log.warning("copy_unreadable", profile=world.name, path=str(copy), reason=str(error))
        if subject.needles.are_in(copy.read_bytes()):
            eraser.places.append(Place(copy, 1, "kept", f"it cannot be read as a ledger: {error}"))


def _named(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _times_in_copy(copy: Path, subject: Subject) -> int:
    """In how many rows of a copy it stands, without writing anything beside it."""
    db = sqlite3.connect(f"file:{quote(str(copy))}?immutable=1", uri=True)
    try:
        ids = [(bytes.fromhex(id_),) for id_ in subject.ids | subject.touched]
        sql = "SELECT count(*) FROM memories WHERE id=? AND state<>'forgotten'"
        return sum(int(db.execute(sql, one).fetchone()[0]) for one in ids)
    except sqlite3.OperationalError:  # no ledger of a profile
        return 0
    finally:
        db.close()


def _cleaned(world: World, path: Path, subject: Subject, job_folders: Path) -> int:
    """How many rows of a copy were changed; it is a ledger or a `home.db`."""
    db = sqlite3.connect(path)
    try:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    finally:
        db.close()
    if "requests" in tables:
        with ledger.open_home(path, write=True) as home_db:
            with home_db.transaction():
                changed = forgetting.cut_requests(home_db, lambda text: bool(subject.needles.in_text(text)))
            forgetting.compact(home_db)
            return changed
    if "memories" not in tables:
        return 0
    with ledger.open_profile(path, write=True) as copy:
        seqs = forgetting.of_ids(copy, subject.ids)
        with copy.transaction():
            job = jobs.open_job(copy)
            if job and job["state"] in ("frozen", "running") and holds(copy, job, subject, job_folders):
                forgetting.throw_back(copy, job["id"], "it held a memory that was forgotten")
            changed = clean(copy, subject, seqs, world.seed)
        forgetting.compact(copy)
        return changed


def clean(db: Database, subject: Subject, seqs: list[int], seed: int) -> int:
    """The rows of a ledger, in the caller's transaction. Gives how many were changed."""
    changed = forgetting.erase(db, seqs, subject.lines, seed)
    needles = subject.needles
    if not needles:
        return changed
    for row in forgetting.rows(db, forgetting.of_ids(db, subject.touched)):
        other = memories.from_row(row)
        forgetting.write_memory(db, row["seq"], forgetting.without_lines(other, needles.cut))
        changed += 1
    return changed + forgetting.cut_quotes(db, lambda text: bool(needles.in_text(text)), needles.cut)


def holds(db: Database, job: dict[str, Any], subject: Subject, folders: Path) -> bool:
    """Whether a job was made of it, or of a memory that has it in its context, or asks about one of them: a sealed
    file of an open job must not change. `folders`: where the folders of jobs lie."""
    asked = subject.ids | subject.touched
    if not forgetting.ids_of_job(db, job["id"]).isdisjoint(asked):
        return True
    try:
        return not named_in((folders / str(job["folder"]) / names.PROBES).read_bytes()).isdisjoint(asked)
    except FileNotFoundError:
        return False
