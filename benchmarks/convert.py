"""Our GGUF conversion beside llama.cpp's own converter: the same tensors byte for byte, time and memory.

    python benchmarks/convert.py [--llama-cpp DIR] [--smoke] [--rounds N] [--dir DIR] [--json FILE]

DIR is a llama.cpp checkout (or `vendor/llama.cpp` of the llama-cpp-python source archive), for convert_hf_to_gguf.py
and its gguf-py. Without it only our side runs, and nothing is judged. Two parts:

  families   tiny random models of each family, in each number format: tensors compared byte for byte
  time       a random Qwen3 of 0.7B weights in bfloat16, to bf16, f16 and Q8_0; each side in a process of its own, in
             turns of who comes first; read from after the imports to the end of the writing. Ours is flushed to the
             disk, theirs is not; all dirty pages are written back before each side.

Their converter knows a byte-level tokenizer only by a hash of what it gives for a certain text, so that of a tokenizer
made here is unknown to it: in their process that look-up is replaced by the name we found. SentencePiece tokenizers
it reads only from tokenizer.model, which transformers 5 no longer writes: there its vocabulary is left out, and the
tensors are compared all the same.

Bars: all tensors equal; time ours / theirs <= 0.6, the median of the rounds' ratios, for each format.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._random_base import Shape  # noqa: E402 (after the path)

FULL = Shape("0.7B", 1024, 3072, 28, 16, 8, tied=False)
FORMATS = ("bf16", "f16", "Q8_0")
TIME_BAR = 0.6


# --- children ---------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """A base in bfloat16 in shards of at most 500 MB."""
    import torch

    from benchmarks._random_base import base_folder, make_model

    base = base_folder(folder / "base", FULL)
    model = make_model(base, torch.device("cpu"), torch.bfloat16)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="500MB")


def ours(model: Path, out: Path, quantisation: Any) -> tuple[float, float]:
    """Seconds by the wall and of the processor, from after the imports."""
    import transformers.models.auto.tokenization_auto  # noqa: F401 (both sides import before the clock runs)

    from trainer import gguf

    began, worked = time.perf_counter(), time.process_time()
    gguf.convert(model, out, quantisation=quantisation, pulse=lambda: None)
    return time.perf_counter() - began, time.process_time() - worked


def theirs(model: Path, out: Path, quantisation: str, llama_cpp: Path, pre: str) -> tuple[float, float]:
    """llama.cpp's converter as its script runs it; `pre` is what it is told of the tokenizer, "" for none at all."""
    import transformers.models.auto.tokenization_auto  # noqa: F401

    sys.path.insert(0, str(llama_cpp))
    sys.path.insert(0, str(llama_cpp / "gguf-py"))
    if importlib.util.find_spec("sentencepiece") is None:  # imported before it is seen that nothing is there
        sys.modules["sentencepiece"] = types.SimpleNamespace(SentencePieceProcessor=None)  # type: ignore[assignment]
    import convert_hf_to_gguf as script  # type: ignore[import-not-found]
    from conversion import get_model_architecture, get_model_class  # type: ignore[import-not-found]
    from conversion.base import ModelBase, ModelType, TextModel  # type: ignore[import-not-found]

    if pre:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    else:
        hparams = ModelBase.load_hparams(model, False)
        chosen = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        chosen.set_vocab = lambda self: self._set_vocab_none()
    sys.argv = ["convert", str(model), "--outfile", str(out), "--outtype", quantisation.lower()]
    began, worked = time.perf_counter(), time.process_time()
    script.main()
    return time.perf_counter() - began, time.process_time() - worked


def child(options: argparse.Namespace) -> None:
    """The whole life of one process; its figures are the last line of what it prints."""
    if options.child == "make":
        make(options.dir)
        print("{}")
        return
    if options.child == "ours":
        seconds, cpu = ours(options.model, options.out, options.format)
    else:
        seconds, cpu = theirs(options.model, options.out, options.format, options.llama_cpp, options.pre)
    # ru_maxrss would count what the parent held when this process was forked
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    peak = int(line.split()[1]) * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}))


# --- parent -----------------------------------------------------------------------------------------------


def run(side: str, *arguments: str) -> dict[str, float]:
    os.sync()
    command = [sys.executable, __file__, "--child", side, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        sys.exit(f"the side {side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def both(model: Path, folder: Path, quantisation: str, llama_cpp: Path | None, turn: int) -> dict[str, Any]:
    """One model in one format by both sides: their figures, and the names of the tensors that differ."""
    places = {side: folder / f"{side}.gguf" for side in ("ours", "theirs")}
    found: dict[str, Any] = {}
    sides = ["ours"] if llama_cpp is None else ["ours", "theirs"] if turn % 2 == 0 else ["theirs", "ours"]
    for side in sides:
        arguments = ["--model", str(model), "--out", str(places[side]), "--format", quantisation]
        if side == "theirs":
            arguments += ["--llama-cpp", str(llama_cpp), "--pre", pre_of(model)]
        found[side] = run(side, *arguments)
    if llama_cpp is not None:
        found["tensors"], found["differing"] = differing(places["ours"], places["theirs"])
    for place in places.values():
        place.unlink(missing_ok=True)
    return found


def pre_of(model: Path) -> str:
    """The name of the word splitter that we find; "" where the tokenizer is of SentencePiece's kind."""
    from trainer import gguf_tokenizer

    rows = int(json.loads((model / "config.json").read_bytes())["vocab_size"])
    told = gguf_tokenizer.read(model, rows)
    return told.pre if told.model == "gpt2" else ""


def differing(mine: Path, other: Path) -> tuple[int, list[str]]:
    """How many tensors there are, and the names of those that only one file has or that differ in a bit."""
    import gguf
    import numpy as np

    a, b = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (mine, other))
    bad = sorted(a.keys() ^ b.keys())
    for name in sorted(a.keys() & b.keys()):
        same = a[name].tensor_type == b[name].tensor_type and list(a[name].shape) == list(b[name].shape)
        if not same or not np.array_equal(a[name].data.view(np.uint8), b[name].data.view(np.uint8)):
            bad.append(name)
    return len(a), bad


def families(folder: Path, llama_cpp: Path | None, formats: tuple[str, ...]) -> list[dict[str, Any]]:
    """The tiny models of each family, in each of `formats`."""
    from tests import tiny_models

    rows = []
    for family in tiny_models.FAMILIES:
        model = tiny_models.make(family, folder / family)
        for quantisation in formats:
            found = both(model, folder, quantisation, llama_cpp, 0)
            rows.append({"family": family, "format": quantisation, **found})
            print(f"{family:15} {quantisation:5} {equality(found)}", flush=True)
    return rows


def timed(folder: Path, llama_cpp: Path | None, rounds: int) -> list[dict[str, Any]]:
    """The model of 0.7B in each format, `rounds` times."""
    run("make", "--dir", str(folder))
    rows = []
    for quantisation in FORMATS:
        for turn in range(rounds):
            found = both(folder / "base", folder, quantisation, llama_cpp, turn)
            rows.append({"format": quantisation, **found})
            figures = "   ".join(f"{side} {shown(found[side])}" for side in ("ours", "theirs") if side in found)
            print(f"0.7B {quantisation:5} {figures}   {equality(found)}", flush=True)
    return rows


def shown(one: dict[str, float]) -> str:
    return f"{one['seconds']:5.1f} s ({one['cpu']:4.1f} s CPU) {one['peak'] / 1e9:4.2f} GB"


def equality(found: dict[str, Any]) -> str:
    if "differing" not in found:
        return "not compared: no --llama-cpp"
    equal = found["tensors"] - len(found["differing"])
    return f"{equal} of {found['tensors']} tensors equal {', '.join(found['differing'][:3])}"


def judged(rows: list[dict[str, Any]]) -> bool:
    """Print the bars; whether all are held."""
    held = not any(row["differing"] for row in rows)
    print(f"tensors byte-identical: {'ok' if held else 'MISSED'}")
    for quantisation in FORMATS:
        pairs = [row for row in rows if row["format"] == quantisation and "family" not in row]
        if not pairs:
            continue
        for key, bar in (("seconds", TIME_BAR), ("cpu", None), ("peak", None)):
            ratio = statistics.median(row["ours"][key] / row["theirs"][key] for row in pairs)
            ok = bar is None or ratio <= bar
            held &= ok
            print(f"{quantisation:5} {key:8} ours / theirs {ratio:.2f}"
                  + ("" if bar is None else f"   bar {bar}   {'ok' if ok else 'MISSED'}"))  # fmt: skip
    return held


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Our GGUF conversion beside llama.cpp's own.")
    parser.add_argument("--llama-cpp", type=Path, help="a llama.cpp folder with convert_hf_to_gguf.py")
    parser.add_argument("--smoke", action="store_true", help="tiny models in f16 only; no time is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the models are put (6 GB); default a temporary folder")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    for name in ("child", "format", "pre"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("model", "out"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options)
        return 0
    llama_cpp = options.llama_cpp.resolve() if options.llama_cpp else None
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        rows = families(Path(name), llama_cpp, ("f16",) if options.smoke else ("f32", *FORMATS))
        if not options.smoke:
            rows += timed(Path(name), llama_cpp, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if llama_cpp is None or judged(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
