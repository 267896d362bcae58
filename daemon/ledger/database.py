"""A SQLite database as this house opens it: WAL, synchronous=FULL, secure_delete, foreign keys."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon import durable, migrations


class Absent(Exception):
    """The database does not exist yet: nothing has happened in this home or profile."""


class Database:
    """One connection. Writes happen inside `transaction()`; a single statement elsewhere is a read."""

    def __init__(self, path: Path, steps: Sequence[migrations.Step], *, write: bool) -> None:
        self.path = path
        if write:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = not path.exists()
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            if fresh:
                path.chmod(0o600)
        else:
            if not path.exists():
                raise Absent(str(path))
            self._db = _connect_for_reading(path)
        self._db.row_factory = sqlite3.Row
        try:
            if write:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA secure_delete=ON")
                self._db.execute("PRAGMA foreign_keys=ON")
                # A new memory's id falls anywhere in the index: with a million of them each insert touches
                # another page. Pages stay in memory, and are written back once for many inserts.
                self._db.execute("PRAGMA cache_size=-65536")  # KiB, taken only as it is needed
                self._db.execute("PRAGMA wal_autocheckpoint=16384")  # pages
                self._db.execute("PRAGMA journal_size_limit=4194304")
                migrations.migrate(self._db, steps, path.name)
            else:
                self._db.execute("PRAGMA query_only=ON")
                if migrations.version(self._db) == 0:  # the daemon is making it at this moment
                    raise Absent(str(path))
                migrations.check(self._db, steps, path.name)
        except BaseException:
            self._db.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself has rolled back where the disk is full
                self._db.execute("ROLLBACK")
            raise

    def execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        return self._db.execute(sql, values)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """How many rows were changed."""
        before = self._db.total_changes
        self._db.executemany(sql, rows)
        return self._db.total_changes - before

    def write_back(self, *, wait: bool = True) -> None:
        """What the write-ahead log holds goes into the database, and its file is emptied. Without `wait` no reader is
        waited for, and the next write begins the file anew instead of growing it."""
        self._db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if wait else 'PASSIVE'})").fetchall()

    def backup(self, target: Path, pulse: Callable[[], None] = lambda: None) -> None:
        """A copy of the whole database as one plain file, consistent whatever is written meanwhile; fsynced."""
        copy = sqlite3.connect(target, isolation_level=None)
        try:
            copy.execute("PRAGMA synchronous=OFF")  # one flush at the end does
            self._db.backup(copy, pages=2000, progress=lambda *_: pulse())
            copy.execute("PRAGMA journal_mode=DELETE")
        finally:
            copy.close()
        durable.fsync_file(target)

    def one(self, sql: str, values: Sequence[Any] = ()) -> dict[str, Any] | None:
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else dict(row)

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(sql, values)]

    def number(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """The first column of the first row; 0 where that is NULL."""
        return int(self._db.execute(sql, values).fetchone()[0] or 0)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    """A read-only file system has no place for the WAL's index: without a WAL nothing changes there either."""
    if not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        from urllib.parse import quote  # here: `engramd status` must answer at once

        return sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True, isolation_level=None)
    return sqlite3.connect(path, isolation_level=None, timeout=30.0)


def is_disk_trouble(error: sqlite3.Error) -> bool:
    """Whether SQLite could not write: a full disk, one that is read-only for a while, an error of the device. Its
    shared index is grown by a write too, whose failure it calls an I/O error (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", None)  # only where SQLite itself raised it
    if code is None:
        return "full" in str(error) or "readonly" in str(error)
    return code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


class LedgerError(Exception):
    """A row was not in the state that the caller believed it to be in."""


def moved(cursor: sqlite3.Cursor, what: str, expected: int = 1) -> None:
    """Raise unless exactly the expected rows moved: a lost update must not pass in silence."""
    if cursor.rowcount != expected:
        raise LedgerError(f"{what}: {cursor.rowcount} rows moved, {expected} expected")
