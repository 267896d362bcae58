"""The `classic` dataset builder: what the origin's first curator did (`--dataset-builder classic`).

Nothing is cut and no filler goes; of samples with the same question and the same answer the first stays. Skip
marks, secrets and personal data count as ever: they are no question of taste.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from daemon.rules.curation import Curation
from trainer.contract import Sample


def plain(curation: Curation) -> Curation:
    """The settings that samples are made with: no trimming, no filler, no flipping, nothing judged by its look."""
    language = replace(
        curation.language, min_words=0, only_signs=False, only_addresses=False, repeated_signs=0, letter_share=0.0,
        blob_share=1.0,
    )  # fmt: skip
    return replace(
        curation, trim=False, remove_filler=False, dual_flip=False, duplicates=False, recurs_more_than=0,
        language=language,
    )  # fmt: skip


def build(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples in their order, each (instruction, output) once. The instruction is all that stands before."""
    seen: set[tuple[str, ...]] = set()
    for sample in samples:
        key = pair(sample)
        if key not in seen:
            seen.add(key)
            yield sample


def pair(sample: Sample) -> tuple[str, ...]:
    """What makes two samples the same: each turn's role and text, but not the ids."""
    return tuple(part for turn in sample.messages for part in (turn.role, turn.content.strip()))
