"""The streaming merge: bit-equal with PEFT's, the same logits as what was trained, and a refusal for all else."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, GPT2Config

from tests import jobs, tiny_models
from trainer import names
from trainer.base_files import resolve
from trainer.contract import BadSpec
from trainer.merge import dequantised, merge, merged_size, through_nf4
from trainer.shards import Planned, ShardWriter, read_tensor, tensors_in

PEFT_DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 20, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IDS = torch.arange(5, 45).reshape(2, 20)


def _still() -> None:
    pass


def _adapter(base: Path, folder: Path, *, seed: int = 3, **changes: Any) -> Path:
    """An adapter on `base` whose every tensor matters, as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**{**PEFT_DEFAULTS, **changes}))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * (0.05 if "lora" in name else 0.01)
    adapted.save_pretrained(folder)
    return folder


def _by_peft(base: Path, adapter: Path, dtype: Any = "auto") -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    found: dict[str, torch.Tensor] = merged.state_dict()
    return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("model*.safetensors")) for name, t in load_file(path).items()}


def _assert_equal(merged: Path, expected: dict[str, torch.Tensor]) -> None:
    found = _tensors(merged)
    assert found and found.keys() <= expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype in (torch.bfloat16, torch.float16), name
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(IDS).logits.float()
    return logits


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3", "mistral", "gemma2", "gemma3"])
def test_it_is_bit_equal_with_peft_on_a_base_in_shards(tmp_path: Path, family: str) -> None:
    base = tiny_models.make(family, tmp_path / "base", shard="700KB")
    adapter = _adapter(base, tmp_path / "adapter")
    assert merge(base, adapter, tmp_path / "out", pulse=_still) == []
    names_of_shards = sorted(path.name for path in base.glob("model*"))
    assert len(names_of_shards) > 2
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == names_of_shards
    expected = _by_peft(base, adapter)
    _assert_equal(tmp_path / "out", expected)
    untouched = _tensors(base)
    changed = [name for name, tensor in _tensors(tmp_path / "out").items() if not torch.equal(tensor, untouched[name])]
    assert changed and all("proj" in name for name in changed)
    # transformers opens the folder as it is, and its tokenizer too
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.bfloat16
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    told, asked = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", base))
    text = [{"role": "user", "content": "Where does Mara live?"}]
    assert told.apply_chat_template(text, tokenize=False) == asked.apply_chat_template(text, tokenize=False)
    assert merged_size(base) == sum(t.numel() * 2 for t in _tensors(tmp_path / "out").values())


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 5}, "alpha_pattern": {"q_proj": 7, "o_proj": 64}},
        {"rank_pattern": {"^model.layers.0.self_attn.k_proj": 2}, "use_rslora": True},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "down_proj"]},
        {"modules_to_save": ["norm"], "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"init_lora_weights": "gaussian", "target_modules": r".*\.0\.self_attn\.(q|v)_proj"},
    ],
    ids=["rslora", "patterns", "anchored", "head", "norm", "embeddings", "regex"],
)  # fmt: skip
def test_each_form_of_lora_is_bit_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = tiny_models.make("qwen3", tmp_path / "base")  # not tied
    adapter = _adapter(base, tmp_path / "adapter", **changes)
    assert merge(base, adapter, tmp_path / "out", pulse=_still) == []
    _assert_equal(tmp_path / "out", _by_peft(base, adapter))


def test_biases_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = tiny_models.make("qwen2", tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter", bias="lora_only")
    merge(base, adapter, tmp_path / "out", pulse=_still)
    _assert_equal(tmp_path / "out", _by_peft(base, adapter))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert not torch.equal(_tensors(tmp_path / "out")[name], _tensors(base)[name])


def test_layers_that_keep_their_weights_transposed(tmp_path: Path) -> None:
    """GPT-2's; its square ones would be merged the wrong way round without a complaint."""
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=64, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    for path in resolve("builtin:tiny").glob("tok*"):
        shutil.copy(path, tmp_path / "base")
    adapter = _adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn", "c_proj"])
    merge(tmp_path / "base", adapter, tmp_path / "out", pulse=_still)
    _assert_equal(tmp_path / "out", _by_peft(tmp_path / "base", adapter))


def test_a_model_whose_files_name_tensors_otherwise(tmp_path: Path) -> None:
    """Gemma 3 with eyes: its files say language_model.model, the model itself model.language_model."""
    text = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16,
            "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    eyes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=eyes, mm_tokens_per_image=4)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    for path in resolve("builtin:tiny").glob("tok*"):
        shutil.copy(path, tmp_path / "base")
    assert any(name.startswith("language_model.") for name in _tensors(tmp_path / "base"))
    adapter = _adapter(tmp_path / "base", tmp_path / "adapter", target_modules=r".*language_model.*_proj")
    merge(tmp_path / "base", adapter, tmp_path / "out", pulse=_still)
    assert _tensors(tmp_path / "out").keys() == _tensors(tmp_path / "base").keys()
    expected = _by_peft(tmp_path / "base", adapter)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.items())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_number_formats(tmp_path: Path, dtype: str) -> None:
    """float16 stays; float32 is merged whole and rounded once, to bfloat16."""
    base = tiny_models.make("llama2", tmp_path / "base", dtype=dtype)
    adapter = _adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out", pulse=_still)
    _assert_equal(tmp_path / "out", _by_peft(base, adapter))
    wanted = "float16" if dtype == "float16" else "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == wanted


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("way", ["lora", "saved"])
def test_tied_weights_are_written_apart_where_one_of_them_was_trained(tmp_path: Path, target: str, way: str) -> None:
    """PEFT trains one of the two and merges into both; the merged model here answers as the adapted one did."""
    base = tiny_models.make("qwen2", tmp_path / "base", dtype="float32")  # tied
    changes = {"target_modules": ["q_proj", target]} if way == "lora" else {"modules_to_save": [target]}
    adapter = _adapter(base, tmp_path / "adapter", **changes)
    notices = merge(base, adapter, tmp_path / "out", pulse=_still)
    assert len(notices) == 1 and target in notices[0]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert opened.config.tie_word_embeddings is False
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    plain = _logits(AutoModelForCausalLM.from_pretrained(base))
    wanted, found = _logits(adapted), _logits(opened)
    assert (wanted - plain).abs().max() > 0.5 * plain.std()
    assert (wanted - found).abs().max() < 0.1 * plain.std()  # bfloat16's rounding


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each method by the real trainer, with a running mean."""
    root, found = tmp_path_factory.mktemp("trained"), {}
    for method in ("lora", "full"):
        recipe = jobs.recipe(
            method=method, ema_decay=0.8, full_ema_decay=0.8, learning_rate=5e-3, num_train_epochs=4
        )
        jobs.write_job(root / method, jobs.some_samples(6), recipe=recipe)
        jobs.run(root / method)
        found[method] = jobs.checkpoint(root / method)
    return found


def test_a_checkpoint_and_its_running_mean(tmp_path: Path, trained: dict[str, Path]) -> None:
    base = resolve(jobs.TINY)
    checkpoint = trained["lora"]
    merge(base, checkpoint, tmp_path / "raw", pulse=_still)
    merge(base, checkpoint, tmp_path / "ema", weights="ema", pulse=_still)
    _assert_equal(tmp_path / "raw", _by_peft(base, checkpoint))
    as_peft = tmp_path / "mean"
    shutil.copytree(checkpoint, as_peft, copy_function=shutil.copyfile)
    shutil.copyfile(checkpoint / names.EMA, as_peft / names.ADAPTER_WEIGHTS)
    _assert_equal(tmp_path / "ema", _by_peft(base, as_peft))
    assert jobs.sha256(tmp_path / "raw" / "model.safetensors") != jobs.sha256(tmp_path / "ema" / "model.safetensors")


def test_a_full_checkpoint_in_16_bits(tmp_path: Path, trained: dict[str, Path]) -> None:
    base, checkpoint = resolve(jobs.TINY), trained["full"]
    merge(base, checkpoint, tmp_path / "raw", pulse=_still)
    merge(base, checkpoint, tmp_path / "ema", weights="ema", pulse=_still)
    _assert_equal(tmp_path / "raw", load_file(checkpoint / "model.safetensors"))
    _assert_equal(tmp_path / "ema", load_file(checkpoint / names.EMA))
    assert (tmp_path / "raw" / "tokenizer.json").exists()
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "ema")
    assert opened.config.tie_word_embeddings and opened.dtype == torch.bfloat16


def test_a_full_checkpoint_that_has_16_bits_is_linked(tmp_path: Path, trained: dict[str, Path]) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(trained["full"], checkpoint, copy_function=shutil.copyfile)
    half = {name: tensor.bfloat16() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    save_file(half, checkpoint / "model.safetensors", metadata={"format": "pt"})
    merge(resolve(jobs.TINY), checkpoint, tmp_path / "out", pulse=_still)
    assert (tmp_path / "out" / "model.safetensors").samefile(checkpoint / "model.safetensors")


def test_onto_dequantised_weights(tmp_path: Path, trained: dict[str, Path]) -> None:
    """The base as nf4 holds it, with the adapter on top; embeddings and head as they are."""
    from bitsandbytes.functional import dequantize_4bit

    from trainer.base_model import load_model

    base, checkpoint = resolve(jobs.TINY), trained["lora"]
    merge(base, checkpoint, tmp_path / "out", onto="dequantised", pulse=_still)
    dequantised(base, tmp_path / "base", pulse=_still)
    held = load_model(base, torch.device("cpu"), torch.float32, quantised=True)
    alone, merged = _tensors(tmp_path / "base"), _tensors(tmp_path / "out")
    delta, seen = load_file(checkpoint / names.ADAPTER_WEIGHTS), 0
    for name, weight in held.named_parameters():
        whole = dequantize_4bit(weight.data, weight.quant_state) if hasattr(weight, "quant_state") else weight.data
        assert torch.equal(alone[name], whole.bfloat16()), name
        module = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{module}A.weight" in delta:
            seen += 1
            whole = whole + delta[f"{module}B.weight"] @ delta[f"{module}A.weight"] * 2.0
        assert torch.equal(merged[name], whole.bfloat16()), name
    assert seen == 21
    original = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    off = (through_nf4(original[name]) - original[name].float()).norm() / original[name].float().norm()
    assert 0.02 < off < 0.2


def _edit(adapter: Path, **changes: Any) -> None:
    path = adapter / names.ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(adapter / names.ADAPTER_WEIGHTS)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, adapter / names.ADAPTER_WEIGHTS)


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda a: _edit(a, use_dora=True), "DoRA"),
        (lambda a: _edit(a, peft_type="LOHA"), "LOHA"),
        (lambda a: _edit(a, init_lora_weights="pissa"), "pissa"),
        (lambda a: _edit(a, lora_bias=True), "lora_bias"),
        (lambda a: _edit(a, trainable_token_indices=[3]), "trainable_token_indices"),
        (lambda a: _edit(a, layer_replication=[[0, 2]]), "layer_replication"),
        (lambda a: _edit(a, something_of_tomorrow=1), "something_of_tomorrow"),
        (lambda a: _edit(a, r=4), "rank 4"),
        (lambda a: _rewrite(a, lambda t: t.update(odd=torch.zeros(2))), "odd"),
        (lambda a: _rewrite(a, lambda t: t.update({Q_A.replace("q_proj", "x_proj"): t[Q_A]})), "x_proj"),
        (lambda a: _rewrite(a, lambda t: t.__delitem__(Q_A)), "layers.0.self_attn.q_proj"),
        (lambda a: _rewrite(a, lambda t: t.update({Q_A: t[Q_A][:, :-1].contiguous()})), "layers.0.self_attn.q_proj"),
        (
            lambda a: _rewrite(a, lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(256)})),
            "model.norm.weight",
        ),
        (
            lambda a: _rewrite(a, lambda t: t.update({Q_A.replace("lora_A.weight", "lora_magnitude_vector"): t[Q_A]})),
            "lora_magnitude_vector",
        ),
        (lambda a: (a / names.ADAPTER_CONFIG).write_text("{"), "cannot be read"),
        (lambda a: (a / names.ADAPTER_WEIGHTS).write_bytes(b"\xff" * 40), "cannot be read as safetensors"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], word: str
) -> None:
    base = tiny_models.make("qwen2", tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    spoil(adapter)
    with pytest.raises(BadSpec, match=word):
        merge(base, adapter, tmp_path / "out", pulse=_still)
    assert not (tmp_path / "out").exists()  # refused before a byte was written


def test_other_refusals(tmp_path: Path, trained: dict[str, Path]) -> None:
    base = tiny_models.make("qwen2", tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter")
    with pytest.raises(BadSpec, match="no running mean"):
        merge(base, adapter, tmp_path / "out", weights="ema", pulse=_still)
    with pytest.raises(BadSpec, match="layers"):  # another model's adapter
        merge(base, trained["lora"], tmp_path / "out", pulse=_still)
    shutil.copyfile(trained["full"] / names.EMA, adapter / names.EMA)
    with pytest.raises(BadSpec, match="belongs to other weights"):
        merge(base, adapter, tmp_path / "out", weights="ema", pulse=_still)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadSpec, match="quantization_config"):
        merge(base, adapter, tmp_path / "out", pulse=_still)
    torch.save(_tensors(base), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(BadSpec, match="save_pretrained"):
        merge(base, adapter, tmp_path / "out", pulse=_still)
    assert not (tmp_path / "out").exists()


def test_a_pulse_ends_it_and_comes_once_a_tensor(tmp_path: Path) -> None:
    base = tiny_models.make("qwen2", tmp_path / "base")
    adapter = _adapter(base, tmp_path / "adapter")
    beats: list[int] = []
    merge(base, adapter, tmp_path / "out", pulse=lambda: beats.append(1))
    assert len(beats) == len(_tensors(base))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, tmp_path / "stopped", pulse=stop)


def test_the_template_of_training_goes_along_where_the_base_has_none(tmp_path: Path) -> None:
    from trainer.chat_tokens import load_tokenizer

    base = tiny_models.make("qwen2", tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(base).chat_template is None
    adapter = _adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "out", pulse=_still)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == load_tokenizer(base).chat_template


def test_the_writer_writes_what_the_library_reads(tmp_path: Path) -> None:
    content = {
        "a": torch.randn(3, 5), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
        "half": torch.randn(7).bfloat16(), "ids": torch.arange(3),
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    with ShardWriter(path, [Planned(n, t.dtype, tuple(t.shape)) for n, t in content.items()]) as writer:
        for tensor in content.values():
            writer.append(tensor)
    found = load_file(path)
    assert found.keys() == content.keys() and all(torch.equal(found[n], t) for n, t in content.items())
    for name, one in tensors_in(path).items():
        assert torch.equal(read_tensor(one), content[name]) and one.count == math.prod(content[name].shape)
    with pytest.raises(ValueError, match="lacks b"), ShardWriter(path, [Planned("b", torch.int8, (1,))]):
        pass
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadSpec, match=r"cannot be read|shorter"):
        tensors_in(path)
