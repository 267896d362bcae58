"""The gate of exports: every good one passes, every broken one is caught, by name."""

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks import _broken
from tests import jobs, tiny_models
from trainer import base_files, gguf_adapter, llama_engine, parity, quantise, streamed
from trainer import gguf as converter
from trainer.chat_tokens import encode, load_tokenizer, prompt_text
from trainer.contract import Message
from trainer.gguf_reading import Reader, logits

FAMILIES = ("builtin", *tiny_models.FAMILIES)
needs_llama = pytest.mark.skipif(not llama_engine.installed(), reason="llama-cpp-python (the extra gguf) is missing")


def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {"builtin": base_files.resolve(jobs.TINY)}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.make(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return find


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Path]) -> Callable[[str, str], Path]:
    made: dict[tuple[str, str], Path] = {}

    def find(family: str, quantisation: str) -> Path:
        if (family, quantisation) not in made:
            out = tmp_path_factory.mktemp("gguf") / f"{family}.gguf"
            if quantisation in quantise.FILE_TYPES:
                quantise.quantise(find(family, "bf16"), out, quantisation)  # type: ignore[arg-type]
            else:
                converter.convert(model_of(family), out, quantisation=quantisation, pulse=nothing)  # type: ignore[arg-type]
            made[family, quantisation] = out
        return made[family, quantisation]

    return find


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[[str], Path]) -> Path:
    """Of llama3: two ranks, two alphas, values that change answers."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(model_of("llama3"), dtype=torch.float32)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", rank_pattern={"up_proj": 2}, alpha_pattern={"v_proj": 16}
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0.0, 0.05)
    adapted.save_pretrained(folder)
    return folder


# --- what is good passes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantisation", ["bf16", "Q8_0"])
def test_a_good_export_passes(
    family: str, quantisation: str, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    found, engine = parity.compare(
        model_of(family), gguf_of(family, quantisation), quantisation, pulse=nothing, engine="reader"
    )
    assert engine == "reader"
    assert found["token_ids"] == 1.0
    assert found["logits"] <= found["logits_limit"] == parity.LIMITS[quantisation].logits
    assert found["kl"] <= found["kl_limit"]
    assert found["weights"] <= 0.5


def test_the_reader_computes_what_transformers_computes(
    model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    folder = model_of("gemma2")
    ids = list(range(4, 44))  # longer than the sliding window
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = whole(torch.tensor([ids])).logits[0]
    assert torch.equal(streamed.logits(streamed.open_folder(folder, None, nothing), ids), wanted)
    got = logits(Reader(gguf_of("gemma2", "f16")).model(nothing), ids, "x")
    assert (got - wanted).abs().max() <= 1e-4 * wanted.std()


def test_weights_are_let_go_when_a_layer_has_run(model_of: Callable[[str], Path]) -> None:
    pulses: list[None] = []
    model = streamed.open_folder(model_of("qwen2"), None, lambda: pulses.append(None))
    streamed.logits(model, [1, 2, 3])
    assert all(weight.is_meta for weight in model.parameters())
    assert len(pulses) == 5  # embeddings, two layers, norm, head


def test_an_adapter_passes_on_its_base(
    adapter: Path, tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    folder, made = model_of("llama3"), tmp_path / "adapter.gguf"
    gguf_adapter.convert(adapter, folder, made, pulse=nothing)
    found, _ = parity.compare(
        folder, gguf_of("llama3", "f16"), "f16", adapter=adapter, adapter_gguf=made, pulse=nothing, engine="reader"
    )
    assert found["logits"] <= 1e-4
    ids = list(range(3, 30))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(base, adapter).eval()(torch.tensor([ids])).logits[0]
    got = streamed.logits(streamed.open_folder(folder, adapter, nothing), ids)
    assert torch.allclose(got, wanted, atol=1e-5)
    without = streamed.logits(streamed.open_folder(folder, None, nothing), ids)
    assert (got - without).abs().max() > 0.1


# --- what is broken is caught --------------------------------------------------------------------------------


BROKEN = ["builtin", "llama2"]  # each kind of tokenizer; the others when it may take minutes
BROKEN += ["qwen2", "llama3", "gemma3"] if os.environ.get("ENGRAMD_FAULTS_LONG") == "1" else []


@pytest.mark.faults
@pytest.mark.parametrize("family", BROKEN)
def test_every_broken_export_is_caught(
    family: str, tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    missed, caught = [], 0
    for name, fault in _broken.FAULTS.items():
        out = tmp_path / "broken.gguf"
        if not _broken.rewrite(gguf_of(family, "Q8_0"), out, fault):
            continue  # this family has nothing of the kind
        try:
            parity.compare(model_of(family), out, "Q8_0", pulse=nothing, engine="reader")
            missed.append(name)
        except parity.ParityFailed as error:
            assert len(str(error).splitlines()) == 1
            caught += 1
    assert missed == []
    assert caught >= 16


def test_nothing_changed_is_no_fault(
    tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    """The rewriting itself breaks nothing: what the tests above catch is the fault."""
    out = tmp_path / "same.gguf"
    assert _broken.rewrite(gguf_of("gemma3", "Q8_0"), out, lambda values, tensors: True)
    parity.compare(model_of("gemma3"), out, "Q8_0", pulse=nothing, engine="reader")


@pytest.mark.parametrize("fault", ["missing rope base", "missing rope factors", "swapped layers", "queries not paired"])
def test_the_logits_alone_would_see_it_too(
    fault: str, tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    out = tmp_path / "broken.gguf"
    assert _broken.rewrite(gguf_of("llama3", "f16"), out, _broken.FAULTS[fault])
    ids = list(range(3, 60))
    wanted = streamed.logits(streamed.open_folder(model_of("llama3"), None, nothing), ids)
    got = logits(Reader(out).model(nothing), ids, "x")
    figures = parity._figures(wanted, got)
    assert figures["logits"] > parity.LIMITS["f16"].logits
    assert figures["kl"] > parity.LIMITS["f16"].kl


def _alpha(values: dict[str, Any], _tensors: Any) -> bool:
    values["adapter.lora.alpha"] *= 2
    return True


def _less(_values: Any, tensors: dict[str, Any]) -> bool:
    for side in ("lora_a", "lora_b"):
        tensors.pop(f"blk.1.ffn_up.weight.{side}")
    return True


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_alpha, "adds something else to"),
        (_less, "lacks what the adapter adds to model.layers.1.mlp.up_proj"),
        (_broken._swap("blk.0.attn_v.weight.lora_b", "blk.1.attn_v.weight.lora_b"), "adds something else to"),
    ],
)
def test_a_broken_adapter_is_caught_whatever_its_base_may_err(
    fault: Any, said: str, adapter: Path, tmp_path: Path, model_of: Callable[[str], Path],
    gguf_of: Callable[[str, str], Path],
) -> None:  # fmt: skip
    good, broken = tmp_path / "good.gguf", tmp_path / "broken.gguf"
    gguf_adapter.convert(adapter, model_of("llama3"), good, pulse=nothing)
    assert _broken.rewrite(good, broken, fault)
    with pytest.raises(parity.ParityFailed, match=said):
        parity.compare(
            model_of("llama3"), gguf_of("llama3", "Q8_0"), "Q8_0", adapter=adapter, adapter_gguf=broken, pulse=nothing
        )


def test_another_models_file_is_caught(model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]) -> None:
    with pytest.raises(parity.ParityFailed):
        parity.compare(model_of("llama2"), gguf_of("llama3", "f16"), "f16", pulse=nothing)


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path, model_of: Callable[[str], Path]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(parity.ParityFailed, match=r"x\.gguf cannot be read as GGUF"):
        parity.compare(model_of("builtin"), tmp_path / "x.gguf", "f16", pulse=nothing)


def test_the_text_holds_what_it_has_to() -> None:
    assert unicodedata.is_normalized("NFC", parity.TEXT + parity._MARKS)
    for part in ("123", "   ", "\t\t", "\n\n\n", "\r\n", "def ", "日本", "한국", "👩\u200d👩", "→"):
        assert part in parity.TEXT


# --- the process that asks llama.cpp -------------------------------------------------------------------------

STAND_IN = """
import numpy as np
class Llama:
    def __init__(self, path, **options):
        if path.endswith("bad.gguf"):
            print("llama_model_load: error loading model: no merges")
            raise SystemExit(1)
        self.n_vocab, self.model, self.path = 5, path, path
    def tokenize(self, text, add_bos, special):
        return [9] * add_bos + list(text)
    def eval(self, tokens):
        if self.path.endswith("slow.gguf"):
            import threading
            threading.Event().wait()
        self.scores = np.asarray([[token * 10.0 + n for n in range(5)] for token in tokens] + [[0.0] * 5])
def llama_model_get_vocab(model): return model
def llama_vocab_is_eog(vocab, token): return token == 2
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "llama_cpp.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_ids_logits_and_ends_come_back(stand_in: Path) -> None:
    texts = [("ab", True), ("", False), ("c", False)]
    answer = llama_engine.ask(stand_in / "good.gguf", None, texts, [1, 2], [2, 3], nothing)
    assert answer.ids == [[9, 97, 98], [], [99]]
    assert answer.logits.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]]
    assert answer.ends == {2}


def test_what_it_refuses_is_said_in_its_own_last_words(stand_in: Path) -> None:
    with pytest.raises(llama_engine.Refused, match="error loading model: no merges"):
        llama_engine.ask(stand_in / "bad.gguf", None, [], [1], [], nothing)


def test_a_wish_to_stop_ends_it(stand_in: Path) -> None:
    looks = iter(range(2))

    class Stop(Exception):
        pass

    def pulse() -> None:
        if next(looks, None) is None:
            raise Stop

    with pytest.raises(Stop):
        llama_engine.ask(stand_in / "slow.gguf", None, [], [1], [], pulse)


# --- llama.cpp itself ----------------------------------------------------------------------------------------


@needs_llama
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantisation", ["f16", "Q8_0", "Q4_K_M"])
def test_llama_cpp_computes_the_same(
    family: str, quantisation: str, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    found, engine = parity.compare(model_of(family), gguf_of(family, quantisation), quantisation, pulse=nothing)
    assert engine == "llama.cpp"
    assert found["engine_logits"] <= found["engine_logits_limit"]
    assert found["engine_kl"] <= found["engine_kl_limit"]


@needs_llama
@pytest.mark.parametrize("fault", ["missing rope base", "swapped layers", "queries not paired", "missing merges"])
def test_llama_cpp_sees_the_fault_as_well(
    fault: str, tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    out = tmp_path / "broken.gguf"
    assert _broken.rewrite(gguf_of("llama3", "f16"), out, _broken.FAULTS[fault])
    tokenizer = load_tokenizer(model_of("llama3"))
    ids = encode(tokenizer, prompt_text(tokenizer, [Message(role="user", content="Where does Mara live now?")]))
    if fault == "missing merges":
        with pytest.raises(llama_engine.Refused):
            llama_engine.ask(out, None, [], ids, [], nothing)
        return
    wanted = streamed.logits(streamed.open_folder(model_of("llama3"), None, nothing), ids)
    got = torch.from_numpy(llama_engine.ask(out, None, [("a", False)], ids, [], nothing).logits)
    assert parity._figures(wanted, got)["logits"] > parity.LIMITS["f16"].logits


@needs_llama
def test_llama_cpp_with_an_adapter(
    adapter: Path, tmp_path: Path, model_of: Callable[[str], Path], gguf_of: Callable[[str, str], Path]
) -> None:
    folder, made = model_of("llama3"), tmp_path / "adapter.gguf"
    gguf_adapter.convert(adapter, folder, made, pulse=nothing)
    found, engine = parity.compare(
        folder, gguf_of("llama3", "f16"), "f16", adapter=adapter, adapter_gguf=made, pulse=nothing
    )
    assert engine == "llama.cpp"
    assert json.dumps(found)  # plain numbers, for export.json
