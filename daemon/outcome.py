"""From the way a trainer ended to the job's next state: steps 6 to 8 of the road, for one profile.

Each outcome is one transaction, so that no crash leaves half of it. What is on disk comes first and is
adopted if it is there already; leftovers go last.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from daemon import cards, chains, durable, jobdir, losses, registry, supervisor
from daemon.compute import telling
from daemon.ledger import (
    Database,
    batches,
    jobs,
    lineage,
    memories,
    pins,
    rehearsal,
    requests,
    scores,
    serving,
)
from daemon.logs import get_logger
from daemon.rules import planning, promotion, unlike
from daemon.rules.retention import Decision, Item, decide
from daemon.settings_sections import Keep
from daemon.world import World
from trainer import names
from trainer.contract import JobResult, JobSpec, Retry
from trainer.names import ExitCode

MAX_KILLS = 10  # of one job, by somebody outside; its own crashes are limited by `jobs.retries`
_DISK_FULL = "No space left on device"
_EPOCH = datetime(2001, 1, 1, tzinfo=UTC)

_log = get_logger()


def settle(
    world: World, home_db: Database, job: dict[str, Any], ended: supervisor.Ended, now: str, *, orphan: bool = False
) -> str | None:
    """Record how the trainer ended. Gives the reason where this machine cannot run the job for now."""
    db, folder = world.db, world.paths.jobs / str(job["folder"])
    result = jobdir.read_result(folder)
    log = _log.bind(profile=world.name, job=job["id"])
    if result is not None and (away := telling.read(folder)):
        log.info("job_came_home", **away)
    if result is None:
        return _crashed(world, job, ended, now, orphan=orphan)
    if result.exit_code == ExitCode.DONE and job["kind"] != "finetune":  # nothing to judge, and no version
        with db.transaction():
            jobs.finish(db, job["id"], result.model_dump(mode="json"), now)
    elif result.exit_code == ExitCode.DONE:
        version = requests.next_id(home_db, world.name, "version", at_least=jobs.newest_version(db) + 1)
        with db.transaction():
            jobs.finish(db, job["id"], result.model_dump(mode="json"), now)
            jobs.insert_version(
                db, version=version, job=job["id"], chain=job["chain"], step=result.global_step or 0,
                sha256=result.checkpoint_sha256 or "", now=now,
            )  # fmt: skip
        log.info(
            "job_finished", version=version, step=result.global_step, loss=result.last_loss, notices=result.notices
        )
    elif job["kind"] == "export" and result.exit_code != ExitCode.INTERRUPTED:
        fail(world, job, result.reason or f"exit code {int(result.exit_code)}", int(result.exit_code), now)
    elif result.exit_code == ExitCode.INTERRUPTED:
        _interrupted(world, job, ended, result, now)
    elif result.exit_code == ExitCode.OUT_OF_MEMORY:
        _out_of_memory(world, job, result, now)
    elif result.exit_code == ExitCode.NO_DEVICE:
        reason = result.reason or "the device cannot be used"
        with db.transaction():
            jobs.pause(db, job["id"], reason)
        return reason
    else:
        fail(world, job, result.reason or f"exit code {int(result.exit_code)}", int(result.exit_code), now)
    return None


def _interrupted(world: World, job: dict[str, Any], ended: supervisor.Ended, result: JobResult, now: str) -> None:
    if ended.why_asked == "timeout":
        fail(world, job, "it ran into jobs.timeout_hours", int(result.exit_code), now)
        return
    stuck = ended.why_asked == "heartbeat"
    if stuck and job["crashes"] >= world.settings.jobs.retries:
        fail(world, job, "it gave no sign of life for jobs.heartbeat_seconds", int(result.exit_code), now)
        return
    with world.db.transaction():
        jobs.pause(world.db, job["id"], "it gave no sign of life" if stuck else "interrupted", crashed=stuck)
    _log.info("job_interrupted", profile=world.name, job=job["id"], step=result.global_step)


def _crashed(world: World, job: dict[str, Any], ended: supervisor.Ended, now: str, *, orphan: bool) -> str | None:
    """No result. A trainer that died with its daemon, or never got to work, is no fault of the job's."""
    folder = world.paths.jobs / str(job["folder"])
    own_end = ended.signal is None and not orphan
    tail = jobdir.tail_log(folder) if own_end else ""
    how = ended.signal or (f"exit code {ended.code}" if ended.code is not None else "nobody saw its end")
    reason = f"the trainer ended without a result ({how}){': ' + tail if tail else ''}"
    no_room = own_end and (ended.code == ExitCode.NO_DEVICE or _DISK_FULL in tail)
    if no_room:  # not even for the result, or the log
        reason = f"the disk of {folder} was full while the trainer wrote: free some space, and it goes on by itself"
    _log.warning("trainer_crashed", profile=world.name, job=job["id"], reason=reason)
    machine = own_end and (no_room or not (folder / names.PROGRESS).exists())
    if machine and job["kind"] == "export":  # what trains next must not wait for it
        fail(world, job, reason, ended.code, now)
        return None
    stopped = orphan or machine or (ended.asked and ended.why_asked in (None, "held"))
    from_outside = ended.signal in ("SIGKILL", "SIGTERM") and not ended.asked
    crashes = job["crashes"] + int(not stopped and not from_outside)
    kills = job["kills"] + int(not stopped and from_outside)
    if crashes > world.settings.jobs.retries or kills > MAX_KILLS:
        fail(world, job, reason, ended.code, now)
        return None
    with world.db.transaction():
        jobs.pause(
            world.db, job["id"], reason, crashed=crashes > job["crashes"], killed=kills > job["kills"]
        )  # fmt: skip
    return reason if machine else None


def _out_of_memory(world: World, job: dict[str, Any], result: JobResult, now: str) -> None:
    folder = world.paths.jobs / str(job["folder"])
    recipe, last, plan = jobdir.read_spec(folder).recipe, jobdir.read_retry(folder), jobdir.read_plan(folder)
    tokens = last.micro_batch_tokens if last else recipe.micro_batch_tokens
    checkpointing = last.use_gradient_checkpointing if last else recipe.use_gradient_checkpointing
    smaller = planning.smaller_layout(tokens, checkpointing, plan.longest if plan else tokens)
    if smaller is None:
        reason = f"out of memory at the smallest layout: {result.reason}; lower max_seq_length or set load_in_4bit"
        fail(world, job, reason, int(result.exit_code), now)
        return
    jobdir.write_retry(folder, Retry(micro_batch_tokens=smaller[0], use_gradient_checkpointing=smaller[1]))
    with world.db.transaction():
        jobs.pause(world.db, job["id"], "out of memory: tried again with a smaller layout")
    _log.warning(
        "out_of_memory", profile=world.name, job=job["id"], micro_batch_tokens=smaller[0],
        gradient_checkpointing=smaller[1], note="the bits of this job are no longer those of an undisturbed run",
    )  # fmt: skip


def fail(world: World, job: dict[str, Any], reason: str, exit_code: int | None, now: str) -> None:
    """The job has failed: each of its batches is tried once more, alone; after that a person decides."""
    db = world.db
    with db.transaction():
        jobs.fail(db, job["id"], reason, exit_code, now)
        memories.move_job(db, job["id"], "frozen", "held", reason)
        held = batches.hold(db, job["id"], reason)
    _log.error("job_failed", profile=world.name, job=job["id"], reason=reason, held_batches=held)
    jobdir.tidy(world.paths.jobs / str(job["folder"]))


def judge(world: World, job: dict[str, Any], now: str) -> None:
    """The verdict on a finished job, then its checkpoint into the chain, then the head."""
    db = world.db
    version = jobs.version_of_job(db, job["id"])
    assert version is not None
    result = JobResult.model_validate_json(job["result"])
    folder, spec = world.paths.jobs / str(job["folder"]), jobdir.read_spec(world.paths.jobs / str(job["folder"]))
    probes = jobdir.read_metrics(folder)
    verdict = promotion.decide(
        result, planned_steps=job["steps"], planned_samples=job["samples"], gate=world.settings.gate,
        probes=jobdir.count_probes(folder), against_base=spec.parent is None and spec.served is None,
        night=unlike.night(probes, scores.batches_of(db, probes)), earlier=scores.nights(db, version["line"]),
    )  # fmt: skip
    if verdict.promoted:
        try:
            chains.adopt(
                folder, result.checkpoint or "", world.paths.chains, version["chain"], version["checkpoint_sha256"]
            )
        except chains.DamagedCheckpoint as damage:
            verdict = promotion.Verdict(False, str(damage), verdict.figures)
    figures = _compared_with(world, spec) | verdict.figures
    durable.remove_temps(folder)  # of a verdict that was cut off
    jobdir.write_summary(folder, _summary(world, job, version, result, verdict, figures))
    log = _log.bind(profile=world.name, job=job["id"], version=version["id"])
    if not verdict.promoted:
        with db.transaction():
            jobs.refuse(db, version, verdict.reason, now)
            scores.decided(db, version["id"], figures, result.weights)
            scores.record(db, version["id"], probes)
            memories.move_job(db, job["id"], "frozen", "held", verdict.reason)
            held = batches.hold(db, job["id"], verdict.reason)
        log.warning("version_refused", reason=verdict.reason, held_batches=held)
        tidy(world)
        return
    with db.transaction():
        jobs.promote(db, version, verdict.reason, now)
        scores.decided(db, version["id"], figures, result.weights)
        scores.record(db, version["id"], probes)
        rehearsal.record_losses(db, job["id"], losses.of_memories(folder))
        trained = memories.move_job(db, job["id"], "frozen", "trained")
        batches.close_settled(db, jobs.batches_of(db, job["id"]))
    log.info("version_promoted", step=version["step"], memories=trained, reason=verdict.reason)
    tidy(world)


def _compared_with(world: World, spec: JobSpec) -> dict[str, Any]:
    """Who "served" is in the figures: the version that was in service, or the base model where none was."""
    sha256 = spec.served or spec.parent
    row = lineage.of_checkpoint(world.db, sha256) if sha256 else None
    return {
        "served_version": row["id"] if row else None, "served_sha256": sha256,
        "base_model": spec.recipe.base_model, "margins": world.settings.gate.model_dump(mode="json"),
    }  # fmt: skip


def _summary(
    world: World, job: dict[str, Any], version: dict[str, Any], result: JobResult, verdict: promotion.Verdict,
    figures: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """`run-summary.json`: where the run came from, what went in, who was compared, what was decided."""
    folder = world.paths.jobs / str(job["folder"])
    spec, plan = jobdir.read_spec(folder), jobdir.read_plan(folder)
    rows = [batches.get(world.db, batch) or {} for batch in jobs.batches_of(world.db, job["id"])]
    keys = ("id", "name", "sha256", "memories", "duplicates", "skipped", "bad_items")
    return {
        "profile": world.name, "job": job["id"], "kind": job["kind"], "version": version["id"],
        "line": job["line"], "verdict": "promoted" if verdict.promoted else "refused", "reason": verdict.reason,
        "gate": figures,
        "created_at": job["created_at"], "started_at": job["started_at"], "finished_at": job["finished_at"],
        "attempts": job["attempts"], "chain": job["chain"], "parent_step": job["parent_step"],
        "parent_sha256": job["parent_sha256"], "spec_sha256": job["spec_sha256"], "seed": spec.seed,
        "recipe": spec.recipe.model_dump(mode="json"), "samples_sha256": spec.samples_sha256,
        "batches": [{key: row.get(key) for key in keys} for row in rows],
        "memories": {"new": 0, "replay": 0, **jobs.uses_of(world.db, job["id"]), "anchor": job["anchors"]},
        "selection": json.loads(job["cycle"]) if job["cycle"] else None,
        "mix": world.settings.training.mix.model_dump(mode="json"),
        "sizes": jobdir.sizes(folder, result.checkpoint, chains.folder(
            world.paths.chains, version["chain"], version["step"])),
        "seconds": result.seconds, "compute": telling.read(folder) or None,
        "left_out": jobs.left_out_of(world.db, job["id"]),
        "plan": plan.model_dump(mode="json") if plan else None,
        "result": result.model_dump(mode="json"),
    }  # fmt: skip


def needed_versions(world: World) -> dict[int, str]:
    """Versions of which nothing goes, each with the reason."""
    db = world.db
    found = {int(name): "pinned" for name in pins.names(db, "version")}
    versions = {row["id"]: row for row in jobs.versions(db)}
    for line, head in jobs.heads(db).items():
        whose = f" of line {line}" if line else ""
        reasons = (f"the head{whose}", "its parent, to which one can go back")
        for version, why in zip(_line(versions, head), reasons, strict=False):
            found.setdefault(version, why)
    if world.settings.versioning.keep_all_versions:
        for version in versions:
            found.setdefault(version, "versioning.keep_all_versions is set")
    return found


def _line(versions: dict[int, dict[str, Any]], head: dict[str, Any] | None) -> Iterator[int]:
    """As `lineage.line`, but only as far down as somebody looks."""
    version, above = head["version"] if head else None, None
    while version in versions and (above is None or version < above):
        yield version
        version, above = versions[version]["parent"], version


def needed_checkpoints(world: World) -> dict[str, str]:
    """Manifest hashes of the checkpoints that never go, each with the reason: those of needed versions, the one that
    an open job starts from, and the newest whole one below each head, should the head's own be damaged."""
    db = world.db
    versions, points = {row["id"]: row for row in jobs.versions(db)}, jobs.checkpoints(db)
    of_version = needed_versions(world)
    found = {row["checkpoint_sha256"]: of_version[id_] for id_, row in versions.items() if id_ in of_version}
    job = jobs.open_job(db)
    if job and job["parent_sha256"]:
        found.setdefault(job["parent_sha256"], f"job {job['id']} starts from it")
    for head in jobs.heads(db).values():
        for version in _line(versions, head):
            sha256 = versions[version]["checkpoint_sha256"]
            places = [chains.folder(world.paths.chains, one["chain"], one["step"])
                      for one in points if one["sha256"] == sha256]  # fmt: skip
            if any(chains.looks_whole(place, sha256) for place in places):
                found.setdefault(sha256, "the newest that is whole")
                break
    return found


def decide_chain(world: World, chain: int, needed: dict[str, str]) -> list[tuple[Decision, Path]]:
    """Which checkpoints of a head's chain stay, the newest first. A chain's order is that of its steps, whatever
    the clock said when they were made; what no transaction speaks of is not touched."""
    recorded = {point["step"]: point["sha256"] for point in jobs.checkpoints(world.db) if point["chain"] == chain}
    paths = {step: path for step, path in chains.steps(world.paths.chains, chain).items() if step in recorded}
    items = [Item(str(step), _EPOCH + timedelta(microseconds=step)) for step in paths]
    protected = {str(step): needed[recorded[step]] for step in paths if recorded[step] in needed}
    now = max((item.time for item in items), default=_EPOCH)
    keep = Keep(keep_last=world.most_checkpoints_of((jobs.chain_key(world.db, chain) or {}).get("method", "")))
    return [(one, paths[int(one.name)]) for one in decide(items, keep, now, UTC, protected)]


def tidy(world: World) -> None:
    """What may be done again at every start: the symlink, old checkpoints, leftovers in job folders."""
    heads, paths = jobs.heads(world.db), world.paths
    if "" not in heads:
        paths.current_model.unlink(missing_ok=True)
    else:
        chains.point(paths.current_model, paths.chains, heads[""]["chain"])
    for head in heads.values():
        if (paths.chains / str(head["chain"])).is_dir():
            durable.remove_gone(paths.chains / str(head["chain"]))
        for one, path in decide_chain(world, head["chain"], needed_checkpoints(world)):
            if not one.keep:
                durable.remove_durable(path)
    told = registry.mirror(
        world.db, base_model=world.recipe.base_model, chains=paths.chains, versioning=world.settings.versioning
    )
    if told["training_history"]:
        registry.write(paths.registry, told)
    _cards(world, told)
    for job in jobs.ended(world.db):
        folder = paths.jobs / str(job["folder"])
        if jobdir.is_untidy(folder) or jobdir.newest_checkpoint(folder):
            jobdir.tidy(folder)
    for row in serving.collected(world.db):  # the files of one that was asked for stay until they were fetched
        keep = names.EXPORT if row["fetched"] is None else None
        if jobdir.is_untidy(folder := paths.jobs / row["folder"]) or (not keep and (folder / names.EXPORT).exists()):
            jobdir.tidy(folder, keep)
    for row in scores.refused(world.db):
        jobdir.tidy(paths.jobs / str(row["folder"]), keep=f"{names.CHECKPOINT_PREFIX}{row['step']}")


def _cards(world: World, told: dict[str, Any]) -> None:
    """The own folder of each version that a line relies on: once it has one, only retention takes it away."""
    for head in told["heads"].values():
        number, root = head["version"], world.paths.root
        folder, line = root / registry.MODELS / f"v{number}", registry.line_of(told, number)
        if line and cards.needed(folder):
            job = jobs.get(world.db, int(line[0]["run_id"])) or {}
            cards.write(folder, world.db, line, registry.summary(root, number, str(job.get("folder"))),
                        world.paths.jobs / str(job.get("folder")) / names.SUMMARY)  # fmt: skip
