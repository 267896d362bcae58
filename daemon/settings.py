"""The settings: what an owner may choose, where a value came from, and one sentence where it is wrong.

Command line > environment > `etc/engramd.toml` (when and where) > `etc/training.json` (what a training
run does) > defaults. The layers are read first and then validated as one, so that an error and
`engramd config` can both name the layer that a value stands in. `etc/engramd.toml` lists every key.
"""

import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon import expressions
from daemon.home import Home, is_profile_name
from daemon.settings_compute import ComputeSettings
from daemon.settings_layers import (
    Fault,
    Layer,
    SettingsError,
    allowed,
    faults,
    leaves,
    lookup,
    nested,
    raise_first,
    read_environment,
    read_json,
    read_toml,
    wrong_value,
)
from daemon.settings_learning import EvaluationSettings, GateSettings, VersioningSettings
from daemon.settings_sections import (
    ChatSettings,
    CurationSettings,
    CycleSettings,
    DiskSettings,
    InboxSettings,
    JobsSettings,
    LogSettings,
    ProfileSettings,
    RetentionSettings,
    ScheduleSettings,
    ServiceSettings,
    SourceSettings,
    TrainingSettings,
)
from daemon.settings_serving import ServeSettings
from trainer.contract import FULL_RATE_BOUNDS, FULL_RATE_DEFAULT, TrainingRecipe

__all__ = ["Settings", "SettingsError", "load", "origins"]

SHORT_NAMES = {  # the origin's variables
    "ENGRAMD_BASE_MODEL": "training.base_model",
    "ENGRAMD_DAYS_RECENT": "cycle.days_recent",
    "ENGRAMD_OLD_SAMPLES": "cycle.old_samples",
    "ENGRAMD_MAX_SAMPLES": "cycle.max_samples",
    "ENGRAMD_DATASET_BUILDER": "cycle.dataset_builder",
}
DEFAULT = "default"
COMMAND_LINE = "command line"
TOML = "etc/engramd.toml"
JSON = "etc/training.json"
_REMARKS = ("comment", "notes")  # in training.json, for people
_FULL_RATE = "full_learning_rate"


_layers: ContextVar[tuple[Layer, ...]] = ContextVar("layers", default=())


class Settings(BaseSettings):
    """All settings. `Settings()` gives the defaults and reads nothing; `load` reads a home."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    inbox: InboxSettings = Field(default_factory=InboxSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    curation: CurationSettings = Field(default_factory=CurationSettings)
    chats: ChatSettings = Field(default_factory=ChatSettings)
    sources: dict[str, SourceSettings] = Field(default_factory=dict)
    cycle: CycleSettings = Field(default_factory=CycleSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    disk: DiskSettings = Field(default_factory=DiskSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    gate: GateSettings = Field(default_factory=GateSettings)
    versioning: VersioningSettings = Field(default_factory=VersioningSettings)
    serve: ServeSettings = Field(default_factory=ServeSettings)
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    profiles: dict[str, ProfileSettings] = Field(default_factory=dict)

    _notices: list[str] = PrivateAttr(default_factory=list)
    _fixed_bases: set[str | None] = PrivateAttr(default_factory=set)  # None: of all profiles

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, *(InitSettingsSource(settings_cls, layer.values) for layer in _layers.get()))

    @property
    def notices(self) -> list[str]:
        """What was put right or ignored while loading; each is a sentence for the log."""
        return self._notices

    def recipe(self, profile: str) -> TrainingRecipe:
        """The recipe of one profile: the general one with the profile's own keys over it."""
        own = self.profiles.get(profile)
        if own is None or not own.training:
            return self.training.recipe
        return TrainingRecipe.model_validate(self.training.recipe.model_dump() | own.training)

    def base_is_fixed(self, profile: str) -> bool:
        """Whether the command line or the environment names the base model, which then wins over what the registry
        has (origin, row 24)."""
        return profile in self._fixed_bases or None in self._fixed_bases

    def person(self, profile: str) -> ProfileSettings:
        """What is set for one profile, defaults where nothing is."""
        return self.profiles.get(profile) or ProfileSettings()

    def seed(self, profile: str) -> int:
        own = self.profiles.get(profile)
        return own.seed if own else 0


def load(
    home: Home, overrides: dict[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read and validate the settings of a home. Keys of `overrides` may be dotted. Raises SettingsError."""
    return _resolve(home, overrides, environ)[0]


def origins(
    home: Home, overrides: dict[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> list[tuple[str, Any, str]]:
    """Each setting as (dotted key, value in force, where it came from)."""
    settings, layers = _resolve(home, overrides, environ)
    return [(key, value, _where(layers, key)) for key, value in leaves(settings.model_dump(mode="json"))]


def _resolve(
    home: Home, overrides: dict[str, Any] | None, environ: Mapping[str, str] | None
) -> tuple[Settings, tuple[Layer, ...]]:
    notices: list[str] = []
    layers = (
        Layer(COMMAND_LINE, nested(overrides or {})),
        *read_environment(os.environ if environ is None else environ, Settings, SHORT_NAMES),
        Layer(TOML, read_toml(home.etc / "engramd.toml", TOML)),
        Layer(JSON, _training_json(read_json(home.etc / "training.json", JSON), notices)),
    )
    token = _layers.set(layers)
    try:
        settings = Settings()
    except ValidationError as error:
        raise_first(faults(error, Settings.model_json_schema(), lambda key: _where(layers, key)))
        raise  # not reached: an error has at least one item
    finally:
        _layers.reset(token)
    raise_first(_retention_faults(settings, layers))
    raise_first(_profile_faults(settings, layers) + _flag_faults(settings, layers))
    notices += _recipe_notices(settings, layers) + _schedule_notices(settings)
    settings._notices = notices
    settings._fixed_bases = _fixed_bases(settings, layers)
    return settings, layers


def _layer(layers: tuple[Layer, ...], key: str) -> Layer | None:
    return next((layer for layer in layers if lookup(layer.values, key)[0]), None)


def _fixed_bases(settings: Settings, layers: tuple[Layer, ...]) -> set[str | None]:
    """The profiles whose base model is named for this run only: by the command line or the environment."""
    fixed: set[str | None] = set()
    for profile in (None, *settings.profiles):
        section = f"profiles.{profile}.training" if profile else "training"
        layer = _layer(layers, f"{section}.base_model")
        if layer is not None and layer.name not in (TOML, JSON):
            fixed.add(profile)
    return fixed


def _where(layers: tuple[Layer, ...], key: str) -> str:
    layer = _layer(layers, key)
    return layer.where(key) if layer else DEFAULT


def _training_json(values: dict[str, Any], notices: list[str]) -> dict[str, Any]:
    """The origin's flat file in our two sections; what neither knows is named and left out."""
    training: dict[str, Any] = {}
    cycle: dict[str, Any] = {}
    for key, value in values.items():
        if key in TrainingRecipe.model_fields:
            training[key] = value
        elif key in CycleSettings.model_fields:
            cycle[key] = value
        elif key not in _REMARKS:
            notices.append(f"{JSON}: {key} is not known and has no effect")
    return {name: section for name, section in (("training", training), ("cycle", cycle)) if section}


def _profile_faults(settings: Settings, layers: tuple[Layer, ...]) -> list[Fault]:
    """A profile's own recipe is partial, so it is judged together with the general one."""
    found: list[Fault] = []
    for name in settings.profiles:
        section = f"profiles.{name}"
        if not is_profile_name(name):
            may_be = "a-z, 0-9, _ and -, at most 32 of them, and neither failed nor claimed"
            found.append(
                Fault(_where(layers, section), f"{section} is no name for a profile; it must be {may_be}")
            )
        try:
            settings.recipe(name)
        except ValidationError as error:
            schema = TrainingRecipe.model_json_schema()
            found += faults(error, schema, lambda key: _where(layers, key), f"{section}.training.")
    return found


def _retention_faults(settings: Settings, layers: tuple[Layer, ...]) -> list[Fault]:
    """A policy that keeps nothing is a mistake, never a wish."""
    return [
        Fault(_where(layers, f"retention.{kind}"), f"retention.{kind} keeps nothing; set one of its keys above 0")
        for kind in ("snapshots", "versions", "jobs")
        if getattr(settings.retention, kind).keeps_nothing
    ]


def _flag_faults(settings: Settings, layers: tuple[Layer, ...]) -> list[Fault]:
    """Pydantic takes true for 1; a person who wrote it meant something else."""
    found = []
    for key, value in leaves(settings.model_dump()):
        layer = _layer(layers, key)
        given = lookup(layer.values, key)[1] if layer else None
        if isinstance(given, bool) and type(value) in (int, float):
            may_be = allowed(Settings.model_json_schema(), key.split(".")) or "a number"
            found.append(Fault(_where(layers, key), wrong_value(key, given, may_be)))
    return found


def _recipe_notices(settings: Settings, layers: tuple[Layer, ...]) -> list[str]:
    """What the recipe put right by itself: its full rate, and 4 bits where every weight is trained."""
    notices = []
    for section in ("training", *(f"profiles.{name}.training" for name in settings.profiles)):
        layer = _layer(layers, f"{section}.{_FULL_RATE}")
        if layer:
            given = lookup(layer.values, f"{section}.{_FULL_RATE}")[1]
            notices += _rate_notice(layer.where(f"{section}.{_FULL_RATE}"), given)
    for profile in (None, *settings.profiles):
        recipe = settings.recipe(profile) if profile else settings.training
        asked = _layer(layers, f"profiles.{profile}.training" if profile else "training.load_in_4bit")
        if recipe.method == "full" and recipe.load_in_4bit and asked:
            whose = f" of profile {profile}" if profile else ""
            notices.append(
                f"load_in_4bit{whose} is ignored: method full trains every weight in {recipe.dtype}"
            )
    return notices


def _schedule_notices(settings: Settings) -> list[str]:
    """A task runs at most once a day, whatever cron says."""
    given = {name: getattr(settings.schedule, name) for name in ("snapshot", "verify")}
    given |= {f"cycles.{name}.when": cycle.when for name, cycle in settings.schedule.cycles.items()}
    found = {key: expressions.parse(text) for key, text in given.items()}
    return [
        f'schedule.{key} = "{one.text}" names several times of a day; engramd takes the first, {one.at:%H:%M}'
        for key, one in found.items()
        if one.several
    ]


def _rate_notice(place: str, given: Any) -> list[str]:
    used = TrainingRecipe(full_learning_rate=given).full_learning_rate
    low, high = FULL_RATE_BOUNDS
    try:
        rate = float(given)
    except (TypeError, ValueError):
        rate = float("nan")
    shown = json.dumps(given, default=str)
    if rate != rate:
        return [f"{place}: {_FULL_RATE} = {shown} is not a number; {FULL_RATE_DEFAULT:g} is used"]
    if rate != used:
        return [f"{place}: {_FULL_RATE} = {shown} lies outside {low:g} to {high:g}; {used:g} is used"]
    return []
