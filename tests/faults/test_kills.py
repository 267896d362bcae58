"""SIGKILL at random moments, restart: every count exact, equal bits, one trainer at a time, a clean audit.

`make test` runs the short form; ENGRAMD_FAULTS_LONG=1 (`make faults`) the long one, and
ENGRAMD_FAULTS_SEED chooses the moments.
"""

import os
import random
from pathlib import Path

import pytest

from tests.faults.night import Night, bits

LONG = os.environ.get("ENGRAMD_FAULTS_LONG") == "1"
MOMENTS = 30 if LONG else 5
BATCHES = 6 if LONG else 3
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))

pytestmark = pytest.mark.faults


def disturbed(night: Night, moments: int, longest: float) -> None:
    night.watch()
    hits = night.disturb(moments, random.Random(SEED), longest)
    night.finish()
    night.unwatch()
    assert hits == moments, f"only {hits} kills found something to kill"
    assert night.most_at_once == 1, f"{night.most_at_once} trainers at once"
    audit = night.audit()
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_bits_of_an_undisturbed_night(tmp_path: Path) -> None:
    """One batch a job, all files there before the start: the final bits are those of a quiet night."""
    quiet, loud = Night(tmp_path / "quiet", most=1), Night(tmp_path / "loud", most=1)
    for night in (quiet, loud):
        for number in range(BATCHES):
            night.drop(number)
    quiet.finish()
    disturbed(loud, MOMENTS, longest=9.0)
    for night in (quiet, loud):
        night.check_counts(BATCHES)
    assert loud.bits() == quiet.bits()


def test_the_recorded_specs_give_the_survivors_bits(tmp_path: Path) -> None:
    """Free coalescing, files that come at any time: the specs, run without a daemon, give the same bits."""
    night = Night(tmp_path / "night")
    rng = random.Random(SEED)
    night.watch()
    hits = 0
    for number in range(BATCHES):
        night.drop(number)
        hits += night.disturb(MOMENTS // BATCHES, rng, longest=9.0)
    night.finish()
    night.unwatch()
    assert hits > 0
    assert night.most_at_once == 1
    night.check_counts(BATCHES)
    audit = night.audit()
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert bits(night.replay(tmp_path / "replay")) == night.bits()


@pytest.mark.parametrize("seed", range(4 if LONG else 1))
def test_the_books_survive_many_kills(tmp_path: Path, seed: int) -> None:
    """The same with the fake trainer, whose weights are a hash over all that it saw, in order."""
    quiet, loud = Night(tmp_path / "quiet", most=1, fake=True), Night(tmp_path / "loud", most=1, fake=True)
    for night in (quiet, loud):
        for number in range(BATCHES):
            night.drop(number)
    quiet.finish()
    loud.watch()
    loud.disturb(3 * MOMENTS, random.Random(SEED + seed), longest=1.5)
    loud.finish()
    loud.unwatch()
    assert loud.most_at_once == 1
    for night in (quiet, loud):
        night.check_counts(BATCHES)
    assert loud.bits() == quiet.bits()
