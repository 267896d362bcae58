"""One daemon per home."""

import fcntl
import os

from daemon.home import Home


class AlreadyRunning(Exception):
    """Another daemon holds this home."""


class Lock:
    """One daemon per home: the holder alone migrates and changes state. Raises AlreadyRunning."""

    def __init__(self, home: Home) -> None:
        home.lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fd = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise AlreadyRunning(f"another engramd runs on {home.root}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.ftruncate(self._fd, 0)  # no stale pid for a reader
        os.close(self._fd)
