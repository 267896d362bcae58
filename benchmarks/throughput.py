"""Real tokens per second of the trainer's own loop, beside trl's SFTTrainer and beside itself without its duties.

    python benchmarks/throughput.py [--smoke] [--repeats N] [--threads N] [--json FILE] [--only A|B]

Sides, each in a process of its own (forked after the imports), one after the other, again and again:

  ours       `trainer.finetune.finetune` on a job folder: a progress line at each step, a durable
             checkpoint every 25 steps (the default recipe: every 1250)
  quiet      the same, but no progress line is written and no checkpoint falls into the measured steps
  trl rows   SFTTrainer(packing=True), one packed row at a time, accumulated to a step
  trl flat   SFTTrainer(packing=True), all packed rows of a step at once (trl lays them end to end)

Both trl sides are fair readings of "tokens per step"; the faster one (by its median) is what the bar
compares with. trl neither saves nor evaluates, and logs every 10 steps (its default).

Equal on both sides: base weights, sequences (trl gets our token ids and our labels, so the loss lies on
the same tokens), no sample across a border (trl packs `bfd`; `wrapped` would be faster to lay out but lets
samples see each other), maximum length, float32, fused AdamW, clipping at 1.0, LoRA on all linear layers
(rank, alpha, dropout; each side's own code for it), no gradient checkpointing, threads. A step is N samples
here and N packed rows there: the number of samples is chosen so that both hold about the same number of
real tokens, and both are printed.

Time is read in the same place on both sides: when an optimizer step has ended and been reported
(`ProgressLog.write` here, `on_step_end` there), from the end of the warm-up to the end of the last step.
Imports, loading, tokenising, trl's packing of the data set and the last checkpoint are outside. Tokens are
those of the samples, never padding. CPU seconds are counted as well: on a busy machine they say more.

Bars: ours / trl >= 1.15 on A (builtin:tiny) and >= 1.0 on B (a random Qwen3 of 52M parameters);
ours / quiet >= 0.95 on A, whose steps are shortest. Exit code 1 where one is missed.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._random_base import Shape, write_base

SIDES = ("ours", "trl rows", "trl flat", "quiet")
BARS = {("A", "trl"): 1.15, ("B", "trl"): 1.0, ("A", "quiet"): 0.95}
SAVE_STEPS = 25
RANK, ALPHA, DROPOUT, RATE = 8, 16, 0.05, 2e-4
B_SHAPE = Shape("B", 768, 2048, 8, 12, 4, tied=True, vocabulary=2048, head_width=64)
TEXT = (
    "I walked along the river with Anna and we talked about the house that her brother wants to sell "
    "before winter comes because nobody has lived there since the fire and the roof lets in the rain"
)


@dataclass(frozen=True)
class Case:
    """One model, and how much of the data it sees."""

    name: str
    limit: int  # tokens of a row
    rows: int  # packed rows of a trl step
    warmup: int  # steps
    steps: int  # measured ones


FULL = (Case("A", 512, 4, 3, SAVE_STEPS), Case("B", 256, 2, 1, 8))
SMOKE = (Case("A", 256, 2, 1, 4), Case("B", 128, 1, 1, 2))


# --- children: one process for each side ----------------------------------------------------------------


def make(folder: Path, case: Case) -> dict[str, Any]:
    """Base model, job folder's content and trl's data set, all from one seed."""
    import numpy as np

    from trainer.base_files import resolve
    from trainer.chat_tokens import load_tokenizer, tokenise
    from trainer.contract import Sample

    words_known = TEXT.split()
    base = resolve("builtin:tiny") if case.name == "A" else write_base(folder / "base", B_SHAPE)
    tokenizer = load_tokenizer(base)
    lengths = random.Random(11)
    wanted = case.rows * case.limit * (case.warmup + case.steps)
    samples, sequences, tokens = [], [], 0
    while tokens < wanted:
        # Most memories are a sentence or two, a few fill a row: the median is about a sixth of the longest.
        words = min(int(lengths.lognormvariate(0, 1.1) * case.limit / 12), case.limit // 2)
        answer = " ".join(lengths.choice(words_known) for _ in range(max(words, 3)))
        messages = [
            {"role": "user", "content": f"What happened on day {len(samples)}?"},
            {"role": "assistant", "content": answer + ".", "loss": True},
        ]
        sample = Sample.model_validate({"id": f"s{len(samples)}", "messages": messages})
        found = tokenise(tokenizer, sample.messages, case.limit).sequences
        samples.append(sample)
        sequences += found
        tokens += sum(sequence.length for sequence in found)
    (folder / "samples.jsonl").write_text("".join(s.model_dump_json() + "\n" for s in samples))
    rows = [{"input_ids": s.ids.tolist(), "labels": np.where(s.loss, s.ids, -100).tolist()} for s in sequences]
    (folder / "rows.json").write_text(json.dumps(rows))
    by_length = sorted(s.length for s in sequences)
    return {
        "base": "builtin:tiny" if case.name == "A" else str(base),
        "samples": len(samples),
        "samples_per_step": max(1, round(len(samples) / (case.warmup + case.steps))),
        "tokens": tokens,
        "loss_tokens": sum(s.loss_tokens for s in sequences),
        "lengths": {f"p{q}": by_length[min(len(by_length) * q // 100, len(by_length) - 1)] for q in (10, 50, 90, 99)},
    }


class _Marks:
    """Time, CPU time and tokens at the end of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, int]] = []

    def mark(self, tokens: int) -> None:
        self.seen.append((time.perf_counter(), time.process_time(), tokens))

    def figures(self, warmup: int) -> dict[str, float]:
        (began, cpu, before), (ended, cpu_after, after) = self.seen[warmup - 1], self.seen[-1]
        tokens, steps = after - before, len(self.seen) - warmup
        return {
            "steps": steps,
            "tokens_per_step": tokens / steps,
            "tokens_per_second": tokens / (ended - began),
            "tokens_per_cpu_second": tokens / (cpu_after - cpu),
        }


def ours(folder: Path, case: Case, made: dict[str, Any], quiet: bool) -> dict[str, float]:
    import hashlib
    import threading

    from trainer import names
    from trainer.contract import JobSpec, TrainingRecipe
    from trainer.finetune import finetune
    from trainer.progress import ProgressLog
    from trainer.report import Report

    marks = _Marks()

    class Clock(ProgressLog):
        def write(self, phase: str, **fields: Any) -> None:
            if not quiet:
                super().write(phase, **fields)
            if phase == "training" and "step" in fields:
                marks.mark(fields["tokens"])

    recipe = TrainingRecipe(
        base_model=made["base"], max_seq_length=case.limit, lora_rank=RANK, lora_alpha=ALPHA,
        lora_dropout=DROPOUT, learning_rate=RATE, num_train_epochs=1,
        gradient_accumulation_steps=made["samples_per_step"], micro_batch_tokens=case.rows * case.limit,
        optimizer="adamw_torch", dtype="float32", load_in_4bit=False, use_gradient_checkpointing=False,
        save_steps=1_000_000 if quiet else SAVE_STEPS,
    )  # fmt: skip
    spec = JobSpec(recipe=recipe, segments=[list(range(made["samples"]))], seed=3)
    content = spec.to_bytes()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        job = Path(name)
        (job / names.SPEC).write_bytes(content)
        (job / names.SAMPLES).hardlink_to(folder / "samples.jsonl")
        log = Clock(job)
        finetune(job, spec, threading.Event(), log, Report(hashlib.sha256(content).hexdigest()))
        log.close()
    return marks.figures(case.warmup)


def trl(folder: Path, case: Case, made: dict[str, Any], flat: bool) -> dict[str, float]:
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from trainer.base_files import resolve
    from trainer.chat_tokens import load_tokenizer

    disable_progress_bars()
    marks, tokens = _Marks(), 0

    class Counting(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            nonlocal tokens
            tokens += inputs["input_ids"].numel()  # laid end to end: nothing is padding
            return super().training_step(model, inputs, *rest, **more)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.mark(tokens)

    base = resolve(made["base"])
    with tempfile.TemporaryDirectory(dir=folder) as output:
        config = SFTConfig(
            output_dir=output, packing=True, max_length=case.limit, num_train_epochs=1,
            per_device_train_batch_size=case.rows if flat else 1,
            gradient_accumulation_steps=1 if flat else case.rows,
            learning_rate=RATE, lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0,
            max_grad_norm=1.0, bf16=False, fp16=False, gradient_checkpointing=False, use_cpu=True,
            save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
            dataloader_pin_memory=False, dataloader_drop_last=True, seed=3,
        )  # fmt: skip
        trainer = Counting(
            model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True),
            args=config,
            train_dataset=Dataset.from_list(json.loads((folder / "rows.json").read_text())),
            processing_class=load_tokenizer(base),
            peft_config=LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    return marks.figures(case.warmup)


def child(side: str, folder: Path, case: Case, threads: int) -> None:
    """The whole life of one side's process; its figures go into a file, what it prints into another."""
    log = os.open(folder / f"{side}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    torch.set_num_threads(threads)
    if side == "make":
        found: dict[str, Any] = make(folder, case)
    else:
        made = json.loads((folder / "make.json").read_text())
        if side in ("ours", "quiet"):
            found = dict(ours(folder, case, made, quiet=side == "quiet"))
        else:
            found = dict(trl(folder, case, made, flat=side == "trl flat"))
    (folder / f"{side}.json").write_text(json.dumps(found))


# --- the parent ------------------------------------------------------------------------------------------


def import_all(threads: int, cache: str) -> None:
    """Import once what each side needs and compute nothing: the sides are forked off this process."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.update({"ENGRAMD_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": cache})
    from trainer.surroundings import settle

    settle(models=True, quantised=False)
    import datasets  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    import trainer.finetune  # noqa: F401


def run_child(side: str, folder: Path, case: Case, threads: int) -> dict[str, Any]:
    process = multiprocessing.get_context("fork").Process(target=child, args=(side, folder, case, threads))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{side} ended with {process.exitcode}:\n{(folder / f'{side}.log').read_text()[-3000:]}")
    found: dict[str, Any] = json.loads((folder / f"{side}.json").read_text())
    return found


def measure(case: Case, repeats: int, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="engramd-throughput-") as name:
        folder = Path(name)
        made = run_child("make", folder, case, threads)
        print(f"\n{case.name}: {made['base'] if case.name == 'A' else 'random Qwen3'}, rows of {case.limit}; "
              f"{made['samples']} samples, {made['tokens']} tokens ({made['loss_tokens']} learnt), "
              f"lengths {made['lengths']}; a step: {made['samples_per_step']} samples / {case.rows} rows")  # fmt: skip
        sides = [side for side in SIDES if side != "quiet" or case.name == "A"]
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for repeat in range(repeats):
            for side in sides:
                found = run_child(side, folder, case, threads)
                runs[side].append(found)
                print(
                    f"  {repeat + 1}  {side:9} {found['tokens_per_second']:9.1f} tokens/s "
                    f"{found['tokens_per_cpu_second']:9.1f} tokens/CPU-s   "
                    f"{found['tokens_per_step']:7.1f} tokens/step, {found['steps']} steps",
                    flush=True,
                )
    return {"case": asdict(case), "data": made, "runs": runs, **ratios(runs)}


def ratios(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the repeats of the ratio within each repeat, against the faster trl side and against quiet."""

    def median(side: str) -> float:
        return statistics.median(run["tokens_per_second"] for run in runs[side])

    def ratio(side: str, key: str) -> float:
        pairs = zip(runs["ours"], runs[side], strict=True)
        return statistics.median(mine[key] / its[key] for mine, its in pairs)

    rival = max(("trl rows", "trl flat"), key=median)
    found: dict[str, Any] = {"rival": rival}
    for name, side in (("trl", rival), ("quiet", "quiet")):
        if side in runs:
            found[name] = ratio(side, "tokens_per_second")
            found[f"{name}_cpu"] = ratio(side, "tokens_per_cpu_second")
    return found


def report(results: dict[str, dict[str, Any]], bars: dict[tuple[str, str], float]) -> bool:
    """Print the ratios; whether every bar is held."""
    held = True
    for name, result in results.items():
        for what, against in (("trl", result["rival"]), ("quiet", "ours, quiet")):
            if what not in result:
                continue
            bar = bars.get((name, what))
            good = bar is None or result[what] >= bar
            held = held and good
            verdict = "" if bar is None else f"   {'held' if good else 'MISSED'}: >= {bar}"
            print(f"{name}: ours / {against:11} {result[what]:.3f}  (by CPU time {result[what + '_cpu']:.3f}){verdict}")
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description="Tokens per second beside trl's SFTTrainer.")
    parser.add_argument("--smoke", action="store_true", help="a few steps of each, one repeat, no bars")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("A", "B"), help="one of the two models")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    cases = [case for case in (SMOKE if options.smoke else FULL) if options.only in (None, case.name)]
    repeats = 1 if options.smoke else options.repeats
    with tempfile.TemporaryDirectory(prefix="engramd-datasets-") as cache:
        import_all(options.threads, cache)
        results = {case.name: measure(case, repeats, options.threads) for case in cases}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "trl")}
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions.items()))
    held = report(results, bars={} if options.smoke else BARS)
    if options.json:
        told = {"threads": options.threads, "versions": versions, "cases": results}
        options.json.write_text(json.dumps(told, indent=1))
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
