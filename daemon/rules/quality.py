"""How good a dataset is: its figures before cleaning, the same after it beside, targets, and whether to train.

Before cleaning, because that is what was collected: after it nearly every reply of an assistant is short, and
none begins with filler. The targets and limits are those of the origin system (`etc/curation.toml`, [quality]).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daemon.records import Memory
from daemon.rules.curation import Curation, is_assistants, unmarked, without_filler
from daemon.rules.quality_targets import SHARES, Targets
from daemon.rules.wording import count_words
from trainer.contract import Sample

Answer = Literal["go", "warn", "no-go"]
Item = tuple[Memory, Sequence[Sample]]  # a memory that is learnt, and its samples
_WORST: tuple[Answer, ...] = ("go", "warn", "no-go")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `figure` and `after` are shares from 0.0 to 1.0, or counts."""

    metric: str
    figure: float
    after: float | None  # None where cleaning changes nothing
    target: str
    verdict: Answer
    reason: str | None = None

    def shown(self) -> tuple[str, str, str, str, str]:
        """As text: metric, figure, after, target, verdict."""
        share = self.metric in SHARES

        def text(value: float | None) -> str:
            return "" if value is None else f"{value:.1%}" if share else f"{value:,.0f}"

        return self.metric, text(self.figure), text(self.after), self.target, self.verdict


@dataclass(frozen=True, slots=True)
class Quality:
    """`verdict` is the worst of the rows; `reasons` says one sentence for each that is not "go"."""

    verdict: Answer
    reasons: tuple[str, ...]
    rows: tuple[Row, ...]
    memories: int
    samples: int
    smoke_test: bool  # a foundation of so few memories that it only shows that all works

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{name: getattr(row, name) for name in Row.__slots__} for row in self.rows]
        return {
            "verdict": self.verdict, "reasons": list(self.reasons), "memories": self.memories, "samples": self.samples,
            "smoke_test": self.smoke_test, "metrics": rows,
        }  # fmt: skip


@dataclass(slots=True)
class _Count:
    """Answers of one side, before or after cleaning."""

    answers: int = 0
    lengths: Counter[str] = field(default_factory=Counter)
    filler: int = 0
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, mode: str, targets: Targets, *, filler: bool) -> None:
        words = count_words(text)
        length = (
            "short" if words <= targets.short_words else "medium" if words <= targets.long_words else "long"
        )
        self.answers += 1
        self.lengths[length] += 1
        self.filler += filler
        self.modes[mode] += 1

    def share(self, name: str) -> float:
        if not self.answers:
            return 0.0
        count = self.filler if name == "filler" else self.lengths[name] + self.modes[name]
        return count / self.answers


def metrics(
    items: Iterable[Item], curation: Curation, cycle: Literal["foundation", "monthly"] | None = None,
    new: int | None = None,
) -> Quality:  # fmt: skip
    """The figures of all memories that a job would learn; `items` may be a generator.

    `cycle` says which limit of the number of memories holds (None: neither); `new` is how many of a monthly
    cycle's memories are recent ones.
    """
    before, after = _Count(), _Count()
    for memory, samples in items:
        mode, written = curation.mode(memory), is_assistants(memory, curation)
        answers = [turn.content for sample in samples for turn in sample.messages if turn.loss]
        raw = memory.content if memory.response is None else memory.response
        if memory.payload or not raw.strip():
            raw = answers[0] if answers else ""
        replies = written and memory.response is not None
        before.add(raw, mode, curation.quality, filler=replies and has_filler(raw, curation))
        for number, answer in enumerate(answers):
            filler = replies and number == 0 and has_filler(answer, curation)
            after.add(answer, mode, curation.quality, filler=filler)
    rows = [_share_row(name, before, after, curation.quality) for name in SHARES]
    rows.append(_number_row(before.answers, after.answers, curation.quality, cycle, new))
    worst = max((row.verdict for row in rows), key=_WORST.index)
    return Quality(
        verdict=worst,
        reasons=tuple(row.reason for row in rows if row.reason is not None),
        rows=tuple(rows),
        memories=before.answers,
        samples=after.answers,
        smoke_test=cycle == "foundation" and before.answers <= curation.quality.foundation_memories,
    )


def has_filler(text: str, curation: Curation) -> bool:
    """Whether a reply begins with a phrase that says nothing."""
    said = unmarked(text, curation)
    return without_filler(said, curation) != said


_NAMES = {
    "short": "short answers",
    "medium": "answers of medium length",
    "long": "long answers",
    "filler": "answers that begin with filler",
}


def _share_row(name: str, before: _Count, after: _Count, targets: Targets) -> Row:
    figure, (least, most), limit = before.share(name), targets.spans[name], targets.limits.get(name)
    target = f"{least:.0%} to {most:.0%}" if least > 0 else f"below {most:.0%}"
    if limit is not None:
        target += f", limit {limit:.0%}"
    verdict, reason = "go", None
    called = _NAMES.get(name, f"memories of mode {name}")
    if before.answers and limit is not None and figure >= limit:
        verdict, reason = "no-go", f"{figure:.1%} {called}: the limit is {limit:.0%}"
    elif before.answers and not (least <= figure <= most if least > 0 else figure < most or figure == 0):
        verdict, reason = "warn", f"{figure:.1%} {called}: the target is {target.partition(',')[0]}"
    return Row(name, figure, after.share(name), target, verdict, reason)  # type: ignore[arg-type]


def _number_row(memories: int, samples: int, targets: Targets, cycle: str | None, new: int | None) -> Row:
    if not memories:
        return Row("memories", 0, samples, "", "no-go", "there is nothing to learn")
    if cycle == "foundation":
        least = targets.foundation_memories
        reason = (
            None
            if memories > least
            else f"{memories:,} memories: a smoke test; a foundation needs over {least:,}"
        )
        return Row("memories", memories, samples, f"over {least:,}", "warn" if reason else "go", reason)
    if cycle == "monthly" and new is not None:
        least = targets.monthly_new_memories
        reason = None if new > least else f"{new:,} new memories: a monthly cycle needs over {least:,}"
        return Row("new memories", new, None, f"over {least:,}", "no-go" if reason else "go", reason)
    return Row("memories", memories, samples, "", "go")
