"""Over there, standard library only: answers, folders, locks, hashes."""

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

MARK = "engramd-there "  # before each answer, whatever else a login shell prints
RUN = ".run"  # of a job's folder: what only these modules read and write

Told = dict[str, Any]


_one_at_a_time = threading.Lock()


def say(answer: Told) -> None:
    with _one_at_a_time:
        sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
        sys.stdout.flush()


def beat(seconds: float = 5.0) -> None:
    """From now on a sign of life every few seconds, while a call reads gigabytes. Not for a call that forks."""

    def speak() -> None:
        while True:
            time.sleep(seconds)
            say({"beat": True})

    threading.Thread(target=speak, daemon=True).start()


def leave() -> None:
    """End here and now, not in the middle of a beat."""
    with _one_at_a_time:
        os._exit(0)


def root_of(told: Told) -> str:
    return os.path.join(os.path.expanduser("~"), os.path.expanduser(told["folder"]))


def place_of(told: Told, kind: str, key: str) -> str:
    return os.path.join(root_of(told), kind, key)


def job_of(told: Told) -> str:
    return place_of(told, "jobs", told["job"])


def write(path: str, content: Told) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def read(path: str) -> Told:
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lock_of(path: str, patience: float = 0.0) -> int | None:
    """The lock, held from now on; None where somebody else has it, for longer than `is_locked` does: `patience` in
    seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError:
            if time.monotonic() >= until:
                os.close(fd)
                return None
            time.sleep(0.01)


def is_locked(path: str) -> bool:
    if not os.path.exists(path):
        return False
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: whoever asks is in no other's way
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


def files_of(folder: str) -> Iterator[str]:
    """Paths of all files below, in order; what Python leaves beside its sources is none of them."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if one != "__pycache__")
        for name in sorted(files):
            yield os.path.relpath(os.path.join(parent, name), folder)


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def tree_sha256(folder: str, names: Iterable[str]) -> str:
    """Of names and contents of these files below it: what a copy of the code is known by."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update((f"{name}\0{sha256_of(os.path.join(folder, name))}\n").encode())
    return digest.hexdigest()


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
