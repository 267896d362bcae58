"""Whether a finished finetune becomes the version that is relied on. Pure, with reasons.

Two kinds of doubt. Was the work done: every planned step on every planned sample, with finite loss. And is the
candidate worse than the version in service, on the same questions, by more than `[gate]` allows: `CHECKS` lists what
is looked at, one line each. A third one, whether what is new is unlike all that came before, is `unlike.py`'s.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daemon.rules.unlike import Part, why_unlike
from daemon.settings_learning import GateSettings
from trainer.contract import Group, JobResult

_ROUNDING = 1e-9  # 0.93 - 0.83 is a little more than 0.1


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a candidate may be worse in. The margin is the setting of `[gate]` with this name."""

    name: str  # as a sentence calls it
    group: Group  # of probes
    measure: Literal["loss", "token_accuracy", "exact", "free_exact", "free_fuzzy"]
    worse: Literal["rose", "fell"]
    margin: str
    of_first: bool = False  # whether it also counts where the base itself is what it is compared with
    beside: Literal["served", "base"] = "served"  # what the candidate is held against


CHECKS: tuple[Check, ...] = (
    Check("held-out loss", "held_out", "loss", "rose", "held_out_loss"),
    Check("old recall", "old", "token_accuracy", "fell", "old_recall"),
    # A first version always changes the base; that it still can what the base could is asked of it, too.
    Check("general ability", "anchor", "token_accuracy", "fell", "general", of_first=True),
    # Each night may lose a little less than the margin above; this is what all nights together may lose.
    Check("general ability since the base", "anchor", "token_accuracy", "fell", "drift", beside="base"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`figures` are what it rests on, for the ledger: whether the work was done, and `checks`, each as `_compared`
    has it."""

    promoted: bool
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)


def decide(
    result: JobResult, *, planned_steps: int, planned_samples: int, gate: GateSettings | None = None,
    probes: int = 0, against_base: bool = False, night: Sequence[Part] = (),
    earlier: Sequence[Sequence[Part]] = (),
) -> Verdict:  # fmt: skip
    """`probes`: how many questions the job was given. `against_base`: the candidate was compared with the base model
    itself, because no version was in service. `night` and `earlier` are what `unlike.night` gives for this job and for
    those of the promoted versions before it. Without `gate` only the work is looked at."""
    if why := _not_done(result, planned_steps, planned_samples):
        return Verdict(False, why, {"done": False, "enabled": gate is not None and gate.enabled, "checks": []})
    gate = gate or GateSettings(enabled=False)
    told = [_compared(check, result.metrics, gate, against_base=against_base) for check in CHECKS]
    figures = {
        "done": True, "enabled": gate.enabled, "against_base": against_base, "weights": result.weights, "checks": told,
        "night": [dict(part) for part in night],
    }  # fmt: skip
    scored = round(result.metrics.get("probes", 0.0))
    if gate.enabled and scored != probes:
        return Verdict(False, f"{scored} of the {probes} questions of this job were scored", figures)
    refused = [_sentence(check, one) for check, one in zip(CHECKS, told, strict=True) if one["worse"]]
    refused += why_unlike(night, earlier, gate)
    if gate.enabled and refused:
        return Verdict(False, "; ".join(refused), figures)
    done = f"all {planned_steps} steps taken, last loss {result.last_loss:.4f}"
    if refused:
        return Verdict(True, f"{done}; gate.enabled is false, else it were refused: {'; '.join(refused)}", figures)
    passed = [_passed(check, one) for check, one in zip(CHECKS, told, strict=True) if one["decides"]]
    return Verdict(True, "; ".join([done, *passed]), figures)


def _not_done(result: JobResult, planned_steps: int, planned_samples: int) -> str | None:
    if result.steps != planned_steps:
        return f"{result.steps} of {planned_steps} planned steps were taken"
    if result.samples_seen != planned_samples:
        return f"{result.samples_seen} of {planned_samples} planned samples were seen"
    if result.last_loss is None or not math.isfinite(result.last_loss):
        return f"the last loss is {result.last_loss}"
    return None


def _compared(
    check: Check, metrics: Mapping[str, float], gate: GateSettings, *, against_base: bool
) -> dict[str, Any]:
    """One check as the ledger keeps it. `decides` False says that there was too little to go by, and `why`."""
    candidate, before, base = (metrics.get(f"{who}.{check.group}.{check.measure}")
                               for who in ("candidate", check.beside, "base"))  # fmt: skip
    count = min(round(metrics.get(f"{who}.{check.group}.probes", 0.0)) for who in ("candidate", check.beside))
    margin = float(getattr(gate, check.margin))
    why = None
    if against_base and not check.of_first:
        why = "a first version is not compared in this"
    elif count < gate.least_probes:
        why = f"{count} questions of this kind, fewer than gate.least_probes = {gate.least_probes}"
    elif candidate is None or before is None:
        why = "it was not measured"
    worse = False
    if why is None and candidate is not None and before is not None:
        by = candidate - before if check.worse == "rose" else before - candidate
        worse = not by <= margin + _ROUNDING  # what is no number is worse than any margin
    return {
        "name": check.name, "group": check.group, "measure": check.measure, "candidate": candidate, "before": before,
        "base": base, "probes": count, "setting": f"gate.{check.margin}", "margin": margin, "decides": why is None,
        "why": why, "worse": worse,
    }  # fmt: skip


def _sentence(check: Check, told: Mapping[str, Any]) -> str:
    before, after, margin = _digits(told["before"], told["candidate"], told["margin"])
    return f"{check.name} {check.worse} from {before} to {after}, more than gate.{check.margin} = {margin} allows"


def _passed(check: Check, told: Mapping[str, Any]) -> str:
    return f"{check.name} {told['candidate']:.2f} after {told['before']:.2f}"


def _digits(before: float, after: float, margin: float) -> tuple[str, str, str]:
    """With as many digits as it takes to see that the difference is larger than the margin, two at least."""
    places = 2
    while places < 6 and abs(round(before, places) - round(after, places)) <= margin + _ROUNDING:
        places += 1
    told = f"{margin:.6f}".rstrip("0")
    told = told if len(told.partition(".")[2]) >= 2 else f"{margin:.2f}"
    return f"{before:.{places}f}", f"{after:.{places}f}", told
