"""LoRA adapters as GGUF adapters: what llama.cpp adds is what PEFT adds, and what cannot be said is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import tiny_models
from tests.gguf_by_hand import LLAMA, gguf_name, paired_by_hand, quiet, value
from trainer import gguf_adapter, names
from trainer.contract import BadSpec

FAMILIES = sorted(tiny_models.FAMILIES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tiny model of a family, made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tiny_models.make(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of



def adapter_of(folder: Path, out: Path, **settings: Any) -> Path:
    """An adapter on every linear layer, with weights that do something, saved by PEFT."""
    torch.manual_seed(5)
    config = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", **settings})
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    for name, weight in adapted.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(0.0, 0.1)
    adapted.save_pretrained(out)
    return out


def deltas(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """What llama.cpp adds to each weight: alpha over the tensor's own rank, times B A."""
    alpha = float(value(reader, "adapter.lora.alpha"))
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    stems = {name.rpartition(".")[0] for name in tensors}
    assert set(tensors) == {f"{stem}.lora_{half}" for stem in stems for half in "ab"}
    return {s: alpha / tensors[f"{s}.lora_a"].shape[0] * tensors[f"{s}.lora_b"] @ tensors[f"{s}.lora_a"] for s in stems}


def peft_deltas(family: str, folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The same by PEFT itself, with rows in llama.cpp's order."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    found = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "get_delta_weight") and getattr(module, "lora_A", None):
            delta = module.get_delta_weight("default").detach()
            plain = name.removeprefix("base_model.model.") + ".weight"
            if family in LLAMA and name.endswith(("q_proj", "k_proj")):
                delta = paired_by_hand(delta, 4 if name.endswith("q_proj") else 2)
            found[gguf_name(family, plain)] = delta
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_adds_what_peft_adds(family: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapter_of(model(family), tmp_path / "adapter")
    gguf_adapter.convert(adapter, model(family), tmp_path / "a.gguf", pulse=quiet)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert value(reader, "general.type") == "adapter"
    assert value(reader, "adapter.type") == "lora"
    assert value(reader, "general.architecture") == tiny_models.FAMILIES[family].gguf
    assert value(reader, "adapter.lora.alpha") == 16.0
    mine, theirs = deltas(reader), peft_deltas(family, model(family), adapter)
    assert set(mine) == set(theirs)
    for name, delta in theirs.items():
        torch.testing.assert_close(mine[name], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"k_proj": 3, "v_proj": 40}},
        {"use_rslora": True, "rank_pattern": {"down_proj": 2}},
    ],
)
def test_scales_that_are_not_plain_are_folded_in(
    settings: dict[str, Any], model: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = adapter_of(model("mistral"), tmp_path / "adapter", **settings)
    gguf_adapter.convert(adapter, model("mistral"), tmp_path / "a.gguf", pulse=quiet)
    mine = deltas(gguf.GGUFReader(tmp_path / "a.gguf"))
    for name, delta in peft_deltas("mistral", model("mistral"), adapter).items():
        torch.testing.assert_close(mine[name], delta, rtol=1e-5, atol=1e-6)


def test_the_running_mean_is_taken_where_it_is_asked_for(model: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapter_of(model("qwen3"), tmp_path / "adapter")
    with pytest.raises(BadSpec, match="use the raw weights"):
        gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "a.gguf", weights="ema", pulse=quiet)
    mean = {name: weight * 0.5 for name, weight in load_file(adapter / names.ADAPTER_WEIGHTS).items()}
    save_file(mean, adapter / names.EMA)
    gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "raw.gguf", pulse=quiet)
    gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "mean.gguf", weights="ema", pulse=quiet)
    raw, half = (deltas(gguf.GGUFReader(tmp_path / f"{name}.gguf")) for name in ("raw", "mean"))
    for name, delta in raw.items():
        torch.testing.assert_close(half[name], delta / 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "IA3"}, "of kind IA3"),
        ({"init_lora_weights": "pissa_niter_16"}, "began with pissa"),
        ({"something_new": {"a": 1}}, "something_new"),
        ({"r": 5}, "has rank 4, but its settings say 5"),
    ],
)
def test_adapters_that_gguf_cannot_say_are_refused(
    change: dict[str, Any], reason: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = adapter_of(model("qwen3"), tmp_path / "adapter")
    path = adapter / names.ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadSpec, match=reason):
        gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "a.gguf", pulse=quiet)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", (512,), "no half of a LoRA pair"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (4, 716), "no half of a LoRA pair"),
        ("base_model.model.model.layers.0.mlp.router.lora_A.weight", (4, 256), "no half of a LoRA pair"),
    ],
)
def test_every_tensor_of_an_adapter_is_used(
    name: str, shape: tuple[int, ...], reason: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = adapter_of(model("qwen3"), tmp_path / "adapter")
    weights = load_file(adapter / names.ADAPTER_WEIGHTS)
    save_file(weights | {name: torch.zeros(shape)}, adapter / names.ADAPTER_WEIGHTS)
    with pytest.raises(BadSpec, match=reason):
        gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "a.gguf", pulse=quiet)


def test_an_adapter_of_another_model_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapter_of(model("qwen2"), tmp_path / "adapter")
    with pytest.raises(BadSpec, match="does not fit the model below it"):
        gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "a.gguf", pulse=quiet)


def test_an_adapter_on_a_tied_head_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = adapter_of(model("qwen3"), tmp_path / "adapter")
    weights = load_file(adapter / names.ADAPTER_WEIGHTS)
    head = "base_model.model.lm_head.lora_{}.weight"
    weights |= {head.format("A"): torch.ones(4, 256), head.format("B"): torch.ones(716, 4)}
    save_file(weights, adapter / names.ADAPTER_WEIGHTS)
    gguf_adapter.convert(adapter, model("qwen3"), tmp_path / "a.gguf", pulse=quiet)  # its head is its own
    assert "output.weight.lora_a" in {t.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    tied = adapter_of(model("qwen2"), tmp_path / "tied")
    weights = load_file(tied / names.ADAPTER_WEIGHTS)
    weights |= {head.format("A"): torch.ones(4, 256), head.format("B"): torch.ones(716, 4)}
    save_file(weights, tied / names.ADAPTER_WEIGHTS)
    with pytest.raises(BadSpec, match="lm_head, which has no weight of its own"):
        gguf_adapter.convert(tied, model("qwen2"), tmp_path / "b.gguf", pulse=quiet)
