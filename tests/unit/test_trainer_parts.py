"""The trainer's small parts: base files, divergence, rates, progress, seeds, layout of errors."""

import json
import math
from pathlib import Path

import pytest

from tests import jobs
from trainer import names
from trainer.base_files import BaseMissing, fingerprint, hub_cache, resolve
from trainer.contract import Diverged
from trainer.divergence import Detector
from trainer.progress import ProgressLog
from trainer.seeds import derive


def _model(folder: Path, weights: bytes = b"\0" * 100) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_the_builtin_model_is_there() -> None:
    assert (resolve("builtin:tiny") / "model.safetensors").is_file()
    with pytest.raises(BaseMissing, match="the only one that ships with engramd is builtin:tiny"):
        resolve("builtin:huge")


def test_a_folder_is_a_base(tmp_path: Path) -> None:
    folder = _model(tmp_path / "m")
    assert resolve(str(folder)) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseMissing, match="holds no weights"):
        resolve(str(folder))
    with pytest.raises(BaseMissing, match="there is no such folder"):
        resolve(str(tmp_path / "absent"))


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    repository = tmp_path / "hub" / "models--some--model"
    folder = _model(repository / "snapshots" / "abc")
    assert resolve("some/model", environ) == folder  # one snapshot alone is clear enough
    _model(repository / "snapshots" / "abd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert resolve("some/model", environ) == folder
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-2.safetensors"}})
    )
    with pytest.raises(
        BaseMissing, match=r"model-2.safetensors is missing .* `engramd base fetch some/model`"
    ):
        resolve("some/model", environ)
    with pytest.raises(
        BaseMissing, match="other/model is not on this disk; `engramd base fetch other/model`"
    ):
        resolve("other/model", environ)
    assert hub_cache({"HF_HUB_CACHE": "/x", "HF_HOME": "/y"}) == Path("/x")


def test_a_fingerprint_sees_content_and_not_place(tmp_path: Path) -> None:
    big = bytearray(8_000_000)
    one, two = _model(tmp_path / "a", bytes(big)), _model(tmp_path / "b", bytes(big))
    assert fingerprint(one) == fingerprint(two)
    big[10] = 1
    assert fingerprint(_model(tmp_path / "c", bytes(big))) != fingerprint(one)
    (two / "config.json").write_text('{"a": 1}')
    assert fingerprint(two) != fingerprint(one)


def test_divergence() -> None:
    detector = Detector(vocabulary=1280)
    limit = math.log(1280) + 4
    detector.observe(1, 3.0, 1.0)
    assert detector.mean == 3.0
    for step in (2, 3):
        detector.observe(step, limit + 1, 1.0)
    assert not detector.calm and detector.mean == 3.0
    detector.observe(4, 2.0, 1.0)  # it was only a bad batch
    assert detector.calm
    for step in (5, 6):
        detector.observe(step, limit + 1, 1.0)
    with pytest.raises(Diverged, match=r"step 7: the loss is 12.2, above 11.2 for 3 steps in a row"):
        detector.observe(7, limit + 1, 1.0)
    for loss, norm in ((math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(Diverged, match="step 1: the loss or its gradient is no finite number"):
            Detector(vocabulary=10).observe(1, loss, norm)


def test_data_that_begins_far_up_is_no_divergence() -> None:
    detector = Detector(vocabulary=1280, mean=0.3)
    for step in range(1, 6):
        detector.observe(step, 12.0, 1.0)
    detector.compare(5, 13.0)
    with pytest.raises(Diverged, match=r"by step 6: .* rose from 12 to 25"):
        detector.compare(6, 25.0)


def test_rates() -> None:
    from trainer.finetune import rate_at

    def rates(kind: str, start: int = 0, **more: int) -> list[float]:
        recipe = jobs.recipe(lr_scheduler_type=kind, learning_rate=1.0, **more)
        return [rate_at(recipe, start + step, step, 4) for step in range(4)]

    assert rates("constant") == [1.0] * 4
    assert rates("constant_with_warmup", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]
    assert (
        rates("constant_with_warmup", start=3, warmup_steps=4) == [1.0] * 4
    )  # warm already: a chain warms once
    assert rates("linear", start=100) == [1.0, 0.75, 0.5, 0.25]
    cosine = rates("cosine", start=100)
    assert cosine[0] == 1.0 and cosine == sorted(cosine, reverse=True) and cosine[-1] > 0


def test_progress_after_a_step_is_cut(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path)
    for step in (1, 2, 3):
        log.write("training", step=step, loss=1.5)
    log.write("saving", step=3)
    with (tmp_path / names.PROGRESS).open("a") as file:
        file.write('{"time": "20')  # killed while it wrote
    log.cut_after(2)
    log.write("training", step=3, loss=1.25)
    log.close()
    assert [(line.step, line.loss) for line in jobs.progress(tmp_path)] == [(1, 1.5), (2, 1.5), (3, 1.25)]


def test_seeds_are_fixed_and_differ() -> None:
    assert derive(7, "dropout", 3, 0) == 2779476354713666946  # it must never change: old chains go on with it
    seeds = {
        derive(seed, "dropout", step, micro) for seed in range(3) for step in range(20) for micro in range(5)
    }
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)


def test_chat_answers_in_json_lines() -> None:
    import io

    from trainer.chat import chat

    questions = [
        {"messages": [{"role": "user", "content": "What is 2 plus 3?"}], "max_new_tokens": 12},
        {
            "messages": [{"role": "user", "content": "What is 2 plus 3?"}],
            "temperature": 1.0,
            "seed": 3,
            "max_new_tokens": 5,
        },
        {
            "messages": [{"role": "user", "content": "What is 2 plus 3?"}],
            "prefix": "Well,",
            "max_new_tokens": 3,
        },
        {"messages": []},
    ]
    sink = io.StringIO()
    lines = "".join(json.dumps(question) + "\n" for question in [*questions, questions[1]])
    assert chat("builtin:tiny", None, io.StringIO(lines + "not json\n"), sink) == 0
    ready, greedy, warm, prefixed, bad, warm_again, worse = [
        json.loads(x) for x in sink.getvalue().splitlines()
    ]
    assert ready == {"ready": True, "base": "builtin:tiny", "checkpoint": None, "step": None}
    assert greedy["text"] and "<|" not in greedy["text"] and 1 <= greedy["tokens"] <= 12
    assert warm == warm_again
    assert not prefixed["text"].startswith("Well,")
    assert bad["error"].startswith("messages:") and "Invalid JSON" in worse["error"]


def test_chat_with_nothing_there() -> None:
    import io

    from trainer.chat import chat

    sink = io.StringIO()
    assert chat("no/such-model", None, io.StringIO(), sink) == 11
    assert "engramd base fetch no/such-model" in json.loads(sink.getvalue())["error"]
