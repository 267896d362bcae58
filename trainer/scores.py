"""From scores of single probes to the figures of a job: who did how well on which group.

No model is needed here, so a test's double can count as the trainer does.
"""

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from trainer.contract import Probe

CANDIDATE: Final = "candidate"  # what the job made; of an evaluate job, what it was asked to score
SERVED: Final = "served"  # the version that is relied on
BASE: Final = "base"  # the untouched base model

# Of one probe: loss (nats, mean over the answer's tokens), token_accuracy, exact; of a free one also free
# (the answer in the model's own words), free_exact, free_fuzzy.
Score = dict[str, Any]

_CLOSE = 0.8  # the share of words in common, in order, from which on an answer counts as nearly right


def flat(probes: Sequence[Probe], tokens: Sequence[int], scores: Mapping[str, Sequence[Score]]) -> dict[str, float]:
    """`<who>.<group>.<measure>` for everyone in `scores`, whose lists go in the order of `probes`.

    Measures: probes (their number), loss and token_accuracy (mean over the answers' tokens), exact (share of
    probes), and free_exact and free_fuzzy (share of the free probes) where the group has free ones. The
    candidate's over all groups but crossed are also `probes`, `probe_loss`, `probe_token_accuracy` and `probe_exact`.
    """
    figures: dict[str, float] = {}
    for who, theirs in scores.items():
        for group in sorted({probe.group for probe in probes}):
            mine = [number for number, probe in enumerate(probes) if probe.group == group]
            some = measures([tokens[n] for n in mine], [theirs[n] for n in mine])
            figures.update({f"{who}.{group}.{measure}": value for measure, value in some.items()})
    true = [number for number, probe in enumerate(probes) if probe.group != "crossed"]
    if CANDIDATE in scores and true:
        overall = measures([tokens[n] for n in true], [scores[CANDIDATE][n] for n in true])
        figures["probes"] = float(len(probes))
        for measure in ("loss", "token_accuracy", "exact"):
            figures[f"probe_{measure}"] = overall[measure]
    return figures


def measures(tokens: Sequence[int], scores: Sequence[Score]) -> dict[str, float]:
    """The measures of at least one score; `tokens` are those of each answer."""
    total = max(1, sum(tokens))
    found = {"probes": float(len(scores))}
    for measure in ("loss", "token_accuracy"):
        found[measure] = sum(n * score[measure] for n, score in zip(tokens, scores, strict=True)) / total
    found["exact"] = sum(bool(score["exact"]) for score in scores) / len(scores)
    free = [score for score in scores if "free" in score]
    for measure in ("free_exact", "free_fuzzy") if free else ():
        found[measure] = sum(bool(score[measure]) for score in free) / len(free)
    return found


def lines(
    probes: Sequence[Probe], tokens: Sequence[int], scores: Mapping[str, Sequence[Score]]
) -> list[dict[str, Any]]:
    """What `metrics.json` says of each probe."""
    return [
        {
            "id": probe.id,
            "memory": probe.memory,
            "group": probe.group,
            "form": probe.form,
            "tokens": tokens[number],
            **{who: theirs[number] for who, theirs in scores.items()},
        }
        for number, probe in enumerate(probes)
    ]


def judged(free: str, answer: str) -> Score:
    """The part of a score that a free answer earns: equal, or nearly equal, to the known one."""
    given, known = normalised(free), normalised(answer)
    return {"free": free, "free_exact": given == known, "free_fuzzy": _is_close(given, known)}


def normalised(text: str) -> list[str]:
    """Words in lower case, without punctuation, accents' forms or spacing counting for anything."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = (one if unicodedata.category(one)[0] in "LNMS" else " " for one in folded if one not in "'’")
    return "".join(kept).split()


def _is_close(given: Sequence[str], known: Sequence[str]) -> bool:
    """Whether the known words stand in the given ones in one piece, or 80 % of both agree in order."""
    if given == known:
        return True
    if not known or not given:
        return False
    if any(list(given[at : at + len(known)]) == list(known) for at in range(len(given) - len(known) + 1)):
        return True
    return difflib.SequenceMatcher(None, given, known, autojunk=False).ratio() >= _CLOSE
