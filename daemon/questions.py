"""The questions that a job is measured by: what it teaches, what was learnt lately and long ago, what is held out,
and general text."""

from collections.abc import Mapping, Sequence

from daemon.anchors import Pool
from daemon.ledger import probing
from daemon.records import Memory
from daemon.rules.probes import crossed, make_probes, of_anchors, of_each, with_free_answers
from daemon.world import World
from trainer.contract import Group, Probe


def questions(world: World, new: Mapping[int, Sequence[Memory]], pool: Pool) -> list[Probe]:
    """At most `evaluation.probes` of each group, to `evaluation.free_answers` of them with an answer in the model's
    own words. `new`: memories that the job trains for the first time, by the number of their batch."""
    asked, db, seed = world.settings.evaluation, world.db, world.seed
    if not asked.probes:
        return []

    def of(group: Group, memories: Sequence[Memory], limit: int = asked.probes) -> list[Probe]:
        return make_probes(
            memories, seed, limit, curation=world.curation, prompts=world.prompts, profile_seed=seed,
            system_prompt=world.settings.curation.system_prompt, group=group, templates=True,
        )  # fmt: skip

    first = of_each(list(new.values()), asked.probes, lambda memories, limit: of("new", memories, limit))
    groups = [
        first,
        of("recent", probing.recent(db, asked.probes, seed)),
        of("old", probing.old(db, asked.probes, seed)),
        of("held_out", probing.held_out(db, asked.probes, asked.held_out_percent)),
        of_anchors(pool.measured, asked.probes),
    ]
    pairs = {memory.id for memories in new.values() for memory in memories
             if memory.response is not None and memory.extra.get("asked_by") != "tool"}  # fmt: skip
    return [*with_free_answers(groups, asked.free_answers), *crossed(first, pairs)]
