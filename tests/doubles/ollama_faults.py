"""What shall go wrong with the stand-in for Ollama, by a JSON file; ollama_server.py lists what can."""

import json
import threading
from pathlib import Path
from typing import Any


class Faults:
    """What shall go wrong, and how often it has already."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.seen: object = None
        self.wanted: dict[str, Any] = {}
        self.used: dict[str, int] = {}

    def now(self) -> dict[str, Any]:
        with self.lock:
            try:
                state = self.path.stat()
                mark = (state.st_ino, state.st_mtime_ns, state.st_size)
                if mark != self.seen:
                    self.wanted, self.used = json.loads(self.path.read_bytes()), {}
                    self.seen = mark
            except FileNotFoundError:
                self.wanted, self.used, self.seen = {}, {}, None
            except ValueError:  # half written
                pass
            return self.wanted

    def _counted(self, key: str, limit: object) -> bool:
        with self.lock:
            if limit is True:
                return True
            if not isinstance(limit, int) or self.used.get(key, 0) >= limit:
                return False
            self.used[key] = self.used.get(key, 0) + 1
            return True

    def on(self, kind: str, call: str = "") -> Any:
        """The value that `kind` has for this call ("POST /api/chat"), or None. A count goes down by one."""
        wanted = self.now().get(kind)
        if not isinstance(wanted, dict):
            return self._counted(kind, wanted) or None
        for endpoint, value in wanted.items():
            if call.startswith(endpoint) or call.partition(" ")[2].startswith(endpoint):
                if isinstance(value, str | float) or kind == "slow":
                    return value
                return self._counted(f"{kind} {endpoint}", value) or None
        return None
