"""Weight files one tensor at a time: safetensors headers read, tensors read, new files appended to.

The library reads such files lazily but writes only what is in memory all at once, so the writer is our own. The
format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes with the header's length N, little-endian; N bytes
of JSON, `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, padded with spaces; then
the tensors' bytes without a gap, the offsets counted from their beginning.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from trainer.base_files import weight_files
from trainer.contract import BadSpec
from trainer.durable import sync

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the format's own bound
_PIECE = 1 << 23  # bytes that are copied at a time
_BEHIND = 1 << 27  # bytes after which the disk is set to work, while the next tensors are computed


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a weight file: `start` is where its bytes begin in the file, `size` how many they are."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of a file that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def tensors_in(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, in the order of the bytes. Raises BadSpec where it is no whole such file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        found = [_stored(path, name, told, 8 + length) for name, told in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"an unknown number format {error}" if isinstance(error, KeyError) else str(error)
        raise BadSpec(f"{path} cannot be read as safetensors: {reason}") from error
    found.sort(key=lambda one: one.start)
    if found and found[-1].start + found[-1].size > size:
        raise BadSpec(f"{path} is shorter than its header says")
    return {one.name: one for one in found}


def _stored(path: Path, name: str, told: Mapping[str, Any], after: int) -> Stored:
    begin, end = told["data_offsets"]
    one = Stored(path, name, DTYPES[told["dtype"]], tuple(told["shape"]), after + begin, end - begin)
    if one.size != one.count * one.dtype.itemsize:
        raise ValueError(f"{name} has a wrong length")
    return one


def shards_of(folder: Path) -> list[Path]:
    """The weight files of a model folder, in order. Raises BadSpec where they are not safetensors."""
    found = weight_files(folder)
    if not found or any(path.suffix != ".safetensors" for path in found):
        raise BadSpec(
            f"the weights in {folder} are not in safetensors files: load them with transformers, save them with "
            "save_pretrained, and set base_model to the folder that this makes"
        )
    if (folder / "model.safetensors").is_file():  # as transformers chooses
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():  # another file of a like name, say of adapters, is no part of the model
        listed = set(json.loads(index.read_bytes())["weight_map"].values())
        return [path for path in found if path.name in listed]
    return found


class Room:
    """Memory that is used again from tensor to tensor: to be given fresh pages takes as long as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor for this use, with what the last one left in it; the last one is gone."""
        size = math.prod(shape) * dtype.itemsize
        held = self._held.get(use)
        if held is None or held.numel() < size:
            self._held[use] = held = torch.empty(size, dtype=torch.uint8)
        return held[:size].view(dtype).view(shape)


def read_tensor(one: Stored, room: Room | None = None) -> Tensor:
    """Its numbers, in memory (a map of the file would count as memory too, page by page)."""
    tensor = torch.empty(one.shape, dtype=one.dtype) if room is None else room.take("read", one.shape, one.dtype)
    if one.size:
        with one.file.open("rb", buffering=0) as file:
            file.seek(one.start)
            _fill(file, memoryview(_bytes_of(tensor)), one.file)
    return tensor


def _fill(file: FileIO, room: memoryview, path: Path) -> None:
    done = 0
    while done < len(room):
        got = file.readinto(room[done:])
        if not got:
            raise BadSpec(f"{path} ends too early")
        done += got


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


class ShardWriter:
    """A safetensors file that is appended to, tensor by tensor in the planned order; on the disk when it is left."""

    def __init__(self, path: Path, planned: list[Planned]) -> None:
        self._path, self._planned = path, planned
        self._file = path.open("wb", buffering=0)
        self._next = 0
        self._flusher = ThreadPoolExecutor(max_workers=1)
        self._flushing: Future[None] | None = None
        self._flushed_until = 0
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for one in planned:
            offsets = [begin, begin + one.size]
            header[one.name] = {"dtype": _NAMES[one.dtype], "shape": list(one.shape), "data_offsets": offsets}
            begin += one.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        _write(self._file, memoryview(len(text).to_bytes(8, "little") + text))

    def append(self, tensor: Tensor) -> None:
        """The next tensor, of the planned format and shape."""
        one = self._take()
        if tensor.dtype != one.dtype or tuple(tensor.shape) != one.shape:
            raise ValueError(f"{one.name} was planned as {one.dtype} {one.shape}")
        if one.size:
            _write(self._file, memoryview(_bytes_of(tensor.contiguous())))

    def append_copy(self, source: Stored) -> None:
        """The next tensor, as it lies in another file: its bytes pass through no memory of ours where they need not."""
        one = self._take()
        if source.size != one.size:
            raise ValueError(f"{one.name} was planned with {one.size} bytes")
        with source.file.open("rb", buffering=0) as file:
            _copy(file, source.start, self._file, source.size)

    def append_cast(self, source: Stored) -> None:
        """The next tensor in another number format, in pieces."""
        one = self._take()
        if source.count != math.prod(one.shape):
            raise ValueError(f"{one.name} was planned with another shape")
        per_piece = _PIECE // source.dtype.itemsize
        with source.file.open("rb", buffering=0) as file:
            file.seek(source.start)
            for begin in range(0, source.count, per_piece):
                piece = torch.empty(min(per_piece, source.count - begin), dtype=source.dtype)
                _fill(file, memoryview(_bytes_of(piece)), source.file)
                _write(self._file, memoryview(_bytes_of(piece.to(one.dtype))))

    def _flush_behind(self) -> None:
        """One flush at a time, of what has gathered; its failure is the next one's."""
        written = self._file.tell()
        if written - self._flushed_until < _BEHIND or (self._flushing is not None and not self._flushing.done()):
            return
        if self._flushing is not None:
            self._flushing.result()
        self._flushed_until = written
        self._flushing = self._flusher.submit(os.fsync, self._file.fileno())

    def _take(self) -> Planned:
        self._flush_behind()
        self._next += 1
        return self._planned[self._next - 1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown()  # before the file is closed under it
        self._file.close()
        if kind is None:
            if self._flushing is not None:
                self._flushing.result()
            if self._next != len(self._planned):
                raise ValueError(f"{self._path.name} lacks {self._planned[self._next].name}")
            sync(self._path)


def _write(file: FileIO, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += file.write(content[done:])


def _copy(source: FileIO, start: int, sink: FileIO, size: int) -> None:
    """To where `sink` stands; in the kernel, where the file systems can."""
    done = 0
    try:
        while done < size:
            got = os.copy_file_range(source.fileno(), sink.fileno(), size - done, start + done)
            if got == 0:
                break
            done += got
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        # else the two lie on different file systems, or the kernel is old: by hand
    source.seek(start + done)
    while done < size:
        piece = source.read(min(_PIECE, size - done))
        if not piece:
            raise BadSpec("a weight file ends too early")
        _write(sink, memoryview(piece))
        done += len(piece)


def copy_file(source: Path, out: Path) -> None:
    """A copy of the content, with the rights of a new file, on the disk."""
    shutil.copyfile(source, out)
    sync(out)


def link_or_copy(source: Path, out: Path) -> None:
    """A second name for a sealed file, which nobody will write to; a copy where the file system has no such links."""
    try:
        os.link(source, out)
    except OSError:
        copy_file(source, out)


def write_index(folder: Path, placed: Mapping[str, str], total: int, write: Callable[[Path, str], None]) -> None:
    """`model.safetensors.index.json`: in which file each tensor is, and how many bytes all of them are."""
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    write(folder / INDEX, json.dumps(content, indent=2) + "\n")
