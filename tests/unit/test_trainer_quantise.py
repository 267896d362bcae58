"""K-quants by llama.cpp in a child process: what they need, what they say, what they fall back to."""

import signal
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests import tiny_models
from tests.gguf_by_hand import converted
from trainer import quantise
from trainer.contract import BadSpec, Interrupted


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quantise, "available", lambda: False)
    with pytest.raises(BadSpec, match=r'pip install "engramd\[gguf\]"'):
        quantise.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_K_M")


def test_what_needs_no_library_is_not_its_work(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="Q8_0 is no K-quant"):
        quantise.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q8_0")


def test_rows_that_k_quants_cannot_cut_are_told(tmp_path: Path) -> None:
    converted(tiny_models.make("qwen3", tmp_path / "even"), tmp_path / "even.gguf")
    assert quantise.fallbacks(tmp_path / "even.gguf", "Q4_K_M") is None
    converted(tiny_models.make("qwen3", tmp_path / "odd", intermediate_size=320), tmp_path / "odd.gguf")
    told = quantise.fallbacks(tmp_path / "odd.gguf", "Q4_K_M")
    assert told is not None and "2 tensors (blk.0.ffn_down.weight" in told and "Q5_0" in told


def test_how_a_failed_child_is_explained() -> None:
    said = b"llama_model_quantize: loading\nllama_model_quantize: failed to open x\nbye\n"
    assert "failed to open x" in str(quantise._explained(1, said, "Q6_K"))
    assert "killed" in str(quantise._explained(-signal.SIGKILL, b"", "Q6_K"))


needs_llama_cpp = pytest.mark.skipif(not quantise.available(), reason="needs llama-cpp-python (the extra gguf)")


@needs_llama_cpp
@pytest.mark.parametrize("quantisation", ["Q4_K_M", "Q5_K_M", "Q6_K"])
def test_k_quants_are_written_in_silence(
    quantisation: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    converted(tiny_models.make("gemma3", tmp_path / "model"), tmp_path / "a.gguf", "bf16")
    capfd.readouterr()
    quantise.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", quantisation)
    said = capfd.readouterr()
    assert said.out == said.err == ""
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K"}[quantisation] in kinds
    assert (tmp_path / "b.gguf").stat().st_size < (tmp_path / "a.gguf").stat().st_size


@needs_llama_cpp
def test_a_source_that_is_no_gguf_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF is not what follows")
    with pytest.raises(BadSpec, match=r"llama\.cpp could not quantise to Q6_K: "):
        quantise.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q6_K")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@needs_llama_cpp
def test_a_stopped_child_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(quantise, "_POLL", 0.0)  # the library's import alone takes longer
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(Interrupted):
        quantise.quantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q6_K", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
