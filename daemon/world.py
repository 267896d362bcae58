"""One profile at work: its paths, its ledger, its settings. No query or path of it reaches another one."""

import tomllib
from dataclasses import dataclass
from typing import Any

from daemon import ledger
from daemon.home import Home, ProfilePaths
from daemon.ledger import jobs
from daemon.rules.curation import Curation
from daemon.rules.prompts import Prompts
from daemon.settings import Settings, SettingsError
from trainer.contract import TrainingRecipe


@dataclass(frozen=True, slots=True)
class World:
    name: str
    home: Home
    paths: ProfilePaths
    db: ledger.Database
    settings: Settings
    curation: Curation
    prompts: Prompts
    seed: int  # fixed when the profile is made: a later change of the setting must not reorder its history

    @property
    def recipe(self) -> TrainingRecipe:
        return self.settings.recipe(self.name)


def _data(home: Home, name: str) -> dict[str, Any]:
    """A data file of the home's `etc/`; empty, so all defaults, where there is none. Raises SettingsError."""
    path = home.etc / name
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def open_world(home: Home, name: str, settings: Settings) -> World:
    """Open a profile for writing; makes its folders and ledger where they are missing."""
    paths = home.profile(name)
    for folder in (paths.root, paths.claimed, paths.archive, paths.chains, paths.jobs):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        curation = Curation.from_mapping(_data(home, "curation.toml"))
        prompts = Prompts.from_mapping(_data(home, "prompts.toml"))
    except ValueError as error:
        raise SettingsError(str(error)) from None
    db = ledger.open_profile(paths.ledger, write=True)
    if jobs.get_meta(db, "seed") is None:
        with db.transaction():
            jobs.set_meta(db, "seed", str(settings.seed(name)))
    seed = int(jobs.get_meta(db, "seed") or 0)
    return World(name, home, paths, db, settings, curation, prompts, seed)
