"""The inbox from drop to claim: what is seen, when it is stable, and what the claim makes of it."""

import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import inbox
from daemon.home import Home
from daemon.inbox import Claim, Duplicate, Scanner
from daemon.records import Refused

NOW = "2026-03-01T02:00:00Z"
QUIET = 5.0


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def new_home(root: Path, *profiles: str) -> Home:
    home = Home(root)
    inbox.ensure_folders(home, ("me", *profiles))
    return home


def take_all(scanner: Scanner, start: float = 0.0, limit: int = 200) -> list[inbox.Outcome]:
    """Two scans a quiet time apart, then everything that is ready."""
    scanner.scan(start)
    scanner.scan(start + scanner.quiet_seconds)
    outcomes: list[inbox.Outcome] = []
    while scanner.pending:
        outcomes += scanner.claim(start + scanner.quiet_seconds, NOW, limit)
    return outcomes


def claims_of(outcomes: list[inbox.Outcome]) -> list[Claim]:
    assert all(isinstance(one, Claim) for one in outcomes), outcomes
    return [one for one in outcomes if isinstance(one, Claim)]


@pytest.fixture
def home() -> Iterator[Home]:
    """In memory: what is tested here is not the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        yield new_home(Path(root), "work")


# -- stability


def test_a_file_is_claimed_after_its_quiet_time(home: Home) -> None:
    (home.inbox / "a.json").write_bytes(b"{}")
    scanner = Scanner(home, ["me", "work"], QUIET)
    first = scanner.scan(100.0)
    assert (first.ready, first.waiting, first.next_stable_at, first.all_stable_at) == (0, 1, 105.0, 105.0)
    assert scanner.scan(104.9).ready == 0
    assert scanner.scan(105.0).ready == 1
    (claim,) = claims_of(scanner.claim(105.0, NOW))
    assert claim.path == home.profile("me").claimed / f"{sha(b'{}')}-a.json"
    assert (claim.profile, claim.name, claim.size, claim.is_folder) == ("me", "a.json", 2, False)
    assert stat.S_IMODE(claim.path.stat().st_mode) == 0o600
    assert set(os.listdir(home.inbox)) == {"failed", "work"}
    assert scanner.scan(106.0) == inbox.Scan(0, 0, None, None, (), ())


def test_a_growing_file_waits_however_old_its_time_is(home: Home) -> None:
    path = home.inbox / "a.txt"
    scanner = Scanner(home, ["me", "work"], QUIET)
    for second in range(30):
        with path.open("ab") as file:
            file.write(b"more")
        os.utime(path, ns=(1, 1))  # moved in from long ago; only the size tells
        assert scanner.scan(float(second)).ready == 0
    assert scanner.scan(34.0).ready == 1


def test_a_change_of_time_alone_or_a_new_inode_starts_the_quiet_time_anew(home: Home) -> None:
    path = home.inbox / "a.txt"
    path.write_bytes(b"same")
    scanner = Scanner(home, ["me", "work"], QUIET)
    scanner.scan(0.0)
    os.utime(path, ns=(5, 5))
    assert scanner.scan(5.0).next_stable_at == 10.0
    (home.inbox / ".new").write_bytes(b"same")
    os.utime(home.inbox / ".new", ns=(5, 5))
    os.rename(home.inbox / ".new", path)
    assert scanner.scan(10.0).next_stable_at == 15.0
    assert scanner.scan(15.0).ready == 1


def test_a_write_between_scan_and_claim_is_noticed(home: Home) -> None:
    path = home.inbox / "a.txt"
    path.write_bytes(b"one")
    scanner = Scanner(home, ["me", "work"], QUIET)
    scanner.scan(0.0)
    scanner.scan(5.0)
    path.write_bytes(b"longer")
    assert scanner.claim(5.0, NOW) == [inbox.Changed("me", "a.txt")]
    assert path.read_bytes() == b"longer"
    assert (scanner.scan(6.0).ready, scanner.scan(11.0).ready) == (0, 1)


@pytest.mark.parametrize("moment", ["hashing", "renaming"])
def test_a_write_during_the_claim_is_noticed(
    home: Home, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.inbox / "a.txt"
    path.write_bytes(b"x" * 3_000_000)
    scanner = Scanner(home, ["me", "work"], QUIET)
    writer = path.open("ab")
    real = os.rename

    def write() -> None:
        writer.write(b"more")
        writer.flush()

    def rename(source: str, target: str) -> None:
        real(source, target)
        if "claimed" in str(target):
            write()

    scanner.scan(0.0)
    scanner.scan(5.0)
    if moment == "renaming":
        monkeypatch.setattr(os, "rename", rename)
    pulse = write if moment == "hashing" else (lambda: None)
    assert scanner.claim(5.0, NOW, pulse=pulse) == [inbox.Changed("me", "a.txt")]
    writer.close()
    assert path.exists() and os.listdir(home.profile("me").claimed) == []


def test_a_file_that_is_taken_away_is_no_error(home: Home) -> None:
    for name in ("a", "b"):
        (home.inbox / name).write_text(name)
    scanner = Scanner(home, ["me", "work"], QUIET)
    scanner.scan(0.0)
    scanner.scan(5.0)
    (home.inbox / "a").unlink()
    kinds = [type(one).__name__ for one in scanner.claim(5.0, NOW)]
    assert kinds == ["Changed", "Claim"]


# -- what counts


@pytest.mark.parametrize(
    "name",
    [
        ".hidden", ".gitignore", ".syncthing.a.json.tmp", "~syncthing~a.json.tmp", ".a.json.swp", "a.json.swp",
        "a.part", "a.PART", "a.tmp", "a.json~", "~$a.docx", "a.crdownload", "a.filepart", "a.json.partial",
        "failed", "claimed", "Thumbs.db",
    ],
)  # fmt: skip
def test_ignored_names(home: Home, name: str) -> None:
    path = home.inbox / name
    if not path.is_dir():
        path.write_text("x")
    assert Scanner(home, ["me", "work"], QUIET).scan(0.0) == inbox.Scan(0, 0, None, None, (), ())


@pytest.mark.parametrize("name", ["README.md", "a", "a.partly", "tmp", "part.json", "~a", "a.tmp.json"])
def test_names_that_count(home: Home, name: str) -> None:
    (home.inbox / name).write_text("x")
    assert Scanner(home, ["me", "work"], QUIET).scan(0.0).waiting == 1


def test_profiles_have_their_own_inboxes(home: Home) -> None:
    (home.inbox / "a.json").write_text("a")
    (home.inbox / "work" / "a.json").write_text("b")
    (home.inbox / "work" / "failed").write_text("c")  # reserved at the top only
    (home.inbox / "holiday").mkdir()
    (home.inbox / "holiday" / "day.md").write_text("d")
    outcomes = claims_of(take_all(Scanner(home, ["me", "work"], QUIET)))
    found = [(one.profile, one.name, one.is_folder) for one in outcomes]
    assert found == [
        ("me", "a.json", False),
        ("me", "holiday", True),
        ("work", "a.json", False),
        ("work", "failed", False),
    ]
    assert all(one.path.parent == home.profile(one.profile).claimed for one in outcomes)


def test_an_undeclared_profile_folder_is_a_batch_of_me(home: Home) -> None:
    (home.inbox / "work" / "a.json").write_text("a")
    (claim,) = claims_of(take_all(Scanner(home, ["me"], QUIET)))
    assert (claim.profile, claim.name, claim.is_folder) == ("me", "work", True)


def test_a_profile_inbox_that_is_a_link_is_not_followed(home: Home, tmp_path: Path) -> None:
    (home.inbox / "work").rmdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.json").write_text("a")
    (home.inbox / "work").symlink_to(tmp_path / "private")
    scan = Scanner(home, ["me", "work"], QUIET).scan(0.0)
    assert "symbolic link" in scan.problems[0] and (tmp_path / "private" / "a.json").exists()


def test_no_inbox_at_all_is_an_empty_one(tmp_path: Path) -> None:
    assert Scanner(Home(tmp_path / "none"), ["me", "work"], QUIET).scan(0.0).waiting == 0


# -- folders


def test_a_folder_is_stable_when_all_in_it_is(home: Home) -> None:
    batch = home.inbox / "export"
    (batch / "deep").mkdir(parents=True)
    scanner = Scanner(home, ["me", "work"], QUIET)
    assert scanner.scan(0.0).waiting == 0  # an empty folder waits for its first file
    (batch / "deep" / "b.json").write_text("b")
    (batch / "a.json").write_text("a")
    assert scanner.scan(1.0).waiting == 1
    (batch / "deep" / "c.json.part").write_text("half of a download")
    assert scanner.scan(6.0).ready == 0
    assert scanner.scan(11.0).ready == 1
    (claim,) = claims_of(scanner.claim(11.0, NOW))
    expected = hashlib.sha256()
    for name, data in ((b"a.json", b"a"), (b"deep/b.json", b"b")):
        expected.update(name + b"\0" + hashlib.sha256(data).digest())
    assert claim.sha256 == expected.hexdigest() and claim.size == 2
    assert claim.path.name == f"{claim.sha256}-export"
    assert stat.S_IMODE(claim.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((claim.path / "deep" / "b.json").stat().st_mode) == 0o600
    files, bad = inbox.folder_files(claim.path, 1000)
    assert [file.relative for file in files] == ["a.json", "deep/b.json"] and bad == []


def test_what_is_no_file_inside_a_folder_is_listed_and_never_followed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    batch = home.inbox / "mixed"
    (batch / "in").mkdir(parents=True)
    (batch / "good.txt").write_text("good")
    (batch / "empty.txt").touch()
    (batch / "big.txt").write_text("x" * 101)
    (batch / "link.txt").symlink_to(tmp_path / "secret")
    (batch / "up").symlink_to("..")
    os.mkfifo(batch / "in" / "pipe")
    (claim,) = claims_of(take_all(Scanner(home, ["me", "work"], QUIET, max_file_bytes=100)))
    assert [item.where for item in claim.bad_items] == ["big.txt", "empty.txt", "in/pipe", "link.txt", "up"]
    assert claim.size == 4 and (tmp_path / "secret").exists()
    assert inbox.folder_files(claim.path, 100)[1] == list(claim.bad_items)


def test_a_very_deep_folder_is_bounded(home: Home) -> None:
    path = home.inbox / "deep"
    for _ in range(40):
        path = path / "d"
    path.mkdir(parents=True)
    (path / "a.txt").write_text("a")
    (home.inbox / "deep" / "top.txt").write_text("t")
    (claim,) = claims_of(take_all(Scanner(home, ["me", "work"], QUIET)))
    assert len(claim.bad_items) == 1 and "deep" in claim.bad_items[0].reason


# -- duplicates


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_same_again_is_a_duplicate(home: Home, kind: str) -> None:
    def drop() -> None:
        if kind == "folder":
            (home.inbox / "a").mkdir()
        (home.inbox / "a" / "b.txt" if kind == "folder" else home.inbox / "a").write_text("same")

    scanner = Scanner(home, ["me", "work"], QUIET)
    drop()
    (claim,) = claims_of(take_all(scanner))
    drop()
    assert take_all(scanner, 100.0) == [Duplicate("me", claim.sha256, "a", claim.path)]
    assert not (home.inbox / "a").exists() and len(inbox.claimed_files(home, "me")) == 1


def test_a_damaged_claim_is_no_reason_to_lose_the_good_copy(home: Home) -> None:
    scanner = Scanner(home, ["me", "work"], QUIET)
    (home.inbox / "a").write_text("good")
    (claim,) = claims_of(take_all(scanner))
    claim.path.write_text("torn")
    (home.inbox / "a").write_text("good")
    (again,) = claims_of(take_all(scanner, 100.0))
    assert again.path.read_text() == "good" and again.path != claim.path


def test_other_content_under_the_same_name_and_the_same_content_under_another(home: Home) -> None:
    scanner = Scanner(home, ["me", "work"], QUIET)
    for name, text in (("a", "1"), ("a", "2"), ("b", "1")):
        (home.inbox / name).write_text(text)
        claims_of(take_all(scanner))
    assert len(inbox.claimed_files(home, "me")) == 3


# -- names


NAMES = [
    b"two\nlines.json",
    b"latin-\xe9\xff.json",
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{ROCKET}.md".encode(),
    ("\u00e4" * 120 + ".jsonl").encode(),
    b"x" * 255,
    b" spaces and 'quotes' $(x).txt ",
    "evil\u202etxt.exe".encode(),
    b"-rf",
]


def test_strange_names_are_made_safe(home: Home) -> None:
    for index, name in enumerate(NAMES):
        with open(os.fsencode(home.inbox) + b"/" + name, "wb") as file:
            file.write(b"%d" % index)
    claims = claims_of(take_all(Scanner(home, ["me", "work"], QUIET)))
    assert sorted(claim.path.read_bytes() for claim in claims) == [b"%d" % i for i in range(len(NAMES))]
    for claim in claims:
        assert (len(claim.name.encode()) <= 180 and claim.name.isprintable()) or "\u200d" in claim.name
    named = {claim.path.read_bytes(): claim.name for claim in claims}
    assert named[b"0"] == "two_lines.json" and named[b"1"] == "latin-\ufffd\ufffd.json"
    assert named[b"2"] == NAMES[2].decode() and named[b"3"].endswith("\u00e4.jsonl")
    assert named[b"6"] == "evil_txt.exe"
    found = inbox.claimed_files(home, "me")
    assert {(one.name, one.path) for one in found} == {(one.name, one.path) for one in claims}


@pytest.mark.parametrize(
    "name",
    ["\U0001f600" * 75 + ".json.gz", "." + "a" * 300, "..", "", "a/b", "\udcff\ud800x", "a." + "b" * 250],
)
def test_safe_name_is_a_file_name(name: str) -> None:
    safe = inbox.safe_name(name)
    assert 0 < len(safe.encode()) <= 180 and "/" not in safe and not safe.startswith(".")
    assert inbox.safe_name(safe) == safe


# -- many


def test_twenty_thousand_files_each_once_in_order(home: Home) -> None:
    for number in range(20_000):
        fd = os.open(f"{home.inbox}/{number:05}.txt", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(fd, b"%d" % number)
        os.close(fd)
    scanner = Scanner(home, ["me", "work"], QUIET)
    scanner.scan(0.0)
    scanner.scan(5.0)
    assert len(scanner.claim(5.0, NOW, limit=7)) == 7  # bounded, by number
    assert len(scanner.claim(5.0, NOW, limit=100, max_bytes=10)) == 7  # and by bytes
    names = [f"{number:05}.txt" for number in range(14)]
    while scanner.pending:
        names += [one.name for one in claims_of(scanner.claim(5.0, NOW, limit=1000))]
    assert names == [f"{number:05}.txt" for number in range(20_000)]
    assert len({one.sha256 for one in inbox.claimed_files(home, "me")}) == 20_000


def test_a_pulse_comes_for_each_file_and_each_mebibyte(home: Home) -> None:
    (home.inbox / "big").write_bytes(b"x" * 5_000_000)
    (home.inbox / "small").write_bytes(b"x")
    pulses: list[int] = []
    scanner = Scanner(home, ["me", "work"], QUIET)
    scanner.scan(0.0)
    scanner.scan(5.0)
    claims_of(scanner.claim(5.0, NOW, pulse=lambda: pulses.append(1)))
    assert len(pulses) >= 6


# -- add, archive


def test_add_copies_and_never_overwrites(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "notes.md"
    source.write_text("one")
    assert inbox.add(home, "me", source) == home.inbox / "notes.md"
    source.write_text("two")
    assert inbox.add(home, "me", source) == home.inbox / "notes.md.2"
    assert (home.inbox / "notes.md").read_text() == "one" and source.read_text() == "two"
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    added = inbox.add(home, "me", folder, profiles=["me", "work"])
    assert added == home.inbox / "work.2"  # not into the other profile's inbox
    assert inbox.add(home, "work", folder) == home.inbox / "work" / "work"
    assert not any(name.startswith(".") for name in os.listdir(home.inbox))


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "missing", "pipe"])
def test_add_refuses_in_one_sentence(home: Home, tmp_path: Path, name: str) -> None:
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    elif name != "missing":
        (tmp_path / name).write_text("x")
    with pytest.raises(Refused):
        inbox.add(home, "me", tmp_path / name)
    with pytest.raises(Refused):
        inbox.add(home, "me", home.root)  # the inbox into itself
    assert set(os.listdir(home.inbox)) == {"failed", "work"}


def test_many_adds_at_once_lose_nothing(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("x")
    threads = [threading.Thread(target=inbox.add, args=(home, "me", source)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(home.inbox)) == 2 + 12


def test_stale_adds_are_swept(home: Home) -> None:
    stale, fresh = home.inbox / ".engramd-tmp-old", home.inbox / "work" / ".engramd-tmp-new"
    for path, age in ((stale, 90_000), (fresh, 10)):
        path.write_text("x")
        os.utime(path, (1e9 - age, 1e9 - age))
    assert inbox.sweep_stale_adds(home, ["me", "work"], 1e9) == 1
    assert not stale.exists() and fresh.exists()


def test_archive_is_safe_to_repeat(home: Home) -> None:
    scanner = Scanner(home, ["me", "work"], QUIET)
    for name in ("a", "b"):
        (home.inbox / name).write_text(name)
    paths = [claim.path for claim in claims_of(take_all(scanner))]
    places = inbox.archive_slice(home, "me", paths, "2026-03")
    assert [place.read_text() for place in places] == ["a", "b"] and places[0].parent.name == "2026-03"
    assert inbox.archive_slice(home, "me", paths, "2026-04") == places  # after a crash, past midnight
    (home.inbox / "a").write_text("a")
    (again,) = claims_of(take_all(scanner, 50.0))
    assert inbox.archive(home, "me", again.path, "2026-03") == places[0] and not again.path.exists()
    with pytest.raises(FileNotFoundError):
        inbox.archive(home, "me", again.path.with_name("0" * 64 + "-never"), "2026-03")
    with pytest.raises(ValueError):
        inbox.archive(home, "me", again.path, "../..")


# -- the watch


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_the_watch_hints_once_per_burst_and_survives_a_new_folder(home: Home) -> None:
    wakes: list[float] = []
    missing = home.inbox / "later"
    watch = inbox.Watch([home.inbox, missing], lambda: wakes.append(time.monotonic()), debounce=0.05)
    assert watch.start()
    try:
        for number in range(200):
            (home.inbox / f"{number}.txt").write_text("x")
        assert within(5, lambda: len(wakes) >= 1)
        assert len(wakes) < 100
        missing.mkdir()
        watch.refresh()
        for _ in range(2):  # and again after it was removed and made anew
            within(0.3, lambda: False)  # let what the folder itself caused pass
            seen = len(wakes)
            (missing / "a.txt").write_text("x")
            assert within(5, lambda seen=seen: len(wakes) > seen)  # type: ignore[misc]
            (missing / "a.txt").unlink()
            missing.rmdir()
            missing.mkdir()
            watch.refresh()
    finally:
        watch.stop()


def test_a_watch_without_inotify_says_so_once_and_goes_on(home: Home) -> None:
    import resource

    warnings: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest + 1)]
    watch = inbox.Watch([home.inbox], lambda: None, warn=warnings.append)
    try:
        import watchdog.observers  # noqa: F401

        resource.setrlimit(resource.RLIMIT_NOFILE, (min(taken), hard))
        assert not watch.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    watch.refresh()
    watch.stop()
    assert len(warnings) == 1 and "timer" in warnings[0]
