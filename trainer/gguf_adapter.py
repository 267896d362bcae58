"""A LoRA adapter of PEFT as a GGUF adapter, which llama.cpp and Ollama put on top of a base model's GGUF.

llama.cpp adds alpha / rank * B A x with one alpha for the file and each tensor's own rank (src/llama-adapter.h). Where
PEFT's scale is another one (patterns, rank-stabilised), the difference is multiplied into B.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
from gguf import GGMLQuantizationType as Kind

from trainer import gguf as model_gguf
from trainer import gguf_config, gguf_weights, names
from trainer.contract import BadSpec
from trainer.gguf_config import Facts
from trainer.gguf_weights import Wanted
from trainer.shards import Stored

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_MERGE = "export the merged model instead"
# Settings of PEFT that are understood here, and those that matter to training alone; any other one is refused.
_READ = {
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora",
}  # fmt: skip
_OF_NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base's own weights


def convert(
    adapter: Path, base: Path, out: Path, *, weights: Literal["raw", "ema"] = "raw", pulse: Callable[[], None]
) -> None:
    """Write the adapter in the folder `adapter`, made for the model in `base`, to `out`, in float32.

    `ema` takes the running mean that lies in the adapter's folder. Raises BadSpec, naming the setting or the tensor,
    where anything of the adapter would be lost.
    """
    config = _config(adapter)
    facts = gguf_config.read(base)
    source = adapter / (names.EMA if weights == "ema" else names.ADAPTER_WEIGHTS)
    if not source.is_file():
        raise BadSpec(f"{adapter} holds no {source.name}" + (": use the raw weights" if weights == "ema" else ""))
    pairs = _pairs(gguf_weights.stored_in(source), facts)
    wished = {module: _strength(config, module, a, b) for module, (_, a, b) in pairs.items()}
    alpha = Counter(wished.values()).most_common(1)[0][0]
    tensors: list[Wanted] = []
    for module, (name, a, b) in pairs.items():
        heads, scale = model_gguf.rotated_heads(facts, name), wished[module] / alpha
        tensors.append(Wanted(f"{name}.lora_a", Kind.F32, a.shape, a))
        tensors.append(Wanted(f"{name}.lora_b", Kind.F32, b.shape, b, heads=heads, scale=scale))
    writer = gguf.GGUFWriter(None, facts.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_weights.write(writer, out, tensors, pulse)


def _config(adapter: Path) -> dict[str, Any]:
    """The adapter's settings. Raises BadSpec where they ask for more than plain LoRA."""
    path = adapter / names.ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadSpec(f"{path} cannot be read: {error}") from error
    if config.get("peft_type") != "LORA":
        raise BadSpec(f"the adapter in {adapter} is of kind {config.get('peft_type')}: only LORA can be exported")
    if config.get("bias", "none") != "none":
        raise BadSpec(f"the adapter trains biases (bias: {config['bias']}), which GGUF adapters cannot say: {_MERGE}")
    if (start := config.get("init_lora_weights", True)) not in _HARMLESS_STARTS:
        raise BadSpec(f"the adapter began with {start} (init_lora_weights), which changes the base's weights: {_MERGE}")
    for key, value in config.items():
        if value and key not in _READ | _OF_NO_MATTER:
            raise BadSpec(f"the adapter uses {key}, which GGUF adapters cannot say: {_MERGE}")
    return dict(config)


def _pairs(stored: Mapping[str, Stored], facts: Facts) -> dict[str, tuple[str, Stored, Stored]]:
    """By module, as the model calls it: the tensor's name in GGUF, A [rank, in] and B [out, rank]. Raises BadSpec."""
    names_of, shapes = model_gguf.name_map(facts), model_gguf.shapes(facts)
    pairs: dict[str, tuple[str, Stored, Stored]] = {}
    for name, a in sorted(stored.items()):
        if name.endswith(_A) and name.removesuffix(_A) + _B in stored:
            module = name.removeprefix(_PREFIX).removesuffix(_A)
            target = names_of(f"{module}.weight")
            if target is None or (target == model_gguf.HEAD and facts.tied):
                raise BadSpec(f"the adapter changes {module}, which has no weight of its own in GGUF: {_MERGE}")
            pairs[module] = (target, a, stored[name.removesuffix(_A) + _B])
    used = {f"{_PREFIX}{module}{side}" for module in pairs for side in (_A, _B)}
    unused = sorted(stored.keys() - used)
    if unused or not pairs:
        raise BadSpec(f"the adapter's tensor {unused[0] if unused else '(none)'} is no half of a LoRA pair: {_MERGE}")
    for module, (target, a, b) in pairs.items():
        shape = shapes.get(target.removesuffix(".weight").rpartition(".")[2])
        fits = shape is None or (b.shape[0], a.shape[-1]) == shape
        if not fits or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise BadSpec(f"the adapter's {module} does not fit the model below it: {list(a.shape)}, {list(b.shape)}")
    return pairs


def _strength(config: Mapping[str, Any], module: str, a: Stored, b: Stored) -> float:
    """The alpha that a file with plain scaling would need for this module: PEFT's scale times the rank."""
    rank = int(_of_pattern(config.get("rank_pattern"), module, config["r"]))
    alpha = float(_of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    if rank != a.shape[0]:
        raise BadSpec(f"the adapter's {module} has rank {a.shape[0]}, but its settings say {rank}")
    if alpha == 0:
        raise BadSpec(f"the adapter's {module} has alpha 0, which llama.cpp takes for no scale at all: {_MERGE}")
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The first pattern that fits the end of a module's name, as PEFT reads them."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return usual
