"""The service's loop inside a command: `run`, and any command that finds no daemon at work."""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from daemon import ledger, logs, migrations, service
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.permission import only_the_owner_works
from daemon.cli.running import ProgressLine
from daemon.home import Home
from daemon.lock import AlreadyRunning, Lock
from daemon.settings import Settings, SettingsError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def held_lock(home: Home) -> Iterator[None]:
    """The home's lock for the time of the block. Raises UserError where another engramd has it, and for
    what the ledgers and settings may refuse inside the block."""
    only_the_owner_works(home)
    try:
        lock = Lock(home)
    except AlreadyRunning as error:
        raise UserError(str(error), Exit.UNAVAILABLE) from None
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(_full(home, error), Exit.TRY_AGAIN) from None
        raise UserError(f"{home.lock} cannot be written: {error.strerror}") from None
    try:
        yield
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    except (migrations.SchemaError, ledger.LedgerError) as error:
        raise UserError(str(error)) from None
    except sqlite3.DatabaseError as error:
        if ledger.is_disk_trouble(error):
            raise UserError(_full(home, error), Exit.TRY_AGAIN) from None
        raise UserError(f"a ledger in {home.state} cannot be used: {error}") from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(_full(home, error), Exit.TRY_AGAIN) from None
    finally:
        lock.release()


def _full(home: Home, error: OSError | sqlite3.DatabaseError) -> str:
    """At a start. What is at work already waits instead, and goes on by itself."""
    what = error.strerror if isinstance(error, OSError) else str(error)
    return f"the disk of {home.root} cannot be written ({what}): free some space, then start again"


def loop(
    home: Home,
    settings: Settings,
    *,
    once: bool = False,
    until: Callable[[], bool] | None = None,
    quiet: bool = False,
    progress: bool = False,
) -> None:
    """Run the service until it is asked to stop; with `once` until nothing is due, or until `until` says so.

    The caller holds the home's lock.
    """
    logs.configure(home, settings.log.level, settings.log.rotate_mb, settings.log.keep, quiet=quiet)
    line = ProgressLine(home, quiet=not progress)
    try:
        # A command that only wants its own request answered does not take a snapshot on the way.
        daemon = service.Service(home, settings, scheduled=once or until is None)
        daemon.handle_signals()
        ended = daemon.idle if once else until

        def enough() -> bool:
            line.show()
            return ended is not None and ended()

        daemon.run(until=enough)
    finally:
        line.clear()
