"""One profile at work: its paths, its ledger, its settings. No query or path of it reaches another one."""

import json
import tomllib
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from tzlocal import get_localzone

from daemon import ledger
from daemon.durable import sha256_file
from daemon.home import Home, ProfilePaths
from daemon.ledger import jobs, uses
from daemon.readers import Locale
from daemon.rules.curation import Curation
from daemon.rules.lines import MAIN, parts_of
from daemon.rules.prompts import Prompts
from daemon.rules.sessions import ChatRules, normal_name
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
    def locale(self) -> Locale:
        """How times without a zone are understood: as the profile says, else as this machine does."""
        person = self.settings.person(self.name)
        return locale_of(person.timezone, person.day_first)

    @property
    def aliases(self) -> list[str]:
        """By what names this person is known in chats: from the settings, and as `engramd owner` said."""
        return [*self.settings.person(self.name).aliases, *json.loads(jobs.get_meta(self.db, "aliases") or "[]")]

    def set_aliases(self, names: list[str], *, add: bool) -> None:
        """Add names by which this person is known, or take away some that `engramd owner` had added."""
        have = json.loads(jobs.get_meta(self.db, "aliases") or "[]")
        changed = [name for name in have if normal_name(name) not in {normal_name(one) for one in names}]
        with self.db.transaction():
            jobs.set_meta(self.db, "aliases", json.dumps([*changed, *names] if add else changed, ensure_ascii=False))

    @property
    def curation_sha256(self) -> str:
        """Of `etc/curation.toml`, which says what is left out."""
        path = self.home.etc / "curation.toml"
        return sha256_file(path) if path.exists() else ""

    @property
    def chat_rules(self) -> ChatRules:
        return chat_rules(self.settings)

    @property
    def most_checkpoints(self) -> int:
        """So many of the main head's chain are kept."""
        return self.most_checkpoints_of(self.recipe.method)

    def most_checkpoints_of(self, method: str) -> int:
        """So many of a head's chain are kept; of whole models fewer."""
        most = self.recipe.save_total_limit
        return min(most, self.settings.retention.full_checkpoints) if method == "full" else most

    @property
    def recipe(self) -> TrainingRecipe:
        """Of the nights, which train the main line."""
        return self.recipe_of(MAIN)

    def recipe_of(self, line: str, base_model: str | None = None) -> TrainingRecipe:
        """Of a line, which may train by another method. Its base is `base_model`, else `base_of` the line."""
        recipe = self.settings.recipe(self.name)
        method = parts_of(line)[1] or recipe.method
        changed = {"base_model": base_model or self.base_of(line), "method": method}
        if changed == {"base_model": recipe.base_model, "method": recipe.method}:
            return recipe
        return TrainingRecipe.model_validate(recipe.model_dump() | changed)

    def base_of(self, line: str) -> str:
        """The base model that the next job of a line is about: as the command line or the environment says; else the
        one that a person chose for a cycle of the line, while the settings named the same as now, if its head is on
        it; else as the main line has it; else as the settings say, with their fallback."""
        named = self.settings.recipe(self.name).base_model
        if self.settings.base_is_fixed(self.name):
            return named
        named = named if line == MAIN else self.base_of(MAIN)
        head = jobs.get_head(self.db, line)
        there = str((jobs.chain_key(self.db, head["chain"]) or {}).get("base_model")) if head else named
        return there if there != named and uses.base_chosen(self.db, line, there, named) else named


def locale_of(timezone: str, day_first: bool | None) -> Locale:
    return Locale(ZoneInfo(timezone) if timezone else get_localzone(), day_first)


def chat_rules(settings: Settings) -> ChatRules:
    """As the settings have it."""
    chats = settings.chats
    sides = {name: source.train_on for name, source in settings.sources.items()}
    return ChatRules(chats.session_gap_hours * 3600, chats.context_turns, sides)


def _data(home: Home, name: str) -> dict[str, Any]:
    """A data file of the home's `etc/`; empty, so all defaults, where there is none. Raises SettingsError."""
    path = home.etc / name
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None


def rules_of(home: Home) -> tuple[Curation, Prompts]:
    """What `etc/curation.toml` and `etc/prompts.toml` say. Raises SettingsError."""
    try:
        return (
            Curation.from_mapping(_data(home, "curation.toml")), Prompts.from_mapping(_data(home, "prompts.toml"))
        )  # fmt: skip
    except ValueError as error:
        raise SettingsError(str(error)) from None


def open_world(home: Home, name: str, settings: Settings) -> World:
    """Open a profile for writing; makes its folders and ledger where they are missing."""
    paths = home.profile(name)
    for folder in (paths.root, paths.claimed, paths.archive, paths.chains, paths.jobs):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    curation, prompts = rules_of(home)
    db = ledger.open_profile(paths.ledger, write=True)
    if jobs.get_meta(db, "seed") is None:
        with db.transaction():
            jobs.set_meta(db, "seed", str(settings.seed(name)))
    seed = int(jobs.get_meta(db, "seed") or 0)
    return World(name, home, paths, db, settings, curation, prompts, seed)
