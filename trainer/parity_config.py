"""What a GGUF file's metadata say of the model's shape and rotation, beside what the model's own config says.

Compared is what came of both: the config that `gguf_reading` made with llama.cpp's defaults, and the rotary
frequencies in the two models, in which base, scaling and factors have all gone in. A wrong epsilon changes logits by
less than a quantisation may, so that no comparison of logits would see it.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainer.gguf_reading import ParityFailed

_SAID = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden width",
    "intermediate_size": "inner width",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key and value heads",
    "head_dim": "width of a head",
    "rms_norm_eps": "epsilon of the norms",
    "max_position_embeddings": "context length",
}
_SAID_BY_GEMMA = {
    "query_pre_attn_scalar": "scale of attention",
    "attn_logit_softcapping": "soft cap on attention",
    "final_logit_softcapping": "soft cap on logits",
    "layer_types": "order of sliding layers",
    "sliding_window": "sliding window",
}


def check(original: nn.Module, made: Any, file: str) -> None:
    """Raise ParityFailed where the two models are not of one shape. `made` is the one of the file."""
    config, found = _config(original), made.config
    gemma = str(found.model_type).startswith("gemma")
    for key, said in {**_SAID, **(_SAID_BY_GEMMA if gemma else {})}.items():
        wanted, got = _value(config, key), _value(found, key)
        if key == "sliding_window" and "sliding_attention" not in config.layer_types:
            continue
        if not _same(wanted, got):
            raise ParityFailed(f"{file} gives {_told(got)} as the {said}, the model has {_told(wanted)}")
    ours, theirs = dict(_rotations(original)), dict(_rotations(made))
    for name, wanted in ours.items():
        got = theirs.get(name)
        if got is None or wanted.shape != got.shape or not torch.allclose(wanted, got, rtol=1e-4, atol=0.0):
            raise ParityFailed(f"{file} rotates positions otherwise than the model: its rope base or scaling is wrong")


def _config(model: Any) -> Any:
    """The config of the text model; of an adapted model, its base's."""
    config = (model.get_base_model() if hasattr(model, "get_base_model") else model).config
    return config.get_text_config()


def _value(config: Any, key: str) -> Any:
    value = getattr(config, key, None)
    if value is None and key == "head_dim":
        return config.hidden_size // config.num_attention_heads
    if value is None and key == "num_key_value_heads":
        return config.num_attention_heads
    return value


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, float) and isinstance(got, (int, float)):
        return math.isclose(wanted, got, rel_tol=1e-5)  # GGUF holds them in float32
    return bool(wanted == got)


def _told(value: Any) -> str:
    if isinstance(value, list):
        return f"{value.count('sliding_attention')} sliding of {len(value)}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rotations(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Frequencies by which positions turn queries and keys, and the scale that comes with them."""
    for name, module in model.named_modules():
        if not name.endswith(".rotary_emb") or "vision" in name:
            continue
        for key, buffer in module.named_buffers(recurse=False):
            if key.endswith("inv_freq") and "original" not in key:
                scale = getattr(module, key.replace("inv_freq", "attention_scaling"), 1.0)
                yield key, buffer.float() * float(scale)
