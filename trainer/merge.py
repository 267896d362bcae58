"""A checkpoint into a plain model folder, one tensor at a time: what transformers, vLLM and the GGUF converter open.

In 16 bits, with the memory of about one tensor. A LoRA adapter is added to its base with the very rounding of PEFT's
`merge_and_unload`, so the bits are equal; that way holds the whole model in memory, this one does not.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer import names
from trainer.chat_tokens import load_tokenizer
from trainer.contract import BadSpec, MergeOnto, Weights
from trainer.durable import sync, write_text
from trainer.lora_deltas import Changes, changes_of
from trainer.shards import (
    Planned,
    Room,
    ShardWriter,
    Stored,
    copy_file,
    link_or_copy,
    read_tensor,
    shards_of,
    tensors_in,
    write_index,
)
from trainer.skeleton import Skeleton, skeleton_of

_HALVES = (torch.bfloat16, torch.float16)
_WIDE = (torch.float32, torch.float64)
_TOKENIZER = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "merges.txt", "special_tokens_map.json",
    "spiece.model", "tekken.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    "vocab.txt",
)  # fmt: skip
_BESIDE = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the merged model: its name in the file and in the model, where it is taken from, and whether it is
    held in nf4 first."""

    name: str
    known: str
    source: Stored
    dtype: torch.dtype
    nf4: bool


def merge(
    base: Path,
    checkpoint: Path,
    out: Path,
    *,
    weights: Weights = "raw",
    onto: MergeOnto = "original",
    pulse: Callable[[], None],
) -> list[str]:
    """Write the model of `checkpoint`, with these of its weights, into the new folder `out`; sentences to be told.

    A LoRA checkpoint is added to `base`: to its weights as they are, or (`onto` dequantised) as nf4 holds them. A full
    checkpoint has all weights itself. `pulse` is called once for each tensor. Raises BadSpec, naming what is not
    understood, before anything is written.
    """
    if weights == "ema" and not (checkpoint / names.EMA).exists():
        raise BadSpec(f"{checkpoint.name} holds no running mean of its weights ({names.EMA}): use the raw ones")
    adapted = (checkpoint / names.ADAPTER_CONFIG).exists()
    source = base if adapted else checkpoint
    shards = _headers(source)
    skeleton = skeleton_of(source)
    here = {skeleton.called(name): one for tensors in shards.values() for name, one in tensors.items()}
    if adapted:
        shapes = {name: one.shape for name, one in here.items()}
        shapes |= {name: here[other].shape for name, other in skeleton.tied.items() if other in here}
        changes = changes_of(checkpoint, weights, skeleton, shapes)
        return _write(base, source, shards, skeleton, changes, out, pulse, nf4=onto == "dequantised")
    mean = tensors_in(checkpoint / names.EMA) if weights == "ema" else {}
    for name, one in mean.items():
        if name not in here or here[name].shape != one.shape:
            raise BadSpec(f"the running mean in {checkpoint.name} belongs to other weights: {name}")
    return _write(base, source, shards, skeleton, Changes(mean, {}), out, pulse)


def dequantised(base: Path, out: Path, *, pulse: Callable[[], None]) -> None:
    """Write the base alone as nf4 holds it, in 16 bits: what an adapter was trained on. Raises BadSpec."""
    _write(base, base, _headers(base), skeleton_of(base), Changes({}, {}), out, pulse, nf4=True)


def merged_size(folder: Path) -> int:
    """Bytes that the weights in `folder` will take in 16 bits, from the headers alone. Raises BadSpec."""
    tensors = (one for found in _headers(folder).values() for one in found.values())
    return sum(one.count * (2 if one.dtype in _WIDE else one.dtype.itemsize) for one in tensors)


def half_named(folder: Path) -> Literal["bf16", "f16"]:
    """Which format of 16 bits the weights in `folder` have, or will have: `f16` only where that is their own."""
    config = json.loads((folder / "config.json").read_bytes())
    return "f16" if _half_of(config, _headers(folder)) == torch.float16 else "bf16"


def _headers(folder: Path) -> dict[str, dict[str, Stored]]:
    return {path.name: tensors_in(path) for path in shards_of(folder)}


def _write(
    base: Path,
    source: Path,
    shards: Mapping[str, Mapping[str, Stored]],
    skeleton: Skeleton,
    changes: Changes,
    out: Path,
    pulse: Callable[[], None],
    *,
    nf4: bool = False,
) -> list[str]:
    half = _half_of(skeleton.config, shards)
    held = skeleton.quantised - changes.replaced.keys() if nf4 else frozenset()
    plan: dict[str, list[_Tensor]] = {file: [] for file in shards}
    originals: dict[str, Stored] = {}
    for file, tensors in shards.items():
        for name, one in tensors.items():
            known, dtype = skeleton.called(name), half if one.dtype in _WIDE else one.dtype
            originals[known] = one
            plan[file].append(_Tensor(name, known, changes.replaced.get(known, one), dtype, known in held))
    notices = _untie(plan, originals, skeleton, changes) if source == base else []
    out.mkdir(parents=True)
    placed: dict[str, str] = {}
    total, room = 0, Room()
    for file, wanted in plan.items():
        placed |= {one.name: file for one in wanted}
        total += sum(one.source.count * one.dtype.itemsize for one in wanted)
        if all(_as_it_is(one, changes) and one.source.file == source / file for one in wanted) and source != base:
            pulse()
            link_or_copy(source / file, out / file)
            continue
        planned = [Planned(one.name, one.dtype, one.source.shape) for one in wanted]
        with ShardWriter(out / file, planned) as writer:
            for tensor in wanted:
                pulse()
                _append(writer, tensor, changes, room)
    if list(plan) != ["model.safetensors"]:
        write_index(out, placed, total, write_text)
    _write_config(out, skeleton.config, half, untied=bool(notices))
    for path in sorted(found for pattern in _BESIDE for found in base.glob(pattern) if found.is_file()):
        copy_file(path, out / path.name)
    copy_tokenizer(base, out)
    sync(out)
    return notices


def _as_it_is(one: _Tensor, changes: Changes) -> bool:
    return one.known not in changes.added and one.dtype == one.source.dtype and not one.nf4


def _append(writer: ShardWriter, one: _Tensor, changes: Changes, room: Room) -> None:
    """The tensor as it will be, in memory only where something is computed with all of it."""
    if _as_it_is(one, changes):
        writer.append_copy(one.source)
        return
    delta = changes.added.get(one.known)
    if delta is None and not one.nf4:
        writer.append_cast(one.source)
        return
    weight = read_tensor(one.source, room)
    if one.known in changes.replaced:
        weight = weight.to(one.dtype)
    if one.nf4:
        weight = through_nf4(weight)
    if delta is not None:
        delta.add_to(weight, room)
    writer.append(weight.to(one.dtype))


def through_nf4(weight: Tensor) -> Tensor:
    """What a weight becomes by being held as `base_model.load_model` holds it: nf4 in blocks of 64, their scales
    quantised too. float32. Raises BadSpec where bitsandbytes cannot."""
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise BadSpec("merge_onto dequantised needs bitsandbytes: pip install bitsandbytes") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held, state = functional.quantize_4bit(
        weight.to(device).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    state.dtype = torch.float32
    return functional.dequantize_4bit(held, state).to("cpu", torch.float32).reshape(weight.shape)


def _half_of(config: Mapping[str, Any], shards: Mapping[str, Mapping[str, Stored]]) -> torch.dtype:
    """The number format of 16 bits that most of the weights have; of a model without one, bfloat16."""
    count = dict.fromkeys(_HALVES, 0)
    for tensors in shards.values():
        for one in tensors.values():
            if one.dtype in count:
                count[one.dtype] += one.count
    if not any(count.values()):
        return torch.float16 if config.get("dtype", config.get("torch_dtype")) == "float16" else torch.bfloat16
    return max(count, key=lambda dtype: count[dtype])


def _untie(
    plan: dict[str, list[_Tensor]], originals: Mapping[str, Stored], skeleton: Skeleton, changes: Changes
) -> list[str]:
    """Where an adapter changes one of two tied tensors, both are written: while it was trained, only that one moved."""
    changed = changes.replaced.keys() | changes.added.keys()
    touched = [name for pair in skeleton.tied.items() for name in pair if name in changed]
    if not touched:
        return []
    here = {one.known: (file, one) for file, wanted in plan.items() for one in wanted}
    for name, other in skeleton.tied.items():
        if name not in here and other in here:
            file, like = here[other]
            source = changes.replaced.get(name, originals[other])
            plan[file].append(_Tensor(name, name, source, like.dtype, False))
    return [f"the adapter changes {' and '.join(touched)}: the weights that the base model ties are written apart"]


def _write_config(out: Path, config: Mapping[str, Any], half: torch.dtype, *, untied: bool) -> None:
    content = {key: value for key, value in config.items() if key not in ("torch_dtype", "_name_or_path")}
    said = str(half).removeprefix("torch.")
    inner = content.get("text_config")
    if isinstance(inner, dict):
        content["text_config"] = {key: value for key, value in inner.items() if key != "torch_dtype"}
        content["text_config"]["dtype"] = said
    content["dtype"] = said
    for told in (content, content.get("text_config")):
        if untied and isinstance(told, dict):
            told["tie_word_embeddings"] = False
    write_text(out / "config.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def copy_tokenizer(base: Path, out: Path) -> None:
    """The tokenizer's files and chat template; the template that training used where the base has none."""
    for name in _TOKENIZER:
        if (base / name).is_file():
            copy_file(base / name, out / name)
    try:
        told = json.loads((base / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        told = {}
    if not (told.get("chat_template") or any((base / f"chat_template.{kind}").is_file() for kind in ("jinja", "json"))):
        write_text(out / "chat_template.jinja", str(load_tokenizer(base).chat_template))
