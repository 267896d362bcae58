"""The courier's whole way over a stand-in of ssh: there and back, cut off, stopped, left alone, lied to."""

import os
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from daemon.compute import courier, line, orders, ssh
from daemon.compute.line import Line
from daemon.compute.places import LineLost
from tests.couriers import Elsewhere, Errand, commands, order, until
from tests.jobs import ROOT
from trainer import names
from trainer.names import ExitCode

pytestmark = pytest.mark.usefixtures("packages")
STEPS = [1, 2, 3, 4]  # of a job of 16 samples, four a step


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    made = Elsewhere(tmp_path / "elsewhere")
    yield made
    for pid, words in commands():
        if str(tmp_path) in " ".join(words):
            os.kill(pid, signal.SIGKILL)


def errand(tmp_path: Path, elsewhere: Elsewhere, name: str = "job", **changes: object) -> Errand:
    job = {key: changes.pop(key) for key in ("parent", "recipe", "seed") if key in changes}
    return Errand(tmp_path / name, order(elsewhere.settings, **changes), elsewhere.environment, **job)


def test_there_and_back(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """The result last, the checkpoint whole and sealed, progress and log as they were told; over there only what the
    next job can use."""
    elsewhere.faults("bytes:100000")
    job = errand(tmp_path, elsewhere, recipe={"save_steps": 1})
    assert job.run() == ExitCode.DONE, job.told()
    assert job.steps() == STEPS
    last = job.folder / "checkpoint-4"
    assert job.result["checkpoint"] == last.name
    assert [one.name for one in job.folder.iterdir() if one.name.startswith("checkpoint")] == [last.name]
    assert {one.stat().st_mode & 0o777 for one in last.iterdir()} == {0o400}
    needed = sum(one.stat().st_size for one in last.iterdir())
    assert needed <= job.report["fetched"] <= 1.02 * needed + 16_384
    assert not (job.folder / ".tmp-home").exists()
    assert elsewhere.jobs() == []
    assert [one.name for one in (elsewhere.folder / "checkpoints").iterdir()] == [job.result["checkpoint_sha256"]]
    assert elsewhere.trainers() == []


def test_a_parent_is_sent_once(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """By the hash of its manifest; what is gone over there is sent again, and torn bytes that lie there do no harm."""
    elsewhere.faults("bytes:300000")
    first = errand(tmp_path, elsewhere)
    assert first.run() == ExitCode.DONE, first.told()
    parent, sha256 = first.folder / "checkpoint-4", first.result["checkpoint_sha256"]
    second = errand(tmp_path, elsewhere, "second", parent=parent)
    assert second.run() == ExitCode.DONE, second.told()
    assert second.report["saved"] > 300_000 > second.report["sent"]
    store = elsewhere.folder / "checkpoints"
    torn = store / f"{sha256}.part"
    shutil.rmtree(store / sha256)
    torn.mkdir()
    (torn / names.ADAPTER_WEIGHTS).write_bytes(b"x" * (parent / names.ADAPTER_WEIGHTS).stat().st_size)
    third = errand(tmp_path, elsewhere, "third", parent=parent, seed=8)
    assert third.run() == ExitCode.DONE, third.told()
    assert third.report["sent"] > 300_000
    assert (store / sha256).is_dir() and not torn.exists()


def test_nobody_at_home(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """The daemon dies: the trainer goes on. The next courier finds it, and each step is told once. The one after that,
    killed in the middle, leaves nothing that the last one would take for a result."""
    elsewhere.faults("step_seconds:3")
    job = errand(tmp_path, elsewhere)
    job.go()
    until(lambda: '"step":1,' in job.text(), job.told)
    job.leave()
    assert job.wait() == ExitCode.INTERRUPTED
    assert not (job.folder / names.RESULT).exists()
    trainers = elsewhere.trainers()
    assert len(trainers) == 1
    job.go()
    until(lambda: '"step":2,' in job.text(), job.told)
    assert elsewhere.trainers() == trainers
    job.kill()
    assert job.run() == ExitCode.DONE, job.told()
    assert job.steps() == STEPS
    assert elsewhere.trainers() == []


def test_a_lost_line(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """While nothing is heard the courier says so, which is its sign of life, and goes on where it was."""
    elsewhere.faults("step_seconds:0.5")
    job = errand(tmp_path, elsewhere)
    job.go()
    until(lambda: '"step":1,' in job.text(), job.told)
    elsewhere.down.write_text("ssh: connect to host far port 22: Connection refused\n")
    watches = [pid for pid, words in commands() if words[-2:] == ["-I", "-"] and _belongs(pid, elsewhere)]
    for pid in watches:
        os.kill(pid, signal.SIGKILL)
    until(lambda: "no line to far" in job.text(), job.told)
    until(lambda: elsewhere.trainers() == [], job.told)
    elsewhere.down.unlink()
    assert job.wait() == ExitCode.DONE, job.told()
    job.leave()
    assert job.steps() == STEPS
    assert job.report["cuts"] >= 1


def _belongs(pid: int, elsewhere: Elsewhere) -> bool:
    """Whether it is a call to the other home, and no guardian."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            own = f"HOME={elsewhere.home}".encode() in file.read()
        return own and psutil.Process(pid).ppid() != 1
    except (OSError, psutil.Error):
        return False


def test_a_stop(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """SIGTERM here is SIGTERM there: what was saved comes home, and the next courier goes on from it, also where the
    other machine has lost all."""
    elsewhere.faults("step_seconds:1.5")
    job = errand(tmp_path, elsewhere)
    job.go()
    until(lambda: '"step":1,' in job.text(), job.told)
    job.stop()
    assert job.wait() == ExitCode.INTERRUPTED, job.told()
    job.leave()
    taken = names.checkpoint_step(job.result["checkpoint"])
    assert taken is not None and (job.folder / f"checkpoint-{taken}").is_dir()
    shutil.rmtree(elsewhere.folder)
    elsewhere.faults("")
    assert job.run() == ExitCode.DONE, job.told()
    assert job.steps() == STEPS
    assert sorted(job.text(names.LOSSES).count(f'"step": {step},') for step in STEPS) == [1, 1, 1, 1]


def test_a_stop_on_the_way(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """Before anything runs over there a stop ends the courier at once, and says that it was one."""
    elsewhere.down.write_text("ssh: connect to host far port 22: Connection timed out\n")
    job = errand(tmp_path, elsewhere)
    job.go()
    until(lambda: "no line to far" in job.text(), job.told)
    job.stop()
    assert job.wait(10) == ExitCode.INTERRUPTED
    job.leave()
    assert job.result["exit_code"] == ExitCode.INTERRUPTED and elsewhere.jobs() == []


def test_a_line_that_is_lost_for_all_the_time_of_a_job(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """The daemon's timeout is a stop too: no fault of the job's, which waits, and the trainer there is found again."""
    job, stop = errand(tmp_path, elsewhere), threading.Event()
    stop.set()
    one = courier.Courier(job.folder, orders.read(job.folder), stop, threading.Event())
    one._way = lambda: one._say("")  # type: ignore[method-assign, assignment, return-value]
    assert one.run().code == ExitCode.INTERRUPTED
    one._began -= 600.0
    assert one.run().code == ExitCode.NO_DEVICE and "longer than jobs.timeout_hours" in job.result["reason"]
    one._lost_since = one._began + 10.0
    assert one.run().code == ExitCode.NO_DEVICE and "no line to far for 59" in job.result["reason"]


@pytest.mark.parametrize("left", [0.0, -1.0])
def test_a_stop_while_it_is_tidied_changes_no_result(
    tmp_path: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    """The job is home: a stop, whose time is over or not, and an answer that is none, make nothing else of it."""
    job = errand(tmp_path, elsewhere, stop_seconds=10.0)
    stop = threading.Event()
    monkeypatch.setattr(courier, "LEAVE_SHARE", left)

    def release(place: ssh.Ssh, done: bool) -> None:
        stop.set()
        place._say("")
        place._say("")
        raise KeyError("wrong")

    monkeypatch.setattr(ssh.Ssh, "release", release)
    monkeypatch.setenv("PATH", elsewhere.environment["PATH"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    end = courier.Courier(job.folder, orders.read(job.folder), stop, threading.Event()).run()
    assert end.code == ExitCode.DONE and job.result["exit_code"] == ExitCode.DONE, job.told()


def test_what_a_killed_rsync_left(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """A temporary file of its own among what came home is not taken for a lie."""
    job = errand(tmp_path, elsewhere)
    (job.folder / ".tmp-home").mkdir()
    (job.folder / ".tmp-home" / f".{names.METRICS}.Xy12Ab").write_text("{")
    assert job.run() == ExitCode.DONE, job.told()


def test_a_trainer_that_never_got_to_work(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """A broken environment there is no fault of the job's: it waits."""
    (elsewhere.root / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -m ] && {{ echo "ImportError: libcuda.so.1" >&2; exit 1; }}\nexec {sys.executable} "$@"\n'
    )
    job = errand(tmp_path, elsewhere)
    assert job.run() == ExitCode.NO_DEVICE, job.told()
    assert "before its first word" in job.result["reason"] and "libcuda" in job.text(names.LOG)


def test_a_trainer_that_hangs_is_killed_there(tmp_path: Path, elsewhere: Elsewhere) -> None:
    elsewhere.faults("hang:")
    job = errand(tmp_path, elsewhere, stop_seconds=10.0)
    job.go()
    until(lambda: '"phase":"loading"' in job.text(), job.told)
    job.stop()
    assert job.wait(30) == -signal.SIGKILL, job.told()
    job.leave()
    assert not (job.folder / names.RESULT).exists() and elsewhere.trainers() == []


def test_its_deadline(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """Nobody needs to be at home for it: past it the trainer is asked to stop, over there."""
    elsewhere.faults("step_seconds:6")
    job = errand(tmp_path, elsewhere, timeout_seconds=4.0)
    assert job.run() == ExitCode.INTERRUPTED, job.told()
    assert job.result["checkpoint"] == "checkpoint-1"


def test_a_guardian_that_is_killed(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """The trainer sees its pipe close, saves and ends; its own result says how."""
    elsewhere.faults("step_seconds:1")
    job = errand(tmp_path, elsewhere)
    job.go()
    until(lambda: '"step":1,' in job.text(), job.told)
    (trainer,) = elsewhere.trainers()
    with open(f"/proc/{trainer}/stat") as file:
        os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
    assert job.wait() == ExitCode.INTERRUPTED, job.told()
    job.leave()
    assert job.run() == ExitCode.DONE, job.told()


def test_long_work_there_is_heard(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hashes gigabytes beats; its answer is the last that is said, and silence is still noticed."""
    monkeypatch.setenv("PATH", elsewhere.environment["PATH"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = "import time\nfrom daemon.compute.ground import *\n{}\ntime.sleep(3)\nsay({{'wrong': None}})\n"
    monkeypatch.setattr(line, "SILENT_SECONDS", 2.0)
    line_ = Line("far", python="env python3 -c 'import sys; exec(sys.stdin.read())' #")
    monkeypatch.setattr(line.shlex, "quote", str)
    monkeypatch.setattr(line, "program", lambda told: words.format("beat(0.05)").encode() + b"leave()\n")
    beats: list[int] = []
    line_.alive = lambda: beats.append(1)
    assert line_.call("keep", {}) == {"wrong": None} and beats
    monkeypatch.setattr(line, "program", lambda told: words.format("").encode())
    with pytest.raises(LineLost):
        line_.call("keep", {})


@pytest.mark.parametrize(("fault", "code"), [("crash:", 1), ("diverge:", 13), ("oom:1", 12), ("no_device:", 14)])
def test_other_ends(tmp_path: Path, elsewhere: Elsewhere, fault: str, code: int) -> None:
    """Exit code, result and log are the trainer's own."""
    elsewhere.faults(fault)
    job = errand(tmp_path, elsewhere)
    assert job.run() == code, job.told()
    if code == 1:
        assert "asked to crash" in job.text(names.LOG) and not (job.folder / names.RESULT).exists()
    else:
        assert job.result["exit_code"] == code


def test_a_lie_is_refused(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """A file that its manifest does not know: the job fails with its name, and nothing of it is in the folder."""
    elsewhere.faults("lie: bytes:1000")
    job = errand(tmp_path, elsewhere)
    assert job.run() == ExitCode.BAD_SPEC, job.told()
    assert names.ADAPTER_WEIGHTS in job.result["reason"] and "far" in job.result["reason"]
    left = {one.name for one in job.folder.iterdir()}
    assert not any(name.startswith(("checkpoint", ".tmp")) for name in left)
    assert not left & {names.METRICS, names.PLAN, names.BEFORE}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Host key verification failed.\n", "the host key of far is not known here"),
        ("anna@far: Permission denied (publickey).\n", "does not let us in"),
        ("ssh: Could not resolve hostname far: Name or service not known\n", "far does not answer"),
        ("kex_exchange_identification: Connection closed by remote host\n", "far does not answer"),
    ],
)
def test_a_door_that_stays_shut(tmp_path: Path, elsewhere: Elsewhere, said: str, sentence: str) -> None:
    """The job waits, with one sentence that says what mends it."""
    elsewhere.down.write_text(said)
    job = errand(tmp_path, elsewhere)
    assert job.run() == ExitCode.NO_DEVICE
    assert sentence in job.result["reason"] and "\n" not in job.result["reason"]


def test_no_room_there(tmp_path: Path, elsewhere: Elsewhere) -> None:
    job = errand(tmp_path, elsewhere, room=10**18)
    assert job.run() == ExitCode.NO_DEVICE
    assert "GB free" in job.result["reason"]


def test_no_python_there(tmp_path: Path, elsewhere: Elsewhere) -> None:
    settings = elsewhere.settings.model_copy(update={"python": "/nowhere/python"})
    job = Errand(tmp_path / "job", order(settings), elsewhere.environment)
    assert job.run() == ExitCode.NO_DEVICE
    assert "/nowhere/python" in job.result["reason"] and "compute.ssh.python" in job.result["reason"]


def test_a_base_of_ones_own(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """Sent once, found by its fingerprint, given to the trainer in the place of its name."""
    base = tmp_path / "base"
    shutil.copytree(ROOT / "trainer" / "builtin", base)
    first = errand(tmp_path, elsewhere, base=base, recipe={"base_model": str(base)})
    assert first.run() == ExitCode.DONE, first.told()
    (sent,) = (elsewhere.folder / "bases").iterdir()
    second = errand(tmp_path, elsewhere, "second", base=base, recipe={"base_model": str(base)}, seed=8)
    assert second.run() == ExitCode.DONE, second.told()
    assert second.report["saved"] > (sent / "model.safetensors").stat().st_size > second.report["sent"]


def _wheel(folder: Path) -> Path:
    """A package of one line, as pip takes it."""
    path = folder / "tinypackage-1.0-py3-none-any.whl"
    info = "tinypackage-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tinypackage.py", "x = 1\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinypackage\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_an_environment_of_the_lock_file(
    tmp_path: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made in the background, once for each lock file."""
    (elsewhere.root / "python3").symlink_to(os.path.realpath(sys.executable))
    lock = tmp_path / "good.lock"
    lock.write_text(f"tinypackage @ file://{_wheel(tmp_path)}\n")
    settings = elsewhere.settings.model_copy(update={"python": ""})
    job = Errand(tmp_path / "job", order(settings, lock_file=lock), elsewhere.environment)
    job.run()  # ends as it may: this environment has no torch
    (made,) = [one for one in (elsewhere.folder / "environments").iterdir() if (one / "ready").exists()]
    assert next(made.glob("venv/lib/python*/site-packages/tinypackage.py")).exists()
    assert "No module named 'pydantic'" in job.text(names.LOG), "the trainer was started in it"
    monkeypatch.setenv("PATH", elsewhere.environment["PATH"])
    told = {"folder": "engramd-compute", "key": made.name, "requirements": "", "make": True}
    assert Line("far").call("environment", told)["state"] == "ready", "it is not made again"


def test_an_environment_that_cannot_be_made(tmp_path: Path, elsewhere: Elsewhere) -> None:
    """Is told with pip's own words."""
    (elsewhere.root / "python3").symlink_to(os.path.realpath(sys.executable))
    lock = tmp_path / "bad.lock"
    lock.write_text("--no-index\nnothing==1.0\n")
    job = Errand(tmp_path / "job", order(elsewhere.settings.model_copy(update={"python": ""}), lock_file=lock),
                 elsewhere.environment)  # fmt: skip
    assert job.run() == ExitCode.NO_DEVICE
    assert "the environment cannot be made on far: ERROR: No matching distribution" in job.result["reason"]


def test_an_order_has_no_room_for_a_secret() -> None:
    """What is written into the job's folder is the settings alone, which hold none."""
    assert not any("key" in name and name != "hostkey" for name in orders.Order.model_fields)
