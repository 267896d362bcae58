"""`engramd import-metahuman`: a profile of the origin system is looked through, and what holds memories is handed over.

Nothing here reads a memory into the ledger: `handing_over` copies files into the inbox, and they go the road of
everything that is dropped. What is decided here is which files go, and which of their items: a text that was made
of a memory which goes itself (curated files, data sets of old runs) does not.
"""

import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from daemon import inbox, readers
from daemon.home import Home
from daemon.inbox.folders import not_regular, readable_path, size_problem
from daemon.ledger import Database, forgetting, memories
from daemon.profile_tree import Found, is_as_found, names_in, open_inside, walk
from daemon.readers import Limits, Locale, archives, raw_items
from daemon.readers.shape import FileFacts
from daemon.records import BadItem, LeftOut, Memory, Refused
from daemon.rules import metahuman
from daemon.rules.curation import Curation, judge
from daemon.rules.metahuman import DEEPEST, DERIVED, READ, Kind, Told

_LISTED = 20  # problems of one file that are listed; all are counted
_UNSUITABLE = "marked as unsuitable for training by the origin's curator"


@dataclass(slots=True)
class Row:
    """One file of the profile, or one folder that is not looked into: what became of it."""

    found: Found
    path: str  # as it may be shown
    kind: Kind
    reason: str = ""  # why it is left; empty where it is taken
    memories: int = 0  # that were read in it
    new: int = 0
    known: int = 0  # in the ledger already
    twice: int = 0  # the same memory stands in a file before
    same_as: str = ""  # that file
    made_of: int = 0  # cut out of a memory that is there itself
    forgotten: int = 0
    messages: int = 0  # of a chat export: who is who the road finds out
    bad: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # curation's reasons, of the new ones
    problems: list[str] = field(default_factory=list)
    parts: set[int] | None = None  # numbers of the items that go; None: the file as it is
    marked: bool = False  # one of its memories is called unsuitable elsewhere

    @property
    def taken(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Source:
    """The profile's folder, and how its files are read."""

    folder: Path
    base: str  # where in a profile the folder lies
    limits: Limits
    locale: Locale
    curation: Curation
    own: frozenset[tuple[int, int]] = frozenset()  # (device, inode) of folders of engramd itself


class NoProfile(Exception):
    """The folder is none that can be imported. The message is one sentence for the person."""


def source_of(folder: Path, home: Home, limits: Limits, locale: Locale, curation: Curation) -> Source:
    """Raises NoProfile, with what to name instead."""
    folder = folder.expanduser().resolve()
    try:
        names = names_in(folder)
    except OSError as error:
        raise NoProfile(f"{folder} cannot be read: {error.strerror}") from None
    if folder == home.root.resolve() or home.root.resolve() in folder.parents:
        raise NoProfile(f"{folder} is engramd's own home, and no profile of MetaHuman OS")
    base = metahuman.base_of(names, folder.name)
    people = folder if folder.name == "profiles" else folder / "profiles"
    if base is None and people.is_dir():
        found = ", ".join(sorted(one.name for one in people.iterdir() if one.is_dir())) or "none"
        raise NoProfile(f"{people} holds profiles of several people ({found}): name the folder of one")
    if base is None:
        raise NoProfile(f"{folder} is no profile of MetaHuman OS: there is neither memory/ nor episodic/ in it")
    own = set()
    for path in (home.root, home.inbox, home.state):
        try:
            status = path.stat()
            own.add((status.st_dev, status.st_ino))
        except OSError:
            pass
    return Source(folder, base, limits, locale, curation, frozenset(own))


class Import:
    """Looks at everything and writes nothing; `handing_over` then takes what was found."""

    def __init__(self, source: Source, db: Database | None, seed: int = 0) -> None:
        self.source = source
        self.rows: list[Row] = []
        self._db, self._seed = db, seed
        self._any_forgotten = db is not None and forgetting.any_forgotten(db)
        self._seen: dict[bytes, Row] = {}  # memory -> where it is taken from
        self._by_key: dict[tuple[str, str], list[bytes]] = {}  # (the origin's id, raw time)
        self._by_text: dict[int, bytes] = {}
        self.unsuitable: set[bytes] = set()
        self._left_out: set[bytes] = set()  # by curation
        self._told = Told()
        self._derived = False  # whether there is anything that was made of something else

    def look(self) -> None:
        """Every file of the tree gets a row. Raises OSError only where the folder itself cannot be read."""
        waiting: dict[Kind, list[Row]] = {kind: [] for kind in READ}
        for found in walk(self.source.folder, DEEPEST, self._why_not_entered):
            row = self._row(found)
            self.rows.append(row)
            if row.taken and row.kind in waiting:
                waiting[row.kind].append(row)
        self._derived = any(waiting[kind] for kind in DERIVED)
        for kind, rows in waiting.items():
            for row in rows:
                self._read(row, self._read_derived if kind in DERIVED else self._read_whole)
        self._call_unsuitable()

    def _why_not_entered(self, path: str, identity: tuple[int, int]) -> str:
        if identity in self.source.own:
            return "engramd's own files"
        return metahuman.why_not_entered(self.source.base + path)

    def _row(self, found: Found) -> Row:
        place = metahuman.place_of(self.source.base + found.path)
        row = Row(found, readable_path(found.path), place.kind, found.problem)
        if not row.reason and not found.is_file:
            row.reason = not_regular(found.mode)
        row.reason = row.reason or place.reason or size_problem(found.size, self.source.limits.max_file_bytes)
        if not row.reason:
            row.reason = archives.why_passed_over(posixpath.basename(row.path), frozenset()) or ""
        if row.reason:
            row.kind = "other" if found.problem else row.kind
        return row

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, row: Row, way: Callable[[Row, BinaryIO, FileFacts], None]) -> None:
        found = row.found
        facts = facts_of(row, self.source.locale)
        try:
            with open_inside(self.source.folder, found.path) as stream:
                way(row, stream, facts)
                if not is_as_found(stream, found):
                    self._give_up(row, "it is being written: import again when the origin is at rest")
        except Refused as refusal:
            row.problems.append(str(refusal))
        except OSError as error:
            self._give_up(row, f"it cannot be read ({error.strerror}): chmod u+r it, then import again")
        if row.taken and not row.new and not row.messages:
            row.reason = _why_nothing(row)

    def _give_up(self, row: Row, reason: str) -> None:
        """What was read of it may come from another file."""
        row.reason = reason
        self._seen = {id_: other for id_, other in self._seen.items() if other is not row}

    def _read_whole(self, row: Row, stream: BinaryIO, facts: FileFacts) -> None:
        limits, locale, found = self.source.limits, self.source.locale, row.found
        mtime = found.mtime_ns / 1e9
        heard = readers.read(stream, facts.name, found.size, mtime, limits, locale=locale, path=facts.path)
        for one in heard:
            if isinstance(one, Memory):
                if self._account(row, one) and self._derived:
                    self._remember(one)
            elif isinstance(one, BadItem):
                _bad(row, one)
            elif isinstance(one, LeftOut):
                row.left_out[one.reason] += 1
            else:
                row.messages += 1

    def _read_derived(self, row: Row, stream: BinaryIO, facts: FileFacts) -> None:
        """Item by item: one that was made of a memory which is there itself stays where it is."""
        items = raw_items.raw_items(stream, row.found.size, facts, self.source.limits)
        if items is None:
            stream.seek(0)
            self._read_whole(row, stream, facts)
            return
        kept: set[int] = set()
        every = True
        for raw in items:
            takes = False
            for one in raw.heard:
                if isinstance(one, BadItem):
                    _bad(row, one)
                    continue
                origins = self._origins(raw.item or {}, one)
                if _is_unsuitable(raw.item or {}, one):
                    self.unsuitable.update(origins)
                if bytes.fromhex(one.id) not in self._seen and (origins or self._told.holds(one.content, one.response)):
                    row.memories += 1
                    row.made_of += 1
                elif self._account(row, one):
                    takes = True
                    self._remember(one)
            every = every and takes
            if takes:
                kept.add(raw.number)
        row.parts = None if every else kept

    def _account(self, row: Row, memory: Memory) -> bool:
        """Count a memory; gives whether it is new."""
        id_ = bytes.fromhex(memory.id)
        row.memories += 1
        if id_ in self._seen:
            row.twice += 1
            row.same_as = row.same_as or self._seen[id_].path
            if _is_unsuitable({}, memory):
                self.unsuitable.add(id_)
            return False
        self._seen[id_] = row
        if self._db is not None:
            if self._any_forgotten and forgetting.is_forgotten(self._db, memory, self._seed):
                row.forgotten += 1
                return False
            if memories.is_there(self._db, memory.id):
                row.known += 1
                if self._derived:
                    self._remember(memory)
                return False
        row.new += 1
        if (reason := judge(memory, self.source.curation).reason) is not None:
            row.left_out[reason] += 1
            self._left_out.add(id_)
        return True

    def _remember(self, memory: Memory) -> None:
        id_ = bytes.fromhex(memory.id)
        self._told.add(memory.content, memory.response)
        self._by_text.setdefault(metahuman.text_key(memory.content, memory.response), id_)
        name = memory.extra.get("id")
        if isinstance(name, str) and memory.timestamp:
            self._by_key.setdefault((name, memory.timestamp), []).append(id_)

    def _origins(self, item: Any, memory: Memory) -> list[bytes]:
        """The memories that a curated item was made of; ids collide, so of several the one that says the same."""
        key = metahuman.curated_key(item)
        found = self._by_key.get(key, []) if key else []
        if len(found) == 1:
            return found
        same = self._by_text.get(metahuman.text_key(memory.content, memory.response))
        return [same] if same is not None and (not found or same in found) else []

    def _call_unsuitable(self) -> None:
        """What the curator called unsuitable is handed over with its mark, so that the ledger can say why."""
        for id_ in self.unsuitable:
            row = self._seen.get(id_)
            if row is not None and row.new and id_ not in self._left_out:
                row.marked = True
                row.left_out[_UNSUITABLE] += 1


def _bad(row: Row, one: BadItem) -> None:
    row.bad += 1
    if len(row.problems) < _LISTED:
        row.problems.append(f"{one.where}: {one.reason}" if one.where else one.reason)


def _is_unsuitable(item: Any, memory: Memory) -> bool:
    return item.get("suitableForTraining") is False or memory.extra.get("suitableForTraining") is False


def _why_nothing(row: Row) -> str:
    """Why a file that could be read gives nothing new, as one sentence."""
    counts = (
        (row.known, "known here already"), (row.twice, f"the same as in {row.same_as}"),
        (row.made_of, "made of memories that are there"),
        (row.forgotten, "forgotten here"), (row.bad, "cannot be taken"),
    )  # fmt: skip
    told = [f"{number:,} {what}" for number, what in counts if number]
    if len(told) == 1 and row.memories == 1 and not row.bad:
        return told[0].partition(" ")[2]
    if told and row.problems:
        return f"{', '.join(told)}: {row.problems[0]}"
    return ", ".join(told) or (row.problems[0] if row.problems else "there is no memory in it")


def facts_of(row: Row, locale: Locale) -> FileFacts:
    """What the readers will know of the file when it is read in its batch."""
    path = entry_path(row)
    return FileFacts.of(posixpath.basename(path), row.found.mtime_ns / 1e9, locale, path)


def entry_path(row: Row) -> str:
    """The path in the batch: the same, but for names that the inbox or the readers pass over."""
    parts = [f"_{part}_" if inbox.is_ignored(part) else part for part in row.path.split("/")]
    parts = [inbox.safe_name(part) if len(part.encode()) > 200 else part for part in parts]
    path = "/".join(parts)
    if archives.why_passed_over(path, readers.COMPANIONS):
        path = "/".join("in_" + part for part in parts)
    return path
