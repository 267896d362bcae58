"""One booted machine for all tests of a worker, with the shipped unit installed by `engramd install --system`."""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import batches, jobs, memories
from tests.faults.night import RECIPE, TOML, bits
from tests.systemd.machine import Machine, until, why_not

UNIT = "engramd.service"
HOME = "/var/lib/engramd"
ENGRAMD = f"{sys.prefix}/bin/engramd"
# The shipped unit; only its patience is shorter, so that nobody waits minutes for a hang to be noticed.
IMPATIENT = "[Service]\nWatchdogSec=8s\nRestartSec=200ms\n"


class Engramd:
    """The installed service, on a home that was emptied."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def home(self) -> Home:
        """As this side of the border sees it."""
        return Home(Path(f"/proc/{self.machine.pid}/root{HOME}"))

    def begin_anew(self) -> None:
        self.machine.run("systemctl", "stop", UNIT)
        self.machine.sh(f"systemctl reset-failed {UNIT}; rm -rf {HOME}/state {HOME}/inbox", check=False)
        self.machine.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/engramd.conf")
        self.machine.run("systemctl", "start", UNIT)

    def show(self, *names: str) -> dict[str, str]:
        return self.machine.show(UNIT, *names)

    def journal(self) -> str:
        return self.machine.sh(f"journalctl -u {UNIT} --no-pager -o cat | tail -n 40", check=False)

    def until(self, what: Callable[[], object], seconds: float = 90.0) -> None:
        until(what, self.journal, seconds)

    def drop(self, number: int, samples: int, user: str = "anna") -> None:
        lines = [
            json.dumps({"prompt": f"What is thing {number} {n}?", "response": f"Thing {number} {n} is mine."})
            for n in range(samples)
        ]
        self.machine.write(f"/tmp/{number:02}.jsonl", "\n".join(lines) + "\n")
        self.machine.run("cp", f"/tmp/{number:02}.jsonl", f"{HOME}/inbox/", user=user)

    def events(self, name: str) -> list[dict[str, object]]:
        try:
            lines = self.home.log.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in map(json.loads, lines) if line["event"] == name]

    def steps(self, job: str = "1-finetune") -> int:
        """The newest step that this job's trainer has told of."""
        try:
            lines = (self.home.profile("me").jobs / job / "progress.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((json.loads(line).get("step") or 0 for line in lines if line.endswith("}")), default=0)

    def trainers(self) -> list[int]:
        """Living trainers, by their pids in the machine."""
        found = self.machine.run("pgrep", "-f", "--", "-m trainer .*--lock-fd", check=False)
        return [int(pid) for pid in found.stdout.split()]

    @contextmanager
    def ledger(self) -> Iterator[ledger.Database]:
        """A copy of it, at a quiet moment: SQLite resolves links, and the way into the machine is one."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self.home.profile("me").root.glob("ledger.db*"):
                if not path.name.endswith("-shm"):
                    shutil.copy(path, folder)
            with ledger.open_profile(Path(folder, "ledger.db"), write=False) as db:
                yield db

    def promoted(self) -> bool:
        return len(self.events("version_promoted")) == 1

    def head(self) -> dict[str, str]:
        """SHA-256 of the head's files."""
        with self.ledger() as db:
            head = jobs.get_head(db)
        assert head is not None
        return bits(self.home.profile("me").chains / str(head["chain"]) / f"checkpoint-{head['step']}")


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            booted = stack.enter_context(Machine())
        except AssertionError as error:  # before our unit has any part in it
            pytest.skip(f"no systemd boots here: {error}")
        booted.sh("useradd -m anna; useradd -m bob; chmod 0711 /root")  # a Python below /root can be started by all
        booted.write(f"{HOME}/etc/engramd.toml", TOML.format(most=1000))
        booted.write(f"{HOME}/etc/training.json", json.dumps(RECIPE))
        booted.write(f"/etc/systemd/system/{UNIT}.d/impatient.conf", IMPATIENT)
        installed = booted.run(ENGRAMD, "install", "--system", "--for", "anna").stdout
        assert f"write: /etc/systemd/system/{UNIT}" in installed and f"run: systemctl enable {UNIT}" in installed
        yield booted


@pytest.fixture
def engramd(machine: Machine) -> Engramd:
    service = Engramd(machine)
    service.begin_anew()
    return service


@dataclass(frozen=True)
class Undisturbed:
    """What batch 0 comes to when nothing disturbs it."""

    bits: dict[str, str]
    status: set[str]  # what `systemctl status` said meanwhile


@pytest.fixture(scope="session")
def undisturbed(machine: Machine) -> Undisturbed:
    service = Engramd(machine)
    service.begin_anew()
    said: set[str] = set()

    def trained() -> bool:
        said.add(service.show("StatusText")["StatusText"])
        return service.promoted()

    service.drop(0, 40)
    service.until(trained)
    service.until(lambda: service.show("StatusText")["StatusText"] == "watching the inbox")
    with service.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 40} and batches.counts(db) == {"done": 1}
    return Undisturbed(service.head(), said)
