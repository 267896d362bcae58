"""What a line of versions still knows of each month: pure functions over the rows of the table `scores`.

A month's recall right after it was learnt is the mean over its `new` questions in all the versions that learnt some of
it; its recall now is that of the newest version that was asked about it as something it knew before (`recent` or
`old`). Backward transfer is the mean over the months of the difference: below zero it forgets (the measure of
Lopez-Paz and Ranzato, Gradient Episodic Memory, 2017, with months as tasks). All recalls are shares of answer tokens
that are the model's first choice; `exact` of answers that are right as a whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEARNT = "new"
REMEMBERED = ("recent", "old")
GENERAL = "anchor"
_OF_MEMORIES = (LEARNT, *REMEMBERED)

Row = Mapping[str, Any]  # of `ledger.scores.of_versions`


@dataclass(frozen=True, slots=True)
class Recall:
    """Means over so many questions; 0..1, and `loss` in nats a token."""

    probes: int
    token_accuracy: float
    exact: float
    loss: float


@dataclass(frozen=True, slots=True)
class Month:
    """One month of memories over the line. None where it was not measured."""

    month: str
    base: Recall | None  # before anything was learnt
    learnt: Recall | None  # right after it was learnt
    latest: Recall | None  # what the newest version that was asked remembers
    change: float | None  # latest - learnt, of token accuracy


@dataclass(frozen=True, slots=True)
class Curve:
    versions: tuple[int, ...]
    months: tuple[Month, ...]
    matrix: dict[int, dict[str, Recall]]  # version -> month -> recall of its candidate
    general: dict[int, Recall]  # version -> of general text
    general_base: Recall | None
    backward_transfer: float | None
    retained: float | None  # of what was known right after learning, the share that still is
    general_kept: float | None  # of what the base knows of general text, the share that the newest version knows


def mean(rows: Iterable[Row]) -> Recall | None:
    """Over the questions of several rows; None where there are none."""
    found = [row for row in rows if row["probes"] > 0]
    count = sum(row["probes"] for row in found)
    if not count:
        return None
    token, exact, loss = (sum(row[key] * row["probes"] for row in found) / count
                          for key in ("token_accuracy", "exact", "loss"))  # fmt: skip
    return Recall(count, token, exact, loss)


def curve(rows: Sequence[Row], versions: Sequence[int]) -> Curve:
    """`versions` is the line, the oldest first; `rows` are its scores. Rows of other versions are left out."""
    known = set(versions)
    own = [row for row in rows if row["version"] in known and row["who"] == "candidate"]
    base = [row for row in rows if row["version"] in known and row["who"] == "base"]
    names = sorted({row["month"] for row in own if row["month"] and row["part"] in _OF_MEMORIES})
    months = tuple(_month(name, own, base, versions) for name in names)
    matrix: dict[int, dict[str, Recall]] = {}
    for version in versions:
        cells = {name: mean(_of(own, name, _OF_MEMORIES, version)) for name in names}
        matrix[version] = {name: cell for name, cell in cells.items() if cell is not None}
    general = {version: found for version in versions if (found := mean(_of(own, "", (GENERAL,), version)))}
    newest = next((version for version in reversed(versions) if version in general), None)
    general_base = mean(_of(base, "", (GENERAL,), newest)) if newest is not None else None
    pairs = [(month.learnt, month.latest) for month in months if month.learnt and month.latest]
    changes = [month.change for month in months if month.change is not None]
    before = sum(learnt.token_accuracy for learnt, _ in pairs)
    return Curve(
        tuple(versions), months, matrix, general, general_base,
        sum(changes) / len(changes) if changes else None,
        sum(latest.token_accuracy for _, latest in pairs) / before if before else None,
        general[newest].token_accuracy / general_base.token_accuracy
        if newest is not None and general_base and general_base.token_accuracy else None,
    )  # fmt: skip


def _of(rows: Iterable[Row], month: str, parts: Sequence[str], version: int | None = None) -> list[Row]:
    return [row for row in rows if row["month"] == month and row["part"] in parts
            and (version is None or row["version"] == version)]  # fmt: skip


def _month(name: str, own: Sequence[Row], base: Sequence[Row], versions: Sequence[int]) -> Month:
    learnt = mean(_of(own, name, (LEARNT,)))
    latest = None
    for version in reversed(versions):
        latest = mean(_of(own, name, REMEMBERED, version))
        if latest is not None:
            break
    change = latest.token_accuracy - learnt.token_accuracy if learnt and latest else None
    first = next((found for version in versions if (found := mean(_of(base, name, _OF_MEMORIES, version)))), None)
    return Month(name, first, learnt, latest, change)
