"""An optimizer's moments on the disk, by parameter name: in `optimizer.pt`, or beside it where they are many.

Small ones are one file. Those of a model in pieces may be larger than any memory: `optimizer-<n>.safetensors` then hold
the tensors as `<parameter>/<entry>`, and `optimizer.pt` all else and the names of these files.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from trainer import names
from trainer.contract import BadSpec
from trainer.pieces import Pieces
from trainer.shards import Planned, ShardWriter

LARGE = 4 << 30  # bytes of a file beside optimizer.pt, and of moments that get none

State = dict[str, dict[str, Any]]
Cut = Callable[[str, Tensor], Tensor]


def write(folder: Path, family: str, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Whole moments into `optimizer.pt`."""
    _save(folder / names.OPTIMIZER, {"family": family, "state": state})


def write_pieces(folder: Path | None, family: str, state: State, pieces: Pieces, large: int = LARGE) -> None:
    """Moments that lie in pieces, put together one after the other; without a folder this process gives its own."""
    tensors = [
        (name, key, one) for name, entries in state.items() for key, one in entries.items() if isinstance(one, Tensor)
    ]
    planned = [Planned(f"{name}/{key}", one.dtype, pieces.shape(name, one)) for name, key, one in tensors]
    whole = ((name, key, pieces.put_together(name, one)) for name, key, one in tensors)
    if folder is None:
        for _ in whole:
            pass
        return
    kept: State = {
        name: {key: one for key, one in entries.items() if not isinstance(one, Tensor)}
        for name, entries in state.items()
    }
    content: dict[str, Any] = {"family": family, "state": kept}
    if sum(one.size for one in planned) <= large:
        for name, key, tensor in whole:
            kept[name][key] = tensor
        content["state"] = {name: dict(sorted(entries.items())) for name, entries in kept.items()}
    else:
        content["files"] = _write_files(folder, planned, (one for _, _, one in whole if one is not None), large)
    _save(folder / names.OPTIMIZER, content)


def _write_files(folder: Path, planned: list[Planned], tensors: Iterator[Tensor], large: int) -> list[str]:
    groups: list[list[Planned]] = [[]]
    for one in planned:
        if groups[-1] and sum(other.size for other in groups[-1]) + one.size > large:
            groups.append([])
        groups[-1].append(one)
    written = []
    for number, group in enumerate(groups, start=1):
        written.append(f"optimizer-{number:05}.safetensors")
        with ShardWriter(folder / written[-1], group) as file:
            for _ in group:
                file.append(next(tensors))
    return written


def read(folder: Path, cut: Cut | None = None) -> State:
    """Moments by parameter name; `cut` leaves the piece of each that is kept. Raises BadSpec where a file holds
    anything but tensors and numbers."""
    path = folder / names.OPTIMIZER
    try:
        # In the memory of the machine once, however many processes read it.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True if cut else None)
        state: State = {
            name: {key: _part(name, one, cut) for key, one in entries.items()}
            for name, entries in stored["state"].items()
        }
        for file in stored.get("files", ()):
            if Path(file).name != file:
                raise BadSpec(f"{names.OPTIMIZER} of {folder.name} names a file outside of it")
            with safe_open(folder / file, "pt") as opened:
                for stored_name in opened.keys():  # noqa: SIM118 (no mapping)
                    name, _, key = stored_name.rpartition("/")
                    state[name][key] = _part(name, opened.get_tensor(stored_name), cut)
    except BadSpec:
        raise
    except Exception as error:
        raise BadSpec(f"{names.OPTIMIZER} of {folder.name} cannot be read") from error
    return state


def read_tensors(path: Path, cut: Cut) -> dict[str, Tensor]:
    """The pieces of a safetensors file's tensors, read one by one."""
    with safe_open(path, "pt") as opened:
        return {name: _part(name, opened.get_tensor(name), cut) for name in opened.keys()}  # noqa: SIM118


def write_tensors(path: Path | None, tensors: Mapping[str, Tensor], pieces: Pieces) -> None:
    """A safetensors file of tensors that lie in pieces, put together one after the other."""
    planned = [Planned(name, tensors[name].dtype, pieces.shape(name, tensors[name])) for name in sorted(tensors)]
    whole = (pieces.put_together(one.name, tensors[one.name]) for one in planned)
    if path is None:
        for _ in whole:
            pass
        return
    with ShardWriter(path, planned) as file:
        for tensor in whole:
            assert tensor is not None
            file.append(tensor)


def _part(name: str, value: Any, cut: Cut | None) -> Any:
    if cut is None or not isinstance(value, Tensor):
        return value
    return cut(name, value).clone()


def _save(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch writes a path's name into the archive; a buffer has none
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())
