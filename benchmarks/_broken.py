"""GGUF files that are broken on purpose, each in one way that a converter could get wrong.

The leading underscore keeps `make bench` from running this file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

Values = dict[str, Any]
Tensors = dict[str, Any]
Fault = Callable[[Values, Tensors], bool]  # changes them; False where the file has nothing of the kind


def rewrite(source: Path, out: Path, fault: Fault) -> bool:
    """Write `source` anew with this fault. False, and no file, where it has nothing that could be broken so."""
    reader = GGUFReader(source)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    values: Values = {key: field.contents() for key, field in fields.items()}
    tensors: Tensors = {tensor.name: tensor for tensor in reader.tensors}
    if not fault(values, tensors):
        return False
    writer = GGUFWriter(out, str(values.pop("general.architecture")))
    for key, value in values.items():
        kinds = fields[key].types if key in fields else [_kind(value)]
        if kinds[0] == GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kinds[0], sub_type=kinds[-1])
        else:
            writer.add_key_value(key, value, kinds[0])
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return True


def _kind(value: Any) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    return GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.STRING


def _key(values: Values, end: str) -> str:
    return f"{values['general.architecture']}.{end}"


def _without(key: str) -> Fault:
    """Leave out a key of the architecture's own, or one of the tokenizer."""

    def fault(values: Values, _tensors: Tensors) -> bool:
        full = key if key.startswith("tokenizer.") else _key(values, key)
        return values.pop(full, None) is not None

    return fault


def _wrong_pre(values: Values, _tensors: Tensors) -> bool:
    if values["tokenizer.ggml.model"] != "gpt2":
        return False
    key = "tokenizer.ggml.pre"
    values[key] = "qwen2" if values[key] == "llama-bpe" else "llama-bpe"
    return True


def _no_rope_base(values: Values, _tensors: Tensors) -> bool:
    return bool(values.pop(_key(values, "rope.freq_base"), 10_000.0) != 10_000.0)  # llama.cpp's own


def _wrong_end(values: Values, _tensors: Tensors) -> bool:
    """The first special token instead, as a base model's end-of-text is not the end of a turn."""
    ends = {values.pop("tokenizer.ggml.eot_token_id", None), values["tokenizer.ggml.eos_token_id"]}
    types = values["tokenizer.ggml.token_type"]
    values["tokenizer.ggml.eos_token_id"] = next(n for n, kind in enumerate(types) if kind == 3 and n not in ends)
    return True


def _swap(first: str, second: str) -> Fault:
    def fault(_values: Values, tensors: Tensors) -> bool:
        if first not in tensors or second not in tensors:
            return False
        tensors[first], tensors[second] = tensors[second], tensors[first]
        return True

    return fault


def _all_normal(values: Values, _tensors: Tensors) -> bool:
    """No token is special any more."""
    key = "tokenizer.ggml.token_type"
    values[key] = [1 if kind in (3, 4) else kind for kind in values[key]]
    return True


def _one_user_defined(values: Values, _tensors: Tensors) -> bool:
    """A special token that any text may now hold."""
    types = values["tokenizer.ggml.token_type"]
    types[types.index(3)] = 4
    return True


def _wrong_epsilon(values: Values, _tensors: Tensors) -> bool:
    values[_key(values, "attention.layer_norm_rms_epsilon")] *= 10
    return True


def _wrong_heads(values: Values, _tensors: Tensors) -> bool:
    """Twice the heads, half as wide: every tensor still fits."""
    for key in ("attention.head_count", "attention.head_count_kv"):
        values[_key(values, key)] *= 2
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if _key(values, key) in values:
            values[_key(values, key)] //= 2
    return True


def _not_paired(values: Values, tensors: Tensors) -> bool:
    """Llama's queries in another order of rows."""
    name = "blk.0.attn_q.weight"
    if values["general.architecture"] != "llama":
        return False
    data = np.array(tensors[name].data)
    turned = data.reshape(2, -1, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
    tensors[name] = tensors[name]._replace(data=turned)
    return True


def _norm_without_one(values: Values, tensors: Tensors) -> bool:
    if not values["general.architecture"].startswith("gemma"):
        return False
    name = "blk.0.attn_norm.weight"
    tensors[name] = tensors[name]._replace(data=np.array(tensors[name].data) - np.float32(1.0))
    return True


def _no_window(values: Values, _tensors: Tensors) -> bool:
    return values.pop(_key(values, "attention.sliding_window"), None) is not None


def _bos_turned(values: Values, _tensors: Tensors) -> bool:
    values["tokenizer.ggml.add_bos_token"] = not values["tokenizer.ggml.add_bos_token"]
    return True


def _space_turned(values: Values, _tensors: Tensors) -> bool:
    key = "tokenizer.ggml.add_space_prefix"
    if key not in values:
        return False
    values[key] = not values[key]
    return True


def _other_template(values: Values, _tensors: Tensors) -> bool:
    values["tokenizer.chat_template"] = values["tokenizer.chat_template"].replace("user", "human", 1) + " "
    return True


FAULTS: dict[str, Fault] = {
    "wrong pre-tokenizer": _wrong_pre,
    "missing pre-tokenizer": lambda v, t: v["tokenizer.ggml.model"] == "gpt2" and _without("tokenizer.ggml.pre")(v, t),
    "missing merges": _without("tokenizer.ggml.merges"),
    "missing scores": _without("tokenizer.ggml.scores"),
    "missing token types": _without("tokenizer.ggml.token_type"),
    "wrong token types": _all_normal,
    "one wrong token type": _one_user_defined,
    "wrong end token": _wrong_end,
    "begins otherwise": _bos_turned,
    "wrong space prefix": _space_turned,
    "missing chat template": _without("tokenizer.chat_template"),
    "wrong chat template": _other_template,
    "missing rope base": _no_rope_base,
    "missing rope factors": lambda _v, t: t.pop("rope_freqs.weight", None) is not None,
    "missing rope scaling": _without("rope.scaling.factor"),
    "wrong epsilon": _wrong_epsilon,
    "wrong head counts": _wrong_heads,
    "missing head_count_kv": _without("attention.head_count_kv"),
    "missing sliding window": _no_window,
    "swapped layers": _swap("blk.0.attn_v.weight", "blk.1.attn_v.weight"),
    "swapped gate and up": _swap("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
    "swapped norms": _swap("blk.0.attn_norm.weight", "blk.1.attn_norm.weight"),
    "missing bias": lambda _v, t: t.pop("blk.1.attn_k.bias", None) is not None,
    "queries not paired": _not_paired,
    "norm without one": _norm_without_one,
}
