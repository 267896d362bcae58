"""What passes between scan, claim and service: an entry that is ready, and what became of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daemon.records import BadItem

Kind = Literal["file", "folder", "other"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in an inbox that the scan found ready."""

    profile: str
    name: str  # as the file system gives it, so possibly with surrogates
    folder: Path
    kind: Kind
    size: int
    fingerprint: int

    @property
    def location(self) -> str:
        return f"{self.folder}/{self.name}"

    @property
    def path(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True, slots=True)
class Claim:
    """Durable in `claimed/`; the inbox no longer has it."""

    profile: str
    sha256: str
    name: str  # safe to show and to keep
    path: Path
    size: int
    mtime: float
    is_folder: bool
    bad_items: tuple[BadItem, ...] = ()  # parts of a folder that no reader will see


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The same content is claimed under this name already; the inbox copy is gone."""

    profile: str
    sha256: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Refusal:
    profile: str
    name: str
    reason: str
    path: Path  # where it lies now
    moved: bool  # False: even the move to inbox/failed was not allowed; it stays where it was
    bad_items: tuple[BadItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Changed:
    """Written to, replaced or taken away since the scan; nothing was done with it."""

    profile: str
    name: str


Outcome = Claim | Duplicate | Refusal | Changed
