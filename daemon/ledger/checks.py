"""What `engramd audit` asks a ledger: rows that contradict one another. Read-only."""

from typing import Any

from daemon.ledger.database import Database

RESTORED = "restored_batches"  # in a ledger's meta: files up to this batch stayed in the home that it came from

_NEW_IN = """SELECT count(*) FROM job_memories jm JOIN jobs j ON j.id = jm.job
    WHERE jm.memory = m.seq AND jm.use='new' AND j.state"""
_PROMOTED = f"({_NEW_IN} = 'promoted')"
_OPEN = f"({_NEW_IN} IN ('frozen','running','finished'))"
_ENDED_BADLY = f"({_NEW_IN} IN ('failed','refused','undone'))"


def unsound(db: Database) -> list[str]:
    """SQLite's own complaints about the file and its references; none in a sound one."""
    found = [str(row["integrity_check"]) for row in db.all("PRAGMA integrity_check")]
    found = [] if found == ["ok"] else found
    for row in db.all("PRAGMA foreign_key_check"):
        found.append(f"row {row['rowid']} of {row['table']} refers to a row of {row['parent']} that is not there")
    return found


def memories_out_of_line(db: Database) -> list[dict[str, Any]]:
    """[{"seq", "id", "state", "promoted", "open", "bad"}]: the counts of jobs do not fit the state."""
    return db.all(
        f"""SELECT * FROM (
            SELECT m.seq AS seq, lower(hex(m.id)) AS id, m.state AS state,
            {_PROMOTED} AS promoted, {_OPEN} AS open, {_ENDED_BADLY} AS bad FROM memories m)
        WHERE (state='trained' AND (promoted <> 1 OR open <> 0))
        OR (state='frozen' AND (open <> 1 OR promoted <> 0))
        OR (state='held' AND (bad = 0 OR open <> 0 OR promoted <> 0))
        OR (state IN ('waiting','skipped','held_out','discarded') AND (promoted <> 0 OR open <> 0))
        ORDER BY seq"""
    )


def batches_out_of_line(db: Database) -> list[dict[str, Any]]:
    """[{"id", "name", "state", "memories", "rows", "unsettled"}] whose state or count its memories contradict."""
    return db.all(
        """SELECT * FROM (
            SELECT b.id AS id, b.name AS name, b.state AS state, b.memories AS memories,
            (SELECT count(*) FROM memories m WHERE m.seq BETWEEN b.first_seq AND b.last_seq
                AND m.batch = b.id) AS rows,
            (SELECT count(*) FROM memories m WHERE m.seq BETWEEN b.first_seq AND b.last_seq
                AND m.state IN ('waiting','frozen','held')) AS unsettled,
            (SELECT count(*) FROM memories m WHERE m.seq BETWEEN b.first_seq AND b.last_seq
                AND m.state='held') AS held
            FROM batches b WHERE b.state IN ('read','held','done','discarded'))
        WHERE rows <> memories OR (state IN ('done','discarded') AND unsettled > 0)
        OR (state='read' AND held > 0) ORDER BY id"""
    )


def verdicts_out_of_line(db: Database) -> list[str]:
    """A sentence each: scores or figures of a version without a verdict, or a promotion by hand that is none."""
    found = [
        f"v{row['id']} has scores, but it is not judged yet"
        for row in db.all("""SELECT id FROM versions WHERE state='candidate'
        AND (gate IS NOT NULL OR EXISTS (SELECT 1 FROM scores s WHERE s.version = versions.id))""")
    ]
    found += [
        f"v{row['id']} was promoted by hand, but it is {row['state']}"
        for row in db.all("""SELECT id, state FROM versions
        WHERE despite IS NOT NULL AND state IN ('candidate','refused')""")
    ]
    found += [
        f"v{row['version']} has scores of {row['probes']} {row['part']} questions, but of {row['parts']} by month"
        for row in db.all("""SELECT a.version, a.part, a.probes, (SELECT sum(m.probes) FROM scores m
            WHERE m.version=a.version AND m.who=a.who AND m.part=a.part AND m.month<>'') AS parts
            FROM scores a WHERE a.month='' AND a.who='candidate' AND parts > a.probes""")
    ]
    return found


def strays(db: Database) -> int:
    """Memories that lie outside their batch's range, or whose batch has none."""
    return db.number(
        """SELECT count(*) FROM memories m JOIN batches b ON b.id = m.batch
        WHERE b.state <> 'reading' AND (b.first_seq IS NULL OR m.seq NOT BETWEEN b.first_seq AND b.last_seq)"""
    )


def all_batches(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT id, name, path, sha256, state FROM batches ORDER BY id")


def all_jobs(db: Database) -> list[dict[str, Any]]:
    """Each job with its version's row (`v_` columns) and the samples that its memories gave."""
    return db.all(
        """SELECT j.*, v.id AS v_id, v.state AS v_state, v.chain AS v_chain, v.step AS v_step,
        v.checkpoint_sha256 AS v_sha256, v.parent AS v_parent, v.line AS v_line,
        (SELECT sum(samples) FROM job_memories jm WHERE jm.job = j.id) AS counted
        FROM jobs j LEFT JOIN versions v ON v.job = j.id ORDER BY j.id"""
    )


def chain_ids(db: Database) -> set[int]:
    return {int(row["id"]) for row in db.all("SELECT id FROM chains")}


def newest_ids(db: Database) -> dict[str, int]:
    """The highest number in use, by kind: a number above its high-water mark could be given again."""
    tables = {"job": "jobs", "chain": "chains", "version": "versions"}
    return {kind: db.number(f"SELECT max(id) FROM {table}") for kind, table in tables.items()}


def high_water(db: Database, profile: str) -> dict[str, int]:
    """The marks of `home.db` for one profile."""
    rows = db.all("SELECT kind, value FROM high_water WHERE profile=?", (profile,))
    return {row["kind"]: row["value"] for row in rows}


def not_quite_forgotten(db: Database) -> list[dict[str, Any]]:
    """[{"id"}] of forgotten memories whose row still says something, or that an open job holds."""
    return db.all(
        f"""SELECT lower(hex(m.id)) AS id FROM memories m WHERE m.state='forgotten' AND (m.content<>''
        OR m.response IS NOT NULL OR m.detail IS NOT NULL OR m.text_key IS NOT NULL OR {_OPEN} <> 0) ORDER BY seq"""
    )


def redactions(db: Database) -> dict[str, set[str | None]]:
    """Hash of a sealed file before it was changed -> hashes after; None where it was removed."""
    found: dict[str, set[str | None]] = {}
    for row in db.all("SELECT old_sha256, new_sha256 FROM redactions"):
        found.setdefault(row["old_sha256"], set()).add(row["new_sha256"])
    return found


def hashes_after(redactions: dict[str, set[str | None]], sha256: str) -> set[str | None]:
    """All that a file with this hash may be now: it may have been changed several times."""
    found: set[str | None] = set()
    todo = [sha256]
    while todo:
        for one in redactions.get(todo.pop(), set()) - found:
            found.add(one)
            todo += [] if one is None else [one]
    return found
