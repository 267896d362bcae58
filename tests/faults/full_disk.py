"""A night on a small disk of its own that is filled to the last byte, again and again.

The disk is a tmpfs, so only root can have one. The daemon runs on until it is stopped: what it cannot write it must
wait for, and go on with by itself.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemon import snapshots
from daemon.ledger import batches, jobs, requests
from daemon.service import utc_now
from tests.faults.night import FAKE_TRAINER, ROOT, Night

PAGE = 4096
SIZE_MB = 64
LAUNCHER = """
import sys
from pathlib import Path
import daemon.service, daemon.training
daemon.service.DISK_PAUSE = daemon.training.DISK_PAUSE = 0.1
daemon.training.MACHINE_PAUSE = 0.2
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from daemon import logs
home = Home(Path(sys.argv[1]))
settings = load(home)
logs.configure(home, settings.log.level, rotate_mb=0.02)
lock, service = Lock(home), Service(home, settings, trainer=(sys.executable, *sys.argv[2:]))
service.handle_signals()
service.run()
lock.release()
"""
TOML = """
[disk]
reserve_mb = {reserve}
[retention.snapshots]
keep_last = 2
keep_daily = 0
keep_weekly = 0
keep_monthly = 0
[retention.jobs]
keep_last = 1000
"""


@contextlib.contextmanager
def small_disk(folder: Path, mb: int = SIZE_MB) -> Iterator[Path]:
    """A tmpfs of so many MiB. Raises OSError where this user or this machine cannot have one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mb}m,mode=700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Disk:
    """What fills it. `fill` takes all, or all but a few pages, and takes what others free meanwhile too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """All but so many pages."""
        free = os.statvfs(self.folder)
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with contextlib.suppress(OSError):
                os.posix_fallocate(fd, os.fstat(fd).st_size, max(free.f_bavail - leave, 0) * PAGE or 1)
            if leave == 0:
                self._to_the_last(fd)
        finally:
            os.close(fd)

    def _to_the_last(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(PAGE))

    def hold(self, seconds: float, leave: int = 0) -> None:
        """Fill, keep full, let go."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.fill(leave)
            time.sleep(0.002)
        self.let_go()

    def let_go(self) -> None:
        self._file.unlink(missing_ok=True)


class FullNight(Night):
    """A night whose daemon does not end by itself, on a disk that can be filled."""

    def __init__(self, disk: Path, out: Path, *, fake: bool = True, reserve: int = 0, most: int = 1) -> None:
        super().__init__(disk / "home", most=most, fake=fake)
        self.disk, self.out = Disk(disk), out
        with open(self.home.etc / "engramd.toml", "a") as file:
            file.write(TOML.format(reserve=reserve))

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")}
        environment |= {"PYTHONPATH": str(ROOT), "ENGRAMD_HOME": str(self.home.root)}
        trainer = [str(FAKE_TRAINER)] if self.fake else ["-m", "trainer"]
        with open(self.out, "ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(self.home.root), *trainer], stdout=out, stderr=out, env=environment
            )

        self.until(lambda: '"profile_ready"' in self.out.read_text())

    def told(self) -> str:
        return self.out.read_text()[-4000:]

    def stop(self) -> None:
        """SIGTERM; it must end well."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self.told()

    def drop(self, number: int, samples: int = 5) -> None:
        """As a whole or not at all: a drop that finds no room is repeated."""
        while True:
            try:
                super().drop(number, samples)
                return
            except OSError:
                (self.home.inbox / f".{number:02}.jsonl").unlink(missing_ok=True)
                time.sleep(0.01)

    def ask(self, command: str, **arguments: Any) -> bool:
        """A row for the daemon. False where it could not be written."""
        if not self.home.database.exists():
            return False
        try:
            requests.ask_beside(self.home.database, "me", command, arguments, utc_now())
        except sqlite3.OperationalError:
            return False
        return True

    # -- waiting ----------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait for a state of the running daemon, which must not end before."""
        deadline = time.monotonic() + seconds
        while not (self.home.profile("me").ledger.exists() and done()):
            assert self.running(), f"the daemon ended: {self.told()}"
            assert time.monotonic() < deadline, f"it hangs: {self.told()}"
            time.sleep(0.02)

    def all_trained(self, count: int) -> bool:
        with self.ledger() as db:
            return batches.counts(db) == {"done": count} and jobs.open_job(db) is None

    def answered(self) -> bool:
        """Nobody waits for an answer any more."""
        with self.home_ledger() as db:
            return not requests.open_ones(db)

    def home_ledger(self) -> Any:
        from daemon import ledger

        return ledger.open_home(self.home.database, write=False)

    def waits(self) -> str | None:
        with self.ledger() as db:
            return jobs.get_meta(db, "waits")

    # -- the night --------------------------------------------------------------------------------

    def disturb_by_filling(self, fills: int, to_drop: list[int], rng: random.Random, longest: float = 0.5) -> None:
        """Fill at random moments, so many times; drop the batches, and ask for snapshots, between and meanwhile."""
        gaps = max(fills // max(len(to_drop), 1), 1)
        for turn in range(fills):
            if to_drop and turn % gaps == 0:
                self.drop(to_drop.pop(0))
            if turn % 3 == 1:
                self.ask("snapshot")
            if turn % 7 == 5:
                self.ask("prune")
            time.sleep(rng.uniform(0.0, longest))
            self.disk.hold(rng.uniform(0.02, longest), leave=rng.choice((0, 0, 0, 1, 2, 3, 5, 8, 13, 21, 34, 55)))
            assert self.running(), f"the daemon ended: {self.told()}"
        for number in to_drop:
            self.drop(number)

    def check_snapshots(self) -> int:
        """Each is whole; gives how many there are."""
        found = snapshots.names_in(self.home.snapshots)
        for name in found:
            assert not list(snapshots.problems(self.home.snapshots / name, {}))
        return len(found)

    def log_lines(self) -> list[dict[str, Any]]:
        """All whole lines of the log. One that the disk had no room for ends early, and spoils no other."""
        files = sorted(self.home.log.parent.glob(f"{self.home.log.name}*"))
        lines = [line for file in files for line in file.read_bytes().splitlines()]
        return [json.loads(line) for line in lines if line.endswith(b"}")]
