"""What is written where, what is withheld, rotation, and `engramd log` reading it back."""

import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon import logs
from daemon.__main__ import main
from daemon.cli.log import Tail, last
from daemon.home import Home
from daemon.logs import LogFile, configure, get_logger, log_files, readable


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


def entries(home: Home) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in reversed(log_files(home.log)) for line in file.read_bytes().splitlines()
    ]


def wait_for(done: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_line_goes_to_the_file_and_to_stdout(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home)
    get_logger(step=3, job=2, profile="me").info("resuming_from_checkpoint", path="/x", global_step=3)
    shown = capsys.readouterr().out
    assert shown.encode() == home.log.read_bytes()
    entry = json.loads(shown)
    assert list(entry) == ["time", "level", "event", "profile", "job", "step", "path", "global_step"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", entry["time"])
    assert (entry["level"], entry["event"]) == ("info", "resuming_from_checkpoint")


def test_a_terminal_gets_readable_lines_and_the_file_json(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(home, terminal=True)
    get_logger().warning("batch_refused", batch="a b.json", reason="torn")
    shown = capsys.readouterr().out
    assert "\x1b[33mwarning" in shown
    assert '="a b.json"' in shown
    assert entries(home)[0]["batch"] == "a b.json"


def test_quiet_leaves_stdout_alone(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home, quiet=True)
    get_logger().info("started")
    assert capsys.readouterr().out == ""
    assert len(entries(home)) == 1


def test_folders_and_file_are_the_owners_alone(home: Home) -> None:
    umask = os.umask(0)
    try:
        configure(home, quiet=True)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(home.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.log.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.state.stat().st_mode) == 0o700


def test_texts_of_memories_are_for_debug_alone(home: Home) -> None:
    configure(home, "debug", quiet=True)
    secret = {"text": "s1", "content": "s2", "response": "s3", "kept": 1}
    get_logger().info("memory_read", **secret, memory=secret)
    get_logger().debug("memory_read", **secret)
    above, debug = entries(home)
    assert not re.search("s[123]", json.dumps(above))
    assert above["kept"] == above["memory"]["kept"] == 1
    assert debug["content"] == "s2"


def test_the_level_is_kept(home: Home) -> None:
    configure(home, "warning", quiet=True)
    log = get_logger()
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [entry["event"] for entry in entries(home)] == ["c", "d"]


def test_odd_values_are_still_json(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    configure(home)
    get_logger().info(
        "odd", loss=float("nan"), path=Path("/x"), name="\ud800", nested={"rate": [float("inf")]}
    )
    entry = json.loads(capsys.readouterr().out)
    assert (entry["loss"], entry["path"], entry["name"]) == ("nan", "/x", "\ud800")
    assert entry["nested"] == {"rate": ["inf"]}


def test_an_exception_brings_its_traceback(home: Home) -> None:
    configure(home, quiet=True)
    try:
        raise RuntimeError("no room")
    except RuntimeError:
        get_logger().exception("job_failed", job=4)
    (entry,) = entries(home)
    assert entry["level"] == "error"
    assert "RuntimeError: no room" in entry["exception"]
    assert "RuntimeError: no room" in readable(entry)


def test_warnings_of_libraries_are_lines_too(home: Home) -> None:
    configure(home, quiet=True)
    configure(home, quiet=True)
    logging.getLogger("apscheduler").warning("run of %s was missed", "x")
    (entry,) = entries(home)
    assert (entry["event"], entry["logger"], entry["message"]) == (
        "library_message", "apscheduler", "run of x was missed",
    )  # fmt: skip


def test_a_closed_stdout_does_not_matter(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(home)
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    get_logger().info("started")
    assert len(entries(home)) == 1


def test_structlog_comes_without_rich() -> None:
    code = "import sys; from daemon.logs import get_logger; get_logger(); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- the file ---------------------------------------------------------------------------------------


def test_rotation_keeps_the_newest_lines_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LogFile(path, limit=100, keep=3)
    for number in range(50):
        file.write(b'{"n": %d, "pad": "1234567890"}\n' % number)
    found = log_files(path)
    assert [f.name for f in found] == ["x.jsonl", "x.jsonl.1", "x.jsonl.2", "x.jsonl.3"]
    assert all(0 < f.stat().st_size <= 100 and stat.S_IMODE(f.stat().st_mode) == 0o600 for f in found)
    numbers = [json.loads(line)["n"] for f in reversed(found) for line in f.read_bytes().splitlines()]
    assert numbers == list(range(numbers[0], 50))


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LogFile(path, limit=10, keep=0)
    for _ in range(5):
        file.write(b'{"n": 1}\n')
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_line_longer_than_the_limit_is_written_once(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.jsonl", limit=10, keep=2)
    file.write(b"x" * 50 + b"\n")
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_a_gap_left_by_a_crash_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for name in ("x.jsonl", "x.jsonl.1", "x.jsonl.3"):
        (tmp_path / name).write_text(json.dumps({"was": name}) + "\n")
    LogFile(path, limit=20, keep=5).write(b'{"was": "written now"}\n')
    kept = [json.loads(line)["was"] for f in log_files(path) for line in f.read_bytes().splitlines()]
    assert kept == ["written now", "x.jsonl", "x.jsonl.1", "x.jsonl.3"]


def test_a_torn_last_line_does_not_spoil_the_next(home: Home) -> None:
    home.log.parent.mkdir(parents=True)
    home.log.write_bytes(b'{"event": "whole"}\n{"event": "to')
    configure(home, quiet=True)
    get_logger().info("after")
    assert [e["event"] for e in last(home.log, 9, lambda _: True)] == ["whole", "after"]


def test_the_file_is_found_again_after_another_hand_moved_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LogFile(path, limit=1000, keep=2)
    path.rename(tmp_path / "moved")
    file.write(b"1\n")
    path.unlink()
    file.write(b"2\n")
    assert path.read_bytes() == b"2\n"
    assert (tmp_path / "moved").read_bytes() == b""


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "x.jsonl", limit=1000, keep=2)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(logs, "_write_all", full)
        file.write(b"1\n")
        file.write(b"2\n")
    file.write(b"3\n")
    note, line = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert json.loads(note)["lines"] == 2
    assert line == b"3"


def test_a_line_that_the_disk_cut_short_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LogFile(tmp_path / "x.jsonl", limit=1000, keep=2)

    def half(to: FileIO, data: bytes) -> None:
        to.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(logs, "_write_all", half)
        file.write(b'{"number": 1}\n')
    file.write(b'{"number": 2}\n')
    torn, note, line = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert torn == b'{"numbe' and json.loads(note)["lines"] == 1 and json.loads(line) == {"number": 2}


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LogFile(path, limit=500, keep=1000)

    def write(who: int) -> None:
        for number in range(100):
            file.write(json.dumps({"who": who, "number": number}).encode() + b"\n")

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for f in log_files(path) for line in f.read_bytes().splitlines()]
    assert sorted((e["who"], e["number"]) for e in found) == [(w, n) for w in range(4) for n in range(100)]


# -- engramd log ------------------------------------------------------------------------------------


@pytest.fixture
def logged(home: Home) -> Home:
    configure(home, "debug", rotate_mb=0.001, keep=50, quiet=True)
    for number in range(40):
        log = get_logger(job=number % 2 + 1, profile="anna" if number % 4 == 0 else "me")
        (log.warning if number % 10 == 0 else log.debug)("counted", n=number)
    assert len(log_files(home.log)) > 3
    return home


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], list(range(10, 40))),
        (["-n", "3"], [37, 38, 39]),
        (["-n", "0"], []),
        (["-n", "99"], list(range(40))),
        (["--level", "info"], [0, 10, 20, 30]),
        (["--job", "2", "-n", "2"], [37, 39]),
        (["--profile", "anna", "-n", "2"], [32, 36]),
    ],
)
def test_log_reads_across_rotated_files(
    logged: Home, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[int]
) -> None:
    assert main(["--home", str(logged.root), "log", "--json", *options]) == 0
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == expected


def test_log_is_readable(logged: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "--home", str(logged.root), "-n1"]) == 0
    shown = capsys.readouterr().out
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d debug    counted +profile=me job=2 n=39\n", shown)


def test_no_log_yet_is_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "--home", str(home.root)]) == 3
    assert "no log yet" in capsys.readouterr().err


def test_a_tail_follows_through_several_rotations_between_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    file = LogFile(path, limit=20, keep=50)
    file.write(b"before\n")
    tail = Tail(path)
    assert tail.start == 7
    written = [f"line {number:04}".encode() for number in range(30)]
    for line in written[:20]:
        file.write(line + b"\n")
    seen = list(tail.lines())
    for line in written[20:]:
        file.write(line + b"\n")
    assert seen + list(tail.lines()) == written


def test_a_tail_waits_for_a_file_and_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_bytes(b"one\ntw")
    assert list(tail.lines()) == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    assert list(tail.lines()) == [b"two"]


def test_log_follows_until_interrupted(logged: Home) -> None:
    command = [sys.executable, "-m", "daemon", "--home", str(logged.root), "log", "-f", "--json", "-n", "1"]
    out = logged.root / "out"
    with out.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: b'"n": 39' in out.read_bytes())
        for number in range(40, 80):
            get_logger().info("counted", n=number)
        wait_for(lambda: b'"n": 79' in out.read_bytes())
        child.send_signal(2)
        _, said = child.communicate(timeout=90)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, said) == (130, b"")
    assert [json.loads(line)["n"] for line in out.read_bytes().splitlines()] == list(range(39, 80))
