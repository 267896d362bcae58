"""What a PEFT adapter folder adds to each tensor of its base model, without a model in memory.

Formulas are PEFT's (`peft.tuners.lora.layer`): W + scale * B A, where scale is alpha / r, with rank-stabilised LoRA
alpha / sqrt(r). What is not understood is refused by its name: a merge that leaves something out would be a model
that nobody trained.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import names
from trainer.contract import BadSpec, Weights
from trainer.shards import Room, Stored, read_tensor, tensors_in
from trainer.skeleton import Skeleton

_PREFIX = "base_model.model."
_READ = {
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "modules_to_save", "peft_type", "r",
    "rank_pattern", "use_rslora",
}  # fmt: skip
# Which layers were adapted the tensors tell themselves; the others matter to training alone, or to what is refused.
_OF_NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's own weights
_AT_ONCE = 1 << 20  # numbers; the sum is reckoned in float32, in memory that should stay small
_ADAPTED = re.compile(r"(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B))")


@dataclass(frozen=True, slots=True)
class Delta:
    """scale * B A, to be added to a weight; `embedding`: A and B are those of a table of rows, [r, rows] and
    [width, r]; `transposed`: the weight is kept as [in, out]."""

    a: Stored
    b: Stored
    scale: float
    embedding: bool
    transposed: bool

    def add_to(self, weight: Tensor, room: Room) -> None:
        """Add it in place, with the very rounding that PEFT's `merge_and_unload` does: the product in float32, and
        one rounding to the weight's number format (a table of rows: two)."""
        b, a = read_tensor(self.b).float(), read_tensor(self.a).float()
        exact = abs(math.frexp(self.scale)[0]) == 0.5  # a power of two rounds nothing: let the smaller factor have it
        if exact:
            b *= self.scale
        product = torch.mm(b, a, out=room.take("product", (b.shape[0], a.shape[1]), torch.float32))
        if self.embedding or self.transposed:
            product = product.t()
        rows = max(1, _AT_ONCE // max(1, weight.shape[-1]))
        for begin in range(0, weight.shape[0], rows):
            part = product[begin : begin + rows]
            if not exact:
                part.mul_(self.scale)
            if self.embedding:
                part = part.to(weight.dtype)
            summed = weight[begin : begin + rows]
            whole = room.take("whole", tuple(summed.shape), torch.float32).copy_(summed)
            summed.copy_(whole.add_(part))


@dataclass(frozen=True, slots=True)
class Changes:
    """By names of the base's tensors: what takes the place of one, and what is added to one."""

    replaced: dict[str, Stored]
    added: dict[str, Delta]


def changes_of(
    checkpoint: Path, weights: Weights, skeleton: Skeleton, shapes: Mapping[str, tuple[int, ...]]
) -> Changes:
    """All that the adapter in `checkpoint` changes, by the names in `shapes`, the base's tensors.

    Raises BadSpec for what is not understood, and for any tensor that would go unused.
    """
    config = _read_config(checkpoint)
    replaced: dict[str, Stored] = {}
    halves: dict[str, dict[str, Stored]] = {}
    for name, stored in _tensors(checkpoint, weights).items():
        inner = name.removeprefix(_PREFIX)
        if inner == name or ".lora_magnitude_vector" in name:
            raise BadSpec(f"the adapter's tensor {name} is not understood: this version cannot merge it")
        adapted = _ADAPTED.fullmatch(inner)
        if adapted is not None:
            halves.setdefault(adapted[1], {})[adapted[2] or f"embedding_{adapted[3]}"] = stored
            continue
        target = inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        module = target.rpartition(".")[0]
        if not (module in skeleton.ends or ".base_layer." in name or _was_trained(target, module, config)):
            raise BadSpec(f"the adapter's tensor {name} is not understood: this version cannot merge it")
        if target not in shapes:
            raise BadSpec(f"the adapter's tensor {name} has no counterpart in the base model")
        if stored.shape != shapes[target]:
            raise BadSpec(f"the adapter's tensor {name} has another shape than the base model's {target}")
        replaced[target] = stored
    added = {f"{module}.weight": _delta(module, pair, config, skeleton, shapes) for module, pair in halves.items()}
    return Changes(replaced, added)


def _read_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / names.ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSpec(f"{path} cannot be read") from error
    if kind != "LORA":
        raise BadSpec(f"the adapter in {checkpoint.name} is of kind {kind}: only LORA can be merged")
    if config.get("use_dora"):
        raise BadSpec(f"the adapter in {checkpoint.name} is a DoRA adapter (use_dora): this version cannot merge it")
    if config.get("init_lora_weights", True) not in _HARMLESS_STARTS:
        start = config["init_lora_weights"]
        raise BadSpec(f"the adapter in {checkpoint.name} began from changed base weights (init_lora_weights {start})")
    for key, value in config.items():
        if value and key not in _READ | _OF_NO_MATTER:
            raise BadSpec(f"the adapter in {checkpoint.name} sets {key}: this version cannot merge that")
    return config


def _tensors(checkpoint: Path, weights: Weights) -> dict[str, Stored]:
    """The adapter's tensors; of the running mean, those that were trained, and the others as they are."""
    found = tensors_in(checkpoint / names.ADAPTER_WEIGHTS)
    if weights == "raw":
        return found
    mean = tensors_in(checkpoint / names.EMA)
    trained = {name: one.shape for name, one in found.items() if ".lora_" in name}
    if {name: one.shape for name, one in mean.items()} != trained:
        raise BadSpec(f"the running mean in {checkpoint.name} belongs to other weights")
    return {**found, **mean}


def _was_trained(target: str, module: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor was trained whole, as the adapter's config says: a bias, or a module to save."""
    if target.endswith(".bias") and config.get("bias", "none") != "none":
        return True
    parts = module.split(".")
    above = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return any(name.endswith(wanted) for wanted in config.get("modules_to_save") or () for name in above)


def _delta(
    module: str,
    pair: Mapping[str, Stored],
    config: Mapping[str, Any],
    skeleton: Skeleton,
    shapes: Mapping[str, tuple[int, ...]],
) -> Delta:
    kind = skeleton.kinds.get(module)
    embedding = kind == "embedding"
    wanted = {"embedding_A", "embedding_B"} if embedding else {"A", "B"}
    if kind is None or f"{module}.weight" not in shapes:
        raise BadSpec(f"the adapter changes {module}, which is no layer of the base model that can be merged into")
    if set(pair) != wanted:
        raise BadSpec(f"the adapter's tensors of {module} are not understood: this version cannot merge them")
    a, b = (pair[half] for half in sorted(wanted))
    rank = _of_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _of_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    transposed = kind == "conv1d"
    made = (b.shape[0], a.shape[-1])
    if embedding or transposed:
        made = (made[1], made[0])
    if len(a.shape) != 2 or a.shape[0] != rank or b.shape[-1] != rank or made != shapes[f"{module}.weight"]:
        raise BadSpec(f"the adapter's tensors of {module} do not fit its rank {rank} or the base model")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Delta(a, b, scale, embedding, transposed)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The first pattern that fits the end of a module's name, as PEFT reads them."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return usual
