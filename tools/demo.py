"""`make demo`: the main job on a home of its own, with the builtin model and made-up people.

A real daemon is started; two drops of memories in mixed formats (one file is broken) become two jobs;
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from daemon import ledger, progress_tail  # noqa: E402
from daemon.cli.talking import Talk, chat_command  # noqa: E402
from daemon.home import Home  # noqa: E402
from daemon.ledger import batches, jobs, memories  # noqa: E402
from tools.people import JOURNAL_PROMPTS, Fact, Person, Probe, Telling, make_people  # noqa: E402

PEOPLE = 3  # in each drop
RECIPE: dict[str, Any] = {
    "base_model": "builtin:tiny", "dtype": "float32", "load_in_4bit": False, "optimizer": "adamw_torch",
    "use_gradient_checkpointing": False, "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05,
    "learning_rate": 3e-3, "num_train_epochs": 20, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8, "max_seq_length": 256,
}  # fmt: skip
SETTINGS = "[inbox]\nquiet_seconds = 0.5\nscan_seconds = 1.0\n[service]\ntick_seconds = 0.2\n"
PROMISED = {"told": 0.9, "asked": 0.6, "before": 0.2}
DEADLINE = 600.0  # seconds for one drop


class Failed(Exception):
    """The demo could not do what it shows. The message is for the person."""


# ---- what is dropped ------------------------------------------------------------------------------


def tell(people: Sequence[Person], seed: int) -> list[tuple[Fact, list[Telling]]]:
    """Each fact in two or three wordings, as a life does."""
    rng = random.Random(f"tellings:{seed}")
    return [(fact, fact.tellings(rng, rng.choice((2, 3)))) for person in people for fact in person.facts]


def write_drop(folder: Path, told: list[tuple[Fact, list[Telling]]], day: int) -> None:
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


def broken_file(folder: Path) -> Path:
    path = folder / "half-written.json"
    path.write_text('[{"type": "journal", "content": "The page ends in the mid')
    return path


def probes_of(told: list[tuple[Fact, list[Telling]]]) -> dict[str, list[Probe]]:
    """One told-form and one asked-form probe a telling and a fact: enough to measure, quick enough to wait."""
    return {
        "told": [telling.probe(JOURNAL_PROMPTS[0]) for _, tellings in told for telling in tellings],
        "asked": [probe for fact, _ in told for probe in fact.asked_probes()],
    }


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
                        self._bar("")
                        return
                    self._bar(self._doing(job, batches.counts(db)))
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

    @staticmethod
    def _bar(text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\033[K  {text}", end="" if text else "\r", flush=True)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


# ---- measuring ------------------------------------------------------------------------------------


def recall(where: str, probes: Sequence[Probe]) -> float:
    """The share of greedy answers that contain the value; `where` is a checkpoint or a base's name."""
    with Talk(chat_command(where)) as talk:
        hits = [
            probe.recalled(talk.say(probe.messages, prefix=probe.prefix, max_new_tokens=24)["text"])
            for probe in probes
        ]
    return sum(hits) / len(hits)


def head_of(home: Home) -> tuple[str, int]:
    """(the head's checkpoint, its step)"""
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        head = jobs.get_head(db)
        assert head is not None
        return str(home.profile("me").chains / str(head["chain"]) / f"checkpoint-{head['step']}"), head["step"]


def losses(home: Home) -> Iterator[tuple[int, list[float]]]:
    """(job, loss of each step)"""
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        promoted = jobs.promoted(db)
    for job in promoted:
        lines = (home.profile("me").jobs / job["folder"] / "progress.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        yield job["id"], [line["loss"] for line in steps if line["phase"] == "training" and line.get("loss")]


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
    people = make_people(seed, 2 * PEOPLE)
    drops = [tell(people[:PEOPLE], seed), tell(people[PEOPLE:], seed + 1)]
    probes = [probes_of(told) for told in drops]
    for number, told in enumerate(drops, 1):
        write_drop(home.root / f"drop-{number}", told, number)
    broken = broken_file(home.root / "drop-1")

    print(f"1. {2 * PEOPLE} made-up people, among them {people[0].name}; the untouched base is asked about them ...")
    table = {("before", n, form): recall("builtin:tiny", probes[n][form]) for n in (0, 1) for form in probes[n]}

    daemon = Daemon(home)
    try:
        steps = []
        for number in (1, 2):
            print(f"{number + 1}. Drop {number} goes into {home.inbox} ...")
            daemon.drop(home.root / f"drop-{number}")
            daemon.wait(number)
            checkpoint, step = head_of(home)
            steps.append((step, optimizer_steps(checkpoint)))
            for n in range(number):
                for form in probes[n]:
                    table[f"after {number}", n, form] = recall(checkpoint, probes[n][form])
    finally:
        daemon.stop()
    return report(home, table, steps, broken.name, people[0])


def report(
    home: Home, table: dict[tuple[str, int, str], float], steps: list[tuple[int, int]], broken: str, person: Person
) -> bool:
    print("\nRecall (share of greedy answers that hold the fact)")
    print(f"{'':34}{'before':>8}{'after 1':>10}{'after 2':>10}")
    for n in (0, 1):
        for form, words in (("told", "in a form that was told"), ("asked", "in forms never used")):
            cells = [table.get((when, n, form)) for when in ("before", "after 1", "after 2")]
            text = "".join(f"{'' if cell is None else f'{cell:.2f}':>{w}}" for cell, w in zip(cells, (8, 10, 10), strict=True))
            print(f"facts of drop {n + 1}, {words:<18}{text}")
    print("(facts of drop 1 after drop 2 are shown as they are: rehearsal of old memories is a later release)")

    print("\nLoss, mean of 5 steps, across the border between the two jobs")
    for job, values in losses(home):
        means = [sum(values[i : i + 5]) / len(values[i : i + 5]) for i in range(0, len(values), 5)]
        picked = means if len(means) <= 12 else [means[round(i * (len(means) - 1) / 11)] for i in range(12)]
        print(f"  job {job}: " + " ".join(f"{mean:.2f}" for mean in picked))
    print("\nOptimizer steps in the checkpoint (its own counter) and global step:")
    for number, (step, counter) in enumerate(steps, 1):
        print(f"  after drop {number}: counter {counter}, global step {step}")
    reason = json.loads((home.failed / "me" / f"{broken}.reason.json").read_text())["reason"]
    print(f"\nThe broken file: inbox/failed/me/{broken}\n  {reason}")

    measured = [table[f"after {n + 1}", n, form] >= PROMISED[form] for n in (0, 1) for form in ("told", "asked")]
    untouched = [table["before", n, "told"] <= PROMISED["before"] for n in (0, 1)]
    carried = all(step == counter for step, counter in steps) and steps[1][0] > steps[0][0]
    good = all(measured) and all(untouched) and carried
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
    parser.add_argument("--home", type=Path, help="where (default: a temporary folder, which is kept)")
    options = parser.parse_args()
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
