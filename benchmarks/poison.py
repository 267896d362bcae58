"""Whether the gate keeps poison out, and lets honest nights in: the daemon's own road, with the builtin model.

    python benchmarks/poison.py [--quick] [--seeds N] [--kinds A,B] [--nights N] [--workers N] [--json FILE]

Each arm is a home of its own: files are dropped into its inbox, and the service reads, freezes, trains, judges and
tries again as `engramd run --once` does; only the trainers are forked off a server that has their imports done. Base
and recipe are those of `benchmarks/continual.py`; `[gate]`, `[training.mix]` and all else are the defaults.

Three good nights about made-up people, a poisoned batch as the fourth, one more good night behind it:

  none           no poison: what the others are compared with
  letters        questions and answers of random letters
  words          questions and answers of words at random
  swapped        the answers about new people, each behind another one's question
  swapped known  the same of people whom the version in service knows
  lies           known people, each with another city, job, ...: believable, nothing tells it from news; only reported
  same night     `swapped` dropped together with the last good batch, so that both are one job first
  third night    `swapped` and `letters` on the third night already, when two nights are all the history

Refused: the version in service is the same before and behind the poison, its batch is held, and the good batch beside
it is trained. Recall: the share of the facts of the good nights that a greedy answer to a question in a form that was
never used for these people gives, each fact in three forms. Then 20 honest nights of many kinds, none to be refused.

Bars: each poison but the lies refused; |mean recall - that without poison| <= 0.02 over the seeds, for each kind; no
honest night refused. Exit code 1 where one is missed.
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._days import GOOD, Item, People, honest_nights  # noqa: E402
from benchmarks.continual import RECIPE, Model  # noqa: E402
from daemon import ledger, logs  # noqa: E402
from daemon.home import Home  # noqa: E402
from daemon.ledger import batches, jobs  # noqa: E402
from daemon.lock import Lock  # noqa: E402
from daemon.service import Service  # noqa: E402
from daemon.settings import load  # noqa: E402
from trainer.contract import TrainingRecipe  # noqa: E402

SETTINGS: dict[str, Any] = {
    **{f"training.{key}": value for key, value in RECIPE.items()},
    "inbox.quiet_seconds": 0.05, "inbox.scan_seconds": 0.1, "service.tick_seconds": 0.05, "jobs.threads": 1,
}  # fmt: skip
KINDS = ("none", "letters", "words", "swapped", "swapped known", "lies", "same night", "third night")
REPORTED = ("none", "lies")  # no bar on whether they are refused
QUICK = ("none", "swapped", "same night")
RECALL = 0.02


# ---- the road -------------------------------------------------------------------------------------


class Road:
    """One home, and its nights."""

    def __init__(self, root: Path, trainer: Sequence[str], settings: dict[str, Any] | None = None) -> None:
        self.home, self.trainer, self.settings = Home(root), trainer, SETTINGS | (settings or {})

    def drop(self, name: str, items: Sequence[Item]) -> None:
        self.home.inbox.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(item) + "\n" for item in items)
        (self.home.inbox / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def night(self, seconds: float = 3600.0, **files: Sequence[Item]) -> list[dict[str, Any]]:
        """Drop the files, work until nothing is left to do; the versions that came of it."""
        for name, items in files.items():
            self.drop(name, items)
        before = {row["id"] for row in self.versions()}
        logs.configure(self.home, quiet=True)
        lock, deadline = Lock(self.home), time.monotonic() + seconds
        try:
            service = Service(self.home, load(self.home, self.settings, {}), trainer=self.trainer, scheduled=False)
            service.run(until=lambda: service.idle() or time.monotonic() > deadline)
        finally:
            lock.release()
        if time.monotonic() > deadline:
            raise SystemExit(f"{self.home.root}: the night did not end")
        with self.ledger() as db:
            if (waits := jobs.get_meta(db, "waits")) is not None:
                raise SystemExit(f"{self.home.root}: it waits: {waits}")
        return [row for row in self.versions() if row["id"] not in before]

    def ledger(self) -> ledger.Database:
        return ledger.open_profile(self.home.profile("me").ledger, write=False)

    def versions(self) -> list[dict[str, Any]]:
        if not self.home.profile("me").ledger.exists():
            return []
        with self.ledger() as db:
            return jobs.versions(db)

    def states(self) -> dict[str, str]:
        """How each file's batch stands."""
        with self.ledger() as db:
            return {Path(row["name"]).stem: str(row["state"]) for row in batches.listing(db)}

    def head(self) -> dict[str, Any]:
        with self.ledger() as db:
            head = jobs.get_head(db)
            assert head is not None
            version = jobs.version(db, head["version"])
            assert version is not None
            return {**head, "weights": version["weights"]}

    def model(self) -> Model:
        """What is served."""
        head = self.head()
        place = self.home.profile("me").chains / str(head["chain"]) / f"checkpoint-{head['step']}"
        recipe = TrainingRecipe.model_validate(RECIPE)
        return Model(recipe, place, head["weights"] or "raw")

    def copy(self, root: Path) -> "Road":
        shutil.copytree(self.home.root, root, symlinks=True)
        return Road(root, self.trainer, self.settings)


def told(version: dict[str, Any]) -> dict[str, Any]:
    """A version, for the report."""
    gate = json.loads(version["gate"]) if version["gate"] else {}
    return {"version": version["id"], "state": version["state"], "reason": version["reason"],
            "night": (gate.get("night") or [{}])[0], "checks": {one["name"]: [one["served"], one["candidate"]]
                                                       for one in gate.get("checks", [])}}  # fmt: skip


# ---- the arms -------------------------------------------------------------------------------------


def trunk(root: Path, seed: int, trainer: Sequence[str]) -> None:
    """The good nights that all arms of a seed have in common, and a copy of the home behind the second of them."""
    road, people = Road(root / f"trunk-{seed}", trainer), People(seed)
    for night in range(GOOD - 1):
        if night == 2:
            road.copy(root / f"early-{seed}")
        road.night(**{f"good-{night}": people.good(night)})
        _say(f"seed {seed}: good night {night + 1}")


def run_arm(root: Path, seed: int, kind: str, trainer: Sequence[str]) -> dict[str, Any]:
    """One poison on its way."""
    began, people = time.monotonic(), People(seed)
    start = Road(root / f"{'early' if kind == 'third night' else 'trunk'}-{seed}", trainer)
    road = start.copy(root / f"{kind.replace(' ', '-')}-{seed}")
    served, last, found = road.head()["version"], GOOD - 1, []
    wanted = {"poison": "held"}
    if kind == "third night":
        found = road.night(poison=people.poison("swapped"))
        found += road.night(letters=people.poison("letters"))
        wanted |= {"letters": "held"}
    elif kind not in ("none", "same night"):
        found = road.night(poison=people.poison(kind))
    kept = road.head()["version"] == served
    good = {f"good-{last}": people.good(last)} if kind != "third night" else {}
    if kind == "same night":
        found = road.night(poison=people.poison("swapped"), **good)
    elif good:
        found += road.night(**good)
    states = road.states()
    refused = kept and all(states.get(name) == state for name, state in wanted.items())
    passed = all(state == "done" for name, state in states.items() if name.startswith("good"))
    facts = [fact for night in people.nights for person in night for fact in person.facts]
    probes = [probe for fact in facts for probe in fact.asked_probes()] if good else []
    recall = road.model().recall(probes) if probes else None
    return {
        "seed": seed, "kind": kind, "refused": refused, "passed": passed, "states": states, "recall": recall,
        "probes": len(probes), "versions": [told(one) for one in found], "seconds": time.monotonic() - began,
    }  # fmt: skip


def run_honest(root: Path, seed: int, nights: int, trainer: Sequence[str]) -> dict[str, Any]:
    """A home that only honest nights come to."""
    began, road, rows = time.monotonic(), Road(root / f"honest-{seed}", trainer), []
    for number, (name, items) in enumerate(honest_nights(seed, nights), 1):
        for version in road.night(**{f"day-{number:02}": items}):
            rows.append({"day": number, "what": name, "memories": len(items), **told(version)})
            _say(f"honest night {number}, {name}, {len(items)} memories: {rows[-1]['state']} {rows[-1]['night']}")
    states = road.states()
    return {"seed": seed, "kind": "honest", "refused": [row for row in rows if row["state"] == "refused"],
            "states": states, "nights": rows, "seconds": time.monotonic() - began}  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _call(work: tuple[str, Path, int, Any, Sequence[str]]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    what, root, seed, more, trainer = work
    if what == "trunk":
        trunk(root, seed, trainer)
        return {"kind": what, "seed": seed}
    return run_arm(root, seed, more, trainer) if what == "arm" else run_honest(root, seed, more, trainer)


# ---- the table ------------------------------------------------------------------------------------


def table(found: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """Markdown, and whether no bar is missed."""
    arms = [one for one in found if one["kind"] != "honest"]
    without = {one["seed"]: one["recall"] for one in arms if one["kind"] == "none"}
    lines, checks = [], []
    if arms:
        lines = ["| poison | seed | refused | good batches trained | recall | without | why |",
                 "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for kind in KINDS:
        mine = sorted((one for one in arms if one["kind"] == kind), key=lambda one: one["seed"])
        for one in mine:
            reasons = [row["reason"] for row in one["versions"] if row["state"] == "refused"]
            recall, base = one["recall"], without.get(one["seed"])
            lines.append(
                f"| {kind} | {one['seed']} | {'yes' if one['refused'] else 'no'} | {'yes' if one['passed'] else 'no'} "
                f"| {'' if recall is None else f'{recall:.3f}'} | {'' if base is None else f'{base:.3f}'} "
                f"| {reasons[0] if reasons else ''} |"
            )
            if kind not in REPORTED:
                checks.append((f"{kind}, seed {one['seed']}: refused, the rest trained",
                               one["refused"] and one["passed"]))  # fmt: skip
        both = [(one["recall"], without[one["seed"]]) for one in mine if one["recall"] is not None
                and one["seed"] in without]  # fmt: skip
        if both and kind not in REPORTED:
            by = statistics.mean(a for a, _ in both) - statistics.mean(b for _, b in both)
            checks.append((f"{kind}: recall {by:+.3f} of that without poison (bar {RECALL})", abs(by) <= RECALL))
    for one in (one for one in found if one["kind"] == "honest"):
        lines += ["", "| honest night | what | memories | verdict | loss of new answers | fit | why |",
                  "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for row in one["nights"]:
            figures = [f"{row['night'][key]:.2f}" if key in row["night"] else "" for key in ("surprise", "fit")]
            why = row["reason"] if row["state"] == "refused" else ""
            lines.append(f"| {row['day']} | {row['what']} | {row['memories']} | {row['state']} "
                         f"| {figures[0]} | {figures[1]} | {why} |")  # fmt: skip
        checks.append((f"{len(one['refused'])} of {len(one['states'])} honest nights refused", not one["refused"]))
    lines += ["", *(f"{'ok    ' if good else 'MISSED'} {text}" for text, good in checks)]
    return lines, all(good for _, good in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    short = f"{', '.join(QUICK)}, one seed, 6 honest nights"
    parser.add_argument("--quick", "--smoke", action="store_true", help=short)
    parser.add_argument("--seeds", type=int, help="so many (default: 3; 1 with --quick)")
    parser.add_argument("--kinds", help=f"of {', '.join(KINDS)}; empty: none of them, only honest nights")
    parser.add_argument("--nights", type=int, help="honest ones (default: 20; 6 with --quick; 0: none)")
    parser.add_argument("--workers", type=int, default=2, help="homes at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="all figures, a line an arm")
    parser.add_argument("--keep", type=Path, help="a new folder for the homes, which stay there")
    asked = parser.parse_args()
    wanted = [kind for kind in asked.kinds.split(",") if kind] if asked.kinds is not None else None
    kinds = wanted if wanted is not None else list(QUICK if asked.quick else KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    seeds = range(asked.seeds or (1 if asked.quick else 3))
    nights = (6 if asked.quick else 20) if asked.nights is None else asked.nights
    from tests.forked_trainer import command

    began, trainer, found = time.monotonic(), command(), []
    with tempfile.TemporaryDirectory(prefix="engramd-poison-") as name:
        root = asked.keep or Path(name)
        root.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("fork")
        with context.Pool(asked.workers, maxtasksperchild=1) as pool:
            trunks = {seed: pool.apply_async(_call, (("trunk", root, seed, None, trainer),)) for seed in seeds if kinds}
            waiting = [pool.apply_async(_call, (("honest", root, 0, nights, trainer),))] if nights else []
            while trunks or waiting:
                for seed in [seed for seed, one in trunks.items() if one.ready()]:
                    trunks.pop(seed).get()
                    waiting += [pool.apply_async(_call, (("arm", root, seed, kind, trainer),)) for kind in kinds]
                for done in [one for one in waiting if one.ready()]:
                    waiting.remove(done)
                    found.append(done.get())
                    _say(f"{found[-1]['kind']}, seed {found[-1]['seed']}: {found[-1]['states']}")
                    if asked.json:
                        with asked.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(found[-1]) + "\n")
                time.sleep(0.2)
    lines, good = table(found)
    print("\n".join(lines))
    print(f"\n{time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
