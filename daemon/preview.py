"""What the next job, or a cycle, would be trained on: the same road as a job up to its plan, and nothing recorded."""

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from daemon import jobdir, supervisor
from daemon.dataset import Dataset, Row, said_in
from daemon.ledger import Database, memories
from daemon.ledger.selection import select
from daemon.records import Memory
from daemon.rules import planning, quality, selection
from daemon.rules.wording import count_words
from trainer import base_files, names
from trainer.contract import JobSpec, Sample, TrainingRecipe

Mixed = Callable[[int], tuple[Sequence[Sample], list[list[int]]]]

EXAMPLES = 20
_BORDERS = (5, 10, 20, 40, 80, 160, 300, 600)  # words, of the histogram of lengths


def rows_of(
    db: Database, window: selection.Window | None, now: str, seed: int, most: int
) -> tuple[list[int], dict[str, Any]]:
    """(numbers of the memories, what was chosen how). `window` None: what waits for the next job."""
    if window is None:
        waiting = memories.waiting_batches(db)
        seqs = [] if not waiting else [
            row[0] for row in memories.waiting_of(db, [one["batch"] for one in waiting], most)
        ]  # fmt: skip
        return seqs, {"what": "next job", "cycle": None, "memories": len(seqs)}
    since = None if window.days_recent is None else selection.cutoff(now, window.days_recent)
    chosen = select(db, window, since, seed)
    return chosen.seqs, {
        "what": "foundation" if since is None else "monthly cycle",
        "cycle": "foundation" if since is None else "monthly", "since": since, "recent": chosen.recent,
        "old": chosen.old, "memories": len(chosen.seqs), "left_out_recent": chosen.left_out_recent,
        "left_out_old": chosen.left_out_old,
    }  # fmt: skip


def report(
    dataset: Dataset, rows: Iterable[Row], recipe: TrainingRecipe, scratch: Path, *, mode: str | None = None,
    cycle: Literal["foundation", "monthly"] | None = None, new: int | None = None,
    out: Path | None = None, tell: Callable[[str], None] = lambda text: None, mixed: Mixed | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All figures of a preview. `scratch`: a private folder on the home's disk; nothing stays in it. `mixed` gives the
    general text that goes with so many samples, and the segments of all of them; without it there is none.

    Raises OSError where `out` cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="preview-", dir=scratch))
    try:
        figures = _Figures(dataset)
        tell("making samples")
        with jobdir.Lines(folder / names.SAMPLES) as lines:
            judged = quality.metrics(figures.counted(rows, mode, lines), dataset.curation, cycle, new)
            count = figures.samples
            anchors, segments = mixed(count) if mixed and count else ((), None)
            for anchor in anchors:
                lines.add(anchor)
        samples_sha256 = lines.sha256
        found = figures.told() | {"quality": judged.as_dict(), "anchors": len(anchors)}
        if out is not None:
            shutil.copyfile(folder / names.SAMPLES, out)
            os.chmod(out, 0o600)
        epochs = recipe.num_train_epochs if found["samples"] else 0
        spec = JobSpec(
            kind="prepare", recipe=recipe, samples_sha256=samples_sha256,
            segments=segments or planning.segments(found["samples"], epochs, dataset.seed),
        )  # fmt: skip
        return found | _planned(folder, spec, found["samples"], tell)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Figures:
    """Counts what goes by."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._by: dict[str, Counter[str]] = {key: Counter() for key in ("type", "mode", "source", "month")}
        self._lengths: list[int] = []
        self.samples = 0

    def counted(
        self, rows: Iterable[Row], mode: str | None, lines: jobdir.Lines
    ) -> Iterator[tuple[Memory, Sequence[Sample]]]:
        """Writes the samples on the way."""
        curation = self._dataset.curation
        wanted = (row for row in rows if mode is None or curation.mode(row[3]) == mode)
        for entry in self._dataset.entries(wanted):
            memory = entry.memory
            self._by["type"][memory.type] += 1
            self._by["mode"][curation.mode(memory)] += 1
            self._by["source"][memory.source] += 1
            self._by["month"][(memory.time or "unknown")[:7]] += 1
            self._lengths.append(count_words(said_in(memory)))
            self.samples += len(entry.samples)
            for sample in entry.samples:
                lines.add(sample)
            yield memory, entry.samples

    def told(self) -> dict[str, Any]:
        lengths = sorted(self._lengths)
        reasons = Counter(_kind_of(reason) for reason in self._dataset.left_out.values())
        return {
            "memories": len(lengths), "samples": self.samples,
            "left_out": dict(reasons.most_common()),
            **{key: dict(sorted(count.items(), key=lambda one: -one[1])) for key, count in self._by.items()},
            "words": {
                "shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1],
                "histogram": _histogram(lengths),
            } if lengths else None,
        }  # fmt: skip


def _kind_of(reason: str) -> str:
    """Reasons that name one memory are counted together."""
    return reason.partition(" of memory ")[0]


def _histogram(lengths: list[int]) -> dict[str, int]:
    shown: dict[str, int] = {}
    low = 0
    for high in (*_BORDERS, None):
        name = f"{low} to {high - 1}" if high else f"{low} and more"
        shown[name] = sum(1 for length in lengths if length >= low and (high is None or length < high))
        low = high or low
    return shown


def _planned(folder: Path, spec: JobSpec, samples: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Tokens, steps and examples, as the trainer's `prepare` gives them; why not, where it cannot."""
    nothing: dict[str, Any] = {"plan": None, "examples": [], "no_plan": None}
    if not samples:
        return nothing | {"no_plan": "there is nothing to train"}
    try:
        base_files.resolve(spec.recipe.base_model)
    except base_files.BaseMissing as missing:
        return nothing | {"no_plan": str(missing)}
    (folder / names.SPEC).write_bytes(spec.to_bytes())
    tell("tokenising")
    done = subprocess.run([*supervisor.COMMAND, str(folder)], capture_output=True, text=True, check=False)
    plan = jobdir.read_plan(folder)
    if done.returncode or plan is None:
        lines = done.stderr.strip().splitlines()
        return nothing | {"no_plan": lines[-1] if lines else f"the trainer ended with exit code {done.returncode}"}
    return {"plan": plan.model_dump(mode="json"), "examples": _examples(folder), "no_plan": None}


def _examples(folder: Path) -> list[dict[str, Any]]:
    """Evenly spread over the dataset, with the loss marked."""
    with open(folder / names.RENDERED, encoding="utf-8") as file:
        lines = file.readlines()
    step = max(1, len(lines) // EXAMPLES)
    picked = [json.loads(line) for line in lines[::step][:EXAMPLES]]
    return [
        {"id": one["id"], "tokens": one["tokens"], "loss_tokens": one["loss_tokens"],
         "texts": [sequence["text"] for sequence in one["sequences"]]}
        for one in picked
    ]  # fmt: skip
