"""The watch: a hint that something happened in an inbox. Losing every hint costs nothing but time.

inotify overflows silently, network file systems send nothing, and watches run out; so nothing here says
what changed, and the caller scans on a timer as well.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver, ObservedWatch


def _ignore(message: str) -> None:
    return None


class Watch:
    """Calls `wake` from a thread, once per burst, within `debounce` seconds of its first event."""

    def __init__(
        self,
        paths: Sequence[Path],
        wake: Callable[[], None],
        debounce: float = 0.5,
        warn: Callable[[str], None] = _ignore,
    ) -> None:
        self._paths = tuple(paths)
        self._wake = wake
        self._debounce = debounce
        self._warn = warn
        self._warned = False
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, tuple[int, ObservedWatch]] = {}  # path -> (inode, watch)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._stopped = False

    @property
    def watching(self) -> bool:
        return bool(self._watched)

    def start(self) -> bool:
        """Whether any hints will come. False is no error: scans on the timer go on."""
        try:
            from watchdog.observers import Observer  # here, because only a daemon that stays needs it

            self._observer = Observer()
            self._observer.start()
        except (OSError, ImportError) as error:
            self._observer = None
            self._warn_once(error)
            return False
        self.refresh()
        return self.watching

    def refresh(self) -> None:
        """Watches what has appeared, or was removed and made anew. Cheap: for each scan on the timer."""
        if self._observer is None:
            return
        for path in self._paths:
            try:
                inode = os.stat(path).st_ino
            except OSError:
                inode = 0
            known = self._watched.get(path)
            if known is not None and known[0] == inode:
                continue
            if known is not None:
                self._observer.unschedule(known[1])
                del self._watched[path]
            if inode:
                self._schedule(self._observer, path, inode)

    def _schedule(self, observer: "BaseObserver", path: Path, inode: int) -> None:
        from watchdog import events

        wanted: list[type[FileSystemEvent]] = [
            events.FileCreatedEvent,  # and not "modified": a long copy would send thousands
            events.DirCreatedEvent,
            events.FileMovedEvent,
            events.DirMovedEvent,
            events.FileClosedEvent,
        ]
        handler = events.FileSystemEventHandler()
        handler.on_any_event = self._on_event  # type: ignore[method-assign]
        try:
            watch = observer.schedule(handler, str(path), event_filter=wanted, follow_symlink=True)
        except OSError as error:
            self._warn_once(error)
        else:
            self._watched[path] = (inode, watch)

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"No hints from the file system ({error}); the inbox is scanned on a timer only.")

    def _on_event(self, event: "FileSystemEvent") -> None:
        with self._lock:
            if self._timer is None and not self._stopped:
                self._timer = threading.Timer(self._debounce, self._fire)
                self._timer.daemon = True
                self._timer.start()

    def _fire(self) -> None:
        with self._lock:
            self._timer = None  # before the call: what comes from now on deserves another one
            if self._stopped:
                return
        self._wake()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._timer is not None:
                self._timer.cancel()
        if self._observer is not None:
            # Its emitter logs an error for each event that comes while it is being stopped.
            logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)
            self._observer.stop()
            self._observer.join(timeout=5.0)
            self._observer = None
        self._watched.clear()
