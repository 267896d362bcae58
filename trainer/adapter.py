"""The LoRA adapter: made, read, and taken apart into tensors with stable names."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer import names
from trainer.contract import BadSpec, TrainingRecipe
from trainer.seeds import derive


def add_adapter(model: PreTrainedModel, recipe: TrainingRecipe, chain_seed: int) -> PeftModel:
    """A fresh adapter on every linear layer but the head; the base is frozen, the adapter float32.

    Its weights depend on the chain's seed alone. B starts at zero, so that nothing changes yet.
    """
    torch.manual_seed(derive(chain_seed, "adapter"))
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    assert isinstance(adapted, PeftModel)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    quicken(adapted, recipe.lora_dropout)
    return adapted


def quicken(model: PeftModel, dropout: float) -> None:
    """Give each adapted layer a forward pass that computes the same with a third less work on a CPU.

    The scale is applied to the few columns between A and B instead of to the layer's output, the sum is
    part of the last product, and dropout draws four values from each random number.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and isinstance(layer.lora_A["default"], nn.Linear):
            drop = CheapDropout(dropout) if dropout > 0 else nn.Identity()
            layer.lora_dropout["default"] = drop
            layer.forward = partial(_adapted, layer, drop)


def _adapted(layer: Any, drop: nn.Module, x: Tensor) -> Tensor:
    """The base layer's output plus scale * B A dropout(x), for x of shape [..., in]."""
    base: Tensor = layer.base_layer(x)
    if layer.disable_adapters:
        return base
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    within = nn.functional.linear(drop(x.to(a.dtype)), a) * layer.scaling["default"]
    flat = base.reshape(-1, base.shape[-1])
    within = within.reshape(-1, within.shape[-1]).to(base.dtype)
    return torch.addmm(flat, within, b.t().to(base.dtype)).reshape(base.shape)


class CheapDropout(nn.Module):
    """Dropout whose mask takes one 64-bit draw for four values; the share is exact to 1/65536."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share
        self._threshold = round(share * 65536) - 32768

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self._share, training=True)
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= self._threshold
        return x * (keep.to(x.dtype) * (1 / (1 - self._share)))


@contextmanager
def without(model: nn.Module) -> Iterator[None]:
    """The base model alone, for a while. PEFT's own way would also touch what is trained."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put a checkpoint's adapter into `model`. Raises BadSpec where the two do not fit."""
    stored = load_file(folder / names.ADAPTER_WEIGHTS)
    wanted = get_peft_model_state_dict(model)
    if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in wanted.items()}:
        raise BadSpec(f"the adapter in {folder.name} was made for another model or another rank")
    set_peft_model_state_dict(model, stored)


def open_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter of a checkpoint on its base model, for reading only."""
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=False, local_files_only=True)
    assert isinstance(adapted, PeftModel)
    return adapted


def save_adapter(model: PeftModel, folder: Path, recipe: TrainingRecipe) -> None:
    """Write weights and config as PEFT reads them, with equal bytes for equal content."""
    tensors = get_peft_model_state_dict(model)
    save_file(
        {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)},
        folder / names.ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    config = _plain(model.peft_config["default"].to_dict())
    config["base_model_name_or_path"] = recipe.base_model
    config["inference_mode"] = True
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    (folder / names.ADAPTER_CONFIG).write_text(text)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_adapted(model: nn.Module) -> bool:
    return isinstance(model, PeftModel)


def stored_name(name: str) -> str:
    """A trained weight's name in a checkpoint: PEFT leaves the adapter's own name out."""
    return name.replace(".default.", ".")


def by_stored_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a checkpoint of this model stores: the adapter's weights, or all where there is no adapter."""
    adapted = is_adapted(model)
    return {stored_name(n): p for n, p in model.named_parameters() if not adapted or ".lora_" in n}


def _plain(value: Any) -> Any:
    """Plain JSON in a fixed order: PEFT keeps target modules as a set, whose order varies between runs."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.value if hasattr(value, "value") else value
