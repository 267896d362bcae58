"""The base model on its device, in its number format."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from trainer.contract import BadSpec, NoDevice, TrainingRecipe

DEVICE_VARIABLE = "ENGRAMD_DEVICE"  # auto, cpu or cuda
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(environ: Mapping[str, str] | None = None) -> torch.device:
    """The device that ENGRAMD_DEVICE names; `auto` takes CUDA where it works. Raises NoDevice, BadSpec."""
    wish = (os.environ if environ is None else environ).get(DEVICE_VARIABLE, "auto")
    if wish not in ("auto", "cpu", "cuda"):
        raise BadSpec(f"{DEVICE_VARIABLE} is {wish!r}; allowed are auto, cpu and cuda")
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        sentence = (str(error).strip().splitlines() or ["unknown error"])[0].rstrip(".")
        raise NoDevice(f"CUDA was asked for but cannot be used: {sentence}") from error
    return torch.device("cuda", torch.cuda.current_device())  # the first one, but where several processes share a job


def choose_dtype(recipe: TrainingRecipe, device: torch.device) -> tuple[torch.dtype, str | None]:
    """The number format of base weights and matrix products, and a notice where it is not the one asked for."""
    asked = _DTYPES[recipe.dtype]
    if asked == torch.float32:
        return asked, None
    if device.type == "cpu":
        if asked == torch.bfloat16 and _cpu_has_bfloat16():
            return asked, None
        return torch.float32, f"this CPU has no native {recipe.dtype}: training in float32"
    if asked == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        if recipe.method == "full":
            return torch.float32, "this GPU has no bfloat16: training in float32"
        return torch.float16, "this GPU has no bfloat16: training in float16"
    if asked == torch.float16 and recipe.method == "full":
        return torch.float32, "a full fine-tune in float16 would lose small gradients: training in float32"
    return asked, None


def _cpu_has_bfloat16() -> bool:
    """Whether bfloat16 products run in hardware; emulated they are slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, *, quantised: bool = False
) -> PreTrainedModel:
    """A causal LM from a local folder, in eval mode, on `device`. Raises BadSpec where it cannot be loaded.

    `quantised` holds the linear layers in nf4 (bitsandbytes, double quantisation); products run in `dtype`.
    """
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    if quantised:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantised or device.type == "cuda":
        options["device_map"] = {"": device.index if device.type == "cuda" else "cpu"}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        sentence = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadSpec(f"the model in {folder} cannot be loaded: {sentence}") from error
    if model.get_output_embeddings() is None:
        raise BadSpec(f"the model in {folder} has no language-model head")
    return model


def enable_gradient_checkpointing(model: PreTrainedModel) -> bool:
    """Trade time for memory; False where this architecture cannot."""
    if not model.supports_gradient_checkpointing:
        return False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return True
