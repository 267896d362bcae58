"""`[training.mix]`: old memories in a night's job, counted as replay and trained in no other way."""

import json
from pathlib import Path

import pytest

from daemon import ledger, losses
from daemon.home import Home
from daemon.ledger import jobs, memories
from daemon.ledger.rehearsal import rehearsal
from tests.unit.test_going_back import audit_is_clean, head
from tests.unit.test_service import drop, work
from trainer import names


def nights(home: Home, count: int, **mix: object) -> None:
    for number in range(count):
        drop(home, f"{number}.jsonl", *(f"thing {number} {n}" for n in range(4)))
        work(home, **{f"training__mix__{key}": value for key, value in mix.items()})


def test_half_of_a_job_is_rehearsal(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    nights(home, 3, replay=0.5)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert [jobs.uses_of(db, job) for job in (1, 2, 3)] == [
            {"new": 4}, {"new": 4, "replay": 4}, {"new": 4, "replay": 8}
        ]  # fmt: skip
        assert memories.trained_exactly_once(db) == 12
        assert [(row["samples"], row["steps"]) for row in jobs.promoted(db)] == [(8, 4), (16, 6), (16, 6)]
        folder = home.profile("me").jobs / str(jobs.promoted(db)[2]["folder"])
    samples = [json.loads(line) for line in (folder / names.SAMPLES).read_bytes().splitlines()]
    assert [one.get("use", "new") for one in samples] == ["new"] * 4 + ["replay"] * 8
    first, second = json.loads((folder / names.SPEC).read_bytes())["segments"]
    assert len(first) == len(second) == 8 and set(first) & set(second) == {0, 1, 2, 3}  # the old ones: in one each
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
        # Of job 4 the first four were last seen in job 3, as were all: then by the order of arrival.
        expected = {2: (1, 2, 3, 4), 3: (1, 2, 3, 4, 5, 6, 7, 8), 4: (1, 2, 3, 4, 5, 6, 7, 8)}
        wanted = [(job, seq) for job, seqs in expected.items() for seq in seqs]
        assert [(row["job"], row["memory"]) for row in rehearsed] == wanted
        assert sorted(rehearsal(db, 100, 1, "random")) == list(range(1, 17))


def test_without_it_nothing_is_rehearsed(home: Home) -> None:
    nights(home, 2)
    with ledger.open_profile(home.profile("me").ledger, write=False) as db:
        assert jobs.uses_of(db, 2) == {"new": 4}


def test_what_is_known_least_comes_first(home: Home) -> None:
    nights(home, 3, replay=0.5, strategy="highest_loss")
    with ledger.open_profile(home.profile("me").ledger, write=True) as db:
        assert db.number("SELECT count(*) FROM memory_losses WHERE loss < 2.0") == 12
        told = dict(losses.of_memories(home.profile("me").jobs / "3-finetune"))
        assert len(told) == 12  # four new and the eight old ones
        for id_, loss in told.items():
            row = db.one("SELECT l.loss, l.job FROM memory_losses l JOIN memories m ON m.seq=l.memory WHERE m.id=?",
                         (bytes.fromhex(id_),))  # fmt: skip
            assert row == {"loss": loss, "job": 3}
        with db.transaction():  # as after many more nights
            for job in range(4, 30):
                db.execute(
                    "INSERT INTO jobs (id, kind, state, folder, spec_sha256, steps, samples, created_at) "
                    "VALUES (?, 'finetune', 'promoted', ?, '', 1, 1, '')", (job, str(job))
                )  # fmt: skip
            db.execute("UPDATE memory_losses SET loss = memory, job = 29 WHERE memory > 10")
        assert rehearsal(db, 12, 1, "highest_loss")[-2:] == [11, 12]  # they rest: the others come before them
        with db.transaction():
            db.execute("UPDATE memory_losses SET loss = memory, job = 3")
            db.execute("UPDATE memories SET state='waiting' WHERE seq=12")  # the head went back
        assert rehearsal(db, 3, 1, "highest_loss") == [11, 10, 9]
        with db.transaction():
            db.execute("DELETE FROM memory_losses WHERE memory IN (5, 6)")  # nothing is known of them
        assert rehearsal(db, 3, 1, "highest_loss") == [5, 6, 11]
        assert rehearsal(db, 3, 1, "least_recently_rehearsed") == [5, 6, 1]


def test_losses_are_those_of_the_last_pass(tmp_path: Path) -> None:
    samples = [{"id": f"s{n}", "memory": memory, "messages": []} for n, memory in enumerate("aabc")] + [{"id": "x"}]
    (tmp_path / names.SAMPLES).write_text("".join(json.dumps(one) + "\n" for one in samples))
    assert list(losses.of_memories(tmp_path)) == []
    lines = [{"step": 1, "losses": [[0, 4.0], [2, 9.0]]}, {"step": 2, "losses": [[0, 1.0], [1, 2.0], [4, 7.0]]}]
    (tmp_path / names.LOSSES).write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"step": 3, "los')
    assert list(losses.of_memories(tmp_path)) == [("a", 1.5), ("b", 9.0)]


def test_each_is_drawn_as_often_as_any_other(tmp_path: Path) -> None:
    with ledger.open_profile(tmp_path / "ledger.db", write=True) as db:
        with db.transaction():
            db.execute("INSERT INTO batches (id, sha256, name, path, size, state, claimed_at) "
                       "VALUES (1, '', '', '', 0, 'done', '')")  # fmt: skip
            db.executemany(
                "INSERT INTO memories (seq, id, batch, state, type, source, content) VALUES (?, ?, 1, ?, '', '', 'x')",
                ((seq, seq.to_bytes(32, "big"), "trained" if seq % 4 else "skipped") for seq in range(1, 401)),
            )
        drawn = [seq for seed in range(400) for seq in rehearsal(db, 15, seed, "random")]
        assert rehearsal(db, 15, 3, "random") == rehearsal(db, 15, 3, "random")
        assert len(set(rehearsal(db, 15, 3, "random"))) == 15
        times = [drawn.count(seq) for seq in range(1, 401) if seq % 4]
        assert sum(times) == 6000 and min(times) > 3 and max(times) < 45  # 20 each on average
        assert sorted(rehearsal(db, 1000, 3, "random")) == [seq for seq in range(1, 401) if seq % 4]
