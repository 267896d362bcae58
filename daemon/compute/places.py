"""What a place is where jobs are trained, and the only choice between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.compute.orders import Order
from daemon.compute.telling import Report

Say = Callable[[str], None]  # a note for the person, a sign of life too; an empty one only asks whether to go on


class LineLost(Exception):
    """Nothing is heard any more; what goes on over there goes on. The same call may be made again."""


class NotNow(Exception):
    """This place cannot take the job as things are: one sentence, with what mends it. The job waits, tried again."""


class Leave(Exception):
    """Whoever asked for this is gone, or asks to stop: drop what is at hand. Raised by `Say`."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Bytes of the files over there; empty where nothing happened for a moment. `progress` begins at the byte
    `progress_at` of its file, and holds whole lines only: 0 means that all of it is told anew."""

    progress: bytes = b""
    progress_at: int = 0
    log: bytes = b""
    log_at: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """The trainer over there has ended. `why`: "deadline" or "stop", where it had to be killed for that."""

    code: int | None
    signal: str | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to bring home, by its path below the job's folder. `sha256`, where it is known, makes it one that never
    changes, so that what a cut left of it is gone on with. `optional`: it may not be there."""

    name: str
    size: int | None = None  # bytes
    sha256: str | None = None
    optional: bool = False


class Place(Protocol):
    """Somewhere with a trainer. Each call may be made again after LineLost, and after a crash, with the same result."""

    label: str  # for sentences: the host, or the pod
    report: Report

    def prepare(self, job: Path, say: Say) -> None:
        """Code, environment, base, parent and the job's folder are there. Comes before all else; the other calls use
        the same `say`. Raises LineLost, NotNow, Leave."""

    def start(self) -> None:
        """The trainer runs, or has ended: one that does is found again by the job's hash. Raises LineLost, NotNow."""

    def watch(self, progress_at: int, log_at: int) -> Iterator[Heard | Gone]:
        """What is written over there from these bytes on, at least once a second; Gone is the last. A `log_at` below 0:
        from the start of this run. Raises LineLost."""

    def stop(self) -> None:
        """Ask the trainer to save and end, as SIGTERM does. Raises LineLost."""

    def fetch(self, staged: Path, wanted: Sequence[Wanted], say: Say) -> None:
        """Bring files into `staged`, going on where a cut left them; what they hold is judged by others. Raises
        LineLost, NotNow, Leave."""

    def pause(self) -> None:
        """All that was wanted is here, and not judged yet: what costs by the hour need not wait for that. Not followed
        by another call but `release`, in this process."""

    def release(self, done: bool) -> None:
        """Stop the meter, and remove what nobody needs over there. `done`: the job is home for good."""


def choose(order: Order) -> Place:
    if order.where == "runpod":
        from daemon.compute import runpod

        return runpod.Pod(order)
    from daemon.compute import ssh

    return ssh.Ssh(order)
