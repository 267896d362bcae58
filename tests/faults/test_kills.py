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
MOMENTS = 30 if LONG else 2
BATCHES = 6 if LONG else 2
SEED = int(os.environ.get("ENGRAMD_FAULTS_SEED", "1"))

pytestmark = pytest.mark.faults


def disturbed(night: Night, moments: int, rng: random.Random, longest: float) -> int:
    """Kill at up to so many moments, then let it finish; gives how many kills found something to kill."""
    night.watch()
    hits = night.disturb(moments, rng, longest)
    night.finish()
    night.unwatch()
    assert night.most_at_once == 1, f"{night.most_at_once} trainers at once"
    audit = night.audit()
    assert audit.returncode == 0, audit.stdout + audit.stderr
    return hits


def test_bits_of_an_undisturbed_night(tmp_path: Path) -> None:
    """One batch a job, all files there before the start: the final bits are those of a quiet night.

    A night that is done before all kills have come is followed by another of the same files.
    """

    def night_of_all(name: str) -> Night:
        night = Night(tmp_path / name, most=1, forked=not LONG)
        for number in range(BATCHES):
            night.drop(number)
        return night

    quiet = night_of_all("quiet")
    quiet.finish()
    quiet.check_counts(BATCHES)
    rng, hits = random.Random(SEED), 0
    while hits < MOMENTS:
        loud = night_of_all(f"loud-{hits}")
        hits += disturbed(loud, MOMENTS - hits, rng, longest=9.0 if LONG else 4.0)
        loud.check_counts(BATCHES)
        assert loud.bits() == quiet.bits()


def test_the_recorded_specs_give_the_survivors_bits(tmp_path: Path) -> None:
    """Free coalescing, files that come at any time: the specs, run without a daemon, give the same bits."""
    night = Night(tmp_path / "night", forked=not LONG)
    rng, hits = random.Random(SEED), 0
    night.watch()
    for number in range(BATCHES):
        night.drop(number)
        hits += night.disturb(MOMENTS // BATCHES, rng, longest=9.0 if LONG else 4.0)
    hits += disturbed(night, MOMENTS - hits, rng, longest=3.0)
    assert hits > 0
    night.check_counts(BATCHES)
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
