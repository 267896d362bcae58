"""benchmarks/gpu.py in its small form: it must run on the first try on a machine that is lent for an hour."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.jobs import ROOT


def test_the_small_form_measures_every_setting(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--smoke", "--json", figures],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["ceiling_tflops"] > 0
    settings = {(row["base"], row["rows"], row["recompute"]) for row in told["rows"]}
    assert len(settings) == len(told["rows"]) == 8
    for row in told["rows"]:
        assert row["steps"] >= 1 and row["tokens_per_second"] > 0 and row["stall_seconds"] > 0, row
        assert "padded rows" not in row["note"], row
    assert not list(tmp_path.glob("engramd-*")), "left behind"


def test_what_runs_out_of_memory_is_tried_with_less_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def run(setting: gpu.Setting, micro_batch_tokens: int, *_: object) -> dict[str, object]:
        tried.append(micro_batch_tokens)
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(gpu, "run", run)
    setting = gpu.settings(gpu.SMOKE_SHAPES)[0]
    told = gpu.attempt(setting, 512, budget=1.0, smoke=True)
    assert tried == [512, 128]
    assert told == {"note": "out of memory at a micro-batch of 128 tokens"}


def test_the_weights_of_the_shapes() -> None:
    billions = {shape.name: round(shape.linear_weights / 1e9, 2) for shape in gpu.SHAPES}
    assert billions == {"1.7B": 1.41, "8B": 6.95, "14B": 13.21}


def test_a_random_base_made_in_place_is_the_one_that_loads_from_disk(tmp_path: Path) -> None:
    import torch

    from benchmarks._random_base import make_model, write_base
    from trainer.base_model import load_model

    folder = write_base(tmp_path, gpu.SMOKE_SHAPES[0])
    made = make_model(folder, torch.device("cpu"), torch.float32)
    loaded = load_model(folder, torch.device("cpu"), torch.float32)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, loaded(ids).logits)
