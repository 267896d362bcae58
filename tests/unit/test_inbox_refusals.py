"""What the inbox refuses: safely, with a reason that says what mends it, and never twice in a hurry."""

import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import inbox
from daemon.home import Home
from daemon.inbox import Claim, Refusal, Scanner
from daemon.records import BadItem

NOW = "2026-03-01T02:00:00Z"
NOBODY = 65534


@pytest.fixture
def home() -> Iterator[Home]:
    """Where another user can reach it too, which pytest's own folders do not allow."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        os.chmod(root, 0o755)
        home = Home(Path(root))
        inbox.ensure_folders(home, ["me", "work"])
        yield home


def as_nobody(home: Home, work: Callable[[], Any]) -> Any:
    """Runs `work` in a child without root's rights, which owns the home; its result comes back as JSON."""
    reading, writing = os.pipe()
    if os.getuid() == 0:
        for parent, folders, files in os.walk(home.root):
            for name in [*folders, *files, "."]:
                os.chown(os.path.join(parent, name), NOBODY, NOBODY, follow_symlinks=False)
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return result


def take(scanner: Scanner, start: float = 0.0) -> list[inbox.Outcome]:
    scanner.scan(start)
    scanner.scan(start + scanner.quiet_seconds)
    return scanner.claim(start + scanner.quiet_seconds, NOW)


def refusal_of(home: Home, max_file_bytes: int = 1000) -> tuple[Refusal, dict[str, Any]]:
    (refusal,) = take(Scanner(home, ["me", "work"], 5.0, max_file_bytes))
    assert isinstance(refusal, Refusal) and refusal.moved
    reason = json.loads((refusal.path.parent / (refusal.path.name + ".reason.json")).read_bytes())
    assert set(reason) == {"file", "profile", "time", "reason", "batch", "bad_items"}
    assert reason["reason"] == refusal.reason and reason["time"] == NOW and reason["batch"] is None
    return refusal, reason


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


MAKERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "pipe"),
    "socket": (make_socket, "socket"),
    "symlink": (lambda path: path.symlink_to("/etc/passwd"), "symbolic link"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic link"),
    "folder link": (lambda path: path.symlink_to("/etc"), "symbolic link"),
    "broken link": (lambda path: path.symlink_to("/nowhere"), "symbolic link"),
    "empty": (lambda path: path.touch(), "empty"),
    "too large": (lambda path: path.write_bytes(b"x" * 1001), "at most 1,000"),
}
if os.getuid() == 0:
    MAKERS["device"] = (lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)), "device")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("profile", ["me", "work"])
def test_refused_with_a_reason(home: Home, kind: str, profile: str) -> None:
    make, words = MAKERS[kind]
    make(home.profile(profile).inbox / "thing.json")
    refusal, reason = refusal_of(home)
    assert words in refusal.reason and (reason["file"], reason["profile"]) == ("thing.json", profile)
    assert refusal.path == home.inbox / "failed" / profile / "thing.json"
    assert os.path.lexists(refusal.path) and not os.path.lexists(home.profile(profile).inbox / "thing.json")
    assert Scanner(home, ["me", "work"], 5.0).scan(0.0).waiting == 0


def test_special_files_are_refused_at_once_and_empty_ones_only_when_stable(home: Home) -> None:
    os.mkfifo(home.inbox / "pipe")
    (home.inbox / "empty").touch()
    scan = Scanner(home, ["me", "work"], 5.0).scan(0.0)
    assert (scan.ready, scan.waiting) == (1, 1)


def test_a_file_swapped_for_a_link_or_pipe_after_the_scan(home: Home) -> None:
    scanner = Scanner(home, ["me", "work"], 5.0)
    for name in ("a", "b"):
        (home.inbox / name).write_text("x")
    scanner.scan(0.0)
    scanner.scan(5.0)
    for name in ("a", "b"):
        (home.inbox / name).unlink()
    (home.inbox / "a").symlink_to("/etc/passwd")
    os.mkfifo(home.inbox / "b")
    first, second = scanner.claim(5.0, NOW)
    assert isinstance(first, Refusal) and "link" in first.reason
    assert isinstance(second, inbox.Changed)
    scanner.scan(6.0)
    (third,) = scanner.claim(6.0, NOW)
    assert isinstance(third, Refusal) and "pipe" in third.reason


def test_a_folder_with_nothing_good_is_refused_whole(home: Home) -> None:
    (home.inbox / "batch").mkdir()
    (home.inbox / "batch" / "empty.txt").touch()
    (home.inbox / "batch" / "link").symlink_to("empty.txt")
    refusal, reason = refusal_of(home)
    assert [item["where"] for item in reason["bad_items"]] == ["empty.txt", "link"]
    assert refusal.path.is_dir()


def test_refusals_never_overwrite_each_other(home: Home) -> None:
    for _ in range(3):
        (home.inbox / "a.json").touch()
        refusal_of(home)
    names = sorted(os.listdir(home.profile("me").failed))
    assert [name for name in names if not name.endswith(".reason.json")] == ["a.json", "a.json.2", "a.json.3"]
    assert len(names) == 6


def test_a_name_that_is_no_utf8(home: Home) -> None:
    os.close(os.open(os.fsencode(home.inbox) + b"/bad\xff\n.json", os.O_CREAT | os.O_WRONLY))
    refusal, reason = refusal_of(home)
    assert reason["file"] == "bad\ufffd_.json" == refusal.path.name == refusal.name


# -- without root's rights


def test_unreadable_files_and_folders(home: Home) -> None:
    (home.inbox / "secret.json").write_text("x")
    (home.inbox / "secret.json").chmod(0)
    (home.inbox / "batch").mkdir()
    (home.inbox / "batch" / "good.txt").write_text("good")
    (home.inbox / "batch" / "shut").mkdir(mode=0)
    (home.inbox / "batch" / "no.txt").write_text("x")
    (home.inbox / "batch" / "no.txt").chmod(0)

    def work() -> list[Any]:
        outcomes = take(Scanner(home, ["me", "work"], 5.0))
        found: list[Any] = []
        for one in outcomes:
            if isinstance(one, Claim):
                found.append([one.name, [item.where for item in one.bad_items]])
            elif isinstance(one, Refusal):
                found.append([one.name, one.moved, one.reason])
        return found

    batch, secret = as_nobody(home, work)
    assert batch == ["batch", ["no.txt", "shut"]]
    assert secret[:2] == ["secret.json", True]
    assert f"chmod u+rw,g+r {home.profile('me').failed / 'secret.json'}" in secret[2]


def test_what_cannot_be_moved_is_remembered_and_not_tried_in_a_hot_loop(home: Home) -> None:
    (home.inbox / "good.json").write_text("good")
    (home.inbox / "empty.json").touch()
    home.inbox.chmod(0o555)

    def work() -> list[Any]:
        scanner = Scanner(home, ["me", "work"], 5.0)
        first = [[one.name, one.moved] for one in take(scanner) if isinstance(one, Refusal)]
        hot = scanner.scan(60.0)
        os.chmod(home.inbox, 0o700)
        later = scanner.scan(5.0 + 600.0)
        taken = [type(one).__name__ for one in scanner.claim(605.0, NOW)]
        return [first, hot.ready, len(hot.stuck), [one.reason for one in hot.stuck], later.ready, taken]

    first, hot, stuck, reasons, later, taken = as_nobody(home, work)
    assert first == [["empty.json", False], ["good.json", False]]
    assert (hot, stuck, later) == (0, 2, 2)
    assert any("chmod" in reason for reason in reasons)
    assert taken == ["Refusal", "Claim"]
    assert not [name for name in os.listdir(home.profile("me").failed) if name.startswith("good")]


def test_a_stuck_file_that_changes_is_tried_again(home: Home) -> None:
    (home.inbox / "empty.json").touch()
    home.inbox.chmod(0o555)

    def work() -> list[Any]:
        scanner = Scanner(home, ["me", "work"], 5.0)
        take(scanner)
        (home.inbox / "empty.json").write_text("now there is something")
        os.chmod(home.inbox, 0o700)
        return [type(one).__name__ for one in take(scanner, 20.0)]

    assert as_nobody(home, work) == ["Claim"]


def test_an_inbox_that_cannot_be_read_is_a_problem_and_not_an_error(home: Home) -> None:
    (home.inbox / "work").chmod(0)

    def work() -> list[str]:
        return list(Scanner(home, ["me", "work"], 5.0).scan(0.0).problems)

    (problem,) = as_nobody(home, work)
    assert "work" in problem


# -- what the service refuses later


def test_reject_is_safe_to_repeat(home: Home) -> None:
    (home.inbox / "a.json").write_text("torn")
    (claim,) = take(Scanner(home, ["me", "work"], 5.0))
    assert isinstance(claim, Claim)
    bad = [BadItem("line 3", "It is no JSON.")]
    place = inbox.reject(home, claim.path, "me", claim.name, "It is torn.", NOW, bad, batch="b7")
    assert place.read_text() == "torn"
    assert inbox.reject(home, claim.path, "me", claim.name, "It is torn.", "later", bad, batch="b7") == place
    with pytest.raises(FileNotFoundError):
        inbox.reject(home, claim.path, "me", claim.name, "Something else.", NOW)
    reason = json.loads((place.parent / "a.json.reason.json").read_text())
    assert (
        reason["bad_items"] == [{"where": "line 3", "reason": "It is no JSON."}] and reason["batch"] == "b7"
    )


def test_bad_lines_are_reported_once(home: Home) -> None:
    bad = [BadItem(f"line {number}", "It is no JSON.") for number in range(3)]
    path = inbox.report_bad_items(home, "me", "a.jsonl", "3 of 9 lines were not taken.", bad, NOW)
    assert path.name == "a.jsonl.bad-lines.reason.json"
    assert inbox.report_bad_items(home, "me", "a.jsonl", "3 of 9 lines were not taken.", bad, "later") == path
    other = inbox.report_bad_items(home, "me", "a.jsonl", "2 of 9 lines were not taken.", bad[:2], NOW)
    assert other.name == "a.jsonl.2.bad-lines.reason.json"


def test_a_million_bad_lines_are_counted_and_not_all_listed(home: Home) -> None:
    bad = [BadItem("line 1", "It is no JSON.")] * 1_000_000
    path = inbox.report_bad_items(home, "me", "a.jsonl", "All.", bad, NOW)
    listed = json.loads(path.read_text())["bad_items"]
    assert len(listed) == 10_001 and "990,000 more" in listed[-1]["reason"]


def test_modes_follow_the_inbox(home: Home) -> None:
    (home.inbox / "a").touch()
    refusal_of(home)
    assert stat.S_IMODE(home.profile("me").failed.stat().st_mode) == 0o700
    home.inbox.chmod(0o2770)
    inbox.ensure_folders(home, ["me", "work", "team"])
    assert stat.S_IMODE(home.inbox.stat().st_mode) == 0o2770
    assert stat.S_IMODE(home.profile("team").inbox.stat().st_mode) == 0o2770
    assert stat.S_IMODE(home.profile("team").claimed.stat().st_mode) == 0o700
    (home.inbox / "team" / "a").touch()
    (shared,) = take(Scanner(home, ["me", "work", "team"], 5.0))
    assert isinstance(shared, Refusal)
    for name in ("a", "a.reason.json"):
        assert stat.S_IMODE((shared.path.parent / name).stat().st_mode) == 0o660
