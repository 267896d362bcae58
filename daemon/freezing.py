"""Step 4 of the road: from memories to a job's folder, and the one transaction that says so."""

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from daemon import chains, jobdir
from daemon.anchors import Pool
from daemon.dataset import Dataset, Entry, Row, curated_form
from daemon.ledger import Database, alike, batches, jobs, memories, requests
from daemon.ledger.rehearsal import rehearsal
from daemon.logs import get_logger
from daemon.questions import questions
from daemon.records import Memory
from daemon.rules import mixing, planning
from daemon.world import World
from trainer import names
from trainer.contract import JobSpec, TrainingRecipe, Weights

PROBES_FROM = 2000  # memories of a job that probes are chosen from
_OF_EACH = 16  # memories of each batch, however many came before it

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Material:
    """What a job is made of: memories in the order of arrival, of which those that wait are new in it."""

    rows: Iterable[Row]
    reason: str
    batches: Collection[int]  # that may be done once what gives no sample is set aside
    rehearsed: Collection[int] = frozenset()  # of the memories, those that were trained before
    builder: Literal["advanced", "classic"] = "advanced"
    anew: str | None = None  # why it begins at the base, whatever the head is
    cycle: dict[str, Any] | None = None  # how it was selected, so that the same selection can be made again
    line: str = ""  # whose head it goes on from; those beside the main one only rehearse
    recipe: TrainingRecipe | None = None  # None: that of the line
    mixed: bool = False  # whether old memories are added, as `training.mix.replay` says: a cycle has its own


def freeze(
    world: World, home_db: Database, material: Material, base_fingerprint: str, now: str, pulse: Callable[[], None],
    pool: Pool | None = None,
) -> bool:
    """Write the folder of the next job, then record it. False where no memory gives a sample: those that wait are set
    aside then, and a staged folder may be left for the next sweep. `pool`: the general text that goes with it."""
    db, paths, line = world.db, world.paths, material.line
    recipe = material.recipe or world.recipe_of(line)
    head = jobs.get_head(db, line)
    old_key = jobs.chain_key(db, head["chain"]) if head else None
    key_sha256, key = planning.chain_key(recipe, base_fingerprint)
    why_new = planning.why_new_chain(old_key, key) or material.anew
    if line and head is None:
        why_new = f"the first chain of line {line}"
    parent = None if why_new or head is None else head
    parent_sha256 = parent["sha256"] if parent else None

    number = requests.next_id(home_db, world.name, "job", at_least=jobs.newest_id(db) + 1)
    folder = paths.jobs / f"{number}-finetune"
    staged = jobdir.stage(paths.jobs, number)
    dataset = Dataset(
        db, world.curation, world.prompts, world.seed, world.settings.curation.system_prompt, material.builder, pulse
    )
    samples = _Samples(world, dataset, material, pool or Pool(), recipe.num_train_epochs)
    samples.write(staged, parent_sha256)
    new = [row for row in dataset.used if samples.use_of(row[0]) == "new"]
    if not dataset.used or (not new and material.cycle is None):
        if not line:
            with db.transaction():
                memories.skip(db, dataset.left_out)
                batches.close_settled(db, material.batches)
        return False
    probes_sha256 = jobdir.write_lines(staged / names.PROBES, questions(world, samples.asked, pool or Pool()))
    spec = JobSpec(
        recipe=recipe, segments=samples.segments(), samples_sha256=samples.sha256, probes_sha256=probes_sha256,
        max_new_tokens=world.settings.evaluation.free_answer_tokens, seed=samples.seed, parent=parent_sha256,
        **_relied_on(db, head, parent),
    )  # fmt: skip
    if head:
        place = chains.folder(paths.chains, head["chain"], head["step"])
        chains.link(place, staged / (names.PARENT if parent else names.SERVED))
    spec_sha256 = jobdir.seal(staged, spec, folder)
    chain = parent["chain"] if parent else requests.next_id(
        home_db, world.name, "chain", at_least=jobs.newest_chain(db) + 1
    )
    lengths = [len(segment) for segment in spec.segments]
    steps = planning.steps(recipe, lengths)
    with db.transaction():
        if not parent:
            jobs.insert_chain(db, chain, key_sha256, key, why_new or "", now)
        jobs.insert(
            db, job=number, kind="finetune", folder=folder.name, spec_sha256=spec_sha256, chain=chain,
            parent_sha256=parent_sha256, parent_step=parent["step"] if parent else 0, steps=steps,
            samples=sum(lengths), anchors=samples.anchors, now=now, cycle=material.cycle, line=line,
            memories=[(seq, samples.use_of(seq), n) for seq, _, _, n in dataset.used],
            batches=sorted({batch for _, batch, _, _ in new}),
        )  # fmt: skip
        if not line:  # the states of memories are the main line's
            memories.freeze(db, [row[0] for row in new])
            memories.skip(db, dataset.left_out)
            alike.insert_bands(db, dataset.bands)
            batches.close_settled(db, material.batches)
        jobs.set_meta(db, "waits", None)
    log = _log.bind(profile=world.name, job=number)
    if why_new:
        log.info("new_chain", chain=chain, reason=why_new)
    log.info(
        "job_frozen", batches=len({row[1] for row in new}), memories=len(dataset.used),
        rehearsed=len(dataset.used) - len(new), samples=samples.count, anchors=samples.anchors,
        left_out=len(dataset.left_out), steps=steps, parent_step=parent["step"] if parent else 0,
        reason=material.reason,
    )  # fmt: skip
    return True


def _relied_on(db: Database, head: dict[str, Any] | None, parent: dict[str, Any] | None) -> dict[str, Any]:
    """What a job is compared with: its parent, or the version in service where it begins a chain of its own."""
    if head is None:
        return {}
    row = jobs.version(db, head["version"])
    weights: Weights = "ema" if row and row["weights"] == "ema" else "raw"
    return {"parent_weights": weights} if parent else {"served": head["sha256"], "served_weights": weights}


@dataclass(slots=True)
class _Samples:
    """The samples of a job, and the origin's files beside them: first what is learnt now, then old memories, each in
    the order of arrival, then general text."""

    world: World
    dataset: Dataset
    material: Material
    pool: Pool
    epochs: int
    sha256: str = ""
    seed: int = 0
    core: int = 0  # samples in all epochs
    replay: int = 0  # samples in one epoch each, or in as many as their share asks
    anchors: int = 0
    asked: dict[int, list[Memory]] = field(default_factory=dict)  # batch -> some that are new, for questions
    _asked: int = 0
    _drawn: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        return self.core + self.replay + self.anchors

    @property
    def shares(self) -> tuple[float, float]:
        """Of old memories and of general text, as far as there are any."""
        mix = self.world.settings.training.mix
        return mix.replay if self.material.mixed else 0.0, mix.anchor if self.pool.trained else 0.0

    def use_of(self, seq: int) -> Literal["new", "replay"]:
        rehearsed = self.material.line or seq in self.material.rehearsed or seq in self._drawn
        return "replay" if rehearsed else "new"

    def segments(self) -> list[list[int]]:
        """One an epoch; all samples are in at least one of them."""
        old = self.core + self.replay
        replay = mixing.drawn(range(self.core, old), self.replay, self.seed, "replay")
        return mixing.mix(
            range(self.core), replay, range(old, self.count), epochs=self.epochs, replay_share=self.shares[0],
            anchor_share=self.shares[1], seed=self.seed,
        )  # fmt: skip

    def write(self, staged: Path, parent_sha256: str | None) -> None:
        world, dataset = self.world, self.dataset
        with (
            jobdir.JsonList(staged / names.CURATED) as curated,
            jobdir.JsonList(staged / names.FORMATTED) as formatted,
            jobdir.Lines(staged / names.SAMPLES) as lines,
        ):
            for entry in dataset.entries(self.material.rows):
                self.core += self._add(entry, curated, formatted, lines)
            if dataset.used:
                for entry in dataset.entries(memories.by_seq(world.db, self._draw(parent_sha256))):
                    self.replay += self._add(entry, curated, formatted, lines)
            self.seed = self._seed(parent_sha256)
            wanted = self.epochs * mixing.per_epoch(self.core, *self.shares)[1]
            for anchor in mixing.drawn(self.pool.trained, wanted, self.seed, "anchors"):
                formatted.add({"mode": "anchor", **anchor.model_dump(mode="json", exclude_defaults=True)})
                lines.add(anchor)
                self.anchors += 1
        self.sha256 = lines.sha256
        os.link(staged / names.SAMPLES, staged / names.DATASET)

    def _seed(self, parent_sha256: str | None) -> int:
        ids = [row[2] for row in self.dataset.used]
        return planning.job_seed(self.world.seed, self.world.name, parent_sha256, ids)

    def _draw(self, parent_sha256: str | None) -> list[int]:
        """Numbers of the old memories, in the order of arrival: so many that each epoch has its own, as far as a
        memory gives as many samples as those that are new do."""
        used = len(self.dataset.used)
        wanted = self.epochs * mixing.per_epoch(self.core, *self.shares)[0]
        count = -(-wanted * used // max(self.core, 1))
        strategy = self.world.settings.training.mix.strategy
        found = sorted(rehearsal(self.world.db, count, self._seed(parent_sha256), strategy))
        self._drawn.update(found)
        return found

    def _add(self, entry: Entry, curated: jobdir.JsonList, formatted: jobdir.JsonList, lines: jobdir.Lines) -> int:
        curation, use = self.world.curation, self.use_of(entry.seq)
        mode = curation.mode(entry.memory)
        curated.add(curated_form(entry.id, entry.memory, mode, curation))
        if use == "new" and (self._asked < PROBES_FROM or len(self.asked.get(entry.batch, ())) < _OF_EACH):
            self.asked.setdefault(entry.batch, []).append(entry.memory)
            self._asked += 1
        for sample in entry.samples:
            told = sample if use == "new" else sample.model_copy(update={"use": use})
            formatted.add({"mode": mode, **told.model_dump(mode="json", exclude_defaults=True)})
            lines.add(told)
        return len(entry.samples)
