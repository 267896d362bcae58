"""What a job's `losses.jsonl` says of its memories: how well each was known as it was trained last."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import orjson

from trainer import names

_NONE = -1.0  # a loss is never less than 0


def of_memories(folder: Path) -> Iterator[tuple[str, float]]:
    """(id of a memory, nats a token): the mean over its samples, each as it was trained last. Nothing of a memory
    none of whose samples is told of, and nothing at all where the file is not there."""
    try:
        samples, last = (folder / names.SAMPLES).open("rb"), _last(folder / names.LOSSES)
    except FileNotFoundError:
        return
    with samples:
        memory, found = "", array("d")
        for place, line in enumerate(samples):
            told = orjson.loads(line)
            owner = str(told.get("memory") or "")
            if owner != memory:
                if found:
                    yield memory, sum(found) / len(found)
                memory, found = owner, array("d")
            if memory and place < len(last) and last[place] != _NONE:
                found.append(last[place])
        if found:
            yield memory, sum(found) / len(found)


def _last(path: Path) -> "array[float]":
    """Nats a token of each sample, by its position. A line that was cut off by a crash is left out."""
    last = array("d")
    with path.open("rb") as file:
        for line in file:
            try:
                pairs = orjson.loads(line)["losses"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                continue
            for place, loss in pairs:
                if place >= len(last):
                    last.extend([_NONE] * (place + 1 - len(last)))
                if loss is not None and loss >= 0.0:
                    last[place] = loss
    return last
