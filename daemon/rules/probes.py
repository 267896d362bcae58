"""Questions whose answers are known, chosen from memories: scored after a job to see what was learnt."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator

from daemon.records import Memory
from daemon.rules.curation import Curation, judge
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples
from daemon.rules.wording import count_words
from trainer.contract import Message, Probe

MOST_ANSWER_WORDS = 60
_MOST_ANSWER_LENGTH = 16 * MOST_ANSWER_WORDS  # characters: tells long ones apart without counting words


def make_probes(
    memories: Iterable[Memory],
    seed: int | str,
    limit: int = 64,
    *,
    curation: Curation | None = None,
    prompts: Prompts | None = None,
    profile_seed: int | str = 0,
    system_prompt: str = "",
) -> list[Probe]:
    """At most `limit` probes, the same ones for the same memories in any order.

    A probe is a memory's first sample, asked up to the turn that carries loss: so pass the settings that
    the samples were made with. Pairs come first; texts, whose prompt fits many answers, fill up the rest.
    """
    curation, prompts = curation or Curation.default(), prompts or Prompts.default()
    chosen = heapq.nsmallest(limit, _ranked(memories, seed, curation), key=lambda one: one[:3])
    probes = []
    for _, _, memory_id, memory in chosen:
        samples = make_samples(memory, curation, prompts, profile_seed, system_prompt)
        if not samples:
            continue
        answer = samples[0].messages[-1].content
        asked = [Message(role=turn.role, content=turn.content) for turn in samples[0].messages[:-1]]
        if count_words(answer) <= MOST_ANSWER_WORDS:
            probes.append(Probe(id=f"{memory_id}?", messages=asked, answer=answer, memory=memory_id))
    return probes


def _ranked(
    memories: Iterable[Memory], seed: int | str, curation: Curation
) -> Iterator[tuple[bool, bytes, str, Memory]]:
    """(is a text, rank, id, memory) of each memory that may be asked about."""
    seen: set[str] = set()
    for memory in memories:
        answer = memory.content if memory.response is None else memory.response
        if len(answer) > _MOST_ANSWER_LENGTH or not answer.strip() or memory.extra.get("asked_by") == "tool":
            continue
        memory_id = memory.id
        if memory_id in seen or not judge(memory, curation).keep:
            continue
        if count_words(answer) > MOST_ANSWER_WORDS:
            continue
        seen.add(memory_id)
        rank = hashlib.sha256(f"{seed}:{memory_id}".encode()).digest()
        yield memory.response is None, rank, memory_id, memory
