"""The dataset of an earlier job, made again from what the ledger recorded of it.

`job_memories` says which memories were in it and as what; a memory never changes, and its samples follow from it, the
rules and the profile's seed. So the file is the same bit for bit, as long as the rules are, but for what was forgotten.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from daemon import anchors, jobdir
from daemon.ledger import jobs, memories, uses
from daemon.rules import classic, mixing, planning
from daemon.rules.samples import make_samples
from daemon.world import World
from trainer import names
from trainer.contract import Sample


@dataclass(frozen=True, slots=True)
class Again:
    """`sha256` is that of the new file, `recorded` that of the job's, None where its records are gone. `why` says in
    one sentence why they differ, None where they do not."""

    sha256: str
    recorded: str | None
    memories: int
    forgotten: int
    why: str | None


def seqs_of(world: World, job: int) -> list[int]:
    """Numbers of a job's memories that are not forgotten, in the order of their samples. Raises ValueError."""
    if jobs.get(world.db, job) is None:
        raise ValueError(f"there is no job {job} of profile {world.name}: engramd jobs lists them")
    return [one["seq"] for one in uses.memories_of(world.db, job) if one["state"] != "forgotten"]


def rebuild(world: World, job: int, out: Path) -> Again:
    """Write the job's samples to `out`, which must not be there yet. Raises ValueError, OSError."""
    row = jobs.get(world.db, job)
    if row is None:
        raise ValueError(f"there is no job {job} of profile {world.name}: engramd jobs lists them")
    told = json.loads(row["cycle"] or "{}")
    used = uses.memories_of(world.db, job)
    forgotten = sum(one["state"] == "forgotten" for one in used)
    with jobdir.Lines(out) as lines:
        for sample in _samples(world, used, told.get("builder") or "advanced"):
            lines.add(sample)
        for sample in _anchors(world, row, used):
            lines.add(sample)
    recorded = _recorded(world.paths.jobs / str(row["folder"]))
    return Again(lines.sha256, recorded, len(used) - forgotten, forgotten,
                 _why(world, lines.sha256, recorded, forgotten, told.get("rules"), job))  # fmt: skip


def _samples(
    world: World, used: list[dict[str, Any]], builder: Literal["advanced", "classic"]
) -> Iterator[Sample]:
    curation = classic.plain(world.curation) if builder == "classic" else world.curation
    system, pairs = world.settings.curation.system_prompt, set[tuple[str, ...]]()
    for one in used:
        if one["state"] == "forgotten":
            continue
        (_, _, _, memory), = memories.by_seq(world.db, [one["seq"]])
        samples = make_samples(memory, curation, world.prompts, world.seed, system)
        if builder == "classic":
            samples = [sample for sample in samples if classic.pair(sample) not in pairs]
            pairs.update(map(classic.pair, samples))
        for sample in samples:
            yield sample if one["use"] == "new" else sample.model_copy(update={"use": "replay"})


def _anchors(world: World, job: dict[str, Any], used: list[dict[str, Any]]) -> Sequence[Sample]:
    """The general text that was in it: the same draw from what lies on this disk. Raises ValueError."""
    if not job["anchors"]:
        return ()
    key = jobs.chain_key(world.db, job["chain"]) or {}
    try:
        pool = anchors.there(world, str(key.get("base_fingerprint")))
    except anchors.Wrong as wrong:
        raise ValueError(str(wrong)) from None
    seed = planning.job_seed(world.seed, world.name, job["parent_sha256"], [one["id"] for one in used])
    return mixing.drawn(pool.trained, job["anchors"], seed, "anchors")


def _recorded(folder: Path) -> str | None:
    """The hash of the samples as they were, from the spec or, where it was pruned, the summary."""
    for name in (names.SPEC, names.SUMMARY):
        try:
            return str(json.loads((folder / name).read_bytes())["samples_sha256"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def _why(
    world: World, sha256: str, recorded: str | None, forgotten: int, rules: str | None, job: int
) -> str | None:
    if recorded is None:
        return f"the records of job {job} are gone, so that nothing is there to compare with"
    if sha256 == recorded:
        return None
    if forgotten:
        return f"{forgotten} of its memories were forgotten since"
    if rules is not None and rules != rules_sha256(world):
        return "the rules were changed since: etc/curation.toml, etc/prompts.toml or curation.system_prompt"
    return "the rules, or the release that applies them, were changed since"


# -- the rules -----------------------------------------------------------------------------------------


def rules_sha256(world: World) -> str:
    """SHA-256 (hex) of all that makes samples of memories: the rules of curation, the prompts, the system prompt."""
    told = [_plain(one) for one in (world.curation, world.prompts, world.settings.curation.system_prompt)]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON, the same in every process: sets sorted, patterns by their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, re.Pattern):
        return [value.pattern, value.flags]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(one) for one in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
