"""Bars, tables, curves and the line of a running job: pure functions over numbers."""

import io
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon import progress_tail
from daemon.__main__ import main
from daemon.cli import drawing, running, status
from daemon.cli.plotting import curve, smoothed
from daemon.home import Home


@pytest.mark.parametrize(
    ("done", "total", "drawn"),
    [(0, 10, "[----]"), (5, 10, "[##--]"), (999, 1000, "[###-]"), (10, 10, "[####]"), (0, 0, "[----]")],
)
def test_a_bar_is_full_only_at_the_end(done: int, total: int, drawn: str) -> None:
    assert drawing.bar(done, total, 4) == drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0.2, "0 s"), (61, "1 min 01 s"), (3600 * 5 + 60, "5 h 01 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert drawing.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "word", "text"),
    [(1, "memory", "1 memory"), (2, "memory", "2 memories"), (1200, "batch", "1,200 batches"), (0, "job", "0 jobs")],
)
def test_plurals(number: int, word: str, text: str) -> None:
    assert drawing.plural(number, word) == text


def test_a_table_fits_a_terminal_and_is_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    rows = [(1, "short"), (23, "x" * 200)]
    assert drawing.table(("n", "text"), rows).splitlines()[1:] == [" 1  short", "23  " + "x" * 200]
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, drawing.table(("n", "text"), rows).splitlines())) == 60


def test_a_curve_fits_and_marks_its_borders() -> None:
    points = [(float(step), 4.0 / (1 + step)) for step in range(100)]
    lines = curve(points, [(0.0, "job 1"), (50.0, "job 2")], 80, rows=10)
    assert len(lines) == 11
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("4.000 │") and lines[9].startswith("0.040 │")
    assert lines[-1].split() == ["job", "1", "job", "2"]
    column = lines[-1].index("job 2")
    assert any(line[column : column + 1] == "│" for line in lines[:-1])


def test_a_curve_of_little() -> None:
    assert curve([], [], 80) == []
    assert any("⠁" <= char <= "⣿" for line in curve([(3.0, 1.0)], [], 40) for char in line)
    assert len(curve([(1.0, 2.0), (2.0, 2.0)], [(1.0, "job 1")], 40, rows=5)) == 6


def test_smoothing_keeps_length_and_mean() -> None:
    assert smoothed([1.0, 2.0, 3.0], 1) == [1.5, 2.0, 2.5]
    assert smoothed([], 3) == []


def _folder(home: Home, lines: list[dict[str, object]], torn: str = "") -> None:
    folder = home.profile("me").jobs / "1-finetune"
    folder.mkdir(parents=True)
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


JOB = {"id": 1, "kind": "finetune", "state": "running", "reason": None, "folder": "1-finetune", "parent_step": 100,
       "steps": 40, "attempts": 1, "started_at": None}  # fmt: skip


def _time(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}.000Z"


def test_a_running_job_tells_its_time_left(home: Home) -> None:
    told = [{"time": _time(s), "phase": "training", "step": 100 + s, "steps": 140, "loss": 2.0} for s in range(1, 11)]
    _folder(home, [{"time": _time(0), "phase": "loading"}, *told], torn='{"step": 9')
    now = datetime(2026, 1, 1, 0, 0, 12, tzinfo=UTC).timestamp()
    found = running.describe(home.profile("me"), JOB, now)
    assert (found["step"], found["steps"], found["steps_done"], found["loss"]) == (110, 140, 10, 2.0)
    assert found["seconds_left"] == pytest.approx(28.0)
    assert running.line(found) == "job 1  [######------------------]  step 110/140  loss 2.0000  28 s left"


def test_a_job_that_only_begins(home: Home) -> None:
    found = running.describe(home.profile("me"), JOB)
    assert running.line(found).endswith("step 100/140  starting")
    _folder(home, [{"time": _time(0), "phase": "loading"}])
    assert running.line(running.describe(home.profile("me"), JOB)).endswith("step 100/140  loading")
    frozen = running.describe(home.profile("me"), {**JOB, "state": "frozen"})
    assert running.line(frozen).endswith("frozen") and frozen["phase"] is None


def test_the_last_telling_of_a_step_counts(home: Home) -> None:
    _folder(home, [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}, {"step": 2, "loss": 2.0}, {"phase": "saving"}])
    folder = home.profile("me").jobs / "1-finetune"
    assert [(line["step"], line["loss"]) for line in progress_tail.steps(folder)] == [(1, 3.0), (2, 2.0)]
    assert progress_tail.last(folder) == {"phase": "saving"}
    assert list(progress_tail.steps(Path("/nowhere"))) == [] and progress_tail.last(Path("/nowhere")) is None


def test_a_long_progress_file_is_read_from_its_end(home: Home) -> None:
    _folder(home, [{"step": step, "loss": 1.0, "note": "x" * 50} for step in range(5000)])
    tail = progress_tail.tail(home.profile("me").jobs / "1-finetune")
    assert 20 < len(tail) < 200 and tail[-1]["step"] == 4999


NOTHING = {"profile": "me", "inbox": "/inbox", "files_in_inbox": 0, "waiting_memories": 0, "job": None,
           "waits": None, "held": [], "needs_owner": [], "batches": {"claimed": 0, "reading": 0}}  # fmt: skip
RUNNING = {"id": 4, "state": "running", "reason": None}


@pytest.mark.parametrize(
    ("facts", "runs", "sentence"),
    [
        ({}, True, "nothing waits; drop files into /inbox"),
        ({}, False, "start `engramd run`"),
        ({"waits": "the base is missing"}, True, "waits: the base is missing"),
        ({"job": RUNNING}, True, "job 4 ends, is judged and becomes the head; nothing else waits"),
        ({"job": RUNNING, "waiting_memories": 3}, True, "what has come meanwhile is the next job"),
        ({"job": RUNNING}, False, "no daemon runs: job 4 goes on once"),
        ({"job": {**RUNNING, "state": "frozen", "reason": "interrupted"}}, True, "job 4 is frozen: interrupted"),
        ({"files_in_inbox": 2}, True, "2 files to read, then the next job"),
        ({"waiting_memories": 1}, True, "a job over 1 memory starts"),
        ({"waiting_memories": 1, "profile": "anna"}, False, "`engramd train --profile anna`"),
        ({"held": [{}]}, True, "a decision on 1 held batch"),
        ({"held": [{}], "needs_owner": [{}]}, True, "a word on who you are in 1 chat: see above"),
    ],
)
def test_what_comes_next(facts: dict[str, object], runs: bool, sentence: str) -> None:
    assert sentence in status.what_next(NOTHING | facts, runs=runs)


def test_watch_goes_on_until_it_is_interrupted(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([None, None])

    def sleep(_: float) -> None:
        if next(looks, KeyboardInterrupt) is KeyboardInterrupt:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["status", "--watch", "--home", str(home.root)]) == 130
    assert capsys.readouterr().out.count("profile   me") == 3


def test_base_fetch_without_a_network_is_one_sentence(capsys: pytest.CaptureFixture[str], home: Home) -> None:
    """HF_HUB_OFFLINE is set for all tests."""
    assert main(["base", "fetch", "nobody/nothing", "--home", str(home.root)]) == 69
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
