"""The scan: one pass over the inboxes is the truth about what waits there. Hints only say when to look.

A thing is ready when it was seen unchanged for the quiet time, by the caller's monotonic clock. Its own
modification time only tells whether it changed: clocks jump, and files are moved in with old times.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.durable import Pulse, make_folder, no_pulse
from daemon.home import DEFAULT_PROFILE, RESERVED_NAMES, Home
from daemon.inbox.claiming import claim_slice
from daemon.inbox.failed import inbox_modes
from daemon.inbox.folders import fingerprint, folder_state
from daemon.inbox.names import is_ignored
from daemon.inbox.outcomes import Entry, Kind, Outcome, Refusal

DEFAULT_MAX_FILE_BYTES = 1 << 30
RETRY_STUCK_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Scan:
    ready: int  # may be claimed now
    waiting: int  # still being written, or not yet quiet for long enough
    next_stable_at: float | None  # when the first of the waiting could be ready, on the clock of `now`
    all_stable_at: float | None  # when the last could, if nothing is written any more
    stuck: tuple[Refusal, ...]  # refused, and could not be moved away; tried again later
    problems: tuple[str, ...]  # an inbox that cannot be read


_Stuck = dict[
    tuple[str, str], tuple[int, float, Refusal]
]  # (profile, name) -> (fingerprint, retry at, refusal)


def ensure_folders(home: Home, profiles: Sequence[str]) -> None:
    """Inboxes, failed, claimed, archive. What exists keeps its mode: a shared inbox stays shared."""
    for name in profiles:
        paths = home.profile(name)
        make_folder(home.inbox)
        folder_mode, _ = inbox_modes(home)
        for folder in (paths.inbox, home.failed, paths.failed):
            make_folder(folder, folder_mode)
        for folder in (paths.claimed, paths.archive):
            make_folder(folder)


class Scanner:
    """Remembers between scans what was seen since when, and hands out what is ready in bounded slices."""

    def __init__(
        self,
        home: Home,
        profiles: Sequence[str],
        quiet_seconds: float,
        max_file_bytes: int = DEFAULT_MAX_FILE_BYTES,
    ) -> None:
        self.home = home
        self.profiles = tuple(profiles)
        self.quiet_seconds = quiet_seconds
        self.max_file_bytes = max_file_bytes
        self._since: dict[str, dict[str, tuple[int, float]]] = {}  # profile -> name -> (fingerprint, since)
        self._ready: deque[Entry] = deque()
        self._stuck: _Stuck = {}

    @property
    def pending(self) -> int:
        """Found ready by the last scan, not yet claimed. While there are any, claim; scan when there are none."""
        return len(self._ready)

    def scan(self, now: float) -> Scan:
        ready: deque[Entry] = deque()
        waiting: list[float] = []
        problems: list[str] = []
        stuck: _Stuck = {}
        for profile in self.profiles:
            try:
                ready.extend(self._scan_inbox(profile, now, waiting, stuck))
            except OSError as error:
                problems.append(
                    f"The inbox of {profile} cannot be read: {error.strerror} ({error.filename})."
                )
        self._ready, self._stuck = ready, stuck
        return Scan(
            ready=len(ready),
            waiting=len(waiting),
            next_stable_at=min(waiting, default=None),
            all_stable_at=max(waiting, default=None),
            stuck=tuple(one[2] for one in stuck.values()),
            problems=tuple(problems),
        )

    def _scan_inbox(self, profile: str, now: float, waiting: list[float], stuck: _Stuck) -> list[Entry]:
        """What is ready in one inbox, in name order; adds to `waiting` and keeps what is stuck."""
        inbox = self.home.profile(profile).inbox
        before, after = self._since.get(profile, {}), {}
        ready: list[Entry] = []
        for name, kind, size, mark in self._look(profile, inbox):
            old_mark, since = before.get(name, (mark, now))
            if old_mark != mark:
                since = now
            after[name] = (mark, since)
            held = self._stuck.get((profile, name))
            if held is not None and held[0] == mark and now < held[1]:
                stuck[profile, name] = held
            elif kind == "other" or now - since >= self.quiet_seconds:
                ready.append(Entry(profile, name, inbox, kind, size, mark))
            else:
                waiting.append(since + self.quiet_seconds)
        self._since[profile] = after
        ready.sort(key=lambda entry: os.fsencode(entry.name))
        return ready

    def _look(self, profile: str, inbox: Path) -> Iterator[tuple[str, Kind, int, int]]:
        """(name, kind, size, fingerprint) of everything that counts, by stat alone."""
        is_top = profile == DEFAULT_PROFILE
        if not is_top and inbox.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, make it a folder", str(inbox))
        try:
            listing = os.scandir(inbox)
        except (FileNotFoundError, NotADirectoryError):
            return  # nobody has dropped anything yet, or a file has this name and is a batch of `me`
        with listing:
            for item in listing:
                name = item.name
                if is_ignored(name) or (is_top and name in RESERVED_NAMES):
                    continue
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield name, "file", status.st_size, fingerprint(status)
                elif not stat.S_ISDIR(status.st_mode):
                    yield name, "other", 0, fingerprint(status)
                elif not (is_top and name in self.profiles):
                    try:
                        mark, count, size = folder_state(inbox / name)
                    except OSError:  # not ours to read: the claim refuses it and says how to mend it
                        yield name, "folder", 0, fingerprint(status)
                        continue
                    if count:  # an empty folder waits for its first file
                        yield name, "folder", size, mark

    def claim(
        self,
        now: float,
        now_iso: str,
        limit: int = 200,
        max_bytes: int = 256 << 20,
        pulse: Pulse = no_pulse,
    ) -> list[Outcome]:
        """Takes the next of what the last scan found ready: at most `limit`, and not much over `max_bytes`."""
        entries: list[Entry] = []
        total = 0
        while self._ready and len(entries) < limit and total < max_bytes:
            entries.append(self._ready.popleft())
            total += min(entries[-1].size, self.max_file_bytes)
        if not entries:
            return []
        outcomes = claim_slice(self.home, entries, now_iso, self.max_file_bytes, pulse)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Refusal) and not outcome.moved:
                retry_at = now + RETRY_STUCK_SECONDS
                self._stuck[entry.profile, entry.name] = (entry.fingerprint, retry_at, outcome)
            else:  # gone; or changed, and then its quiet time begins anew
                self._since.get(entry.profile, {}).pop(entry.name, None)
        return outcomes
