"""Schemas, as small named steps. A step never changes once it has landed; the next one is added below it.

Each database keeps its version in `PRAGMA user_version`. The holder of the home's lock applies what is
missing when it opens a database; a reader that meets an older or newer schema says so.
"""

import sqlite3
from collections.abc import Callable, Sequence

Step = Callable[[sqlite3.Connection], None]

# Legal moves of each state machine. Triggers refuse every other one, whoever writes.
MOVES: dict[str, tuple[tuple[str, str], ...]] = {
    "batches": (
        ("claimed", "reading"),
        ("reading", "claimed"),  # a start finds a half-read file: it is read again from its beginning
        ("reading", "read"),
        ("reading", "refused"),
        ("reading", "needs_owner"),  # a chat of which nobody has said who is "me"
        ("needs_owner", "claimed"),
        ("needs_owner", "discarded"),
        ("read", "done"),
        ("done", "read"),  # other settings of curation let a memory of it pass after all
        ("read", "held"),
        ("held", "read"),
        ("held", "discarded"),
    ),
    "memories": (
        ("waiting", "frozen"),
        ("waiting", "skipped"),
        ("skipped", "waiting"),
        ("waiting", "discarded"),
        ("frozen", "trained"),
        ("frozen", "held"),
        ("frozen", "waiting"),
        ("held", "waiting"),
        ("held", "discarded"),
        ("trained", "waiting"),  # the head went back to before it was trained
        ("trained", "held"),  # and a person decides whether it is trained again
        *((state, "trained") for state in ("waiting", "skipped", "held", "discarded")),  # and on again
        *((state, "forgotten") for state in ("waiting", "held", "held_out", "skipped", "trained", "discarded")),
    ),
    "jobs": (
        ("frozen", "running"),
        ("frozen", "failed"),
        ("frozen", "forgotten"),  # a memory in it was forgotten: its batches are frozen anew without it
        ("running", "frozen"),
        ("running", "finished"),
        ("running", "failed"),
        ("finished", "promoted"),
        ("finished", "refused"),
        ("finished", "done"),  # it was no finetune: there is nothing to judge
        ("finished", "failed"),  # an export that is not what its result says
        ("refused", "promoted"),  # a person said so
        ("promoted", "undone"),  # the head went back to before it
        ("undone", "promoted"),
        ("frozen", "undone"),  # frozen on a head that is no longer it
    ),
    "versions": (
        ("candidate", "promoted"),
        ("candidate", "refused"),
        ("refused", "promoted"),
        ("promoted", "undone"),
        ("undone", "promoted"),
    ),
    "slots": (("claimed", "done"), ("claimed", "failed")),
    "requests": (("waiting", "running"), ("running", "waiting"), ("running", "done"), ("running", "failed")),
}


def _guard(db: sqlite3.Connection, table: str) -> None:
    legal = " OR ".join(f"(OLD.state='{old}' AND NEW.state='{new}')" for old, new in MOVES[table])
    db.execute(
        f"""CREATE TRIGGER {table}_legal_moves BEFORE UPDATE OF state ON {table}
        WHEN OLD.state <> NEW.state AND NOT ({legal})
        BEGIN SELECT RAISE(ABORT, 'illegal move in {table}'); END"""
    )


def m001_profile(db: sqlite3.Connection) -> None:
    """The first schema of a profile's ledger."""
    for statement in (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE batches (
            id INTEGER PRIMARY KEY AUTOINCREMENT, sha256 TEXT NOT NULL, name TEXT NOT NULL,
            path TEXT NOT NULL, size INTEGER NOT NULL, mtime REAL, state TEXT NOT NULL, reason TEXT,
            claimed_at TEXT NOT NULL, read_at TEXT, first_seq INTEGER, last_seq INTEGER,
            memories INTEGER NOT NULL DEFAULT 0, duplicates INTEGER NOT NULL DEFAULT 0,
            skipped INTEGER NOT NULL DEFAULT 0, bad_items INTEGER NOT NULL DEFAULT 0,
            failures INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX batches_path ON batches(path)",
        "CREATE INDEX batches_state ON batches(state, id)",
        """CREATE TABLE memories (
            seq INTEGER PRIMARY KEY, id BLOB NOT NULL, batch INTEGER NOT NULL REFERENCES batches(id),
            state TEXT NOT NULL, reason TEXT, type TEXT NOT NULL, source TEXT NOT NULL,
            timestamp TEXT, time TEXT, mode TEXT, content TEXT NOT NULL, response TEXT, detail TEXT)""",
        "CREATE UNIQUE INDEX memories_id ON memories(id)",
        "CREATE INDEX memories_waiting ON memories(seq) WHERE state='waiting'",
        """CREATE TABLE chains (
            id INTEGER PRIMARY KEY, key_sha256 TEXT NOT NULL, key TEXT NOT NULL, reason TEXT NOT NULL,
            created_at TEXT NOT NULL)""",
        """CREATE TABLE jobs (
            id INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, reason TEXT,
            folder TEXT NOT NULL, spec_sha256 TEXT NOT NULL, chain INTEGER REFERENCES chains(id),
            parent_sha256 TEXT, parent_step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL,
            samples INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
            kills INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
            exit_code INTEGER, pid INTEGER, pid_start REAL, result TEXT)""",
        "CREATE INDEX jobs_open ON jobs(state) WHERE state IN ('frozen','running','finished')",
        """CREATE TABLE job_memories (
            job INTEGER NOT NULL REFERENCES jobs(id), memory INTEGER NOT NULL REFERENCES memories(seq),
            use TEXT NOT NULL, samples INTEGER NOT NULL, PRIMARY KEY (job, memory, use)) WITHOUT ROWID""",
        "CREATE INDEX job_memories_memory ON job_memories(memory)",
        """CREATE TABLE job_batches (
            job INTEGER NOT NULL REFERENCES jobs(id), batch INTEGER NOT NULL REFERENCES batches(id),
            PRIMARY KEY (job, batch)) WITHOUT ROWID""",
        """CREATE TABLE checkpoints (
            chain INTEGER NOT NULL REFERENCES chains(id), step INTEGER NOT NULL, sha256 TEXT NOT NULL,
            job INTEGER NOT NULL REFERENCES jobs(id), created_at TEXT NOT NULL,
            PRIMARY KEY (chain, step)) WITHOUT ROWID""",
        """CREATE TABLE versions (
            id INTEGER PRIMARY KEY, job INTEGER NOT NULL UNIQUE REFERENCES jobs(id), state TEXT NOT NULL,
            reason TEXT, parent INTEGER REFERENCES versions(id), chain INTEGER NOT NULL REFERENCES chains(id),
            step INTEGER NOT NULL, checkpoint_sha256 TEXT NOT NULL, created_at TEXT NOT NULL,
            decided_at TEXT)""",
        """CREATE TABLE head (
            one INTEGER PRIMARY KEY CHECK (one = 1), chain INTEGER NOT NULL REFERENCES chains(id),
            step INTEGER NOT NULL, sha256 TEXT NOT NULL, version INTEGER NOT NULL REFERENCES versions(id))""",
    ):
        db.execute(statement)
    for table in ("batches", "memories", "jobs", "versions"):
        _guard(db, table)


def m001_home(db: sqlite3.Connection) -> None:
    """The first schema of `home.db`."""
    for statement in (
        """CREATE TABLE requests (
            id INTEGER PRIMARY KEY AUTOINCREMENT, profile TEXT NOT NULL, command TEXT NOT NULL,
            arguments TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', answer TEXT,
            created_at TEXT NOT NULL, finished_at TEXT)""",
        "CREATE INDEX requests_open ON requests(state, id) WHERE state IN ('waiting','running')",
        """CREATE TABLE high_water (
            profile TEXT NOT NULL, kind TEXT NOT NULL, value INTEGER NOT NULL,
            PRIMARY KEY (profile, kind)) WITHOUT ROWID""",
    ):
        db.execute(statement)
    _guard(db, "requests")


def m002_exports(db: sqlite3.Connection) -> None:
    """Messages of exports as units, texts that recur, near duplicates, and what was forgotten."""
    for statement in (
        "ALTER TABLE memories ADD COLUMN conversation TEXT",
        "ALTER TABLE memories ADD COLUMN speaker TEXT",
        "ALTER TABLE memories ADD COLUMN zone_known INTEGER NOT NULL DEFAULT 1",
        # Of the learnt text, normalised: 63 bits of a hash, NULL in rows from before this schema.
        "ALTER TABLE memories ADD COLUMN text_key INTEGER",
        "CREATE INDEX memories_text ON memories(text_key)",
        """CREATE TABLE messages (
            key BLOB NOT NULL, digest BLOB NOT NULL, memory INTEGER NOT NULL,
            PRIMARY KEY (key, digest)) WITHOUT ROWID""",
        """CREATE TABLE near_bands (
            band INTEGER NOT NULL, memory INTEGER NOT NULL, PRIMARY KEY (band, memory)) WITHOUT ROWID""",
        """CREATE TABLE redactions (
            id INTEGER PRIMARY KEY, at TEXT NOT NULL, path TEXT NOT NULL, old_sha256 TEXT, new_sha256 TEXT,
            reason TEXT NOT NULL)""",
        # Hashes of forgotten lines, so that they do not come back as the context of something else.
        "CREATE TABLE forgotten_lines (digest BLOB PRIMARY KEY) WITHOUT ROWID",
        "ALTER TABLE batches ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0",  # things in its file that were
        "DROP TRIGGER batches_legal_moves",
        "DROP TRIGGER memories_legal_moves",
        "DROP TRIGGER jobs_legal_moves",
    ):
        db.execute(statement)
    for table in ("batches", "memories", "jobs"):
        _guard(db, table)


def m003_nights(db: sqlite3.Connection) -> None:
    """Going back, and what retention must not take."""
    for statement in (
        *(f"DROP TRIGGER {table}_legal_moves" for table in ("memories", "jobs", "versions")),
        "CREATE INDEX memories_trained ON memories(time) WHERE state='trained'",  # what a cycle selects from
        # Each time that the head went anywhere else than on to the next job's checkpoint.
        """CREATE TABLE head_moves (
            id INTEGER PRIMARY KEY, at TEXT NOT NULL, reason TEXT NOT NULL, from_chain INTEGER, from_step INTEGER,
            to_chain INTEGER, to_step INTEGER, untrained INTEGER NOT NULL DEFAULT 0)""",
        "ALTER TABLE jobs ADD COLUMN cycle TEXT",  # how a cycle's memories were selected, as JSON
        "ALTER TABLE jobs ADD COLUMN pruned_at TEXT",  # since when only the records are left of its folder
        # `kind` is snapshot, version or job; `name` is its date or its number.
        """CREATE TABLE pins (
            kind TEXT NOT NULL, name TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID""",
    ):
        db.execute(statement)
    for table in ("memories", "jobs", "versions"):
        _guard(db, table)


def m004_learning(db: sqlite3.Connection) -> None:
    """Lines beside the main one, scores of versions, the gate's figures, losses of memories."""
    for statement in (
        *(f"DROP TRIGGER {table}_legal_moves" for table in ("jobs", "versions")),
        # A line is named by its specialist or method, such as "emulation" or "full"; '' is the main one.
        "ALTER TABLE jobs ADD COLUMN line TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN anchors INTEGER NOT NULL DEFAULT 0",  # samples of general text in it
        "ALTER TABLE versions ADD COLUMN line TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE versions ADD COLUMN weights TEXT NOT NULL DEFAULT 'raw'",  # raw or ema: those relied on
        "ALTER TABLE versions ADD COLUMN gate TEXT",  # what the verdict rests on, as JSON
        "ALTER TABLE versions ADD COLUMN despite TEXT",  # why a person promoted it all the same
        """CREATE TABLE heads (
            line TEXT PRIMARY KEY, chain INTEGER NOT NULL REFERENCES chains(id), step INTEGER NOT NULL,
            sha256 TEXT NOT NULL, version INTEGER NOT NULL REFERENCES versions(id)) WITHOUT ROWID""",
        "INSERT INTO heads SELECT '', chain, step, sha256, version FROM head",
        "DROP TABLE head",
        # `who` is candidate, served or base; `part` a group of probes; `month` is YYYY-MM of the memories, '' unknown.
        """CREATE TABLE scores (
            version INTEGER NOT NULL REFERENCES versions(id), who TEXT NOT NULL, part TEXT NOT NULL,
            month TEXT NOT NULL, probes INTEGER NOT NULL, loss REAL NOT NULL, token_accuracy REAL NOT NULL,
            exact REAL NOT NULL, PRIMARY KEY (version, who, part, month)) WITHOUT ROWID""",
        # Nats a token, as the memory was trained last; of the job that did it.
        """CREATE TABLE memory_losses (
            memory INTEGER PRIMARY KEY REFERENCES memories(seq), job INTEGER NOT NULL, loss REAL NOT NULL)""",
    ):
        db.execute(statement)
    for table in ("jobs", "versions"):
        _guard(db, table)


def m005_rehearsal(db: sqlite3.Connection) -> None:
    """What was rehearsed longest ago, and what is known least, found without a look at all."""
    for statement in (
        "CREATE INDEX memory_losses_job ON memory_losses(job)",
        "CREATE INDEX memory_losses_loss ON memory_losses(loss, job)",
        # Of what was trained before losses were written down: by which job; the loss is ledger.rehearsal.UNKNOWN.
        """INSERT OR IGNORE INTO memory_losses (memory, job, loss)
            SELECT jm.memory, max(jm.job), 1e9 FROM job_memories jm JOIN jobs j ON j.id = jm.job
            WHERE j.state='promoted' AND j.line='' GROUP BY jm.memory""",
    ):
        db.execute(statement)


def m006_serving(db: sqlite3.Connection) -> None:
    """What was made of versions to be served, under which names, and what waits."""
    for statement in (
        "DROP TRIGGER jobs_legal_moves",
        # In `models/v<N>/`; `base` is the GGUF below an adapter, relative to `state/bases/`.
        """CREATE TABLE exports (
            version INTEGER PRIMARY KEY REFERENCES versions(id), job INTEGER NOT NULL REFERENCES jobs(id),
            form TEXT NOT NULL, quantisation TEXT NOT NULL, base TEXT, base_sha256 TEXT, made_at TEXT NOT NULL,
            gone_at TEXT)""",
        # Names that we gave in an Ollama, written down before they are: no other one is ever removed or replaced.
        # `kind` is version, base or alias; `state` is making, made, answered or leaving; `base` is the name below it.
        """CREATE TABLE served_names (
            host TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, line TEXT NOT NULL DEFAULT '',
            version INTEGER REFERENCES versions(id), base TEXT, blob TEXT, state TEXT NOT NULL, note TEXT,
            at TEXT NOT NULL,
            PRIMARY KEY (host, name)) WITHOUT ROWID""",
        # Of each line: to what its alias points (`name`, of `version`, NULL: the base), and to what it did before;
        # what was tried in vain (`tried`), and when next; `told` is the version that serve.command was run for.
        """CREATE TABLE serving (
            line TEXT PRIMARY KEY, host TEXT, alias TEXT, name TEXT, version INTEGER, before INTEGER, since TEXT,
            tried INTEGER, reason TEXT, tries INTEGER NOT NULL DEFAULT 0, next_try TEXT, asked_at TEXT,
            told INTEGER) WITHOUT ROWID""",
    ):
        db.execute(statement)
    _guard(db, "jobs")


def m002_home_nights(db: sqlite3.Connection) -> None:
    """Which due slots were served, and how this home is paused."""
    for statement in (
        # `slot` is the local date and time that was due; the row is the claim, so that none runs twice.
        """CREATE TABLE slots (
            task TEXT NOT NULL, profile TEXT NOT NULL, slot TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'claimed',
            due_at TEXT NOT NULL, claimed_at TEXT NOT NULL, finished_at TEXT, outcome TEXT,
            PRIMARY KEY (task, profile, slot)) WITHOUT ROWID""",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ):
        db.execute(statement)
    _guard(db, "slots")


def m003_home_spending(db: sqlite3.Connection) -> None:
    """What rented machines cost: a row for each attempt, in dollars. `spent` is NULL until its meter stands."""
    for statement in (
        """CREATE TABLE spending (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, job INTEGER NOT NULL,
            month TEXT NOT NULL, reserved REAL NOT NULL, spent REAL, note TEXT, at TEXT NOT NULL, until TEXT NOT NULL,
            settled_at TEXT)""",
        "CREATE UNIQUE INDEX spending_open ON spending(name) WHERE spent IS NULL",
        "CREATE INDEX spending_month ON spending(month)",
    ):
        db.execute(statement)


PROFILE_STEPS: Sequence[Step] = (
    m001_profile, m002_exports, m003_nights, m004_learning, m005_rehearsal, m006_serving
)  # fmt: skip
HOME_STEPS: Sequence[Step] = (m001_home, m002_home_nights, m003_home_spending)


class SchemaError(Exception):
    """The database was written by another release; the message says which way out there is."""


def version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check(db: sqlite3.Connection, steps: Sequence[Step], name: str) -> None:
    """Raise SchemaError unless the database has exactly this release's schema."""
    found = version(db)
    if found > len(steps):
        raise SchemaError(f"{name} was written by a newer engramd (schema {found}): install that release")
    if found < len(steps):
        raise SchemaError(f"{name} has an older schema ({found}): run `engramd run --once` to bring it up to date")


def migrate(db: sqlite3.Connection, steps: Sequence[Step], name: str) -> None:
    """Apply the missing steps, each in one transaction. Only the holder of the home's lock may."""
    for number in range(version(db), len(steps)):
        db.execute("BEGIN IMMEDIATE")
        try:
            steps[number](db)
            db.execute(f"PRAGMA user_version={number + 1}")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    check(db, steps, name)
