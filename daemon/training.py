"""Steps 4 to 8 of the road, for one profile: plan, freeze, run, judge, promote.

Each step can be taken again after a crash at any point: what is on disk comes first and is adopted if
it is there already, then one transaction says so, then the leftovers go.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon import chains, jobdir, progress_tail, supervisor
from daemon.ledger import Database, batches, jobs, memories, requests
from daemon.logs import get_logger
from daemon.records import Memory
from daemon.rules import planning, promotion
from daemon.rules.probes import make_probes
from daemon.rules.samples import make_samples
from daemon.world import World
from trainer import base_files, names
from trainer.contract import JobResult, JobSpec, Retry, Sample
from trainer.names import ExitCode

MAX_KILLS = 10  # SIGKILL from outside, of one job; its own crashes are limited by `jobs.retries`
DEVICE_PAUSE = 60.0  # seconds until a job without its device is tried again
PROBES_FROM = 2000  # memories of a job that probes are chosen from

_log = get_logger()


class Training:
    """The jobs of one profile: at most one of them is open at a time."""

    def __init__(
        self, world: World, home_db: Database, clock: Callable[[], float] = time.monotonic,
        command: Sequence[str] = supervisor.COMMAND,
    ) -> None:  # fmt: skip
        self._command = command
        self._world = world
        self._home_db = home_db
        self._clock = clock
        self._child: supervisor.Trainer | None = None
        self._leftover_since: float | None = None
        self._not_before = 0.0
        self._fingerprints: dict[Path, str] = {}
        self._logged_progress = 0.0
        self._log = _log.bind(profile=world.name)

    # -- what the service asks ------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._child is not None

    def recover(self, now: str) -> None:
        """Bring disk and ledger together after any end, also a power cut."""
        paths, db = self._world.paths, self._world.db
        for name in jobdir.remove_unrecorded(paths.jobs, jobs.folders(db)):
            self._log.info("unrecorded_job_removed", folder=name)
        head = jobs.get_head(db)
        if head:
            self._after_promotion(head)

    def tick(self, now: str, *, may_start: bool) -> bool:
        """One step of the open job, or the plan of the next. Gives whether anything was done."""
        job = jobs.open_job(self._world.db)
        if job is None:
            return may_start and self._plan(now)
        if job["state"] == "finished":
            self._judge(job, now)
            return True
        if self._child is not None:
            return self._watch(job, now)
        if self._wait_for_leftover(job):
            return False
        if job["state"] == "running":  # its daemon died: the outcome lies in the folder
            self._settle(job, supervisor.Ended(), now, orphan=True)
            return True
        return may_start and self._start(job, now)

    def line(self) -> str:
        """What the running job is at, in a few words."""
        job = jobs.open_job(self._world.db)
        if job is None:
            return "idle"
        line = progress_tail.last(self._folder(job)) or {}
        step, loss = line.get("step"), line.get("loss")
        where = f"step {step}/{line.get('steps')}" if step is not None else str(line.get("phase", "starting"))
        parts = [f"job {job['id']}", where]
        return ", ".join(parts + ([f"loss {loss:.3f}"] if isinstance(loss, float) else []))

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()

    # -- planning and freezing ------------------------------------------------------------------

    def _wait(self, reason: str | None) -> None:
        """Write down why nothing is trained, for `status`; only where it changed."""
        if jobs.get_meta(self._world.db, "waits") != reason:
            with self._world.db.transaction():
                jobs.set_meta(self._world.db, "waits", reason)
            if reason:
                self._log.info("training_waits", reason=reason)

    def _plan(self, now: str) -> bool:
        world = self._world
        if not memories.any_waiting(world.db):
            self._wait(None)
            return False
        try:
            base = base_files.resolve(world.recipe.base_model)
        except base_files.BaseMissing as missing:
            self._wait(str(missing))
            return False
        waiting = memories.waiting_batches(world.db)
        choice = planning.choose_batches(
            [planning.WaitingBatch(row["batch"], row["failures"], row["waiting"]) for row in waiting],
            max_batches=world.settings.jobs.max_batches_per_job,
            max_memories=world.settings.jobs.max_memories_per_job,
        )
        self._freeze(choice, self._fingerprint(base), now)
        return True

    def _fingerprint(self, base: Path) -> str:
        if base not in self._fingerprints:
            self._fingerprints[base] = base_files.fingerprint(base)
        return self._fingerprints[base]

    def _freeze(self, choice: planning.Choice, base_fingerprint: str, now: str) -> None:
        world, db, paths = self._world, self._world.db, self._world.paths
        recipe = world.recipe
        head = jobs.get_head(db)
        old_key = jobs.chain_key(db, head["chain"]) if head else None
        key_sha256, key = planning.chain_key(recipe, base_fingerprint)
        why_new = planning.why_new_chain(old_key, key)
        parent = None if why_new or head is None else head

        number = requests.next_id(self._home_db, world.name, "job")
        folder = paths.jobs / f"{number}-finetune"
        staged = jobdir.stage(paths.jobs, number)
        taken: list[tuple[int, int, str, int]] = []  # seq, batch, id, samples
        for_probes: list[Memory] = []
        samples_sha256 = jobdir.write_lines(
            staged / names.SAMPLES, self._samples(choice, taken, for_probes)
        )
        used = [row for row in taken if row[3]]
        empty = [row[0] for row in taken if not row[3]]
        if not used:
            with db.transaction():
                memories.skip(db, empty, "it gives no sample")
                batches.close_settled(db, choice.batches)
            return
        probes = make_probes(
            for_probes, world.seed, curation=world.curation, prompts=world.prompts, profile_seed=world.seed,
            system_prompt=world.settings.curation.system_prompt,
        )  # fmt: skip
        probes_sha256 = jobdir.write_lines(staged / names.PROBES, probes)
        parent_sha256 = parent["sha256"] if parent else None
        if parent:
            chains.link(chains.folder(paths.chains, parent["chain"], parent["step"]), staged / names.PARENT)
        seed = planning.job_seed(world.seed, world.name, parent_sha256, [row[2] for row in used])
        count = sum(row[3] for row in used)
        segments = planning.segments(count, recipe.num_train_epochs, seed)
        spec = JobSpec(
            recipe=recipe, segments=segments, samples_sha256=samples_sha256, probes_sha256=probes_sha256,
            parent=parent_sha256, seed=seed,
        )  # fmt: skip
        spec_sha256 = jobdir.seal(staged, spec, folder)
        chain = parent["chain"] if parent else requests.next_id(self._home_db, world.name, "chain")
        steps = planning.steps(recipe, [len(segment) for segment in segments])
        with db.transaction():
            if not parent:
                jobs.insert_chain(db, chain, key_sha256, key, why_new or "", now)
            jobs.insert(
                db, job=number, kind="finetune", folder=folder.name, spec_sha256=spec_sha256, chain=chain,
                parent_sha256=parent_sha256, parent_step=parent["step"] if parent else 0, steps=steps,
                samples=count * recipe.num_train_epochs, now=now,
                memories=[(seq, "new", n) for seq, _, _, n in used],
                batches=sorted({batch for _, batch, _, _ in used}),
            )  # fmt: skip
            memories.freeze(db, [row[0] for row in used])
            memories.skip(db, empty, "it gives no sample")
            jobs.set_meta(db, "waits", None)
        if why_new:
            self._log.info("new_chain", job=number, chain=chain, reason=why_new)
        self._log.info(
            "job_frozen", job=number, batches=len({row[1] for row in used}), memories=len(used), samples=count,
            steps=steps, parent_step=parent["step"] if parent else 0, reason=choice.reason,
        )  # fmt: skip

    def _samples(
        self, choice: planning.Choice, taken: list[tuple[int, int, str, int]], for_probes: list[Memory]
    ) -> Iterator[Sample]:
        """The samples of the chosen memories, in the order of arrival; notes what was taken on the way."""
        world = self._world
        for seq, batch, id_, memory in memories.waiting_of(world.db, choice.batches, choice.memories):
            made = make_samples(
                memory, world.curation, world.prompts, world.seed, world.settings.curation.system_prompt
            )
            taken.append((seq, batch, id_, len(made)))
            if made and len(for_probes) < PROBES_FROM:
                for_probes.append(memory)
            yield from made

    # -- running --------------------------------------------------------------------------------

    def _folder(self, job: dict[str, Any]) -> Path:
        return self._world.paths.jobs / str(job["folder"])

    def _wait_for_leftover(self, job: dict[str, Any]) -> bool:
        """Whether a trainer of an earlier daemon still holds the folder; past its time it is killed."""
        folder = self._folder(job)
        if not supervisor.is_locked(folder):
            self._leftover_since = None
            return False
        if self._leftover_since is None:
            self._leftover_since = self._clock()
            self._log.info("waiting_for_leftover_trainer", job=job["id"])
        elif self._clock() - self._leftover_since > self._world.settings.jobs.stop_seconds:
            supervisor.kill_leftover(folder, job["pid"], job["pid_start"])
        return True

    def _start(self, job: dict[str, Any], now: str) -> bool:
        if self._clock() < self._not_before:
            return False
        settings, folder = self._world.settings.jobs, self._folder(job)
        try:
            base_files.resolve(jobdir.read_spec(folder).recipe.base_model)
        except base_files.BaseMissing as missing:
            self._wait(str(missing))
            return False
        self._wait(None)
        jobdir.clear_result(folder)
        limits = supervisor.Limits(
            heartbeat_seconds=settings.heartbeat_seconds, timeout_seconds=settings.timeout_hours * 3600,
            stop_seconds=settings.stop_seconds, nice=settings.nice, threads=settings.threads,
        )  # fmt: skip
        self._child = supervisor.Trainer(folder, limits, self._command)
        with self._world.db.transaction():
            jobs.start(self._world.db, job["id"], self._child.pid, self._child.pid_start, now)
        own = jobdir.newest_checkpoint(folder)
        log = self._log.bind(job=job["id"])
        if own:
            log.info("resuming_from_checkpoint", path=str(own), global_step=names.checkpoint_step(own.name))
        elif job["parent_sha256"]:
            path = chains.folder(self._world.paths.chains, job["chain"], job["parent_step"])
            log.info("resuming_from_checkpoint", path=str(path), global_step=job["parent_step"])
        else:
            log.info("starting_from_base", base=self._world.recipe.base_model)
        log.info("job_started", attempt=job["attempts"] + 1, pid=self._child.pid, steps=job["steps"])
        return True

    def _watch(self, job: dict[str, Any], now: str) -> bool:
        assert self._child is not None
        self._log_progress(job)
        ended = self._child.poll()
        if ended is None:
            return False
        self._child = None
        self._settle(job, ended, now)
        return True

    def _log_progress(self, job: dict[str, Any]) -> None:
        if self._clock() - self._logged_progress < 5.0:
            return
        line = progress_tail.last(self._folder(job))
        if line and line.get("step") is not None:
            self._logged_progress = self._clock()
            keys = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "samples_seen", "steps")
            self._log.info(
                "progress", job=job["id"], step=line["step"], **{k: line[k] for k in keys if k in line}
            )

    # -- the outcome ----------------------------------------------------------------------------

    def _settle(self, job: dict[str, Any], ended: supervisor.Ended, now: str, *, orphan: bool = False) -> None:
        """From the way a trainer ended to the job's next state."""
        folder, db = self._folder(job), self._world.db
        result = jobdir.read_result(folder)
        log = self._log.bind(job=job["id"])
        if result is None:
            self._crashed(job, ended, now, orphan=orphan)
        elif result.exit_code == ExitCode.DONE:
            version = requests.next_id(self._home_db, self._world.name, "version")
            with db.transaction():
                jobs.finish(db, job["id"], result.model_dump(mode="json"), now)
                jobs.insert_version(
                    db, version=version, job=job["id"], chain=job["chain"], step=result.global_step or 0,
                    sha256=result.checkpoint_sha256 or "", now=now,
                )  # fmt: skip
            log.info("job_finished", version=version, step=result.global_step, loss=result.last_loss,
                     notices=result.notices)  # fmt: skip
        elif result.exit_code == ExitCode.INTERRUPTED:
            why = {"heartbeat": "it gave no sign of life", "timeout": "it ran into the time limit"}
            with db.transaction():
                jobs.pause(db, job["id"], why.get(ended.why_asked or "", "interrupted"))
            log.info("job_interrupted", step=result.global_step)
            if ended.why_asked == "timeout":
                self._fail(jobs.get(db, job["id"]) or job, "it ran into jobs.timeout_hours", result, now)
        elif result.exit_code == ExitCode.OUT_OF_MEMORY:
            self._out_of_memory(job, result, now)
        elif result.exit_code == ExitCode.NO_DEVICE:
            with db.transaction():
                jobs.pause(db, job["id"], result.reason or "the device cannot be used")
            self._not_before = self._clock() + DEVICE_PAUSE
            self._wait(result.reason or "the device cannot be used")
            log.warning("no_device", reason=result.reason)
        else:
            self._fail(job, result.reason or f"exit code {int(result.exit_code)}", result, now)

    def _crashed(self, job: dict[str, Any], ended: supervisor.Ended, now: str, *, orphan: bool) -> None:
        """No result. A trainer that died with its daemon is no fault of the job's and is not counted."""
        how = ended.signal or (f"exit code {ended.code}" if ended.code is not None else "its daemon died")
        tail = jobdir.tail_log(self._folder(job)) if ended.signal is None and not orphan else ""
        reason = f"the trainer ended without a result ({how}){': ' + tail if tail else ''}"
        stopped = orphan or (ended.asked and ended.why_asked is None)  # on our way out: no fault of the job's
        from_outside = ended.signal in ("SIGKILL", "SIGTERM") and not ended.asked
        with self._world.db.transaction():
            jobs.pause(
                self._world.db, job["id"], reason,
                crashed=not stopped and not from_outside, killed=not stopped and from_outside,
            )  # fmt: skip
        self._log.warning("trainer_crashed", job=job["id"], reason=reason)
        after = jobs.get(self._world.db, job["id"]) or job
        if after["crashes"] > self._world.settings.jobs.retries or after["kills"] > MAX_KILLS:
            self._fail(after, reason, None, now)

    def _out_of_memory(self, job: dict[str, Any], result: JobResult, now: str) -> None:
        folder = self._folder(job)
        recipe, last, plan = jobdir.read_spec(folder).recipe, jobdir.read_retry(folder), jobdir.read_plan(folder)
        tokens = last.micro_batch_tokens if last else recipe.micro_batch_tokens
        checkpointing = last.use_gradient_checkpointing if last else recipe.use_gradient_checkpointing
        smaller = planning.smaller_layout(tokens, checkpointing, plan.longest if plan else tokens)
        if smaller is None:
            reason = f"out of memory at the smallest layout: {result.reason}; lower max_seq_length or set load_in_4bit"
            self._fail(job, reason, result, now)
            return
        jobdir.write_retry(folder, Retry(micro_batch_tokens=smaller[0], use_gradient_checkpointing=smaller[1]))
        with self._world.db.transaction():
            jobs.pause(self._world.db, job["id"], "out of memory: tried again with a smaller layout")
        self._log.warning(
            "out_of_memory", job=job["id"], micro_batch_tokens=smaller[0], gradient_checkpointing=smaller[1],
            note="the bits of this job are no longer those of an undisturbed run",
        )  # fmt: skip

    def _fail(self, job: dict[str, Any], reason: str, result: JobResult | None, now: str) -> None:
        db = self._world.db
        with db.transaction():
            jobs.fail(db, job["id"], reason, int(result.exit_code) if result else None, now)
            memories.move_job(db, job["id"], "frozen", "held", reason)
            held = batches.hold(db, job["id"], reason)
        self._log.error("job_failed", job=job["id"], reason=reason, held_batches=held)
        self._release_held(held)
        jobdir.tidy(self._folder(job))

    def _release_held(self, held: list[int]) -> None:
        """Each batch of a bad job is tried once more, alone; after that a person decides."""
        db = self._world.db
        with db.transaction():
            for batch in held:
                row = batches.get(db, batch)
                if row and row["state"] == "held" and row["failures"] < batches.MAX_FAILURES:
                    batches.retry(db, batch)

    def _judge(self, job: dict[str, Any], now: str) -> None:
        """The verdict on a finished job, then its checkpoint into the chain, then the head."""
        db, folder = self._world.db, self._folder(job)
        version = jobs.version_of_job(db, job["id"])
        result = JobResult.model_validate_json(job["result"])
        assert version is not None
        verdict = promotion.decide(
            result, planned_steps=job["steps"], planned_samples=job["samples"]
        )
        if not verdict.promoted:
            with db.transaction():
                jobs.refuse(db, version, verdict.reason, now)
                memories.move_job(db, job["id"], "frozen", "held", verdict.reason)
                held = batches.hold(db, job["id"], verdict.reason)
            self._log.warning("version_refused", job=job["id"], version=version["id"], reason=verdict.reason)
            self._release_held(held)
            return
        chains.adopt(
            folder, result.checkpoint or "", self._world.paths.chains, version["chain"],
            version["checkpoint_sha256"],
        )  # fmt: skip
        with db.transaction():
            jobs.promote(db, version, verdict.reason, now)
            trained = memories.move_job(db, job["id"], "frozen", "trained")
            batches.close_settled(db, jobs.batches_of(db, job["id"]))
        self._log.info(
            "version_promoted", job=job["id"], version=version["id"], step=version["step"], memories=trained,
            reason=verdict.reason,
        )  # fmt: skip
        self._after_promotion(version)

    def _after_promotion(self, place: dict[str, Any]) -> None:
        """What may be done again at every start: the symlink, old checkpoints, leftovers in job folders."""
        paths = self._world.paths
        chains.point(paths.current_model, paths.chains, place["chain"])
        chains.prune(paths.chains, place["chain"], self._world.recipe.save_total_limit, {place["step"]})
        for job in jobs.promoted(self._world.db):
            folder = self._folder(job)
            if (folder / names.PARENT).exists() or jobdir.newest_checkpoint(folder):
                jobdir.tidy(folder)
