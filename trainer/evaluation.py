"""Who is scored when: the version that is relied on and the base before training, the candidate after it.

No more than one model is held at a time where that can be: the adapter of a LoRA run is only switched off to
see its base, and what has to be opened apart is scored and freed before the model to be trained is opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer import adapter, averaging, base_files, checkpoints, names, reading, scores
from trainer.base_files import BaseMissing
from trainer.chat_tokens import load_tokenizer
from trainer.contract import BadSpec, JobSpec, TrainingRecipe, Weights
from trainer.durable import write_text
from trainer.opening import Opened, Run, read_retry
from trainer.pieces import plain
from trainer.progress import ProgressLog
from trainer.ranks import Alone
from trainer.report import Flag, Report
from trainer.scores import BASE, CANDIDATE, SERVED, Score
from trainer.scoring import Scoring, make_scoring

Scores = dict[str, list[Score]]  # by who, each in the order of the probes


@contextmanager
def _keeping_random_state() -> Iterator[None]:
    """Loading an adapter draws random numbers; a checkpoint holds the state of the generator."""
    with torch.random.fork_rng():
        yield


def evaluate(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, report: Report) -> None:
    """A job that only scores: the parent checkpoint, or the base where there is none, as the candidate; beside it
    the served version where the job has one, and the base.

    Raises BadSpec (also where there are no probes), BaseMissing, NoDevice, Interrupted.
    """
    scoring = None
    if (job / names.PROBES).exists():
        scoring = make_scoring(job, spec, load_tokenizer(base_files.resolve(spec.recipe.base_model)), stop, log)
    if scoring is None:
        raise BadSpec(f"an evaluate job needs {names.PROBES} with at least one probe")
    told: Scores = {}
    log.write("loading")
    if spec.parent is not None:
        found = checkpoints.parent(job, spec.parent)
        report.global_step, report.weights = found.state.global_step, spec.parent_weights
        told.update(_apart(job, scoring, found.folder, spec.parent_weights, CANDIDATE, with_base=True))
    if BASE not in told:
        told.update(_apart(job, scoring, None, "raw", BASE))
    told.setdefault(CANDIDATE, told[BASE])
    told.update(_served(job, scoring, report))
    _write(job, scoring, told, report)


class Before:
    """The scores from before training. They are measured once and written down: an attempt that goes on later
    could not measure them again, because its model has learnt already."""

    def __init__(self, job: Path, spec: JobSpec, scoring: Scoring, report: Report) -> None:
        self._job, self._spec, self._scoring, self._report = job, spec, scoring, report
        self.told: Scores = {}
        self._done = scoring.team.agree(self._read())

    @_keeping_random_state()
    def score_apart(self) -> None:
        """What needs a model of its own, before the one to be trained is opened. Each is freed again.

        Raises BadSpec, BaseMissing, NoDevice, Interrupted.
        """
        if self._done:
            return
        job, spec, scoring = self._job, self._spec, self._scoring
        self.told.update(_served(job, scoring, self._report))
        learnt = bool(checkpoints.in_order(job))  # then the model that will be opened is neither parent nor base
        if spec.parent is not None and spec.served is None and learnt:
            folder = checkpoints.parent(job, spec.parent).folder
            self.told.update(_apart(job, scoring, folder, spec.parent_weights, SERVED))
        if learnt or (spec.recipe.method == "full" and spec.parent is not None):
            self.told.update(_apart(job, scoring, None, "raw", BASE))

    @_keeping_random_state()
    def score_in(self, run: Run) -> None:
        """What the model to be trained can tell before its first step; then all of it is written down.

        Raises Interrupted.
        """
        if self._done:
            return
        self._scoring.log.write("evaluating", note="before training")
        opened, parent = run.opened, self._job / names.PARENT
        if self._spec.parent is not None and self._spec.served is None and SERVED not in self.told:
            with _weights(opened, parent, self._spec.parent_weights, self._scoring.team):
                self.told[SERVED] = self._scoring.score(opened)
        if BASE not in self.told:
            with adapter.without(opened.model):
                self.told[BASE] = self._scoring.score(opened)
        if self._spec.parent is None and self._spec.served is None:
            self.told[SERVED] = self.told[BASE]  # a chain that begins: until now the base answers
        if self._scoring.team.first:
            self._write()

    def _read(self) -> bool:
        try:
            stored = json.loads((self._job / names.BEFORE).read_bytes())
        except (OSError, ValueError):
            return False
        if stored.get("spec_sha256") != self._report.spec_sha256:
            return False
        ids = [probe.id for probe in self._scoring.probes]
        self.told = {who: [stored[who][one] for one in ids] for who in (SERVED, BASE) if who in stored}
        return True

    def _write(self) -> None:
        ids = [probe.id for probe in self._scoring.probes]
        told: dict[str, dict[str, Score]] = {}
        for who in (SERVED, BASE):
            if who in self.told:
                told[who] = dict(zip(ids, self.told[who], strict=True))
        content = {"spec_sha256": self._report.spec_sha256, **told}
        write_text(self._job / names.BEFORE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


@_keeping_random_state()
def score_after(job: Path, run: Run, scoring: Scoring, before: Before, report: Report) -> None:
    """Score what was made, its running mean too where there is one, into `metrics.json` and the report.

    The better of the two by the loss over all probes is the candidate; `raw` and `ema` are told of beside it.
    Free answers are only the candidate's. Raises Interrupted.
    """
    scoring.log.write("evaluating")
    opened, average = run.opened, run.average
    best: Weights = "raw"
    forced: Scores = {best: scoring.forced(opened, scoring.tokens)}
    if average is not None:
        with averaging.swapped(_stored(opened), average.mean, names.EMA):
            forced["ema"] = scoring.forced(opened, scoring.tokens)
            better = _loss(scoring, forced["ema"]) < _loss(scoring, forced["raw"])
            if scoring.team.agree(better):
                best = "ema"
                forced[best] = scoring.free(opened, forced[best])
    if best == "raw":
        forced[best] = scoring.free(opened, forced[best])
    report.weights = best
    more = forced if average is not None else {}
    if scoring.team.first:
        _write(job, scoring, {CANDIDATE: forced[best], **before.told}, report, more)


def _served(job: Path, scoring: Scoring, report: Report) -> Scores:
    """The version in `JOBDIR/served`, on its own base; nothing where there is none or its base is gone."""
    spec = scoring.spec
    if spec.served is None:
        return {}
    folder = checkpoints.served(job, spec.served).folder
    try:
        return _apart(job, scoring, folder, spec.served_weights, SERVED)
    except BaseMissing as missing:
        report.notice(f"the version in service was not scored: {missing}")
        return {}


def _apart(
    job: Path, scoring: Scoring, folder: Path | None, weights: Weights, who: str, *, with_base: bool = False
) -> Scores:
    """Open a checkpoint (or the base), score it, free it. `with_base`: its base too, where an adapter hides it."""
    recipe = scoring.spec.recipe if folder is None else _as_scored(reading.recipe_of(folder), scoring.spec.recipe)
    theirs, team = scoring, scoring.team
    if recipe.base_model != scoring.spec.recipe.base_model:
        tokenizer = load_tokenizer(base_files.resolve(recipe.base_model))
        theirs = make_scoring(job, scoring.spec, tokenizer, scoring.stop, scoring.log, team) or scoring
    scoring.log.write("evaluating", note=f"{who} before training" if who != CANDIDATE else who)
    retry = read_retry(job)
    model, device = team.in_turn(lambda: _opened(folder, recipe, weights, team))
    opened = reading.for_scoring(model, recipe, device, retry.micro_batch_tokens if retry else None, team.agree)
    told = {who: theirs.score(opened, scoring.tokens)}
    if with_base and adapter.is_adapted(model):
        with adapter.without(model):
            told[BASE] = theirs.score(opened, scoring.tokens)
    del model, opened
    reading.free()
    return told


def _opened(
    folder: Path | None, recipe: TrainingRecipe, weights: Weights, team: Alone
) -> tuple[reading.Model, torch.device]:
    """In pieces where models lie in pieces; what is held in nf4 is small, and stays whole."""
    to_cut = team.sharded and not recipe.quantised
    model, device = reading.open_for_reading(recipe.base_model, folder, recipe, weights, to_cut=to_cut)
    return (team.cut(model, device) if to_cut else model), device


def _as_scored(theirs: TrainingRecipe, ours: TrainingRecipe) -> TrainingRecipe:
    """A checkpoint's own recipe, in the layout of this job."""
    layout = {key: getattr(ours, key) for key in ("max_seq_length", "packing", "micro_batch_tokens")}
    return theirs.model_copy(update=layout)


@contextmanager
def _weights(opened: Opened, folder: Path, weights: Weights, team: Alone) -> Iterator[None]:
    """The parent's model with these of its weights, for a while."""
    reading.check_weights(folder, weights)
    mean = load_file(folder / names.EMA) if weights == "ema" else {}
    if team.pieces is not None:
        mean = {name: team.pieces.cut(name, one) for name, one in mean.items()}
    with averaging.swapped(_stored(opened), mean, folder.name) if mean else nullcontext():
        yield


def _stored(opened: Opened) -> dict[str, torch.nn.Parameter]:
    """What a checkpoint stores of this model: of one in pieces, this process's."""
    return {name: plain(weight) for name, weight in adapter.by_stored_name(opened.model).items()}


def _loss(scoring: Scoring, theirs: list[Score]) -> float:
    """Over all probes whose answers are true."""
    true = [number for number, probe in enumerate(scoring.probes) if probe.group != "crossed"] or [*range(len(theirs))]
    return scores.measures([scoring.tokens[n] for n in true], [theirs[n] for n in true])["loss"]


def _write(job: Path, scoring: Scoring, told: Scores, report: Report, more: Scores | None = None) -> None:
    """`metrics.json` and the report's figures; those of `more` are figures only."""
    probes, tokens = scoring.probes, scoring.tokens
    told = {who: told[who] for who in (CANDIDATE, SERVED, BASE) if who in told}  # one order, whoever was first
    report.metrics = scores.flat(probes, tokens, {**told, **(more or {})})
    lines = scores.lines(probes, tokens, told)
    text = json.dumps({"metrics": report.metrics, "probes": lines}, ensure_ascii=False, indent=1)
    write_text(job / names.METRICS, text + "\n")
