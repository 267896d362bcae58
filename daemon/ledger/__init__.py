"""The ledger: all that engramd knows, and the only SQL. One module per noun, functions on a `Database`."""

from pathlib import Path

from daemon import migrations
from daemon.ledger.database import Absent, Database, LedgerError, is_disk_trouble

__all__ = ["Absent", "Database", "LedgerError", "is_disk_trouble", "open_home", "open_profile"]


def open_home(path: Path, *, write: bool) -> Database:
    """`home.db`. Raises Absent (reading, not there) and migrations.SchemaError."""
    return Database(path, migrations.HOME_STEPS, write=write)


def open_profile(path: Path, *, write: bool) -> Database:
    """A profile's `ledger.db`. Raises Absent (reading, not there) and migrations.SchemaError."""
    return Database(path, migrations.PROFILE_STEPS, write=write)
