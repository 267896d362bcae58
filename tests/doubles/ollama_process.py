"""A stand-in Ollama for the length of a test: `with serving(tmp_path) as server:`."""

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SCRIPT = Path(__file__).with_name("ollama_server.py")
DEADLINE = 20.0  # seconds, for the process to do what it is told


@dataclass
class Serving:
    """A running stand-in. `host` stays the same when it is stopped and started again."""

    folder: Path
    answers: Literal["auto", "real", "pretend"]
    host: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2] or 0)

    @property
    def log(self) -> Path:
        return self.folder / "requests.jsonl"

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--models", str(self.folder), "--answers", self.answers]
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        self.host = self.process.stdout.readline().strip()
        assert self.host.startswith("http://"), "the stand-in did not start"

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Ends it, as when Ollama is stopped; blobs and models stay for `start`."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None

    def faults(self, **wanted: Any) -> None:
        """What goes wrong from now on (ollama_server.py says what can); without arguments: nothing any more."""
        temporary = self.folder / "faults-wanted.json"
        temporary.write_text(json.dumps(wanted))
        temporary.rename(self.folder / "faults.json")
        deadline = time.monotonic() + DEADLINE
        while self.process and self._open() == bool(wanted.get("down")):
            assert time.monotonic() < deadline, "the stand-in did not take its faults"
            time.sleep(0.01)

    def _open(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        except OSError:
            return False

    def requests(self, method: str = "", path: str = "") -> list[dict[str, Any]]:
        """The requests so far, in order: method, path, bytes (of the body), body (its JSON)."""
        records = (
            [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        )
        found = [record for record in records if "path" in record]
        return [r for r in found if r["path"].startswith(path) and r["method"] in (method or r["method"])]

    def uploads(self) -> list[dict[str, Any]]:
        """The uploads so far, whole or not; `bytes` is what came."""
        return self.requests("POST", "/api/blobs/")

    def forget_requests(self) -> None:
        self.log.write_text("")


@contextmanager
def serving(folder: Path, answers: Literal["auto", "real", "pretend"] = "pretend") -> Iterator[Serving]:
    """A stand-in with its blobs in `folder`/ollama. "real" answers need llama_cpp; "pretend" ones no model at all."""
    server = Serving(folder / "ollama", answers)
    server.folder.mkdir(parents=True, exist_ok=True)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def tiny_gguf(
    path: Path, mark: str = "", *, adapter: bool = False, architecture: str = "qwen2", size: int = 0
) -> Path:
    """A GGUF header without tensors: a model to "pretend". `mark` makes it differ; `size` pads it, in bytes."""
    values = {"general.architecture": architecture, "general.type": "adapter" if adapter else "model"}
    if adapter:
        values["adapter.type"] = "lora"
    values["test.mark"] = mark
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    for key, value in values.items():
        content += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
        content += struct.pack("<Q", len(value.encode())) + value.encode()
    content += b"\0" * (-len(content) % 32)
    path.write_bytes(content.ljust(size, b"\0"))
    return path
