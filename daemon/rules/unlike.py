"""Whether what a night taught is unlike what the nights before it taught: noise, or answers to other questions.

Replay and anchors keep a version whole even if what is new is rubbish, so that no comparison with the version in
service tells. But that version was asked about the new memories before it had seen them. Two of its figures tell
rubbish from experience, each against its own history, so that the language or the size of the model does not matter:

- surprise: its mean loss on the new answers, in nats a token. Noise surprises far more than any night before.
- fit: by how much more the same answers surprise it behind each other's questions. An honest answer fits its own
  question better than another one; answers that were shuffled do not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from daemon.settings_learning import GateSettings

CROSSED = "?crossed"  # ends the id of a question that has another question's answer
LEAST_NIGHTS = 2  # of history, before anything is called unlike it
LEAST_QUESTIONS = 16
FITS = 0.5  # nats: in less fit than this, answers hardly depend on their questions, and nothing follows
SHARE_OF_FIT = 0.2  # of the least fit so far: less than this is no fit


def night(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """From the lines of `metrics.json`: "surprise" over so many "questions", "fit" over so many "pairs"; a figure that
    cannot be had is left out."""
    own: dict[str, float] = {}
    crossed: dict[str, float] = {}
    for line in lines:
        told, name = line.get("served"), str(line.get("id"))
        loss = told.get("loss") if isinstance(told, Mapping) else None
        if not isinstance(loss, int | float):
            continue
        if line.get("group") == "crossed":
            crossed[name.removesuffix(CROSSED) + "?"] = float(loss)
        elif line.get("group") == "new" and line.get("form") != "template":
            own[name] = float(loss)
    found: dict[str, float] = {"questions": float(len(own))}
    if own:
        found["surprise"] = sum(own.values()) / len(own)
    pairs = [crossed[name] - own[name] for name in crossed if name in own]
    found["pairs"] = float(len(pairs))
    if pairs:
        found["fit"] = sum(pairs) / len(pairs)
    return found


def why_unlike(
    this: Mapping[str, float], earlier: Sequence[Mapping[str, float]], gate: GateSettings
) -> list[str]:
    """Reasons, as sentences. `earlier`: what `night` gave for the promoted versions before this one."""
    reasons = []
    before = [one["surprise"] for one in earlier if one.get("questions", 0) >= LEAST_QUESTIONS and "surprise" in one]
    surprise = this.get("surprise", 0.0)
    if gate.surprise and this.get("questions", 0) >= LEAST_QUESTIONS and len(before) >= LEAST_NIGHTS:
        most = max(before)
        if surprise > most + gate.surprise and surprise > 2 * most:
            reasons.append(
                f"the new memories are like noise to the version in service: a loss of {surprise:.1f} nats a token, "
                f"where no earlier night had more than {most:.1f} (gate.surprise = {gate.surprise:g})"
            )
    fits = [one["fit"] for one in earlier if one.get("pairs", 0) >= LEAST_QUESTIONS and "fit" in one]
    fit = this.get("fit", 0.0)
    known = gate.fit and this.get("pairs", 0) >= LEAST_QUESTIONS and len(fits) >= LEAST_NIGHTS
    if known and min(fits) >= FITS and fit < SHARE_OF_FIT * min(fits):
        reasons.append(
            f"the new answers fit their questions no better than each other's ({fit:+.2f} nats a token, where no "
            f"earlier night had less than {min(fits):.2f}): they may be mixed up (gate.fit)"
        )
    return reasons
