"""Tensors out of safetensors shards and into a GGUF file, a few megabytes at a time.

Sources: the GGUF specification (ggml repository, docs/gguf.md: tensors begin at multiples of 32 bytes) and ggml's Q8_0
(blocks of 32 values: a float16 scale, then 32 signed bytes).
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from trainer import durable, shards
from trainer.contract import BadSpec
from trainer.shards import Stored

Q8_BLOCK = 32  # values
_AT_ONCE = 1 << 18  # values of a tensor that are worked on at once: what fits a processor's cache
_WORKERS = 4  # at most
_INFINITY = 0x7C00  # in float16
_READABLE = (torch.bfloat16, torch.float16, torch.float32)
_ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)  # bytes


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a model folder by name. Raises BadSpec where they are not in readable safetensors."""
    found: dict[str, Stored] = {}
    for path in shards.shards_of(folder):
        found.update(stored_in(path))
    return found


def stored_in(path: Path) -> dict[str, Stored]:
    """All tensors of one safetensors file by name. Raises BadSpec, also where they are quantised."""
    found = shards.tensors_in(path)
    for name, one in found.items():
        if one.dtype not in _READABLE:
            raise BadSpec(
                f"{name} in {path} is stored as {str(one.dtype).removeprefix('torch.')}: GGUF is made of floats of "
                "16 or 32 bits; take the model's unquantised weights"
            )
    return found


def _read_rows(stored: Stored, first: int, rows: int) -> Tensor:
    """Some rows, in the number format of the file. Raises BadSpec where the file is too short."""
    width = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    raw = bytearray(rows * width)
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.start + first * width)
        view = memoryview(raw)
        while view:
            got = file.readinto(view)
            if not got:
                raise BadSpec(f"{stored.file} ends too early")
            view = view[got:]
    return torch.frombuffer(raw, dtype=stored.dtype).view(rows, *stored.shape[1:])


# -- what is written ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor of the GGUF file.

    `heads`: the rows of each head are put from rotate-half order into pairs (0: not). `shift` is added to each value,
    `scale` multiplies it. `made`: the values themselves, where they are in no file.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    stored: Stored | None = None
    heads: int = 0
    shift: float = 0.0
    scale: float = 1.0
    made: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        values = math.prod(self.shape)
        block, of_block = gguf.GGML_QUANT_SIZES[self.kind]
        return values // block * of_block

    def cuts(self) -> Iterator[tuple[int, int]]:
        """Pieces of some hundred thousand values: first row and number of rows, in order."""
        if self.stored is None:
            yield 0, self.shape[0]
            return
        rows = self.shape[0]
        unit = rows // self.heads if self.heads else 1  # rows that have to be read together
        step = max(unit, _AT_ONCE // max(1, math.prod(self.shape[1:])) // unit * unit)
        for first in range(0, rows, step):
            yield first, min(step, rows - first)

    def piece(self, first: int, rows: int) -> NDArray[Any]:
        """The bytes of some rows. Raises BadSpec where a value does not fit the number format."""
        if self.stored is None:
            assert self.made is not None
            return encode(self.made, self.kind, self.name)
        values = _read_rows(self.stored, first, rows)
        if self.heads:
            values = paired(values, rows * self.heads // self.shape[0])
        if self.shift or self.scale != 1.0:
            values = values.float().mul_(self.scale).add_(self.shift)
        return encode(values, self.kind, self.name)


def kind_for(quantisation: str, name: str, shape: tuple[int, ...]) -> Kind:
    """The number format of a tensor: vectors and norms stay in float32, rows that Q8_0 cannot cut in float16."""
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return Kind.F32
    kind = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "Q8_0": Kind.Q8_0}[quantisation]
    return Kind.F16 if kind == Kind.Q8_0 and shape[-1] % Q8_BLOCK else kind


def paired(values: Tensor, heads: int) -> Tensor:
    """Rows of rotary heads in llama.cpp's order for Llama: value i and i + width/2 of a head side by side."""
    width = values.shape[0] // heads
    return values.view(heads, 2, width // 2, -1).transpose(1, 2).reshape(values.shape)


def encode(values: Tensor, kind: Kind, name: str) -> NDArray[Any]:
    """Values in GGUF's number format, as an array to be written. Raises BadSpec where float16 is too narrow."""
    if kind == Kind.F32:
        return values.float().numpy()
    if kind == Kind.BF16:
        return values.to(torch.bfloat16).view(torch.int16).numpy()
    if kind == Kind.F16:
        half = values if values.dtype == torch.float16 else values.float().to(torch.float16)
        if int((half.view(torch.int16) & 0x7FFF).amax()) >= _INFINITY:  # twenty times as fast as isfinite()
            raise BadSpec(f"{name} holds values beyond float16: use bf16 or Q8_0")
        return half.numpy()
    assert kind == Kind.Q8_0
    return _q8_0(values)


def _q8_0(values: Tensor) -> NDArray[Any]:
    """As ggml's reference does it, bit for bit: halves are rounded away from zero."""
    blocks = values.float().view(-1, Q8_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    exact = blocks * inverse
    whole = exact.trunc()
    whole.add_(exact.sub_(whole).mul_(2).trunc_())
    written = np.empty((len(blocks), 2 + Q8_BLOCK), dtype=np.int8)
    written[:, :2] = scale.to(torch.float16).numpy().view(np.int8)
    torch.from_numpy(written)[:, 2:] = whole.to(torch.int8)
    return written


def write(writer: gguf.GGUFWriter, out: Path, tensors: Iterable[Wanted], pulse: Callable[[], None]) -> None:
    """The file, whole or not at all: metadata of `writer`, then the tensors. `pulse` is called all along."""
    tensors = list(tensors)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=tensor.kind)
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with temporary.open("ab", buffering=0) as file:
            for begins, part in _pieces(tensors):
                if begins:
                    _pad(file)
                _write_all(file, memoryview(part.reshape(-1).view(np.uint8).data))
                pulse()
            _pad(file)
            os.fsync(file.fileno())
        temporary.replace(out)
        durable.sync(out.parent)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def _pieces(tensors: Iterable[Wanted]) -> Iterator[tuple[bool, NDArray[Any]]]:
    """All pieces in order, and whether one begins a tensor; a few threads work ahead by a few pieces.

    Each thread works alone: torch's own threads wait for each other at every step, which is slow on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = min(_WORKERS, len(os.sched_getaffinity(0)))
    ahead: deque[tuple[bool, Future[NDArray[Any]]]] = deque()
    with ThreadPoolExecutor(workers, "gguf") as pool:
        try:
            for tensor in tensors:
                for first, rows in tensor.cuts():
                    ahead.append((first == 0, pool.submit(tensor.piece, first, rows)))
                    if len(ahead) > 2 * workers:
                        begins, future = ahead.popleft()
                        yield begins, future.result()
            while ahead:
                begins, future = ahead.popleft()
                yield begins, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _pad(file: FileIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _write_all(file: FileIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
