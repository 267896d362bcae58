"""An export job: what stands in `export/` at its end, that plain tools open it, and that nothing half made counts."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import __main__, modelfile, names, quantise
from trainer.base_files import resolve
from trainer.contract import ExitCode, Exported

needs_llama = pytest.mark.skipif(not quantise.available(), reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each method with a running mean, and one that was trained on nf4 weights."""
    root, found = tmp_path_factory.mktemp("trained"), {}
    for name, changes in {"lora": {}, "full": {"method": "full"}, "nf4": {"load_in_4bit": True}}.items():
        recipe = _recipe(name, num_train_epochs=4, **changes)
        jobs.write_job(root / name, jobs.some_samples(6), recipe=recipe)
        assert jobs.run(root / name).exit_code == ExitCode.DONE
        found[name] = jobs.checkpoint(root / name)
    return found


def _recipe(name: str, **changes: Any) -> Any:
    kinds: dict[str, dict[str, Any]] = {"full": {"method": "full"}, "nf4": {"load_in_4bit": True}}
    return jobs.recipe(
        **{"ema_decay": 0.8, "full_ema_decay": 0.8, "learning_rate": 3e-3, **kinds.get(name, {}), **changes}
    )


def _write(job: Path, trained: dict[str, Path], name: str, order: dict[str, Any], **more: Any) -> None:
    told = {"kind": "export", "samples_sha256": None, "export": order, **more}
    jobs.write_job(job, (), [], recipe=_recipe(name), parent=trained[name], **told)


def _exported(job: Path) -> Exported:
    """`export.json`, once all that it says of files holds."""
    path = job / names.EXPORT / names.EXPORTED
    told = Exported.model_validate_json(path.read_bytes())
    assert jobs.result(job).export_sha256 == jobs.sha256(path)
    there = {p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*") if p.is_file()}
    assert there == {*told.files, names.EXPORTED}
    for name, file in told.files.items():
        assert (path.parent / name).stat().st_size == file.size
        assert jobs.sha256(path.parent / name) == file.sha256
    return told


def _notes(job: Path) -> list[str]:
    return [line.note or "" for line in jobs.progress(job) if line.phase == "working"]


def test_a_merged_model(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    order = {"form": "merged", "quantisation": "Q8_0", "system": 'You are """me""".'}
    _write(job, trained, "lora", order, parent_weights="ema")
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE, told.reason
    exported = _exported(job)
    assert exported.architecture == "qwen3" and exported.form == "merged" and exported.merge_onto == "original"
    assert exported.parity["token_ids"] == 1.0 and exported.parity["logits"] < 0.15
    assert told.metrics["parity.logits"] == exported.parity["logits"]
    assert exported.context_length == 2048 and exported.stop
    assert any("merging" in note for note in _notes(job))
    lines = (job / names.EXPORT / names.MODELFILE).read_text().splitlines()
    assert lines[0] == "FROM ./model.gguf" and lines[-1] == "SYSTEM \"\"\"You are '''me'''.\"\"\""
    assert f'PARAMETER stop "{exported.stop[0]}"' in lines and "PARAMETER num_ctx 2048" in lines

    mean = tmp_path / "mean"
    shutil.copytree(trained["lora"], mean, copy_function=shutil.copyfile)
    shutil.copyfile(mean / names.EMA, mean / names.ADAPTER_WEIGHTS)
    base = AutoModelForCausalLM.from_pretrained(resolve(jobs.TINY))
    expected = PeftModel.from_pretrained(base, mean).merge_and_unload().state_dict()
    opened = AutoModelForCausalLM.from_pretrained(job / names.EXPORT / names.MODEL_FOLDER)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())

    # done is done: started again it changes nothing
    before = jobs.sha256(job / names.EXPORT / names.EXPORTED)
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert jobs.sha256(job / names.EXPORT / names.EXPORTED) == before


def test_an_adapter_and_the_next_one_on_the_same_base(tmp_path: Path, trained: dict[str, Path]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    _write(first, trained, "lora", {"form": "adapter", "quantisation": "Q8_0"})
    told = jobs.run(first)
    assert told.exit_code == ExitCode.DONE, told.reason
    exported = _exported(first)
    assert {names.BASE_GGUF, names.ADAPTER_GGUF, "adapter/adapter_model.safetensors"} <= exported.files.keys()
    text = (first / names.EXPORT / names.MODELFILE).read_text()
    assert text.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE ")
    folder = first / names.EXPORT / names.PEFT_FOLDER
    base = AutoModelForCausalLM.from_pretrained(resolve(jobs.TINY))
    PeftModel.from_pretrained(base, folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    kept = load_file(folder / names.ADAPTER_WEIGHTS)
    assert all(torch.equal(kept[name], t) for name, t in load_file(trained["lora"] / names.ADAPTER_WEIGHTS).items())

    sha256 = exported.files[names.BASE_GGUF].sha256
    order = {"form": "adapter", "quantisation": "Q8_0", "base_gguf": sha256}
    _write(second, trained, "lora", order, parent_weights="ema")
    shutil.copyfile(first / names.EXPORT / names.BASE_GGUF, second / names.BASE_GGUF)
    told = jobs.run(second)
    assert told.exit_code == ExitCode.DONE, told.reason
    files = _exported(second).files
    assert names.BASE_GGUF not in files and files[names.ADAPTER_GGUF] != exported.files[names.ADAPTER_GGUF]
    written = sum(file.size for name, file in files.items() if not name.endswith(names.ADAPTER_WEIGHTS))  # a link
    assert written < 3 * (trained["lora"] / names.ADAPTER_WEIGHTS).stat().st_size


def test_a_base_gguf_that_is_another_one_is_refused(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    _write(job, trained, "lora", {"form": "adapter", "quantisation": "Q8_0", "base_gguf": "0" * 64})
    (job / names.BASE_GGUF).write_bytes(b"GGUF")
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC and "base.gguf in the job folder is not the one" in (told.reason or "")
    assert not (job / names.EXPORT / names.EXPORTED).exists()


def test_a_full_fine_tune_without_its_folder(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    _write(job, trained, "full", {"form": "merged", "quantisation": "bf16", "keep_model": False})
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE, told.reason
    assert _exported(job).files.keys() == {names.MODEL_GGUF, names.MODELFILE}


def test_onto_dequantised_weights(tmp_path: Path, trained: dict[str, Path]) -> None:
    """As merged model, and as an adapter on a base of its own."""
    for form in ("merged", "adapter"):
        job = tmp_path / form
        _write(job, trained, "nf4", {"form": form, "quantisation": "bf16", "merge_onto": "dequantised"})
        told = jobs.run(job)
        assert told.exit_code == ExitCode.DONE, told.reason
        assert _exported(job).merge_onto == "dequantised"
    job = tmp_path / "not so trained"
    _write(job, trained, "lora", {"form": "merged", "quantisation": "bf16", "merge_onto": "dequantised"})
    jobs.run(job)
    assert _exported(job).merge_onto == "original"


@needs_llama
def test_k_quants_leave_nothing_on_the_way(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    _write(job, trained, "lora", {"form": "merged", "quantisation": "Q4_K_M"})
    told = jobs.run(job)
    assert told.exit_code == ExitCode.DONE, told.reason
    exported = _exported(job)
    assert exported.engine == "llama.cpp" and exported.parity["kl"] < 0.05
    whole = sum(t.numel() for t in load_file(resolve(jobs.TINY) / "model.safetensors").values()) * 2
    assert exported.files[names.MODEL_GGUF].size < 0.6 * whole


@pytest.mark.skipif(quantise.available(), reason="llama-cpp-python is installed")
def test_k_quants_need_a_package(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    _write(job, trained, "lora", {"form": "merged", "quantisation": "Q4_K_M"})
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC and 'pip install "engramd[gguf]"' in (told.reason or "")
    assert not (job / names.EXPORT).exists()


def test_killed_or_stopped_it_is_begun_anew(tmp_path: Path, trained: dict[str, Path]) -> None:
    job, whole = tmp_path / "job", tmp_path / "whole"
    for folder in (job, whole):
        _write(folder, trained, "lora", {"form": "merged", "quantisation": "Q8_0"})
    assert jobs.run(whole).exit_code == ExitCode.DONE
    for way, note in (("kill", "merging"), ("stop", "merging"), ("kill", "comparing")):
        seen, process = len(_notes(job)), ForkedTrainer(job)
        deadline = time.monotonic() + 60
        while not any(note in one for one in _notes(job)[seen:]):
            assert process.poll() is None and time.monotonic() < deadline, note
            time.sleep(0.005)
        getattr(process, way)()
        process.wait()
        assert not (job / names.EXPORT / names.EXPORTED).exists()
        if way == "stop":
            assert jobs.result(job).exit_code == ExitCode.INTERRUPTED
    assert jobs.run(job).exit_code == ExitCode.DONE
    assert _exported(job) == _exported(whole)


def test_a_full_fine_tune_has_no_adapter(tmp_path: Path, trained: dict[str, Path]) -> None:
    job = tmp_path / "job"
    _write(job, trained, "full", {"form": "adapter", "quantisation": "Q8_0"})
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC and "has no adapter to export" in (told.reason or "")
    assert not (job / names.EXPORT).exists()


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "job"
    _write(job, trained, "lora", {"form": "merged", "quantisation": "Q8_0"})
    monkeypatch.setenv("ENGRAMD_DEVICE", "cpu")
    nearly_full = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    with (job / names.LOCK).open("w") as lock:
        assert __main__.run(job, threading.Event(), lock.fileno()) == ExitCode.NO_DEVICE
    reason = jobs.result(job).reason or ""
    assert "0.0 GB are free" in reason and "engramd prune" in reason and not (job / names.EXPORT).exists()


def test_an_architecture_that_gguf_does_not_know_is_refused_early(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(resolve(jobs.TINY), base)
    config = GPT2Config(vocab_size=2048, n_embd=32, n_layer=1, n_head=2, n_positions=256, eos_token_id=2047)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    recipe = jobs.recipe(base_model=str(base))
    jobs.write_job(tmp_path / "train", jobs.some_samples(2), recipe=recipe)
    assert jobs.run(tmp_path / "train").exit_code == ExitCode.DONE
    job, order = tmp_path / "job", {"form": "merged", "quantisation": "Q8_0"}
    parent = jobs.checkpoint(tmp_path / "train")
    jobs.write_job(job, (), [], recipe=recipe, kind="export", parent=parent, samples_sha256=None, export=order)
    told = jobs.run(job)
    assert told.exit_code == ExitCode.BAD_SPEC and "GPT2" in (told.reason or ""), told.reason
    assert not (job / names.EXPORT).exists()


def test_the_modelfile_keeps_what_it_is_given() -> None:
    """Three quotation marks end a value in Ollama's parser, if a line ends with them; Go can write them otherwise."""
    text = modelfile.text_of(
        "./m.gguf",
        template='{{ .System }}"""\n{{ "\\"" }}',
        stops=["<end>", '"', "a\nb"],
        context_length=4096,
        system="",
    )
    assert text == (
        'FROM ./m.gguf\nTEMPLATE """{{ .System }}{{ "\\"\\"\\"" }}\n{{ "\\"" }}"""\n'
        'PARAMETER stop "<end>"\nPARAMETER stop """""""\nPARAMETER stop """a\nb"""\n'
        "PARAMETER num_ctx 4096\nPARAMETER repeat_penalty 1\n"
    )
