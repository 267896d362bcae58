"""Messages to systemd, against a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = f"engramd-test-{os.getpid()}-{tmp_path.name}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        channel.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield channel


def test_each_message(systemd: socket.socket) -> None:
    assert notify.ready("two profiles")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=two profiles"
    assert notify.status("step 3\nof 9 \u2014 good")
    assert systemd.recv(4096) == "STATUS=step 3 of 9 \u2014 good".encode()
    assert notify.watchdog()
    assert systemd.recv(4096) == b"WATCHDOG=1"
    assert notify.extend_timeout(12.5)
    assert systemd.recv(4096) == b"EXTEND_TIMEOUT_USEC=12500000"
    assert notify.stopping()
    assert systemd.recv(4096) == b"STOPPING=1"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready()
    for address in ("", "vsock:2:1234", str(tmp_path / "nobody-listens"), "@" + "x" * 300):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not notify.watchdog()


def test_a_full_queue_does_not_hold_up(systemd: socket.socket) -> None:
    sent = 0
    while sent < 100_000 and notify.watchdog():
        sent += 1
    assert 0 < sent < 100_000  # it gave up soon, with False and no exception


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(
    environment: dict[str, str], expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_interval() == expected
