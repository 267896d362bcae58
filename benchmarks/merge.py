"""The streaming merge beside PEFT's `merge_and_unload`, on the same random model of 0.7B weights in bfloat16.

    python benchmarks/merge.py [--smoke] [--rounds N] [--threads N] [--dir DIR] [--json FILE]

Each round runs three sides in turns, each in a process of its own:

  ours       `trainer.merge.merge` into a new folder
  peft       from_pretrained in bfloat16, PeftModel.from_pretrained, merge_and_unload, save_pretrained

The adapter is LoRA of rank 8 on all linear layers, in float32, as the trainer saves it. Time is read inside the
process from after the imports (that of the model's class too, on both sides) to the end of the saving, when the system
has all bytes. Then every file is flushed to the disk, which takes both sides as long and is told apart: `merge` does
that itself, and goes without only here. Memory is the process's largest resident size, imports and mapped pages
included. All dirty pages are written back before each side. CPU seconds are counted as well: on a busy machine they say
more.

Bars: all tensors bit-equal; time ours / peft <= 0.6 and memory <= 0.5, each the median of the rounds' ratios.
Exit code 1 where one is missed. The smoke form takes a model of 4M weights and only looks at the bits.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._random_base import Shape  # noqa: E402 (after the path)

FULL = Shape("0.7B", 1024, 3072, 28, 16, 8, tied=False)
SMOKE = Shape("smoke", 128, 256, 2, 4, 2, tied=False, vocabulary=2048, head_width=32)
BARS = {"time": 0.6, "memory": 0.5}


# --- children ---------------------------------------------------------------------------------------------


def make(folder: Path, shape: Shape) -> None:
    """A base in bfloat16 in shards of at most 500 MB, and an adapter whose every tensor matters."""
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks._random_base import base_folder, make_model

    base = base_folder(folder / "base", shape)
    model = make_model(base, torch.device("cpu"), torch.bfloat16)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="500MB")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = weight.data.float().normal_(0.0, 0.02)
    adapted.save_pretrained(folder / "adapter")


class _Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = self._began
        return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def ours(folder: Path) -> dict[str, float]:
    from trainer.surroundings import settle

    settle(models=False, quantised=False)
    from transformers import Qwen3ForCausalLM  # noqa: F401 (imported, lest the clock counts it)

    from trainer.merge import merge

    flush, os.fsync = os.fsync, lambda _: None
    clock = _Clock()
    merge(folder / "base", folder / "adapter", folder / "ours", pulse=lambda: None)
    taken = clock.read()
    os.fsync = flush
    return taken


def peft(folder: Path) -> dict[str, float]:
    from trainer.surroundings import settle

    settle(models=True, quantised=False)
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM  # noqa: F401 (as above)

    clock = _Clock()
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, local_files_only=True)
    merged: Any = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "peft", max_shard_size="500MB")
    return clock.read()


def child(side: str, folder: Path, shape: Shape) -> None:
    """The whole life of one process; its figures are the last line of what it prints."""
    from trainer.durable import sync

    if side == "make":
        make(folder, shape)
        print("{}")
        return
    figures = ours(folder) if side == "ours" else peft(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    clock = _Clock()
    for path in (folder / side).iterdir():
        sync(path)
    print(json.dumps({**figures, "flush": clock.read()["seconds"], "peak": peak}))


# --- parent -----------------------------------------------------------------------------------------------


def run(side: str, folder: Path, smoke: bool) -> dict[str, float]:
    os.sync()
    command = [sys.executable, __file__, "--child", side, "--dir", str(folder), *(["--smoke"] if smoke else [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        sys.exit(f"the side {side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def differing(folder: Path) -> tuple[int, list[str]]:
    """How many tensors there are, and the names of those whose bits differ."""
    import torch
    from safetensors import safe_open

    places: dict[str, dict[str, Path]] = {}
    for side in ("ours", "peft"):
        places[side] = {}
        for path in sorted((folder / side).glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                places[side] |= dict.fromkeys(file.keys(), path)
    bad = sorted(places["ours"].keys() ^ places["peft"].keys())
    for name in sorted(places["ours"].keys() & places["peft"].keys()):
        pair = []
        for side in ("ours", "peft"):
            with safe_open(places[side][name], "pt") as file:
                pair.append(file.get_tensor(name))
        if pair[0].dtype != pair[1].dtype or not torch.equal(*pair):
            bad.append(name)
    return len(places["ours"]), bad


def measure(folder: Path, rounds: int, smoke: bool) -> dict[str, Any]:
    run("make", folder, smoke)
    seen: dict[str, list[dict[str, float]]] = {"ours": [], "peft": []}
    for number in range(rounds):
        for side in ("ours", "peft") if number % 2 == 0 else ("peft", "ours"):
            shutil.rmtree(folder / side, ignore_errors=True)
            seen[side].append(run(side, folder, smoke))
            print(f"round {number + 1}  {side:5} {shown(seen[side][-1])}", flush=True)
    count, bad = differing(folder)
    ratios = {
        bar: statistics.median(a[key] / b[key] for a, b in zip(seen["ours"], seen["peft"], strict=True))
        for bar, key in (("time", "seconds"), ("memory", "peak"))
    }
    return {"rounds": seen, "tensors": count, "differing": bad, "ratios": ratios}


def shown(one: dict[str, float]) -> str:
    return (f"{one['seconds']:6.1f} s   {one['cpu']:6.1f} s CPU   {one['peak'] / 1e9:5.2f} GB at most   "
            f"then {one['flush']:5.1f} s to the disk")  # fmt: skip


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="The streaming merge beside merge_and_unload.")
    parser.add_argument("--smoke", action="store_true", help="a small model; only the bits are judged")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--threads", type=int, help="of both sides; default: as torch chooses")
    parser.add_argument("--dir", type=Path, help="where the models are put (9 GB); default a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", choices=("make", "ours", "peft"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child, options.dir, SMOKE if options.smoke else FULL)
        return 0
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the children's
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        found = measure(Path(name), options.rounds or (1 if options.smoke else 3), options.smoke)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    equal = not found["differing"]
    print(f"bit-equal: {found['tensors'] - len(found['differing'])} of {found['tensors']} tensors   "
          f"{'ok' if equal else 'MISSED ' + ', '.join(found['differing'][:3])}")  # fmt: skip
    held = equal
    for bar, limit in BARS.items():
        ratio = found["ratios"][bar]
        ok = ratio <= limit or options.smoke
        held &= ok
        word = "not judged" if options.smoke else "ok" if ok else "MISSED"
        print(f"{bar}: ours / peft {ratio:.2f}   bar {limit}   {word}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
