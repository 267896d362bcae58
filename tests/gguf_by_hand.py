"""What a GGUF file of a tiny model must hold, computed a second time and in another way than `trainer.gguf` does."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from trainer import gguf as ours

LLAMA = {"llama2", "llama3", "mistral", "mistral_tekken"}  # whose queries and keys change their rows


def quiet() -> None:
    """A pulse that lets everything go on."""


def converted(folder: Path, out: Path, quantisation: Any = "f16") -> gguf.GGUFReader:
    ours.convert(folder, out, quantisation=quantisation, pulse=quiet)
    return gguf.GGUFReader(out)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def paired_by_hand(weight: torch.Tensor, heads: int) -> torch.Tensor:
    width = weight.shape[0] // heads
    rows = []
    for head in range(heads):
        for index in range(width // 2):
            rows += [head * width + index, head * width + width // 2 + index]
    return weight[rows]


def expected_bytes(weight: torch.Tensor, quantisation: str, vector: bool) -> bytes:
    exact = weight.float().numpy()
    if vector or quantisation == "f32":
        return exact.tobytes()
    if quantisation == "f16":
        return exact.astype(np.float16).tobytes()
    kind = gguf.GGMLQuantizationType.BF16 if quantisation == "bf16" else gguf.GGMLQuantizationType.Q8_0
    return bytes(gguf.quants.quantize(exact, kind).tobytes())


PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
}  # fmt: skip
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def gguf_name(family: str, name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, block, *part, last = name.split(".")
    norms = GEMMA_NORMS if family.startswith("gemma") else NORMS
    return f"blk.{block}.{(PARTS | norms)['.'.join(part)]}.{last}"
