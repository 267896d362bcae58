"""A job in several processes without their imports: each is forked off the server of tests/forked_trainer.py.

What starts them is all that differs from `python -m trainer` with ENGRAMD_PROCESSES: the line, the lock, the ends and
the result are the trainer's own.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests import jobs
from tests.forked_trainer import SPARE_BYTES, ForkedTrainer
from trainer import launch, names
from trainer.contract import JobResult
from trainer.report import Report

Watcher = Callable[["Ranks"], None]


class Ranks:
    """The processes of one job."""

    def __init__(self, job: Path, size: int, line: str, sharded: str, spare: Mapping[int, int]) -> None:
        self.all = []
        for rank in range(size):
            environment = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
                "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", launch.SHARDED: sharded,
            }  # fmt: skip
            if rank in spare:
                environment[SPARE_BYTES] = str(spare[rank])
            self.all.append(ForkedTrainer(job, "--line", line, environment=environment))

    def poll(self) -> int | None:
        return None if any(one.poll() is None for one in self.all) else 0

    def kill(self) -> None:
        for one in self.all:
            if one.poll() is None:
                one.kill()


def run(
    job: Path,
    size: int = 2,
    *,
    sharded: str = "never",
    stop: threading.Event | None = None,
    watcher: Watcher | None = None,
    spare: Mapping[int, int] | None = None,
) -> int:
    """Run a job to its end in so many processes; the exit code. `watcher` is told of them in a thread of its own;
    `spare`: how many bytes some of them may grow by."""
    lock = os.open(job / names.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    report = Report(spec_sha256=jobs.sha256(job / names.SPEC))

    def start(line: str, shared: Path) -> Ranks:
        ranks = Ranks(job, size, line, sharded, spare or {})
        if watcher is not None:
            threading.Thread(target=watcher, args=(ranks,), daemon=True).start()
        return ranks

    try:
        return launch.run(job, lock, stop or threading.Event(), size, report, start)
    finally:
        os.close(lock)


def done(job: Path, size: int = 2, *, sharded: str = "never") -> JobResult:
    """Run a job that ends well; its result."""
    code = run(job, size, sharded=sharded)
    assert code == 0, (job / names.LOG).read_text()
    return jobs.result(job)
