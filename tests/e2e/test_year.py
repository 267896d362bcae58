"""A year of nights, monthly cycles and all that a person does in between: the books at its end, to the last memory.

`make test` has the first 120 nights with all that is special in them; ENGRAMD_FAULTS_LONG=1 (`make faults`) the year.
"""

import json
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from daemon import again, chains, disk, pruning, snapshots
from daemon.home import Home
from daemon.ledger import batches, jobs, lineage, memories, scores
from daemon.rules import mixing, retention
from tests.year import FIRST, Year, quiet

EPOCHS, REPLAY, ANCHOR = 2, 0.25, 0.25
SETTINGS: dict[str, Any] = {
    "training.mix.replay": REPLAY, "training.mix.strategy": "random", "training.mix.anchor": ANCHOR,
    "training.num_train_epochs": EPOCHS, "evaluation.held_out_percent": 5.0, "evaluation.held_out_from": 50,
    "schedule.cycles.monthly.when": "1st 03:30", "schedule.cycles.monthly.profile": "me",
    "schedule.cycles.monthly.days_recent": 30, "schedule.cycles.monthly.old_samples": 40,
}  # fmt: skip
ROUND = 120  # after so many days all that is special comes once more
FORETOLD = 24  # the night after which the most that the disk will ever hold is computed

pytestmark = pytest.mark.faults


def sizes(day: int) -> tuple[int, ...]:
    """The files of an evening: none at all, two, a large one, or one as on most days."""
    if day % 6 == 5:
        return ()
    if day % 9 == 4:
        return 2, 2
    return (8,) if day % 30 == 17 else (4,)


class Life:
    """What a person does in the course of a year, by the day."""

    def __init__(self, year: Year) -> None:
        self.year = year
        self.forgotten: list[str] = []
        self.undone: list[int] = []
        self.refused = self.despite = self.discarded = 0

    def day(self) -> bool:
        """One day and its night. Gives whether anything special happened."""
        year, day = self.year, self.year.day
        special = {
            25: lambda: self.bad_night(1), 40: lambda: self.bad_night(2), 47: self.discard, 55: self.promote_despite,
            65: self.specialist, 72: lambda: self.back(2, train_again=True), 80: self.forget,
            88: lambda: self.back(3, train_again=False), 91: self.retry, 97: year.restart, 105: self.specialist,
        }.get(day % ROUND)  # fmt: skip
        if day == 20:
            year.ask("profile_add", name="ada")
        if special:
            special()
        year.night(*sizes(day), others=2 if day > 20 and day % 8 == 0 else 0)
        return special is not None

    def bad_night(self, jobs_refused: int) -> None:
        """One job: the file is learnt when it is tried alone. Two: it is held until a person decides."""
        self.year.poison(jobs_refused)
        self.year.drop(4)
        self.year.settle()
        self.refused += jobs_refused

    def discard(self) -> None:
        for row in batches.in_state(self.year.db, "held"):
            self.year.ask("discard", batch=row["id"])
            self.discarded += 4

    def promote_despite(self) -> None:
        self.bad_night(2)
        row = scores.newest_refused(self.year.db)
        assert row is not None
        self.year.ask("promote", version=row["id"], despite="the questions were wrong")
        self.refused, self.despite = self.refused - 1, self.despite + 1

    def specialist(self) -> None:
        told = self.year.ask("cycle", mode="emulation", max_samples=40)
        assert (told["line"], told["state"]) == ("emulation", "promoted")

    def back(self, versions: int, *, train_again: bool) -> None:
        line = lineage.line(self.year.db, head(self.year)["version"])
        told = self.year.ask("rollback", version=line[versions], train_again=train_again, line="")
        assert told["undone"] == sorted(line[:versions])
        self.undone += told["undone"]

    def retry(self) -> None:
        held = batches.in_state(self.year.db, "held")
        assert held, "going back has held them"
        for row in held:
            self.year.ask("retry", batch=row["id"])

    def forget(self) -> None:
        """One from long ago and one of the last days; both were in several jobs."""
        rows = self.year.db.all("SELECT lower(hex(id)) AS id FROM memories WHERE state='trained' ORDER BY seq")
        ids = [rows[9]["id"], rows[-3]["id"]]
        told = self.year.ask("forget", ids=ids, batch=None, source=None)
        assert told["memories"] == 2 and len(told["learnt_by"]) > 2
        self.forgotten += ids


def head(year: Year) -> dict[str, Any]:
    found = jobs.get_head(year.db)
    assert found is not None
    return found


def main_line(year: Year) -> list[dict[str, Any]]:
    """The versions below the head, the newest first."""
    found = [jobs.version(year.db, one) for one in lineage.line(year.db, head(year)["version"])]
    return [row for row in found if row]


def check_memories(year: Year, life: Life) -> Counter[str]:
    """Nothing is lost, nothing is trained twice or outside the plan. Gives how many memories are in which state."""
    db, states = year.db, Counter(memories.counts(year.db)["state"])
    assert states.total() == year.told.dropped["me"]
    assert memories.trained_exactly_once(db) == states["trained"]
    assert states.keys() <= {"trained", "held_out", "discarded", "forgotten", "held"}
    assert states["discarded"] <= life.discarded and states["forgotten"] == len(life.forgotten)
    below = {row["job"] for row in main_line(year)}
    news = Counter[int]()
    for row in db.all("SELECT job, memory FROM job_memories WHERE use='new'"):
        news[row["memory"]] += row["job"] in below
    for row in db.all("SELECT seq, state FROM memories"):
        assert news[row["seq"]] == (row["state"] in ("trained", "forgotten")), dict(row)
    for job, passes in year.told.passes.items():
        rows = db.all("SELECT lower(hex(id)) AS id, use, samples, seq FROM job_memories "
                      "JOIN memories ON seq=memory WHERE job=?", (job,))  # fmt: skip
        assert {row["id"] for row in rows} == passes.keys()
        for row in rows:
            most = EPOCHS * row["samples"]
            assert (most if row["use"] == "new" else 1) <= passes[row["id"]] <= most, (job, dict(row))
    return states


def check_lineage(year: Year, life: Life) -> Counter[str]:
    """Numbers are given once, and each line is straight down to the base. Gives how many versions are in which state,
    of all lines."""
    db, rows = year.db, jobs.versions(year.db)
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1)) == sorted(year.told.versions)
    states = Counter(row["state"] for row in rows)
    assert states["refused"] == life.refused and sum(bool(row["despite"]) for row in rows) == life.despite
    assert {row["id"] for row in rows if row["state"] == "undone"} == set(life.undone)
    for line, at in jobs.heads(db).items():
        below = lineage.line(db, at["version"])
        of_line = [row for row in rows if row["line"] == line and row["state"] == "promoted"]
        assert below == sorted((row["id"] for row in of_line), reverse=True)
        before = None
        for row in of_line:
            job = jobs.get(db, row["job"])
            assert job is not None and row["parent"] == (before["id"] if before else None)
            assert job["parent_sha256"] == (before["checkpoint_sha256"] if before else None)
            before = row
    told = json.loads(year.world().paths.registry.read_text())
    assert [one["version"] for one in told["training_history"]] == [row["id"] for row in rows]
    assert told["heads"] == jobs.heads(db)
    return states


def expected(new: list[int], begun: int = 0) -> float:
    """As `mixing.expected_passes`, for nights of such sizes: how often a memory of the night `begun` is trained."""
    before, found = sum(new[: begun + 1]), 1.0
    for count in new[begun + 1 :]:
        found += min(1.0, mixing.per_epoch(count, REPLAY, ANCHOR)[0] / before)
        before += count
    return EPOCHS * found


def check_replays(year: Year) -> str:
    """How often the memories of the first nights were trained by nights, and how often any was by cycles."""
    db = year.db
    nights, cycles = list[int](), list[int]()
    for row in reversed(main_line(year)):
        job = jobs.get(db, row["job"])
        assert job is not None
        (nights if job["cycle"] is None else cycles).append(job["id"])
    by_nights, by_cycles = (sum((year.told.passes[job] for job in of), Counter[str]()) for of in (nights, cycles))
    new = [jobs.uses_of(db, job)["new"] for job in nights]
    first = db.all("SELECT lower(hex(id)) AS id, job FROM memories JOIN job_memories ON memory=seq "
                   "WHERE use='new' AND state='trained' AND job<=? ORDER BY seq", (nights[9],))  # fmt: skip
    of_nights = [row for row in first if row["job"] in nights]
    mean = fmean(by_nights[row["id"]] for row in of_nights)
    told = fmean(expected(new, nights.index(row["job"])) for row in of_nights)
    most, equal = expected(new), mixing.expected_passes(len(new), EPOCHS, REPLAY, ANCHOR)
    assert abs(mean - told) < 0.15 * told, (mean, told)
    assert abs(most - equal) < 0.15 * equal and max(by_nights.values()) <= 2 * most, (most, equal)
    assert max(by_cycles.values()) <= EPOCHS * len(cycles)
    return (f"passes of a memory of the first 10 nights: {mean:.2f}, expected {told:.2f}; of the first night expected "
            f"{most:.2f} (with nights of equal size {equal:.2f}), of any at most {max(by_nights.values())}; "
            f"in {len(cycles)} cycles at most {max(by_cycles.values())} more")  # fmt: skip


def check_rebuilds(year: Year, life: Life, place: Path) -> str:
    """The dataset of every version is made again, bit for bit, but for what was forgotten."""
    db, same, other = year.db, 0, 0
    place.mkdir()
    for row in jobs.versions(db):
        found = again.rebuild(year.world(), row["job"], place / f"{row['id']}.jsonl")
        had = len(set(life.forgotten) & year.told.passes[row["job"]].keys())
        assert found.recorded is not None and found.forgotten == had, row["id"]
        if had:
            assert found.why == f"{had} of its memories were forgotten since"
            other += 1
        else:
            assert (found.sha256, found.why) == (found.recorded, None), row["id"]
            same += 1
    assert same > other
    return f"datasets made again: {same} bit for bit, {other} but for what was forgotten"


def taken(year: Year) -> retention.Sizes:
    """What the things of `me` take by now: the newest snapshot's and the newest version's."""
    paths, row = year.world().paths, main_line(year)[0]
    newest = year.home.snapshots / snapshots.names_in(year.home.snapshots)[-1]
    books, _, rest = disk.used_bytes([newest / "ledger.db", newest / "chains", newest]).values()
    folder = paths.jobs / f"{row['job']}-finetune"
    records = [entry for entry in folder.iterdir() if entry.name in pruning.RECORDS]
    record, job = sum(disk.used_bytes(records).values()), disk.used_bytes([folder])[folder]
    point = paths.chains / str(row["chain"]) / f"checkpoint-{row['step']}"
    archive = disk.used_bytes([paths.archive, paths.registry])
    return retention.Sizes(disk.used_bytes([point])[point], job, record, books, rest, sum(archive.values()))


def bound(year: Year, before: retention.Sizes, days: int) -> int:
    """The most that `me` will ever take, foretold from two looks at the first nights: what has grown between them goes
    on to grow. Beside the nights of the policy's bound: each refused version keeps its checkpoint, and a specialist
    has a chain of its own, as has each going back."""
    keep, world, now = year.world().settings.retention, year.world(), taken(year)
    each = {
        name: size + (size - getattr(before, name)) * (days - FORETOLD) // (FORETOLD - FORETOLD // 2)
        for name, size in asdict(now).items()
    }  # fmt: skip
    grown = retention.Sizes(**each | {"checkpoint": now.checkpoint, "record": now.record})
    rounds = -(-days // ROUND)
    beside = rounds * 5 + (1 + 2 * rounds) * world.most_checkpoints
    return now.checkpoint * beside + retention.bound(
        keep.snapshots, keep.jobs, grown, checkpoints=world.most_checkpoints, days=days
    )  # fmt: skip


def check_the_other(year: Year) -> None:
    """The second profile has its own, and all of it."""
    db = year.world("ada").db
    states = memories.counts(db)["state"]
    assert states["trained"] + states.get("held_out", 0) == year.told.dropped["ada"] > 10
    assert memories.trained_exactly_once(db) == states["trained"]
    assert set(lineage.line(db, (jobs.get_head(db) or {})["version"])) == {row["id"] for row in jobs.versions(db)}


def check_kept(year: Year, days: int) -> list[str]:
    """The schedule has taken a snapshot each day, and pruned as the policy says. Gives the dates that are left."""
    kept, world = snapshots.names_in(year.home.snapshots), year.world()
    assert kept[-1] == f"{FIRST + timedelta(days=days - 1):%Y-%m-%d}"
    assert len(kept) <= retention.most_kept(world.settings.retention.snapshots)
    assert len(chains.steps(world.paths.chains, head(year)["chain"])) == world.most_checkpoints
    if days == 365:
        assert "2026-06-30" in kept and "2026-06-29" not in kept
    return kept


def test_a_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long_faults: bool) -> None:
    days = 365 if long_faults else 110
    with quiet():
        year = Year(Home(tmp_path / "home"), monkeypatch, SETTINGS)
        life, most, early = Life(year), 0, retention.Sizes(0, 0, 0, 0)
        for day in range(days):
            if life.day() or day % 30 == 29:
                assert year.findings() == []
            if day == FORETOLD // 2:
                early = taken(year)
            elif day == FORETOLD:
                most = bound(year, early, days)
        states, versions = check_memories(year, life), check_lineage(year, life)
        told = [check_replays(year), check_rebuilds(year, life, tmp_path / "again")]
        check_the_other(year)
        kept = check_kept(year, days)
        year.close()
    print(f"{days} nights: memories {dict(states)}; versions {dict(versions)}; {len(kept)} snapshots")
    print(*told, f"bound {most:,}, peak {year.told.peak:,}, ratio {most / year.told.peak:.2f}", sep="\n")
    loose = 1.5 if days >= 365 else 2.0  # the policy's bound counts the months of a whole year
    assert year.told.peak <= most <= loose * year.told.peak
