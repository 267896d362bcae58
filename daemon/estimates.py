"""What a job will take of a device's memory, and of time: reckoned before a weight is loaded.

The formulas follow the trainer as it is (`trainer/base_model.py`, `adapter.py`, `optimizers.py`, `batches.py`); each
part says where it comes from. They are meant to be right to a quarter or so: enough to see what cannot work.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from daemon import disk
from daemon.ledger import Database, uses
from daemon.settings_compute import ComputeSettings
from trainer import base_files
from trainer.contract import TrainingRecipe

GIB = 1 << 30
BELIEVED_SECONDS = 60.0  # a card that is put in is seen after so long
CARD_SECONDS = 5.0  # after that the driver has told nothing
_RUNTIME = {"gpu": 6 * GIB // 10, "cpu": 6 * GIB // 10}  # torch itself, its kernels and buffers
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_NOT_LINEAR = ("embed", "lm_head", "wte", "wpe", "norm", "ln_")


@dataclass(frozen=True, slots=True)
class Device:
    """Where training runs. `total` is its memory in bytes, None where nobody knows."""

    kind: str  # gpu or cpu
    name: str
    total: int | None
    cards: int = 1  # GPUs that the driver knows


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part, while the largest step of a job is taken."""

    parts: dict[str, int]
    evictable: int = 0  # of these, what the driver may keep in the machine's own memory (paged optimizers)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def told(self) -> dict[str, Any]:
        return {"total_bytes": self.total, "evictable_bytes": self.evictable, "parts": dict(self.parts)}


def device(wish: str = "auto") -> Device:
    """Where the trainer would train: `wish` is ENGRAMD_DEVICE. Asks NVIDIA's driver, which loads nothing; the first
    card is the one that is used."""
    machine = Device("cpu", "the processor", psutil.virtual_memory().total)
    if wish == "cpu":
        return machine
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"], capture_output=True,
            text=True, timeout=CARD_SECONDS, check=True,
        ).stdout.splitlines()  # fmt: skip
        size, _, name = told[0].partition(",")
        return Device("gpu", name.strip(), int(size) << 20, len(told))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return machine


def memory(recipe: TrainingRecipe, base: Path, kind: str, longest: int | None = None) -> Memory | None:
    """What the largest step takes on a device of this kind. `longest` is the longest sequence in tokens, if it is
    known (else max_seq_length). None where the base's shapes cannot be read from its files."""
    linear, other, largest = _weights(base)
    if not linear + other:
        return None
    width = _width(recipe, kind)
    full = recipe.method == "full"
    trained = linear + other if full else disk.trained_weights(base, recipe.lora_rank)
    parts = {"weights": _base_bytes(recipe, linear, other, kind, width)}
    if full:
        parts["gradients"] = trained * width  # each in the weight's own format (torch)
        if width == 2:
            parts["compensation"] = trained * 2  # the 16 bits that a bfloat16 lacks of a float32
            parts["one weight in float32"] = largest * 8  # it and its gradient, one after the other
    else:
        parts["adapter"] = trained * 4  # float32, see trainer/adapter.py
        parts["gradients"] = trained * 4
    parts["optimizer"] = moments(recipe, trained, kind)
    if recipe.mean_decay > 0.0:
        parts["running mean"] = trained * 4
    tokens = max(recipe.micro_batch_tokens, longest or min(recipe.max_seq_length, recipe.micro_batch_tokens))
    config = _config(base)
    parts["activations"] = activations(recipe, config, tokens, width)
    parts["logits"] = tokens * int(config.get("vocab_size") or 0) * (8 + width)
    parts["runtime"] = _RUNTIME[kind]
    paged = recipe.optimizer == "paged_adamw_8bit" and kind == "gpu"
    return Memory(parts, parts["optimizer"] if paged else 0)


def moments(recipe: TrainingRecipe, trained: int, kind: str) -> int:
    """Bytes of an optimizer's state. AdamW: two numbers of 32 bits a weight (Loshchilov and Hutter); in 8 bits two
    bytes, and two float32 factors for each block of 256 (Dettmers et al., "8-bit optimizers via block-wise
    quantization"); Adafactor: one number a row and a column (Shazeer and Stern), a hundredth at most. On a CPU the
    8-bit ones are AdamW."""
    if recipe.optimizer == "adafactor":
        return trained * 4 // 100
    if recipe.optimizer == "adamw_torch" or kind == "cpu":
        return trained * 8
    return trained * 2 + trained // 256 * 8


def activations(recipe: TrainingRecipe, config: Mapping[str, Any], tokens: int, width: int) -> int:
    """Bytes that the backward pass needs of the forward one, for so many tokens.

    Of a layer of a Llama-like model, counted as in Korthikanti et al., "Reducing Activation Recomputation in Large
    Transformer Models", without the attention matrix, which fused attention does not keep: the inputs of two norms
    (also in float32), of the matrix products, of the rotation and of the gated product. An adapter keeps its dropped-
    out float32 input beside. With gradient checkpointing a layer keeps its input alone, and one layer at a time all.
    """
    hidden, layers = int(config.get("hidden_size") or 0), int(config.get("num_hidden_layers") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    heads = int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    norms = 2 * hidden * (4 + width)
    products = (2 * hidden + 2 * queries + 2 * keys + 4 * inner) * width
    turned = (queries + keys) * (4 + width)
    layer = norms + products + turned
    if recipe.method == "lora":
        layer += (5 * hidden + queries + inner) * 5  # float32, and a byte of the mask
    if recipe.use_gradient_checkpointing:
        return tokens * (layers * hidden * width + layer)
    return tokens * layers * layer


def cannot_hold(recipe: TrainingRecipe, base: Path, where: Device) -> str | None:
    """One sentence where the device plainly cannot hold a full fine-tune: what has to lie there whatever the layout
    is more than all its memory. None where it can, or nobody knows."""
    if recipe.method != "full" or where.total is None:
        return None
    found = memory(recipe, base, where.kind)
    if found is None:
        return None
    layout = ("activations", "logits")  # made smaller where they do not fit
    least = sum(size for part, size in found.parts.items() if part not in layout) - found.evictable
    if least <= where.total:
        return None
    return (f"training all layers of {recipe.base_model} takes at least {shown(least)} of memory, and {where.name} has "
            f"{shown(where.total)}: set training.method = \"lora\", or take a smaller base model")  # fmt: skip


def shown(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"


# -- time ----------------------------------------------------------------------------------------------


def speed(db: Database, recipe: TrainingRecipe) -> float | None:
    """Tokens a second of this home's last jobs with the same base and method, their loading counted in; None where
    there is none."""
    return uses.pace(db, recipe)[0]


# -- the base ------------------------------------------------------------------------------------------


def _weights(base: Path) -> tuple[int, int, int]:
    """(numbers in linear layers, in all else, in the largest tensor) of the base on this disk."""
    linear = other = largest = 0
    for file in base_files.weight_files(base):
        shapes = disk.shapes_of(file)
        if shapes is None:  # torch's own file: taken for linear layers of 16 bits
            linear += file.stat().st_size // 2
            continue
        for name, shape in shapes.items():
            count = 1
            for length in shape:
                count *= length
            largest = max(largest, count)
            if len(shape) == 2 and not any(part in name for part in _NOT_LINEAR):
                linear += count
            else:
                other += count
    return linear, other, largest


def _width(recipe: TrainingRecipe, kind: str) -> int:
    """Bytes of a weight that is not quantised. A CPU without bfloat16 of its own trains in float32, which is what is
    taken for certain here; so does a full fine-tune that asks for float16."""
    if kind == "cpu" or (recipe.method == "full" and recipe.dtype == "float16"):
        return 4
    return _BYTES[recipe.dtype]


def _base_bytes(recipe: TrainingRecipe, linear: int, other: int, kind: str, width: int) -> int:
    """nf4 with double quantisation holds a weight of a linear layer in 4 bits and 0.127 more for the factors of its
    block (Dettmers et al., "QLoRA", section 3); embeddings and norms stay as they are."""
    if recipe.quantised and kind == "gpu":
        return int(linear * (4 + 0.127) / 8) + other * width
    return (linear + other) * width


def _config(base: Path) -> dict[str, Any]:
    """Of the base; that of its text part, where it sees pictures too."""
    found = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return dict(found.get("text_config") or found)


class Machine:
    """This one: its driver is asked once in a while."""

    def __init__(self, compute: ComputeSettings, clock: Callable[[], float]) -> None:
        self._compute, self._clock = compute, clock
        self._found: tuple[float, Device] | None = None  # until when it is believed

    @property
    def device(self) -> Device:
        if self._found is None or self._clock() > self._found[0]:
            self._found = (self._clock() + BELIEVED_SECONDS, device(os.environ.get("ENGRAMD_DEVICE", "auto")))
        return self._found[1]

    def has_gpu(self) -> bool:
        return self.device.kind == "gpu"

    def too_small(self, recipe: TrainingRecipe, base: Path) -> str | None:
        """Why it can plainly not hold a full fine-tune. GPUs that hold a model in pieces count as one; of optimizers
        only AdamW's moments can be cut (trainer/sharding.py)."""
        if recipe.method != "full":
            return None
        found, compute = self.device, self._compute
        cards = min(compute.processes or found.cards, found.cards)
        in_pieces = cards > 1 and compute.sharded != "never" and recipe.optimizer == "adamw_torch"
        if in_pieces and found.total is not None:
            found = replace(found, name=f"{cards} x {found.name}", total=cards * found.total)
        return cannot_hold(recipe, base, found)
