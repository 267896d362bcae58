"""`engramd forget`: a memory out of every place, in an order that any crash may cut.

Files first, while the ledger still has the texts to look for; then one transaction empties the rows; then the
databases are written anew. The request stays open until all is done, so that a killed daemon begins again and
finds less to do. An open job that holds the memory is stopped and thrown back before anything else.
"""

import json
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.durable import Pulse, no_pulse
from daemon.forget import Place
from daemon.ledger import Database, batches, forgetting, jobs, serving
from daemon.logs import get_logger
from daemon.places import Subject, clean, eraser_of, go_through, holds, snapshots_of, subject_of
from daemon.redaction import hash_of, recorder
from daemon.training import Training
from daemon.world import World
from trainer import names

_log = get_logger()


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
                   for row in forgetting.redacted(db, reason)] + begun["kept"],
        **taught(world, begun["seqs"]),
    }  # fmt: skip
    _log.info("memories_forgotten", profile=world.name, memories=told["memories"], files=len(told["places"]),
              versions=[version["version"] for version in told["learnt_by"]])  # fmt: skip
    return told


def _job_out_of_the_way(world: World, training: Training, subject: Subject, reason: str) -> bool:
    """The open job is stopped and thrown back where it holds the memory; one that has ended is judged first."""
    db = world.db
    job = jobs.open_job(db)
    if job is not None and holds(db, job, subject, world.paths.jobs):
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
    kept = [{"path": str(place.path.relative_to(world.home.root)), "what": "kept", "why": place.why}
            for place in eraser.places if place.what == "kept"]  # fmt: skip
    begun = {
        "request": request["id"], "seqs": subject.seqs, "context_of": subject.context_of, "said_by": subject.said_by,
        "kept": kept,
    }  # fmt: skip
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
    """`learnt_by`: the versions that learnt it, each with its folders, and `served_as`, its names in Ollama; `rebuild`:
    from where one without it starts; `elsewhere`: a machine that jobs are sent to, which is not asked."""
    db, paths = world.db, world.paths
    found, heads = forgetting.learnt_by(db, seqs), {head["version"] for head in jobs.heads(db).values()}
    learnt_by = []
    for version in found:
        in_use = version["id"] in heads
        name = f"checkpoint-{version['step']}"
        places = [paths.chains / str(version["chain"]) / name, paths.jobs / version["folder"] / name,
                  paths.root / "models" / f"v{version['id']}"]  # fmt: skip
        places += [paths.jobs / str(job["folder"]) / names.EXPORT for job in serving.of_version(db, version["id"])]
        for snapshot in snapshots_of(world):
            places += sorted(snapshot.rglob(f"chains/{version['chain']}/{name}"))
            places += sorted(snapshot.rglob(f"models/v{version['id']}"))
        learnt_by.append({
            "version": version["id"], "state": version["state"], "chain": version["chain"], "step": version["step"],
            "in_use": in_use, "paths": [str(place) for place in places if place.exists()],
            "served_as": serving.names_of(db, version["id"]),
        })  # fmt: skip
    ssh = world.settings.compute.ssh
    elsewhere = {"host": ssh.host, "folder": ssh.folder} if ssh.host else None
    return {"learnt_by": learnt_by, "rebuild": _rebuild(world, found[0]) if found else None, "elsewhere": elsewhere}


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
