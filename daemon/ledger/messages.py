"""Messages of exports: which are known, in which memory. A message that was edited has rows of several digests."""

from collections.abc import Iterable, Sequence

from daemon.ledger.database import Database
from daemon.records import Part

SUPERSEDED = "superseded by an edited text"


def insert(db: Database, messages: Iterable[tuple[str, Part]]) -> None:
    """(id of the memory, message): the memory must have been inserted."""
    db.executemany(
        "INSERT OR REPLACE INTO messages (key, digest, memory) SELECT ?, ?, seq FROM memories WHERE id=?",
        ((part.key, part.digest, bytes.fromhex(id_)) for id_, part in messages),
    )


def remove(db: Database, parts: Sequence[Part]) -> None:
    db.executemany("DELETE FROM messages WHERE key=? AND digest=?", [(part.key, part.digest) for part in parts])


def known(db: Database, parts: Sequence[Part]) -> tuple[set[bytes], set[int]]:
    """(key + digest of those messages that need not be learnt again, waiting memories that this one supersedes).

    A message whose text changed is new. If its memory has not been trained yet, the whole memory is taken anew
    (`supersede` puts the old one aside); if the old one was forgotten, the new text counts as known, too.
    """
    found: set[bytes] = set()
    superseded: set[int] = set()
    owners: dict[bytes, int] = {}
    for part in parts:
        rows = db.all(
            """SELECT s.digest AS digest, s.memory AS memory, m.state AS state FROM messages s
            JOIN memories m ON m.seq = s.memory WHERE s.key=?""",
            (part.key,),
        )
        if not rows:
            continue
        name = part.key + part.digest
        same = next((row for row in rows if row["digest"] == part.digest), None)
        if same:
            found.add(name)
            owners[name] = same["memory"]
        elif any(row["state"] == "forgotten" for row in rows):
            found.add(name)
        else:
            superseded |= {row["memory"] for row in rows if row["state"] == "waiting"}
    return {name for name in found if owners.get(name) not in superseded}, superseded


def supersede(db: Database, memories: Iterable[int]) -> None:
    """Put aside memories that wait, of which a message came again with another text."""
    db.executemany(
        "UPDATE memories SET state='skipped', reason=? WHERE seq=? AND state='waiting'",
        ((SUPERSEDED, seq) for seq in memories),
    )
