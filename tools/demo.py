"""`make demo`: the main job on a home of its own, with the builtin model and made-up people.

A real daemon is started; two drops (those in `examples/`, or of the people of another `--seed`) of memories in mixed formats (one file is broken) become two jobs;
questions are asked before and after each. The table says what is recalled in the form in which it was
told, and in question forms that no memory uses. Exit code 0 where the promised figures are reached.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon import ledger, progress_tail  # noqa: E402
from daemon.cli.talking import Talk, chat_command  # noqa: E402
from daemon.home import Home  # noqa: E402
from daemon.ledger import batches, jobs, memories  # noqa: E402
from tools.people import JOURNAL_PROMPTS, Fact, Person, Probe, Telling, make_people  # noqa: E402

Told = list[tuple[Fact, list[Telling]]]
Cell = tuple[str, int, str]  # when it is asked, which drop's facts (0 or 1), in which form
EXAMPLES = ROOT / "examples"
EXAMPLES_SEED = 1  # of the people in examples/drop-1 and drop-2
BROKEN = "half-written.json"
PEOPLE = 3  # in each drop
RECIPE: dict[str, Any] = {
    "base_model": "builtin:tiny", "dtype": "float32", "load_in_4bit": False, "optimizer": "adamw_torch",
    "use_gradient_checkpointing": False, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05,
    "learning_rate": 3e-3, "num_train_epochs": 15, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8, "max_seq_length": 256,
}  # fmt: skip
SETTINGS = "[inbox]\nquiet_seconds = 0.5\nscan_seconds = 1.0\n[service]\ntick_seconds = 0.2\n"
PROMISED = {"told": 0.9, "asked": 0.6, "before": 0.2, "kept": 0.8}
DEADLINE = 600.0  # seconds for one drop


def show_progress(text: str) -> None:
    """One line that is written over and over; nothing where stdout is no terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K  {text}", end="" if text else "\r", flush=True)


class Failed(Exception):
    """The demo could not do what it shows. The message is for the person."""


# ---- what is dropped ------------------------------------------------------------------------------


def tell(people: Sequence[Person], seed: int) -> Told:
    """Each fact in two or three wordings, as a life does."""
    rng = random.Random(f"tellings:{seed}")
    return [(fact, fact.tellings(rng, rng.choice((2, 3)))) for person in people for fact in person.facts]


def write_drop(folder: Path, told: Told, day: int) -> None:
    """The memories of one drop in mixed formats: ShareGPT lines, origin JSON, a Markdown journal."""
    folder.mkdir(parents=True, exist_ok=True)
    tellings = [telling for _, all_of_one in told for telling in all_of_one]
    exchanges = [t for t in tellings if t.kind == "exchange"]
    half = len(exchanges) // 2
    lines = [
        {"conversations": [{"from": "human", "value": t.prompt}, {"from": "gpt", "value": t.text}]}
        for t in exchanges[:half]
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    origin = [
        {"timestamp": f"2026-01-{day:02}T09:{n // 60:02}:{n % 60:02}Z", "type": "conversation",
         "content": f'Me: "{t.prompt}"', "response": t.text}
        for n, t in enumerate(exchanges[half:])
    ]  # fmt: skip
    observations = [t for t in tellings if t.kind == "observation"]
    origin += [
        {"timestamp": f"2026-01-{day:02}T12:{n // 60:02}:{n % 60:02}Z", "type": "observation", "content": t.text}
        for n, t in enumerate(observations)
    ]
    (folder / "memories.json").write_text(json.dumps(origin, indent=1))
    journal = folder / "journal"
    journal.mkdir(exist_ok=True)
    for number, t in enumerate(t for t in tellings if t.kind == "journal"):
        date = f"2026-01-{day:02}"
        (journal / f"{number:03}.md").write_text(f"---\ndate: {date}\ntags: [journal]\n---\n{t.text}\n")


def made_up(seed: int) -> tuple[list[Person], list[Told]]:
    """The people of a seed, and what is told of them in the first and in the second drop."""
    people = make_people(seed, 2 * PEOPLE)
    return people, [tell(people[:PEOPLE], seed), tell(people[PEOPLE:], seed + 1)]


def write_drops(root: Path, drops: Sequence[Told]) -> None:
    """`drop-1` with a file that is torn in the middle, and `drop-2`."""
    for number, told in enumerate(drops, 1):
        write_drop(root / f"drop-{number}", told, number)
    (root / "drop-1" / BROKEN).write_text('[{"type": "journal", "content": "The page ends in the mid')


def probes_of(told: Told) -> dict[str, list[Probe]]:
    """Every fact in one wording in which it was told, and in two questions that no memory asks."""
    return {
        "told": [
            tellings[number % len(tellings)].probe(JOURNAL_PROMPTS[0]) for number, (_, tellings) in enumerate(told)
        ],
        "asked": [probe for number, (fact, _) in enumerate(told) for probe in _two(fact.asked_probes(), number)],
    }


def _two(probes: list[Probe], number: int) -> list[Probe]:
    return [probes[number % len(probes)], probes[(number + 1) % len(probes)]]


# ---- the daemon -----------------------------------------------------------------------------------


class Daemon:
    def __init__(self, home: Home) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")}
        self.home = home
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "--home", str(home.root), "run"], cwd=ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def drop(self, source: Path) -> None:
        """As a person would: copy into the inbox."""
        for entry in sorted(source.iterdir()):
            hidden = self.home.inbox / f".{entry.name}"
            (shutil.copytree if entry.is_dir() else shutil.copy)(entry, hidden)
            hidden.rename(self.home.inbox / entry.name)

    def wait(self, jobs_done: int) -> None:
        """Until so many jobs are promoted and nothing waits, with a bar. Raises Failed."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Failed(f"the daemon ended: {self._process.communicate()[1].strip()[-500:]}")
            try:
                with ledger.open_profile(self.home.profile("me").ledger, write=False) as db:
                    failed = [job for job in jobs.listing(db) if job["state"] in ("failed", "refused")]
                    if failed:
                        raise Failed(f"job {failed[0]['id']} ended badly: {failed[0]['reason']}")
                    job = jobs.open_job(db)
                    if len(jobs.promoted(db)) >= jobs_done and job is None and not memories.any_waiting(db):
                        show_progress("")
                        return
                    show_progress(self._doing(job, batches.counts(db)))
            except ledger.Absent:
                pass
            time.sleep(0.3)
        raise Failed(f"nothing was trained within {DEADLINE:.0f} s: see {self.home.log}")

    def _doing(self, job: dict[str, Any] | None, counts: dict[str, int]) -> str:
        if job is None:
            return f"reading: {counts.get('done', 0) + counts.get('read', 0)} files read"
        line = progress_tail.last(self.home.profile("me").jobs / job["folder"]) or {}
        step, steps = line.get("step"), line.get("steps")
        if not step or not steps:
            return f"job {job['id']}: {line.get('phase', 'starting')}"
        done = (step - job["parent_step"]) / max(1, job["steps"])
        bar = "#" * int(done * 30)
        return f"job {job['id']} [{bar:<30}] step {step}/{steps}  loss {line.get('loss') or 0:.3f}"

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


# ---- measuring ------------------------------------------------------------------------------------


def recall(where: str, sets: dict[Cell, list[Probe]], weights: str = "raw") -> dict[Cell, float]:
    """For each set the share of greedy answers that hold the value; `where` is a checkpoint (and which of its weights)
    or a base's name."""
    found = {}
    asked, total = 0, sum(map(len, sets.values()))
    with Talk([*chat_command(where), "--weights", weights] if weights != "raw" else chat_command(where)) as talk:
        for cell, probes in sets.items():
            hits = 0
            for probe in probes:
                answer = talk.say(probe.messages, prefix=probe.prefix, max_new_tokens=24)
                hits += probe.recalled(answer["text"])
                asked += 1
                show_progress(f"asking: {asked} of {total}")
            found[cell] = hits / len(probes)
    show_progress("")
    return found


def head_of(home: Home) -> tuple[str, int, str]:
    """(the head's checkpoint, its step, which of its weights its version relies on)"""
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        head = jobs.get_head(db)
        assert head is not None
        version = jobs.version(db, head["version"]) or {}
        checkpoint = home.profile("me").chains / str(head["chain"]) / f"checkpoint-{head['step']}"
        return str(checkpoint), head["step"], str(version.get("weights", "raw"))


def optimizer_steps(checkpoint: str) -> int:
    """The step count inside the optimizer's own state: it goes on only where the moments were carried."""
    code = (
        "import sys, torch; state = torch.load(sys.argv[1], weights_only=True)['state'];"
        "print(int(max(one['step'] for one in state.values())))"
    )
    command = [sys.executable, "-c", code, str(Path(checkpoint) / "optimizer.pt")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# ---- the show -------------------------------------------------------------------------------------


def show(home: Home, seed: int) -> bool:
    people, drops = made_up(seed)
    probes = [probes_of(told) for told in drops]
    source = EXAMPLES if seed == EXAMPLES_SEED else home.root
    if source != EXAMPLES:
        write_drops(source, drops)

    print(f"1. {2 * PEOPLE} made-up people, among them {people[0].name}; the untouched base is asked about them ...")
    table = recall("builtin:tiny", {("before", n, form): probes[n][form] for n in (0, 1) for form in probes[n]})

    daemon = Daemon(home)
    try:
        steps = []
        for number in (1, 2):
            print(f"{number + 1}. Drop {number} goes into {home.inbox} ...")
            daemon.drop(source / f"drop-{number}")
            daemon.wait(number)
            checkpoint, step, weights = head_of(home)
            steps.append((step, optimizer_steps(checkpoint)))
            known = {(f"after {number}", n, form): probes[n][form] for n in range(number) for form in probes[n]}
            table |= recall(checkpoint, known, weights)
    finally:
        daemon.stop()
    return report(home, table, steps, people[0])


def report(
    home: Home, table: dict[Cell, float], steps: list[tuple[int, int]], person: Person
) -> bool:
    print("\nRecall (share of greedy answers that hold the fact)")
    print(f"{'':40}{'before':>9}{'after 1':>9}{'after 2':>9}")
    for n in (0, 1):
        for form, words in (("told", "in a form that was told"), ("asked", "in forms never used")):
            cells = [table.get((when, n, form)) for when in ("before", "after 1", "after 2")]
            text = "".join(f"{'' if cell is None else f'{cell:.2f}':>9}" for cell in cells)
            print(f"facts of drop {n + 1}, {words:<24}{text}")
    print("(what is kept of drop 1 after drop 2 is the work of [training.mix]: old memories and general text)")

    print("\nLoss across the border between the two jobs (engramd loss):\n", flush=True)
    subprocess.run([sys.executable, "-m", "daemon", "--home", str(home.root), "loss"], cwd=ROOT, check=True)
    print("\nOptimizer steps in the checkpoint (its own counter) and global step:")
    for number, (step, counter) in enumerate(steps, 1):
        print(f"  after drop {number}: counter {counter}, global step {step}")
    reason = json.loads((home.failed / "me" / f"{BROKEN}.reason.json").read_text())["reason"]
    print(f"\nThe broken file: inbox/failed/me/{BROKEN}\n  {reason}")

    measured = [table[f"after {n + 1}", n, form] >= PROMISED[form] for n in (0, 1) for form in ("told", "asked")]
    kept = table["after 2", 0, "told"] >= PROMISED["kept"]
    untouched = [table["before", n, "told"] <= PROMISED["before"] for n in (0, 1)]
    carried = all(step == counter for step, counter in steps) and steps[1][0] > steps[0][0]
    good = all(measured) and kept and all(untouched) and carried
    print(f"\n{'Everything is as promised.' if good else 'NOT as promised: see the table.'} The demo's home: {home.root}")
    print(
        "\nGo on with your own:\n"
        f'  .venv/bin/engramd --home {home.root} ask "Where does {person.name} live?"\n'
        "  edit etc/training.json (base_model), then  .venv/bin/engramd base fetch Qwen/Qwen3-1.7B\n"
        "  .venv/bin/engramd run          and drop your files into inbox/"
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="The main job, shown on made-up people.")
    parser.add_argument("--seed", type=int, default=1, help="of the made-up people (default: 1)")
    parser.add_argument("--write-examples", action="store_true", help="make examples/drop-1 and drop-2 anew, and end")
    parser.add_argument("--home", type=Path, help="where (default: a temporary folder, which is kept)")
    options = parser.parse_args()
    if options.write_examples:
        write_drops(EXAMPLES, made_up(EXAMPLES_SEED)[1])
        return 0
    root = options.home or Path(tempfile.mkdtemp(prefix="engramd-demo-"))
    home = Home(root.resolve())
    home.etc.mkdir(parents=True, exist_ok=True)
    home.inbox.mkdir(exist_ok=True)
    (home.etc / "training.json").write_text(json.dumps(RECIPE, indent=1))
    (home.etc / "engramd.toml").write_text(SETTINGS)
    began = time.monotonic()
    try:
        good = show(home, options.seed)
    except Failed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"({time.monotonic() - began:.0f} s)")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
