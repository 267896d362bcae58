"""SIGKILL at each step of a verdict, and of a promotion by hand: afterwards all is as if nothing had happened.

The daemon is killed by itself, before the n-th rename, flush or commit of the work that is looked at; n goes up until
nothing is left to be killed. `make test` takes every sixth n, the long form all of them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger, outcome
from daemon.home import Home
from daemon.ledger import batches, jobs, memories, requests, scores
from daemon.lock import Lock
from tests.faults.night import FAKE_TRAINER, ROOT
from tests.unit.test_gate import BAD, poison
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import QUICK, drop, fault, service, work

STRIDE = 1 if os.environ.get("ENGRAMD_FAULTS_LONG") == "1" else 6
MOST = 200  # steps; there are fewer
KILLED = """
import json, os, signal, sys
from pathlib import Path
from daemon import outcome, promoting
from daemon.home import Home
from daemon.ledger import Database
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load

home, name, left = Home(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
at_work = False

def step():
    global left
    if at_work:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def before(function):
    def counted(*arguments, **options):
        step()
        return function(*arguments, **options)
    return counted

for one in ("rename", "replace", "fsync", "unlink", "rmdir", "symlink"):
    setattr(os, one, before(getattr(os, one)))
execute = Database.execute

def counting(self, sql, *more):
    if sql.startswith(("UPDATE", "INSERT", "DELETE")):
        step()
    return execute(self, sql, *more)

Database.execute = counting
module = outcome if name == "judge" else promoting
real = getattr(module, name)

def looked_at(*arguments, **options):
    global at_work
    at_work = True
    try:
        return real(*arguments, **options)
    finally:
        step()
        at_work = False

setattr(module, name, looked_at)
settings = load(home, json.loads(sys.argv[4]), {})
lock, service = Lock(home), Service(home, settings, trainer=(sys.executable, sys.argv[5]))
service.run(until=service.idle)
"""

pytestmark = pytest.mark.faults


def killed(home: Home, name: str, after: int) -> bool:
    """Whether the daemon came to its n-th step of the work."""
    command = [sys.executable, "-c", KILLED, str(home.root), name, str(after), json.dumps(QUICK), str(FAKE_TRAINER)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ENGRAMD_")}
    ended = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode in (0, -9), ended.stdout + ended.stderr
    return ended.returncode != 0


def state(home: Home) -> dict[str, Any]:
    """All that must be the same however often it was killed."""
    paths = home.profile("me")
    with ledger.open_profile(paths.ledger, write=False) as db:
        head = jobs.get_head(db)
        mirror = json.loads(paths.registry.read_text()) if paths.registry.exists() else {"head": None}
        assert mirror["head"] == head and len(mirror.get("training_history", ())) == len(jobs.versions(db))
        assert not head or paths.current_model.resolve().name == str(head["chain"])
        return {
            "head": head, "memories": memories.counts(db)["state"], "batches": batches.counts(db),
            "versions": [(row["id"], row["state"], row["reason"], row["gate"], row["weights"], row["despite"])
                         for row in jobs.versions(db)],
            "scores": [scores.of_version(db, row["id"]) for row in jobs.versions(db)],
            "once": memories.trained_exactly_once(db),
            "folders": sorted(str(path.relative_to(paths.root)) for top in (paths.jobs, paths.chains)
                              for path in top.rglob("checkpoint-*")),
        }  # fmt: skip


def at_every_step(ready: Home, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quiet = Home(shutil.copytree(ready.root, tmp_path / "quiet", symlinks=True))
    work(quiet)
    expected, hits = state(quiet), 0
    for after in range(0, MOST, STRIDE):
        loud = Home(shutil.copytree(ready.root, tmp_path / f"{after}", symlinks=True))
        if not killed(loud, name, after):
            break
        hits += 1
        work(loud)
        assert state(loud) == expected, after
        assert audit_is_clean(loud, capsys)
        shutil.rmtree(loud.root)
    assert hits > 12 // STRIDE and after < MOST - STRIDE


def finished(home: Home, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Work up to where the verdict on this job is due."""
    real = outcome.judge
    with monkeypatch.context() as patched:
        patched.setattr(outcome, "judge", lambda world, job, now: job["id"] < number and real(world, job, now))
        lock, one = Lock(home), service(home)
        try:
            one.run(until=lambda: (jobs.get(one._worlds["me"][0].db, number) or {}).get("state") == "finished")
        finally:
            lock.release()


@pytest.mark.parametrize("good", [True, False])
def test_a_verdict_under_sigkill(
    home: Home, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refused one is that of a batch that was refused before: a person decides afterwards."""
    drop(home, "a.jsonl", "one", "two")
    work(home)
    if not good:
        poison(home, **BAD)
    drop(home, "b.jsonl", "three", "four")
    finished(home, monkeypatch, 2 if good else 3)
    at_every_step(home, "judge", capsys, tmp_path)


def test_a_promotion_by_hand_under_sigkill(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(home, "a.jsonl", "one", "two")
    work(home)
    poison(home, **BAD)
    drop(home, "b.jsonl", "three", "four")
    work(home)
    fault(home, None)
    with ledger.open_home(home.database, write=True) as db:
        requests.ask(db, "me", "promote", {"version": 3, "despite": "by hand"}, "2026-11-21T08:00:00Z")
    at_every_step(home, "answer", capsys, tmp_path)
