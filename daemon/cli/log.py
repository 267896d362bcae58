"""`engramd log`: the log for eyes, across the files that were put aside. Imports nothing that weighs."""

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.cli import command, profile_option
from daemon.cli.context import colours, home_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers

Entry = dict[str, Any]
_LEVELS = ("debug", "info", "warning", "error", "critical")
_POLL_SECONDS = 0.25
_CHUNK = 1 << 16


def register(subparsers: "Subparsers") -> None:
    parser = command(subparsers, "log")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is logged from now on")
    parser.add_argument(
        "-n", "--lines", type=_count, default=30, metavar="N", help="the last N lines (default: 30)"
    )
    parser.add_argument("--job", metavar="N", help="only lines of this job")
    profile_option(parser, default=None)
    parser.add_argument("--level", choices=_LEVELS, default="debug", help="nothing below this level")
    parser.add_argument("--json", action="store_true", help="the lines as they stand in the file")
    parser.set_defaults(run=_log)


def _log(args: argparse.Namespace) -> int:
    path = home_of(args).log
    wanted = _filter(args)
    show = _print_json if args.json else _printer()
    tail = Tail(path) if args.follow else None
    entries = list(last(path, args.lines, wanted, tail.start if tail else None))
    for entry in entries:
        show(entry)
    if tail is None:
        if not entries and not path.exists():
            raise UserError(f"there is no log yet at {path}", Exit.NOTHING)
        return Exit.OK
    while True:
        for line in tail.lines():
            followed = parse(line)
            if followed is not None and wanted(followed):
                show(followed)
        sys.stdout.flush()
        time.sleep(_POLL_SECONDS)


def _filter(args: argparse.Namespace) -> Callable[[Entry], bool]:
    floor = _LEVELS.index(args.level)

    def wanted(entry: Entry) -> bool:
        level = entry.get("level")
        if level in _LEVELS and _LEVELS.index(level) < floor:
            return False
        if args.job is not None and str(entry.get("job")) != args.job:
            return False
        return args.profile is None or entry.get("profile") == args.profile

    return wanted


def last(path: Path, count: int, wanted: Callable[[Entry], bool], end: int | None = None) -> list[Entry]:
    """The newest `count` entries, oldest first, reading no more than needed. `end`: bytes of the newest file."""
    from daemon.logs import log_files

    found: deque[Entry] = deque()
    for number, file in enumerate(log_files(path)):
        if len(found) >= count:
            break
        try:
            data = file.read_bytes()
        except FileNotFoundError:  # put aside just now: it is the next one
            continue
        if number == 0 and file == path and end is not None:
            data = data[:end]
        for line in reversed(data.split(b"\n")):
            entry = parse(line)
            if entry is not None and wanted(entry):
                found.appendleft(entry)
                if len(found) >= count:
                    break
    return list(found)


def parse(line: bytes) -> Entry | None:
    """None where the line is empty or was torn by a crash."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


class Tail:
    """Whole new lines of a log file, through any number of rotations between two looks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._rest = b""
        self.start = 0  # bytes that were there before
        if self._reopen(path):
            self.start = os.lseek(self._fd or 0, 0, os.SEEK_END)

    def lines(self) -> Iterator[bytes]:
        if self._fd is None and not self._reopen(self._path):
            return
        yield from self._rest_of_file()
        for newer in self._newer():
            if self._reopen(newer):
                yield from self._rest_of_file()

    def _newer(self) -> list[Path]:
        """Files begun after the open one, oldest first; the open one carries another name by now."""
        from daemon.logs import log_files

        assert self._fd is not None
        ours = os.fstat(self._fd).st_ino
        newer: list[Path] = []
        for file in log_files(self._path):
            try:
                if file.stat().st_ino == ours:
                    return newer[::-1]
            except FileNotFoundError:
                continue
            newer.append(file)
        return newer[::-1]  # ours was removed: all that is left is newer

    def _reopen(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._rest = fd, b""
        return True

    def _rest_of_file(self) -> Iterator[bytes]:
        assert self._fd is not None
        while chunk := os.read(self._fd, _CHUNK):
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            yield from whole


def _printer() -> Callable[[Entry], None]:
    from daemon.logs import readable

    paint = colours()
    return lambda entry: print(readable(entry, paint))


def _print_json(entry: Entry) -> None:
    print(json.dumps(entry, ensure_ascii=True))


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("at least 0")
    return number
