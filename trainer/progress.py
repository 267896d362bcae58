"""Signs of life: a line in `progress.jsonl` for the daemon, a short one on stdout for people."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import names
from trainer.contract import Progress

_QUIET = 20.0  # seconds after which a long step says that it is alive


class ProgressLog:
    """Appends to a job's progress, each line flushed at once. After a crash its torn tail is cut off."""

    def __init__(self, job: Path) -> None:
        self._path = job / names.PROGRESS
        self._file = self._path.open("a", encoding="utf-8")
        self._spoken = time.monotonic()

    def write(self, phase: str, **fields: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = Progress.model_validate({"time": now, "phase": phase, **fields})
        self._file.write(line.model_dump_json(exclude_none=True) + "\n")
        self._file.flush()
        self._spoken = time.monotonic()
        print(_for_people(line), flush=True)

    def beat(self, phase: str) -> None:
        """A bare line, if there has been none for a while."""
        if time.monotonic() - self._spoken > _QUIET:
            self.write(phase)

    def cut_after(self, step: int) -> None:
        """Drop all from the first line on that tells of a later step: it is going to be taken again."""
        self._file.truncate(whole_until(self._path, step))

    def close(self) -> None:
        self._file.close()


class Silence(ProgressLog):
    """Of all but the first of the processes that share a job: one tells for all."""

    def __init__(self) -> None:
        pass

    def write(self, phase: str, **fields: Any) -> None:
        pass

    def beat(self, phase: str) -> None:
        pass

    def cut_after(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


def whole_until(path: Path, step: int) -> int:
    """How many bytes of a file of JSON lines come before the first that is torn or tells of a later step."""
    keep = 0
    with path.open("rb") as file:
        for raw in file:
            try:
                told = json.loads(raw).get("step") if raw.endswith(b"\n") else step + 1
            except ValueError:
                break
            if told is not None and told > step:
                break
            keep += len(raw)
    return keep


def _for_people(line: Progress) -> str:
    parts: list[str] = [line.phase]
    if line.step is not None:
        parts.append(f"step {line.step}" + (f"/{line.steps}" if line.steps is not None else ""))
    if line.loss is not None:
        parts.append(f"loss {line.loss:.4f}")
    if line.lr is not None:
        parts.append(f"lr {line.lr:.3g}")
    if line.tokens_per_second is not None:
        parts.append(f"{line.tokens_per_second:.0f} tokens/s")
    if line.note is not None:
        parts.append(line.note)
    return "  ".join(parts)
