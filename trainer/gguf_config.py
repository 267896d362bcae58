"""What llama.cpp has to know of a model beside its tensors, out of the config that transformers reads.

What llama.cpp has fixed for an architecture and no metadata can say otherwise (its src/models/*.cpp: activation,
attention scale, the pattern of sliding layers) is compared, and what differs refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig

from trainer.contract import BadSpec

_ARCHITECTURES = {
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "llama": "llama",
    "mistral": "llama",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
_CLASSES = ("ForCausalLM", "ForConditionalGeneration")
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}  # where llama.cpp scales attention by the width of a slice
_SLIDING_PERIOD = {"gemma2": 2, "gemma3": 6}  # the last layer of each period attends to everything
_ROPE_TYPES = ("default", "linear", "yarn", "llama3")
_DEFAULT_LOCAL_BASE = 10_000.0

WAY_OUT = (
    "serve its model folder with another server ([serve] command), or convert the folder with llama.cpp's own "
    "convert_hf_to_gguf.py"
)


@dataclass(frozen=True)
class Facts:
    """A model as llama.cpp sees it. Widths in values, `context` in tokens; `window`: None without sliding layers."""

    architecture: str
    blocks: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    context: int
    epsilon: float
    rope: Mapping[str, Any]
    local_rope_base: float | None
    window: int | None
    attention_cap: float | None
    output_cap: float | None
    tied: bool

    @property
    def paired(self) -> bool:
        """Whether llama.cpp rotates neighbouring values, so that rows of queries and keys change places."""
        return self.architecture == "llama"

    @property
    def norm_shift(self) -> float:
        """What is added to norm weights: Gemma multiplies by one plus the weight."""
        return 1.0 if self.architecture.startswith("gemma") else 0.0


def read(folder: Path) -> Facts:
    """The facts of the model in `folder`. Raises BadSpec, with the architecture and the way out."""
    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, StrictDataclassError) as error:
        line = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadSpec(f"config.json in {folder} cannot be read: {line}") from error
    kind = str(whole.model_type)
    classes = [str(name) for name in (getattr(whole, "architectures", None) or [])]
    if kind not in _ARCHITECTURES or (classes and not classes[0].endswith(_CLASSES)):
        named = classes[0] if classes else kind
        known = ", ".join(sorted(set(_ARCHITECTURES) - {"gemma3_text"}))
        raise BadSpec(f"the architecture {named} cannot be written as GGUF (engramd knows {known}): {WAY_OUT}")
    if getattr(whole, "quantization_config", None):
        raise BadSpec(f"the weights in {folder} are quantised: take the unquantised model, GGUF is made of it")
    config = whole.get_text_config(decoder=True)
    facts = _facts(_ARCHITECTURES[kind], config)
    _check(facts, config)
    return facts


def _facts(architecture: str, config: Any) -> Facts:
    rope = dict(config.rope_parameters or {})
    local = rope.get("sliding_attention")
    if "full_attention" in rope:
        rope = dict(rope["full_attention"])
    gemma = architecture.startswith("gemma")
    sliding = _sliding_layers(config)
    window = config.sliding_window if sliding and getattr(config, "sliding_window", None) else None
    context = int(config.max_position_embeddings)
    if window is not None and not gemma:  # llama.cpp attends to everything here: alike up to the window only
        context, window = min(context, int(window)), None
    heads = int(config.num_attention_heads)
    return Facts(
        architecture=architecture,
        blocks=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        inner=int(config.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        context=context,
        epsilon=float(config.rms_norm_eps),
        rope=rope,
        local_rope_base=_local_base(local) if architecture == "gemma3" else None,
        window=int(window) if window is not None else None,
        attention_cap=getattr(config, "attn_logit_softcapping", None),
        output_cap=getattr(config, "final_logit_softcapping", None),
        tied=bool(config.tie_word_embeddings),
    )


def _sliding_layers(config: Any) -> bool:
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return bool(getattr(config, "sliding_window", None))  # Mistral's slides everywhere
    return "sliding_attention" in layers


def _local_base(local: Mapping[str, Any] | None) -> float:
    if local is not None and local.get("rope_type", "default") != "default":
        raise BadSpec(f"sliding layers with {local['rope_type']} rope scaling cannot be written as GGUF: {WAY_OUT}")
    return float((local or {}).get("rope_theta", _DEFAULT_LOCAL_BASE))


def _check(facts: Facts, config: Any) -> None:
    """Refuse what llama.cpp would silently compute in another way."""
    architecture = facts.architecture
    gemma = architecture.startswith("gemma")
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    differs: list[str] = []
    if activation != ("gelu_pytorch_tanh" if gemma else "silu"):
        differs.append(f"the activation {activation}")
    if architecture in ("qwen3", "gemma2", "gemma3") and getattr(config, "attention_bias", False):
        differs.append("biases in its attention")
    if getattr(config, "use_bidirectional_attention", None):
        differs.append("bidirectional attention")
    if (kind := facts.rope.get("rope_type", "default")) not in _ROPE_TYPES:
        differs.append(f"{kind} rope scaling")
    if float(facts.rope.get("partial_rotary_factor") or 1.0) != 1.0:
        differs.append("heads that are rotated in part")
    if "rope_theta" not in facts.rope:
        differs.append("no rope base (rope_theta)")
    if kind == "yarn" and not _plain_yarn(facts.rope):
        differs.append("a scale of its own in YaRN")
    if kind == "llama3" and architecture != "llama":
        differs.append("llama3 rope scaling outside Llama")
    if gemma:
        differs += _gemma(facts, config)
    if differs:
        raise BadSpec(f"llama.cpp's {architecture} does not know {differs[0]}, which this model has: {WAY_OUT}")


def _plain_yarn(rope: Mapping[str, Any]) -> bool:
    """Whether the attention factor is the one that llama.cpp computes itself: 1 + 0.1 ln(factor)."""
    if rope.get("mscale") or rope.get("mscale_all_dim") or rope.get("truncate") is False:
        return False
    given = rope.get("attention_factor")
    return given is None or math.isclose(given, 1.0 + 0.1 * math.log(rope["factor"]), rel_tol=1e-6)


def _gemma(facts: Facts, config: Any) -> list[str]:
    architecture, differs = facts.architecture, []
    wide = facts.blocks == _GEMMA_27B_LAYERS[architecture]
    scale = facts.hidden // facts.heads if wide else facts.head_width
    if config.query_pre_attn_scalar != scale:
        differs.append(f"query_pre_attn_scalar {config.query_pre_attn_scalar} (only {scale} here)")
    if architecture == "gemma2" and (facts.attention_cap is None or facts.output_cap is None):
        differs.append("a Gemma 2 without soft caps")
    if architecture == "gemma3" and facts.attention_cap is not None:
        differs.append("a soft cap on attention")
    if architecture == "gemma2" and not facts.tied:
        differs.append("a head of its own beside the embeddings")
    period = _SLIDING_PERIOD[architecture]
    usual = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(facts.blocks)]
    if facts.window is None and architecture == "gemma2":
        differs.append("a Gemma 2 without sliding layers")
    if facts.window is not None and list(config.layer_types) != usual:
        differs.append("this order of sliding and full layers")
    return differs


def write(facts: Facts, writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """The metadata below the architecture's name; `vocabulary` is the number of tokens with their padding."""
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(facts.context)
    writer.add_embedding_length(facts.hidden)
    writer.add_block_count(facts.blocks)
    writer.add_feed_forward_length(facts.inner)
    writer.add_head_count(facts.heads)
    writer.add_head_count_kv(facts.kv_heads)
    writer.add_key_length(facts.head_width)
    writer.add_value_length(facts.head_width)
    writer.add_layer_norm_rms_eps(facts.epsilon)
    writer.add_rope_freq_base(float(facts.rope["rope_theta"]))
    if facts.architecture == "llama":
        writer.add_rope_dimension_count(facts.head_width)
    if facts.window is not None:
        writer.add_sliding_window(facts.window)
        if facts.local_rope_base is not None:
            writer.add_rope_freq_base_swa(facts.local_rope_base)
    if facts.attention_cap is not None:
        writer.add_attn_logit_softcapping(facts.attention_cap)
    if facts.output_cap is not None:
        writer.add_final_logit_softcapping(facts.output_cap)
    _write_scaling(facts.rope, writer, facts.context)


def _write_scaling(rope: Mapping[str, Any], writer: gguf.GGUFWriter, context: int) -> None:
    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR if kind == "linear" else gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope.get("original_max_position_embeddings") or context))
        if rope.get("beta_fast") is not None:
            writer.add_rope_scaling_yarn_beta_fast(float(rope["beta_fast"]))
        if rope.get("beta_slow") is not None:
            writer.add_rope_scaling_yarn_beta_slow(float(rope["beta_slow"]))


def rope_factors(facts: Facts) -> Tensor | None:
    """By what each frequency of Llama 3's scaled rope is divided, float32 [head_width / 2]; None where it is not used.

    Wavelengths below the old context's `high` part stay, those beyond its `low` part are stretched by `factor`, and
    between the two the share is linear (transformers, modeling_rope_utils).
    """
    rope = facts.rope
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    old = float(rope["original_max_position_embeddings"])
    steps = torch.arange(0, facts.head_width, 2, dtype=torch.float32) / facts.head_width
    lengths = 2 * math.pi / (1.0 / (float(rope["rope_theta"]) ** steps))
    smooth = (old / lengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    long = torch.where(lengths > old / low, torch.tensor(factor), between)
    return torch.where(lengths < old / high, torch.tensor(1.0), long)
