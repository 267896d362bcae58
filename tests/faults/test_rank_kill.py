"""A job in several processes loses one of them, or all, or is told to stop: it ends at once, and goes on later."""

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from daemon import supervisor
from tests import forked_ranks, jobs
from tests.forked_ranks import Ranks
from trainer import launch, names
from trainer.contract import ExitCode
from trainer.rank_line import Exchange

pytestmark = pytest.mark.faults


def _write(job: Path) -> None:
    recipe = jobs.recipe(
        gradient_accumulation_steps=3, num_train_epochs=6, save_steps=5, micro_batch_tokens=64, ema_decay=0.9
    )
    jobs.write_job(job, jobs.some_samples(13), recipe=recipe)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty steps in two processes."""
    job = tmp_path_factory.mktemp("undisturbed") / "job"
    _write(job)
    assert forked_ranks.done(job).steps == 30
    return job


def _assert_same_end(job: Path, undisturbed: Path) -> None:
    assert jobs.file_hashes(jobs.checkpoint(job)) == jobs.file_hashes(jobs.checkpoint(undisturbed))
    steps = jobs.training_steps(job)
    assert [line.step for line in steps] == list(range(1, 31))
    assert [line.loss for line in steps] == [line.loss for line in jobs.training_steps(undisturbed)]
    assert jobs.sha256(job / names.LOSSES) == jobs.sha256(undisturbed / names.LOSSES)


def _at_step(job: Path, step: int, act: Callable[[Ranks], None]) -> Callable[[Ranks], None]:
    def watch(ranks: Ranks) -> None:
        with contextlib.suppress(AssertionError):
            jobs.wait_for_step(job, step, ranks)
            act(ranks)

    return watch


def test_killed_and_stopped_it_ends_as_if_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    job, ended = tmp_path / "job", []
    _write(job)
    for step, victim in ((7, 1), (13, 0)):
        began: list[float] = []

        def kill(ranks: Ranks, victim: int = victim, began: list[float] = began) -> None:
            ranks.all[victim].kill()
            began.append(time.monotonic())
            ended.extend(ranks.all)

        assert forked_ranks.run(job, watcher=_at_step(job, step, kill)) == 1
        assert time.monotonic() - began[0] < 5  # nobody waits in a collective for the dead one
        assert not (job / names.RESULT).exists() and not (job / launch.FOLDER).exists()
    assert all(one.poll() is not None for one in ended)
    stop = threading.Event()
    assert forked_ranks.run(job, stop=stop, watcher=_at_step(job, 17, lambda ranks: stop.set())) == ExitCode.INTERRUPTED
    told = jobs.result(job)
    assert told.exit_code == ExitCode.INTERRUPTED and told.checkpoint == f"checkpoint-{told.global_step}"
    assert forked_ranks.done(job).exit_code == ExitCode.DONE
    _assert_same_end(job, undisturbed)


def _ranks(job: Path) -> dict[int, psutil.Process]:
    """The processes at work in a job folder, by their number."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if str(job) in command and "--line" in command and "trainer.launcher" not in command:
                found[int(process.environ()["RANK"])] = process
    return found


def _with_the_lock(job: Path, seconds: float) -> dict[int, psutil.Process]:
    """Both of them, as soon as each has been given the lock."""
    deadline = time.monotonic() + seconds
    while True:
        ranks = _ranks(job)
        with contextlib.suppress(psutil.Error):
            held = {rank: {file.path for file in one.open_files()} for rank, one in ranks.items()}
            if len(held) == 2 and all(str(job / names.LOCK) in files for files in held.values()):
                return ranks
        assert time.monotonic() < deadline, "they did not begin in time"
        time.sleep(0.2)


def _ended(child: supervisor.Trainer, seconds: float) -> supervisor.Ended:
    deadline = time.monotonic() + seconds
    while (ended := child.poll()) is None:
        assert time.monotonic() < deadline, "the trainer did not end in time"
        time.sleep(0.01)
    return ended


def _gone(processes: dict[int, psutil.Process], seconds: float = 10) -> None:
    _, alive = psutil.wait_procs(list(processes.values()), timeout=seconds)
    assert not alive


class _Child(supervisor.Trainer):
    """As the daemon starts it, under `accelerate launch`; `poll` as the tests' waiting has it."""

    def __init__(self, job: Path) -> None:
        limits = supervisor.Limits(
            heartbeat_seconds=120, timeout_seconds=600, stop_seconds=120, nice=0, threads=2, processes=2
        )
        super().__init__(job, limits)

    @property
    def popen(self) -> "supervisor.subprocess.Popen[bytes]":
        return self._process


def test_under_accelerate_launch(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real road: one of them killed (at the start, when the others have most to import), then all told to stop by
    the daemon; ended elsewhere, with the same bits."""
    monkeypatch.setenv("ENGRAMD_DEVICE", "cpu")
    job = tmp_path / "job"
    _write(job)

    child = _Child(job)
    ranks = _with_the_lock(job, 120)
    ranks[1].kill()
    ended = _ended(child, 10)
    assert (ended.code, ended.signal) == (1, None) and not (job / names.RESULT).exists()
    _gone(ranks, 0)
    assert not supervisor.is_locked(job)

    logged = (job / names.LOG).stat().st_size
    child = _Child(job)
    jobs.wait_for_step(job, 12, child.popen, seconds=120)
    ranks = _ranks(job)
    assert not _listening(ranks, everywhere=True) and _listening(ranks, everywhere=False)
    child.stop()
    assert _ended(child, 30).code == ExitCode.INTERRUPTED
    told = jobs.result(job)
    assert told.exit_code == ExitCode.INTERRUPTED and told.checkpoint == f"checkpoint-{told.global_step}"
    assert b"Traceback" not in (job / names.LOG).read_bytes()[logged:]
    _gone(ranks, 0)
    assert not supervisor.is_locked(job)

    assert forked_ranks.done(job).exit_code == ExitCode.DONE
    _assert_same_end(job, undisturbed)


def _listening(processes: dict[int, psutil.Process], *, everywhere: bool) -> list[str]:
    """Where their process group listens for TCP: on this machine's own address alone, or on any other."""
    group = [*processes.values(), *(one.parent() for one in processes.values())]
    addresses = {
        connection.laddr.ip
        for one in group
        if one is not None
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    return sorted(ip for ip in addresses if (ip not in ("127.0.0.1", "::1")) == everywhere)


def test_none_is_left_when_their_trainer_is_gone(tmp_path: Path) -> None:
    """A SIGKILL of the trainer closes the lines' other ends, as is done here: each process dies, whatever it waits for,
    and with the last of them the lock is free."""
    job = tmp_path / "job"
    _write(job)
    (job / launch.FOLDER).mkdir()
    lock = os.open(job / names.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with Exchange(lock, str(job / launch.FOLDER / "group")) as exchange:
        ranks = Ranks(job, 2, exchange.name, "never", {})
        over = threading.Event()
        hearing = threading.Thread(target=_hear, args=(exchange, over), daemon=True)
        hearing.start()
        jobs.wait_for_step(job, 4, ranks)
        os.close(lock)
        assert supervisor.is_locked(job)  # by them
        os.kill(ranks.all[1].pid, signal.SIGSTOP)  # the other one waits for it in a collective
        over.set()
        hearing.join(10)
        exchange.hang_up()
        assert ranks.all[0].wait(10) == -signal.SIGKILL
        os.kill(ranks.all[1].pid, signal.SIGCONT)
        assert ranks.all[1].wait(10) == -signal.SIGKILL
    assert not supervisor.is_locked(job) and not (job / names.RESULT).exists()


def _hear(exchange: Exchange, over: threading.Event) -> None:
    while not over.is_set():
        exchange.hear(0.05)
