"""A model in float32 whose weights are there only while they are used: one layer at a time.

It is built without weights; before a layer runs, its tensors are fetched, and after it they are let go. One pass
over one text so takes the memory of the largest layer (or of the embeddings) in float32, of a 14B model 5 GB instead
of 60, and reads each tensor once. Where names in the weight files are not those of the model's layers (an old
layout, a picture model's text part), it is loaded whole.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trainer import base_files, names
from trainer.contract import BadSpec

_LAYER = re.compile(r"\.layers\.\d+$")

Fetch = Callable[[str], Tensor]


def without_weights(config: Any) -> PreTrainedModel:
    """A model of this config, its parameters on the meta device, its buffers (rotary frequencies) real."""
    with init_empty_weights(include_buffers=False):
        auto: Any = AutoModelForCausalLM
        made = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
    assert isinstance(made, PreTrainedModel)
    made.train(False)
    return made


def stream(model: nn.Module, fetch: Fetch, pulse: Callable[[], None]) -> None:
    """Let `model` fetch its weights by name, in float32, when it runs. `pulse` is called before each layer.

    The model's forward pass raises ValueError where a fetched tensor has another shape than its layer.
    """
    for name, module in _units(model):
        places = _places(name, module)

        def load(_module: nn.Module, _args: Any, places: list[Any] = places) -> None:
            pulse()
            for owner, key, full, empty in places:
                tensor = fetch(full)
                if tensor.shape != empty.shape:
                    raise ValueError(f"{full} is {list(tensor.shape)} instead of {list(empty.shape)}")
                owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)

        def drop(_module: nn.Module, _args: Any, _output: Any, places: list[Any] = places) -> None:
            for owner, key, _full, empty in places:
                owner._parameters[key] = empty

        module.register_forward_pre_hook(load)
        module.register_forward_hook(drop)


def _units(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is loaded together: each decoder layer, and each other module that holds parameters itself."""
    above = ""
    for name, module in model.named_modules():
        if above and name.startswith(above):
            continue
        if _LAYER.search(name):
            above = f"{name}."
            yield name, module
        elif any(parameter is not None for parameter in module._parameters.values()):
            yield name, module


def _places(prefix: str, module: nn.Module) -> list[tuple[nn.Module, str, str, nn.Parameter]]:
    """Each parameter's owner, its key there, its full name, and what is there while it is not loaded."""
    found = []
    for name, owner in module.named_modules(prefix=prefix):
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                found.append((owner, key, f"{name}.{key}" if name else key, parameter))
    return found


class Weights:
    """The tensors of safetensors files by name, read when asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files: dict[str, Any] = {}
        try:
            for path in files:
                opened: Any = safe_open(path, framework="pt")
                self._files.update(dict.fromkeys(opened.keys(), opened))
        except (OSError, SafetensorError) as error:
            raise BadSpec(f"{files[0].parent} has weights that cannot be read: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        return list(self._files)

    def __call__(self, name: str) -> Tensor:
        """The tensor in float32."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor.float()

    def rows(self, name: str, every: int) -> Tensor:
        """Each `every`th row in float32, without reading the others."""
        if every == 1:
            return self(name)
        whole = self._files[name].get_slice(name)
        count = int(whole.get_shape()[0])
        return torch.cat([whole[at : at + 1] for at in range(0, count, every)]).float()


def weights_of(folder: Path) -> Weights | None:
    """The weights of a model folder, or None where they are in another format than safetensors."""
    files = base_files.weight_files(folder)
    if not files or files[0].suffix != ".safetensors":
        return None
    single = folder / "model.safetensors"
    return Weights([single] if single in files else files)


def open_folder(folder: Path, adapter: Path | None, pulse: Callable[[], None]) -> nn.Module:
    """The model of a folder as transformers has it, with the PEFT adapter on it if there is one, in float32.

    Raises BadSpec where it cannot be opened or the adapter does not fit.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = without_weights(config)
        weights = weights_of(folder)
        same = dict(getattr(model, "all_tied_weights_keys", None) or {})
        wanted = [full for name, module in _units(model) for *_, full, _ in _places(name, module)]
        if weights is None or not all(name in weights or same.get(name, "") in weights for name in wanted):
            return _open_whole(folder, adapter)
        fetch = _fetch_from(weights, same)
        if adapter is None:
            stream(model, fetch, pulse)
            return model
        adapted: Any = PeftModel(model, PeftConfig.from_pretrained(str(adapter)), low_cpu_mem_usage=True).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadSpec(f"the model in {folder} cannot be opened for comparison: {line}") from error
    stream(adapted, _fetch_adapted(adapted, fetch, Weights([adapter / names.ADAPTER_WEIGHTS])), pulse)
    return adapted  # type: ignore[no-any-return]


def _open_whole(folder: Path, adapter: Path | None) -> nn.Module:
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    return model.eval()  # type: ignore[no-any-return]


def _fetch_from(weights: Weights, same: dict[str, str]) -> Fetch:
    return lambda name: weights(name if name in weights else same[name])


def _fetch_adapted(model: nn.Module, base: Fetch, adapter: Weights) -> Fetch:
    """By PEFT's names: its own tensors from the adapter's file, the base's below their old names."""
    own: dict[str, str] = {}
    for name, module in _units(model):
        for *_, full, _ in _places(name, module):
            if ".lora_" in full or ".modules_to_save." in full:
                own[full] = full.replace(".modules_to_save.default", "").replace(".default.", ".")
    if set(own.values()) != set(adapter.names()):
        odd = sorted(set(own.values()) ^ set(adapter.names()))[0]
        raise BadSpec(f"the adapter does not fit its base model: {odd} is in one of them only")

    def fetch(name: str) -> Tensor:
        if name in own:
            return adapter(own[name])
        plain = name.removeprefix("base_model.model.")
        return base(plain.replace(".base_layer.", ".").replace(".original_module.", "."))

    return fetch


@torch.no_grad()
def logits(model: nn.Module, ids: list[int]) -> Tensor:
    """Float32 [positions, vocabulary]: what the model expects after each of these tokens."""
    found: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return found.float()
