"""How much room there is, and how much a piece of work will take, so that it waits rather than fill the disk."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from trainer import base_files
from trainer.contract import TrainingRecipe

MB = 1 << 20
_FIXED = 2 * MB  # a checkpoint's small files; of a job its logs
_HEADER_LIMIT = 64 * MB  # bytes of a safetensors header
_NOT_TRAINED = ("embed", "lm_head", "wte", "norm")


def free(path: Path) -> int:
    """Bytes that this user may still write on the file system of the nearest folder that is there."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def shortage(root: Path, need: int, reserve: int, what: str) -> str | None:
    """One sentence where `need` bytes for `what` would leave less than the reserve; None where there is room."""
    there = free(root)
    if there - need >= reserve:
        return None
    return (
        f"the disk is too full for {what}: it needs about {shown(need)} beside the reserve of {shown(reserve)} "
        f"(disk.reserve_mb), and {shown(there)} are free; engramd disk shows what would free how much"
    )


def shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def used_bytes(paths: Iterable[Path]) -> dict[Path, int]:
    """Blocks on the disk of each of these, in bytes; what has several names counts where it is met first."""
    seen: set[tuple[int, int]] = set()
    sizes: dict[Path, int] = {}
    for path in paths:
        sizes[path] = sum(_blocks(entry, seen) for entry in _files(path))
    return sizes


def freed_bytes(groups: Iterable[Iterable[Path]]) -> list[int]:
    """Bytes on the disk that come free with each of these groups, if they are removed one after the other: a file's
    blocks with the last of its names. What has a name elsewhere, in this home or not, frees nothing."""
    left: dict[tuple[int, int], int] = {}
    return [sum(_freed(entry, left) for path in group for entry in _files(path)) for group in groups]


def _freed(path: str, left: dict[tuple[int, int], int]) -> int:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    inode = (status.st_dev, status.st_ino)
    left[inode] = left.get(inode, 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink) - 1
    return status.st_blocks * 512 if left[inode] == 0 else 0


def _files(path: Path) -> Iterable[str]:
    if not path.is_dir() or path.is_symlink():
        return [str(path)]
    return [os.path.join(root, name) for root, _, names in os.walk(path) for name in (".", *names)]


def _blocks(path: str, seen: set[tuple[int, int]]) -> int:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    inode = (status.st_dev, status.st_ino)
    if inode in seen:
        return 0
    seen.add(inode)
    return status.st_blocks * 512


# -- estimates ---------------------------------------------------------------------------------------


def checkpoint_bytes(recipe: TrainingRecipe, base: Path) -> int:
    """What one checkpoint of this recipe takes: the trained weights, their moments, the compensation of 16 bits, and
    their running mean."""
    full = recipe.method == "full"
    weights = trained_weights(base, None if full else recipe.lora_rank)
    moments = 8 if recipe.optimizer in ("adamw_torch", "adafactor") else 3  # bytes a weight
    wide = recipe.dtype == "float32" or not full
    mean = 4 if recipe.ema_decay else 0
    return weights * ((4 if wide else 2 + 2) + moments + mean) + _FIXED


def job_bytes(checkpoint: int, steps: int, recipe: TrainingRecipe) -> int:
    """What a job takes at its largest: its kept checkpoints, and the next one while it is written."""
    saved = -(-max(steps, 1) // recipe.save_steps)
    return checkpoint * (min(saved, recipe.save_total_limit) + 1) + _FIXED


def trained_weights(base: Path, rank: int | None) -> int:
    """Numbers that are trained: all of the base, or those of a LoRA adapter on all its linear layers."""
    total = 0
    for file in base_files.weight_files(base):
        shapes = shapes_of(file)
        if shapes is None:  # not safetensors: 16 bits a weight
            total += file.stat().st_size // 2 if rank is None else file.stat().st_size // 2 * rank // 256
            continue
        for name, shape in shapes.items():
            if rank is None:
                count = 1
                for length in shape:
                    count *= length
                total += count
            elif len(shape) == 2 and not any(part in name for part in _NOT_TRAINED):
                total += rank * sum(shape)
    return total


def shapes_of(file: Path) -> dict[str, list[int]] | None:
    """Of each tensor, from the header that begins a safetensors file (8 bytes of its length, then JSON). None where
    the file is none, or has no such header."""
    if file.suffix != ".safetensors":
        return None
    with open(file, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if length > _HEADER_LIMIT:
            return None
        try:
            header = json.loads(raw.read(length))
        except ValueError:
            return None
    return {name: told["shape"] for name, told in header.items() if name != "__metadata__"}
