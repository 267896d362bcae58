"""The line between a trainer that shares its job among several processes, and each of those processes.

A socket of this machine alone (abstract, so that nothing is left of it, and for the same user only). Over it a process
is given the lock of the job folder, to hold until its own end, and hears of a stop; it tells how it ended. A line that
breaks says that the other side is gone: then the process ends at once, whatever it waits for.
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any, Self

_STOP = b"stop"
_LONGEST = 1 << 16  # bytes of a message
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one of the processes ended: an exit code of the trainer's, and its sentence."""

    code: int
    reason: str | None


class Exchange:
    """The side of the one that started them: takes calls, hands out the lock, hears endings."""

    def __init__(self, lock: int, store: str) -> None:
        """`lock`: the descriptor that holds the folder's lock. `store`: a file by which they find each other."""
        self._lock, self._store = lock, store
        self.name = f"engramd-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(f"\0{self.name}")
        self._listener.listen(64)
        self._lines: dict[int, socket.socket] = {}  # by rank
        self._stop = False
        self.endings: dict[int, Ending] = {}
        self.lost: set[int] = set()  # whose line broke before they told how they ended

    def hear(self, seconds: float) -> None:
        """Take what comes within this time; returns at the first of it."""
        import select

        calls = [self._listener, *self._lines.values()]
        ready = set(select.select(calls, [], [], seconds)[0])
        for rank, line in list(self._lines.items()):
            if line in ready:
                self._take(rank, line)
        if self._listener in ready:
            self._answer()

    def _answer(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # whoever called has ended already
            line, _ = self._listener.accept()
            if not _same_user(line):
                line.close()
                return
            line.settimeout(60.0)  # a word that was sent at once, on a machine that may be busy
            rank = int(json.loads(line.recv(_LONGEST))["rank"])
            welcome = json.dumps({"store": self._store}).encode()
            socket.send_fds(line, [welcome], [self._lock])
            self._lines[rank] = line
            if self._stop:
                line.send(_STOP)

    def _take(self, rank: int, line: socket.socket) -> None:
        try:
            told = line.recv(_LONGEST)
        except OSError:
            told = b""
        if told:
            ending = json.loads(told)
            self.endings[rank] = Ending(int(ending["code"]), ending["reason"])
            return
        del self._lines[rank]
        line.close()
        if rank not in self.endings:
            self.lost.add(rank)

    @property
    def open_lines(self) -> int:
        return len(self._lines)

    def stop(self) -> None:
        """Ask all of them to save and end, also those that have not called yet. Asking twice is asking once."""
        if not self._stop:
            self._stop = True
            for line in self._lines.values():
                with contextlib.suppress(OSError):
                    line.send(_STOP)

    def hang_up(self) -> None:
        """Those that are still there end at once; nobody else can call."""
        self._listener.close()
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()


class Line:
    """The side of one of the processes."""

    def __init__(self, name: str, rank: int) -> None:
        """Call the one that started us. Raises OSError where nobody is there any more."""
        self.stop = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(f"\0{name}")
        if not _same_user(self._socket):
            raise PermissionError("another user answers for the trainer that started this process")
        self._socket.send(json.dumps({"rank": rank}).encode())
        told, descriptors, _, _ = socket.recv_fds(self._socket, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:
            raise ConnectionResetError("the trainer that started this process is gone")
        self.lock = descriptors[0]  # never closed: held until this process is gone
        welcome: dict[str, Any] = json.loads(told)
        self.store: str = welcome["store"]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                told = self._socket.recv(_LONGEST)
            except OSError:
                told = b""
            if not told:
                # Not an exit: another thread may wait in a collective for ever, and must not be waited for.
                os.kill(os.getpid(), signal.SIGKILL)
            if told == _STOP:
                self.stop.set()

    def tell(self, ending: Ending) -> None:
        """The last word; nothing waits for it."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"code": int(ending.code), "reason": ending.reason}).encode())


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, of this pid, ends in any way (prctl(2), PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the line still tells
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before it could be asked for


def _same_user(line: socket.socket) -> bool:
    told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", told)[1] == os.getuid())
