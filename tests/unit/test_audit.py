"""The audit: silent over a home that the service itself made, one finding for each way to break it."""

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import chains, inbox, ledger
from daemon.audit import Audit, Finding
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from tests.forked_trainer import fake

FAKE = fake()
QUICK = {
    "inbox.quiet_seconds": 0.05, "inbox.scan_seconds": 0.1, "service.tick_seconds": 0.02,
    "training.mix.replay": 0.0, "training.mix.anchor": 0.0,
    "training.base_model": "builtin:tiny", "training.gradient_accumulation_steps": 3,
    "training.num_train_epochs": 2,
}  # fmt: skip


def _work(home: Home, *files: tuple[str, str]) -> None:
    home.inbox.mkdir(parents=True, exist_ok=True)
    for name, text in files:
        (home.inbox / name).write_text(text)
    lock = Lock(home)
    try:
        service = Service(home, load(home, QUICK, {}), trainer=FAKE)
        deadline = time.monotonic() + 60
        service.run(until=lambda: service.idle() or time.monotonic() > deadline)
    finally:
        lock.release()


def _lines(*names: str) -> str:
    return "".join(json.dumps({"prompt": f"Who is {n}?", "response": f"{n} is a friend."}) + "\n" for n in names)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two jobs, one refused file, one folder as a batch; made by the service itself."""
    home = Home(tmp_path_factory.mktemp("grown") / "home")
    (home.inbox / "notes").mkdir(parents=True)
    (home.inbox / "notes" / "one.md").write_text("# A day\n\nWe walked along the river.\n")
    _work(home, ("a.jsonl", _lines("Ann", "Ben", "Cid", "Dot")), ("torn.json", '{"messages": [{"role'))
    _work(home, ("b.jsonl", _lines("Eve", "Fay")))
    return home


@pytest.fixture
def home(grown: Home, tmp_path: Path) -> Home:
    shutil.copytree(grown.root, tmp_path / "home", symlinks=True)
    return Home(tmp_path / "home")


def _audit(home: Home, *, runs: bool = False, pause: Callable[[], None] = lambda: None) -> tuple[list[Finding], Audit]:
    paths = home.profile("me")
    with (
        ledger.open_profile(paths.ledger, write=False) as db,
        ledger.open_home(home.database, write=False) as home_db,
    ):
        audit = Audit(
            paths, db, home_db, chains.why_damaged, inbox.folder_sha256, runs, pause=pause
        )
        return audit.run(), audit


def _problems(home: Home) -> list[str]:
    return [finding.problem for finding in _audit(home)[0]]


def _change(home: Home, sql: str, *values: Any) -> None:
    """Past every guard: what a bug or a careless hand could do."""
    db = sqlite3.connect(home.profile("me").ledger, isolation_level=None)
    for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
        db.execute(f"DROP TRIGGER {trigger}")
    assert db.execute(sql, values).rowcount
    db.close()


def _one(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def test_a_home_that_the_service_made_is_clean(home: Home) -> None:
    findings, audit = _audit(home)
    assert findings == []
    assert audit.notes == []


def test_a_refused_file_that_a_person_took_away_is_a_note(home: Home) -> None:
    _one(home.profile("me").failed, "torn.json").unlink()
    findings, audit = _audit(home)
    assert findings == []
    assert "torn.json" in audit.notes[0]


BROKEN_ROWS = {
    "twice": (
        "INSERT INTO job_memories SELECT 2, memory, use, samples FROM job_memories WHERE job=1 LIMIT 1",
        "is trained, but `new` in 2 promoted jobs",
    ),
    "trained, said to wait": (
        "UPDATE memories SET state='waiting' WHERE seq=1", "is waiting, but `new` in 1 promoted jobs"
    ),
    "frozen in no open job": (
        "UPDATE memories SET state='frozen' WHERE seq=1", "is frozen, but `new` in 1 promoted jobs"
    ),
    "held in no bad job": ("UPDATE memories SET state='held' WHERE seq=1", "is held, but `new` in 1 promoted jobs"),
    "a memory gone from its batch": ("UPDATE batches SET memories=memories+1 WHERE name='a.jsonl'", "are there"),
    "a memory that waits in a batch that is done": (
        "UPDATE batches SET state='discarded' WHERE id=(SELECT batch FROM memories WHERE state='waiting')",
        "1 of them are not settled",
    ),
    "steps": ("UPDATE jobs SET steps=steps+1 WHERE id=2", "steps from its parent to its checkpoint"),
    "samples": ("UPDATE jobs SET samples=samples+1 WHERE id=2", "its segments use samples"),
    "samples of a memory": ("UPDATE job_memories SET samples=9 WHERE job=2", "are counted for its memories"),
    "spec": ("UPDATE jobs SET spec_sha256='0' WHERE id=2", "is not the one that was frozen"),
    "parent": ("UPDATE jobs SET parent_sha256='0' WHERE id=2", "did not start from the checkpoint of job 1"),
    "head": ("UPDATE heads SET version=1", "the head is v1, but the newest promoted version is v2"),
    "no head": ("DELETE FROM heads", "job 2 is promoted, but there is no head"),
    "version": ("UPDATE versions SET state='candidate' WHERE id=2", "is promoted, but its version is not"),
    "checkpoint row": ("DELETE FROM checkpoints WHERE job=2", "its checkpoint is not recorded"),
    "number": ("UPDATE versions SET id=9 WHERE id=2", "version 9 is above the mark 2"),
    "dangling": ("UPDATE job_batches SET batch=77 WHERE job=2", "ledger.db is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_row_that_contradicts_another_is_found(home: Home, name: str) -> None:
    sql, problem = BROKEN_ROWS[name]
    if "waits" in name:
        _change(home, "UPDATE memories SET state='waiting' WHERE seq=1")
    _change(home, sql)
    assert any(problem in found for found in _problems(home)), _problems(home)


def _break_archive(home: Home) -> None:
    path = _one(home.profile("me").archive, "*/*-a.jsonl")
    path.chmod(0o600)
    path.write_text(path.read_text() + " ")


def _break_folder_batch(home: Home) -> None:
    _one(home.profile("me").archive, "*/*-notes/one.md").write_text("something else")


def _lose_archived(home: Home) -> None:
    _one(home.profile("me").archive, "*/*-b.jsonl").unlink()


def _back_to_claimed(home: Home) -> None:
    path = _one(home.profile("me").archive, "*/*-b.jsonl")
    path.rename(home.profile("me").claimed / path.name)


def _unknown_claimed(home: Home) -> None:
    sha256 = hashlib.sha256(b"x").hexdigest()
    (home.profile("me").claimed / f"{sha256}-x.json").write_text("x")


def _unknown_archived(home: Home) -> None:
    (_one(home.profile("me").archive, "*/*-b.jsonl").parent / "stranger.json").write_text("x")


def _job(home: Home, number: int) -> Path:
    return home.profile("me").jobs / f"{number}-finetune"


def _rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def _lose_job(home: Home) -> None:
    shutil.rmtree(_job(home, 1))


def _unknown_job(home: Home) -> None:
    shutil.copytree(_job(home, 1), home.profile("me").jobs / "7-finetune")


def _break_spec(home: Home) -> None:
    path = _job(home, 2) / "spec.json"
    _rewrite(path, path.read_bytes() + b" ")


def _break_samples(home: Home) -> None:
    path = _job(home, 2) / "samples.jsonl"
    _rewrite(path, path.read_bytes().replace(b"Eve", b"Eva"))


def _drop_a_use(home: Home) -> None:
    path = _job(home, 2) / "spec.json"
    spec = json.loads(path.read_bytes())
    spec["segments"][1][0] = spec["segments"][1][1]
    data = json.dumps(spec).encode()
    _rewrite(path, data)
    _change(home, "UPDATE jobs SET spec_sha256=? WHERE id=2", hashlib.sha256(data).hexdigest())


def _head_folder(home: Home) -> Path:
    found = (home.profile("me").chains / "1").glob("checkpoint-*")
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]))


def _break_weights(home: Home) -> None:
    _rewrite(_head_folder(home) / "adapter_model.safetensors", b"other weights")


def _break_manifest(home: Home) -> None:
    path = _head_folder(home) / "manifest.json"
    _rewrite(path, path.read_bytes() + b"\n")


def _lose_head(home: Home) -> None:
    shutil.rmtree(_head_folder(home))


def _unknown_checkpoint(home: Home) -> None:
    shutil.copytree(_head_folder(home), home.profile("me").chains / "1" / "checkpoint-999")


def _unknown_chain(home: Home) -> None:
    (home.profile("me").chains / "5").mkdir()


def _wrong_link(home: Home) -> None:
    link = home.profile("me").current_model
    link.unlink()
    link.symlink_to("chains/5")


def _no_link(home: Home) -> None:
    home.profile("me").current_model.unlink()


def _leftover(home: Home) -> None:
    (home.profile("me").claimed / ".engramd-tmp-0011").write_text("half")


def _leftover_in_job(home: Home) -> None:
    (_job(home, 1) / ".tmp-checkpoint-3").mkdir()


BROKEN_FILES: dict[Callable[[Home], None], str] = {
    _break_archive: "does not hold what was dropped",
    _break_folder_batch: "does not hold what was dropped",
    _lose_archived: "in no folder of archive/",
    _back_to_claimed: "still in claimed/",
    _unknown_claimed: "-x.json is known to no batch",
    _unknown_archived: "stranger.json is known to no batch",
    _lose_job: "job 1 is promoted, but its folder is missing",
    _unknown_job: "is the folder of no recorded job",
    _break_spec: "is not the one that was frozen",
    _break_samples: "is not the one that spec.json names",
    _drop_a_use: "samples are not used exactly 2 times",
    _break_weights: "is damaged",
    _break_manifest: "is not the one that the ledger knows",
    _lose_head: "the head's checkpoint",
    _unknown_checkpoint: "is no recorded checkpoint",
    _unknown_chain: "is the folder of no recorded chain",
    _wrong_link: "leads to",
    _no_link: "is no symlink to",
    _leftover: "was left by a writer",
    _leftover_in_job: "was left by a writer",
}


@pytest.mark.parametrize("harm", BROKEN_FILES, ids=lambda harm: harm.__name__.strip("_"))
def test_a_disk_that_contradicts_the_ledger_is_found(home: Home, harm: Callable[[Home], None]) -> None:
    harm(home)
    problems = _problems(home)
    assert any(BROKEN_FILES[harm] in problem for problem in problems), problems


def test_beside_a_daemon_only_what_stays_is_a_finding(home: Home) -> None:
    path = _one(home.profile("me").archive, "*/*-b.jsonl")
    moved = home.profile("me").claimed / path.name
    path.rename(moved)

    findings, _ = _audit(home, runs=True, pause=lambda: moved.rename(path) and None)
    assert findings == []

    path.rename(moved)
    findings, _ = _audit(home, runs=True)
    assert [finding.check for finding in findings] == ["files"]


def test_beside_a_daemon_young_temporary_files_are_its_own(home: Home) -> None:
    _leftover(home)
    assert _audit(home, runs=True)[0] == []
    assert _audit(home)[0] != []


def test_the_audit_writes_nothing(home: Home) -> None:
    def state() -> dict[str, int]:
        skipped = (".db-wal", ".db-shm")
        files = (p for p in home.root.rglob("*") if p.is_file() and not p.name.endswith(skipped))
        return {str(p): p.lstat().st_mtime_ns for p in files}

    before = state()
    _problems(home)
    assert state() == before
