"""Dropped files without what was forgotten: looked at through their readers, and changed by `forget`."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from daemon import durable, inbox, readers
from daemon.durable import Pulse, no_pulse
from daemon.forget import Eraser, Told
from daemon.hearing import heard
from daemon.ledger import forgetting
from daemon.records import BadItem, Hearing, LeftOut, Memory, Refused, Utterance
from daemon.rules.needles import Needles, strings_in
from daemon.rules.sessions import NeedsOwner, Sessions
from daemon.world import World


@dataclass(frozen=True, slots=True)
class Listener:
    """Tells whether a dropped file holds what is forgotten, also where its bytes do not show it (zip, mail)."""

    world: World
    needles: Needles
    is_gone: Callable[[Memory], bool]
    is_part_gone: Callable[[bytes], bool]  # by the key of a message

    def look(self, source: BinaryIO | Path, name: str) -> Told:
        """`rest`: a memory that stays is in it, too. A file that no reader takes holds nothing."""
        quotes: list[int] = []  # one for each text that quotes something forgotten
        holds = rest = False
        try:
            sessions = Sessions(self.world.aliases, self.world.chat_rules, self.world.name)
            for memory in sessions.memories(self._listen(self._hear(source, name), quotes)):
                if isinstance(memory, Memory):
                    gone = self.is_gone(memory)
                    holds = holds or gone or any(self.is_part_gone(part.key) for part in memory.parts)
                    rest = rest or not gone
        except NeedsOwner:
            rest = True
        except (Refused, OSError):
            pass
        return Told(holds or bool(quotes), rest)

    def _hear(self, source: BinaryIO | Path, name: str) -> Hearing:
        limits, locale = limits_of(self.world), self.world.locale
        known = inbox.split_claimed_name(name)
        name = known[1] if known else name
        if isinstance(source, Path):
            status = source.stat()
            return heard(source, name, status.st_size, status.st_mtime, limits, locale)
        size = source.seek(0, 2)
        source.seek(0)
        return readers.read(source, name, size, None, limits, locale=locale)

    def _listen(self, hearing: Hearing, quotes: list[int]) -> Hearing:
        for one in hearing:
            if self.needles and not isinstance(one, BadItem) and any(map(self.needles.in_text, _texts(one))):
                quotes.append(1)
            yield one


def _texts(one: Utterance | LeftOut | Memory) -> Iterator[str]:
    if not isinstance(one, Memory):
        yield one.text
        return
    yield one.content
    if one.response is not None:
        yield one.response
    yield from (turn.text for turn in one.context)
    yield from strings_in(one.payload)


def limits_of(world: World) -> readers.Limits:
    settings = world.settings.inbox
    return readers.Limits(settings.max_file_mb * 2**20, settings.max_document_mb * 2**20)


def folder_files(folder: Path) -> list[tuple[str, str]]:
    """(relative path, SHA-256) of the files of a dropped folder, as its own hash counts them."""
    return [(file.relative, file.sha256) for file in inbox.folder_contents(folder, sys.maxsize).files]


def hash_of(path: Path) -> str:
    """As `batches` has it: of the file, or over the files of the folder."""
    return inbox.folder_sha256(path) if path.is_dir() else durable.sha256_file(path)


def recorder(world: World, now: str, reason: str) -> Callable[[Path, str, str | None], None]:
    def record(path: Path, old: str, new: str | None) -> None:
        forgetting.record(world.db, now, str(path.relative_to(world.home.root)), old, new, reason)

    return record


def of_dropped_again(world: World, row: dict[str, Any], now: str, pulse: Pulse = no_pulse) -> None:
    """A file that was read and holds what had been forgotten before: only the rest of it may be kept."""
    db, seed, path = world.db, world.seed, world.paths.claimed / row["path"]
    lines: set[str] = set()

    def is_gone(memory: Memory) -> bool:
        return forgetting.is_forgotten(db, memory, seed)

    def part_gone(key: bytes) -> bool:
        return forgetting.is_part_forgotten(db, key)

    def collect(memory: Memory) -> bool:
        lines.update(forgetting.forgotten_in(db, memory, seed))
        return is_gone(memory)

    told = Listener(world, Needles(()), collect, part_gone).look(path, row["path"])
    if not lines and not told.holds:
        return
    needles = Needles(lines)
    eraser = Eraser(
        needles, frozenset(), frozenset(), Listener(world, needles, is_gone, part_gone).look,
        recorder(world, now, f"batch {row['id']} held what had been forgotten"), folder_files, pulse=pulse,
    )  # fmt: skip
    eraser.dropped(path)
