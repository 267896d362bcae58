"""Memories that are forgotten: their texts leave the ledger, their ids and message keys stay as tombstones.

Works on a profile's ledger and on the copies of it in snapshots. `redactions` says which sealed file was
changed or removed, by its hash before and after, so that an audit still knows it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from daemon.ledger import jobs, memories
from daemon.ledger.database import Database, moved
from daemon.records import Memory, Turn
from daemon.rules.needles import digest_of, learnt_texts, lines_of

SHORTEST_KNOWN = 8  # characters of a line that is known again by its hash
SHORTEST_REFUSED = 24  # characters of a text that is refused because all its lines were forgotten
IN_WORK = "forgetting"  # meta: what was forgotten and is not yet wiped from the file itself
_OPEN = ("frozen", "running")
# Columns in which a sentence may quote a memory: (table, key, column).
_QUOTING = (
    ("jobs", "id", "reason"), ("jobs", "id", "result"), ("batches", "id", "reason"), ("versions", "id", "reason"),
    ("versions", "id", "despite"),
    ("memories", "seq", "reason"), ("meta", "key", "value"),
)  # fmt: skip


# -- which memories ----------------------------------------------------------------------------------


def of_batch(db: Database, batch: int) -> list[int]:
    return _seqs(db, "batch=?", batch)


def of_source(db: Database, source: str) -> list[int]:
    return _seqs(db, "source=?", source)


def batches_of(db: Database, seqs: Iterable[int]) -> set[int]:
    return {row["batch"] for row in rows(db, seqs)}


def of_ids(db: Database, ids: Iterable[str]) -> list[int]:
    """Those of these ids (hex, in full) that are there and not forgotten."""
    return [seq for id_ in ids for seq in _seqs(db, "id=?", bytes.fromhex(id_))]


def _seqs(db: Database, where: str, value: object) -> list[int]:
    found = db.execute(f"SELECT seq FROM memories WHERE state<>'forgotten' AND {where} ORDER BY seq", (value,))
    return [row["seq"] for row in found]


def sources(db: Database) -> list[str]:
    rows = db.execute("SELECT DISTINCT source FROM memories WHERE state<>'forgotten' ORDER BY source")
    return [row["source"] for row in rows]


def with_other_wordings(db: Database, seqs: Iterable[int]) -> list[int]:
    """These, and the memories that hold an earlier or later wording of one of their messages."""
    found: set[int] = set(seqs)
    for seq in sorted(found):
        row = db.one("SELECT * FROM memories WHERE seq=?", (seq,))
        for part in memories.from_row(row).parts if row else ():
            found |= {one["memory"] for one in db.all("SELECT memory FROM messages WHERE key=?", (part.key,))}
    return [seq for seq in sorted(found) if db.number("SELECT state<>'forgotten' FROM memories WHERE seq=?", (seq,))]


def rows(db: Database, seqs: Iterable[int]) -> Iterator[dict[str, Any]]:
    for seq in seqs:
        row = db.one("SELECT * FROM memories WHERE seq=?", (seq,))
        if row is not None:
            yield row


def others(db: Database, seqs: set[int]) -> Iterator[dict[str, Any]]:
    """All memories that stay."""
    for row in db.execute("SELECT * FROM memories WHERE state<>'forgotten' ORDER BY seq"):
        if row["seq"] not in seqs:
            yield dict(row)


# -- a file that is dropped again --------------------------------------------------------------------


def any_forgotten(db: Database) -> bool:
    return bool(db.number("SELECT EXISTS (SELECT 1 FROM forgotten_lines)")) or bool(
        db.number("SELECT EXISTS (SELECT 1 FROM memories WHERE state='forgotten')")
    )


def is_forgotten(db: Database, memory: Memory, seed: int) -> bool:
    """Whether all that it would teach was forgotten: its id, its messages, or every line of it."""
    if db.number("SELECT count(*) FROM memories WHERE id=? AND state='forgotten'", (bytes.fromhex(memory.id),)):
        return True
    if memory.parts and all(is_part_forgotten(db, part.key) for part in memory.parts):
        return True
    lines = [line for text in learnt_texts(memory) for line in lines_of(text)]
    return sum(map(len, lines)) >= SHORTEST_REFUSED and all(_line_forgotten(db, line, seed) for line in lines)


def is_part_forgotten(db: Database, key: bytes) -> bool:
    """Whether the message with this key was in a forgotten memory."""
    sql = "SELECT count(*) FROM messages s JOIN memories m ON m.seq=s.memory WHERE s.key=? AND m.state='forgotten'"
    return bool(db.number(sql, (key,)))


def _line_forgotten(db: Database, line: str, seed: int) -> bool:
    return bool(db.number("SELECT count(*) FROM forgotten_lines WHERE digest=?", (digest_of(line, seed),)))


def forgotten_in(db: Database, memory: Memory, seed: int) -> list[str]:
    """Lines of its question and its context that were forgotten; and of its own texts, where it is itself."""
    asked = [memory.content] if memory.response is not None else []
    texts = [*asked, *(turn.text for turn in memory.context)]
    found = [line for text in texts for line in lines_of(text) if _line_forgotten(db, line, seed)]
    if is_forgotten(db, memory, seed):
        found += [line for text in [*learnt_texts(memory), *asked] for line in lines_of(text)]
    elif memory.parts:
        for part in memory.parts:
            if is_part_forgotten(db, part.key):
                found += lines_of(part.text)
    return found


def without_lines(memory: Memory, cut: Callable[[str], str]) -> Memory:
    """Its question and its context with these texts cut out; a turn of which nothing is left goes."""
    turns = [Turn(turn.role, cut(turn.text)) for turn in memory.context]
    context = tuple(turn for turn, before in zip(turns, memory.context, strict=True)
                    if turn.text.strip() or not before.text.strip())  # fmt: skip
    content = memory.content if memory.response is None else cut(memory.content)
    if context == memory.context and content == memory.content:
        return memory
    return replace(memory, content=content, context=context)


# -- taking them out ---------------------------------------------------------------------------------


def throw_back(db: Database, job: int, reason: str, state: str = "forgotten") -> None:
    """An open job goes; its memories wait for the next one. Not for a job that has ended."""
    row = jobs.get(db, job)
    assert row is not None and row["state"] in _OPEN
    if row["state"] == "running":
        jobs.pause(db, job, reason)
    moved(db.execute("UPDATE jobs SET state=?, reason=?, pid=NULL WHERE id=?", (state, reason, job)), "job")
    db.execute(
        """UPDATE memories SET state='waiting', reason=NULL WHERE state='frozen' AND seq IN (
            SELECT memory FROM job_memories WHERE job=? AND use='new')""",
        (job,),
    )


def ids_of_job(db: Database, job: int) -> set[str]:
    """The memories that a job was made of."""
    rows = db.all("SELECT m.id AS id FROM job_memories jm JOIN memories m ON m.seq=jm.memory WHERE jm.job=?", (job,))
    return {row["id"].hex() for row in rows}


def folders_of_forgotten_jobs(db: Database) -> list[str]:
    """Also of jobs that were thrown back when the head moved."""
    return [
        row["folder"]
        for row in db.all("SELECT folder FROM jobs WHERE state='forgotten' OR (state='undone' AND result IS NULL)")
    ]


def erase(db: Database, seqs: Sequence[int], lines: Iterable[str], seed: int) -> int:
    """Empty these rows and remember that their lines were forgotten. Gives how many rows changed."""
    db.executemany(
        "INSERT OR IGNORE INTO forgotten_lines (digest) VALUES (?)",
        [(digest_of(line, seed),) for line in lines if len(line) >= SHORTEST_KNOWN],
    )
    changed = db.executemany(
        """UPDATE memories SET state=CASE state WHEN 'frozen' THEN 'frozen' ELSE 'forgotten' END, reason=NULL,
        content='', response=NULL, detail=NULL, timestamp=NULL, time=NULL, mode=NULL, speaker=NULL,
        conversation=NULL, text_key=NULL WHERE seq=? AND (state<>'forgotten' OR content<>'')""",
        [(seq,) for seq in seqs],
    )
    db.execute("DELETE FROM near_bands WHERE memory IN (SELECT value FROM json_each(?))", (json.dumps(list(seqs)),))
    db.execute("DELETE FROM memory_losses WHERE memory IN (SELECT value FROM json_each(?))", (json.dumps(list(seqs)),))
    for batch in batches_of(db, seqs):  # a held batch of which nothing is left to decide
        db.execute(
            """UPDATE batches SET state='read', reason=NULL WHERE id=? AND state='held' AND NOT EXISTS (
                SELECT 1 FROM memories m WHERE m.seq BETWEEN batches.first_seq AND batches.last_seq
                AND m.state IN ('waiting','held'))""",
            (batch,),
        )
    return changed


def write_memory(db: Database, seq: int, memory: Memory) -> None:
    """Question and context of a memory that stays, after a forgotten text was cut out of them."""
    detail = memories.detail_of(memory)
    db.execute("UPDATE memories SET content=?, detail=? WHERE seq=?", (memory.content, detail, seq))


def cut_quotes(db: Database, finds: Callable[[str], bool], cut: Callable[[str], str]) -> int:
    """Sentences and results in which a forgotten text is quoted. Gives how many were changed."""
    changed = 0
    for table, key, column in _QUOTING:
        for row in db.all(f"SELECT {key} AS k, {column} AS v FROM {table} WHERE {column} IS NOT NULL"):
            if finds(row["v"]):
                db.execute(f"UPDATE {table} SET {column}=? WHERE {key}=?", (_cut_value(row["v"], cut), row["k"]))
                changed += 1
    return changed


def _cut_value(value: str, cut: Callable[[str], str]) -> str:
    """A result is JSON and stays JSON."""
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return cut(value)
    return orjson.dumps(cut_strings(parsed, cut)).decode() if isinstance(parsed, (dict, list)) else cut(value)


def cut_strings(value: Any, cut: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, dict):
        return {key: cut_strings(one, cut) for key, one in value.items()}
    return [cut_strings(one, cut) for one in value] if isinstance(value, list) else value


def cut_requests(db: Database, finds: Callable[[str], bool]) -> int:
    """Requests of `home.db` that have ended and quote a forgotten text lose their words."""
    changed = 0
    for row in db.all("SELECT id, arguments, answer FROM requests WHERE state IN ('done','failed')"):
        if finds(row["arguments"]) or finds(row["answer"] or ""):
            db.execute("UPDATE requests SET arguments='{}', answer='{}' WHERE id=?", (row["id"],))
            changed += 1
    return changed


def compact(db: Database) -> bool:
    """Write the database anew and empty its log, so that no page keeps what was erased. False: a reader is in the
    way, try again."""
    db.execute("VACUUM")
    row = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not row[0]


# -- what was changed, and what has learnt it --------------------------------------------------------


def record(db: Database, now: str, path: str, old: str, new: str | None, reason: str) -> None:
    """A sealed file is about to change (or to go: `new` None). Said twice is said once."""
    with db.transaction():
        db.execute(
            """INSERT INTO redactions (at, path, old_sha256, new_sha256, reason) SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS (
                SELECT 1 FROM redactions WHERE path=? AND old_sha256=? AND new_sha256 IS ?)""",
            (now, path, old, new, reason, path, old, new),
        )


def redacted(db: Database, reason: str) -> list[dict[str, Any]]:
    """[{"path", "new_sha256"}] of what was changed for this reason, in order."""
    return db.all("SELECT path, new_sha256 FROM redactions WHERE reason=? ORDER BY id", (reason,))


def learnt_by(db: Database, seqs: Iterable[int]) -> list[dict[str, Any]]:
    """The versions that were trained on any of these memories, or go on from one that was, the first one first.
    [{"id", "state", "job", "folder", "chain", "step", "checkpoint_sha256", "parent_sha256", "parent_step"}]"""
    taught: set[int] = set()
    for seq in seqs:
        taught |= {row["job"] for row in db.all("SELECT DISTINCT job FROM job_memories WHERE memory=?", (seq,))}
    found, tainted = [], set()
    for row in db.all(
        """SELECT v.id, v.state, v.job, j.folder, v.chain, v.step, v.checkpoint_sha256, j.parent_sha256, j.parent_step
        FROM versions v JOIN jobs j ON j.id = v.job ORDER BY v.id"""
    ):
        if row["job"] in taught or row["parent_sha256"] in tainted:
            tainted.add(row["checkpoint_sha256"])
            found.append(row)
    return found

