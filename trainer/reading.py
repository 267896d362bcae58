"""Opening a model for reading only: the base, or a checkpoint of any method on its own base."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from trainer import adapter, averaging, base_files, base_model, names
from trainer.batches import LossHead, packs_cleanly
from trainer.contract import BadSpec, TrainingRecipe, Weights
from trainer.opening import Opened, placed

Model = PreTrainedModel | PeftModel


def recipe_of(checkpoint: Path, base: str | None = None) -> TrainingRecipe:
    """How the base below a checkpoint is loaded, as its state tells; `base` is another name of that base."""
    key = json.loads((checkpoint / names.STATE).read_bytes())["chain_key"]
    return TrainingRecipe(
        base_model=base or str(key["base_model"]),
        method=key["method"],
        load_in_4bit=key["quantised"],
        dtype=key["dtype"],
    )


def open_for_reading(
    base_name: str, checkpoint: Path | None, recipe: TrainingRecipe, weights: Weights = "raw", *, to_cut: bool = False
) -> tuple[Model, torch.device]:
    """The base model, or a checkpoint's model with these of its weights, in eval mode; the device it is meant for.

    `to_cut`: it lies on the CPU as yet, to be cut into pieces.

    Raises BadSpec (also where a checkpoint holds no such weights), BaseMissing, NoDevice.
    """
    device = base_model.choose_device()
    dtype, _ = base_model.choose_dtype(recipe, device)
    adapted = checkpoint is not None and (checkpoint / names.ADAPTER_CONFIG).exists()
    full = checkpoint is not None and not adapted
    if checkpoint is not None:
        check_weights(checkpoint, weights)
    folder = checkpoint if full and checkpoint is not None else base_files.resolve(base_name)
    there = torch.device("cpu") if to_cut else device
    model = base_model.load_model(folder, there, dtype, quantised=recipe.quantised and not full)
    model = placed(model, there)
    if adapted and checkpoint is not None:
        opened: Model = adapter.open_adapter(model, checkpoint)
    else:
        opened = model
    if checkpoint is not None and weights == "ema":
        mean = load_file(checkpoint / names.EMA)
        averaging.put_in(adapter.by_stored_name(opened), mean, checkpoint.name)
    opened.eval()
    return opened, device


def check_weights(checkpoint: Path, weights: Weights) -> None:
    """Raises BadSpec where a checkpoint has no running mean and it is asked for."""
    if weights == "ema" and not (checkpoint / names.EMA).exists():
        raise BadSpec(f"{checkpoint.name} holds no running mean of its weights ({names.EMA}): use the raw ones")


def for_scoring(
    model: Model,
    recipe: TrainingRecipe,
    device: torch.device,
    micro_batch_tokens: int | None = None,
    agree: Callable[[bool], bool] = lambda value: value,
) -> Opened:
    """A model that was opened for reading, with its layout; `agree`: of several that compute, what the first finds."""
    head = LossHead(model)
    packing = recipe.packing and agree(packs_cleanly(model, head, device))
    return Opened(model, head, device, packing, micro_batch_tokens or recipe.micro_batch_tokens)


def free() -> None:
    """Give back the memory of models that nothing names any more; an adapted one is a cycle of references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
