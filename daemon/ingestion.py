"""Steps 2 and 3 of the road, for one profile: from a claimed file to memories in the ledger, or a refusal.

Work comes in bounded slices: one call reads for a fraction of a second and commits once, so that the
watchdog's ping and a stop are never late. A batch is visible from its last slice on.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import durable, inbox, readers, redaction
from daemon.hearing import heard
from daemon.ledger import batches, forgetting, jobs, memories, messages
from daemon.logs import get_logger
from daemon.records import BadItem, LeftOut, Memory, Refused
from daemon.rules import planning
from daemon.rules.curation import judge
from daemon.rules.duplicates import text_key
from daemon.rules.needles import Needles
from daemon.rules.sessions import NeedsOwner, Sessions, without_known
from daemon.world import World

SLICE_SECONDS = 0.5
LISTED_BAD_ITEMS = 1000  # in the reason file; all are counted

_log = get_logger()


@dataclass(slots=True)
class _Open:
    """The batch that is being read, and how far."""

    row: dict[str, Any]
    items: Iterator[Memory | BadItem | LeftOut]
    first_seq: int
    ended: bool = False
    refused: str | None = None
    needs_owner: bool = False  # `refused` says who might be it: the batch waits instead
    taken: int = 0  # memories, known ones included
    new: int = 0
    skipped: int = 0
    bad_items: int = 0
    left_out: int = 0  # messages that are no memory
    forgotten: int = 0  # memories that were forgotten, or have a forgotten one in their context
    listed: list[BadItem] = field(default_factory=list)
    superseded: set[int] = field(default_factory=set)  # waiting memories of which a message was edited


class Ingestion:
    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world = world
        self._clock = clock
        self._open: _Open | None = None
        self._any_forgotten = False
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
            elif row["state"] not in ("claimed", "reading", "needs_owner"):
                self._put_away([row], now)
        if unknown:
            self.register(unknown, now)
        if self._changed("aliases", json.dumps(world.aliases, ensure_ascii=False)):
            self.owner_named()
        if self._changed("curation", world.curation_sha256):
            self._judge_again()

    def _changed(self, what: str, value: str) -> bool:
        """Whether a setting is another one than when we last looked."""
        db, key = self._world.db, f"{what}_seen"
        before = jobs.get_meta(db, key)
        if before != value:
            with db.transaction():
                jobs.set_meta(db, key, value)
        return before is not None and before != value

    def _judge_again(self) -> None:
        """Other rules: what was left out may be taken after all. What was taken stays; it is judged at each freeze."""
        db, curation = self._world.db, self._world.curation
        passed = [(seq, batch) for seq, batch, _, one in memories.skipped(db) if judge(one, curation).keep]
        with db.transaction():
            memories.take_after_all(db, passed)
        self._log.info("curation_changed", taken_after_all=len(passed))

    def put_away(self, batch: int, now: str) -> None:
        """A batch that a person decided on: its file goes where it belongs."""
        row = batches.get(self._world.db, batch)
        if row is not None and row["state"] not in ("claimed", "reading"):
            self._put_away([row], now)

    def owner_named(self) -> int:
        """Somebody said who the owner is: batches that waited for it are read again. Gives how many."""
        with self._world.db.transaction():
            return batches.read_again(self._world.db)

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
        self._any_forgotten = forgetting.any_forgotten(db)
        self._open = _Open(row, self._items(self._world.paths.claimed / row["path"], row), first_seq)
        return True

    def _items(self, path: Path, row: dict[str, Any]) -> Iterator[Memory | BadItem | LeftOut]:
        """The memories of a claimed file or folder. Raises Refused, NeedsOwner, OSError."""
        world = self._world
        settings = world.settings.inbox
        limits = readers.Limits(settings.max_file_mb * 2**20, settings.max_document_mb * 2**20)
        said = heard(path, row["name"], row["size"], row["mtime"], limits, world.locale)
        return Sessions(world.aliases, world.chat_rules, world.name).memories(said)

    def _take(self, open_: _Open, budget: int, deadline: float) -> int:
        """Stage at most `budget` items of the open batch; gives how many it looked at, at least 1."""
        settings = self._world.settings
        before = open_.first_seq - 1 + open_.taken  # how many came before, whatever the slices
        judged: list[memories.Judged] = []
        slice_parts: set[bytes] = set()  # messages of this slice, which the ledger does not know yet
        looked_at = 0
        while not open_.ended and looked_at < budget and (looked_at % 64 or self._clock() < deadline):
            item = self._next(open_)
            if item is None:
                break
            looked_at += 1
            if isinstance(item, LeftOut):
                open_.left_out += 1
            elif isinstance(item, BadItem):
                open_.bad_items += 1
                if len(open_.listed) < LISTED_BAD_ITEMS:
                    open_.listed.append(item)
            else:
                open_.taken += 1
                remembered = self._without_forgotten(open_, item) if self._any_forgotten else item
                found = self._without_known(open_, remembered, slice_parts) if remembered else None
                if found is not None:
                    enough = before + len(judged) >= settings.evaluation.held_out_from
                    judged.append(self._judged(open_, found, enough=enough))
        if open_.refused is None:
            open_.new += memories.stage(self._world.db, open_.row["id"], judged)
        return max(looked_at, 1)

    def _next(self, open_: _Open) -> Memory | BadItem | LeftOut | None:
        """The next item of the open batch; None at its end, however it ends."""
        try:
            item = next(open_.items, None)
        except (Refused, NeedsOwner, OSError) as error:
            item = None
            open_.needs_owner = isinstance(error, NeedsOwner)
            open_.refused = f"it cannot be read: {error}" if isinstance(error, OSError) else str(error)
        open_.ended = item is None
        return item

    def _without_known(self, open_: _Open, memory: Memory, slice_parts: set[bytes]) -> Memory | None:
        """What of a memory is new: of a grown export only the messages that were not in the earlier one."""
        if not memory.parts:
            return memory
        known, superseded = messages.known(self._world.db, memory.parts)
        open_.superseded |= superseded
        found = without_known(memory, known | slice_parts)
        slice_parts.update(part.key + part.digest for part in memory.parts)
        return found

    def _without_forgotten(self, open_: _Open, memory: Memory) -> Memory | None:
        """What was forgotten does not come back, neither as itself nor as the context of something new."""
        db, seed = self._world.db, self._world.seed
        lines = forgetting.forgotten_in(db, memory, seed)
        gone = forgetting.is_forgotten(db, memory, seed)
        open_.forgotten += bool(lines) or gone
        if gone:
            return None
        if not lines or memories.is_there(db, memory.id):  # known as it was dropped: its row was cut already
            return memory
        return forgetting.without_lines(memory, Needles(lines).cut)

    def _judged(self, open_: _Open, memory: Memory, *, enough: bool) -> memories.Judged:
        id_, verdict = memory.id, judge(memory, self._world.curation)
        state, reason = ("waiting", None) if verdict.keep else ("skipped", verdict.reason)
        if verdict.keep and planning.is_held_out(id_, self._world.settings.evaluation.held_out_percent, enough=enough):
            state, reason = "held_out", "kept for measuring"
        open_.skipped += not verdict.keep
        learnt = memory.content if memory.response is None else memory.response
        return id_, memory, state, reason, text_key(learnt)

    def _close(self, open_: _Open, now: str) -> bool:
        """Make the batch visible, or refuse it. False while staged rows of a refused one are left."""
        db, batch = self._world.db, open_.row["id"]
        if open_.refused is not None:
            if memories.unstage(db, open_.first_seq, self._world.settings.inbox.slice_memories):
                return False
            if open_.needs_owner:
                batches.needs_owner(db, batch, open_.refused)
            else:
                batches.refuse(db, batch, open_.refused, now)
            return True
        if open_.bad_items:  # before the commit: after it, nobody would know the lines any more
            inbox.report_bad_items(
                self._world.home, self._world.name, open_.row["name"],
                f"{open_.bad_items} of {open_.bad_items + open_.taken} items could not be taken; the others were",
                open_.listed, now, batch,
            )  # fmt: skip
        messages.supersede(db, open_.superseded)
        batches.finish_reading(
            db, batch, last_seq=open_.first_seq + open_.new - 1, duplicates=open_.taken - open_.new,
            skipped=open_.skipped, bad_items=open_.bad_items, forgotten=open_.forgotten, now=now,
        )  # fmt: skip
        return True

    def _tell(self, open_: _Open) -> None:
        log = self._log.bind(batch=open_.row["id"], file=open_.row["name"])
        if open_.refused is not None:
            log.warning("batch_needs_owner" if open_.needs_owner else "batch_refused", reason=open_.refused)
            return
        log.info(
            "batch_read", memories=open_.new, duplicates=open_.taken - open_.new, skipped=open_.skipped,
            bad_items=open_.bad_items, left_out=open_.left_out, forgotten=open_.forgotten,
        )  # fmt: skip

    def _put_away(self, rows: list[dict[str, Any]], now: str) -> None:
        """After the commit: read files go to the archive, refused ones to `failed/`."""
        world, done = self._world, []
        for row in rows:
            path = world.paths.claimed / row["path"]
            if row["state"] == "needs_owner" or not path.exists() or self._take_again(path, row, now):
                continue
            if row["state"] == "refused":
                inbox.reject(world.home, path, world.name, row["name"], row["reason"], now, batch=row["id"])
                continue
            if row["forgotten"]:
                redaction.of_dropped_again(world, row, now)
            if path.exists():
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
