"""GGUF files of tiny models of each family: metadata, tensors byte for byte, tokenizers, refusals."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from tests import tiny_models
from tests.gguf_by_hand import LLAMA, converted, expected_bytes, gguf_name, paired_by_hand, quiet, value
from trainer import gguf as ours
from trainer import gguf_tokenizer, gguf_weights
from trainer.contract import BadSpec, Interrupted

BUILTIN = Path(ours.__file__).parent / "builtin"
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


@pytest.fixture
def altered(tmp_path: Path, model: Callable[[str], Path]) -> Callable[..., Path]:
    """A copy of a family's model, with values of one of its JSON files changed by a function."""

    def of(family: str, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "altered"
        folder.mkdir()
        for path in model(family).iterdir():
            os.link(path, folder / path.name)
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).unlink()
        (folder / file).write_text(json.dumps(content))
        return folder

    return of


# -- metadata ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metadata_is_that_of_the_config(family: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model(family)
    config = AutoConfig.from_pretrained(folder)
    reader = converted(folder, tmp_path / "m.gguf")
    arch = tiny_models.FAMILIES[family].gguf
    assert value(reader, "general.architecture") == arch
    head = getattr(config, "head_dim", None) or 64
    expected = {
        "vocab_size": config.vocab_size,
        "context_length": 512,
        "embedding_length": 256,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps, rel=1e-6),
    }
    rope = config.rope_parameters
    expected["rope.freq_base"] = rope.get("full_attention", rope)["rope_theta"]
    if arch == "llama":
        expected["rope.dimension_count"] = head
    if family == "gemma2":
        expected |= {
            "attention.sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        }  # fmt: skip
    if family == "gemma3":
        expected |= {
            "attention.sliding_window": 16, "rope.freq_base_swa": 10_000.0, "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        }  # fmt: skip
    for key, wanted in expected.items():
        assert value(reader, f"{arch}.{key}") == wanted, key


def test_old_and_new_ways_to_write_rope_are_the_same(altered: Callable[..., Path], tmp_path: Path) -> None:
    def older(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope

    folder = altered("llama3", "config.json", older)
    reader = converted(folder, tmp_path / "m.gguf", "f32")
    assert value(reader, "llama.rope.freq_base") == 500_000.0
    [factors] = [t for t in reader.tensors if t.name == "rope_freqs.weight"]
    # By hand: the frequencies of 64 wide heads, wavelengths against 64 / 4 and 64 / 1 tokens.
    wanted = []
    for index in range(32):
        length = 2 * np.pi * 500_000.0 ** (2 * index / 64)
        if length < 16:
            wanted.append(1.0)
        elif length > 64:
            wanted.append(8.0)
        else:
            share = (64 / length - 1) / 3
            wanted.append(1 / ((1 - share) / 8 + share))
    np.testing.assert_allclose(factors.data, wanted, rtol=1e-5)
    assert len({round(float(one), 3) for one in factors.data}) > 2


def test_yarn_is_written_and_a_window_bounds_the_context(altered: Callable[..., Path], tmp_path: Path) -> None:
    def yarn(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e6,
        }  # fmt: skip
        config["sliding_window"] = 100

    reader = converted(altered("mistral", "config.json", yarn), tmp_path / "m.gguf")
    assert value(reader, "llama.rope.scaling.type") == "yarn"
    assert value(reader, "llama.rope.scaling.factor") == 4.0
    assert value(reader, "llama.rope.scaling.original_context_length") == 128
    assert value(reader, "llama.context_length") == 100  # llama.cpp knows no window here


# -- tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantisation", ["f32", "f16", "bf16", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_there_byte_for_byte(
    family: str, quantisation: str, model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model(family)
    reader = converted(folder, tmp_path / "m.gguf", quantisation)
    written = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in load_file(folder / "model.safetensors").items():
        target = gguf_name(family, name)
        if family in LLAMA and ".q_proj." in name:
            weight = paired_by_hand(weight, 4)
        if family in LLAMA and ".k_proj." in name:
            weight = paired_by_hand(weight, 2)
        vector = weight.dim() == 1
        if vector and family.startswith("gemma"):
            weight = weight.float() + 1
        tensor = written.pop(target)
        assert tuple(int(n) for n in reversed(tensor.shape)) == tuple(weight.shape)
        assert tensor.data.tobytes() == expected_bytes(weight, quantisation, vector), name
    assert set(written) == ({"rope_freqs.weight"} if family == "llama3" else set())


def test_shards_give_the_same_file(model: Callable[[str], Path], tmp_path: Path) -> None:
    sharded = tiny_models.make("qwen3", tmp_path / "sharded", shard="300KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    converted(sharded, tmp_path / "a.gguf", "Q8_0")
    converted(model("qwen3"), tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_q8_0_is_bit_exact_at_its_edges() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(64, 96, generator=generator) * 10.0 ** torch.randint(-9, 5, (64, 1), generator=generator)
    values[0] = 0.0
    values[1, :32] = torch.tensor([127.0, -0.5, 0.5, 1.5, -2.5, 0.49999997, *([126.5] * 26)])
    mine = gguf_weights.encode(values, gguf.GGMLQuantizationType.Q8_0, "x").view(np.uint8)
    reference = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert mine.tobytes() == reference.tobytes()


def test_rows_that_q8_0_cannot_cut_stay_in_float16() -> None:
    assert gguf_weights.kind_for("Q8_0", "blk.0.attn_q.weight", (64, 40)) == gguf.GGMLQuantizationType.F16
    assert gguf_weights.kind_for("Q8_0", "blk.0.attn_q.weight", (64, 64)) == gguf.GGMLQuantizationType.Q8_0


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.make("qwen2", tmp_path / "wide", dtype="float32")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 70_000.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadSpec, match=r"blk\.1\.ffn_up\.weight holds values beyond float16"):
        converted(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()
    assert [t.name for t in converted(folder, tmp_path / "m.gguf", "bf16").tensors]


def test_a_float16_model_keeps_its_bits(tmp_path: Path) -> None:
    folder = tiny_models.make("qwen2", tmp_path / "half", dtype="float16")
    weights = load_file(folder / "model.safetensors")
    reader = converted(folder, tmp_path / "m.gguf", "f16")
    [tensor] = [t for t in reader.tensors if t.name == "blk.0.ffn_down.weight"]
    assert tensor.data.tobytes() == weights["model.layers.0.mlp.down_proj.weight"].numpy().tobytes()


def memory_peak() -> int:
    """The most that this process held since the mark was last cleared, in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("quantisation", ["f16", "Q8_0"])
def test_tensors_pass_through_little_memory(quantisation: str, tmp_path: Path) -> None:
    folder = tiny_models.make("qwen3", tmp_path / "large", intermediate_size=64 * 1024)
    converted(folder, tmp_path / "warm.gguf", quantisation)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = memory_peak()
    ours.convert(folder, tmp_path / "m.gguf", quantisation=quantisation, pulse=quiet)
    largest = 64 * 1024 * 256 * 2
    assert (tmp_path / "m.gguf").stat().st_size > 3 * largest
    assert memory_peak() - before < largest


def test_a_stopped_conversion_leaves_nothing(model: Callable[[str], Path], tmp_path: Path) -> None:
    left = 9

    def stop() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        ours.convert(model("qwen3"), tmp_path / "m.gguf", quantisation="f16", pulse=stop)
    assert list(tmp_path.iterdir()) == []


# -- tokenizers -------------------------------------------------------------------------------------

PRE = {
    "qwen2": ("gpt2", "qwen2", False), "qwen3": ("gpt2", "qwen2", False), "llama3": ("gpt2", "llama-bpe", True),
    "mistral_tekken": ("gpt2", "tekken", True), "llama2": ("llama", "default", True),
    "mistral": ("llama", "default", True), "gemma2": ("llama", "default", True), "gemma3": ("llama", "default", True),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_told_whole(family: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model(family)
    reader = converted(folder, tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told = {
        name: value(reader, f"tokenizer.ggml.{name}")
        for name in ("model", "pre", "add_bos_token", "tokens", "token_type")
    }
    assert (told["model"], told["pre"], told["add_bos_token"]) == PRE[family]
    rows = AutoConfig.from_pretrained(folder).vocab_size
    assert len(told["tokens"]) == len(told["token_type"]) == rows
    added = {number: entry for number, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    for number in range(rows):
        kind, text = gguf.TokenType(told["token_type"][number]), told["tokens"][number]
        if number >= len(tokenizer):
            assert (kind, text) == (gguf.TokenType.UNUSED, f"[PAD{number}]")
        elif number in added and tokenizer.decode([number]) != tokenizer.unk_token:
            assert (kind, text) == (gguf.TokenType.CONTROL, added[number].content)
        elif text.startswith("<0x"):
            assert kind == gguf.TokenType.BYTE
    assert value(reader, "tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert value(reader, "tokenizer.chat_template") == tokenizer.chat_template
    if family.startswith("gemma"):
        ends = value(reader, "tokenizer.ggml.eot_token_id")
        assert told["tokens"][ends] == "<end_of_turn>"
        plain = {t for t, kind in zip(told["tokens"], told["token_type"], strict=True) if kind == 4}
        assert {"\n\n", "  ", "<table>"} <= plain  # user-defined: spaces, not SentencePiece's sign for them
    if told["model"] == "gpt2":
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        assert value(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]


@pytest.mark.parametrize("family", ["llama2", "mistral", "gemma2"])
def test_scores_give_the_ids_that_merges_give(family: str, model: Callable[[str], Path]) -> None:
    """llama.cpp's way by hand: join the neighbours whose union scores highest, leftmost first; then bytes."""
    tokenizer = AutoTokenizer.from_pretrained(model(family))
    told = gguf_tokenizer.read(model(family), len(tokenizer))
    ids = {text: number for number, text in enumerate(told.tokens)}
    normal = {
        text for text, kind in zip(told.tokens, told.types, strict=True) if kind == gguf.TokenType.NORMAL
    }

    def pieces(text: str) -> list[int]:
        symbols = list(text.replace(" ", "▁"))
        while True:
            pairs = [(told.scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in normal]
            if not pairs:
                break
            at = -max(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        found: list[int] = []
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        return found

    begin = tokenizer.bos_token  # as a chat begins: no space is put before the text
    for line in tiny_models.TEXT:
        words = line.replace("\n", " ").replace("\t", " ").split(" ")
        text = " ".join(word for word in words if word and not {"<", "["} & set(word))  # no added tokens
        wanted = tokenizer(begin + text, add_special_tokens=False)["input_ids"]
        assert [tokenizer.bos_token_id, *pieces(text)] == wanted


def test_the_builtin_model_converts(tmp_path: Path) -> None:
    reader = converted(BUILTIN, tmp_path / "m.gguf")
    assert value(reader, "general.architecture") == "qwen3"
    assert value(reader, "tokenizer.ggml.pre") == "qwen2"
    assert value(reader, "tokenizer.ggml.eos_token_id") == 2047


def test_a_whole_word_that_merges_reach_anyway_may_be_taken_whole(
    altered: Callable[..., Path], model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Tekken's splitter has one name, for tokenizers that take words whole; here the merges lead there too."""

    def change(content: dict[str, Any]) -> None:
        content["model"]["ignore_merges"] = False

    reader = converted(altered("mistral_tekken", "tokenizer.json", change), tmp_path / "m.gguf")
    assert value(reader, "tokenizer.ggml.pre") == "tekken"


def test_the_other_name_of_llamas_splitter(altered: Callable[..., Path], tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["ignore_merges"] = False

    reader = converted(altered("llama3", "tokenizer.json", change), tmp_path / "m.gguf")
    assert value(reader, "tokenizer.ggml.pre") == "dbrx"


# -- what is refused --------------------------------------------------------------------------------


def set_config(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(values)


def layers(number: int) -> Callable[[dict[str, Any]], None]:
    return set_config(num_hidden_layers=number, layer_types=["full_attention"] * number)


def split_digits(content: dict[str, Any]) -> None:
    pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace("{1,3}", "{1,2}")


def drop_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = content["model"]["merges"][::2]


REFUSALS: list[tuple[str, str, Callable[[dict[str, Any]], None], str]] = [
    ("qwen3", "config.json", set_config(architectures=["PhiForCausalLM"], model_type="phi"), "PhiForCausalLM cannot"),
    ("qwen3", "config.json", set_config(architectures=["Qwen3ForTokenClassification"]), "Qwen3ForTokenClassification"),
    ("qwen3", "config.json", set_config(model_type="nonesuch"), r"config\.json in .* cannot be read"),
    ("qwen3", "config.json", set_config(hidden_act="gelu"), "the activation gelu"),
    ("qwen3", "config.json", set_config(attention_bias=True), "biases in its attention"),
    ("qwen3", "config.json", set_config(quantization_config={"quant_method": "fp8"}), "are quantised"),
    ("qwen3", "config.json", layers(3), r"no tensor for blk\.2"),
    ("qwen3", "config.json", layers(1), r"layers\.1\..* has no place"),
    ("qwen3", "config.json", set_config(num_hidden_layers=1), r"config\.json in .* cannot be read: `num_hid"),
    ("qwen3", "config.json", set_config(intermediate_size=256), r"has the shape \[512, 256\]"),
    ("qwen2", "config.json", set_config(tie_word_embeddings=False), r"no tensor for output\.weight"),
    (
        "llama2", "config.json",
        set_config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "dynamic rope scaling",
    ),
    (
        "mistral", "config.json",
        set_config(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "attention_factor": 3.0,
                                    "original_max_position_embeddings": 128}), "a scale of its own in YaRN",
    ),
    ("gemma2", "config.json", set_config(query_pre_attn_scalar=256), "query_pre_attn_scalar 256"),
    ("gemma2", "config.json", set_config(final_logit_softcapping=None), "without soft caps"),
    ("gemma2", "config.json", set_config(layer_types=["full_attention"] * 4), "without sliding layers"),
    ("gemma3", "config.json", set_config(layer_types=["sliding_attention"] * 6 + ["full_attention"]), "this order"),
    ("llama3", "tokenizer.json", split_digits, "no name for the way in which this tokenizer splits words"),
    ("llama2", "tokenizer.json", drop_merges, "merges are not SentencePiece's"),
    ("gemma3", "tokenizer.json", drop_merges, "merges are not SentencePiece's"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "file", "change", "reason"), REFUSALS, ids=[f"{r[0]}: {r[3][:30]}" for r in REFUSALS]
)
def test_what_is_not_understood_is_refused_in_one_sentence(
    family: str, file: str, change: Any, reason: str, altered: Callable[..., Path], tmp_path: Path
) -> None:
    folder = altered(family, file, change)
    with pytest.raises(BadSpec, match=reason):
        ours.check(folder)
    with pytest.raises(BadSpec, match=reason) as raised:
        converted(folder, tmp_path / "m.gguf")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "m.gguf").exists()


def test_the_way_out_is_named(altered: Callable[..., Path], tmp_path: Path) -> None:
    folder = altered("qwen3", "config.json", set_config(architectures=["PhiForCausalLM"], model_type="phi"))
    with pytest.raises(BadSpec, match=r"\[serve\] command.*convert_hf_to_gguf\.py"):
        converted(folder, tmp_path / "m.gguf")


def test_an_unknown_tensor_is_refused(model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_models.make("qwen3", tmp_path / "more")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadSpec, match=r"layers\.0\.self_attn\.sinks has no place in llama\.cpp's qwen3"):
        converted(folder, tmp_path / "m.gguf")


def test_a_head_that_is_tied_is_left_out(tmp_path: Path) -> None:
    folder = tiny_models.make("qwen2", tmp_path / "tied")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "output.weight" not in {t.name for t in converted(folder, tmp_path / "m.gguf").tensors}


def test_of_a_gemma_with_eyes_the_language_model_is_converted(
    model: Callable[[str], Path], altered: Callable[..., Path], tmp_path: Path
) -> None:
    def seeing(config: dict[str, Any]) -> None:
        text = dict(config)
        config.clear()
        config.update(model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"], text_config=text)

    folder = altered("gemma3", "config.json", seeing)
    weights = load_file(folder / "model.safetensors")
    renamed = {f"language_model.{name}": weight for name, weight in weights.items()}
    renamed |= {"vision_tower.x.weight": torch.ones(2, 2), "multi_modal_projector.y": torch.ones(2)}
    (folder / "model.safetensors").unlink()
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert ours.check(folder) == "gemma3"
    converted(folder, tmp_path / "seeing.gguf")
    converted(model("gemma3"), tmp_path / "blind.gguf")
    assert (tmp_path / "seeing.gguf").read_bytes() == (tmp_path / "blind.gguf").read_bytes()
