"""What a second batch must not do: skip, repeat, or keep the first one's settings; and how a job may fail."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import jobs
from tests.forked_trainer import SPARE_BYTES, ForkedTrainer
from trainer import names
from trainer.base_files import resolve
from trainer.checkpoints import verify
from trainer.contract import ExitCode

FIRST_STEPS = 6


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first batch: 12 samples, 2 epochs, 4 samples a step."""
    job = tmp_path_factory.mktemp("first") / "job"
    jobs.write_job(job, jobs.some_samples(12), recipe=jobs.recipe(num_train_epochs=2))
    assert jobs.run(job).global_step == FIRST_STEPS
    return jobs.checkpoint(job)


@pytest.mark.parametrize(
    ("count", "changes", "steps"),
    [
        pytest.param(5, {}, 2, id="smaller"),
        pytest.param(23, {}, 6, id="larger"),
        pytest.param(12, {"num_train_epochs": 4}, 12, id="more epochs"),
        pytest.param(
            10, {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}, 2, id="accumulation"
        ),
        pytest.param(
            9, {"learning_rate": 7e-5, "save_steps": 1, "save_total_limit": 9}, 3, id="rate and save_steps"
        ),
    ],
)
def test_a_second_batch(tmp_path: Path, first: Path, count: int, changes: dict[str, Any], steps: int) -> None:
    job = tmp_path / "job"
    recipe = jobs.recipe(**changes)
    jobs.write_job(job, jobs.some_samples(count, start=50), recipe=recipe, parent=first)
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE
    assert (told.start_step, told.global_step, told.steps) == (FIRST_STEPS, FIRST_STEPS + steps, steps)
    assert told.samples_seen == count * recipe.num_train_epochs
    lines = jobs.training_steps(job)
    assert [line.step for line in lines] == list(range(FIRST_STEPS + 1, FIRST_STEPS + steps + 1))
    assert {line.lr for line in lines} == {recipe.learning_rate}
    assert lines[0].samples_seen == min(count, recipe.samples_per_step)
    plan = json.loads((job / names.PLAN).read_bytes())
    assert (plan["steps"], plan["sample_uses"]) == (steps, told.samples_seen)
    if "save_steps" in changes:
        found = {path.name for path in job.glob("checkpoint-*")}
        assert found == {f"checkpoint-{FIRST_STEPS + n}" for n in range(1, steps + 1)}


def test_moments_before_and_after_the_border_are_equal(tmp_path: Path, first: Path) -> None:
    """After one more step AdamW's first moment is 0.9 of what it was plus 0.1 of a gradient, in each weight."""
    samples = jobs.some_samples(4, start=90)
    for name, changes in (("carried", {}), ("reset", {"carry_optimizer": False})):
        jobs.write_job(tmp_path / name, samples, recipe=jobs.recipe(**changes), parent=first)
        jobs.run(tmp_path / name)

    def moments(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
        state: dict[str, dict[str, torch.Tensor]] = torch.load(folder / names.OPTIMIZER, weights_only=True)[
            "state"
        ]
        return state

    before = moments(first)
    carried, reset = (
        moments(jobs.checkpoint(tmp_path / "carried")),
        moments(jobs.checkpoint(tmp_path / "reset")),
    )
    for name, entries in before.items():
        assert entries["step"] == FIRST_STEPS
        assert carried[name]["step"] == FIRST_STEPS + 1 and reset[name]["step"] == 1
        # Both saw the same gradient, so what differs is exactly the carried part.
        rest = carried[name]["exp_avg"] - reset[name]["exp_avg"]
        torch.testing.assert_close(rest, 0.9 * entries["exp_avg"], rtol=1e-3, atol=1e-7)


def test_the_base_stays_and_every_adapter_weight_changes(tmp_path: Path) -> None:
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(8), recipe=jobs.recipe(save_steps=1, save_total_limit=9))
    jobs.run(job)
    earlier = load_file(job / "checkpoint-1" / names.ADAPTER_WEIGHTS)
    later = load_file(job / "checkpoint-2" / names.ADAPTER_WEIGHTS)
    assert len(later) == 3 * 7 * 2  # layers x linear layers x (A, B); the head is not among them
    assert all(not torch.equal(earlier[name], later[name]) for name in later)
    assert not list(job.glob("checkpoint-*/model*"))


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(20), recipe=jobs.recipe(save_steps=1, save_total_limit=2))
    jobs.run(job)
    assert sorted(path.name for path in job.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


def test_divergence_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A rate that is far too high ruins what the model knew: no checkpoint of that is kept."""
    lines = (resolve(jobs.TINY) / "general_questions.jsonl").read_text().splitlines()[:8]
    known = [json.loads(line)["messages"] for line in lines]
    samples = [jobs.sample(str(n), m[0]["content"], m[1]["content"]) for n, m in enumerate(known)]
    job = tmp_path / "job"
    jobs.write_job(job, samples, recipe=jobs.recipe(learning_rate=1.0, num_train_epochs=20, save_steps=1))
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DIVERGED
    assert told.reason is not None and told.reason.startswith("training diverged")
    last = [line.step for line in jobs.training_steps(job)][-1]
    assert last is not None and last < 40
    for checkpoint in job.glob("checkpoint-*"):  # none where the very first step was too much
        verify(checkpoint)
        assert int(checkpoint.name.removeprefix("checkpoint-")) < last


def test_out_of_memory_is_told(tmp_path: Path) -> None:
    """A limit on the address space stands for a small machine."""
    job = tmp_path / "job"
    recipe = jobs.recipe(max_seq_length=2048, micro_batch_tokens=1_000_000, gradient_accumulation_steps=64)
    jobs.write_job(job, [jobs.sample(str(n), "?", "word " * 800) for n in range(32)], recipe=recipe)
    told = jobs.run(job, **{SPARE_BYTES: str(250 << 20)})
    assert told.exit_code == ExitCode.OUT_OF_MEMORY
    assert told.reason == "the device ran out of memory: fewer tokens at a time may fit"


def test_a_retry_changes_the_layout_only(tmp_path: Path) -> None:
    losses = {}
    for name in ("plain", "retried"):
        job = tmp_path / name
        jobs.write_job(job, jobs.some_samples(8), recipe=jobs.recipe(lora_dropout=0.0))
        if name == "retried":
            retry = {"micro_batch_tokens": 64, "use_gradient_checkpointing": True}
            (job / names.RETRY).write_text(json.dumps(retry))
        assert jobs.run(job).exit_code == ExitCode.DONE
        losses[name] = [line.loss for line in jobs.training_steps(job)]
    assert losses["retried"] == pytest.approx(losses["plain"], rel=1e-4)


def test_prepare_plans_what_finetune_does(tmp_path: Path) -> None:
    for kind in ("prepare", "finetune"):
        jobs.write_job(tmp_path / kind, jobs.some_samples(9), recipe=jobs.recipe(), kind=kind)
        assert jobs.run(tmp_path / kind).exit_code == ExitCode.DONE
    for name in (names.PLAN, names.RENDERED):
        assert (tmp_path / "prepare" / name).read_bytes() == (tmp_path / "finetune" / name).read_bytes()
    plan = json.loads((tmp_path / "prepare" / names.PLAN).read_bytes())
    told = jobs.result(tmp_path / "finetune")
    assert (told.steps, told.samples_seen, told.tokens) == (
        plan["steps"],
        plan["sample_uses"],
        plan["tokens"],
    )
    assert not list((tmp_path / "prepare").glob("checkpoint-*"))


def _spoil_sample(job: Path) -> None:
    with (job / names.SAMPLES).open("a") as file:
        file.write('{"id": "x", "messages": [{"role": "user", "content": "a", "loss": true}]}\n')


def _alter_recipe(job: Path, **changes: Any) -> None:
    spec = json.loads((job / names.SPEC).read_bytes())
    spec["recipe"].update(changes)
    (job / names.SPEC).write_text(json.dumps(spec))


def _alter_spec(job: Path, **changes: Any) -> None:
    spec = json.loads((job / names.SPEC).read_bytes())
    (job / names.SPEC).write_text(json.dumps({**spec, **changes}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda j: (j / names.SPEC).unlink(), "spec.json is missing in the job folder"),
        (lambda j: (j / names.SPEC).write_text("{"), "spec.json: Invalid JSON"),
        (
            lambda j: _alter_recipe(j, lora_rank=0),
            "spec.json: recipe.lora_rank: Input should be greater than or equal to 1",
        ),
        (
            lambda j: _alter_spec(j, segments=[[0, 99]]),
            "spec.json: segments[0] names sample 99, but samples.jsonl has 3",
        ),
        (lambda j: _alter_spec(j, segments=[]), "spec.json: a finetune job needs at least one segment"),
        (_spoil_sample, "samples.jsonl is not the file that spec.json names: its SHA-256 differs"),
        (
            lambda j: (_alter_spec(j, samples_sha256=None), _spoil_sample(j)),
            "samples.jsonl line 4: messages.0: a user turn cannot carry loss",
        ),
        (
            lambda j: (
                _alter_spec(j, samples_sha256=None),
                (j / names.SAMPLES).write_bytes((j / names.SAMPLES).read_bytes() * 2),
            ),
            "samples.jsonl line 4: id 's0' is already that of line 1",
        ),
        (
            lambda j: _alter_recipe(j, base_model="no/such-model"),
            "`engramd base fetch no/such-model` brings it",
        ),
        (
            lambda j: _alter_spec(j, parent="0" * 64),
            "the parent checkpoint is torn: manifest.json is missing",
        ),
        (
            lambda j: _alter_spec(j, kind="export"),
            "spec.json: export goes with kind export, and only with it",
        ),
        (lambda j: (j / names.RETRY).write_text("{}"), "retry.json cannot be read"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path: Path, spoil: Any, sentence: str) -> None:
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(3), recipe=jobs.recipe())
    spoil(job)
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC
    assert told.reason is not None and sentence in told.reason
    assert "Traceback" not in (job / names.LOG).read_text()


def test_a_parent_of_another_kind_is_refused(tmp_path: Path, first: Path) -> None:
    for number, (changes, sentence) in enumerate(
        [
            ({"lora_rank": 4}, "checkpoint was trained with rank 8, but the recipe says 4"),
            ({"optimizer": "adafactor"}, "holds moments of adamw_torch, but this run would use adafactor"),
        ]
    ):
        job = tmp_path / str(number)
        jobs.write_job(job, jobs.some_samples(3), recipe=jobs.recipe(**changes), parent=first)
        told = jobs.run(job)
        assert told.exit_code == ExitCode.BAD_SPEC and told.reason is not None
        assert sentence.removeprefix("checkpoint ") in told.reason


def test_cuda_asked_for_but_absent(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(3), recipe=jobs.recipe())
    told = jobs.run(job, ENGRAMD_DEVICE="cuda")
    assert told.exit_code == ExitCode.NO_DEVICE and told.reason is not None


@pytest.mark.parametrize(
    "changes", [{"optimizer": "adafactor"}, {"packing": False, "micro_batch_tokens": 64}]
)
def test_other_recipes_train_and_go_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    samples = jobs.some_samples(8)
    recipe = jobs.recipe(**changes)
    jobs.write_job(tmp_path / "whole", samples, [list(range(8))] * 2, recipe=recipe)
    jobs.run(tmp_path / "whole")
    parent = None
    for part in ("one", "two"):
        jobs.write_job(tmp_path / part, samples, [list(range(8))], recipe=recipe, parent=parent)
        jobs.run(tmp_path / part)
        parent = jobs.checkpoint(tmp_path / part)
    whole = jobs.file_hashes(jobs.checkpoint(tmp_path / "whole"))
    assert parent is not None
    assert whole[names.OPTIMIZER] == jobs.file_hashes(parent)[names.OPTIMIZER]


def test_evaluate_scores_a_checkpoint_and_the_base(tmp_path: Path, first: Path) -> None:
    probes = [
        {"id": f"p{n}", "messages": s["messages"][:1], "answer": s["messages"][1]["content"]}
        for n, s in enumerate(jobs.some_samples(4))
    ]
    losses = {}
    for name, parent in (("base", None), ("trained", first)):
        job = tmp_path / name
        jobs.write_job(job, [], [], recipe=jobs.recipe(), kind="evaluate", probes=probes, parent=parent)
        told = jobs.run(job)
        assert told.exit_code == ExitCode.DONE and told.metrics["probes"] == 4
        losses[name] = told.metrics["probe_loss"]
        assert json.loads((job / names.METRICS).read_bytes())["metrics"] == told.metrics
    assert losses["trained"] < losses["base"]


def test_nf4_on_a_cpu(tmp_path: Path) -> None:
    """Slow but the same code as on a GPU."""
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(2), recipe=jobs.recipe(load_in_4bit=True))
    process = ForkedTrainer(job, fresh=True)
    assert process.wait() == ExitCode.DONE, (job / names.LOG).read_text()
    assert jobs.result(job).steps == 1
