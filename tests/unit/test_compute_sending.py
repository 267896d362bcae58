"""Where a job is trained, what its order says, and the parts of the way that need no way."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import cycles, schedule, sending, supervisor, training
from daemon.compute import line, orders, ssh, telling, there
from daemon.compute.following import _Follow, tail_hash
from daemon.compute.ground import MARK, tree_sha256
from daemon.compute.mirror import Mirror, plain
from daemon.compute.places import Heard, LineLost, NotNow
from daemon.home import Home
from daemon.settings import Settings, SettingsError, load
from daemon.settings_compute import ComputeSettings, SshSettings
from daemon.settings_sections import CycleSchedule
from tests.couriers import order
from tests.jobs import recipe
from trainer import base_files, names

LORA, FULL = recipe(), recipe(method="full")


def settings(**compute: object) -> Settings:
    return Settings(compute=ComputeSettings(ssh=SshSettings(host="gpubox"), **compute))  # type: ignore[arg-type]


def test_where() -> None:
    """A cycle's own word wins over that for cycles, that over full's, that over all's."""
    assert sending.where(settings(), LORA) == "local"
    monthly = settings(full="ssh")
    assert sending.where(monthly, LORA) == "local" and sending.where(monthly, FULL) == "ssh"
    cycles = settings(where="ssh", full="runpod", cycles="local")
    assert sending.where(cycles, FULL) == "runpod" and sending.where(cycles, FULL, {}) == "local"
    assert sending.where(cycles, FULL, {"where": "ssh"}) == "ssh"
    assert sending.where(settings(where="ssh"), LORA, {"where": None}) == "ssh"


def test_a_cycle_that_names_its_machine() -> None:
    """By hand or by the clock; one that nothing can be sent to is refused before anything is selected."""
    assert "compute.ssh.host" in str(cycles.refusal(Settings(), "me", {"where": "ssh"}))
    assert cycles.refusal(settings(), "me", {"where": "ssh"}) is None
    assert cycles.refusal(Settings(), "me", {"where": None}) is None
    asked = schedule._arguments("yearly", CycleSchedule(where="ssh"), "2026-01-01")
    assert asked["where"] == "ssh" and schedule._arguments("monthly", CycleSchedule(), "2026-01-01")["where"] == ""


def test_a_place_without_a_host(home: Home) -> None:
    assert "compute.ssh.host" in str(sending.not_ready(Settings(), "ssh"))
    assert sending.not_ready(settings(), "ssh") is None and sending.not_ready(Settings(), "local") is None
    home.etc.mkdir(parents=True)
    (home.etc / "engramd.toml").write_text('[compute]\nwhere = "ssh"\n')
    with pytest.raises(SettingsError, match=r"compute\.ssh\.host"):
        load(home)
    (home.etc / "engramd.toml").write_text('[compute.ssh]\nhost = "-oProxyCommand=x"\n')
    with pytest.raises(SettingsError, match="is no host"):
        load(home)


def test_an_order_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = order(SshSettings(host="gpubox"), base=Path("/models/a"), processes=2)
    orders.write(tmp_path, written)
    assert orders.read(tmp_path) == written
    assert (tmp_path / orders.FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / telling.FILE).write_text("{}")
    sending.stay(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whether_a_job_is_at_a_pod(tmp_path: Path) -> None:
    """By its last order: one that goes on here, or over SSH, leaves its pod to the sweep."""
    assert not sending.is_rented(tmp_path)
    orders.write(tmp_path, order(SshSettings(host="far"), where="runpod"))
    assert sending.is_rented(tmp_path)
    orders.write(tmp_path, order(SshSettings(host="far")))
    assert not sending.is_rented(tmp_path)
    orders.write(tmp_path, order(SshSettings(host="far"), where="runpod"))
    sending.stay(tmp_path)
    assert not sending.is_rented(tmp_path)


@pytest.mark.parametrize(("place", "pauses"), [("runpod", [60, 120, 240, 3600]), ("ssh", [60, 60, 60, 60])])
def test_each_try_of_a_pod_costs_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, pauses: list[int]
) -> None:
    """So a machine that cannot run the job is asked less and less often where it is rented."""
    (tmp_path / "job").mkdir()
    orders.write(tmp_path / "job", order(SshSettings(host="far"), where=place))
    world: Any = SimpleNamespace(name="me", paths=SimpleNamespace(jobs=tmp_path), settings=settings())
    ledger: Any = None
    one = training.Training(world, ledger, lambda: 0.0)
    monkeypatch.setattr(one, "_wait", lambda reason: None)
    told = ["no GPU is free"] * 23
    monkeypatch.setattr(training.outcome, "settle", lambda *_, **__: told.pop() if told else None)
    found = []
    for _ in range(23):
        one._settle({"id": 1, "folder": "job"}, supervisor.Ended(), "2026-11-21T12:00:00Z")
        found.append(one._not_before)
    assert [*found[:3], found[-1]] == pauses and one.rests
    one._settle({"id": 1, "folder": "job"}, supervisor.Ended(), "2026-11-21T12:00:00Z")
    assert not one.rests


def test_a_base_that_was_brought(tmp_path: Path) -> None:
    """ENGRAMD_BASE_FOLDER wins over every name, and is looked at as any base is."""
    environment = {base_files.FOLDER_VARIABLE: str(base_files.resolve("builtin:tiny"))}
    assert base_files.resolve("Qwen/Qwen3-14B", environment) == base_files.resolve("builtin:tiny")
    with pytest.raises(base_files.BaseMissing, match=r"config\.json"):
        base_files.resolve("Qwen/Qwen3-14B", {base_files.FOLDER_VARIABLE: str(tmp_path)})


# -- the line ------------------------------------------------------------------------------------------


def test_what_ssh_is_told() -> None:
    """No question, no key taken by itself, no agent lent, whatever the config says; no secret in its environment."""
    made = line.Line("anna@gpubox", config="/etc/x y/config", port=22022)
    words = " ".join(made._words)
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ServerAliveInterval=10", "ForwardAgent=no"):
        assert f"-o {option}" in words
    assert "-p 22022" in words and made._words[2:4] == ["-F", "/etc/x y/config"]


def test_no_secret_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNPOD_API_KEY", "HF_TOKEN", "Some_Secret", "PASSWORD"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    told = line.environment()
    assert "canary" not in told.values() and told["SSH_AUTH_SOCK"] == "/run/agent"


@pytest.mark.parametrize(
    ("code", "errors", "kind", "sentence"),
    [
        (255, "Host key verification failed.", NotNow, "host key of gpubox"),
        (255, "anna@gpubox: Permission denied (publickey,password).", NotNow, "authorized_keys"),
        (255, "Bad owner or permissions on /home/anna/.ssh/config", NotNow, "ssh config"),
        (127, "sh: 1: python3: not found", NotNow, "compute.ssh.python"),
        (1, "Traceback ...\nKeyError: 'verb'", NotNow, "KeyError"),
        (255, "Connection reset by peer", LineLost, "reset"),
        (137, "Killed", LineLost, "Killed"),
    ],
)
def test_how_ssh_ends(code: int, errors: str, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        line.Line("gpubox")._judge_ssh(code, errors)


@pytest.mark.parametrize(
    ("code", "errors", "kind"),
    [
        (12, "rsync: connection unexpectedly closed", LineLost),
        (-9, "", LineLost),
        (30, "timeout", LineLost),
        (255, "anna@gpubox: Permission denied (publickey).", NotNow),
        (11, 'rsync: write failed on "x": No space left on device (28)', NotNow),
        (23, 'rsync: link_stat "x" failed', NotNow),
    ],
)
def test_how_rsync_ends(code: int, errors: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        line.Line("gpubox")._judge_rsync(code, errors)


def test_how_rsync_calls_a_machine() -> None:
    assert line.Line("anna@2001:db8::1")._rsync_host() == "anna@[2001:db8::1]"
    assert line.Line("gpubox")._rsync_host() == "gpubox"


def test_an_answer_that_is_none() -> None:
    with pytest.raises(NotNow, match=r"Python 3\.9"):
        line.Line("gpubox")._answer(b'{"old": "3.9"}')
    with pytest.raises(NotNow, match="gpubox says"):
        line.Line("gpubox")._answer(b'{"error": "Read-only file system: /x"}')
    with pytest.raises(LineLost):
        line.Line("gpubox")._answer(b'{"torn')


def test_the_program_that_is_sent_says_when_it_is_too_new() -> None:
    """It must compile for a Python that knows nothing of ours, up to the point where it says so."""
    text = line.program({"verb": "hello"}).decode()
    assert text.index("sys.version_info") < text.index("module(") and MARK in text
    compile(text, "sent", "exec")


# -- what is told ----------------------------------------------------------------------------------------


def test_a_file_that_is_cut_back_is_told_anew(tmp_path: Path) -> None:
    """A trainer that goes on from a checkpoint drops the lines after it, and writes others in their place."""
    path = tmp_path / "progress.jsonl"
    follow = _Follow(str(path), 0, "", lines=True)
    assert follow.more() == (0, b"")
    path.write_bytes(b"one\ntwo\nthr")
    assert follow.more() == (0, b"one\ntwo\n")
    assert follow.more() == (8, b"")
    path.write_bytes(b"one\nnew\nlonger than before\n")
    assert follow.more() == (0, b"one\nnew\nlonger than before\n")
    seen = path.read_bytes()
    later = _Follow(str(path), 8, tail_hash(lambda at, length: seen[at : at + length], 8), lines=True)
    assert later.more() == (8, b"longer than before\n")


def test_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of progress as they are, nothing that the contract does not know, no control characters for a terminal."""
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)
    mirror = Mirror(tmp_path, -1)
    good = b'{"time":"2026-01-01T00:00:00.000Z","phase":"training","step":1}\n'
    bad = [b"no json\n", b'{"phase":"training"}\n', good.replace(b'"step"', b'"evil":1,"step"'),
           good.replace(b'"step":1', b'"note":"\\u001b]0;x\\u0007"'), b"[" * 70_000 + b"\n"]  # fmt: skip
    mirror.note("on the way", now=True)
    mirror.take(Heard(progress=good + b"".join(bad), progress_at=0, log=b"a\x1b[31mb\n", log_at=7))
    assert (tmp_path / names.PROGRESS).read_bytes() == good
    assert mirror.progress_at == len(good + b"".join(bad)) and mirror.log_at == 7 + len(b"a\x1b[31mb\n")
    assert out.buffer.getvalue() == b"a[31mb\n"  # type: ignore[attr-defined]
    for piece in (b"c\xc2", b"\x9b2Jd\xe2\x80", b"\xaee\xc3\xa4\n"):  # C1 and bidi, cut apart; an umlaut is none
        mirror.take(Heard(log=piece, log_at=mirror.log_at))
    assert out.buffer.getvalue() == "a[31mb\nc2Jdeä\n".encode()  # type: ignore[attr-defined]
    mirror.take(Heard(progress=good, progress_at=5))  # not where we are
    assert (tmp_path / names.PROGRESS).read_bytes() == good
    mirror.note("no line\nto \x1bgpubox", now=True)
    assert json.loads((tmp_path / names.PROGRESS).read_text().splitlines()[-1])["note"] == "no line to gpubox"
    assert plain("x" * 1000, 10) == "x" * 10


def test_only_what_is_ours_is_tidied_away(tmp_path: Path) -> None:
    """`compute.ssh.folder` may be one where others have a `code` or `checkpoints` too."""
    ours, theirs = [f"{number:064x}" for number in range(4)], ["thesis", "checkpoint-9", "0" * 40]
    for kind in (*there.STORES, "jobs"):
        for name in (*ours, *theirs, f"{1:040x}-{1:012x}"):
            (tmp_path / kind / name).mkdir(parents=True)
            os.utime(tmp_path / kind / name, (0, 0))
    there.tidy(str(tmp_path), 1)
    for kind in (*there.STORES, "jobs"):
        left = {one.name for one in (tmp_path / kind).iterdir()}
        assert left >= set(theirs) and len(left - set(theirs)) == (kind == "checkpoints"), kind


def test_an_environment_in_use_is_not_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / "mine" / "environments" / ("a" * 64)
    made.mkdir(parents=True)
    (made / "ready").write_text("{}")
    os.utime(made, (0, 0))
    there.hello({"folder": "mine", "job": "none", "keys": {"environments": [made.name]}, "modules": []})
    assert made.name in capsys.readouterr().out
    there.tidy(str(tmp_path / "mine"), 1)
    assert made.is_dir()


def test_a_parent_that_another_home_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the question and the laying: the job waits, and does not begin without it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    job = tmp_path / "mine" / "jobs" / "one"
    job.mkdir(parents=True)
    (job / names.SPEC).write_text("{}")
    there.lay({"folder": "mine", "job": "one", "links": {"parent": "b" * 64}, "absent": [], "spec": "x"})
    assert '"wrong": "parent"' in capsys.readouterr().out and not (job / "parent").exists()


def test_complaints_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine says on stderr lies on our disk: not more of it than one would read."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nwhile :; do echo no no no no >&2; done\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(line, "MOST_ERRORS", 1000)
    with pytest.raises(NotNow, match="complains without end"):
        line.Line("far").call("hello", {})


def test_what_a_machine_says_of_itself_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line.Line, "call", lambda *_: {"rsync": True, "missing": 3})
    with pytest.raises(NotNow, match="cannot be read"):
        ssh.ask(SshSettings(host="far"))


def test_a_report_goes_on(tmp_path: Path) -> None:
    report = telling.Report(where="ssh", host="gpubox", sent=5)
    with report.timed("train"):
        pass
    report.write(tmp_path)
    assert telling.load(tmp_path) == report
    (tmp_path / telling.FILE).write_text('{"where": "ssh", "strange": 1}')
    assert telling.load(tmp_path).where == "ssh"
    (tmp_path / telling.FILE).write_text("torn")
    assert telling.load(tmp_path) == telling.Report()


def test_code_is_known_by_names_and_contents(tmp_path: Path) -> None:
    for name, text in (("a.py", "1"), ("b.py", "2")):
        (tmp_path / name).write_text(text)
    first = tree_sha256(str(tmp_path), ["b.py", "a.py"])
    assert first == tree_sha256(str(tmp_path), ["a.py", "b.py"])
    (tmp_path / "b.py").write_text("3")
    assert first != tree_sha256(str(tmp_path), ["a.py", "b.py"])
