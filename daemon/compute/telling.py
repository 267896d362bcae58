"""`compute-report.json`: what a job's way to another machine and back has cost so far: bytes, seconds, dollars."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from daemon import durable

FILE = "compute-report.json"


@dataclass(slots=True)
class Report:
    """Sums over all couriers of a job. `saved`: bytes that were over there already and were not sent."""

    where: str = ""
    host: str = ""
    pod: str | None = None
    run: str | None = None  # of the trainer over there that was started last
    log_at: int = 0  # bytes of its log that are here
    sent: int = 0
    fetched: int = 0
    saved: int = 0
    cuts: int = 0  # times that the line was lost
    dollars: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # of each step: prepare, train, fetch, ...

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = round(self.seconds.get(step, 0.0) + time.monotonic() - began, 3)

    def write(self, job: Path) -> None:
        durable.write_atomic(job / FILE, json.dumps(asdict(self), indent=1).encode() + b"\n", 0o600)


def read(job: Path) -> dict[str, Any]:
    """What the last courier wrote; empty where there is none, or it cannot be read."""
    try:
        told = json.loads((job / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def load(job: Path) -> Report:
    """To go on with: what an earlier courier of this job has counted."""
    told = read(job)
    known = {key: told[key] for key in Report.__dataclass_fields__ if key in told}
    try:
        return Report(**known)
    except TypeError:
        return Report()
