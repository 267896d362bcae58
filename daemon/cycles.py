"""Cycles: a job over memories that were selected, of which most were trained before. Asked for by hand or by the clock.

A monthly cycle takes all recent memories and a seeded draw of the old ones and goes on with the head; a foundation
takes all and begins a new chain at the base. What waits is new in it; the rest is rehearsed. A cycle for one mode, or
with another method than the nights', trains a line of its own: it only rehearses, and no memory changes its state.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from daemon import anchors, sending
from daemon.again import rules_sha256, seqs_of
from daemon.dataset import Dataset, Row
from daemon.freezing import Material
from daemon.ledger import jobs, memories, uses
from daemon.ledger.selection import select as draw
from daemon.logs import get_logger
from daemon.preview import Mixed
from daemon.rules import lines, mixing, planning, selection
from daemon.rules.curation import MODES
from daemon.settings import Settings
from daemon.training import Training
from daemon.world import World
from trainer import base_files
from trainer.contract import Sample, TrainingRecipe

KINDS = ("monthly", "foundation")
_ENDED = ("promoted", "refused", "failed", "undone", "forgotten")

_log = get_logger()


@dataclass(frozen=True, slots=True)
class Cycle:
    """What a cycle is, before a memory is looked at. `anew` says why it begins at the base, None where it goes on."""

    line: str
    kind: Literal["monthly", "foundation"]
    recipe: TrainingRecipe
    window: selection.Window
    since: str | None  # from when on a memory is recent, UTC; None: all are
    anew: str | None
    instead_of: str | None  # the base that it would have begun at, where a person named another one


def line_of(settings: Settings, profile: str, asked: dict[str, Any]) -> str:
    """The line that a cycle trains."""
    nights = settings.recipe(profile).method
    return lines.name_of(asked.get("mode") or None, asked.get("method") or None, nights)


def kind_of(asked: str | None, *, any_version: bool) -> Literal["monthly", "foundation"]:
    """Without a word about it: a foundation where its line has no version yet, else monthly."""
    if asked in KINDS:
        return "monthly" if asked == "monthly" else "foundation"
    return "monthly" if any_version else "foundation"


def window_of(settings: Settings, kind: str, asked: dict[str, Any]) -> selection.Window:
    """`asked` has what differs from `[cycle]`: days_recent, old_samples, max_samples, mode."""
    most, mode = asked.get("max_samples"), asked.get("mode") or None
    if kind == "foundation":
        return selection.Window(None, 0, most, mode)
    days, old = asked.get("days_recent"), asked.get("old_samples")
    cycle = settings.cycle
    return selection.Window(
        cycle.days_recent if days is None else days, cycle.old_samples if old is None else old, most, mode
    )


def refusal(settings: Settings, profile: str, asked: dict[str, Any]) -> str | None:
    """Why such a cycle is not trained, in one sentence."""
    method = asked.get("method") or settings.recipe(profile).method
    if settings.versioning.merge_into_base and method == "lora":
        return ("versioning.merge_into_base is set, but this release cannot merge an adapter into its base yet: set it "
                "to false in etc/engramd.toml, and cycles go on with their adapters")  # fmt: skip
    return sending.not_ready(settings, asked["where"]) if asked.get("where") else None


def cycle_of(world: World, asked: dict[str, Any], now: str) -> Cycle:
    """What was asked for, with all that was left open decided."""
    db, line = world.db, line_of(world.settings, world.name, asked)
    head = jobs.get_head(db, line)
    named, usual = asked.get("base_model") or None, world.base_of(line)
    recipe = world.recipe_of(line, named)
    there = (jobs.chain_key(db, head["chain"]) or {}).get("base_model") if head else None
    other = head is not None and there != recipe.base_model
    # Another base knows nothing: unless a person says otherwise, it is taught all.
    kind = kind_of(asked.get("kind"), any_version=head is not None and not other)
    window = window_of(world.settings, kind, asked)
    anew = "a foundation begins anew from the base" if kind == "foundation" and head else None
    if other:
        anew = f"a cycle with the base model {recipe.base_model}, where the head is on {there}"
    since = None if window.days_recent is None else selection.cutoff(now, window.days_recent)
    instead = usual if named and named != usual else None
    return Cycle(line, kind, recipe, window, since, anew, instead)


def answer(
    world: World, training: Training, request: dict[str, Any], asked: dict[str, Any], now: str, *, settled: bool,
    held: str | None,
) -> dict[str, Any] | None:  # fmt: skip
    """What came of a cycle that was asked for; None until its job has ended. Raises ValueError with a sentence."""
    db = world.db
    job = jobs.of_request(db, request["id"])
    if job is not None:
        if job["state"] not in _ENDED:
            return None
        version = jobs.version_of_job(db, job["id"])
        told = json.loads(job["cycle"])
        return {"job": job["id"], "line": job["line"], "state": job["state"], "reason": job["reason"],
                "steps": job["steps"], "version": version["id"] if version else None,
                **{key: told.get(key, 0) for key in ("left_out_recent", "left_out_old")}}  # fmt: skip
    if why := refusal(world.settings, world.name, asked):
        raise ValueError(why)
    if held or not settled or jobs.open_job(db) is not None or training.waits_for_room:
        return None
    material = select(world, request["id"], asked, now)
    told, frozen = material.cycle or {}, training.cycle(material, now)
    if frozen is None:
        return None
    _log.info("cycle_selected", profile=world.name, cycle=told["kind"],
              **{key: told[key] for key in ("line", "since", "recent", "old", "left_out_recent", "left_out_old")})
    if not frozen:
        raise ValueError("no memory that it selects gives anything to train: engramd preview shows why")
    return None


def select(world: World, request: int, asked: dict[str, Any], now: str) -> Material:
    """The memories of a cycle, and how they were chosen."""
    db, cycle = world.db, cycle_of(world, asked, now)
    mode, known = cycle.window.mode, world.curation
    only = selection.of_mode(mode, known.modes, known.default_mode, MODES) if mode else None
    if asked.get("again") is None:
        chosen = draw(db, cycle.window, cycle.since, world.seed, only)
    else:
        chosen = _again(world, asked["again"])
    builder = asked.get("dataset_builder") or world.settings.cycle.dataset_builder
    of = f" of line {cycle.line}" if cycle.line else ""
    return Material(
        rows_of(world, chosen.seqs, mode),
        f"{cycle.kind} cycle{of}: {chosen.recent} recent and {chosen.old} old memories", (), chosen.trained, builder,
        cycle.anew,
        {"request": request, "again": asked.get("again"), "kind": cycle.kind, "name": asked.get("name"),
         "since": cycle.since, "seed": world.seed,
         **asdict(cycle.window), "recent": chosen.recent, "old": chosen.old, "line": cycle.line,
         "method": cycle.recipe.method, "base_model": asked.get("base_model") or None,
         "instead_of": cycle.instead_of, "left_out_recent": chosen.left_out_recent,
         "left_out_old": chosen.left_out_old, "builder": builder, "rules": rules_sha256(world),
         "where": asked.get("where") or None},
        cycle.line, cycle.recipe,
    )  # fmt: skip


def _again(world: World, job: int) -> selection.Selection:
    """The memories of an earlier job that could be trained now, as if they were selected. Raises ValueError."""
    states = uses.states_of(world.db, seqs_of(world, job))
    seqs = sorted(seq for seq, state in states.items() if state in ("trained", "waiting"))
    trained = frozenset(seq for seq in seqs if states[seq] == "trained")
    return selection.Selection(seqs, trained, len(seqs), 0, len(states) - len(seqs), 0)


def mixed_of(world: World, cycle: Cycle, dataset: Dataset) -> Mixed:
    """What goes with a cycle's samples, as `freezing` does it: general text, as far as it lies on this disk, and the
    order of all. `dataset` is full by the time that it is called. Raises anchors.Wrong."""
    share, epochs = world.settings.training.mix.anchor, cycle.recipe.num_train_epochs
    try:
        fingerprint = base_files.fingerprint(base_files.resolve(cycle.recipe.base_model))
    except base_files.BaseMissing:
        fingerprint = ""
    pool = anchors.there(world, fingerprint) if share and fingerprint else anchors.Pool()
    head = jobs.get_head(world.db, cycle.line)
    parent = head["sha256"] if head and not cycle.anew else None

    def mixed(samples: int) -> tuple[Sequence[Sample], list[list[int]]]:
        seed = planning.job_seed(world.seed, world.name, parent, [row[2] for row in dataset.used])
        own = share if pool.trained else 0.0
        text = mixing.drawn(pool.trained, epochs * mixing.per_epoch(samples, 0.0, own)[1], seed, "anchors")
        places = range(samples, samples + len(text))
        return text, mixing.mix(
            range(samples), (), places, epochs=epochs, replay_share=0.0, anchor_share=own, seed=seed
        )

    return mixed


def rows_of(world: World, seqs: list[int], mode: str | None) -> Iterator[Row]:
    """The memories with these numbers; with `mode` those of that mode."""
    rows = memories.by_seq(world.db, seqs)
    return rows if mode is None else (row for row in rows if world.curation.mode(row[3]) == mode)
