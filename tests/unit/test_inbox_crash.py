"""Killed at every single call that changes the disk, on one file system and across two: nothing is lost,
nothing doubled, nothing torn, and the next start needs no repair but to go on."""

import hashlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import durable, inbox
from daemon.durable import is_temp
from daemon.home import Home
from daemon.inbox import Claim, Duplicate, Scanner

NOW = "2026-03-01T02:00:00Z"
CALLS = ("rename", "unlink", "rmdir", "mkdir", "fsync", "fchmod", "open")


@pytest.fixture(params=["one file system", "two file systems"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        home = Home(Path(name))
        if request.param == "two file systems":
            if home.root.stat().st_dev == tmp_path.stat().st_dev:
                pytest.fail("no second file system to be had; mount a tmpfs on /dev/shm")
            (tmp_path / "inbox").mkdir()
            home.inbox.symlink_to(tmp_path / "inbox")
        yield home


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill does not empty the page cache, so a flush decides nothing here; it still counts as a call."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(durable, "sync_filesystem", lambda folder: None)


def drop(home: Home) -> dict[str, bytes]:
    """Three files, a folder, one file that refuses; one of the files is a copy of what is claimed already."""
    inbox.ensure_folders(home, ["me"])
    content = {"a.txt": b"a" * 1_200_000, "b.txt": b"b", "c.txt": b"c"}
    claimed = home.profile("me").claimed / f"{hashlib.sha256(b'b').hexdigest()}-b.txt"
    claimed.write_bytes(b"b")
    for name, data in content.items():
        (home.inbox / name).write_bytes(data)
    (home.inbox / "folder" / "in").mkdir(parents=True)
    (home.inbox / "folder" / "in" / "d.txt").write_bytes(b"d")
    (home.inbox / "empty.txt").touch()
    return content


def go_on(home: Home) -> list[inbox.Outcome]:
    """What a starting daemon does: look at the claims, scan, claim all."""
    inbox.claimed_files(home, "me")
    scanner = Scanner(home, ["me"], 1.0)
    scanner.scan(0.0)
    scanner.scan(1.0)
    outcomes: list[inbox.Outcome] = []
    while scanner.pending:
        outcomes += scanner.claim(1.0, NOW)
    return outcomes


def check(home: Home, content: dict[str, bytes]) -> None:
    found = {claim.name: claim for claim in inbox.claimed_files(home, "me")}
    assert sorted(found) == ["a.txt", "b.txt", "c.txt", "folder"]
    assert len(inbox.claimed_files(home, "me")) == 4
    for name, data in content.items():
        assert found[name].path.read_bytes() == data
        assert found[name].sha256 == hashlib.sha256(data).hexdigest()
    assert (found["folder"].path / "in" / "d.txt").read_bytes() == b"d"
    assert found["folder"].sha256 == inbox.folder_contents(found["folder"].path, 1 << 30).sha256
    assert os.listdir(home.inbox) == ["failed"]
    assert sorted(os.listdir(home.profile("me").failed)) == ["empty.txt", "empty.txt.reason.json"]
    assert not [name for name in os.listdir(home.profile("me").claimed) if is_temp(name)]


def _counted(real: Callable[..., Any], count: list[int], step: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return call


def in_child(home: Home, step: int) -> int:
    """Claims all in a child that dies at the step-th call. Returns how many calls it made if it lived."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = [0]
        for name in CALLS:
            setattr(os, name, _counted(getattr(os, name), count, step))
        go_on(home)
        os.write(writing, str(count[0]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        calls = int(pipe.read() or "0")
    os.waitpid(pid, 0)
    return calls


def test_killed_at_every_call(home: Home) -> None:
    content = drop(home)
    calls = in_child(home, 0)
    check(home, content)
    assert calls > 30
    for step in range(1, calls + 1):
        for folder in (home.inbox, home.profile("me").claimed):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        content = drop(home)
        assert in_child(home, step) == 0  # it was killed
        go_on(home)
        check(home, content)


def test_killed_at_random_among_many(home: Home) -> None:
    inbox.ensure_folders(home, ["me"])
    for number in range(200):
        (home.inbox / f"{number:03}").write_bytes(b"%d" % number)
    chance = random.Random(7)
    taken = 0
    for _ in range(5):
        in_child(home, chance.randrange(1, 900))
        left = len(os.listdir(home.inbox)) - 1
        claims = inbox.claimed_files(home, "me")
        assert left + len(claims) >= 200 and len(claims) >= taken
        taken = len(claims)
    for outcome in go_on(home):
        assert isinstance(outcome, Claim | Duplicate)
    claims = inbox.claimed_files(home, "me")
    assert sorted(claim.path.read_bytes() for claim in claims) == sorted(b"%d" % n for n in range(200))
    assert os.listdir(home.inbox) == ["failed"]
