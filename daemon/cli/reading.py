"""Ledgers opened for reading, and what is read from them together with the disk."""

import argparse
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from daemon import ledger, migrations
from daemon.cli.context import home_of, settings_of
from daemon.cli.exit_codes import Exit, UserError
from daemon.home import Home, is_profile_name

if TYPE_CHECKING:
    from daemon.settings import Settings
    from daemon.world import World


def profiles(home: Home, asked: str | None) -> list[str]:
    """The profile that was asked for, else all that were made. Raises UserError."""
    if asked is None:
        return home.profile_names()
    check_name(asked)
    if asked not in home.profile_names():
        raise UserError(f"there is no profile {asked!r}: engramd profile add {asked}", Exit.NOTHING)
    return [asked]


def declared(args: argparse.Namespace) -> list[str]:
    """All profiles, also those that the settings name and no daemon has made yet. Raises UserError where
    `--profile` is none of them."""
    known = list(dict.fromkeys([*home_of(args).profile_names(), *settings_of(args).profiles]))
    if args.profile not in known:
        profiles(home_of(args), args.profile)
    return known


def check_name(name: str) -> None:
    if not is_profile_name(name):
        rule = "a-z, 0-9, _ and -, at most 32 characters, neither failed nor claimed"
        raise UserError(f"{name!r} is no profile name: {rule}", Exit.USAGE)


@contextmanager
def opened(home: Home, profile: str) -> Iterator[ledger.Database]:
    """The profile's ledger for reading. Raises UserError where there is none yet."""
    profiles(home, profile)
    try:
        db = ledger.open_profile(home.profile(profile).ledger, write=False)
    except ledger.Absent:
        raise UserError(
            f"nothing has happened in {home.root} yet: engramd add FILE, then engramd run", Exit.NOTHING
        ) from None
    except (migrations.SchemaError, sqlite3.Error) as error:
        raise _unreadable(error, home.profile(profile).ledger.name) from None
    try:
        yield db
    except sqlite3.DatabaseError as error:
        raise _unreadable(error, str(db.path)) from None
    finally:
        db.close()


def world_of(home: Home, profile: str, db: ledger.Database, settings: "Settings") -> "World":
    """The profile for a dry run, by this process and without a lock. Raises UserError."""
    from daemon.ledger import jobs
    from daemon.settings import SettingsError
    from daemon.world import World, rules_of

    try:
        curation, prompts = rules_of(home)
    except SettingsError as error:
        raise UserError(str(error), Exit.CONFIG) from None
    seed = int(jobs.get_meta(db, "seed") or settings.seed(profile))
    return World(profile, home, home.profile(profile), db, settings, curation, prompts, seed)


@contextmanager
def opened_home(home: Home) -> Iterator[ledger.Database]:
    """`home.db` for reading. Raises UserError."""
    try:
        db = ledger.open_home(home.database, write=False)
    except ledger.Absent:
        raise UserError(f"nothing has happened in {home.root} yet", Exit.NOTHING) from None
    except (migrations.SchemaError, sqlite3.Error) as error:
        raise _unreadable(error, home.database.name) from None
    try:
        yield db
    except sqlite3.DatabaseError as error:
        raise _unreadable(error, str(db.path)) from None
    finally:
        db.close()


@contextmanager
def opened_if_there(home: Home, profile: str) -> Iterator[ledger.Database | None]:
    """As `opened`, None where nothing has happened yet: not every command has to fail on a fresh home."""
    if not home.profile(profile).ledger.exists():
        yield None
        return
    with opened(home, profile) as db:
        yield db


def _unreadable(error: Exception, name: str) -> UserError:
    if isinstance(error, migrations.SchemaError):
        return UserError(str(error))
    return UserError(f"{name} cannot be read: {error}")


def one_job(db: ledger.Database, number: int, profile: str) -> dict[str, Any]:
    from daemon.ledger import jobs

    row = jobs.get(db, number)
    if row is None:
        raise UserError(f"there is no job {number} of {profile}: engramd jobs lists them", Exit.NOTHING)
    return row
