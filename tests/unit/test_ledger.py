"""The ledger: legal moves only, migrations from the first schema, staged rows, ids that never come again."""

import sqlite3
from pathlib import Path

import pytest

from daemon import ledger, migrations
from daemon.ledger import Database, LedgerError, batches, memories, requests
from daemon.records import Memory, Turn

NOW = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return ledger.open_profile(tmp_path / "ledger.db", write=True)


def batch(db: Database, name: str = "a.json") -> int:
    with db.transaction():
        return batches.insert(db, sha256="0" * 64, name=name, path=f"0-{name}", size=1, mtime=None, now=NOW)


def stage(db: Database, number: int, *texts: str) -> int:
    with db.transaction():
        first = memories.last_seq(db) + 1
        batches.start_reading(db, number, first)
        rows = [Memory("journal", text) for text in texts]
        return memories.stage(db, number, [(m.id, m, "waiting", None, None) for m in rows])


def finish(db: Database, number: int) -> None:
    with db.transaction():
        batches.finish_reading(
            db, number, last_seq=memories.last_seq(db), duplicates=0, skipped=0, bad_items=0, now=NOW
        )


def test_staged_memories_are_seen_with_the_last_slice(db: Database) -> None:
    number = batch(db)
    assert stage(db, number, "one", "two") == 2
    assert memories.total(db) == 0 and not memories.any_waiting(db) and memories.waiting_batches(db) == []
    assert list(memories.listing(db)) == []
    finish(db, number)
    assert memories.total(db) == 2
    assert memories.waiting_batches(db) == [{"batch": number, "failures": 0, "waiting": 2}]


def test_a_known_memory_is_left_out(db: Database) -> None:
    first, second = batch(db), batch(db, "b.json")
    stage(db, first, "one", "two")
    finish(db, first)
    assert stage(db, second, "two", "three", "three") == 1


def test_a_memory_comes_back_as_it_was(db: Database) -> None:
    memory = Memory(
        "conversation", "And?", "Yes.", "yesterday", None, (Turn("user", "Is it?"), Turn("assistant", "…")),
        {"tool": "x"}, ("a", "b"), "dual", "origin", {"importance": 0.5},
    )  # fmt: skip
    number = batch(db)
    with db.transaction():
        batches.start_reading(db, number, 1)
        memories.stage(db, number, [(memory.id, memory, "waiting", None, None)])
    finish(db, number)
    ((seq, of, id_, found),) = memories.waiting_of(db, [number], 10)
    assert (seq, of, id_, found) == (1, number, memory.id, memory)
    assert found.id == memory.id


@pytest.mark.parametrize("table", sorted(migrations.MOVES))
def test_every_move_that_is_not_legal_is_an_error(tmp_path: Path, table: str) -> None:
    legal = set(migrations.MOVES[table])
    states = {state for move in legal for state in move}
    rows = {
        "batches": "INSERT INTO batches (id,sha256,name,path,size,state,claimed_at) VALUES (1,'','','',0,?,'')",
        "memories": "INSERT INTO memories (seq,id,batch,state,type,source,content) VALUES (1,x'00',1,?,'','','')",
        "jobs": "INSERT INTO jobs (id,kind,state,folder,spec_sha256,steps,samples,created_at) "
        "VALUES (1,'',?,'','',0,0,'')",
        "versions": "INSERT INTO versions (id,job,state,chain,step,checkpoint_sha256,created_at) "
        "VALUES (1,1,?,1,0,'','')",
        "requests": "INSERT INTO requests (id,profile,command,arguments,state,created_at) "
        "VALUES (1,'','','',?,'')",
        "slots": "INSERT INTO slots (task,profile,slot,state,due_at,claimed_at) VALUES ('','','',?,'','')",
    }
    home = table in ("requests", "slots")
    db = (ledger.open_home if home else ledger.open_profile)(tmp_path / "x.db", write=True)
    db.execute("PRAGMA foreign_keys=OFF")
    for old in states:
        for new in states - {old}:
            db.execute(f"DELETE FROM {table}")
            db.execute(rows[table], (old,))
            if (old, new) in legal:
                db.execute(f"UPDATE {table} SET state=?", (new,))
            else:
                with pytest.raises(sqlite3.IntegrityError, match="illegal move"):
                    db.execute(f"UPDATE {table} SET state=?", (new,))


def test_a_lost_update_is_an_error(db: Database) -> None:
    with pytest.raises(LedgerError), db.transaction():
        batches.start_reading(db, 99, 1)
    number = batch(db)
    stage(db, number, "one")
    finish(db, number)
    with pytest.raises(LedgerError), db.transaction():
        memories.freeze(db, [1, 7])
    assert batches.waiting_memories(db) == 1  # rolled back whole


def test_the_writer_migrates_and_the_reader_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    sqlite3.connect(path).close()
    with pytest.raises(ledger.Absent):  # made, but no step applied yet
        ledger.open_profile(path, write=False)
    ledger.open_profile(path, write=True).close()
    ledger.open_profile(path, write=False).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version=99")
    raw.close()
    for write in (False, True):
        with pytest.raises(migrations.SchemaError, match="newer engramd"):
            ledger.open_profile(path, write=write)


def test_a_step_that_fails_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    def broken(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE half (x)")
        raise RuntimeError

    raw = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    with pytest.raises(RuntimeError):
        migrations.migrate(raw, (migrations.m001_profile, broken), "x.db")
    assert migrations.version(raw) == 1
    assert not raw.execute("SELECT 1 FROM sqlite_master WHERE name='half'").fetchone()


def test_how_a_ledger_is_opened(db: Database) -> None:
    assert db.one("PRAGMA journal_mode") == {"journal_mode": "wal"}
    assert db.number("PRAGMA synchronous") == 2  # FULL
    assert db.number("PRAGMA secure_delete") == 1
    assert db.number("PRAGMA foreign_keys") == 1
    assert db.path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_a_ledger_that_goes_on(db: Database) -> None:
    """SQLite has rolled back by itself then: its own error must come through, and the next transaction begin."""
    db.execute(f"PRAGMA max_page_count={db.number('PRAGMA page_count')}")
    with pytest.raises(sqlite3.OperationalError, match="full") as caught, db.transaction():
        for number in range(2000):
            batches.insert(db, sha256="0" * 64, name="x" * 200, path=f"{number}", size=1, mtime=None, now=NOW)
    assert ledger.is_disk_trouble(caught.value)
    db.execute("PRAGMA max_page_count=1000000")
    assert batch(db) == 1
    with pytest.raises(sqlite3.OperationalError) as other:
        db.execute("SELECT nothing FROM nowhere")
    assert not ledger.is_disk_trouble(other.value)


def test_a_reader_cannot_write(db: Database) -> None:
    with ledger.open_profile(db.path, write=False) as reader, pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM batches")
    with pytest.raises(ledger.Absent):
        ledger.open_profile(db.path.with_name("none.db"), write=False)


def test_ids_never_come_again(tmp_path: Path) -> None:
    db = ledger.open_home(tmp_path / "home.db", write=True)
    assert [requests.next_id(db, "me", "job") for _ in range(3)] == [1, 2, 3]
    assert requests.next_id(db, "ada", "job") == 1 and requests.next_id(db, "me", "version") == 1


def test_unstaging_goes_in_slices(db: Database) -> None:
    first, second = batch(db), batch(db, "b.json")
    stage(db, first, "kept")
    finish(db, first)
    stage(db, second, *map(str, range(10)))
    with db.transaction():
        assert memories.unstage(db, 2, 4) == 6
        assert memories.unstage(db, 2, 100) == 0
    assert memories.last_seq(db) == 1
