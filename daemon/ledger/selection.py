"""Which memories a cycle takes, by SQL that does not read what it does not take."""

from collections.abc import Iterable

from daemon.ledger.database import Database
from daemon.rules.selection import PRIME, OfMode, Selection, Window, rank

# What waits of a batch that failed before is tried alone, and never with anything else: see `planning.choose_batches`.
_WAITING = "FROM memories WHERE state='waiting' AND batch NOT IN (SELECT id FROM batches WHERE failures > 0)"
# {of} narrows each of them down to one mode, or is empty.
_RECENT = f"""SELECT seq, 1 AS trained FROM memories WHERE state='trained' AND time >= :since{{of}}
    UNION ALL SELECT seq, 1 FROM memories WHERE state='trained' AND time IS NULL{{of}}
    UNION ALL SELECT seq, 0 {_WAITING} AND (time IS NULL OR time >= :since){{of}} ORDER BY 1"""
_ALL = f"""SELECT seq, 1 AS trained FROM memories WHERE state='trained'{{of}}
    UNION ALL SELECT seq, 0 {_WAITING}{{of}} ORDER BY 1"""
_OLD = f"""SELECT seq, 1 AS trained FROM memories WHERE state='trained' AND time < :since{{of}}
    UNION ALL SELECT seq, 0 {_WAITING} AND time < :since{{of}}"""
_X = "((:a * (seq % :p) + :c) % :p)"


def select(db: Database, window: Window, since: str | None, seed: int, only: OfMode | None = None) -> Selection:
    """All recent memories and a draw of the old ones; a memory whose time is unknown is recent. `since` None: all are
    recent. With `only` just memories of one mode. Equal ledgers and seeds give equal selections."""
    of = "" if only is None else f" AND {_of(only)}"
    first = (_ALL if since is None else _RECENT).format(of=of)
    found = [(row[0], row[1]) for row in db.execute(first, _named(since))]
    dropped = 0 if window.most is None else max(0, len(found) - window.most)
    found = found[dropped:]  # the newest stay
    room = 0 if since is None else window.old_samples
    if window.most is not None:
        room = min(room, window.most - len(found))
    old: list[tuple[int, int]] = []
    count = 0
    if since is not None:
        older = _OLD.format(of=of)
        count = db.number(f"SELECT count(*) FROM ({older})", _named(since))
        a, b, c = rank(seed)
        values = {"since": since, "a": a, "b": b, "c": c, "p": PRIME, "room": max(room, 0)}
        drawn = f"SELECT seq, trained FROM ({older}) ORDER BY ({_X} * {_X} % :p + :b * {_X} + :c) % :p, seq LIMIT :room"
        old = [(row[0], row[1]) for row in db.execute(drawn, values)]
    taken = sorted([*old, *found])
    trained = frozenset(seq for seq, was_trained in taken if was_trained)
    return Selection([seq for seq, _ in taken], trained, len(found), len(old), dropped, count - len(old))


def _of(only: OfMode) -> str:
    """A condition on a row of memories. Modes and types are quoted as SQLite has it."""
    told = f"mode IN ({_quoted(only.modes)})"
    return f"(mode={_quoted([only.mode])} OR (({told}) IS NOT TRUE AND type {'NOT ' * only.all_but}IN "\
           f"({_quoted(only.types)})))"


def _quoted(texts: Iterable[str]) -> str:
    return ",".join("'" + text.replace("'", "''") + "'" for text in sorted(texts))


def _named(since: str | None) -> dict[str, object]:
    return {} if since is None else {"since": since}
