"""`[training.mix]`: old memories in a night's job, counted as replay and trained in no other way."""

import pytest

from daemon import ledger
from daemon.home import Home
from daemon.ledger import jobs, memories
from daemon.ledger.selection import rehearsal
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import drop, work


def nights(home: Home, count: int, **mix: object) -> None:
    for number in range(count):
        drop(home, f"{number}.jsonl", *(f"thing {number} {n}" for n in range(4)))
        work(home, **{f"training__mix__{key}": value for key, value in mix.items()})


def test_half_of_a_job_is_rehearsal(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    nights(home, 3, replay=0.5)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert [jobs.uses_of(db, job) for job in (1, 2, 3)] == [
            {"new": 4}, {"new": 4, "replay": 4}, {"new": 4, "replay": 4}
        ]  # fmt: skip
        assert memories.trained_exactly_once(db) == 12
    assert audit_is_clean(home, capsys)


def test_the_same_night_draws_the_same(home: Home, tmp_path: object) -> None:
    other = Home(home.root.parent / "other")
    nights(home, 3, replay=0.3)
    nights(other, 3, replay=0.3)
    assert head(home) == head(other)


def test_who_was_rehearsed_longest_ago_comes_first(home: Home) -> None:
    nights(home, 4, replay=0.5, strategy="least_recently_rehearsed")
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        rehearsed = db.all("SELECT job, memory FROM job_memories WHERE use='replay' ORDER BY job, memory")
        expected = {2: (1, 2, 3, 4), 3: (1, 2, 3, 4), 4: (5, 6, 7, 8)}  # of job 3 all were last seen in job 2
        wanted = [(job, seq) for job, seqs in expected.items() for seq in seqs]
        assert [(row["job"], row["memory"]) for row in rehearsed] == wanted
        assert rehearsal(db, 100, 1, "random") == list(range(1, 17))


def test_without_it_nothing_is_rehearsed(home: Home) -> None:
    nights(home, 2)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.uses_of(db, 2) == {"new": 4}
