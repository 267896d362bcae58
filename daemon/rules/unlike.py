"""Whether what a night taught is unlike what the nights before it taught: noise, or answers to other questions.

Replay and anchors keep a version whole even if what is new is rubbish, so that no comparison with the version in
service tells. But that version was asked about the new memories before it had seen them, and the candidate was asked
after it. Their losses, in nats a token, tell rubbish from experience:

- surprise, and what is left of it after training. Noise is neither expected nor learnt, and that in nearly all of its
  answers, while an honest day of a new kind is learnt, or has something ordinary about it. So each figure is the first
  quartile of the answers', and both must be far above those of every night before.
- fit: by how much more the same answer surprises the version in service behind the question, of all others, that has
  the most of its rare words. An honest answer fits its own question better; one that was mixed up fits that other one
  better, which mostly is its own. Small talk, which fits any question, has a fit of about nothing, and passes.

Each is looked at for the whole night, and for each of its batches, so that a good batch does not hide a bad one.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from daemon.settings_learning import GateSettings

CROSSED = "?crossed"  # ends the id of an answer's question where it is that of another answer
LEAST_NIGHTS = 2  # of history, before anything is called unlike it
LEAST_ANSWERS = 16  # for noise: a small job has few steps, and learns honest texts badly too
TIMES = 2.0  # as much as on any earlier night: both the surprise and what is left of it
ERRORS = 2.0  # standard errors: a fit below nothing by less than this may be chance
SHARE_OF_FIT = 0.25  # of the usual fit: answers that misfit by less than this are no mix-up

Part = Mapping[str, float]


def night(lines: Iterable[Mapping[str, Any]], batch_of: Mapping[str, int] | None = None) -> list[dict[str, float]]:
    """The figures of the whole night, then those of each batch where there are several. `lines` are those of
    `metrics.json`, `batch_of` says from which batch a memory is.

    Of each: "surprise" and "left" over so many "questions", "fit" with its standard "error" over so many "pairs", and
    the number of the "batch"; a figure that cannot be had is left out.
    """
    told: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        group, form = line.get("group"), line.get("form")
        if group == "crossed" or (group == "new" and form != "template"):
            told[str(line.get("id"))] = line
    batches = sorted({number for line in told.values() if (number := _batch(line, batch_of)) is not None})
    parts = [_figures(told)]
    for number in batches if len(batches) > 1 else ():
        own = {name: line for name, line in told.items() if _batch(line, batch_of) == number}
        parts.append(_figures(own) | {"batch": float(number)})
    return parts


def _batch(line: Mapping[str, Any], batch_of: Mapping[str, int] | None) -> int | None:
    return (batch_of or {}).get(str(line.get("memory")))


def _figures(told: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    before = {name: loss for name, line in told.items() if (loss := _loss(line, "served")) is not None}
    own = sorted(loss for name, loss in before.items() if not name.endswith(CROSSED))
    after = sorted(loss for name in before if not name.endswith(CROSSED)
                   and (loss := _loss(told[name], "candidate")) is not None)  # fmt: skip
    found = {"questions": float(len(own))}
    if own:
        found["surprise"] = own[len(own) // 4]
    if after:
        found["left"] = after[len(after) // 4]
    fits = [before[name] - before[name.removesuffix(CROSSED) + "?"] for name in before
            if name.endswith(CROSSED) and name.removesuffix(CROSSED) + "?" in before]  # fmt: skip
    found["pairs"] = float(len(fits))
    if len(fits) > 1:
        found |= {"fit": statistics.fmean(fits), "error": statistics.stdev(fits) / math.sqrt(len(fits))}
    return found


def _loss(line: Mapping[str, Any], who: str) -> float | None:
    scores = line.get(who)
    loss = scores.get("loss") if isinstance(scores, Mapping) else None
    return float(loss) if isinstance(loss, int | float) else None


def why_unlike(this: Sequence[Part], earlier: Sequence[Sequence[Part]], gate: GateSettings) -> list[str]:
    """Reasons, as sentences: of the whole night, or, where it passes, of its batches. `earlier`: what `night` gave for
    the promoted versions before this one."""
    if reasons := [why for part in this[:1] for why in _why(part, earlier, gate)]:
        return reasons
    return [f"batch {part['batch']:.0f}: {why}" for part in this[1:] for why in _why(part, earlier, gate)]


def _why(this: Part, earlier: Sequence[Sequence[Part]], gate: GateSettings) -> list[str]:
    reasons = []
    asked = [[part for part in parts if part.get("questions", 0) >= LEAST_ANSWERS] for parts in earlier]
    before = [max(part["surprise"] for part in parts) for parts in asked if parts]
    after = [max(part.get("left", math.inf) for part in parts) for parts in asked if parts]
    if gate.surprise and this.get("questions", 0) >= LEAST_ANSWERS and len(before) >= LEAST_NIGHTS:
        surprise, left, most = this["surprise"], this.get("left", 0.0), max(before)
        unexpected = surprise > max(most + gate.surprise, TIMES * most)
        if unexpected and left > TIMES * max(after):
            reasons.append(
                f"the new memories are like noise to the version in service: a loss of {surprise:.1f} nats a token or "
                f"more in three of four, and of {left:.1f} after training, where no earlier night had more than "
                f"{most:.1f} and {max(after):.1f} (gate.surprise = {gate.surprise:g})"
            )
    fits = [parts[0]["fit"] for parts in earlier if parts and parts[0].get("fit") is not None
            and parts[0]["pairs"] >= gate.least_probes]  # fmt: skip
    if gate.fit and "fit" in this and this["pairs"] >= gate.least_probes and len(fits) >= LEAST_NIGHTS:
        fit, usual = this["fit"], statistics.median(fits)
        if usual > 0 and fit < min(-SHARE_OF_FIT * usual, -ERRORS * this["error"]):
            reasons.append(
                f"the new answers fit each other's questions better than their own, by {-fit:.2f} nats a token, where "
                f"on other nights they fit their own better by {usual:.2f}: they may be mixed up (gate.fit)"
            )
    return reasons
