"""Questions whose answers are known: scored before and after a job to see what was learnt, and what was lost.

A memory is asked about by the prompt that it was trained with. A text's prompt ("What happened?") fits many
answers, so a text of a known day is also asked about by a template that names its type and its day.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import date

from daemon.records import Memory
from daemon.rules.curation import Curation, judge
from daemon.rules.duplicates import words_of
from daemon.rules.prompts import Prompts
from daemon.rules.samples import make_samples
from daemon.rules.unlike import CROSSED
from daemon.rules.wording import count_words
from trainer.contract import Group, Message, Probe, Sample

MOST_ANSWER_WORDS = 60
MOST_CROSSED = 128
_MOST_ANSWER_LENGTH = 16 * MOST_ANSWER_WORDS  # characters: tells long ones apart without counting words
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")  # fmt: skip
_TEMPLATES = {
    "journal": "What did you write in your journal on {day}?",
    "dream": "What did you dream on {day}?",
    "daydream": "What were you daydreaming about on {day}?",
    "reflection": "What did you reflect on, on {day}?",
    "inner_dialogue": "What were you thinking on {day}?",
    "observation": "What did you notice on {day}?",
    "summary": "How would you sum up {day}?",
    "audio": "What did you say into the recorder on {day}?",
    "task": "What was there to do on {day}?",
}
_OTHER = "What did you write on {day}?"


def make_probes(
    memories: Iterable[Memory],
    seed: int | str,
    limit: int = 64,
    *,
    curation: Curation | None = None,
    prompts: Prompts | None = None,
    profile_seed: int | str = 0,
    system_prompt: str = "",
    group: Group = "new",
    templates: bool = False,
) -> list[Probe]:
    """At most `limit` probes, the same ones for the same memories in any order.

    A probe is a memory's first sample, asked up to the turn that carries loss: so pass the settings that
    the samples were made with. Pairs come first; texts, whose prompt fits many answers, fill up the rest, each with
    its template beside it where `templates` asks for them.
    """
    curation, prompts = curation or Curation.default(), prompts or Prompts.default()
    chosen = heapq.nsmallest(limit, _ranked(memories, seed, curation), key=lambda one: one[:3])
    probes: list[Probe] = []
    for _, _, memory_id, memory in chosen:
        samples = make_samples(memory, curation, prompts, profile_seed, system_prompt)
        if not samples:
            continue
        answer = samples[0].messages[-1].content
        asked = [Message(role=turn.role, content=turn.content) for turn in samples[0].messages[:-1]]
        if count_words(answer) > MOST_ANSWER_WORDS:
            continue
        probes.append(Probe(id=f"{memory_id}?", messages=asked, answer=answer, memory=memory_id, group=group))
        question = template(memory) if templates else None
        if question is not None:
            turns = [turn for turn in asked if turn.role == "system"] + [Message(role="user", content=question)]
            probes.append(Probe(
                id=f"{memory_id}?template", messages=turns, answer=answer, memory=memory_id, group=group,
                form="template",
            ))  # fmt: skip
    return probes[:limit]


def template(memory: Memory) -> str | None:
    """A question made of what kind of text it is and of its day; None for a pair, a tool call, or an unknown day."""
    if memory.response is not None or memory.payload or not memory.time:
        return None
    try:
        day = date.fromisoformat(memory.time[:10])
    except ValueError:
        return None
    return _TEMPLATES.get(memory.type, _OTHER).format(day=f"{day.day} {_MONTHS[day.month - 1]} {day.year}")


def of_each(
    batches: Sequence[Sequence[Memory]], limit: int, make: Callable[[Sequence[Memory], int], list[Probe]]
) -> list[Probe]:
    """At most `limit` probes, as many of each batch as of the others as far as it has them, so that no batch hides
    behind another one. `make` gives so many of some memories."""
    share = max(1, limit // max(1, len(batches)))
    found = {probe.id: probe for batch in batches for probe in make(batch, share)}
    if len(batches) > 1 and len(found) < limit:
        rest = make([memory for batch in batches for memory in batch], limit)
        found |= {probe.id: probe for probe in rest if probe.id not in found}
    return list(found.values())[:limit]


def crossed(probes: Sequence[Probe], pairs: Collection[str]) -> list[Probe]:
    """Answers to questions of these memories, each behind the other question that has the most of its rare words, at
    most `MOST_CROSSED`: an answer that fits that one better than its own was mixed up. See `rules/unlike.py`."""
    own = [probe for probe in probes if probe.form == "own" and probe.memory in pairs][:MOST_CROSSED]
    asked = [frozenset(words_of(probe.messages[-1].content)) for probe in own]
    said = [frozenset(words_of(probe.answer)) for probe in own]
    shared = Counter(word for words in asked for word in words)

    def alike(place: int, other: int) -> tuple[float, int]:
        common = sorted(asked[other] & said[place])  # sums of floats depend on the order
        return sum(1.0 / shared[word] for word in common), -((other - place - len(own) // 2) % len(own))

    found = []
    for place, probe in enumerate(own):
        others = [other for other, one in enumerate(own)
                  if one.answer != probe.answer and one.messages != probe.messages]  # fmt: skip
        if others:
            nearest = own[max(others, key=lambda other: alike(place, other))]
            found.append(probe.model_copy(update={
                "id": probe.id.removesuffix("?") + CROSSED, "messages": nearest.messages, "group": "crossed",
                "free": False,
            }))  # fmt: skip
    return found


def of_anchors(anchors: Iterable[Sample], limit: int) -> list[Probe]:
    """Their last answers, asked for as they were: the first ones by a hash of their ids, so that the same ones are
    asked night after night. Answers of more than `MOST_ANSWER_WORDS` are left out."""
    found: list[Probe] = []
    for anchor in sorted(anchors, key=lambda one: hashlib.sha256(one.id.encode()).digest()):
        answer = anchor.messages[-1].content
        if len(found) == limit:
            break
        if len(answer) <= _MOST_ANSWER_LENGTH and count_words(answer) <= MOST_ANSWER_WORDS:
            asked = [Message(role=turn.role, content=turn.content) for turn in anchor.messages[:-1]]
            found.append(Probe(id=f"{anchor.id}?", messages=asked, answer=answer, group="anchor"))
    return found


def with_free_answers(groups: Sequence[Sequence[Probe]], count: int) -> list[Probe]:
    """All probes in one list; of `count` of them, in turn from each group, the model is asked in its own words too."""
    free: set[str] = set()
    queues = [[probe.id for probe in group if probe.form == "own"] for group in groups]
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if place < len(queue) and len(free) < count:
                free.add(queue[place])
    every = [probe for group in groups for probe in group]
    return [probe.model_copy(update={"free": True}) if probe.id in free else probe for probe in every]


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
