"""SIGKILL at each step of a rollback and of a reset: afterwards chains, registry, symlink and heads agree.

The daemon kills itself before the n-th rename, link, flush, removal or commit, from its start until it has answered; n
goes up until nothing is left to be killed. `make test` takes every seventh n, the long form all of them.
"""

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import Database, jobs, memories, requests
from daemon.lock import Lock
from tests.unit.test_cycles import cycle
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import drop, service, work

STRIDE = 1 if os.environ.get("ENGRAMD_FAULTS_LONG") == "1" else 7
MOST = 500  # steps; there are fewer
ASKED: dict[str, dict[str, Any]] = {  # what is asked for, and the heads that it leads to
    "rollback": {"version": 1, "train_again": False, "line": ""},
    "rollback to train again": {"version": 2, "train_again": True, "line": ""},
    "rollback of a line": {"version": 4, "train_again": False, "line": ""},
    "reset": {"version": None, "train_again": False, "line": ""},
    "reset of a line": {"version": None, "train_again": False, "line": "emulation"},
}
HEADS = {
    "rollback": {"": 1, "emulation": 5}, "rollback to train again": {"": 6, "emulation": 5},
    "rollback of a line": {"": 3, "emulation": 4}, "reset": {"emulation": 5}, "reset of a line": {"": 3},
}  # fmt: skip

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three nights and two cycles of a specialist behind it."""
    home = Home(tmp_path_factory.mktemp("lived") / "home")
    for number in range(3):
        drop(home, f"{number}.jsonl", f"thing {number}")
        work(home)
    for _ in range(2):
        assert cycle(home, mode="emulation")["state"] == "promoted"
    return home.root


@contextmanager
def dying(after: int) -> Iterator[Callable[[], None]]:
    """In a child alone: SIGKILL before the n-th step. Nothing of it has to be put back."""
    left = after

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("rename", "replace", "link", "symlink", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, _before(step, getattr(os, name)))
    transaction = Database.transaction

    @contextmanager
    def counted(self: Database) -> Iterator[None]:
        with transaction(self):
            yield
            step()  # all is said, and nothing is committed
        step()

    Database.transaction = counted  # type: ignore[method-assign]
    yield step


def _before(step: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def stepped(*arguments: Any, **options: Any) -> Any:
        step()
        return function(*arguments, **options)

    return stepped


def answered(home: Home, number: int) -> bool:
    with ledger.open_home(home.database, write=False) as db:
        return (requests.get(db, number) or {}).get("state") == "done"


def killed(home: Home, number: int, after: int) -> bool:
    """Whether a daemon came to its n-th step before it had answered."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(home.root / "child.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            with dying(after):
                lock, one = Lock(home), service(home)
                one.run(until=lambda: (requests.get(one._db, number) or {}).get("state") == "done")
                lock.release()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, (home.root / "child.out").read_text()[-3000:]
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def state(home: Home) -> dict[str, Any]:
    """What must be the same however often it was killed; and what must agree."""
    paths = home.profile("me")
    with ledger.open_profile(paths.ledger, write=False) as db:
        heads = jobs.heads(db)
        mirror = json.loads(paths.registry.read_text())
        assert mirror["heads"] == heads and mirror["head"] == heads.get("")
        if "" in heads:
            assert paths.current_model.resolve() == (paths.chains / str(heads[""]["chain"])).resolve()
        else:
            assert not os.path.lexists(paths.current_model)
        for head in heads.values():
            assert (paths.chains / str(head["chain"]) / f"checkpoint-{head['step']}" / "manifest.json").is_file()
        recorded = {str(row["id"]) for row in jobs.chains(db)}
        assert {entry.name for entry in paths.chains.iterdir()} <= recorded
        return {
            "heads": {line: head["version"] for line, head in heads.items()},
            "sha256": {line: head["sha256"] for line, head in heads.items()},
            "memories": memories.counts(db)["state"],
            "versions": {row["id"]: row["state"] for row in jobs.versions(db)},
            "once": memories.trained_exactly_once(db),
        }


@pytest.mark.parametrize("name", ASKED)
def test_all_agree_after_sigkill(
    name: str, lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed: dict[str, Any] | None = None
    kills = 0
    for after in (MOST, *range(0, MOST, STRIDE)):
        home = Home(tmp_path / f"{after}")
        shutil.copytree(lived, home.root, symlinks=True)
        with ledger.open_home(home.database, write=True) as db:
            number = requests.ask(db, "me", "rollback", ASKED[name], "2026-11-21T08:00:00Z")
        if undisturbed is not None and not killed(home, number, after):
            break
        kills += undisturbed is not None
        work(home)
        assert answered(home, number)
        found = state(home)
        if undisturbed is None:
            undisturbed = found
            assert found["heads"] == HEADS[name]
        assert found == undisturbed, after
        assert audit_is_clean(home, capsys)
        shutil.rmtree(home.root)
    else:
        pytest.fail(f"there were more than {MOST} steps")
    assert kills * STRIDE > 20, kills
