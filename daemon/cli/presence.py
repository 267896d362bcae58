"""Whether a daemon holds this home, found out without ever being in its way."""

import fcntl
import os

from daemon.home import Home


def daemon_pid(home: Home) -> int | None:
    """The pid of the daemon that runs on this home, None where none does.

    A starting daemon takes an exclusive lock without waiting, so even a shared lock of ours, held for a
    moment, could make its start fail. So the kernel's list of locks is read instead; only where there is
    none is the lock tried, and then only if the process that wrote its pid into the file is alive.
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
        listed = _is_listed(pid, os.fstat(fd).st_ino)
        if listed is not None:
            return pid if listed else None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return pid
        return None  # the pid has come again, as another program
    finally:
        os.close(fd)


def _is_listed(pid: int, inode: int) -> bool | None:
    """Whether the kernel lists an exclusive lock of this process on this file; None where it lists nothing.

    The device is not compared: on some file systems a file's own number for it is another one.
    """
    try:
        with open("/proc/locks", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return None
    wanted = ["FLOCK", "ADVISORY", "WRITE", str(pid)]
    return any(row[1:5] == wanted and row[5].rpartition(":")[2] == str(inode) for row in rows if len(row) > 5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
