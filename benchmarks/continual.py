"""What is still known after eight nights: engramd's way beside joint training and the naive way.

    python benchmarks/continual.py [--quick] [--seeds N] [--arms A,B] [--workers N] [--json FILE]

512 facts about 64 made-up people come in 8 batches of 8 people each; a fact is told in two or three wordings. Every arm
has the same base (builtin:tiny), recipe, learning rate and epochs, and the trainer's own loop in this process. What
goes into a job beside the new memories is decided by the daemon's own rules (`daemon/rules/mixing.py`).

  joint        all batches at once, with the same share of anchors: the ceiling
  naive        one job a batch, new memories only, moments anew each time: the floor
  ours         one job a batch, everything as the defaults have it
  the others   ours with one thing changed: moments anew, the mean of the weights over fewer or more steps, other
               strategies of replay, less of it, no anchors

A running mean of the weights never reaches the training, so one run is asked twice where there is a mean: with it, and
as "<arm>, raw weights".

Asked: the share of facts whose value a greedy answer gives, in a question form that was never used for these people;
told: in a wording that was trained. General: the same of the 200 general questions of the builtin model, which no
anchor asks. Backward transfer: the mean over batches 1 to 7 of (asked at the end) - (asked right after it was learnt).
Retained: asked / joint's. `--quick` is joint, naive and ours with one seed.

Bars, for the means over the seeds: ours retains >= 0.95 at <= 2x joint's steps; backward transfer >= -0.05; general
>= joint's - 0.02; naive retains <= 0.4, or the benchmark would not bite. Exit code 1 where one is missed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon.rules import mixing  # noqa: E402
from daemon.settings_learning import MixSettings  # noqa: E402
from tools.people import JOURNAL_PROMPTS, Probe, Telling, make_people  # noqa: E402
from trainer import names  # noqa: E402
from trainer.contract import JobSpec, Message, Sample, TrainingRecipe  # noqa: E402

BATCHES, PEOPLE = 8, 8  # batches, people in each; eight facts a person
BASE = "builtin:tiny"
RECIPE: dict[str, Any] = {
    "base_model": BASE, "dtype": "float32", "load_in_4bit": False, "optimizer": "adamw_torch",
    "use_gradient_checkpointing": False, "lora_rank": 64, "lora_alpha": 128, "learning_rate": 1e-3,
    "num_train_epochs": 8, "gradient_accumulation_steps": 16, "max_seq_length": 256, "save_steps": 1_000_000,
}  # fmt: skip
MIX = MixSettings()
BARS = {"retained": 0.95, "steps": 2.0, "backward": -0.05, "general": -0.02, "naive": 0.4}


@dataclass(frozen=True)
class Arm:
    """One way of training; what is not named is as the defaults have it."""

    name: str
    replay: float = MIX.replay
    anchor: float = MIX.anchor
    strategy: str = MIX.strategy
    joint: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)


ARMS = (
    Arm("joint", joint=True),
    Arm("naive", replay=0.0, anchor=0.0, recipe={"carry_optimizer": False, "ema_decay": 0.0}),
    Arm("ours"),
    Arm("moments anew", recipe={"carry_optimizer": False}),
    Arm("mean 0.995", recipe={"ema_decay": 0.995}),
    Arm("mean 0.95", recipe={"ema_decay": 0.95}),
    Arm("random", strategy="random"),
    Arm("least recently rehearsed", strategy="least_recently_rehearsed"),
    Arm("highest loss", strategy="highest_loss"),
    Arm("replay 0.2", replay=0.2),
    Arm("without anchors", anchor=0.0),
    Arm("without replay", replay=0.0),
)
QUICK = ("joint", "naive", "ours")


# ---- what is told ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    samples: list[Sample]
    told: list[Probe]
    asked: list[Probe]


def make_batches(seed: int) -> list[Batch]:
    """The same people, wordings and questions for the same seed."""
    rng = random.Random(f"continual:{seed}")
    people = make_people(seed, BATCHES * PEOPLE)
    batches = []
    for number in range(BATCHES):
        batch = Batch([], [], [])
        for fact in (fact for person in people[number * PEOPLE :][:PEOPLE] for fact in person.facts):
            tellings = fact.tellings(rng, rng.choice((2, 3)))
            for k, telling in enumerate(tellings):
                batch.samples.append(_sample(telling, f"{fact.person}/{fact.relation}/{k}", rng))
            batch.told.append(rng.choice(tellings).probe(JOURNAL_PROMPTS[0]))
            batch.asked.append(rng.choice(fact.asked_probes()))
        batches.append(batch)
    return batches


def _sample(telling: Telling, name: str, rng: random.Random) -> Sample:
    asked, answered = telling.messages(rng.choice(JOURNAL_PROMPTS))
    return Sample(id=name, messages=[Message(role="user", content=asked["content"]),
                                     Message(role="assistant", content=answered["content"], loss=True)])  # fmt: skip


def general_probes() -> list[Probe]:
    from trainer.base_files import resolve

    lines = (resolve(BASE) / "general_questions.jsonl").read_text().splitlines()
    return [Probe(one["messages"][:1], one["answer"]) for one in map(json.loads, lines)]


def make_anchors() -> list[Sample]:
    """The base's own answers to the prompts that it brings along: what the `generate` job makes in a home, without
    those that are only measured by. None of the prompts is among the 200 general questions."""
    from trainer.base_files import resolve

    lines = (resolve(BASE) / "anchor_prompts.jsonl").read_text().splitlines()[: MIX.anchor_prompts]
    asked = [Probe(one["messages"], "") for one in map(json.loads, lines)]
    answers = Model(TrainingRecipe.model_validate(RECIPE), None).answers(asked)
    return [
        Sample(id=f"anchor/{n}", use="anchor", messages=[*(Message(**m) for m in probe.messages),
               Message(role="assistant", content=answer.strip(), loss=True)])
        for n, (probe, answer) in enumerate(zip(asked, answers, strict=True))
        if answer.strip() and not mixing.is_measured_by(f"anchor/{n}")
    ]  # fmt: skip


# ---- training and asking --------------------------------------------------------------------------


class Model:
    """A checkpoint's model (its running mean where it has one), or the base, to be asked."""

    def __init__(self, recipe: TrainingRecipe, checkpoint: Path | None, weights: str = "raw") -> None:
        from trainer.base_files import resolve
        from trainer.chat_tokens import load_tokenizer
        from trainer.reading import open_for_reading

        with contextlib.redirect_stderr(io.StringIO()):
            self._model, _ = open_for_reading(BASE, checkpoint, recipe, weights)  # type: ignore[arg-type]
        self._tokenizer = load_tokenizer(resolve(BASE))
        self._tokenizer.padding_side = "left"

    def answers(self, probes: Sequence[Probe]) -> list[str]:
        """Greedy ones, each with the probe's own prefix in front."""
        import torch

        found = [""] * len(probes)
        texts = [
            self._tokenizer.apply_chat_template(probe.messages, tokenize=False, add_generation_prompt=True)
            + probe.prefix for probe in probes
        ]  # fmt: skip
        order = sorted(range(len(probes)), key=lambda n: len(texts[n]))
        for start in range(0, len(order), 128):
            part = order[start : start + 128]
            given = self._tokenizer(
                [texts[n] for n in part], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.no_grad():
                out = self._model.generate(
                    input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=24,
                    do_sample=False,
                )  # fmt: skip
            said = self._tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
            for n, text in zip(part, said, strict=True):
                found[n] = text
        return found

    def recall(self, probes: Sequence[Probe]) -> float:
        answers = self.answers(probes)
        return sum(probe.recalled(answer) for probe, answer in zip(probes, answers, strict=True)) / len(probes)


@dataclass
class Night:
    """One arm on its way through the batches."""

    arm: Arm
    seed: int
    recipe: TrainingRecipe
    anchors: list[Sample]
    root: Path
    old: list[Sample] = field(default_factory=list)
    last_job: dict[str, int] = field(default_factory=dict)  # sample -> the job that trained it last
    last_loss: dict[str, float] = field(default_factory=dict)
    parent: Path | None = None
    jobs: int = 0
    steps: int = 0

    def train(self, new: list[Sample]) -> None:
        """One job, frozen as the daemon does it."""
        epochs, seed = self.recipe.num_train_epochs, self.seed * 1000 + self.jobs
        shares = {"replay_share": self.arm.replay if self.old else 0.0, "anchor_share": self.arm.anchor}
        if self.arm.joint:  # of everything the share of anchors is the same, without what would be replay
            shares = {"replay_share": 0.0, "anchor_share": self.arm.anchor}
        n_old, n_anchor = mixing.per_epoch(len(new), **shares)
        old = self._wanted(n_old * epochs, seed)
        anchors = mixing.drawn(self.anchors, n_anchor * epochs, seed, "anchor")
        samples = [*new, *(one.model_copy(update={"use": "replay"}) for one in old), *anchors]
        first, second = len(new), len(new) + len(old)
        segments = mixing.mix(
            range(first), range(first, second), range(second, len(samples)), epochs=epochs, seed=seed, **shares
        )
        self._run(samples, segments, seed)
        self.last_job |= {sample.id: self.jobs for sample in samples}
        self.old += new
        self.jobs += 1

    def _wanted(self, count: int, seed: int) -> list[Sample]:
        """Old samples in the order in which the strategy wants them."""
        drawn = mixing.drawn(self.old, len(self.old), seed, "replay")
        if self.arm.strategy == "least_recently_rehearsed":
            drawn.sort(key=lambda sample: self.last_job[sample.id])
        elif self.arm.strategy == "highest_loss":
            drawn.sort(key=lambda sample: -self.last_loss.get(sample.id, float("inf")))
        return drawn[:count]

    def _run(self, samples: list[Sample], segments: list[list[int]], seed: int) -> None:
        from trainer.finetune import finetune
        from trainer.progress import ProgressLog
        from trainer.report import Report

        folder = self.root / f"job-{self.jobs}"
        folder.mkdir()
        content = b"".join(sample.model_dump_json(exclude_defaults=True).encode() + b"\n" for sample in samples)
        (folder / names.SAMPLES).write_bytes(content)
        parent = None
        if self.parent is not None:
            (folder / names.PARENT).symlink_to(self.parent)
            parent = hashlib.sha256((self.parent / names.MANIFEST).read_bytes()).hexdigest()
        spec = JobSpec(recipe=self.recipe, segments=segments, parent=parent, seed=seed)
        (folder / names.SPEC).write_bytes(spec.to_bytes())
        log, report = ProgressLog(folder), Report(hashlib.sha256(spec.to_bytes()).hexdigest())
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            finetune(folder, spec, threading.Event(), log, report)
        self.parent = folder / str(report.checkpoint)
        self.steps += report.steps or 0
        if (folder / names.LOSSES).exists():
            for line in (folder / names.LOSSES).read_text().splitlines():
                self.last_loss |= {samples[place].id: loss for place, loss in json.loads(line)["losses"]}


def run_arm(arm: Arm, seed: int, anchors: list[Sample]) -> list[dict[str, Any]]:
    """One arm through all batches; its figures, and those of the raw weights where there is a mean of them."""
    import torch

    torch.set_num_threads(1)
    began, batches = time.monotonic(), make_batches(seed)
    recipe = TrainingRecipe.model_validate(RECIPE | arm.recipe)
    kinds = ("ema", "raw") if recipe.ema_decay else ("raw",)
    right_after: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="engramd-continual-") as name:
        night = Night(arm, seed, recipe, anchors, Path(name))
        if arm.joint:
            night.train([sample for batch in batches for sample in batch.samples])
        for number, batch in enumerate([] if arm.joint else batches, 1):
            night.train(batch.samples)
            for kind in kinds:
                right_after[kind].append(Model(recipe, night.parent, kind).recall(batch.asked))
            print(f"  {arm.name}, seed {seed}: batch {number} of {BATCHES}, {time.monotonic() - began:.0f} s",
                  file=sys.stderr, flush=True)  # fmt: skip
        found = []
        for kind in kinds:
            model = Model(recipe, night.parent, kind)
            final = [model.recall(batch.asked) for batch in batches]
            lost = [end - then for end, then in zip(final, right_after[kind], strict=False)][:-1]
            found.append({
                "arm": arm.name if kind == kinds[0] else f"{arm.name}, raw weights", "seed": seed, "steps": night.steps,
                "asked": statistics.mean(final), "told": model.recall([p for batch in batches for p in batch.told]),
                "general": model.recall(general_probes()), "backward": statistics.mean(lost) if lost else 0.0,
                "final": final, "right_after": right_after[kind], "seconds": time.monotonic() - began,
            })  # fmt: skip
    return found


def run_base(seed: int) -> list[dict[str, Any]]:
    """The untouched base, asked the same."""
    model, batches = Model(TrainingRecipe.model_validate(RECIPE), None), make_batches(seed)
    asked = model.recall([probe for batch in batches for probe in batch.asked])
    told = model.recall([probe for batch in batches for probe in batch.told])
    return [{"arm": "base", "seed": seed, "steps": 0, "asked": asked, "told": told,
             "general": model.recall(general_probes()), "backward": 0.0, "seconds": 0.0}]  # fmt: skip


# ---- the table ------------------------------------------------------------------------------------


def _call(work: tuple[Arm | None, int, list[Sample]]) -> list[dict[str, Any]]:
    arm, seed, anchors = work
    return run_base(seed) if arm is None else run_arm(arm, seed, anchors)


def table(found: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """Markdown, means over the seeds (lowest to highest in brackets), and whether no bar is missed."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        rows.setdefault(one["arm"], []).append(one)

    def mean(arm: str, key: str) -> float:
        return statistics.mean(one[key] for one in rows[arm])

    named = [name for arm in ARMS for name in (arm.name, f"{arm.name}, raw weights")]
    order = [name for name in ("base", *named) if name in rows]
    lines = ["| arm | asked | told | retained | backward transfer | general | steps / joint's | seconds |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in order:
        asked = [one["asked"] for one in rows[name]]
        lines.append(
            f"| {name} | {statistics.mean(asked):.3f} ({min(asked):.3f} to {max(asked):.3f}) "
            f"| {mean(name, 'told'):.3f} | {mean(name, 'asked') / mean('joint', 'asked'):.3f} "
            f"| {mean(name, 'backward'):+.3f} | {mean(name, 'general'):.3f} "
            f"| {mean(name, 'steps') / mean('joint', 'steps'):.2f} | {mean(name, 'seconds'):.0f} |"
        )
    if not {"joint", "naive", "ours"} <= rows.keys():
        return lines, True
    retained = mean("ours", "asked") / mean("joint", "asked")
    kept = mean("ours", "general") - mean("joint", "general")
    steps, naive = mean("ours", "steps") / mean("joint", "steps"), mean("naive", "asked") / mean("joint", "asked")
    checks = [
        (f"ours retains {retained:.3f} of joint (bar {BARS['retained']})", retained >= BARS["retained"]),
        (f"at {steps:.2f} times its steps (bar {BARS['steps']})", steps <= BARS["steps"]),
        (f"backward transfer {mean('ours', 'backward'):+.3f} (bar {BARS['backward']})",
         mean("ours", "backward") >= BARS["backward"]),
        (f"general ability {kept:+.3f} of joint's (bar {BARS['general']})", kept >= BARS["general"]),
        (f"the naive way retains {naive:.3f} (bar {BARS['naive']})", naive <= BARS["naive"]),
    ]  # fmt: skip
    lines += ["", *(f"{'ok    ' if good else 'MISSED'} {text}" for text, good in checks)]
    return lines, all(good for _, good in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", "--smoke", action="store_true", help="joint, naive and ours, one seed")
    parser.add_argument("--seeds", type=int, help="so many (default: 3; 1 with --quick)")
    parser.add_argument("--arms", help=f"of {', '.join(arm.name for arm in ARMS)}")
    parser.add_argument("--workers", type=int, default=2, help="arms at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="all figures, a line a run")
    asked = parser.parse_args()
    wanted = asked.arms.split(",") if asked.arms else QUICK if asked.quick else [arm.name for arm in ARMS]
    if unknown := set(wanted) - {arm.name for arm in ARMS}:
        parser.error(f"no such arm: {', '.join(sorted(unknown))}")
    seeds = range(asked.seeds or (1 if asked.quick else 3))
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:  # torch in this process would not survive the forks
        anchors = pool.apply(make_anchors)
    # The longest ones first, so that no worker ends up alone with one.
    arms = sorted((arm for arm in ARMS if arm.name in wanted), key=lambda arm: -arm.replay * (not arm.joint))
    work = [(arm, seed, anchors) for seed in seeds for arm in arms] + [(None, seed, anchors) for seed in seeds]
    found = []
    with context.Pool(asked.workers, maxtasksperchild=1) as pool:
        for one in (one for several in pool.imap_unordered(_call, work) for one in several):
            found.append(one)
            print(f"{one['arm']}, seed {one['seed']}: asked {one['asked']:.3f}, general {one['general']:.3f}",
                  file=sys.stderr, flush=True)  # fmt: skip
            if asked.json:
                with asked.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(one) + "\n")
    lines, good = table(found) if any(one["arm"] == "joint" for one in found) else ([], True)
    print("\n".join(lines))
    print(f"\n{len(work)} runs in {time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
