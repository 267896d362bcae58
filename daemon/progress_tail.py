"""What a trainer says in `progress.jsonl`, read without the contract: `engramd status` must answer at once.

Lines are dicts with the keys of `trainer.contract.Progress`; a torn or strange line is passed over.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer import names

Line = dict[str, Any]
_TAIL = 8192  # bytes: some forty lines


def _parse(raw: bytes) -> Line | None:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def tail(folder: Path) -> list[Line]:
    """The newest whole lines of a job folder, oldest first, read from the file's end."""
    try:
        with open(folder / names.PROGRESS, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            pieces = file.read().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    if size > _TAIL:
        del pieces[0]  # begins in the middle of a line
    return [line for raw in pieces[:-1] if (line := _parse(raw)) is not None]


def last(folder: Path) -> Line | None:
    """The newest whole line."""
    lines = tail(folder)
    return lines[-1] if lines else None


def steps(folder: Path) -> Iterator[Line]:
    """Every line that tells of a step and its loss; of a step that was taken again, the last telling."""
    told: dict[int, Line] = {}
    try:
        with open(folder / names.PROGRESS, "rb") as file:
            for raw in file:
                line = _parse(raw)
                if line and isinstance(line.get("step"), int) and isinstance(line.get("loss"), int | float):
                    told[line["step"]] = line
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (told[step] for step in sorted(told))
