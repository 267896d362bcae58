"""A shared home: what is opened to its group, what stays private, and what a private home keeps."""

import os
import socket
import stat
from pathlib import Path

import pytest

from daemon import durable, inbox
from daemon.cli.exit_codes import UserError
from daemon.cli.permission import closed, only_the_owner_works
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import Settings
from daemon.sharing import Sharing


def modes(home: Home) -> dict[str, str]:
    """Permission bits of everything in the home, in octal."""
    found = sorted(path for path in home.root.rglob("*") if not path.is_symlink())
    return {str(path.relative_to(home.root)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in found}


def one_tick(home: Home) -> None:
    lock = Lock(home)
    service = Service(home, Settings())
    try:
        service.tick()
    finally:
        service.stop()
        lock.release()


def test_a_private_home_stays_private(home: Home) -> None:
    home.root.mkdir(mode=0o700)
    one_tick(home)
    assert all(int(mode, 8) & 0o077 == 0 for mode in modes(home).values()), modes(home)


def test_a_shared_home_opens_what_its_group_needs(home: Home) -> None:
    home.root.mkdir(mode=0o750)
    home.inbox.mkdir()
    home.inbox.chmod(0o2770)
    one_tick(home)
    job = home.profile("me").jobs / "1-finetune"
    checkpoint = home.profile("me").chains / "1" / "checkpoint-4"
    for folder in (job, checkpoint.parent, checkpoint):
        folder.mkdir(mode=0o700)
    for secret in (job / "samples.jsonl", job / "progress.jsonl", checkpoint / "weights", home.state / "own"):
        secret.write_text("x")
        secret.chmod(0o400 if secret.name == "weights" else 0o600)
    (home.profile("me").root / "model-registry.json").touch(mode=0o600)
    Sharing(home).refresh(home.profile("me"), "a job began", running=True)
    found = modes(home)
    place = "state/profiles/me"
    assert {name: found[name] for name in found if "inbox" in name} == {
        "inbox": "2770", "inbox/failed": "2770", "inbox/failed/me": "2770"
    }  # fmt: skip
    wanted = {
        "state": "750", "state/home.db": "660", "state/daemon.lock": "640", "state/profiles": "750",
        f"{place}/ledger.db": "640", f"{place}/chains/1/checkpoint-4/weights": "440",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    for private in ("state/own", f"{place}/model-registry.json", f"{place}/claimed", f"{place}/archive"):
        assert int(found[private], 8) & 0o077 == 0, private
    assert found[f"{place}/jobs/1-finetune/samples.jsonl"] == "600"
    assert found[f"{place}/jobs/1-finetune/progress.jsonl"] == "640"
    assert not [name for name, mode in found.items() if int(mode, 8) & 0o007]


def test_make_folder_inherits_the_group_bit_without_asking_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RestrictSUIDSGID= lets nobody set the bit, but the parent hands it down."""
    tmp_path.chmod(0o2770)
    monkeypatch.setattr(Path, "chmod", lambda *_: pytest.fail("chmod would be refused"))
    before = os.umask(0o077)
    try:
        durable.make_folder(tmp_path / "failed" / "me", 0o2770)
    finally:
        assert os.umask(before) == 0o077  # it is as it was
    for folder in (tmp_path / "failed", tmp_path / "failed" / "me"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2770


def test_an_added_folder_is_the_groups(home: Home, tmp_path: Path) -> None:
    home.inbox.mkdir(parents=True)
    home.inbox.chmod(0o2770)
    (tmp_path / "day/deep").mkdir(parents=True, mode=0o700)
    (tmp_path / "day/deep/a.txt").touch(mode=0o600)
    added = inbox.add(home, "me", tmp_path / "day")
    assert {f"{stat.S_IMODE(path.stat().st_mode):o}" for path in (added, added / "deep")} == {"2770"}
    assert f"{stat.S_IMODE((added / 'deep/a.txt').stat().st_mode):o}" == "660"


def test_only_the_owner_works_in_a_shared_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.inbox.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: home.root.stat().st_uid + 1)
    only_the_owner_works(home)  # a private home: whoever may write there may work there
    home.inbox.chmod(0o2770)
    with pytest.raises(UserError, match="systemctl start engramd"):
        only_the_owner_works(home)


def test_what_is_closed_is_told_with_what_opens_it(tmp_path: Path) -> None:
    error = PermissionError(13, "Permission denied", str(tmp_path / "x" / "y"))
    assert closed(error) == f"{tmp_path}/x/y: Permission denied"  # ours, so no group would help
    assert closed(PermissionError(1, "Operation not permitted")) == "[Errno 1] Operation not permitted"


def test_the_status_line_tells_of_the_queue(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `systemctl status` shows: files first, then the memories in them."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))

        def said() -> str:
            lines: list[str] = []
            while True:
                try:
                    lines += [line for line in channel.recv(4096).decode().splitlines() if line.startswith("STATUS=")]
                except BlockingIOError:
                    return lines[-1] if lines else ""

        now = [0.0]
        base = Settings.model_validate({"training": {"base_model": "nobody/none"}, "inbox": {"quiet_seconds": 1}})
        lock = Lock(home)
        service = Service(home, base, clock=lambda: now[0])
        try:
            service.tick()
            assert said() == "STATUS=watching the inbox"
            (home.inbox / "a.txt").write_text("I planted three apple trees behind the house.")
            seen = []
            for _ in range(12):
                now[0] += 31.0  # past the pause between two scans
                service.tick()
                seen.append(said())
            assert "STATUS=1 in the inbox" in seen and seen[-1] == "STATUS=me: 1 memories wait", seen
        finally:
            service.stop()
            lock.release()
