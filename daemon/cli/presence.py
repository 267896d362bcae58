"""Whether a daemon holds this home, found out without ever being in its way."""

import fcntl
import os

from daemon.home import Home


def daemon_pid(home: Home) -> int | None:
    """The pid of the daemon that runs on this home, None where none does.

    A starting daemon takes an exclusive lock without waiting, so even a shared lock of ours could make
    its start fail. The lock is therefore only tried where the process that wrote its pid into the file
    is alive: that daemon has the lock already, and the try cannot succeed.
    """
    try:
        fd = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.pread(fd, 32, 0).strip()
        pid = int(text) if text.isdigit() else 0
        if not pid or not _alive(pid):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return pid
        return None  # the pid has come again, as another program
    finally:
        os.close(fd)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
