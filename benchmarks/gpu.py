"""The trainer's own loop on one CUDA GPU: tokens per second, share of the ceiling, memory, checkpoint stall.

    python benchmarks/gpu.py [--json FILE] [--seconds 540] [--only 8B] [--micro-batch-tokens 8192]
    python benchmarks/gpu.py --smoke        # everything tiny, on the CPU

Nothing is downloaded and no model lies on the disk: bases of the shapes of Qwen3 1.7B, 8B and 14B get
random weights on the device itself (nf4: layer by layer). All else is what a night's job does: a job
folder, `trainer.finetune.finetune`, the same packing, batches, optimizer and checkpoints. Only
`base_model.load_model` is replaced, which would have read the weights from a folder.

The ceiling is an 8192^3 bf16 product. The share counts 4N FLOP a real token (LoRA: 2N forward, 2N backward
to the activations), N being the weights of the linear layers without embeddings and head; recomputation,
padding, attention, head and adapter count as nothing, so it is low rather than high. Tokens are real ones.
Steps are timed where the trainer reports them: it has read the loss from the device by then. Peak memory
is torch's own count from the opened base to the last checkpoint; `cold`, while the base was made. The
stall is how long training stands still for one durable checkpoint.

A setting that runs out of memory is tried again with a quarter of the micro-batch, as the daemon would
halve it; what does not fit, or for which no time is left, has its reason in the table. The table grows
line by line and the JSON file with it, so that a run cut short leaves what it knew.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._random_base import Shape, base_folder, make_model

NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "pydantic")
OPTIONAL = ("bitsandbytes",)
LIMIT = 2048  # tokens of a row
SAMPLES, PER_STEP = 256, 64  # of the mix; the segment is repeated until time is up
WARMUP = 2  # steps
ENOUGH = 10.0  # measured seconds that settle a figure
LAST_START = 10.0  # seconds that must be left to begin another setting
COLUMNS = (
    ("model", "model"), ("base", "base"), ("rows", "rows"), ("recompute", "recompute"),
    ("micro_batch_tokens", "micro-batch"), ("tokens_per_second", "tokens/s"), ("share", "of ceiling"),
    ("peak_gib", "peak GiB"), ("cold_gib", "cold GiB"), ("stall_seconds", "stall s"), ("steps", "steps"),
    ("note", "note"),
)  # fmt: skip


SHAPES = (
    Shape("1.7B", 2048, 6144, 28, 16, 8, tied=True),
    Shape("8B", 4096, 12_288, 36, 32, 8, tied=False),
    Shape("14B", 5120, 17_408, 40, 40, 8, tied=False),
)
SMOKE_SHAPES = (Shape("tiny", 128, 256, 2, 2, 1, tied=True, vocabulary=2048, head_width=64),)


@dataclass(frozen=True)
class Setting:
    shape: Shape
    nf4: bool
    packed: bool
    recompute: bool

    def told(self) -> dict[str, Any]:
        return {
            "model": self.shape.name,
            "base": "nf4" if self.nf4 else "bf16",
            "rows": "packed" if self.packed else "padded",
            "recompute": "yes" if self.recompute else "no",
        }


# --- one setting -----------------------------------------------------------------------------------------


def write_samples(path: Path, count: int, limit: int) -> None:
    """The mix: most memories are a paragraph, some fill a row. Random words, one seed."""
    draw = random.Random(23)
    words = ("river", "winter", "the old house", "Anna", "because", "walked", "and then", "a letter", "we", "rain")
    lines = []
    for number in range(count):
        length = min(int(draw.lognormvariate(0.0, 1.0) * limit / 30), limit // 3)
        turns = [
            {"role": "user", "content": f"What happened on day {number}?"},
            {"role": "assistant", "content": " ".join(draw.choice(words) for _ in range(length + 3)), "loss": True},
        ]
        lines.append(json.dumps({"id": f"s{number}", "messages": turns}) + "\n")
    path.write_text("".join(lines))


class Clock:
    """Reads the time at each step that the trainer reports, and around each checkpoint; says when to stop."""

    def __init__(self, budget: float, fewest: int) -> None:
        self.deadline = time.perf_counter() + budget
        self.fewest = fewest
        self.steps: list[tuple[float, int]] = []
        self.stalls: list[float] = []
        self.stop = False
        self._saving = 0.0

    def look(self, phase: str, fields: dict[str, Any]) -> None:
        now = time.perf_counter()
        if phase == "training" and "step" in fields:
            self.steps.append((now, fields["tokens"]))
            measured = len(self.steps) - WARMUP
            if measured >= 1:  # a hopelessly slow setting stops after one measured step
                settled = measured >= self.fewest and now - self.steps[WARMUP - 1][0] > ENOUGH
                self.stop = settled or now > self.deadline
        elif phase == "saving" and "checkpoint" not in fields:
            self._saving = now
        elif phase == "saving":
            self.stalls.append(now - self._saving)

    def is_set(self) -> bool:
        """Asked by the trainer after each step, more than once: the answer changes only in `look`."""
        return self.stop


def run(setting: Setting, micro_batch_tokens: int, folder: Path, budget: float, smoke: bool) -> dict[str, Any]:
    """The figures of one job. Raises what the trainer raises, running out of memory above all."""
    import torch

    from trainer import base_model, names
    from trainer.contract import Interrupted, JobSpec, TrainingRecipe
    from trainer.finetune import finetune
    from trainer.progress import ProgressLog
    from trainer.report import Report

    clock, on_gpu, cold = Clock(budget, fewest=4), not smoke, [0.0]

    class Log(ProgressLog):
        def write(self, phase: str, **fields: Any) -> None:
            super().write(phase, **fields)
            clock.look(phase, fields)

    def load(*given: Any, **more: Any) -> Any:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        model = make_model(*given, **more)
        if on_gpu:
            torch.cuda.synchronize()
            cold[0] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        return model

    recipe = TrainingRecipe(
        base_model=str(base_folder(folder / "base", setting.shape)), max_seq_length=256 if smoke else LIMIT,
        per_device_train_batch_size=1, gradient_accumulation_steps=4 if smoke else PER_STEP,
        optimizer="adamw_torch", dtype="bfloat16", load_in_4bit=setting.nf4, packing=setting.packed,
        use_gradient_checkpointing=setting.recompute, micro_batch_tokens=micro_batch_tokens, save_steps=1_000_000,
    )  # fmt: skip
    count = 16 if smoke else SAMPLES
    job = folder / "job"
    job.mkdir()
    write_samples(job / names.SAMPLES, count, recipe.max_seq_length)
    spec = JobSpec(recipe=recipe, segments=[list(range(count))] * (1 if smoke else 200), seed=3)
    report = Report(hashlib.sha256(spec.to_bytes()).hexdigest())
    log = Log(job)
    try:
        with (
            mock.patch.object(base_model, "load_model", load),
            (folder / "said").open("w") as said,
            contextlib.redirect_stdout(said),
            contextlib.suppress(Interrupted),
        ):
            finetune(job, spec, clock, log, report)
    finally:
        log.close()
    (began, before), (ended, after) = clock.steps[WARMUP - 1], clock.steps[-1]
    plan = json.loads((job / names.PLAN).read_text())
    return {
        "micro_batch_tokens": micro_batch_tokens,
        "tokens_per_second": (after - before) / (ended - began),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "cold_gib": cold[0] if on_gpu else None,
        "stall_seconds": clock.stalls[-1],
        "steps": len(clock.steps) - WARMUP,
        "samples_per_step": recipe.samples_per_step,
        "mean_sample_tokens": plan["tokens"] / plan["sample_uses"],
        "longest_sample_tokens": plan["longest"],
        "note": "; ".join(report.notices),
    }


def attempt(setting: Setting, micro_batch_tokens: int, budget: float, smoke: bool) -> dict[str, Any]:
    """`run`, with a quarter of the micro-batch where memory runs out, and a sentence where nothing helps."""
    import torch

    note = ""
    for tokens in (micro_batch_tokens, micro_batch_tokens // 4):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="engramd-gpu-") as name:
            try:
                return run(setting, tokens, Path(name), budget, smoke)
            except Exception as error:  # one setting that fails must not cost the others' figures
                if "out of memory" not in str(error).lower():
                    return {"note": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
                note = f"out of memory at a micro-batch of {tokens} tokens"
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        budget -= time.perf_counter() - began
    return {"note": note}


# --- the whole run ---------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, device and what is missing."""
    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for name in (*NEEDED, *OPTIONAL):
        found[name] = importlib.metadata.version(name) if importlib.util.find_spec(name) else None
    import torch

    found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        known = torch.cuda.get_device_properties(0)
        found["device"] = f"{known.name}, {known.total_memory / 2**30:.1f} GiB"
    return found


def ceiling(smoke: bool) -> float:
    """TFLOP/s of one square bf16 product: the median of twenty, after warming up."""
    import torch

    if smoke:
        a = torch.randn(256, 256)
        began = time.perf_counter()
        a @ a
        return 2 * 256**3 / (time.perf_counter() - began) / 1e12
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(2 * side**3 / sorted(times[5:])[10] / 1e12)


def settings(shapes: tuple[Shape, ...]) -> list[Setting]:
    """Each shape's likeliest settings first: where time runs out, the rest is what matters least."""
    kinds = [(False, True), (True, True), (False, False), (True, False)]  # nf4, packed
    return [
        Setting(shape, nf4, packed, recompute)
        for nf4, packed in kinds for recompute in (True, False) for shape in shapes
    ]  # fmt: skip


def figures(options: argparse.Namespace, ends: float, top: float) -> Iterator[dict[str, Any]]:
    """A row for each setting, as soon as it is known."""
    shapes = SMOKE_SHAPES if options.smoke else SHAPES
    todo = [s for s in settings(shapes) if options.only in (None, s.shape.name)]
    for number, setting in enumerate(todo):
        left = ends - time.monotonic()
        row: dict[str, Any] = setting.told()
        if setting.nf4 and importlib.util.find_spec("bitsandbytes") is None:
            row["note"] = "skipped: bitsandbytes is not installed"
        elif left < LAST_START:
            row["note"] = "skipped: no time left"
        else:
            row |= attempt(setting, options.micro_batch_tokens, left / (len(todo) - number), options.smoke)
        if "tokens_per_second" in row:
            row["share"] = row["tokens_per_second"] * 4 * setting.shape.linear_weights / (top * 1e12)
        yield row


def table_line(row: dict[str, Any]) -> str:
    def cell(key: str) -> str:
        value = row.get(key)
        if value is None:
            return ""
        if key == "share":
            return f"{value:.1%}"
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
        return str(value)

    return "| " + " | ".join(cell(key) for key, _ in COLUMNS) + " |"


def _give_up() -> None:
    print("the time is over in the middle of a step", flush=True)
    os._exit(1)


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description="The training loop on one CUDA GPU.")
    parser.add_argument("--smoke", action="store_true", help="everything tiny, on the CPU")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (default 540)")
    parser.add_argument("--only", help="one model: " + ", ".join(shape.name for shape in SHAPES))
    parser.add_argument("--micro-batch-tokens", type=int, default=8192, help="tokens of a forward pass")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    if options.smoke:
        os.environ["ENGRAMD_DEVICE"] = "cpu"
        options.micro_batch_tokens = 512
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:  # before torch touches the device: cuBLAS reads its setting once
        from trainer.surroundings import settle

        settle(models=True, quantised=importlib.util.find_spec("bitsandbytes") is not None)
    told: dict[str, Any] = {"environment": environment()}
    print("\n".join(f"{key:14}{value or 'not installed'}" for key, value in told["environment"].items()))
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("no CUDA device: --smoke shows that all this runs")
        return 1
    told["ceiling_tflops"] = top = ceiling(options.smoke)
    print(f"\nceiling: {top:.2f} TFLOP/s\n", flush=True)
    if missing:
        print(f"no training figures: {', '.join(missing)} cannot be imported here")
        return 1
    limit = threading.Timer(options.seconds + 30, _give_up)  # should one step never end
    limit.daemon = True
    limit.start()
    print("| " + " | ".join(title for _, title in COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    told["rows"] = rows = []
    for row in figures(options, began + options.seconds, top):
        rows.append(row)
        print(table_line(row), flush=True)
        if options.json:
            options.json.write_text(json.dumps(told, indent=1))
    if mix := next((row for row in rows if "steps" in row), None):
        print(f"\nmix: {mix['mean_sample_tokens']:.0f} tokens a sample, longest {mix['longest_sample_tokens']}; "
              f"{mix['samples_per_step']} samples a step")  # fmt: skip
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if any("tokens_per_second" in row for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
