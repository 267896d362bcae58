"""Work that only the holder of the home's lock may do, asked for through the `requests` table.

With a daemon at work the row is written and its end awaited; without one this process takes the lock and
runs the service's loop until the request is done. To the person both look the same.
"""

import argparse
import json
import sqlite3
import sys
import time
from typing import Any

from daemon.cli.context import home_of, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.cli.presence import daemon_pid
from daemon.home import Home

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 15.0  # a daemon that is restarted comes back within this time
_ENDED = ("done", "failed")

Answer = dict[str, Any]


def ask(
    args: argparse.Namespace, profile: str, command: str, arguments: dict[str, Any], *, wait: bool = True
) -> Answer | None:
    """The answer; None where it is not waited for. Raises UserError with the daemon's sentence.

    Ctrl-C ends the waiting for a daemon, not its work.
    """
    home = home_of(args)
    if daemon_pid(home) is None and (answer := _do_it_here(args, home, profile, command, arguments, wait)):
        return answer[0]
    try:  # around the writing too: Ctrl-C may come when the daemon has the row and this process not yet its number
        request = _write_row(home, profile, command, arguments)
        return _await(home, request) if wait else None
    except KeyboardInterrupt:
        print("engramd: not waiting any longer; the daemon goes on with it", file=sys.stderr)
        raise


def _write_row(home: Home, profile: str, command: str, arguments: dict[str, Any]) -> int:
    from daemon.ledger import requests
    from daemon.service import utc_now

    deadline = time.monotonic() + _GRACE_SECONDS
    while True:
        try:
            if home.database.exists():  # a connection would make an empty one where a daemon is only starting
                return requests.ask_beside(home.database, profile, command, arguments, utc_now())
            problem = f"{home.database} is not there yet"
        except sqlite3.Error as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise UserError(f"the request could not be written: {problem}", Exit.TRY_AGAIN)
        time.sleep(_POLL_SECONDS)


def _do_it_here(
    args: argparse.Namespace, home: Home, profile: str, command: str, arguments: dict[str, Any], wait: bool
) -> tuple[Answer | None] | None:
    """Do the work under the home's own lock. None where a daemon has taken it just now."""
    from daemon import ledger
    from daemon.cli.foreground import held_lock, loop
    from daemon.ledger import requests
    from daemon.service import utc_now

    settings = settings_of(args)
    try:
        with held_lock(home), ledger.open_home(home.database, write=True) as db:
            request = requests.ask(db, profile, command, arguments, utc_now())
            if wait:
                loop(home, settings, until=lambda: _ended(db, request), quiet=True, progress=True)
            row = requests.get(db, request) or {}
    except UserError as error:
        if error.code == Exit.UNAVAILABLE:
            return None
        raise
    if not wait:
        return (None,)
    if row.get("state") not in _ENDED:
        raise UserError(
            "stopped before it was done; the request stays, and the next `engramd run` goes on with it",
            Exit.INTERRUPTED,
        )
    return (_answer(row),)


def _ended(db: Any, request: int) -> bool:
    from daemon.ledger import requests

    row = requests.get(db, request)
    return row is None or row["state"] in _ENDED


def _await(home: Home, request: int) -> Answer:
    """Wait for the daemon's answer, with its progress where a terminal is."""
    from daemon.cli.reading import opened_home
    from daemon.cli.running import ProgressLine
    from daemon.ledger import requests

    line = ProgressLine(home)
    alone_since: float | None = None
    try:
        with opened_home(home) as db:
            while True:
                row = requests.get(db, request)
                if row is None or row["state"] in _ENDED:
                    return _answer(row or {"state": "failed", "answer": None})
                if daemon_pid(home) is not None:
                    alone_since = None
                elif alone_since is None:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > _GRACE_SECONDS:
                    raise UserError(
                        "the daemon ended before it was done; the request stays, and the next one goes on with it",
                        Exit.TRY_AGAIN,
                    )
                line.show()
                time.sleep(_POLL_SECONDS)
    finally:
        line.clear()


def _answer(row: dict[str, Any]) -> Answer:
    answer = json.loads(row["answer"]) if row["answer"] else {}
    if row["state"] == "failed":
        raise UserError(str(answer.get("error", "the daemon could not do it, and its log says why")))
    return answer if isinstance(answer, dict) else {}
