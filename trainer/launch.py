"""A job in several processes of one machine, seen from the one that was started: it trains nothing itself.

It starts `accelerate launch` (trainer/launcher.py), which starts the processes, each of which calls back on a line of
its own (trainer/rank_line.py). So a stop reaches them and not the launcher, which would kill them half a minute later;
their exit codes, which launchers lose, come home; and whoever dies, all die: a process that waits for a dead one in a
collective would wait for ever. `result.json` is written by the first process, or here where it could not.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from trainer import names
from trainer.contract import BadSpec
from trainer.durable import write_text
from trainer.names import ExitCode
from trainer.rank_line import Ending, Exchange
from trainer.report import Report

PROCESSES = "ENGRAMD_PROCESSES"  # how many; 0: as many as there are CUDA devices
SHARDED = "ENGRAMD_SHARDED"  # auto, never or always
FOLDER = ".ranks"  # in the job folder, while they are at work
_GRACE = 5.0  # seconds that the others have to come to the same end
_KILL = 20.0  # seconds after which a launcher that does not end is killed
_LOOK = 0.1  # seconds between two looks at the launcher and at the stop
_CRASHED = 1


class Launched(Protocol):
    """What was started: several processes, or the launcher that has them."""

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


Start = Callable[[str, Path], Launched]  # given the name of the line and the folder that they share


def wanted(content: bytes, environ: Mapping[str, str] | None = None) -> int:
    """How many processes this job's spec is for: more than one for finetune alone. Raises BadSpec.

    Whether the spec itself is right is found out by the one that reads it.
    """
    given = os.environ if environ is None else environ
    told = given.get(PROCESSES, "1")
    if not (told.isascii() and told.isdigit()) or int(told) > 64:
        raise BadSpec(f"{PROCESSES} is {told!r}; allowed are 0 (one for each CUDA device) to 64")
    if given.get(SHARDED, "auto") not in ("auto", "never", "always"):
        raise BadSpec(f"{SHARDED} is {given[SHARDED]!r}; allowed are auto, never and always")
    if told == "1" or not _is_finetune(content):
        return 1
    return int(told) or _cards(given)


def _is_finetune(content: bytes) -> bool:
    try:
        spec = json.loads(content)
    except ValueError:
        return False
    return isinstance(spec, dict) and spec.get("kind", "finetune") == "finetune"


def _cards(environ: Mapping[str, str]) -> int:
    if environ.get("ENGRAMD_DEVICE", "auto") == "cpu":
        return 1
    import torch  # where the answer is 1, this process needs it anyway

    return max(1, torch.cuda.device_count())


def run(
    job: Path, lock: int, stop: threading.Event, processes: int, report: Report, start: Start | None = None
) -> int:
    """Do the job in so many processes; the exit code. None of them is left when it returns."""
    began = time.monotonic()
    shared = job / FOLDER
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir(mode=0o700)
    try:
        with Exchange(lock, str(shared / "group")) as exchange:
            launched = start(exchange.name, shared) if start else _Accelerate(job, exchange.name, shared, processes)
            try:
                _follow(exchange, launched, stop)
            finally:
                exchange.hang_up()
                launched.kill()
            return _conclude(job, exchange, report, time.monotonic() - began)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _follow(exchange: Exchange, launched: Launched, stop: threading.Event) -> None:
    """Until all have ended: pass a stop on; where one is lost, or ended otherwise than well, end the others too."""
    patience = math.inf
    while launched.poll() is None and time.monotonic() < patience:
        exchange.hear(_LOOK)
        if stop.is_set():
            exchange.stop()
        if exchange.lost:
            patience = 0.0
        elif patience == math.inf and any(one.code != ExitCode.DONE for one in exchange.endings.values()):
            patience = time.monotonic() + _GRACE
    if launched.poll() is None:
        exchange.hang_up()
        deadline = time.monotonic() + _KILL
        while launched.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    deadline = time.monotonic() + _GRACE
    while exchange.open_lines and time.monotonic() < deadline:  # what was told last
        exchange.hear(_LOOK)


def _conclude(job: Path, exchange: Exchange, report: Report, seconds: float) -> int:
    """The first process's word, which `result.json` says too; else that of the first who had one."""
    endings = exchange.endings
    if 0 in endings:
        return endings[0].code
    for rank in sorted(endings):
        ending = endings[rank]
        if ending.code != ExitCode.DONE:
            return _write(job, ending, report, seconds)
    killed = ", ".join(str(rank) for rank in sorted(exchange.lost)) or "none that had begun"
    print(f"one of the job's processes ended before its time (number {killed})", file=sys.stderr)
    return _CRASHED


def _write(job: Path, ending: Ending, report: Report, seconds: float) -> int:
    result = report.result(ExitCode(ending.code), ending.reason, seconds)
    try:
        write_text(job / names.RESULT, result.model_dump_json(indent=1) + "\n")
    except OSError:  # a full disk
        return ExitCode.NO_DEVICE
    if ending.reason is not None:
        print(ending.reason, file=sys.stderr)
    return ending.code


class _Accelerate:
    """`accelerate launch`, in a session of its own: a SIGTERM for the trainer's group is none for it."""

    def __init__(self, job: Path, line: str, shared: Path, processes: int) -> None:
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // processes)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # which would listen on every address of the machine
        }
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "trainer.launcher", str(job), "--line", line, "--shared", str(shared),
                "--processes", str(processes), "--parent", str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
