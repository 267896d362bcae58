"""SIGKILL while the head goes back, while a snapshot is taken and while things are pruned: all agree afterwards."""

import json
import os
import random
from pathlib import Path

import pytest

from daemon import ledger, snapshots
from daemon.ledger import jobs, memories, requests
from tests.faults.night import Night

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
ROUNDS = 40 if LONG else 2
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))

pytestmark = pytest.mark.faults


def ask(night: Night, command: str, **arguments: object) -> int:
    with ledger.open_home(night.home.database, write=True) as db:
        return requests.ask(db, "me", command, dict(arguments), "2026-11-21T08:00:00Z")


def answer(night: Night, number: int) -> dict[str, object]:
    with ledger.open_home(night.home.database, write=False) as db:
        row = requests.get(db, number)
    assert row is not None and row["state"] == "done", row and row["answer"]
    return json.loads(row["answer"])  # type: ignore[no-any-return]


def killed_until_done(night: Night, dice: random.Random, most: float) -> None:
    """The daemon is killed after ever longer times, and started again, until nothing is left to do."""
    for attempt in range(4):
        night.start()
        assert night._process is not None
        try:
            night._process.wait(timeout=dice.uniform(0.0, most) * (attempt + 1) / 2 + 0.35)
        except Exception:
            night.kill("both")
    night.finish()


def test_the_head_goes_back_under_sigkill(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    night = Night(tmp_path / "home", fake=True)
    night.drop(0)
    night.finish()
    first = answer_after(night, "snapshot")["snapshot"]
    night.drop(1)
    night.finish()
    second = answer_after(night, "snapshot")["snapshot"]
    for name in (first, second):
        ask(night, "pin", kind="snapshot", name=name)
    night.finish()
    for number in range(ROUNDS):
        night.drop(number + 2)
        target = dice.choice((first, second))
        asked = [ask(night, "restore", snapshot=target), ask(night, "snapshot"), ask(night, "prune")]
        killed_until_done(night, dice, 0.6)
        assert answer(night, asked[0])["version"] in (1, 2)
        audit = night.audit()
        assert audit.returncode == 0, audit.stdout + audit.stderr
        with ledger.open_profile(night.home.profile("me").ledger, write=False) as db:
            assert memories.trained_exactly_once(db) == memories.total(db) == 5 * (number + 3)
            head = jobs.get_head(db)
        assert head is not None and night.home.profile("me").current_model.resolve().name == str(head["chain"])
        for name in snapshots.names_in(night.home.snapshots):
            assert list(snapshots.problems(night.home.snapshots / name, {})) == [], name


def answer_after(night: Night, command: str) -> dict[str, object]:
    number = ask(night, command)
    night.finish()
    return answer(night, number)
