"""A model folder of transformers as a GGUF file that llama.cpp and Ollama load.

Only what is known to come out right is converted: the architectures of `gguf_config`, the tokenizers of
`gguf_tokenizer`, and tensors that are all accounted for. Everything else is refused with the way out.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import gguf

from trainer import gguf_config, gguf_tokenizer, gguf_weights
from trainer.contract import BadSpec
from trainer.gguf_config import Facts
from trainer.gguf_tokenizer import Vocabulary
from trainer.gguf_weights import Wanted
from trainer.shards import Stored

Written = Literal["f32", "f16", "bf16", "Q8_0"]

_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_MODELS = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
EMBEDDINGS, HEAD, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"
_BLOCK = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_POST_NORMS = ("post_attention_norm", "post_ffw_norm")
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_MORE = {"qwen3": _HEAD_NORMS, "gemma2": _POST_NORMS, "gemma3": (*_POST_NORMS, *_HEAD_NORMS)}
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
_SEEING = ("vision_tower.", "multi_modal_projector.")  # of Gemma 3 with eyes: only its language model is converted
_ROTATED = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)")


def convert(model: Path, out: Path, *, quantisation: Written, pulse: Callable[[], None]) -> str:
    """Write the model in the folder `model` to `out`, and give its architecture's name in GGUF.

    Tensors pass through memory a few megabytes at a time; `pulse` is called after each piece and may raise to stop.
    `out` is there whole or not at all. Raises BadSpec, naming what is not understood and the way out.
    """
    facts, tensors, vocabulary = _read(model, quantisation)
    rows = len(vocabulary.tokens)
    pulse()
    writer = gguf.GGUFWriter(None, facts.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    gguf_config.write(facts, writer, rows)
    gguf_tokenizer.write(vocabulary, writer)
    writer.add_file_type(_FILE_TYPES[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_weights.write(writer, out, tensors, pulse)
    return facts.architecture


def check(model: Path) -> str:
    """The architecture's name in GGUF, before any work is done. Raises BadSpec as `convert` would, but for values."""
    return _read(model, "f16")[0].architecture


def _read(model: Path, quantisation: Written) -> tuple[Facts, list[Wanted], Vocabulary]:
    facts = gguf_config.read(model)
    tensors = planned(facts, gguf_weights.stored_tensors(model), quantisation)
    rows = next(tensor.shape[0] for tensor in tensors if tensor.name == EMBEDDINGS)
    return facts, tensors, gguf_tokenizer.read(model, rows)


def planned(facts: Facts, stored: Mapping[str, Stored], quantisation: Written) -> list[Wanted]:
    """All tensors of the file, in the file's order. Raises BadSpec where one is unknown, missing or misshapen."""
    names = name_map(facts)
    tensors: dict[str, Wanted] = {}
    for source, entry in stored.items():
        name = names(source)
        if name is None or (name == HEAD and facts.tied):
            continue
        if name in tensors:
            raise BadSpec(f"two tensors of the model are {name}: {source} is one too many")
        norm = name.endswith("_norm.weight")
        tensors[name] = Wanted(
            name,
            gguf_weights.kind_for(quantisation, name, entry.shape),
            entry.shape,
            entry,
            heads=rotated_heads(facts, name),
            shift=facts.norm_shift if norm else 0.0,
        )
    factors = gguf_config.rope_factors(facts)
    if factors is not None:
        kind = gguf.GGMLQuantizationType.F32
        tensors[FREQUENCIES] = Wanted(FREQUENCIES, kind, tuple(factors.shape), made=factors)
    _check(facts, tensors)
    return sorted(tensors.values(), key=_order)


def name_map(facts: Facts) -> Callable[[str], str | None]:
    """From a tensor's name in transformers to GGUF's; None for what llama.cpp has no use for. Raises BadSpec."""
    known = gguf.get_tensor_name_map(_MODELS[facts.architecture], facts.blocks)

    def name_of(source: str) -> str | None:
        plain = source.removeprefix("model.").removeprefix("language_model.")
        if plain.startswith(_SEEING) or source.endswith(_BUFFERS):
            return None
        plain = plain.removeprefix("model.")
        found = known.get_name(plain if plain.startswith("lm_head.") else f"model.{plain}", (".weight", ".bias"))
        if found is None:
            raise BadSpec(
                f"the tensor {source} has no place in llama.cpp's {facts.architecture}: {gguf_config.WAY_OUT}"
            )
        return str(found)

    return name_of


def rotated_heads(facts: Facts, name: str) -> int:
    """Heads whose rows llama.cpp wants in pairs, of this tensor: 0 for all but queries and keys of Llama."""
    match = _ROTATED.fullmatch(name)
    if match is None or not facts.paired:
        return 0
    return facts.heads if match[1] == "q" else facts.kv_heads


def shapes(facts: Facts) -> dict[str, tuple[int, ...]]:
    """What llama.cpp asks of the matrices of each block, by the name below `blk.<n>.`: [out, in]."""
    queries, keys = facts.heads * facts.head_width, facts.kv_heads * facts.head_width
    return {
        "attn_q": (queries, facts.hidden),
        "attn_k": (keys, facts.hidden),
        "attn_v": (keys, facts.hidden),
        "attn_output": (facts.hidden, queries),
        "ffn_gate": (facts.inner, facts.hidden),
        "ffn_up": (facts.inner, facts.hidden),
        "ffn_down": (facts.hidden, facts.inner),
    }


def _check(facts: Facts, tensors: Mapping[str, Wanted]) -> None:
    wanted: dict[str, tuple[int, ...] | None] = {EMBEDDINGS: None, "output_norm.weight": (facts.hidden,)}
    if not facts.tied:
        wanted[HEAD] = None
    matrices = shapes(facts)
    for block in range(facts.blocks):
        for part in (*_BLOCK, *_MORE.get(facts.architecture, ())):
            wanted[f"blk.{block}.{part}.weight"] = matrices.get(part)
    for name, shape in wanted.items():
        if name not in tensors:
            raise BadSpec(f"the model holds no tensor for {name}: its folder is not complete")
        found = tensors[name].shape
        if shape is not None and found != shape:
            raise BadSpec(f"{name} has the shape {list(found)}, but config.json says {list(shape)}")


def _order(tensor: Wanted) -> tuple[int, int, str]:
    """The embeddings first, then block by block, as llama.cpp reads them."""
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    if match:
        return 1, int(match[1]), tensor.name
    return (0 if tensor.name == EMBEDDINGS else 2), 0, tensor.name
