"""What was exported, which names were given in an Ollama, and what each line's alias points to."""

import json
from typing import Any

from daemon.ledger.database import Database

OF = "export_of"  # in an export job's `cycle`: the version
FOR = "for"  # there too: SERVING, or REQUEST where a person asked for it
SERVING, REQUEST = "serving", "request"
READY = ("made", "answered")  # states of a name that is there


# -- export jobs -------------------------------------------------------------------------------------


def job_of(db: Database, version: int, purpose: str = SERVING) -> dict[str, Any] | None:
    """The newest export job of a version."""
    return db.one(
        f"""SELECT * FROM jobs WHERE kind='export' AND json_extract(cycle, '$.{OF}')=?
        AND json_extract(cycle, '$.{FOR}')=? ORDER BY id DESC LIMIT 1""",
        (version, purpose),
    )


def of_version(db: Database, version: int) -> list[dict[str, Any]]:
    """Every export job of a version."""
    return db.all(f"SELECT * FROM jobs WHERE kind='export' AND json_extract(cycle, '$.{OF}')=? ORDER BY id", (version,))


def failures(db: Database, version: int, since: str | None) -> int:
    """How many export jobs of a version have failed, of those that were frozen since then."""
    return db.number(
        f"""SELECT count(*) FROM jobs WHERE kind='export' AND state='failed' AND json_extract(cycle, '$.{OF}')=?
        AND json_extract(cycle, '$.{FOR}')='{SERVING}' AND created_at>=?""",
        (version, since or ""),
    )


def collected(db: Database) -> list[dict[str, Any]]:
    """Export jobs that ended well. `fetched` is NULL where a person asked for it and has not fetched it yet: then its
    files lie in the job's folder, as long as that was not pruned."""
    return db.all(
        f"""SELECT *, CASE json_extract(cycle, '$.{FOR}') WHEN '{REQUEST}' THEN pruned_at ELSE created_at END
        AS fetched FROM jobs WHERE kind='export' AND state='done' ORDER BY id"""
    )


def about(job: dict[str, Any]) -> dict[str, Any]:
    """What an export job was frozen for."""
    found = json.loads(job["cycle"] or "{}")
    return found if isinstance(found, dict) else {}


def done(db: Database, job: int) -> None:
    db.execute("UPDATE jobs SET state='done', reason=NULL WHERE id=?", (job,))


# -- exports -----------------------------------------------------------------------------------------


def record_export(
    db: Database, *, version: int, job: int, form: str, quantisation: str, base: str | None, base_sha256: str | None,
    now: str,
) -> None:  # fmt: skip
    db.execute(
        """INSERT OR REPLACE INTO exports (version, job, form, quantisation, base, base_sha256, made_at)
        VALUES (?, ?, ?, ?, ?, ?, ?)""",
        (version, job, form, quantisation, base, base_sha256, now),
    )


def export(db: Database, version: int) -> dict[str, Any] | None:
    """The row of a version's export as long as its files are there."""
    return db.one("SELECT * FROM exports WHERE version=? AND gone_at IS NULL", (version,))


def exports(db: Database) -> dict[int, dict[str, Any]]:
    """As `export`, by version."""
    return {row["version"]: row for row in db.all("SELECT * FROM exports WHERE gone_at IS NULL ORDER BY version")}


def export_gone(db: Database, version: int, now: str) -> None:
    db.execute("UPDATE exports SET gone_at=? WHERE version=?", (now, version))


# -- names in an Ollama ------------------------------------------------------------------------------


def names_at(db: Database, host: str) -> dict[str, dict[str, Any]]:
    """The names that we gave there, by name."""
    return {row["name"]: row for row in db.all("SELECT * FROM served_names WHERE host=? ORDER BY name", (host,))}


def all_names(db: Database) -> list[dict[str, Any]]:
    return db.all("SELECT * FROM served_names ORDER BY host, name")


def names_of(db: Database, version: int) -> list[str]:
    """Under which names a version answers in an Ollama, as far as is known."""
    rows = db.all(
        """SELECT name FROM served_names WHERE kind='version' AND version=?
        UNION SELECT alias FROM serving WHERE name IS NOT NULL AND version=? ORDER BY 1""", (version, version),
    )  # fmt: skip
    return [str(row["name"]) for row in rows]


def begin_name(
    db: Database, host: str, name: str, kind: str, now: str, *, line: str = "", version: int | None = None,
    base: str | None = None, blob: str | None = None,
) -> None:  # fmt: skip
    """Before it is made there; again where it was half made, or lost. `blob`: SHA-256 of what is uploaded for it."""
    db.execute(
        """INSERT OR REPLACE INTO served_names (host, name, kind, line, version, base, blob, state, at)
        VALUES (?, ?, ?, ?, ?, ?, ?, 'making', ?)""",
        (host, name, kind, line, version, base, blob, now),
    )


def set_name(db: Database, host: str, name: str, state: str, note: str | None = None) -> None:
    db.execute("UPDATE served_names SET state=?, note=coalesce(?, note) WHERE host=? AND name=?",
               (state, note, host, name))  # fmt: skip


def give_up(db: Database, host: str, name: str) -> None:
    """It is to go; one that was never made keeps its state, which says so."""
    db.execute("UPDATE served_names SET state='leaving' WHERE host=? AND name=? AND state<>'making'", (host, name))


def drop_name(db: Database, host: str, name: str) -> None:
    db.execute("DELETE FROM served_names WHERE host=? AND name=?", (host, name))


# -- what each line's alias points to -----------------------------------------------------------------


def lines(db: Database) -> dict[str, dict[str, Any]]:
    return {str(row["line"]): row for row in db.all("SELECT * FROM serving ORDER BY line")}


def line(db: Database, name: str) -> dict[str, Any]:
    """The row of a line, with every key None where there is none yet."""
    found = db.one("SELECT * FROM serving WHERE line=?", (name,))
    return found or {**dict.fromkeys(_KEYS), "line": name, "tries": 0}


_KEYS = ("host", "alias", "name", "version", "before", "since", "tried", "reason", "next_try", "asked_at", "told")


def _change(db: Database, line: str, **values: Any) -> None:
    db.execute("INSERT OR IGNORE INTO serving (line) VALUES (?)", (line,))
    told = ", ".join(f"{key}=?" for key in values)
    db.execute(f"UPDATE serving SET {told} WHERE line=?", (*values.values(), line))


def moved(db: Database, name: str, *, host: str, alias: str, to: str | None, version: int | None, now: str) -> None:
    """The alias points to `to` now, which serves `version` (None: the base); with `to` None it is gone."""
    row = line(db, name)
    before = row["version"] if row["version"] != version and row["host"] == host else row["before"]
    _change(db, name, host=host, alias=alias, name=to, version=version, before=before, since=now, tried=None,
            reason=None, tries=0, next_try=None)  # fmt: skip


def waits(db: Database, name: str, version: int | None, reason: str, next_try: str) -> int:
    """It is tried again then. Gives how often it was tried in vain."""
    row = line(db, name)
    tries = row["tries"] + 1 if row["tried"] == version else 1
    _change(db, name, tried=version, reason=reason, tries=tries, next_try=next_try)
    return int(tries)


def failed(db: Database, name: str, version: int | None, reason: str) -> None:
    """It is not tried again before somebody asks, or another version is wanted."""
    _change(db, name, tried=version, reason=reason, next_try=None)


def settled(db: Database, name: str) -> None:
    """Nothing waits any more."""
    _change(db, name, tried=None, reason=None, tries=0, next_try=None)


def ask(db: Database, name: str, now: str) -> None:
    """Somebody wants it tried at once: what was in vain before does not count."""
    _change(db, name, tried=None, reason=None, tries=0, next_try=None, asked_at=now)


def lost(db: Database, name: str) -> None:
    """What the alias pointed to is not there any more."""
    _change(db, name, name=None, version=None, since=None)


def told(db: Database, name: str, version: int | None) -> None:
    """serve.command was run for this version."""
    _change(db, name, told=version)
