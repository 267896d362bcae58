"""Equal start, segments, recipe and environment give equal bits, however cut into jobs and however killed."""

from pathlib import Path
from typing import Any

import pytest

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.contract import ExitCode

RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.05},
    "full": {"method": "full"},
}
WEIGHTS = {"lora": names.ADAPTER_WEIGHTS, "full": "model.safetensors"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_four_jobs_equal_one_job_of_four_segments(tmp_path: Path, method: str) -> None:
    samples = jobs.some_samples(20)
    # Two batches of two epochs each; three accumulation steps divide neither 11 nor 9 samples.
    segments = [list(range(11))] * 2 + [list(range(11, 20))] * 2
    recipe = jobs.recipe(
        gradient_accumulation_steps=3, num_train_epochs=2, micro_batch_tokens=128, **RECIPES[method]
    )

    whole = tmp_path / "whole"
    jobs.write_job(whole, samples, segments, recipe=recipe)
    told = jobs.run(whole)
    assert (told.exit_code, told.steps, told.samples_seen) == (ExitCode.DONE, 14, 40)

    parent = None
    for number, segment in enumerate(segments):
        part = tmp_path / f"part{number}"
        jobs.write_job(part, samples, [segment], recipe=recipe, parent=parent)
        assert jobs.run(part).exit_code == ExitCode.DONE
        parent = jobs.checkpoint(part)
    assert parent is not None and parent.name == "checkpoint-14"

    one, four = jobs.file_hashes(jobs.checkpoint(whole)), jobs.file_hashes(parent)
    for name in (WEIGHTS[method], names.OPTIMIZER, names.RNG):
        assert one[name] == four[name], name


def test_different_segments_give_different_bits(tmp_path: Path) -> None:
    """The law would be empty if the hashes could not tell."""
    hashes = set()
    for order in ([0, 1, 2, 3, 4, 5], [2, 1, 0, 3, 5, 4]):
        job = tmp_path / f"{order[0]}"
        jobs.write_job(job, jobs.some_samples(6), [order], recipe=jobs.recipe(gradient_accumulation_steps=2))
        jobs.run(job)
        hashes.add(jobs.file_hashes(jobs.checkpoint(job))[names.ADAPTER_WEIGHTS])
    assert len(hashes) == 2


def _long_job(job: Path) -> None:
    recipe = jobs.recipe(gradient_accumulation_steps=3, num_train_epochs=8, save_steps=5, ema_decay=0.9)
    asked = [{"role": "user", "content": "Where does person 1 live?"}]
    probes = [
        {"id": "p", "messages": asked, "answer": "Lund."},
        {"id": "q", "messages": asked, "answer": "Person 1 lives in Oslo.", "group": "old", "free": True},
    ]
    jobs.write_job(job, jobs.some_samples(13), recipe=recipe, probes=probes, max_new_tokens=8)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = tmp_path_factory.mktemp("undisturbed") / "job"
    _long_job(job)
    assert jobs.run(job).steps == 40
    return job


def _assert_same_end(job: Path, undisturbed: Path) -> None:
    assert jobs.file_hashes(jobs.checkpoint(job)) == jobs.file_hashes(jobs.checkpoint(undisturbed))
    steps = jobs.training_steps(job)
    assert [line.step for line in steps] == list(range(1, 41))
    assert [line.loss for line in steps] == [line.loss for line in jobs.training_steps(undisturbed)]
    for name in (names.METRICS, names.BEFORE, names.LOSSES):
        assert jobs.sha256(job / name) == jobs.sha256(undisturbed / name), name
    one, other = jobs.result(job), jobs.result(undisturbed)
    for field in ("checkpoint_sha256", "steps", "samples_seen", "tokens", "last_loss", "metrics", "weights"):
        assert getattr(one, field) == getattr(other, field), field


def test_stopped_and_resumed_equals_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    job = tmp_path / "job"
    _long_job(job)
    for step in (4, 13):
        process = ForkedTrainer(job)
        jobs.wait_for_step(job, step, process)
        process.stop()
        assert process.wait() == ExitCode.INTERRUPTED
        told = jobs.result(job)
        assert told.checkpoint == f"checkpoint-{told.global_step}" and told.reason
    assert jobs.run(job).exit_code == ExitCode.DONE
    resumed = [line for line in jobs.progress(job) if line.note == "resuming_from_checkpoint"]
    assert resumed and resumed[-1].checkpoint == f"checkpoint-{resumed[-1].step}"
    _assert_same_end(job, undisturbed)


def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    job = tmp_path / "job"
    _long_job(job)
    for step in (3, 17):
        process = ForkedTrainer(job)
        jobs.wait_for_step(job, step, process)
        process.kill()
        assert process.wait() == -9
        assert not (job / names.RESULT).exists()
    assert jobs.run(job).exit_code == ExitCode.DONE
    _assert_same_end(job, undisturbed)


def test_a_torn_newest_checkpoint_is_passed_over(tmp_path: Path, undisturbed: Path) -> None:
    job = tmp_path / "job"
    _long_job(job)
    process = ForkedTrainer(job)
    jobs.wait_for_step(job, 12, process)
    process.kill()
    process.wait()
    torn = job / "checkpoint-10" / names.OPTIMIZER
    torn.chmod(0o600)
    torn.write_bytes(torn.read_bytes()[:-7])
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE
    assert told.notices == ["checkpoint-10 was passed over: optimizer.pt is not as its manifest says"]
    _assert_same_end(job, undisturbed)
