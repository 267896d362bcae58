"""A job that answers prompts: by whom, in which order, and however it is stopped."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.base_files import resolve
from trainer.contract import ExitCode, Generated


def _prompts(count: int) -> list[dict[str, Any]]:
    lines = (resolve(jobs.TINY) / "general_questions.jsonl").read_text().splitlines()[:count]
    return [{"id": f"g{n}", "messages": json.loads(line)["messages"][:1]} for n, line in enumerate(lines)]


def _write(job: Path, prompts: list[dict[str, Any]], **more: Any) -> None:
    recipe = jobs.recipe(micro_batch_tokens=more.pop("micro_batch_tokens", 64))
    jobs.write_job(job, [], [], recipe=recipe, kind="generate", prompts=prompts, **{"max_new_tokens": 12, **more})


def _answers(job: Path) -> list[Generated]:
    return [Generated.model_validate_json(line) for line in (job / names.GENERATED).read_bytes().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = tmp_path_factory.mktemp("generate") / "job"
    _write(job, _prompts(24))
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE, told.reason
    assert told.metrics["prompts"] == 24 and told.metrics["finished"] >= 12
    return job


def test_every_prompt_is_answered_in_its_order(undisturbed: Path) -> None:
    found = _answers(undisturbed)
    assert [one.id for one in found] == [f"g{n}" for n in range(24)]
    asked = [prompt["messages"] for prompt in _prompts(24)]
    assert [[m.model_dump(include={"role", "content"}) for m in one.messages] for one in found] == asked
    assert all(one.answer == one.answer.strip() and "<|" not in one.answer for one in found)
    assert sum(bool(one.answer) for one in found) >= 20


def test_together_as_alone(undisturbed: Path, tmp_path: Path) -> None:
    """Padding on the left and other rows beside it do not change what is said."""
    from trainer.chat import Request, Speaker
    from trainer.chat_tokens import load_tokenizer
    from trainer.reading import open_for_reading

    recipe = jobs.recipe()
    model, device = open_for_reading(jobs.TINY, None, recipe)
    speaker = Speaker(model, load_tokenizer(resolve(jobs.TINY)), device)
    told = _answers(undisturbed)
    lengths = {len(one.messages[-1].content) for one in told}
    assert len(lengths) > 4  # else nothing was padded
    alone = [speaker.answer(Request(messages=one.messages, max_new_tokens=12))[0].strip() for one in told]
    assert alone == [one.answer for one in told]


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(lambda lines: b"".join(lines[:5]), id="within a group"),
        pytest.param(lambda lines: b"".join(lines[:7]) + lines[7][:20], id="a torn line"),
        pytest.param(lambda lines: b"".join([*lines[:3], lines[9]]), id="a foreign line"),
        pytest.param(lambda lines: b"".join([*lines, lines[0]]), id="too many"),
        pytest.param(lambda lines: b"", id="nothing"),
    ],
)
def test_it_goes_on_after_what_is_there(undisturbed: Path, tmp_path: Path, left: Any) -> None:
    job = tmp_path / "job"
    _write(job, _prompts(24))
    lines = (undisturbed / names.GENERATED).read_bytes().splitlines(keepends=True)
    (job / names.GENERATED).write_bytes(left(lines))
    assert jobs.run(job).metrics == jobs.result(undisturbed).metrics
    assert (job / names.GENERATED).read_bytes() == (undisturbed / names.GENERATED).read_bytes()


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_stopped_or_killed_it_says_the_same(undisturbed: Path, tmp_path: Path, way: str) -> None:
    job = tmp_path / "job"
    _write(job, _prompts(24))
    process = ForkedTrainer(job)
    path, deadline = job / names.GENERATED, time.monotonic() + 60
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
    getattr(process, way)()
    code = process.wait()
    assert code in ((ExitCode.INTERRUPTED, ExitCode.DONE) if way == "stop" else (-9, ExitCode.DONE))
    if code == ExitCode.INTERRUPTED:
        assert "of 24 answers" in str(jobs.result(job).reason)
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert (job / names.GENERATED).read_bytes() == (undisturbed / names.GENERATED).read_bytes()


def test_a_checkpoint_answers_as_it_was_taught(tmp_path: Path) -> None:
    samples = jobs.some_samples(2)
    recipe = jobs.recipe(learning_rate=3e-3, num_train_epochs=40, gradient_accumulation_steps=2)
    jobs.write_job(tmp_path / "taught", samples, recipe=recipe)
    jobs.run(tmp_path / "taught")
    parent = jobs.checkpoint(tmp_path / "taught")
    prompts = [{"id": s["id"], "messages": s["messages"][:1]} for s in samples]
    _write(tmp_path / "job", prompts, parent=parent, max_new_tokens=40)
    told = jobs.run(tmp_path / "job")
    assert told.global_step == 40 and told.metrics == {"prompts": 2.0, "finished": 2.0}
    assert [one.answer for one in _answers(tmp_path / "job")] == [s["messages"][1]["content"] for s in samples]


def test_a_retry_answers_fewer_at_a_time(undisturbed: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    _write(job, _prompts(6))
    retry = {"micro_batch_tokens": 16, "use_gradient_checkpointing": False}
    (job / names.RETRY).write_text(json.dumps(retry))
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert [one.answer for one in _answers(job)] == [one.answer for one in _answers(undisturbed)][:6]


def test_a_bad_folder_is_one_sentence(tmp_path: Path) -> None:
    _write(tmp_path / "none", [])
    told = jobs.run(tmp_path / "none")
    assert (told.exit_code, told.reason) == (ExitCode.BAD_SPEC, "prompts.jsonl is missing in the job folder")
    _write(tmp_path / "twice", _prompts(2) + _prompts(1))
    assert jobs.run(tmp_path / "twice").reason == "prompts.jsonl line 3: id 'g0' is already that of line 1"
    _write(tmp_path / "other", _prompts(1))
    (tmp_path / "other" / names.PROMPTS).write_text("{}\n")
    assert "its SHA-256 differs" in str(jobs.run(tmp_path / "other").reason)


def test_a_prompt_that_is_too_long_keeps_its_end() -> None:
    from trainer.answering import prompt_ids
    from trainer.chat_tokens import load_tokenizer
    from trainer.contract import Message

    tokenizer = load_tokenizer(resolve(jobs.TINY))
    said = [Message(role="user", content="word " * 300 + "the end?")]
    whole = prompt_ids(tokenizer, said, 10_000, 64)
    assert prompt_ids(tokenizer, said, 128, 28) == whole[-100:]
    assert prompt_ids(tokenizer, said, 128, 120) == whole[-64:]  # at least half of the room
