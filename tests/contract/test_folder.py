"""The job folder as the daemon sees it, for whatever executable claims to be a trainer.

`ENGRAMD_TEST_TRAINER` names another command (a double) that this suite is then run against.
"""

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import jobs
from tests.forked_trainer import ForkedTrainer
from trainer import names
from trainer.checkpoints import verify
from trainer.contract import ExitCode

OTHER = os.environ.get("ENGRAMD_TEST_TRAINER")


class _Command:
    """A trainer that is a command of its own, with the same face as ForkedTrainer."""

    def __init__(self, folder: Path, *arguments: str, keep: tuple[int, ...] = ()) -> None:
        command = shlex.split(OTHER) if OTHER else [sys.executable, "-m", "trainer"]
        log = (folder / names.LOG).open("a")
        self.process = subprocess.Popen(
            [*command, str(folder), *arguments], env=jobs.environment(), stdout=log, stderr=log, pass_fds=keep
        )

    def poll(self) -> int | None:
        return self.process.poll()

    def wait(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)

    def stop(self) -> None:
        self.process.terminate()


def launch(folder: Path) -> ForkedTrainer | _Command:
    return _Command(folder) if OTHER else ForkedTrainer(folder)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    jobs.write_job(folder, jobs.some_samples(10), recipe=jobs.recipe(num_train_epochs=3))
    return folder


def test_a_whole_job(job: Path) -> None:
    spec_hash = jobs.sha256(job / names.SPEC)
    assert launch(job).wait() == ExitCode.DONE
    told = jobs.result(job)
    assert told.spec_sha256 == spec_hash
    assert (told.start_step, told.global_step, told.steps, told.samples_seen) == (0, 9, 9, 30)
    folder = jobs.checkpoint(job)
    assert folder.name == "checkpoint-9"
    assert verify(folder) == told.checkpoint_sha256
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o400"}
    assert [line.step for line in jobs.training_steps(job)] == list(range(1, 10))
    assert all(line.time.endswith("Z") for line in jobs.progress(job))
    assert not list(job.glob(".tmp-*"))

    # Started again, a finished job gives its result and changes nothing.
    before = {path: path.stat().st_mtime_ns for path in job.iterdir() if path.name != names.LOG}
    assert launch(job).wait() == ExitCode.DONE
    assert {path: path.stat().st_mtime_ns for path in job.iterdir() if path.name != names.LOG} == before


def test_a_locked_folder_is_left_alone(job: Path) -> None:
    with (job / names.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch(job).wait() == ExitCode.LOCKED
    left = {path.name for path in job.iterdir()} - {names.LOG}
    assert left == {names.SPEC, names.SAMPLES, names.LOCK}


def test_a_closed_pipe_is_a_stop(tmp_path: Path) -> None:
    """By the real entry point, which is also the proof that `python -m trainer` works."""
    job = tmp_path / "job"
    jobs.write_job(job, jobs.some_samples(10), recipe=jobs.recipe(num_train_epochs=300, lora_rank=1))
    ours, theirs = os.pipe()
    process = _Command(job, "--alive-fd", str(ours), keep=(ours,))
    os.close(ours)
    jobs.wait_for_step(job, 2, process)
    os.close(theirs)
    assert process.wait() == ExitCode.INTERRUPTED, (job / names.LOG).read_text()
    told = jobs.result(job)
    assert told.global_step is not None and 2 <= told.global_step < 900
    assert jobs.checkpoint(job).name == f"checkpoint-{told.global_step}"
