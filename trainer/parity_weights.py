"""Every tensor of a GGUF file beside the model's own: two that changed places are seen at any quantisation.

Of a large tensor only evenly spaced rows are read. A tensor may err by what its number format cannot say, relative to
its own size (root mean square): the bounds are about three times what normally distributed weights were seen to
lose, since real ones have outliers.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Kind
from peft import PeftConfig
from torch import Tensor

from trainer import names, streamed
from trainer.gguf_reading import ParityFailed, Reader

_MAY_ERR = {
    Kind.F32: 1e-5, Kind.F16: 2e-3, Kind.BF16: 1e-2, Kind.Q8_0: 0.02, Kind.Q6_K: 0.07, Kind.Q5_K: 0.13, Kind.Q5_0: 0.15,
    Kind.Q5_1: 0.15, Kind.Q4_K: 0.25, Kind.Q4_0: 0.3, Kind.Q4_1: 0.3,
}  # fmt: skip
_ELSE = 0.3  # of a format that is not named above
_ROWS = 64  # of a matrix


def check(folder: Path, adapter: Path | None, reader: Reader, pulse: Callable[[], None]) -> float:
    """The worst tensor's error as a share of what it may err. Raises ParityFailed with the tensor's name."""
    worst = 0.0
    weights = streamed.weights_of(folder)
    file = reader.file
    if weights is not None:
        model = streamed.without_weights(reader.config)
        for name, parameter in model.named_parameters():
            original = next((layout for layout in _layouts(name) if layout in weights), None)
            if original is None:  # a tied head, or another layout: the logits speak of it
                continue
            pulse()
            every = max(1, parameter.shape[0] // _ROWS)
            stored = reader.name(name)
            kind = file.tensors[stored].tensor_type if stored in file.tensors else Kind.F32
            may = _MAY_ERR.get(kind, _ELSE)
            error = _error(weights.rows(original, every), reader.plain(name, every))
            worst = max(worst, error / may)
            if not error <= may:
                raise ParityFailed(
                    f"{stored} in {file.path.name} is not the model's {name}: it differs by {error:.2g} of its size, "
                    f"where {kind.name} may by {may:g}"
                )
    return worst if adapter is None else max(worst, _check_adapter(adapter, reader, pulse))


def _layouts(name: str) -> tuple[str, ...]:
    """How a tensor of a text model is called in its own files, and in those of a model that sees pictures too."""
    return name, f"language_model.{name}", f"model.language_model.{name.removeprefix('model.')}"


def _check_adapter(folder: Path, reader: Reader, pulse: Callable[[], None]) -> float:
    """The same of what an adapter adds to each layer: scale x B A, as PEFT and as llama.cpp have it."""
    assert reader.adapter is not None
    config = PeftConfig.from_pretrained(str(folder))
    weights = streamed.Weights([folder / names.ADAPTER_WEIGHTS])
    worst, seen = 0.0, 0
    for name in weights.names():
        if not name.endswith(".lora_A.weight"):
            continue
        pulse()
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = weights(name), weights(name.replace(".lora_A.", ".lora_B."))
        every = max(1, b.shape[0] // _ROWS)
        got = reader.delta(f"{module}.weight", every)
        if got is None:
            raise ParityFailed(f"{reader.adapter.path.name} lacks what the adapter adds to {module}")
        error = _error(b[::every] @ a * _scale(config, module, a.shape[0]), got) / _MAY_ERR[Kind.F16]
        worst, seen = max(worst, error), seen + 1
        if not error <= 1.0:
            raise ParityFailed(f"{reader.adapter.path.name} adds something else to {module} than the adapter does")
    if 2 * seen != len(reader.adapter.tensors):
        raise ParityFailed(f"{reader.adapter.path.name} changes layers that the adapter does not")
    return worst


def _scale(config: object, module: str, rank: int) -> float:
    """PEFT's: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA; alpha may differ by layer."""
    from peft.utils.other import get_pattern_key

    patterns: dict[str, float] = getattr(config, "alpha_pattern", None) or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), module), getattr(config, "lora_alpha", 1)))
    return alpha / (rank**0.5 if getattr(config, "use_rslora", False) else rank)


def _error(wanted: Tensor, got: Tensor) -> float:
    """Root mean square of the difference, by that of what was wanted; infinite where the shapes differ."""
    if wanted.shape != got.shape:
        return float("inf")
    size = float(torch.linalg.vector_norm(wanted))
    difference = float(torch.linalg.vector_norm(wanted - got))
    return difference / size if size else float(difference > 0) * float("inf") if difference else 0.0
