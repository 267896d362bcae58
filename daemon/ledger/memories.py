"""Memories: one row each, in the order in which they came; `seq` is that order.

A batch is read by itself, so its memories are one unbroken range of `seq`. While the batch is being
read they are staged: they stand in the table, but no other module sees them before the last slice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from daemon.ledger import messages
from daemon.ledger.database import Database, LedgerError, moved
from daemon.records import Memory, Part, Turn

_VISIBLE = "SELECT 1 FROM batches b WHERE b.id = m.batch AND b.state <> 'reading'"

# (id, memory, its state at ingestion: waiting, skipped or held_out, the reason where it is skipped, the key of
# its learnt text)
Judged = tuple[str, Memory, str, str | None, int | None]


def detail_of(memory: Memory) -> str | None:
    """All that has no column of its own, as JSON."""
    detail: dict[str, Any] = {}
    if memory.context:
        detail["context"] = [[turn.role, turn.text] for turn in memory.context]
    if memory.payload is not None:
        detail["payload"] = memory.payload
    if memory.tags:
        detail["tags"] = list(memory.tags)
    if memory.extra:
        detail["extra"] = memory.extra
    if memory.parts:
        detail["parts"] = [(part.key + part.digest).hex() for part in memory.parts]
    return orjson.dumps(detail).decode() if detail else None


def from_row(row: dict[str, Any]) -> Memory:
    detail = orjson.loads(row["detail"]) if row["detail"] else {}
    return Memory(
        type=row["type"],
        content=row["content"],
        response=row["response"],
        timestamp=row["timestamp"],
        time=row["time"],
        context=tuple(Turn(role, text) for role, text in detail.get("context", ())),
        payload=detail.get("payload"),
        tags=tuple(detail.get("tags", ())),
        mode=row["mode"],
        source=row["source"],
        extra=detail.get("extra", {}),
        parts=tuple(_part(text) for text in detail.get("parts", ())),
        speaker=row["speaker"],
        conversation=row["conversation"],
        zone_known=bool(row["zone_known"]),
    )


def _part(text: str) -> Part:
    """The identity of a message; its text stands in the memory."""
    raw = bytes.fromhex(text)
    return Part(raw[:16], raw[16:], "")


def stage(db: Database, batch: int, judged: Sequence[Judged]) -> int:
    """Insert a slice; a memory that is known already is left out. Gives how many were new."""
    rows = (
        (
            bytes.fromhex(id_), batch, state, reason, m.type, m.source, m.timestamp, m.time, m.mode, m.content,
            m.response, detail_of(m), m.conversation, m.speaker, m.zone_known, text_key,
        )
        for id_, m, state, reason, text_key in judged
    )  # fmt: skip
    new = db.executemany(
        """INSERT INTO memories (id, batch, state, reason, type, source, timestamp, time, mode, content,
        response, detail, conversation, speaker, zone_known, text_key)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING""",
        rows,
    )
    messages.insert(db, ((id_, part) for id_, memory, *_ in judged for part in memory.parts))
    return new


def last_seq(db: Database) -> int:
    return db.number("SELECT max(seq) FROM memories")


def unstage(db: Database, first_seq: int, limit: int) -> int:
    """Remove at most `limit` staged rows, newest first, and their messages; gives how many are left."""
    last = last_seq(db)
    for row in db.all("SELECT detail FROM memories WHERE seq >= ? AND seq > ?", (first_seq, last - limit)):
        detail = orjson.loads(row["detail"]) if row["detail"] else {}
        messages.remove(db, [_part(text) for text in detail.get("parts", ())])
    db.execute("DELETE FROM memories WHERE seq >= ? AND seq > ?", (first_seq, last - limit))
    return db.number("SELECT count(*) FROM memories WHERE seq >= ?", (first_seq,))


def total(db: Database) -> int:
    return db.number(f"SELECT count(*) FROM memories m WHERE EXISTS ({_VISIBLE})")


def counts(db: Database) -> dict[str, dict[str, int]]:
    """{"state": {...}, "type": {...}}, over all visible memories."""
    out: dict[str, dict[str, int]] = {"state": {}, "type": {}}
    rows = db.all(
        f"SELECT state, type, count(*) AS n FROM memories m WHERE EXISTS ({_VISIBLE}) GROUP BY state, type"
    )
    for row in rows:
        for by in ("state", "type"):
            out[by][row[by]] = out[by].get(row[by], 0) + row["n"]
    return out


def reasons(db: Database) -> dict[str, int]:
    """Why visible memories are left out, and how many."""
    rows = db.all(
        f"""SELECT reason, count(*) AS n FROM memories m WHERE state='skipped' AND EXISTS ({_VISIBLE})
        GROUP BY reason ORDER BY n DESC"""
    )
    return {row["reason"] or "without a reason": row["n"] for row in rows}


def any_waiting(db: Database) -> bool:
    """Whether the next job would find anything; memories of a held batch wait for a person instead."""
    return bool(
        db.number(
            """SELECT EXISTS (SELECT 1 FROM batches b WHERE b.state='read' AND EXISTS (
            SELECT 1 FROM memories m WHERE m.state='waiting' AND m.seq BETWEEN b.first_seq AND b.last_seq))"""
        )
    )


def waiting_batches(db: Database) -> list[dict[str, int]]:
    """[{"batch", "failures", "waiting"}] in the order of arrival, of batches with a waiting memory."""
    return db.all(
        """SELECT * FROM (SELECT b.id AS batch, b.failures AS failures, (SELECT count(*) FROM memories m
        WHERE m.state='waiting' AND m.seq BETWEEN b.first_seq AND b.last_seq) AS waiting
        FROM batches b WHERE b.state='read') WHERE waiting > 0 ORDER BY batch"""
    )


def waiting_of(db: Database, batches: Sequence[int], limit: int) -> Iterator[tuple[int, int, str, Memory]]:
    """(seq, batch, id, memory), in the order of arrival, at most `limit`."""
    wanted = set(batches)
    rows = db.execute(
        "SELECT * FROM memories WHERE state='waiting' AND batch BETWEEN ? AND ? ORDER BY seq",
        (min(batches), max(batches)),
    )
    found = 0
    for row in rows:
        if row["batch"] in wanted:
            found += 1
            yield row["seq"], row["batch"], row["id"].hex(), from_row(dict(row))
            if found == limit:
                return


def is_there(db: Database, id_: str) -> bool:
    return bool(db.number("SELECT count(*) FROM memories WHERE id=?", (bytes.fromhex(id_),)))


def by_seq(db: Database, seqs: Iterable[int]) -> Iterator[tuple[int, int, str, Memory]]:
    """(seq, batch, id, memory) of these, in their order."""
    for seq in seqs:
        row = db.one("SELECT * FROM memories WHERE seq=?", (seq,))
        if row is not None:
            yield row["seq"], row["batch"], row["id"].hex(), from_row(row)


def freeze(db: Database, seqs: Sequence[int]) -> None:
    """These waiting memories go into a job."""
    cursor = db.executemany("UPDATE memories SET state='frozen' WHERE seq=? AND state='waiting'",
                            [(seq,) for seq in seqs])  # fmt: skip
    if cursor != len(seqs):
        raise LedgerError(f"{cursor} of {len(seqs)} memories could be frozen")


def skip(db: Database, reasons: Mapping[int, str]) -> None:
    """These waiting memories (by seq) give no sample, for these reasons."""
    db.executemany("UPDATE memories SET state='skipped', reason=? WHERE seq=? AND state='waiting'",
                   [(reason, seq) for seq, reason in reasons.items()])  # fmt: skip


def skipped(db: Database) -> Iterator[tuple[int, int, str, Memory]]:
    """(seq, batch, id, memory) of memories that curation left out."""
    for row in db.all("SELECT seq FROM memories WHERE state='skipped' AND reason IS NOT ?", (messages.SUPERSEDED,)):
        yield from by_seq(db, [row["seq"]])


def take_after_all(db: Database, found: Sequence[tuple[int, int]]) -> None:
    """(seq, batch) of skipped memories that wait now."""
    db.executemany("UPDATE memories SET state='waiting', reason=NULL WHERE seq=?", [(seq,) for seq, _ in found])
    db.executemany("UPDATE batches SET state='read' WHERE id=? AND state='done'", [(batch,) for _, batch in found])


def move_job(db: Database, job: int, old: str, new: str, reason: str | None = None) -> int:
    """Move the memories that are `new` in a job from one state to the next; gives how many."""
    expected = db.number("SELECT count(*) FROM job_memories WHERE job=? AND use='new'", (job,))
    cursor = db.execute(
        """UPDATE memories SET state=?, reason=? WHERE state=? AND seq IN (
            SELECT memory FROM job_memories WHERE job=? AND use='new')""",
        (new, reason, old, job),
    )
    moved(cursor, f"memories of job {job}", expected)
    return expected


def get(db: Database, prefix: str) -> list[dict[str, Any]]:
    """Rows whose id begins with this hex prefix (whole bytes), at most 10."""
    even = prefix[: len(prefix) // 2 * 2]
    try:
        low = bytes.fromhex(even)
    except ValueError:
        return []
    rows = db.all("SELECT * FROM memories WHERE id >= ? ORDER BY id LIMIT 10", (low,))
    return [row for row in rows if row["id"].hex().startswith(prefix)]


def listing(
    db: Database, *, state: str | None = None, type_: str | None = None, text: str | None = None, limit: int = 50
) -> Iterator[dict[str, Any]]:
    """Visible memories, newest first."""
    where, values = [f"EXISTS ({_VISIBLE})"], []
    if state:
        where.append("state = ?")
        values.append(state)
    if type_:
        where.append("type = ?")
        values.append(type_)
    if text:
        where.append("(instr(lower(content), lower(?)) OR instr(lower(response), lower(?)))")
        values += [text, text]
    sql = f"SELECT * FROM memories m WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?"
    for row in db.execute(sql, (*values, limit)):
        yield dict(row)


def trained_exactly_once(db: Database) -> int:
    """How many trained memories are `new` in one promoted job, and in one only."""
    return db.number(
        """SELECT count(*) FROM memories m WHERE m.state='trained' AND 1 = (
            SELECT count(*) FROM job_memories jm JOIN jobs j ON j.id = jm.job
            WHERE jm.memory = m.seq AND jm.use='new' AND j.state='promoted')"""
    )


def uses_in_promoted(db: Database, seq: int) -> dict[str, int]:
    """{"new": 1, "replay": 3}: in how many promoted jobs a memory was used, and as what."""
    rows = db.all(
        """SELECT jm.use AS use, count(*) AS n FROM job_memories jm JOIN jobs j ON j.id = jm.job
        WHERE jm.memory=? AND j.state='promoted' GROUP BY jm.use""",
        (seq,),
    )
    return {row["use"]: row["n"] for row in rows}
