"""A year with engramd, without the waiting: one real daemon whose clock is set forward, and the fake trainer, run in
its place. Books, files, schedule and requests are the daemon's own; only what must survive a power cut is left out.

    year = Year(Home(tmp_path), monkeypatch, settings)
    year.night(3, 2)      # two files with so many memories each, what the schedule does; then it is the next day
    year.ask("promote", version=7, despite="...")
    year.close()
"""

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import structlog

from daemon import audit, chains, disk, inbox, ledger, pruning, snapshots, supervisor
from daemon.home import Home
from daemon.ledger import jobs, requests
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from daemon.world import World
from tests.doubles import fake_trainer
from trainer import names

ZONE = ZoneInfo("Europe/Berlin")
FIRST = datetime(2026, 1, 1, tzinfo=ZONE)
BAD = {"candidate.anchor.token_accuracy": 0.1, "served.anchor.token_accuracy": 0.9,
       "candidate.anchor.probes": 16.0, "served.anchor.probes": 16.0}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "inbox.quiet_seconds": 1.0, "inbox.scan_seconds": 5.0, "schedule.timezone": "Europe/Berlin",
    "schedule.snapshot": "daily 03:00", "schedule.verify": "last 04:30", "training.base_model": "builtin:tiny",
    "training.gradient_accumulation_steps": 4, "training.num_train_epochs": 2, "disk.reserve_mb": 0,
    "evaluation.probes": 12, "evaluation.free_answers": 2, "training.mix.anchor_prompts": 24,
}  # fmt: skip
_SECONDS, _REAL_SECONDS = 120.0, 1800.0  # of one night at most, with the fake trainer and with a real one


class Heavy(fake_trainer.Job):
    """With a checkpoint that counts on the disk."""

    padding = bytes(192 << 10)


class Inside:
    """Stands in the place of `supervisor.Trainer`: the fake trainer has done all by the time that it is asked."""

    pid, pid_start = 1 << 30, 0.0  # nobody's
    poison = 0  # so many jobs more find what is beside them in `fault`

    def __init__(
        self, folder: Path, limits: supervisor.Limits, command: Sequence[str], *, keys: bool = False
    ) -> None:
        (folder / names.LOCK).touch(0o600)
        self.code = Heavy(folder, None).run()
        if Inside.poison:
            Inside.poison -= 1
            if not Inside.poison:
                (folder.parent / "fault").unlink()

    def poll(self) -> supervisor.Ended:
        return supervisor.Ended(self.code)

    def stop(self, why: str | None = None) -> None: ...


@dataclasses.dataclass
class Told:
    """What is noted down as the year goes on, to be compared with the books at its end."""

    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # profile -> memories
    passes: dict[int, Counter[str]] = dataclasses.field(default_factory=dict)  # job -> memory -> times, by its spec
    versions: dict[int, tuple[int, str]] = dataclasses.field(default_factory=dict)  # version -> job, checkpoint
    peak: int = 0  # bytes of `me` on the disk, just before something is pruned


class Year:
    """One home from New Year on. Dropped memories are all different, and carry the time of their day."""

    def __init__(
        self, home: Home, patch: pytest.MonkeyPatch, settings: dict[str, Any], trainer: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """`trainer`: a command that is run in the place of the fake one."""
        patch.setattr("os.fsync", lambda fd: None)
        patch.setattr("daemon.durable.sync_filesystem", lambda folder: None)
        if not trainer:
            patch.setattr(supervisor, "Trainer", Inside)
            patch.setattr(Inside, "poison", 0)
        self.trainer = trainer
        patch.setattr(pruning, "prune", self._measured(pruning.prune))
        self.home, self.settings = home, load(home, SETTINGS | settings, {})
        self.at, self.day, self.told = FIRST.astimezone(UTC), 0, Told()
        self._count, self._files, self._seconds = 0, 0, 0.0
        self._open()

    def _open(self) -> None:
        self.lock = Lock(self.home)
        command = self.trainer or supervisor.COMMAND
        self.service = Service(self.home, self.settings, now=self._now, clock=self._clock, trainer=command)
        self._no_fsync()

    def _no_fsync(self) -> None:
        for db in (self.service._db, *(world.db for world, _, _ in self.service._worlds.values())):
            db.execute("PRAGMA synchronous=OFF")

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.service.stop()
        self.lock.release()

    # -- time -----------------------------------------------------------------------------------

    def _now(self) -> str:
        return self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _clock(self) -> float:
        return self._seconds

    def _on(self, seconds: float) -> None:
        self.at, self._seconds = self.at + timedelta(seconds=seconds), self._seconds + seconds

    def until(self, hour: int, minute: int) -> None:
        """To this time of the day in the home's zone."""
        local = (FIRST + timedelta(days=self.day)).replace(hour=hour, minute=minute)
        self._on(max(0.0, (local.astimezone(UTC) - self.at).total_seconds()))

    def settle(self, done: Callable[[], bool] | None = None) -> None:
        """Until the daemon has come to rest, and what was asked for is `done`."""
        deadline = time.monotonic() + (_REAL_SECONDS if self.trainer else _SECONDS)
        while time.monotonic() < deadline:
            self._on(0.05 if self.trainer else 1.0)
            worked = self.service.tick()
            if self.service.idle() and (done is None or done()):
                return
            if not worked and self.trainer:
                time.sleep(0.05)
        raise AssertionError(f"no rest on day {self.day}: {self.service._status_line()}")

    # -- a person -------------------------------------------------------------------------------

    def drop(self, *sizes: int, profile: str = "me") -> None:
        """A file of so many memories, for each of these."""
        for size in sizes:
            numbers = range(self._count + 1, self._count + size + 1)
            self._count += size
            self.put([{"prompt": f"What about {n:05}?", "response": f"It is thing {n:05} of day {self.day}."}
                      for n in numbers], profile)  # fmt: skip

    def put(self, items: list[dict[str, str]], profile: str = "me") -> None:
        """A file of these items, which become a memory each."""
        self.told.dropped[profile] = self.told.dropped.get(profile, 0) + len(items)
        self._files += 1
        path = self.home.profile(profile).inbox / f"{self.day:03}-{self._files:04}.jsonl"
        path.write_text("".join(json.dumps(item | {"timestamp": self._now()}) + "\n" for item in items))
        self.service._hint()  # as inotify would

    def night(self, *sizes: int, others: int = 0) -> None:
        """Files of so many memories each in the evening, `others` for the second profile; all is done by morning.
        Then the next day begins."""
        self.until(1, 0)
        self.drop(*sizes)
        self.drop(*([others] if others else []), profile="ada")
        self.settle()
        for hour, minute in ((3, 0), (4, 30)):  # a snapshot and what is pruned; cycles, and a look at the snapshots
            self.until(hour, minute)
            self.settle()
        self.note()
        self.day += 1

    def ask(self, command: str, profile: str = "me", **arguments: Any) -> dict[str, Any]:
        """What the daemon answers. Raises AssertionError where it could not do it."""
        number = requests.ask(self.service._db, profile, command, arguments, self._now())
        self.settle(lambda: (requests.get(self.service._db, number) or {})["state"] in ("done", "failed"))
        row = requests.get(self.service._db, number)
        assert row is not None and row["state"] == "done", row
        return dict(json.loads(row["answer"]))

    def poison(self, number: int) -> None:
        """The gate sees general ability fall in the next so many jobs."""
        folder = self.home.profile("me").jobs
        (folder / "figures.json").write_text(json.dumps(BAD))
        (folder / "fault").write_text("metrics:figures.json\n")
        Inside.poison = number

    # -- what came of it ------------------------------------------------------------------------

    def world(self, profile: str = "me") -> World:
        return self.service._worlds[profile][0]

    @property
    def db(self) -> ledger.Database:
        return self.world().db

    def note(self) -> None:
        """What the specs of the jobs since the last look say, as long as they lie there; and all versions."""
        paths = self.world().paths
        for job in jobs.since(self.db, max(self.told.passes, default=0)):
            if job["kind"] != "finetune":
                continue
            folder = paths.jobs / str(job["folder"])
            spec = json.loads((folder / names.SPEC).read_bytes())
            owners = [json.loads(line).get("memory") for line in (folder / names.SAMPLES).read_bytes().splitlines()]
            found = Counter(owners[place] for segment in spec["segments"] for place in segment)
            found.pop(None, None)
            self.told.passes[job["id"]] = found
        for row in jobs.versions(self.db):
            seen = self.told.versions.setdefault(row["id"], (row["job"], row["checkpoint_sha256"]))
            assert seen == (row["job"], row["checkpoint_sha256"]), f"v{row['id']} is another one than it was"

    def used(self) -> int:
        """Bytes of `me` on the disk, with its snapshots."""
        days = [self.home.snapshots / name for name in snapshots.names_in(self.home.snapshots)]
        return sum(disk.used_bytes([self.world().paths.root, *days]).values())

    def _measured(self, prune: Callable[..., pruning.Report]) -> Callable[..., pruning.Report]:
        """Measures before it prunes: the newest snapshot is there, and nothing has gone for it yet."""

        def measured(world: World, *arguments: Any, **options: Any) -> pruning.Report:
            if world.name == "me" and self.day % 5 == 0:
                self.told.peak = max(self.told.peak, self.used())
            return prune(world, *arguments, **options)

        return measured

    def findings(self) -> list[str]:
        """What `engramd audit` would say, of all profiles."""
        found = []
        for name, (world, _, _) in self.service._worlds.items():
            one = audit.Audit(
                world.paths, world.db, self.service._db, chains.why_damaged, inbox.folder_sha256, runs=False
            )
            found += [f"{name}: {finding.problem}" for finding in one.run()]
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the thousands of lines of a year's log."""
    before = structlog.get_config()
    only_errors = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=only_errors, cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
