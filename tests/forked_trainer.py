"""Real trainer processes without their ten seconds of imports: forked off a server that has them done; fake ones too.

Each is a process of its own, to be stopped and killed like one; what it prints lies in trainer.log.
"""

import array
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    os._exit(_code_of(main, arguments))


def _code_of(main: Any, arguments: list[str]) -> int:
    try:
        return int(main(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


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


def in_a_fork(work: Callable[[Path], None], folder: Path, timeout: float = 120) -> int | None:
    """Do this where the trainer's imports are done already; the exit code of that process."""
    process = _CONTEXT.Process(target=work, args=(folder,))
    process.start()
    process.join(timeout)
    return process.exitcode


# -- for a daemon ------------------------------------------------------------------------------------


@functools.cache
def command() -> tuple[str, ...]:
    """What a daemon may be told to run as its trainer: a small client that has one forked off. For tests that do not
    look at the start of a trainer itself; the server ends with the tests."""
    return _served(_CONTEXT, "trainer.__main__")


@functools.cache
def fake() -> tuple[str, ...]:
    """The same of tests/doubles/fake_trainer.py, whose imports take longer than its work."""
    return _served(multiprocessing.get_context("spawn"), "tests.doubles.fake_trainer")


def _served(context: Any, module: str) -> tuple[str, ...]:
    folder = tempfile.TemporaryDirectory(prefix="engramd-forks-")
    path = os.path.join(folder.name, "socket")
    ready, told = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(path, told, module), daemon=True)
    server.start()
    told.close()
    assert ready.poll(120) and ready.recv() == "ready", "the server of forked trainers did not start"
    _kept.append((folder, server))
    return sys.executable, "-S", "-E", str(Path(__file__).with_name("forked_client.py")), path


_kept: list[Any] = []


def _serve(path: str, told: Any, module: str) -> None:
    """Until the tests are over, however they end."""
    main = importlib.import_module(module).main
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(16)
        told.send("ready")
        told.close()
        while listener in select.select([listener, parent.sentinel], [], [])[0]:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                with contextlib.suppress(OSError):  # the client was killed
                    _attend(client, main)
                os._exit(0)
            client.close()


def _attend(client: socket.socket, main: Any) -> None:
    """Fork the trainer of one client, and tell it its pid and how it ends."""
    data, ancillary, _, _ = client.recvmsg(1 << 20, socket.CMSG_SPACE(16 * 4))
    got = array.array("i")
    for _, _, raw in ancillary:
        got.frombytes(raw)
    told = json.loads(data)
    # The client's own end may come before the fork: then the trainer sees it at once.
    pid = os.fork()
    if pid == 0:
        client.close()
        _as_trainer(main, told, list(got))
    for descriptor in got:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        client.send(json.dumps({"pid": pid}).encode())
    _, status = os.waitpid(pid, 0)
    client.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _as_trainer(main: Any, told: dict[str, Any], got: list[int]) -> None:
    """Never returns. `got` is what the client sent: its own life, stdout, stderr, and what its arguments name."""
    death, out, err, *kept = got
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["environment"])
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(told["environment"].get("OMP_NUM_THREADS", "1")))
    numbers = dict(zip(map(str, told["kept"]), map(str, kept), strict=True))
    threading.Thread(target=_die_with, args=(death,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit(_code_of(main, [numbers.get(word, word) for word in told["arguments"]]))


def _die_with(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.kill(os.getpid(), signal.SIGKILL)
