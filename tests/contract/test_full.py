"""Full fine-tuning obeys the law as LoRA does: killed, in 16 bits with compensation, with gradient checkpointing."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.contract import ExitCode

EXACT = ("model.safetensors", names.OPTIMIZER, names.RNG, names.EMA)


def _long_job(job: Path) -> None:
    recipe = jobs.recipe(
        method="full", gradient_accumulation_steps=3, num_train_epochs=4, save_steps=4, full_ema_decay=0.9
    )
    asked = [{"role": "user", "content": "Where does person 1 live?"}]
    probes = [{"id": "p", "messages": asked, "answer": "Lund."}]
    jobs.write_job(job, jobs.some_samples(11), recipe=recipe, probes=probes)


def test_killed_and_stopped_it_ends_the_same(tmp_path: Path) -> None:
    undisturbed, job = tmp_path / "undisturbed", tmp_path / "job"
    _long_job(undisturbed)
    assert jobs.run(undisturbed).steps == 16
    _long_job(job)
    for step, way in ((3, "kill"), (6, "stop"), (10, "kill")):
        process = ForkedTrainer(job)
        jobs.wait_for_step(job, step, process)
        getattr(process, way)()
        process.wait()
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert jobs.file_hashes(jobs.checkpoint(job)) == jobs.file_hashes(jobs.checkpoint(undisturbed))
    for name in (names.METRICS, names.BEFORE, names.LOSSES):
        assert jobs.sha256(job / name) == jobs.sha256(undisturbed / name), name


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_checkpointing_changes_no_bit(tmp_path: Path, method: str) -> None:
    """With dropout: what is computed again draws the same mask."""
    for name, on in (("with", True), ("without", False)):
        recipe = jobs.recipe(method=method, lora_dropout=0.1, use_gradient_checkpointing=on, micro_batch_tokens=64)
        jobs.write_job(tmp_path / name, jobs.some_samples(8), recipe=recipe)
        told = jobs.run(tmp_path / name)
        assert told.steps == 2 and not told.notices
    one, other = (jobs.file_hashes(jobs.checkpoint(tmp_path / name)) for name in ("with", "without"))
    weights = names.ADAPTER_WEIGHTS if method == "lora" else "model.safetensors"
    for name in (weights, names.OPTIMIZER, names.RNG):
        assert one[name] == other[name], name


class Killed(BaseException):
    """Nothing in the trainer catches it, as nothing catches a SIGKILL."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a job in this process, on a CPU that is said to have bfloat16 (it computes the same, only slower)."""
    from trainer import __main__, base_model, checkpoints

    monkeypatch.setenv("ENGRAMD_DEVICE", "cpu")
    monkeypatch.setattr(base_model, "_cpu_has_bfloat16", lambda: True)
    plain = checkpoints.sync

    def run(job: Path, kill_at: int | None = None) -> int:
        """`kill_at`: dies before the n-th flush of a checkpoint's files."""
        left = [kill_at]

        def dying(path: Path) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            plain(path)

        monkeypatch.setattr(checkpoints, "sync", dying)
        with (job / names.LOCK).open("w") as lock:
            return __main__.run(job, threading.Event(), lock.fileno())

    return run


def _bf16(**changes: Any) -> Any:
    return jobs.recipe(method="full", dtype="bfloat16", full_ema_decay=0.9, gradient_accumulation_steps=3, **changes)


def test_bfloat16_cut_into_jobs_is_exact(tmp_path: Path, here: Callable[..., int]) -> None:
    from safetensors.torch import load_file

    samples = jobs.some_samples(7)
    jobs.write_job(tmp_path / "whole", samples, [list(range(7))] * 2, recipe=_bf16())
    assert here(tmp_path / "whole") == ExitCode.DONE
    parent = None
    for part in ("one", "two"):
        jobs.write_job(tmp_path / part, samples, [list(range(7))], recipe=_bf16(), parent=parent)
        assert here(tmp_path / part) == ExitCode.DONE
        parent = jobs.checkpoint(tmp_path / part)
    assert parent is not None
    one, two = jobs.file_hashes(jobs.checkpoint(tmp_path / "whole")), jobs.file_hashes(parent)
    for name in (*EXACT, names.COMPENSATION):
        assert one[name] == two[name], name
    weights, low = load_file(parent / "model.safetensors"), load_file(parent / names.COMPENSATION)
    assert {str(w.dtype) for w in weights.values()} == {"torch.bfloat16"}
    assert any(bits.any() for bits in low.values())  # else there was nothing to compensate


def test_bfloat16_killed_at_any_flush_is_exact(tmp_path: Path, here: Callable[..., int]) -> None:
    samples = jobs.some_samples(7)
    jobs.write_job(tmp_path / "whole", samples, recipe=_bf16(save_steps=1))
    assert here(tmp_path / "whole") == ExitCode.DONE
    expected = jobs.file_hashes(jobs.checkpoint(tmp_path / "whole"))
    for kill_at in (0, 5, 10, 11, 12, 16):
        job = tmp_path / f"killed{kill_at}"
        jobs.write_job(job, samples, recipe=_bf16(save_steps=1))
        with pytest.raises(Killed):
            here(job, kill_at)
        assert not (job / names.RESULT).exists()
        assert here(job) == ExitCode.DONE
        assert jobs.file_hashes(jobs.checkpoint(job)) == expected, kill_at
        assert not list(job.glob(".tmp-*"))
