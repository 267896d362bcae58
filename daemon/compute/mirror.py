"""What a trainer elsewhere writes, in the job's folder here: status, bar and log read it as if it ran here.

The other machine is not believed: a line of progress that the contract does not know is left out, and nothing that a
terminal would obey gets into a file that people read.
"""

import codecs
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from daemon.compute.incoming import CONTROL
from daemon.compute.places import Heard
from trainer import names
from trainer.contract import Progress

MOST_LOG = 64 << 20  # bytes that one courier takes over
MOST_PROGRESS = 1 << 30
_QUIET = 5.0  # seconds between two notes


def plain(text: str, most: int = 500) -> str:
    """One line of text from elsewhere, for a sentence."""
    return CONTROL.sub("", " ".join(text.split()))[:most]


class Mirror:
    """`progress_at`, `log_at`: how far the files over there are here."""

    def __init__(self, job: Path, log_at: int) -> None:
        self._path = job / names.PROGRESS
        self.progress_at, self.log_at = 0, log_at
        self._logged = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
        self._spoken = 0.0

    def take(self, heard: Heard) -> None:
        if heard.progress and heard.progress_at in (0, self.progress_at):
            lines = b"".join(_known(line) for line in heard.progress.splitlines())
            anew = heard.progress_at == 0
            if anew or self.progress_at < MOST_PROGRESS:
                self._write(lines, anew=anew)
            self.progress_at = heard.progress_at + len(heard.progress)
        if heard.log:
            if self._logged < MOST_LOG:  # our own output is the job's trainer.log
                sys.stdout.buffer.write(CONTROL.sub("", self._decoder.decode(heard.log)).encode())
                sys.stdout.buffer.flush()
            self._logged += len(heard.log)
            self.log_at = heard.log_at + len(heard.log)

    def note(self, text: str, *, now: bool = False) -> None:
        """A line of our own, which is a sign of life; not more often than every few seconds."""
        if not now and time.monotonic() - self._spoken < _QUIET:
            return
        self._spoken = time.monotonic()
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = Progress(time=at, phase="working", note=plain(text))
        self._write(line.model_dump_json(exclude_none=True).encode() + b"\n", anew=False)

    def _write(self, data: bytes, *, anew: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (os.O_TRUNC if anew else 0)
        with open(os.open(self._path, flags, 0o600), "ab", buffering=0) as file:
            file.write(data)


def _known(line: bytes) -> bytes:
    """The line again, if it is one of progress; nothing otherwise."""
    if len(line) > 1 << 16:
        return b""
    try:
        told = Progress.model_validate(json.loads(line))
    except (ValueError, ValidationError, RecursionError):
        return b""
    if any(text and CONTROL.search(text) for text in (told.time, told.note, told.checkpoint)):
        return b""
    return line + b"\n"
