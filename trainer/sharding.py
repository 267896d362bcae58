"""A model in pieces over several processes (FSDP2), for models that do not fit on one device.

Layer by layer the weights come together for as long as they are computed with. An adapter is small and stays whole in
each process, with its moments and its running mean, as without pieces: only the frozen base below it is cut.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import base_files, base_model, optimizers, shards
from trainer.contract import BadSpec, TrainingRecipe
from trainer.launch import SHARDED

_ROOM = 0.85  # share of a device's memory that weights and moments may take
_BY_NUMBER = ("adamw_torch",)  # optimizers that compute each number by itself: their moments can be cut with the weight


def wanted(recipe: TrainingRecipe) -> bool:
    """Whether models will lie in pieces, as `[compute] sharded` says.

    Raises BadSpec where it is asked for and cannot be; BaseMissing, NoDevice.
    """
    wish = os.environ.get(SHARDED, "auto")
    if wish == "never":
        return False
    device = base_model.choose_device()
    why = _cannot(recipe, optimizers.family(recipe, device)[0])
    if wish == "always":
        if why:
            raise BadSpec(f'compute.sharded is "always", but {why}')
        return True
    if why or device.type == "cpu":
        return False
    return not _fits(recipe, base_files.resolve(recipe.base_model), device, base_model.choose_dtype(recipe, device)[0])


def _cannot(recipe: TrainingRecipe, family: str) -> str | None:
    if recipe.quantised:
        return "a base in nf4 cannot be cut into pieces: set load_in_4bit to false"
    if recipe.method == "full" and family not in _BY_NUMBER:
        return f"the moments of {family} cannot be cut into pieces: set optimizer to adamw_torch"
    return None


def _fits(recipe: TrainingRecipe, base: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether each device can hold all of it, by the number of weights alone."""
    count = sum(one.count for path in base_files.weight_files(base) if path.suffix == ".safetensors"
                for one in shards.tensors_in(path).values())  # fmt: skip
    each = float(dtype.itemsize)
    if recipe.method == "full":
        each += dtype.itemsize + 8 + (2 if dtype.itemsize == 2 else 0) + (4 if recipe.mean_decay else 0)
    return count * each <= _ROOM * torch.cuda.get_device_properties(device).total_memory


def mesh(device: torch.device, size: int) -> Any:
    """All processes in a row; each must ask for it."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (size,))


def cut(model: Any, device: torch.device, row: Any) -> None:
    """Leave this process its pieces of a model that lies whole on the CPU, on its device. An adapter stays whole.

    All processes must have loaded the same weights; nothing is sent. `row` is what `mesh` made.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    whole = {p for name, p in model.named_parameters() if ".lora_" in name}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    # Gradients of 16 bits are added in 32, as far as they are added by the network.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for module in [*_layers(inner), inner]:
        # Apart again after each pass, the outermost too: who looks at a weight in between, be it one process alone,
        # finds pieces, and changes nothing for the next pass.
        fully_shard(module, mesh=row, mp_policy=policy, ignored_params=whole, reshard_after_forward=True)
    for module in inner.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # summed: each part is of the whole step's mean already
            module.set_force_sum_reduction_for_comms(True)


def _layers(model: Any) -> list[nn.Module]:
    """What comes together at a time: the layers as the architecture names them, else each of its lists of modules."""
    named = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in named]
    if layers:
        return layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [one for some in lists[:1] for one in some]
