"""A model's layers without its weights: of which kind each is, which are tied, which nf4 would hold."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from trainer.contract import BadSpec

LayerKind = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """`kinds`: by module name, for the layers that LoRA is merged into. `tied`: tensors that are another one under a
    second name. `quantised`: the weights that a 4-bit model holds in nf4."""

    config: dict[str, Any]  # as config.json has it
    kinds: dict[str, LayerKind]
    tied: dict[str, str]
    ends: frozenset[str]
    quantised: frozenset[str]
    called: Callable[[str], str]  # the model's name of a tensor, by that in the files: some models have two


def skeleton_of(folder: Path) -> Skeleton:
    """The layers of the model in `folder`; nothing but its config is read. Raises BadSpec where that is unknown."""
    try:
        plain = json.loads((folder / "config.json").read_bytes())
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, KeyError, ImportError) as error:
        sentence = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadSpec(f"the model in {folder} cannot be opened: {sentence}") from error
    if plain.get("quantization_config"):
        raise BadSpec(f"the model in {folder} is quantised already (quantization_config): it cannot be merged")
    kinds = {name: kind for name, module in model.named_modules() if (kind := _kind(module)) is not None}
    kept = get_keys_to_not_convert(model)
    quantised = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept)
    }
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = frozenset(name for name, module in model.named_modules() if any(module is end for end in both))
    return Skeleton(plain, kinds, dict(model.all_tied_weights_keys), ends, frozenset(quantised), _names_of(model))


def _names_of(model: Any) -> Callable[[str], str]:
    """How transformers renames tensors when it loads them; what it makes of several tensors keeps its name here."""
    known, told = model.state_dict(), get_model_conversion_mapping(model, add_legacy=False)
    renamings: list[Any] = [one for one in told if not isinstance(one, WeightConverter)]
    return lambda name: str(rename_source_key(name, renamings, [], model.base_model_prefix, known)[0])


def _kind(module: nn.Module) -> LayerKind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else None
