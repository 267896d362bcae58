"""What a good dataset looks like: the targets and limits of the origin, as data. `quality` measures against them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from daemon.rules import checked

DEFAULTS: dict[str, Any] = {
    "short_words": 40,
    "long_words": 100,
    "short": [0.0, 0.5],
    "short_limit": 0.6,
    "medium": [0.3, 0.4],
    "long": [0.1, 0.2],
    "filler": [0.0, 0.1],
    "filler_limit": 0.15,
    "dual": [0.2, 0.4],
    "emulation": [0.4, 0.6],
    "agent": [0.1, 0.2],
    "foundation_memories": 3000,
    "monthly_new_memories": 500,
}

SHARES = ("short", "medium", "long", "filler", "dual", "emulation", "agent")


@dataclass(frozen=True)
class Targets:
    short_words: int  # an answer of at most these is short
    long_words: int  # one of more is long; between them it is of medium length
    spans: dict[str, tuple[float, float]]  # share -> the least and the most that it should be
    limits: dict[str, float]  # share -> from here on a dataset should not be trained on
    foundation_memories: int  # a foundation needs more
    monthly_new_memories: int  # so does a monthly cycle of new ones

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Self:
        """The checked table `[quality]`. ValueError, one sentence."""
        short = checked.whole(table, "quality.short_words", 1, 100_000)
        return cls(
            short_words=short,
            long_words=checked.whole(table, "quality.long_words", short, 100_000),
            spans={name: checked.span(table, f"quality.{name}") for name in SHARES},
            limits={
                name: checked.number(table, f"quality.{name}_limit", 0.0, 1.0) for name in ("short", "filler")
            },
            foundation_memories=checked.whole(table, "quality.foundation_memories", 0, 1_000_000_000),
            monthly_new_memories=checked.whole(table, "quality.monthly_new_memories", 0, 1_000_000_000),
        )
