"""Over there: what a trainer writes, line by line, until it has ended."""

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

from daemon.compute.ground import RUN, Told, is_locked, job_of, read, say

PIECE = 256 * 1024  # bytes of one answer, at most
BEAT = 5.0  # seconds between two answers, should there be nothing to tell
LOOK = 0.1  # seconds between two looks


def watch(told: Told) -> None:
    """Each new byte of progress and log, until the trainer has ended; a bare line now and then, so that a line that
    nobody holds any more is noticed."""
    job = job_of(told)
    progress = _Follow(os.path.join(job, "progress.jsonl"), told["progress_at"], told["progress_tail"], lines=True)
    log = _Follow(os.path.join(job, "trainer.log"), _log_at(job, told), "", lines=False)
    spoken = 0.0
    while True:
        gone = _gone(job, told["run"])  # before the last look at what it wrote
        while True:
            answer: Told = {}
            for name, follow in (("progress", progress), ("log", log)):
                at, found = follow.more()
                if found:
                    answer.update({name: found.decode("latin-1"), name + "_at": at})
            if not answer:
                break
            say(answer)
            spoken = time.monotonic()
        if gone:
            say({"gone": gone})
            return
        if time.monotonic() - spoken > BEAT:
            say({})
            spoken = time.monotonic()
        time.sleep(LOOK)


def _log_at(job: str, told: Told) -> int:
    """From where on the log is wanted; below 0: from the start of this run."""
    at = int(told["log_at"])
    return at if at >= 0 else int(read(os.path.join(job, RUN, "state.json")).get("log_at", 0))


class _Follow:
    """A file that grows, and that a trainer which goes on from a checkpoint cuts back first: then all is told anew."""

    def __init__(self, path: str, at: int, tail: str, lines: bool) -> None:
        self._path, self._at, self._tail, self._lines = path, at, tail, lines

    def more(self) -> tuple[int, bytes]:
        try:
            with open(self._path, "rb") as file:
                if self._lines and (self._at > os.fstat(file.fileno()).st_size or self._tail_of(file) != self._tail):
                    self._at, self._tail = 0, ""
                file.seek(self._at)
                found = file.read(PIECE)
                if self._lines:
                    found = found[: found.rfind(b"\n") + 1]
                at, self._at = self._at, self._at + len(found)
                self._tail = self._tail_of(file) if self._lines else ""
                return at, found
        except FileNotFoundError:
            return self._at, b""

    def _tail_of(self, file: Any) -> str:
        return tail_hash(lambda begin, length: _at(file, begin, length), self._at)


def _at(file: Any, begin: int, length: int) -> bytes:
    file.seek(begin)
    return bytes(file.read(length))


def tail_hash(read_at: Callable[[int, int], bytes], end: int) -> str:
    """Of the last bytes before `end`: whether a file is still the one that was read so far. Lines hold their time."""
    begin = max(0, end - 1024)
    return hashlib.sha256(read_at(begin, end - begin)).hexdigest() if end else ""


def _gone(job: str, run: str) -> Told | None:
    """How the run ended; None while it runs. A guardian that was killed, or a machine that lost its power, left no
    word: then the result says it, where the trainer wrote one."""
    if is_locked(os.path.join(job, "lock")):
        return None
    ended = read(os.path.join(job, RUN, "ended.json"))
    if ended.get("run") == run:
        return ended
    code = read(os.path.join(job, "result.json")).get("exit_code")
    return {"code": code, "signal": None if isinstance(code, int) else "SIGKILL", "why": None}
