"""Job folders written by hand, and the trainer run on them: what the daemon does, without a daemon."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.contract import JobResult, JobSpec, Progress, TrainingRecipe

ROOT = Path(__file__).resolve().parent.parent
TINY = "builtin:tiny"

# Small steps on a CPU: what a test wants unless it says otherwise.
SMALL: dict[str, Any] = {
    "base_model": TINY,
    "max_seq_length": 128,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 4,
    "optimizer": "adamw_torch",
    "dtype": "float32",
    "load_in_4bit": False,
    "use_gradient_checkpointing": False,
    "save_steps": 1000,
    "ema_decay": 0.0,
}


def recipe(**changes: Any) -> TrainingRecipe:
    """A small recipe for the builtin model, with these changes."""
    return TrainingRecipe.model_validate({**SMALL, **changes})


def sample(identity: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    """One line of samples.jsonl: a question and the answer that is learnt."""
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "loss": True},
    ]
    return {"id": identity, "messages": messages, **more}


def some_samples(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Made-up memories of varied length, the same at every call."""
    places = ("Lund", "the old harbour", "a house by the river that nobody had painted for years", "Oslo")
    return [
        sample(
            f"s{n}",
            f"Where does person {n} live?",
            f"Person {n} lives in {places[n % 4]}." + " Yes." * (n % 7),
        )
        for n in range(start, start + count)
    ]


def write_job(
    folder: Path,
    samples: Sequence[Mapping[str, Any]],
    segments: Sequence[Sequence[int]] | None = None,
    *,
    recipe: TrainingRecipe,
    kind: str = "finetune",
    probes: Sequence[Mapping[str, Any]] = (),
    prompts: Sequence[Mapping[str, Any]] = (),
    parent: Path | None = None,
    served: Path | None = None,
    seed: int = 7,
    **more: Any,
) -> JobSpec:
    """Write a job folder; `segments` default to `num_train_epochs` times all samples in order.

    `parent` and `served` are checkpoint folders: they are hard-linked into the job, and the spec names their
    manifests. `more` are other fields of the spec.
    """
    folder.mkdir(parents=True)
    if segments is None:
        segments = [list(range(len(samples)))] * recipe.num_train_epochs
    lines = _write_lines(folder / names.SAMPLES, samples)
    probe_hash = _write_lines(folder / names.PROBES, probes) if probes else None
    hashes = {}
    for name, checkpoint in ((names.PARENT, parent), (names.SERVED, served)):
        if checkpoint is not None:
            shutil.copytree(checkpoint, folder / name, copy_function=os.link)
            hashes[name] = sha256(checkpoint / names.MANIFEST)
    spec = JobSpec.model_validate(
        {
            "kind": kind,
            "recipe": recipe.model_dump(),
            "segments": [list(segment) for segment in segments],
            "samples_sha256": lines,
            "probes_sha256": probe_hash,
            "prompts_sha256": _write_lines(folder / names.PROMPTS, prompts) if prompts else None,
            "seed": seed,
            **hashes,
            **more,
        }
    )
    (folder / names.SPEC).write_bytes(spec.to_bytes())
    return spec


class Pollable(Protocol):
    def poll(self) -> int | None: ...


def environment(**changes: str) -> dict[str, str]:
    """The trainer's environment in tests: the CPU, one thread, this checkout."""
    fixed = {"OMP_NUM_THREADS": "1", "ENGRAMD_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **fixed, **changes}


def run(folder: Path, **environment: str) -> JobResult:
    """Run a job to its end; its result. A crash fails the test with what the trainer printed."""
    process = ForkedTrainer(folder, environment=environment)
    code = process.wait()
    printed = (folder / names.LOG).read_text()
    assert (folder / names.RESULT).exists(), f"exit {code}, no result:\n{printed}"
    told = result(folder)
    assert told.exit_code == code
    return told


def wait_for_step(folder: Path, step: int, process: Pollable, seconds: float = 60) -> None:
    """Wait until the job has told of this step; fails where its trainer ends before."""
    deadline = time.monotonic() + seconds
    while not any((line.step or 0) >= step for line in progress(folder) if line.phase == "training"):
        assert process.poll() is None, f"the trainer ended before step {step}"
        assert time.monotonic() < deadline, f"step {step} was not reached in time"
        time.sleep(0.005)


def result(folder: Path) -> JobResult:
    return JobResult.model_validate_json((folder / names.RESULT).read_bytes())


def progress(folder: Path) -> list[Progress]:
    """The whole lines of a job's progress so far."""
    path = folder / names.PROGRESS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [Progress.model_validate_json(line) for line in lines]


def training_steps(folder: Path) -> list[Progress]:
    """The progress lines of the steps that were taken."""
    return [line for line in progress(folder) if line.phase == "training" and line.step is not None]


def checkpoint(folder: Path) -> Path:
    """The newest checkpoint that the job's result names."""
    name = result(folder).checkpoint
    assert name is not None
    return folder / name


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_lines(path: Path, items: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return sha256(path)
