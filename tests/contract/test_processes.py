"""Several processes that share a job come to what one comes to: rounding is all that may differ.

A chain of three jobs goes from one process to two and back, the model whole in each of them or in pieces over both.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import forked_ranks, jobs
from tests.forked_trainer import in_a_fork
from trainer import launch, moments, names
from trainer.contract import BadSpec, ExitCode, Interrupted, JobResult, JobSpec
from trainer.progress import ProgressLog
from trainer.report import Report

RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"lora_dropout": 0.05, "ema_decay": 0.9, "learning_rate": 1e-3},
    "full": {"method": "full", "full_ema_decay": 0.9, "use_gradient_checkpointing": True},
}
WEIGHTS = {"lora": names.ADAPTER_WEIGHTS, "full": "model.safetensors"}
# Three steps of each job; short last steps, in which the second of two processes has nothing to do.
SEGMENTS = [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, 0], [3, 4, 5, 6, 13, 14, 15]]
ASKED = [{"role": "user", "content": "Where does person 1 live?"}]
PROBES = [
    {"id": "p", "messages": ASKED, "answer": "Lund."},
    {"id": "q", "messages": ASKED, "answer": "Person 1 lives in Oslo.", "group": "old", "free": True},
]


class Chain:
    """Three jobs of one method; the first is always one process's, and the same for all chains."""

    def __init__(self, folder: Path, method: str, first: Path | None = None) -> None:
        self.folder, self.method = folder, method
        self.jobs = [first] if first else []

    def add(self, sharded: str | None) -> JobResult:
        """The next job: None for one process, else two with the model in pieces ("always") or not ("never")."""
        number = len(self.jobs)
        job = self.folder / f"job{number}"
        recipe = jobs.recipe(gradient_accumulation_steps=3, micro_batch_tokens=64, **RECIPES[self.method])
        jobs.write_job(
            job, jobs.some_samples(16), [SEGMENTS[number]], recipe=recipe, probes=PROBES if number == 1 else (),
            max_new_tokens=4, parent=jobs.checkpoint(self.jobs[-1]) if self.jobs else None,
        )  # fmt: skip
        self.jobs.append(job)
        told = jobs.run(job) if sharded is None else forked_ranks.done(job, sharded=sharded)
        assert told.exit_code == ExitCode.DONE, told.reason
        return told


@pytest.fixture(scope="module", params=["lora", "full"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """1 -> 1 -> 1"""
    chain = Chain(tmp_path_factory.mktemp("alone"), request.param)
    for _ in SEGMENTS:
        chain.add(None)
    return chain


@pytest.fixture(scope="module", params=["never", "always"], ids=["whole", "in pieces"])
def there_and_back(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, alone: Chain
) -> tuple[Chain, str]:
    """1 -> 2 -> 1"""
    chain = Chain(tmp_path_factory.mktemp("there_and_back"), alone.method, alone.jobs[0])
    chain.add(request.param)
    chain.add(None)
    return chain, request.param


def _environment(job: Path) -> dict[str, Any]:
    manifest = json.loads((jobs.checkpoint(job) / names.MANIFEST).read_bytes())
    told: dict[str, Any] = manifest["environment"]
    return told


def test_two_processes_tell_what_one_tells(alone: Chain, there_and_back: tuple[Chain, str]) -> None:
    chain, sharded = there_and_back
    one, two = alone.jobs[1], chain.jobs[1]
    for name in (names.PLAN, names.RENDERED, names.SCHEMA_APPLIED):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    steps, others = jobs.training_steps(one), jobs.training_steps(two)
    assert [line.step for line in steps] == [line.step for line in others] == [4, 5, 6]
    for step, other in zip(steps, others, strict=True):
        assert other.loss == pytest.approx(step.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(step.grad_norm, rel=1e-4)
        assert (other.tokens, other.samples_seen, other.lr) == (step.tokens, step.samples_seen, step.lr)
    told, again = (
        [json.loads(line) for line in (job / names.LOSSES).read_text().splitlines()] for job in (one, two)
    )
    assert [line["step"] for line in told] == [line["step"] for line in again]
    for line, other_line in zip(told, again, strict=True):
        assert [sample for sample, _ in line["losses"]] == [sample for sample, _ in other_line["losses"]]
        assert [x for _, x in other_line["losses"]] == pytest.approx([x for _, x in line["losses"]], rel=1e-4)
    mine, theirs = jobs.result(one), jobs.result(two)
    assert theirs.metrics == pytest.approx(mine.metrics, rel=1e-4) and mine.metrics
    assert (theirs.weights, theirs.steps) == (mine.weights, mine.steps)
    # What no bit of it can be promised of is written down, and said once where it changes.
    assert _environment(two) == {**_environment(one), "processes": 2, "sharded": sharded == "always"}
    assert not mine.notices and len(theirs.notices) == 1 and "2 processes" in theirs.notices[0]
    assert not (two / launch.FOLDER).exists()


def test_a_chain_goes_on_with_its_moments(alone: Chain, there_and_back: tuple[Chain, str]) -> None:
    chain, _ = there_and_back
    assert jobs.result(chain.jobs[2]).global_step == 9
    for number in (1, 2):
        one, other = (jobs.checkpoint(job.jobs[number]) for job in (alone, chain))
        assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
        for name in (WEIGHTS[alone.method], names.EMA):
            _assert_close(load_file(one / name), load_file(other / name), 1e-5)
        stored, again = moments.read(one), moments.read(other)
        assert stored.keys() == again.keys()
        for name, entries in stored.items():
            assert entries.keys() == again[name].keys()
            assert float(entries["step"]) == float(again[name]["step"]) == 3 * (number + 1)
            moved = {key: one for key, one in entries.items() if key != "step"}
            _assert_close(moved, again[name], 1e-3 * max(float(one.abs().max()) for one in moved.values()))
    last, other_last = (jobs.training_steps(job.jobs[2])[-1].loss for job in (alone, chain))
    assert other_last == pytest.approx(last, rel=1e-5)
    assert any("was made in 2 processes" in sentence for sentence in jobs.result(chain.jobs[2]).notices)


def _assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], most: float) -> None:
    for name, tensor in one.items():
        assert other[name].shape == tensor.shape and other[name].dtype == tensor.dtype
        torch.testing.assert_close(other[name], tensor, rtol=0.0, atol=most, msg=name)


def test_what_cannot_be_cut_is_refused_in_one_sentence(tmp_path: Path) -> None:
    recipe = jobs.recipe(method="full", optimizer="adafactor")
    jobs.write_job(tmp_path / "job", jobs.some_samples(4), recipe=recipe)
    assert forked_ranks.run(tmp_path / "job", sharded="always") == ExitCode.BAD_SPEC
    told = jobs.result(tmp_path / "job")
    assert told.reason == (
        'compute.sharded is "always", but the moments of adafactor cannot be cut into pieces: '
        "set optimizer to adamw_torch"
    )
    assert told.exit_code == ExitCode.BAD_SPEC


def test_one_of_them_out_of_memory(tmp_path: Path) -> None:
    """Not the first, which waits for it in a collective: the sentence comes home all the same."""
    recipe = jobs.recipe(max_seq_length=2048, micro_batch_tokens=9_000, gradient_accumulation_steps=22)
    long = [jobs.sample(str(n), "?", "word " * 800) for n in range(22)]  # two micro-batches
    jobs.write_job(tmp_path / "job", long, recipe=recipe)
    assert forked_ranks.run(tmp_path / "job", spare={1: 200 << 20}) == ExitCode.OUT_OF_MEMORY
    told = jobs.result(tmp_path / "job")
    assert told.exit_code == ExitCode.OUT_OF_MEMORY and told.reason and "out of memory" in told.reason


def test_many_moments_lie_in_files_of_their_own(tmp_path: Path) -> None:
    """Written from pieces (here: all of one process), read back by name, whole or in part."""
    weights = {name: torch.nn.Parameter(torch.zeros(rows, 3)) for name, rows in (("a.b", 5), ("c", 4), ("d", 1))}
    from trainer.pieces import Pieces

    pieces = Pieces(weights, 0, 1)
    state = {
        name: {"exp_avg": torch.randn(weight.shape), "exp_avg_sq": torch.rand(weight.shape), "step": torch.tensor(7.0)}
        for name, weight in weights.items()
    }
    moments.write_pieces(tmp_path, "adamw_torch", state, pieces, large=100)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files[0] == "optimizer-00001.safetensors" and len(files) > 3 and files[-1] == names.OPTIMIZER
    whole = moments.read(tmp_path)
    second = Pieces(weights, 1, 2)  # 3 and 2 rows, 2 and 2, 1 and none
    parts = moments.read(tmp_path, second.cut)
    for name, entries in state.items():
        assert list(whole[name]) == sorted(entries) or set(whole[name]) == set(entries)
        for key, tensor in entries.items():
            assert torch.equal(whole[name][key], tensor)
            expected = tensor if key == "step" else tensor[-(-len(tensor) // 2) :]
            assert torch.equal(parts[name][key], expected)


class _Late:
    """A stop that comes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def _stopped(job: Path) -> None:
    """In a process of its own: a stop that comes right after the first step's look, then one that comes before it."""
    os.environ["ENGRAMD_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    from trainer.finetune import finetune

    for step, looks in ((2, 1), (3, 0)):
        spec = JobSpec.model_validate_json((job / names.SPEC).read_bytes())
        report = Report(spec_sha256=jobs.sha256(job / names.SPEC))
        with pytest.raises(Interrupted):
            finetune(job, spec, _Late(len(spec.segments[0]) + looks), ProgressLog(job), report)
        assert (report.global_step, report.checkpoint) == (step, f"checkpoint-{step}")


def test_whenever_a_stop_comes_the_step_in_hand_is_saved(tmp_path: Path) -> None:
    """All look once a step, so that none ends without what it has just told."""
    jobs.write_job(tmp_path / "job", jobs.some_samples(5), recipe=jobs.recipe(gradient_accumulation_steps=1))
    assert in_a_fork(_stopped, tmp_path / "job") == 0


def test_how_many_are_wanted() -> None:
    spec = JobSpec(recipe=jobs.recipe()).to_bytes()
    assert launch.wanted(spec, {}) == launch.wanted(spec, {launch.PROCESSES: "1"}) == 1
    assert launch.wanted(spec, {launch.PROCESSES: "3"}) == 3
    assert launch.wanted(spec, {launch.PROCESSES: "0", "ENGRAMD_DEVICE": "cpu"}) == 1
    for kind in ("prepare", "evaluate", "generate"):
        assert launch.wanted(JobSpec(kind=kind, recipe=jobs.recipe()).to_bytes(), {launch.PROCESSES: "3"}) == 1
    assert launch.wanted(b"no json", {launch.PROCESSES: "3"}) == 1  # whoever reads it says what is wrong
    for given in ({launch.PROCESSES: "two"}, {launch.PROCESSES: "65"}, {launch.SHARDED: "yes"}):
        with pytest.raises(BadSpec):
            launch.wanted(spec, given)


def test_what_is_not_a_number_ends_with_a_result(tmp_path: Path) -> None:
    jobs.write_job(tmp_path / "job", jobs.some_samples(2), recipe=jobs.recipe())
    told = jobs.run(tmp_path / "job", **{launch.PROCESSES: "two"})
    assert told.exit_code == ExitCode.BAD_SPEC and told.reason is not None and "ENGRAMD_PROCESSES" in told.reason


def test_nobody_else_is_given_the_lock(tmp_path: Path) -> None:
    """The line is open to this user alone, by a name that nobody can guess."""
    from trainer.rank_line import Exchange

    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    with Exchange(lock, "store") as one, Exchange(lock, "store") as other:
        assert one.name != other.name and len(one.name) > 32
    os.close(lock)
