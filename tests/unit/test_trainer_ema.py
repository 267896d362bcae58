"""The running mean of the trained weights: what it is, that it is exact, and that it can be talked to."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import jobs
from trainer import names
from trainer.contract import ExitCode

DECAY = 0.8
WEIGHTS = {"lora": names.ADAPTER_WEIGHTS, "full": "model.safetensors"}


def _ema(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / names.EMA)


def _raw(checkpoint: Path, method: str = "lora") -> dict[str, torch.Tensor]:
    return load_file(checkpoint / WEIGHTS[method])


def _probes() -> list[dict[str, Any]]:
    return [
        {"id": f"p{n}", "messages": s["messages"][:1], "answer": s["messages"][1]["content"]}
        for n, s in enumerate(jobs.some_samples(4))
    ]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_mean_is_what_its_formula_says(tmp_path: Path, method: str) -> None:
    """From the raw weights of every step the mean follows bit for bit."""
    job = tmp_path / "job"
    recipe = jobs.recipe(ema_decay=DECAY, full_ema_decay=DECAY, method=method, save_steps=1, save_total_limit=9)
    jobs.write_job(job, jobs.some_samples(20), recipe=recipe)
    assert jobs.run(job).steps == 5
    means = [_ema(job / f"checkpoint-{step}") for step in range(1, 6)]
    for step in range(2, 6):
        raw = _raw(job / f"checkpoint-{step}", method)
        assert set(raw) == set(means[step - 1])  # by the names of the raw ones
        for name, before in means[step - 2].items():
            now = torch.lerp(before, raw[name], 1.0 - DECAY)
            assert torch.equal(now, means[step - 1][name]), (step, name)
            assert not torch.equal(now, raw[name])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_goes_on_from_job_to_job(tmp_path: Path, method: str) -> None:
    samples = jobs.some_samples(9)
    recipe = jobs.recipe(ema_decay=DECAY, full_ema_decay=DECAY, method=method, gradient_accumulation_steps=3)
    jobs.write_job(tmp_path / "whole", samples, [list(range(9))] * 2, recipe=recipe)
    jobs.run(tmp_path / "whole")
    parent = None
    for part in ("one", "two"):
        jobs.write_job(tmp_path / part, samples, [list(range(9))], recipe=recipe, parent=parent)
        jobs.run(tmp_path / part)
        parent = jobs.checkpoint(tmp_path / part)
    assert parent is not None
    one, two = jobs.file_hashes(jobs.checkpoint(tmp_path / "whole")), jobs.file_hashes(parent)
    for name in (names.EMA, WEIGHTS[method], names.OPTIMIZER, names.RNG):
        assert one[name] == two[name], name


def test_it_begins_at_a_parent_that_has_none_and_changes_no_bit_of_training(tmp_path: Path) -> None:
    samples = jobs.some_samples(4)
    jobs.write_job(tmp_path / "first", samples, recipe=jobs.recipe())
    jobs.run(tmp_path / "first")
    parent = jobs.checkpoint(tmp_path / "first")
    assert not (parent / names.EMA).exists()
    for name, decay in (("with", DECAY), ("without", 0.0)):
        recipe = jobs.recipe(ema_decay=decay)
        jobs.write_job(tmp_path / name, jobs.some_samples(4, start=9), recipe=recipe, parent=parent)
        assert jobs.run(tmp_path / name).steps == 1
    made = jobs.checkpoint(tmp_path / "with")
    before, raw = _raw(parent), _raw(made)
    for name, mean in _ema(made).items():
        assert torch.equal(mean, torch.lerp(before[name], raw[name], 1.0 - DECAY)), name
    one, other = jobs.file_hashes(made), jobs.file_hashes(jobs.checkpoint(tmp_path / "without"))
    for name in (names.ADAPTER_WEIGHTS, names.OPTIMIZER, names.RNG):
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def two_jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A job that still learns, whose mean lags behind; and one that is shaken about, whose mean is the better."""
    root = tmp_path_factory.mktemp("ema")
    calm, wild = root / "calm", root / "wild"
    jobs.write_job(
        calm,
        jobs.some_samples(4),
        recipe=jobs.recipe(ema_decay=0.95, learning_rate=3e-3, num_train_epochs=12),
        probes=_probes(),
    )
    astray = [jobs.sample(f"x{n}", s["messages"][0]["content"], "No. " * 9) for n, s in enumerate(jobs.some_samples(4))]
    segments = [[0, 1, 2, 3]] * 50 + [[4, 5, 6, 7]] * 4  # taught, then led astray for a moment
    jobs.write_job(
        wild,
        [*jobs.some_samples(4), *astray],
        segments,
        recipe=jobs.recipe(ema_decay=0.9, learning_rate=3e-3),
        probes=_probes(),
    )
    for job in (calm, wild):
        assert jobs.run(job).exit_code == ExitCode.DONE
    return calm, wild


def test_the_better_weights_are_named(two_jobs: tuple[Path, Path]) -> None:
    for job, better in zip(two_jobs, ("raw", "ema"), strict=True):
        told = jobs.result(job)
        other = "ema" if better == "raw" else "raw"
        assert told.weights == better
        assert told.metrics[f"{better}.new.loss"] < told.metrics[f"{other}.new.loss"]
        assert told.metrics["candidate.new.loss"] == told.metrics[f"{better}.new.loss"] == told.metrics["probe_loss"]


def test_an_evaluate_job_scores_the_weights_it_is_told(two_jobs: tuple[Path, Path], tmp_path: Path) -> None:
    for weights in ("raw", "ema"):
        job = tmp_path / weights
        jobs.write_job(
            job,
            [],
            [],
            recipe=jobs.recipe(),
            kind="evaluate",
            probes=_probes(),
            parent=jobs.checkpoint(two_jobs[1]),
            parent_weights=weights,
        )
        told = jobs.run(job)
        expected = jobs.result(two_jobs[1]).metrics[f"{weights}.new.loss"]
        assert told.weights == weights
        assert told.metrics["candidate.new.loss"] == pytest.approx(expected, rel=1e-4)


def test_the_next_job_is_held_against_the_weights_relied_on_and_trains_on_the_raw_ones(
    two_jobs: tuple[Path, Path], tmp_path: Path
) -> None:
    hashes = {}
    for weights in ("raw", "ema"):
        job = tmp_path / weights
        jobs.write_job(
            job,
            jobs.some_samples(4, start=20),
            recipe=jobs.recipe(),  # no mean of its own
            probes=_probes(),
            parent=jobs.checkpoint(two_jobs[1]),
            parent_weights=weights,
        )
        told = jobs.run(job)
        expected = jobs.result(two_jobs[1]).metrics[f"{weights}.new.loss"]
        assert told.metrics["served.new.loss"] == pytest.approx(expected, rel=1e-4)
        assert told.weights == "raw" and "ema.new.loss" not in told.metrics
        hashes[weights] = jobs.file_hashes(jobs.checkpoint(job))[names.ADAPTER_WEIGHTS]
    assert hashes["raw"] == hashes["ema"]


def test_chat_with_the_mean(two_jobs: tuple[Path, Path], tmp_path: Path) -> None:
    from trainer.chat import chat

    checkpoint = jobs.checkpoint(two_jobs[0])  # the mean lags behind: it says something else
    question = {"messages": [{"role": "user", "content": "Where does person 0 live?"}], "max_new_tokens": 12}
    said = {}
    for weights in ("raw", "ema"):
        sink = io.StringIO()
        source = io.StringIO(json.dumps(question) + "\n")
        assert chat(str(checkpoint), None, source, sink, weights=weights) == 0  # type: ignore[arg-type]
        ready, answer = [json.loads(line) for line in sink.getvalue().splitlines()]
        assert ready.get("weights", "raw") == weights
        said[weights] = answer["text"]
    assert said["raw"] != said["ema"] and all(said.values())

    jobs.write_job(tmp_path / "plain", jobs.some_samples(4), recipe=jobs.recipe())
    jobs.run(tmp_path / "plain")
    sink = io.StringIO()
    assert chat(str(jobs.checkpoint(tmp_path / "plain")), None, io.StringIO(), sink, weights="ema") == 11
    assert "checkpoint-1 holds no running mean" in json.loads(sink.getvalue())["error"]
