"""Steps 2 and 3 of the road, for one profile: from a claimed file to memories in the ledger, or a refusal.

Work comes in bounded slices: one call reads for a fraction of a second and commits once, so that the
watchdog's ping and a stop are never late. A batch is visible from its last slice on.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import durable, inbox, readers
from daemon.ledger import batches, memories
from daemon.logs import get_logger
from daemon.records import BadItem, Memory, Refused
from daemon.rules import planning
from daemon.rules.curation import judge
from daemon.world import World

SLICE_SECONDS = 0.5
LISTED_BAD_ITEMS = 1000  # in the reason file; all are counted

_log = get_logger()


@dataclass(slots=True)
class _Open:
    """The batch that is being read, and how far."""

    row: dict[str, Any]
    items: Iterator[Memory | BadItem]
    first_seq: int
    ended: bool = False
    refused: str | None = None
    taken: int = 0  # memories, known ones included
    new: int = 0
    skipped: int = 0
    bad_items: int = 0
    listed: list[BadItem] = field(default_factory=list)


class Ingestion:
    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._clock = clock
        self._open: _Open | None = None
        self._log = _log.bind(profile=world.name)

    def register(self, claims: list[inbox.Claim], now: str) -> None:
        """Claimed files become batches, a slice of them in one transaction."""
        db = self._world.db
        with db.transaction():
            for claim in claims:
                batch = batches.insert(
                    db, sha256=claim.sha256, name=claim.name, path=claim.path.name,
                    size=claim.size, mtime=claim.mtime, now=now,
                )  # fmt: skip
                self._log.info("batch_claimed", batch=batch, file=claim.name, bytes=claim.size)

    def recover(self, now: str) -> None:
        """Files in `claimed/` that the ledger does not wait for: registered, archived or rejected."""
        world = self._world
        self._open = None
        unknown: list[inbox.Claim] = []
        for claim in inbox.claimed_files(world.home, world.name):
            row = batches.latest_of_path(world.db, claim.path.name)
            if row is None:
                unknown.append(claim)
            elif row["state"] not in ("claimed", "reading"):
                self._put_away([row], now)
        if unknown:
            self.register(unknown, now)

    @property
    def busy(self) -> bool:
        return self._open is not None or batches.any_unread(self._world.db)

    def read_slice(self, now: str) -> bool:
        """Read for a moment. Gives whether there was anything to do."""
        db, budget = self._world.db, self._world.settings.inbox.slice_memories
        deadline = self._clock() + SLICE_SECONDS
        ended: list[_Open] = []
        worked = False
        try:
            with db.transaction():
                while budget > 0 and self._clock() < deadline:
                    if self._open is None and not self._begin(budget):
                        break
                    assert self._open is not None
                    worked = True
                    budget -= self._take(self._open, budget, deadline)
                    if self._open.ended and self._close(self._open, now):
                        ended.append(self._open)
                        self._open = None
                batches.close_settled(db, [open_.row["id"] for open_ in ended])
        except BaseException:
            self._open = None  # its position is ahead of what was committed: the next slice starts it anew
            raise
        for open_ in ended:
            self._tell(open_)
        self._put_away([batches.get(db, open_.row["id"]) or open_.row for open_ in ended], now)
        return worked

    def _begin(self, budget: int) -> bool:
        """Open the next batch. False where there is none, or only the rows of a half-read one could go."""
        db = self._world.db
        row = batches.next_to_read(db)
        if row is None:
            return False
        if row["state"] == "reading":  # of an earlier life: what it staged goes, slice by slice
            if memories.unstage(db, row["first_seq"], budget):
                return False
            batches.restart_reading(db, row["id"])
        first_seq = memories.last_seq(db) + 1
        batches.start_reading(db, row["id"], first_seq)
        self._open = _Open(row, self._items(self._world.paths.claimed / row["path"], row), first_seq)
        return True

    def _items(self, path: Path, row: dict[str, Any]) -> Iterator[Memory | BadItem]:
        """What the readers give for a file, or for each file of a folder. Raises Refused, OSError."""
        settings = self._world.settings.inbox
        limits = readers.Limits(settings.max_file_mb * 2**20, settings.max_document_mb * 2**20)
        if not path.is_dir():
            with open(path, "rb") as stream:
                yield from readers.read(stream, row["name"], row["size"], row["mtime"], limits)
            return
        good = False
        files, bad = inbox.folder_files(path, limits.max_file_bytes)
        yield from bad
        for file in files:
            shown = file.relative.encode(errors="backslashreplace").decode()
            try:
                with open(path / file.relative, "rb") as stream:
                    base = os.path.basename(file.relative)
                    for item in readers.read(stream, base, file.size, file.mtime, limits):
                        good = good or isinstance(item, Memory)
                        yield BadItem(f"{shown}, {item.where}", item.reason) if isinstance(item, BadItem) else item
            except (Refused, OSError) as refusal:
                yield BadItem(shown, str(refusal))
        if not good:
            raise Refused("no file in this folder could be taken")

    def _take(self, open_: _Open, budget: int, deadline: float) -> int:
        """Stage at most `budget` items of the open batch; gives how many it looked at, at least 1."""
        settings = self._world.settings
        before = open_.first_seq - 1 + open_.taken  # how many came before, whatever the slices
        judged: list[memories.Judged] = []
        looked_at = 0
        while not open_.ended and looked_at < budget and (looked_at % 64 or self._clock() < deadline):
            try:
                item = next(open_.items, None)
            except (Refused, OSError) as error:
                open_.refused = str(error) if isinstance(error, Refused) else f"it cannot be read: {error}"
                item = None
            if item is None:
                open_.ended = True
                break
            looked_at += 1
            if isinstance(item, BadItem):
                open_.bad_items += 1
                if len(open_.listed) < LISTED_BAD_ITEMS:
                    open_.listed.append(item)
                continue
            id_, verdict = item.id, judge(item, self._world.curation)
            state, reason = ("waiting", None) if verdict.keep else ("skipped", verdict.reason)
            enough = before + len(judged) >= settings.jobs.held_out_from
            if verdict.keep and planning.is_held_out(id_, settings.jobs.held_out_percent, enough=enough):
                state, reason = "held_out", "kept for measuring"
            open_.skipped += not verdict.keep
            judged.append((id_, item, state, reason))
        open_.taken += len(judged)
        if open_.refused is None:
            open_.new += memories.stage(self._world.db, open_.row["id"], judged)
        return max(looked_at, 1)

    def _close(self, open_: _Open, now: str) -> bool:
        """Make the batch visible, or refuse it. False while staged rows of a refused one are left."""
        db, batch = self._world.db, open_.row["id"]
        if open_.refused is not None:
            if memories.unstage(db, open_.first_seq, self._world.settings.inbox.slice_memories):
                return False
            batches.refuse(db, batch, open_.refused, now)
            return True
        if open_.bad_items:  # before the commit: after it, nobody would know the lines any more
            inbox.report_bad_items(
                self._world.home, self._world.name, open_.row["name"],
                f"{open_.bad_items} of {open_.bad_items + open_.taken} items could not be taken; the others were",
                open_.listed, now, batch,
            )  # fmt: skip
        batches.finish_reading(
            db, batch, last_seq=open_.first_seq + open_.new - 1, duplicates=open_.taken - open_.new,
            skipped=open_.skipped, bad_items=open_.bad_items, now=now,
        )  # fmt: skip
        return True

    def _tell(self, open_: _Open) -> None:
        log = self._log.bind(batch=open_.row["id"], file=open_.row["name"])
        if open_.refused is not None:
            log.warning("batch_refused", reason=open_.refused)
            return
        log.info(
            "batch_read", memories=open_.new, duplicates=open_.taken - open_.new, skipped=open_.skipped,
            bad_items=open_.bad_items,
        )  # fmt: skip

    def _put_away(self, rows: list[dict[str, Any]], now: str) -> None:
        """After the commit: read files go to the archive, refused ones to `failed/`."""
        world, done = self._world, []
        for row in rows:
            path = world.paths.claimed / row["path"]
            if not path.exists() or self._take_again(path, row, now):
                continue
            if row["state"] == "refused":
                inbox.reject(world.home, path, world.name, row["name"], row["reason"], now, batch=row["id"])
            else:
                done.append(path)
        if done:
            inbox.archive_slice(world.home, world.name, done, now[:7])

    def _take_again(self, path: Path, row: dict[str, Any], now: str) -> bool:
        """A writer that paused for longer than the quiet time still writes into the file that we claimed.

        Reading it again is harmless: what is known already counts as a duplicate.
        """
        status = path.stat()
        if path.is_dir() or (status.st_size, status.st_mtime) == (row["size"], row["mtime"]):
            return False
        sha256 = durable.sha256_file(path)
        if sha256 == row["sha256"]:
            return False
        target = path.with_name(f"{sha256}-{path.name.partition('-')[2]}")
        durable.rename_durable(path, target)
        with self._world.db.transaction():
            batches.renamed(self._world.db, row["id"], target.name, sha256, status.st_size, status.st_mtime)
        claim = inbox.Claim(
            self._world.name, sha256, row["name"], target, status.st_size, status.st_mtime, is_folder=False
        )
        self._log.warning("file_grew_after_claim", batch=row["id"], file=row["name"])
        self.register([claim], now)
        return True
