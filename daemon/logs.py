"""The log: JSON lines in `state/logs/engramd.jsonl`, and on stdout as JSON or, on a terminal, readable.

structlog is imported by the functions that write, not by this module, so that `engramd log`, which only
reads, starts at once.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from daemon.home import Home

if TYPE_CHECKING:
    import logging

    from structlog.typing import FilteringBoundLogger

LEVELS = ("debug", "info", "warning", "error", "critical")
BOUND = ("profile", "batch", "job", "version", "step")  # shown first, in this order
PRIVATE = frozenset(("text", "content", "response", "prompt", "answer", "messages"))
_FIRST = ("time", "level", "event", *BOUND)
_MB = 1_000_000
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}


def configure(
    home: Home,
    level: str = "info",
    rotate_mb: float = 16.0,
    keep: int = 5,
    terminal: bool | None = None,
    *,
    quiet: bool = False,
) -> None:
    """Send every logger's lines to the file and to stdout. Call once, early; a second call replaces it.

    `terminal` says whether stdout is for eyes (None: look); `quiet` leaves stdout to the caller.
    """
    structlog = _structlog()
    for folder in (home.state, home.log.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if terminal is None:
        terminal = sys.stdout.isatty()
    sink = _Sink(LogFile(home.log, int(rotate_mb * _MB), keep), quiet=quiet, terminal=terminal)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            withhold_texts,
            _hand_over,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.index(level) * 10 + 10),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    _take_in_stdlib()


def get_logger(**bound: Any) -> "FilteringBoundLogger":
    """A logger with keys bound to it; it obeys `configure` also where that comes later."""
    return cast("FilteringBoundLogger", _structlog().get_logger(**bound))


def withhold_texts(
    _logger: object, _method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: a memory's text is for debug lines alone. Also one mapping deep."""
    if entry.get("level") == "debug":
        return entry
    for key in PRIVATE & entry.keys():
        del entry[key]
    for key, value in entry.items():
        if isinstance(value, Mapping) and not PRIVATE.isdisjoint(value):
            entry[key] = {k: v for k, v in value.items() if k not in PRIVATE}
    return entry


def readable(entry: Mapping[str, Any], colours: bool = False) -> str:
    """One line for eyes: local time, level, event, bound keys, the rest. Text may go on below."""
    level = str(entry.get("level", ""))
    parts = [
        _paint(_local(str(entry.get("time", ""))), "2", colours),
        _paint(f"{level:<8}", _COLOURS.get(level, "0"), colours),
        _paint(f"{entry.get('event', '')!s:<28}", "1", colours),
    ]
    keys = [key for key in BOUND if key in entry] + [k for k in entry if k not in (*_FIRST, "exception")]
    parts += [f"{_paint(key, '36', colours)}={_value(entry[key])}" for key in keys]
    line = " ".join(parts).rstrip()
    trace = str(entry.get("exception") or "").replace("\x1b", "\\x1b")  # no escape codes from a file's name
    return f"{line}\n{trace}" if trace else line


def log_files(path: Path) -> list[Path]:
    """The log file and the ones put aside, newest first; a number may be missing after a crash."""
    found = []
    for aside in path.parent.glob(f"{path.name}.*"):
        number = aside.name.removeprefix(f"{path.name}.")
        if number.isascii() and number.isdigit():
            found.append((int(number), aside))
    return ([path] if path.exists() else []) + [aside for _, aside in sorted(found)]


class LogFile:
    """An append-only file of lines, put aside as `.1`, `.2`, ... when it has grown to `limit` bytes.

    A line is one write, so a crash or a full disk tears at most the last; a torn line is ended before the next one.
    A full disk loses lines, never the daemon: how many is written once there is room again.
    """

    def __init__(self, path: Path, limit: int, keep: int) -> None:
        self._path, self._limit, self._keep = path, limit, keep
        self._lock = threading.Lock()
        self._lost = 0
        self._file = self._open()

    def write(self, line: bytes) -> None:
        with self._lock:
            try:
                self._follow()
                size = os.fstat(self._file.fileno()).st_size
                if size and size + len(line) > self._limit:
                    self._rotate()
                if self._lost:
                    _end_line(self._file)
                    note = {
                        "time": _utc(),
                        "level": "warning",
                        "event": "log_lines_lost",
                        "lines": self._lost,
                    }
                    _write_all(self._file, json.dumps(note).encode() + b"\n")
                    self._lost = 0
                _write_all(self._file, line)
            except OSError:
                self._lost += 1

    def _open(self) -> FileIO:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        mode = 0o600 | (self._path.parent.stat().st_mode & 0o040)  # the group's too, where the folder is
        file = FileIO(os.open(self._path, flags, 0o600), "r+")
        os.fchmod(file.fileno(), mode)
        _end_line(file)
        return file

    def _follow(self) -> None:
        """Another hand (a second process, logrotate, a person) may have moved or removed the file."""
        ours = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev):
            self._reopen()

    def _rotate(self) -> None:
        # From the oldest down: a crash between two renames leaves a gap in the numbers, never a loss.
        for aside in reversed(log_files(self._path)[1:]):
            number = int(aside.suffix[1:])
            if number >= self._keep:
                aside.unlink(missing_ok=True)
            else:
                aside.rename(self._aside(number + 1))
        if self._keep:
            self._path.rename(self._aside(1))
        else:
            self._path.unlink()
        self._reopen()

    def _reopen(self) -> None:
        old, self._file = self._file, self._open()
        old.close()

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class _Sink:
    """What structlog calls a logger: gets each entry once, writes it twice."""

    def __init__(self, file: LogFile, *, quiet: bool, terminal: bool) -> None:
        self._file, self._quiet, self._terminal = file, quiet, terminal

    def msg(self, entry: Mapping[str, Any]) -> None:
        line = _json_line(entry)
        self._file.write(line)
        if self._quiet:
            return
        shown = (
            readable(entry, colours="NO_COLOR" not in os.environ) if self._terminal else line[:-1].decode()
        )
        try:
            print(shown, flush=True)
        except (OSError, ValueError):  # stdout is gone or closed: the file has the line
            pass

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def _hand_over(
    _logger: object, _method: str, entry: MutableMapping[str, Any]
) -> tuple[tuple[Any], dict[str, Any]]:
    ordered = {key: entry[key] for key in _FIRST if key in entry}
    return (ordered | {k: v for k, v in entry.items() if k not in ordered},), {}


def _json_line(entry: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(entry, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN and infinity have no JSON: a diverged loss is logged as text
        text = json.dumps(_without_nan(entry), ensure_ascii=False, default=str)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its JSON escape


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _end_line(file: FileIO) -> None:
    size = os.fstat(file.fileno()).st_size
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        _write_all(file, b"\n")


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _local(stamp: str) -> str:
    try:
        return datetime.fromisoformat(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return stamp


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    plain = value and value.isprintable() and not any(c in value for c in ' "=')
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())


def _paint(text: str, colour: str, colours: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text


class _Structlog(Protocol):
    """The part of structlog that is used here."""

    contextvars: Any
    processors: Any

    def configure(self, **options: Any) -> None: ...
    def get_logger(self, **bound: Any) -> Any: ...
    def make_filtering_bound_logger(self, min_level: int) -> Any: ...


def _structlog() -> _Structlog:
    """structlog without rich, which it would load for tracebacks we do not print: 4 MiB and 0.1 s less."""
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        try:
            import structlog
        finally:
            del sys.modules["rich"]
    import structlog

    return cast(_Structlog, structlog)


def _take_in_stdlib() -> None:
    """Warnings of libraries (APScheduler, watchdog) become lines of our log."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: "logging.LogRecord") -> None:
            level = record.levelname.lower()
            fields = {"logger": record.name, "message": record.getMessage()}
            getattr(get_logger(), level if level in LEVELS else "warning")("library_message", **fields)

    root = logging.getLogger()
    for handler in root.handlers[:]:
        if getattr(handler, "name", None) == "engramd":
            root.removeHandler(handler)
    handler = Handler(logging.WARNING)
    handler.name = "engramd"
    root.addHandler(handler)
