"""Memory and time of a job before it is begun: by hand-made shapes, against sums done by hand."""

import json
import struct
from pathlib import Path

import pytest

from daemon import estimates
from daemon.estimates import GIB, Device
from daemon.ledger import Database, open_profile
from trainer import base_files
from trainer.contract import TrainingRecipe

H, INNER, LAYERS, HEADS, KEYS, HEAD, WORDS = 5120, 17408, 40, 40, 8, 128, 151_936  # Qwen3 14B


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A base of that shape: config and headers, and no weights behind them."""
    told: dict[str, list[int]] = {"model.embed_tokens.weight": [WORDS, H], "lm_head.weight": [WORDS, H],
                                  "model.norm.weight": [H]}  # fmt: skip
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        told |= {
            f"{name}.self_attn.q_proj.weight": [HEADS * HEAD, H], f"{name}.self_attn.o_proj.weight": [H, HEADS * HEAD],
            f"{name}.self_attn.k_proj.weight": [KEYS * HEAD, H], f"{name}.self_attn.v_proj.weight": [KEYS * HEAD, H],
            f"{name}.mlp.gate_proj.weight": [INNER, H], f"{name}.mlp.up_proj.weight": [INNER, H],
            f"{name}.mlp.down_proj.weight": [H, INNER], f"{name}.input_layernorm.weight": [H],
            f"{name}.post_attention_layernorm.weight": [H],
        }  # fmt: skip
    header = json.dumps({name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
                         for name, shape in told.items()}).encode()  # fmt: skip
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({
        "hidden_size": H, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS, "head_dim": HEAD, "vocab_size": WORDS,
    }))  # fmt: skip
    return folder


def test_a_lora_of_14b_in_four_bits_fits_a_card_of_24_gib(qwen: Path) -> None:
    found = estimates.memory(TrainingRecipe(), qwen, "gpu")
    assert found is not None
    linear = LAYERS * (2 * H * HEADS * HEAD + 2 * H * KEYS * HEAD + 3 * H * INNER)
    assert found.parts["weights"] == int(linear * 4.127 / 8) + (2 * WORDS * H + H + LAYERS * 2 * H) * 2
    rank = TrainingRecipe().lora_rank
    adapter = LAYERS * rank * (2 * (H + HEADS * HEAD) + 2 * (H + KEYS * HEAD) + 3 * (H + INNER))
    assert found.parts["adapter"] == found.parts["gradients"] == adapter * 4
    assert found.parts["optimizer"] == found.evictable == adapter * 2 + adapter // 256 * 8
    assert found.parts["logits"] == 2048 * WORDS * 10
    assert 12 * GIB < found.total < 20 * GIB
    without = estimates.memory(TrainingRecipe(use_gradient_checkpointing=False), qwen, "gpu")
    assert without and without.parts["activations"] > 10 * found.parts["activations"]


def test_a_full_fine_tune_of_14b_does_not_fit_one_card_and_the_sentence_says_so(qwen: Path) -> None:
    recipe = TrainingRecipe(method="full", optimizer="adamw_8bit")
    found = estimates.memory(recipe, qwen, "gpu")
    assert found is not None
    weights = found.parts["weights"] // 2
    assert found.parts["gradients"] == found.parts["compensation"] == 2 * weights
    assert found.parts["one weight in float32"] == WORDS * H * 8
    assert 105 * GIB < found.total < 125 * GIB  # 14.8e9 x (2 + 2 + 2 + 2)
    card = Device("gpu", "a card", 80 * GIB)
    why = estimates.cannot_hold(recipe, qwen, card)
    assert why and why.startswith("training all layers of Qwen/Qwen3-14B takes at least 11") and "80.0 GiB" in why
    paged = recipe.model_copy(update={"optimizer": "paged_adamw_8bit"})
    assert estimates.cannot_hold(paged, qwen, Device("gpu", "a card", 96 * GIB)) is None  # its state may lie elsewhere
    assert estimates.cannot_hold(recipe, qwen, Device("gpu", "nobody knows", None)) is None
    assert estimates.cannot_hold(TrainingRecipe(), qwen, Device("gpu", "small", GIB)) is None  # LoRA has other layouts


def test_optimizers() -> None:
    def size(kind: str, **keys: object) -> int:
        return estimates.moments(TrainingRecipe.model_validate(keys), 256_000, kind)

    assert size("gpu", optimizer="adamw_torch") == 8 * 256_000
    assert size("gpu", optimizer="adamw_8bit") == 2 * 256_000 + 8 * 1000
    assert size("cpu", optimizer="paged_adamw_8bit") == 8 * 256_000
    assert size("gpu", optimizer="adafactor") == 4 * 2560


def test_the_longest_sequence_decides_where_it_is_longer_than_a_micro_batch(qwen: Path) -> None:
    recipe = TrainingRecipe(max_seq_length=8192, micro_batch_tokens=1024)
    one, two = (estimates.memory(recipe, qwen, "gpu", longest) for longest in (512, 4096))
    assert one and two and (one.parts["logits"], two.parts["logits"]) == (1024 * WORDS * 10, 4096 * WORDS * 10)


def test_the_builtin_model_and_a_base_that_cannot_be_read(tmp_path: Path) -> None:
    recipe = TrainingRecipe(base_model="builtin:tiny", dtype="float32", ema_decay=0.9)
    found = estimates.memory(recipe, base_files.resolve("builtin:tiny"), "cpu")
    assert found and found.total < 2 * GIB and found.parts["running mean"] == found.parts["adapter"]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert estimates.memory(recipe, tmp_path, "cpu") is None


def test_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert estimates.device("cpu").kind == "cpu"
    smi = tmp_path / "nvidia-smi"
    for said, expected in (("81559, NVIDIA H100", ("gpu", "NVIDIA H100", 81559 << 20)), ("No devices", ("cpu",))):
        smi.write_text(f"#!/bin/sh\necho '{said}'\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        found = estimates.device()
        assert (found.kind, found.name, found.total)[: len(expected)] == expected
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert estimates.device().kind == "cpu"


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return open_profile(tmp_path / "ledger.db", write=True)


def test_the_speed_is_that_of_the_same_base_and_method(db: Database) -> None:
    recipe = TrainingRecipe(base_model="x")
    assert estimates.speed(db, recipe) is None
    with db.transaction():
        for chain, (base, method) in enumerate((("x", "lora"), ("x", "full"), ("y", "lora")), start=1):
            key = json.dumps({"base_model": base, "method": method})
            db.execute("INSERT INTO chains (id,key_sha256,key,reason,created_at) VALUES (?,'',?,'','')", (chain, key))
        for job in range(1, 20):
            result = json.dumps({"tokens": 1000 * job, "seconds": 10.0})
            db.execute(
                "INSERT INTO jobs (id,kind,state,folder,spec_sha256,chain,steps,samples,created_at,result) "
                "VALUES (?,'finetune','promoted','','',?,1,1,'',?)", (job, 1 + job % 3, result),
            )  # fmt: skip
    assert estimates.speed(db, recipe) == sum(1000 * job for job in (18, 15, 12, 9, 6)) / 50
    assert estimates.speed(db, TrainingRecipe(base_model="x", method="full")) is not None
    assert estimates.speed(db, TrainingRecipe(base_model="y", method="full")) is None
