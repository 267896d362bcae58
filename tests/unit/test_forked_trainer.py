"""The stand-in for the start of a trainer: a daemon must not be able to tell it from the real one."""

import os
import signal
import time
from pathlib import Path

from daemon.supervisor import Ended, Limits, Trainer, is_locked
from tests import jobs
from tests.forked_trainer import command

LIMITS = Limits(heartbeat_seconds=120, timeout_seconds=120, stop_seconds=30, nice=0, threads=1)


def ended(trainer: Trainer, seconds: float = 120.0) -> Ended:
    deadline = time.monotonic() + seconds
    while (told := trainer.poll()) is None:
        assert time.monotonic() < deadline, "the trainer did not end in time"
        time.sleep(0.01)
    return told


def unlocked(folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while is_locked(folder):
        assert time.monotonic() < deadline, "something still holds the folder"
        time.sleep(0.01)


class Running:
    """For `wait_for_step`, which asks for an exit code."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def poll(self) -> int | None:
        told = self._trainer.poll()
        return None if told is None else told.code or -1


def test_killed_stopped_and_ended_as_one_that_was_started(tmp_path: Path) -> None:
    recipe = jobs.recipe(num_train_epochs=8, save_steps=1)
    jobs.write_job(tmp_path / "quiet", jobs.some_samples(12), recipe=recipe)
    quiet = jobs.run(tmp_path / "quiet")
    folder = tmp_path / "job"
    jobs.write_job(folder, jobs.some_samples(12), recipe=recipe)
    first = Trainer(folder, LIMITS, command())
    assert is_locked(folder)
    jobs.wait_for_step(folder, 2, Running(first))
    os.kill(first.pid, signal.SIGKILL)
    assert ended(first).signal == "SIGKILL"
    unlocked(folder)  # it died with what stood for it
    second = Trainer(folder, LIMITS, command())
    jobs.wait_for_step(folder, 4, Running(second))
    os.kill(second.pid, signal.SIGTERM)
    assert ended(second).code in (10, 0)  # interrupted; it may just have ended
    unlocked(folder)
    assert ended(Trainer(folder, LIMITS, command())).code == 0
    assert jobs.result(folder).checkpoint_sha256 == quiet.checkpoint_sha256
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "spec.json").write_text("{}")
    assert ended(Trainer(wrong, LIMITS, command())).code == 11
