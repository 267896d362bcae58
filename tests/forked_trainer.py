"""Real trainer processes without their ten seconds of imports: forked off a server that has them done.

Each is a process of its own, to be stopped and killed like one; what it prints lies in trainer.log.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

SPARE_BYTES = "ENGRAMD_TEST_SPARE_BYTES"

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.forked_trainer_imports"])


def _child(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    import torch

    from trainer import names
    from trainer.__main__ import main

    os.environ.update(environment)
    torch.set_num_threads(1)
    if SPARE_BYTES in environment:
        _limit_memory(int(environment[SPARE_BYTES]))
    log = os.open(Path(folder) / names.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    os._exit(code)


def _limit_memory(spare: int) -> None:
    """Let the process grow by this many bytes and no further: a small machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class ForkedTrainer:
    """`python -m trainer FOLDER ARGUMENTS`, as far as anyone outside can tell."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        fresh: bool = False,  # a Python of its own: nf4 needs PEFT to be imported otherwise
    ) -> None:
        wished = {"ENGRAMD_DEVICE": "cpu", **(environment or {})}
        context = multiprocessing.get_context("spawn") if fresh else _CONTEXT
        self._process = context.Process(target=_child, args=([str(folder), *arguments], str(folder), wished))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the trainer did not end in time"
        return self._process.exitcode

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
