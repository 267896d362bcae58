"""`engramd forget`: a memory out of every place, in an order that any crash may cut.

Files first, while the ledger still has the texts to look for; then one transaction empties the rows; then the
databases are written anew. The request stays open until all is done, so that a killed daemon begins again and
finds less to do. An open job that holds the memory is stopped and thrown back before anything else.
"""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from daemon import durable, ledger, migrations
from daemon.durable import Pulse, no_pulse
from daemon.forget import Eraser, Place
from daemon.ledger import Database, batches, forgetting, jobs, memories
from daemon.logs import get_logger
from daemon.records import Memory
from daemon.redaction import Listener, folder_files, hash_of, recorder
from daemon.rules.needles import Needles, learnt_texts, pieces_of
from daemon.rules.samples import make_samples
from daemon.training import Training
from daemon.world import World

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


def chosen(db: Database, arguments: dict[str, Any]) -> list[int]:
    """The memories that a request names. Raises ValueError with a sentence where there are none."""
    if arguments.get("batch") is not None:
        what, found = f"batch {arguments['batch']}", forgetting.of_batch(db, arguments["batch"])
    elif arguments.get("source") is not None:
        what, found = f"source {arguments['source']!r}", forgetting.of_source(db, arguments["source"])
    else:
        what, found = "these ids", forgetting.of_ids(db, arguments["ids"])
    if not found and not (arguments.get("batch") is not None and batches.get(db, arguments["batch"])):
        known = f"; known sources: {', '.join(forgetting.sources(db))}" if arguments.get("source") is not None else ""
        raise ValueError(f"no memory of {what} is there to be forgotten{known}")
    return forgetting.with_other_wordings(db, found)


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
    open_folder = paths.jobs / job["folder"] if job and holds(world.db, job, subject) else None
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
            if changed := _cleaned(world, beside, subject):
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
        if subject.needles.in_bytes(copy.read_bytes()):
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


def _cleaned(world: World, path: Path, subject: Subject) -> int:
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
            if job and job["state"] in ("frozen", "running") and holds(copy, job, subject):
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


def holds(db: Database, job: dict[str, Any], subject: Subject) -> bool:
    """Whether a job was made of it, or of a memory that has it in its context."""
    return not forgetting.ids_of_job(db, job["id"]).isdisjoint(subject.ids | subject.touched)


# -- the request -------------------------------------------------------------------------------------


def answer(
    world: World, home_db: Database, training: Training, request: dict[str, Any], now: str, *, settled: bool,
    pulse: Pulse = no_pulse,
) -> dict[str, Any] | None:  # fmt: skip
    """What was done, None where it is not done yet. Raises ValueError with a sentence."""
    db, reason = world.db, f"forgotten (request {request['id']})"
    begun = json.loads(jobs.get_meta(db, forgetting.IN_WORK) or "{}")
    if not begun:
        if not settled:  # a file that is being read may hold it, too
            return None
        arguments = json.loads(request["arguments"])
        subject = subject_of(world, chosen(db, arguments), pulse)
        if not _job_out_of_the_way(world, training, subject, reason):
            return None
        begun = _take_out(world, home_db, subject, request, now, reason, pulse)
    if not (forgetting.compact(db) and forgetting.compact(home_db)):
        return None
    with db.transaction():
        jobs.set_meta(db, forgetting.IN_WORK, None)
    told = {
        "memories": len(begun["seqs"]), "context_of": begun["context_of"], "said_by": begun["said_by"],
        "places": [{"path": row["path"], "what": "removed" if row["new_sha256"] is None else "rewritten"}
                   for row in forgetting.redacted(db, reason)],
        **taught(world, begun["seqs"]),
    }  # fmt: skip
    _log.info("memories_forgotten", profile=world.name, memories=told["memories"], files=len(told["places"]),
              versions=[version["version"] for version in told["learnt_by"]])  # fmt: skip
    return told


def _job_out_of_the_way(world: World, training: Training, subject: Subject, reason: str) -> bool:
    """The open job is stopped and thrown back where it holds the memory; one that has ended is judged first."""
    db = world.db
    job = jobs.open_job(db)
    if job is not None and holds(db, job, subject):
        if job["state"] != "frozen" or training.occupied:
            if job["state"] == "running":
                training.stop()
            return False
        with db.transaction():
            forgetting.throw_back(db, job["id"], reason)
        _log.info("job_thrown_back", profile=world.name, job=job["id"], reason="a memory in it is forgotten")
    for folder in forgetting.folders_of_forgotten_jobs(db):
        durable.remove(world.paths.jobs / folder)
    if world.paths.jobs.is_dir():
        durable.remove_gone(world.paths.jobs)
    return True


def _take_out(
    world: World, home_db: Database, subject: Subject, request: dict[str, Any], now: str, reason: str, pulse: Pulse
) -> dict[str, Any]:
    db = world.db
    for folder in (world.paths.claimed, world.paths.failed, *_months(world)):
        if folder.is_dir():
            durable.remove_temps(folder)
    eraser = eraser_of(world, subject, now, reason, dry=False, pulse=pulse)
    go_through(world, eraser, subject)
    _claims_again(world, eraser.places)
    _whole_batch(world, json.loads(request["arguments"]), now, reason)
    begun = {"request": request["id"], "seqs": subject.seqs, "context_of": subject.context_of,
             "said_by": subject.said_by}  # fmt: skip
    with home_db.transaction():
        forgetting.cut_requests(home_db, lambda text: bool(subject.needles.in_text(text)))
    with db.transaction():
        clean(db, subject, subject.seqs, world.seed)
        batches.close_settled(db, forgetting.batches_of(db, subject.seqs))
        jobs.set_meta(db, forgetting.IN_WORK, json.dumps(begun))
    return begun


def _months(world: World) -> list[Path]:
    return [month for month in world.paths.archive.iterdir() if month.is_dir()] if world.paths.archive.is_dir() else []


def _claims_again(world: World, places: list[Place]) -> None:
    """A file that waits in `claimed/` for its owner's name has other bytes now, or is gone."""
    db = world.db
    for row in batches.in_state(db, "needs_owner"):
        path = world.paths.claimed / row["path"]
        if not any(place.path == path or path in place.path.parents for place in places):
            continue
        with db.transaction():
            if path.is_file():
                status = path.stat()
                batches.renamed(db, row["id"], path.name, durable.sha256_file(path), status.st_size, status.st_mtime)
            elif not path.exists():
                batches.discard(db, row["id"], "forgotten")


def batch_files(world: World, batch: int) -> list[Path]:
    """The file of a batch as it was dropped, wherever it lies now; of a refused one its reason, too."""
    row = batches.get(world.db, batch)
    if row is None:
        return []
    places = [world.paths.claimed / row["path"], *(month / row["path"] for month in _months(world))]
    for reason in sorted(world.paths.failed.glob("*.reason.json")) if world.paths.failed.is_dir() else ():
        try:
            told = json.loads(reason.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(told, dict) and told.get("batch") == batch:
            places += [reason.with_name(reason.name.removesuffix(".reason.json")), reason]
    return [place for place in places if place.exists()]


def _whole_batch(world: World, arguments: dict[str, Any], now: str, reason: str) -> None:
    """`--batch` takes its file, too, with what is no memory in it."""
    batch = arguments.get("batch")
    for path in batch_files(world, batch) if batch is not None else ():
        recorder(world, now, reason)(path, hash_of(path), None)
        durable.remove(path)
        durable.remove_gone(path.parent)
        durable.fsync_dir(path.parent)
    row = batches.get(world.db, batch) if batch is not None else None
    if row is not None and row["state"] == "needs_owner":
        with world.db.transaction():
            batches.discard(world.db, row["id"], "forgotten")


# -- what has learnt it ------------------------------------------------------------------------------


def taught(world: World, seqs: list[int]) -> dict[str, Any]:
    """`learnt_by`: the versions that learnt it, each with its folders; `rebuild`: from where one without it starts."""
    db, paths = world.db, world.paths
    found, head = forgetting.learnt_by(db, seqs), jobs.get_head(db)
    learnt_by = []
    for version in found:
        in_use = bool(head and head["version"] == version["id"])
        name = f"checkpoint-{version['step']}"
        places = [paths.chains / str(version["chain"]) / name, paths.jobs / version["folder"] / name,
                  paths.root / "models" / f"v{version['id']}"]  # fmt: skip
        for snapshot in snapshots_of(world):
            places += sorted(snapshot.rglob(f"chains/{version['chain']}/{name}"))
            places += sorted(snapshot.rglob(f"models/v{version['id']}"))
        learnt_by.append({
            "version": version["id"], "state": version["state"], "chain": version["chain"], "step": version["step"],
            "in_use": in_use, "paths": [str(place) for place in places if place.exists()],
        })  # fmt: skip
    return {"learnt_by": learnt_by, "rebuild": _rebuild(world, found[0]) if found else None}


def _rebuild(world: World, first: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint from before its first training; no path where that is the base model itself."""
    parent = first["parent_sha256"]
    point = next((one for one in jobs.checkpoints(world.db) if one["sha256"] == parent), None) if parent else None
    if point is None:
        return {"from": "base", "path": None, "step": 0, "base_model": world.recipe.base_model}
    name = f"chains/{point['chain']}/checkpoint-{point['step']}"
    places = [world.paths.root / name]
    for snapshot in snapshots_of(world):
        places += sorted(snapshot.rglob(name))
    path = next((place for place in places if place.is_dir()), None)
    if path is None:
        return {"from": "base", "path": None, "step": 0, "base_model": world.recipe.base_model}
    return {"from": "checkpoint", "path": str(path), "step": point["step"], "base_model": world.recipe.base_model}


def dry_run(world: World, arguments: dict[str, Any], pulse: Pulse = no_pulse) -> dict[str, Any]:
    """What `answer` would do and tell, place by place; changes nothing. Raises ValueError with a sentence."""
    subject = subject_of(world, chosen(world.db, arguments), pulse)
    eraser = eraser_of(world, subject, "", "", dry=True, pulse=pulse)
    go_through(world, eraser, subject)
    places = eraser.places
    for path in batch_files(world, arguments["batch"]) if arguments.get("batch") is not None else ():
        places = [one for one in places if one.path != path] + [Place(path, 1, "removed", "it is the batch's file")]
    ledger_times = len(subject.seqs) + subject.context_of
    rows = [Place(world.paths.ledger, ledger_times, "rewritten", "rows are emptied, the file is written anew")]
    home = world.home.root
    return {
        "memories": len(subject.seqs), "context_of": subject.context_of, "said_by": subject.said_by,
        "places": [{"path": str(place.path.relative_to(home)), "times": place.times, "what": place.what,
                    "why": place.why} for place in [*rows, *places]],
        **taught(world, subject.seqs),
    }  # fmt: skip
