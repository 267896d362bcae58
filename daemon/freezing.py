"""Step 4 of the road: from memories to a job's folder, and the one transaction that says so."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daemon import chains, jobdir
from daemon.dataset import Dataset, Row, curated_form
from daemon.ledger import Database, alike, batches, jobs, memories, requests
from daemon.logs import get_logger
from daemon.records import Memory
from daemon.rules import planning
from daemon.rules.probes import make_probes
from daemon.world import World
from trainer import names
from trainer.contract import JobSpec, Sample

PROBES_FROM = 2000  # memories of a job that probes are chosen from

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


def freeze(
    world: World, home_db: Database, material: Material, base_fingerprint: str, now: str, pulse: Callable[[], None]
) -> bool:
    """Write the folder of the next job, then record it. False where no memory gives a sample: those that wait are set
    aside then, and a staged folder may be left for the next sweep."""
    db, paths, recipe = world.db, world.paths, world.recipe
    head = jobs.get_head(db)
    old_key = jobs.chain_key(db, head["chain"]) if head else None
    key_sha256, key = planning.chain_key(recipe, base_fingerprint)
    why_new = planning.why_new_chain(old_key, key) or material.anew
    parent = None if why_new or head is None else head

    number = requests.next_id(home_db, world.name, "job", at_least=jobs.newest_id(db) + 1)
    folder = paths.jobs / f"{number}-finetune"
    staged = jobdir.stage(paths.jobs, number)
    dataset = Dataset(
        db, world.curation, world.prompts, world.seed, world.settings.curation.system_prompt, material.builder, pulse
    )
    for_probes: list[Memory] = []
    samples_sha256 = jobdir.write_lines(
        staged / names.SAMPLES, _samples(world, dataset, material.rows, staged, for_probes)
    )
    os.link(staged / names.SAMPLES, staged / names.DATASET)
    used = dataset.used
    new = [row for row in used if row[0] not in material.rehearsed]
    if not used or (not new and material.cycle is None):
        with db.transaction():
            memories.skip(db, dataset.left_out)
            batches.close_settled(db, material.batches)
        return False
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
    chain = parent["chain"] if parent else requests.next_id(
        home_db, world.name, "chain", at_least=jobs.newest_chain(db) + 1
    )
    steps = planning.steps(recipe, [len(segment) for segment in segments])
    with db.transaction():
        if not parent:
            jobs.insert_chain(db, chain, key_sha256, key, why_new or "", now)
        jobs.insert(
            db, job=number, kind="finetune", folder=folder.name, spec_sha256=spec_sha256, chain=chain,
            parent_sha256=parent_sha256, parent_step=parent["step"] if parent else 0, steps=steps,
            samples=count * recipe.num_train_epochs, now=now, cycle=material.cycle,
            memories=[(seq, "replay" if seq in material.rehearsed else "new", n) for seq, _, _, n in used],
            batches=sorted({batch for _, batch, _, _ in new}),
        )  # fmt: skip
        memories.freeze(db, [row[0] for row in new])
        memories.skip(db, dataset.left_out)
        alike.insert_bands(db, dataset.bands)
        batches.close_settled(db, material.batches)
        jobs.set_meta(db, "waits", None)
    log = _log.bind(profile=world.name, job=number)
    if why_new:
        log.info("new_chain", chain=chain, reason=why_new)
    log.info(
        "job_frozen", batches=len({row[1] for row in new}), memories=len(used), rehearsed=len(used) - len(new),
        samples=count, left_out=len(dataset.left_out), steps=steps,
        parent_step=parent["step"] if parent else 0, reason=material.reason,
    )  # fmt: skip
    return True


def _samples(
    world: World, dataset: Dataset, rows: Iterable[Row], staged: Path, for_probes: list[Memory]
) -> Iterator[Sample]:
    """The samples of the memories, in the order of arrival, and the origin's files beside them."""
    curation = world.curation
    with jobdir.JsonList(staged / names.CURATED) as curated, jobdir.JsonList(staged / names.FORMATTED) as formatted:
        for entry in dataset.entries(rows):
            mode = curation.mode(entry.memory)
            curated.add(curated_form(entry.id, entry.memory, mode, curation))
            if len(for_probes) < PROBES_FROM:
                for_probes.append(entry.memory)
            for sample in entry.samples:
                formatted.add({"mode": mode, **sample.model_dump(mode="json", exclude_defaults=True)})
                yield sample
