"""SIGKILL at each step of serving: the alias always points to a model that answers, and in the end all is as if nothing
had happened: the same names, the same files, no blob of a model too many.

The daemon is killed by itself, before the n-th rename, removal, commit or call to Ollama after a verdict; n goes up
until nothing is left to be killed. `make test` takes a few of them, the long form all.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import jobs, serving
from tests.faults.night import FAKE_TRAINER, ROOT
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import QUICK
from tests.unit.test_serving import (
    LATER,
    Serving,
    answer,
    ask,
    check_alias,
    line,
    names_of,
    night,
    prune,
    rollback,
    standing_in,
    work,
)

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
MOST = 300  # steps; there are fewer
KILLED = """
import json, os, signal, sys, threading
from pathlib import Path
from daemon import delivering
from daemon.home import Home
from daemon.ledger import Database
from daemon.lock import Lock
from daemon.ollama import Ollama
from daemon.service import Service
from daemon.settings import load

home, left, lock = Home(Path(sys.argv[1])), int(sys.argv[2]), threading.Lock()

def step():
    global left
    with lock:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def before(function):
    def counted(*arguments, **options):
        step()
        return function(*arguments, **options)
    return counted

settings = load(home, json.loads(sys.argv[3]), {})
home_lock, service = Lock(home), Service(home, settings, trainer=(sys.executable, sys.argv[4]))
service.recover()
for one in ("rename", "replace", "unlink", "rmdir"):
    setattr(os, one, before(getattr(os, one)))
for one in ("upload", "create", "show", "chat", "copy", "tags", "load", "delete"):
    setattr(Ollama, one, before(getattr(Ollama, one)))
execute = Database.execute

def counting(self, sql, *more):
    if sql.startswith(("UPDATE", "INSERT", "DELETE")):
        step()
    return execute(self, sql, *more)

Database.execute = counting
service.run(until=service.idle)
"""

pytestmark = pytest.mark.faults


def killed(home: Home, ollama: Serving, after: int) -> bool:
    """Whether the daemon came to its n-th step."""
    settings = QUICK | {"serve.host": ollama.host, "serve.ollama": "always", "serve.keep_tags": 0,
                        "evaluation.free_answers": 0, "evaluation.probes": 2}  # fmt: skip
    command = [sys.executable, "-c", KILLED, str(home.root), str(after), json.dumps(settings), str(FAKE_TRAINER)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ENGRAMD_")}
    ended = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode in (0, -9), ended.stdout + ended.stderr
    return ended.returncode != 0


def state(home: Home, ollama: Serving) -> dict[str, Any]:
    """All that must be the same however often it was killed."""
    root = home.profile("me").root
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        rows = [(row["name"], row["kind"], row["state"], row["version"]) for row in serving.all_names(db)]
        served, exports = serving.line(db, ""), serving.exports(db)
        heads = jobs.heads(db)
    blobs = {path.name for path in ollama.blobs.iterdir() if path.is_file() and path.read_bytes()[:4] == b"GGUF"}
    return {
        "names": rows, "there": names_of(ollama), "blobs": blobs, "heads": heads, "exports": sorted(exports),
        "served": {key: served[key] for key in ("name", "version", "before", "alias", "reason", "tries")},
        "files": sorted(str(path.relative_to(root)) for path in (root / "models").rglob("*") if path.is_file()),
        "bases": sorted(path.name for path in (home.state / "bases").rglob("*") if path.is_file()),
        "left": sorted(path.name for path in (root / "jobs").glob("*-export/*")
                       if path.name in ("export", "parent", "base.gguf")),
    }  # fmt: skip


def stand(ollama: Serving, folder: Path) -> None:
    """The stand-in with these blobs, at the same address."""
    ollama.stop()
    shutil.rmtree(ollama.folder)
    shutil.copytree(folder, ollama.folder)
    ollama.start()


def at_every_step(
    ready: Home, ollama: Serving, wanted: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], moments: range
) -> None:
    ollama.stop()
    shutil.copytree(ollama.folder, tmp_path / "blobs")
    ollama.start()
    own: dict[str, Any] = {"serve__keep_tags": 0}
    quiet, hits = Home(shutil.copytree(ready.root, tmp_path / "quiet", symlinks=True)), 0
    work(quiet, ollama, **own)
    expected = state(quiet, ollama)
    assert expected["served"]["version"] == wanted
    for after in moments:
        stand(ollama, tmp_path / "blobs")
        loud = Home(shutil.copytree(ready.root, tmp_path / f"{after}", symlinks=True))
        if not killed(loud, ollama, after):
            break
        hits += 1
        found = names_of(ollama)
        assert any(found["me"] == found.get(f"me-v{one}") for one in (1, 2, 3)) and answer(ollama), after
        work(loud, ollama, later=LATER, **own)
        assert state(loud, ollama) == expected, after
        assert audit_is_clean(loud, capsys)
        if hits % 5 == 1:
            gone = [one for one in prune(loud, ollama, **own) if not one["keep"]]
            assert not [one for one in gone if one["kind"] in ("leftover", "model", "base", "export")], gone
        shutil.rmtree(loud.root)
    assert hits > 1 and after < moments[-1]


@pytest.fixture
def ready(home: Home, tmp_path: Path) -> Any:
    """Two nights are served already, so that an old name goes with the third."""
    with standing_in(tmp_path) as ollama:
        for text in ("one", "two"):
            night(home, ollama, text, serve__keep_tags=0)
        yield ollama


@pytest.mark.parametrize("first", range(8 if LONG else 1))
def test_a_night_under_sigkill(
    home: Home, ready: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    night(home, None, "three", serve__ollama="off")
    at_every_step(home, ready, 3, tmp_path, capsys, range(first, MOST, 8 if LONG else 20))


def test_a_rollback_under_sigkill(
    home: Home, ready: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(home, None, "rollback", {"version": 1, "train_again": False, "line": ""}, serve__ollama="off")
    at_every_step(home, ready, 1, tmp_path, capsys, range(0, MOST, 1 if LONG else 3))


def test_it_serves_what_it_did(home: Home, ready: Serving) -> None:
    """The fixture itself: the alias is the second night's."""
    check_alias(ready, 2)
    assert line(home)["before"] == 1
    assert rollback(home, ready, 1)["request"] == "done"
