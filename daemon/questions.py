"""The questions that a job is measured by: what it teaches, what was learnt lately and long ago, what is held out,
and general text."""

from collections.abc import Sequence

from daemon.anchors import Pool
from daemon.ledger import probing
from daemon.records import Memory
from daemon.rules.probes import crossed, make_probes, of_anchors, with_free_answers
from daemon.world import World
from trainer.contract import Group, Probe


def questions(world: World, new: Sequence[Memory], pool: Pool) -> list[Probe]:
    """At most `evaluation.probes` of each group, to `evaluation.free_answers` of them with an answer in the model's
    own words. `new`: memories that the job trains for the first time."""
    asked, db, seed = world.settings.evaluation, world.db, world.seed
    if not asked.probes:
        return []

    def of(group: Group, memories: Sequence[Memory]) -> list[Probe]:
        return make_probes(
            memories, seed, asked.probes, curation=world.curation, prompts=world.prompts, profile_seed=seed,
            system_prompt=world.settings.curation.system_prompt, group=group, templates=True,
        )  # fmt: skip

    first = of("new", new)
    groups = [
        first,
        of("recent", probing.recent(db, asked.probes, seed)),
        of("old", probing.old(db, asked.probes, seed)),
        of("held_out", probing.held_out(db, asked.probes, asked.held_out_percent)),
        of_anchors(pool.measured, asked.probes),
    ]
    pairs = {memory.id for memory in new if memory.response is not None and memory.extra.get("asked_by") != "tool"}
    return [*with_free_answers(groups, asked.free_answers), *crossed(first, pairs)]
