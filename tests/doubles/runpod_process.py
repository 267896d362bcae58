"""A stand-in RunPod for the length of a test: `with renting(tmp_path) as runpod:`."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("runpod_api.py")
CANARY = "rpa_CANARY0123456789abcdefghijklmnopqrstuv"  # the account's key: it must be in no file at all


@dataclass
class RunPod:
    """A running stand-in, and a key pair of ssh's that opens its pods."""

    folder: Path
    price: float  # dollars an hour of a running pod
    boot: float
    key: str = CANARY
    url: str = ""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def identity(self) -> Path:
        return self.folder / "identity"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(self.identity)]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--folder", str(self.folder), "--key", self.key, "--price", str(self.price),
             "--boot", str(self.boot)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), "the stand-in did not start"

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None

    def faults(self, **wanted: Any) -> None:
        """What goes wrong from now on (runpod_api.py says what can); without arguments: nothing any more."""
        temporary = self.folder / "faults-new.json"
        temporary.write_text(json.dumps(wanted))
        temporary.rename(self.folder / "faults.json")

    def meter(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/_meter", timeout=30) as answer:
            told: dict[str, Any] = json.load(answer)
            return told

    def running(self) -> list[str]:
        return list(self.meter()["running"])

    def wait(self, what: str, until: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        """The meter, once it is as wanted."""
        deadline = time.monotonic() + seconds
        while not until(told := self.meter()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s: {told}"
            time.sleep(0.2)
        return told

    def calls(self, start: str = "") -> list[dict[str, Any]]:
        log = self.folder / "requests.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [told for line in lines if (told := json.loads(line))["call"].startswith(start)]

    def api_key(self) -> dict[str, str]:
        return {"RUNPOD_API_KEY": self.key}


@contextmanager
def renting(folder: Path, price: float = 3.6, boot: float = 0.0) -> Iterator[RunPod]:
    """A stand-in whose pods lie in `folder`/runpod; none is left when it ends."""
    one = RunPod(folder / "runpod", price, boot)
    one.start()
    try:
        yield one
    finally:
        one.stop()
