"""What the next job is: pure decisions from facts, each with its reason.

Order, seed and steps of a job follow from its memories and its parent alone, so that the same night
done again gives the same bits.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.contract import TrainingRecipe


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    batch: int
    failures: int
    memories: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The batches of the next job, in the order of arrival; at most `memories` of them are taken."""

    batches: tuple[int, ...]
    memories: int
    reason: str


def choose_batches(waiting: Sequence[WaitingBatch], *, max_batches: int, max_memories: int) -> Choice:
    """Batches that never failed go together, up to the limits; one that failed before goes alone.

    `waiting` is in the order of arrival and not empty.
    """
    fresh = [batch for batch in waiting if batch.failures == 0]
    if not fresh:
        alone = waiting[0]
        return Choice((alone.batch,), min(alone.memories, max_memories), "a batch that failed before, alone")
    chosen: list[int] = []
    total = 0
    for batch in fresh[:max_batches]:
        chosen.append(batch.batch)
        total += batch.memories
        if total >= max_memories:
            break
    return Choice(tuple(chosen), min(total, max_memories), f"{len(chosen)} of {len(waiting)} waiting batches")


def job_seed(profile_seed: int, profile: str, parent_sha256: str | None, memory_ids: Sequence[str]) -> int:
    """63 bits of SHA-256 over the profile's seed, the parent's manifest hash and the ordered memories."""
    digest = hashlib.sha256(f"{profile_seed}\n{profile}\n{parent_sha256 or 'base'}\n".encode())
    for memory in memory_ids:
        digest.update(memory.encode() + b"\n")
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def segments(samples: int, epochs: int, seed: int) -> list[list[int]]:
    """One segment an epoch, each a permutation of all samples.

    Sorting by a hash instead of `random.shuffle`: the order must outlive Python releases.
    """
    order: list[list[int]] = []
    for epoch in range(epochs):
        keys = [hashlib.sha256(f"{seed}:{epoch}:{i}".encode()).digest() for i in range(samples)]
        order.append(sorted(range(samples), key=keys.__getitem__))
    return order


def steps(recipe: TrainingRecipe, lengths: Sequence[int]) -> int:
    """Optimizer steps of segments of these many samples: a segment's last step may be short."""
    per_step = recipe.samples_per_step
    return sum((length + per_step - 1) // per_step for length in lengths)


def chain_key(recipe: TrainingRecipe, base_fingerprint: str) -> tuple[str, dict[str, Any]]:
    """(SHA-256, parts) of what must stay equal for moments to carry."""
    key = {**recipe.chain_key(), "base_fingerprint": base_fingerprint}
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest(), key


def why_new_chain(old: dict[str, Any] | None, new: dict[str, Any]) -> str | None:
    """Why the next job starts a chain of its own; None where the old one goes on."""
    if old is None:
        return "the first chain of this profile"
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not changed:
        return None
    parts = [f"{name} changed from {old.get(name)} to {new.get(name)}" for name in changed]
    return "; ".join(parts)


def is_held_out(memory_id: str, percent: float, *, enough: bool) -> bool:
    """Whether a memory is kept for measuring only: decided by its id, so that it never changes sides."""
    return enough and int(memory_id[:8], 16) / 2**32 < percent / 100.0


def smaller_layout(micro_batch_tokens: int, checkpointing: bool, longest: int) -> tuple[int, bool] | None:
    """The next try after running out of memory; None where nothing smaller is left.

    Halves the micro-batch's tokens down to the longest sequence, then gradient checkpointing.
    """
    if micro_batch_tokens > max(longest, 16):
        return max(micro_batch_tokens // 2, longest, 16), checkpointing
    if not checkpointing:
        return micro_batch_tokens, True
    return None
