"""What only a CUDA device can show. Each test is a real trainer process on the builtin model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import jobs
from trainer import names
from trainer.contract import ExitCode, JobResult

pytestmark = pytest.mark.gpu


def _run(job: Path, device: str = "cuda") -> JobResult:
    command = [sys.executable, "-m", "trainer", str(job)]
    done = subprocess.run(
        command,
        env={**jobs.environment(), "ENGRAMD_DEVICE": device},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (job / names.RESULT).exists(), done.stderr
    return jobs.result(job)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"dtype": "bfloat16"}, id="lora bf16"),
        pytest.param({"dtype": "float16"}, id="lora fp16"),
        pytest.param({"dtype": "float32"}, id="lora fp32"),
        pytest.param({"dtype": "bfloat16", "load_in_4bit": True, "optimizer": "paged_adamw_8bit"}, id="nf4"),
        pytest.param({"dtype": "bfloat16", "use_gradient_checkpointing": True}, id="checkpointing"),
        pytest.param({"dtype": "bfloat16", "method": "full"}, id="full bf16"),
        pytest.param({"dtype": "bfloat16", "method": "full", "optimizer": "adamw_8bit"}, id="full 8 bit"),
        pytest.param({"dtype": "bfloat16", "method": "full", "optimizer": "adafactor"}, id="full adafactor"),
    ],
)
def test_the_law_on_a_gpu(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Two jobs equal one job of two segments; trained, and with the moments carried."""
    samples = jobs.some_samples(11)
    recipe = jobs.recipe(gradient_accumulation_steps=3, learning_rate=1e-3, **changes)
    jobs.write_job(tmp_path / "whole", samples, [list(range(11))] * 2, recipe=recipe)
    told = _run(tmp_path / "whole")
    assert told.exit_code == ExitCode.DONE and told.steps == 8, told.reason
    steps = jobs.training_steps(tmp_path / "whole")
    assert steps[-1].loss is not None and steps[0].loss is not None and steps[-1].loss < steps[0].loss
    parent = None
    for part in ("one", "two"):
        jobs.write_job(tmp_path / part, samples, [list(range(11))], recipe=recipe, parent=parent)
        assert _run(tmp_path / part).exit_code == ExitCode.DONE
        parent = jobs.checkpoint(tmp_path / part)
    assert parent is not None
    one, two = jobs.file_hashes(jobs.checkpoint(tmp_path / "whole")), jobs.file_hashes(parent)
    weights = [name for name in one if name.endswith(".safetensors")]
    assert weights
    for name in (*weights, names.OPTIMIZER):
        assert one[name] == two[name], name


def test_moments_of_another_family_are_refused(tmp_path: Path) -> None:
    """A CPU trained with the fallback; a GPU must not drop its moments in silence."""
    recipe = jobs.recipe(optimizer="adamw_8bit")
    jobs.write_job(tmp_path / "cpu", jobs.some_samples(3), recipe=recipe)
    assert _run(tmp_path / "cpu", device="cpu").exit_code == ExitCode.DONE
    parent = jobs.checkpoint(tmp_path / "cpu")
    jobs.write_job(tmp_path / "gpu", jobs.some_samples(3), recipe=recipe, parent=parent)
    told = _run(tmp_path / "gpu")
    assert told.exit_code == ExitCode.BAD_SPEC
    assert told.reason is not None and "holds moments of adamw_torch" in told.reason


def test_gpu_and_cpu_agree(tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        job = tmp_path / device
        jobs.write_job(job, jobs.some_samples(8), recipe=jobs.recipe(lora_dropout=0.0))
        assert _run(job, device).exit_code == ExitCode.DONE
        losses[device] = [line.loss for line in jobs.training_steps(job)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2)


def test_the_device_is_there() -> None:
    assert torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")
