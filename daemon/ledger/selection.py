"""Which memories a cycle takes, by SQL that does not read what it does not take."""

from daemon.ledger.database import Database
from daemon.rules.selection import PRIME, Selection, Window, rank

_RECENT = """SELECT seq, 1 AS trained FROM memories WHERE state='trained' AND time >= :since
    UNION ALL SELECT seq, 1 FROM memories WHERE state='trained' AND time IS NULL
    UNION ALL SELECT seq, 0 FROM memories WHERE state='waiting' AND (time IS NULL OR time >= :since) ORDER BY 1"""
_ALL = "SELECT seq, state='trained' AS trained FROM memories WHERE state IN ('trained','waiting') ORDER BY seq"
_OLD = """SELECT seq, 1 AS trained FROM memories WHERE state='trained' AND time < :since
    UNION ALL SELECT seq, 0 FROM memories WHERE state='waiting' AND time < :since"""
_X = "((:a * (seq % :p) + :c) % :p)"


def select(db: Database, window: Window, since: str | None, seed: int) -> Selection:
    """All recent memories and a draw of the old ones; a memory whose time is unknown is recent. `since` None: all are
    recent. Equal ledgers and seeds give equal selections."""
    found = [(row[0], row[1]) for row in db.execute(_ALL if since is None else _RECENT, _named(since))]
    dropped = 0 if window.most is None else max(0, len(found) - window.most)
    found = found[dropped:]  # the newest stay
    room = 0 if since is None else window.old_samples
    if window.most is not None:
        room = min(room, window.most - len(found))
    old: list[tuple[int, int]] = []
    count = 0
    if since is not None:
        count = db.number(f"SELECT count(*) FROM ({_OLD})", _named(since))
        a, b, c = rank(seed)
        values = {"since": since, "a": a, "b": b, "c": c, "p": PRIME, "room": max(room, 0)}
        drawn = f"SELECT seq, trained FROM ({_OLD}) ORDER BY ({_X} * {_X} % :p + :b * {_X} + :c) % :p, seq LIMIT :room"
        old = [(row[0], row[1]) for row in db.execute(drawn, values)]
    taken = sorted([*old, *found])
    trained = frozenset(seq for seq, was_trained in taken if was_trained)
    return Selection([seq for seq, _ in taken], trained, len(found), len(old), dropped, count - len(old))


def rehearsal(db: Database, count: int, seed: int, strategy: str) -> list[int]:
    """Numbers of so many trained memories (fewer where there are not as many), in the order of arrival."""
    if strategy == "random":
        a, b, c = rank(seed)
        order, values = f"({_X} * {_X} % :p + :b * {_X} + :c) % :p, seq", {"a": a, "b": b, "c": c, "p": PRIME}
    else:
        order = "(SELECT max(job) FROM job_memories jm WHERE jm.memory = seq), seq"
        values = {}
    rows = db.execute(
        f"SELECT seq FROM memories WHERE state='trained' ORDER BY {order} LIMIT :count", {**values, "count": count}
    )
    return sorted(row[0] for row in rows)


def _named(since: str | None) -> dict[str, object]:
    return {} if since is None else {"since": since}
