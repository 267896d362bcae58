"""The crash law's primitives: whole or not at all, on one file system and across two."""

import hashlib
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import durable


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path."""
    for root in (Path("/dev/shm"), Path("/run"), Path.home()):
        if root.is_dir() and os.access(root, os.W_OK) and root.stat().st_dev != tmp_path.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=root) as name:
                yield Path(name)
            return
    pytest.fail("this machine has one writable file system only; mount a tmpfs on /dev/shm")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_write_atomic_writes_replaces_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    old = os.umask(0o077)
    try:
        durable.write_atomic(path, b"one")
        assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
        durable.write_atomic(path, b"two", 0o664)  # the umask has no say
    finally:
        os.umask(old)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o664)
    assert os.listdir(tmp_path) == [path.name]


def test_write_atomic_leaves_the_old_content_where_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    durable.write_atomic(path, b"one")

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        durable.write_atomic(path, b"two")
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_write_atomic_killed_at_any_call_is_never_torn(tmp_path: Path) -> None:
    path = tmp_path / "a"
    old, new = b"o" * 100_000, b"n" * 200_000
    seen = set()
    for step in range(1, 8):
        durable.write_atomic(path, old)
        pid = os.fork()
        if pid == 0:
            _die_at(step)
            durable.write_atomic(path, new)
            os._exit(0)
        os.waitpid(pid, 0)
        assert path.read_bytes() in (old, new)
        seen.add(path.read_bytes()[:1])
        durable.remove_temps(tmp_path)
        assert os.listdir(tmp_path) == ["a"]
    assert seen == {b"o", b"n"}


def _die_at(step: int) -> None:
    """In a forked child: SIGKILL just before the step-th call that changes the disk."""
    left = [step]

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in ("open", "fchmod", "fsync", "rename"):
        counted(name)


def test_make_folder_makes_all_that_is_missing_and_changes_nothing_else(tmp_path: Path) -> None:
    there = tmp_path / "shared"
    there.mkdir(mode=0o755)
    there.chmod(0o2770)
    durable.make_folder(there)
    durable.make_folder(there / "a" / "b")
    assert [mode(there), mode(there / "a"), mode(there / "a" / "b")] == [0o2770, 0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        durable.make_folder(tmp_path / "file")


def test_move_across_file(tmp_path: Path, elsewhere: Path) -> None:
    source, target = elsewhere / "a.json", tmp_path / "a.json"
    source.write_bytes(b"x" * 3_000_000)
    os.utime(source, ns=(1, 1_600_000_000_123_456_789))
    with pytest.raises(OSError, match="cross-device"):
        durable.rename_durable(source, target)
    durable.move(source, target)
    assert target.read_bytes() == b"x" * 3_000_000 and mode(target) == 0o600
    assert target.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert os.listdir(elsewhere) == [] and os.listdir(tmp_path) == ["a.json"]


def test_move_across_folder(tmp_path: Path, elsewhere: Path) -> None:
    source, target = elsewhere / "batch", tmp_path / "batch"
    (source / "in").mkdir(parents=True)
    (source / "in" / "a.txt").write_text("a")
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    durable.move(source, target)
    assert (target / "in" / "a.txt").read_text() == "a"
    assert os.readlink(target / "link") == "/etc/passwd"
    assert not os.path.lexists(target / "pipe") and not source.exists()


def test_move_across_keeps_the_source_where_it_fails(tmp_path: Path, elsewhere: Path) -> None:
    source = elsewhere / "a"
    source.write_bytes(b"x" * (durable.CHUNK * 3))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        durable.move(source, tmp_path / "a", stop)
    assert source.exists() and os.listdir(tmp_path) == []


def test_copying_never_blocks_and_never_follows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("pipe", "link"):
        with pytest.raises(OSError):
            durable.copy_durable(tmp_path / name, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_sha256(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "a").write_bytes(data)
    pulses: list[int] = []
    assert durable.sha256_file(tmp_path / "a", lambda: pulses.append(1)) == hashlib.sha256(data).hexdigest()
    assert len(pulses) == 2


def test_flushes_return(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("a")
    (tmp_path / "in" / "loop").symlink_to("loop")
    durable.fsync_tree(tmp_path)
    durable.sync_filesystem(tmp_path)
    durable.fsync_dirs([tmp_path, tmp_path, tmp_path / "in"])
