"""The settings: what an owner may choose, where a value came from, and one sentence where it is wrong.

Command line > environment > `etc/engramd.toml` (when and where) > `etc/training.json` (what a training
run does) > defaults. The layers are read first and then validated as one, so that an error and
`engramd config` can both name the layer that a value stands in. `etc/engramd.toml` lists every key.
"""

import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from daemon.home import Home, is_profile_name
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InboxSettings(_Section):
    quiet_seconds: float = Field(
        3.0,
        ge=0.0,
        le=3600.0,
        description="A file is taken once its size and time have not changed for so long.",
    )
    scan_seconds: float = Field(
        30.0,
        ge=0.05,
        le=3600.0,
        description="Pause between two full looks at the inbox; changes seen come sooner.",
    )
    max_file_mb: int = Field(2048, ge=1, le=1_048_576, description="A larger file is refused.")
    max_document_mb: int = Field(
        64,
        ge=1,
        le=4096,
        description="A larger JSON document that must be parsed whole is refused; JSONL is not.",
    )
    slice_memories: int = Field(
        5000,
        ge=1,
        le=1_000_000,
        description="Memories written to the ledger in one go while a large file is read.",
    )


class JobsSettings(_Section):
    max_batches_per_job: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Batches that wait are trained together, at most so many in one job.",
    )
    max_memories_per_job: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="At most so many memories in one job; a larger batch has its own.",
    )
    heartbeat_seconds: float = Field(
        1800.0,
        ge=1.0,
        le=86_400.0,
        description="A trainer that reports nothing for so long is taken for stuck.",
    )
    timeout_hours: float = Field(24.0, gt=0.0, le=8760.0, description="No job runs longer than this.")
    stop_seconds: float = Field(
        300.0,
        ge=0.1,
        le=86_400.0,
        description="A stop waits so long for the trainer's checkpoint before it kills.",
    )
    retries: int = Field(2, ge=0, le=100, description="How often a crashed job is tried again.")
    nice: int = Field(
        10, ge=0, le=19, description="The trainer's niceness: 0 takes what it can, 19 gives way to all."
    )
    threads: int = Field(0, ge=0, le=4096, description="CPU threads of the trainer; 0 chooses from the load.")
    held_out_percent: float = Field(
        2.0, ge=0.0, le=50.0, description="Share of the memories kept out of training, to measure by."
    )
    held_out_from: int = Field(
        1000, ge=0, le=1_000_000_000, description="Below so many memories none is held out."
    )


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is written; debug may show texts of memories."
    )
    rotate_mb: float = Field(
        16.0, gt=0.0, le=4096.0, description="state/logs/engramd.jsonl is put aside at this size."
    )
    keep: int = Field(5, ge=0, le=1000, description="So many put-aside log files are kept.")


class ServiceSettings(_Section):
    tick_seconds: float = Field(1.0, ge=0.01, le=60.0, description="Pause between two looks at what is due.")


class CurationSettings(_Section):
    dual_flip: bool = Field(
        True, description="Train dual-mode pairs with a real human turn from the other side too."
    )
    system_prompt: str = Field("", max_length=20_000, description="Put before every sample; empty for none.")


class ChatSettings(_Section):
    """How chats between people become memories."""

    session_gap_hours: float = Field(
        4.0, gt=0.0, le=87_600.0, description="A longer silence between people begins a new conversation."
    )
    context_turns: int = Field(
        12, ge=0, le=1000, description="So many turns before a question are shown with it, and not learnt."
    )


class SourceSettings(_Section):
    train_on: Literal["assistant", "me"] = Field(
        "assistant",
        description="Of chats with an AI: learn its answers, or what you said yourself (the roles swap).",
    )


class CycleSettings(_Section):
    """Read from `etc/training.json`, as in the origin; `[cycle]` in engramd.toml wins over it."""

    max_samples: int = Field(3000, ge=1, le=100_000_000, description="Cap of a cycle's samples.")
    days_recent: int = Field(30, ge=0, le=36_525, description="Memories of so many days count as recent.")
    old_samples: int = Field(
        3000, ge=0, le=100_000_000, description="Older memories drawn beside the recent ones."
    )
    dataset_builder: Literal["advanced", "classic"] = Field(
        "advanced", description="advanced curates; classic only removes duplicates."
    )


def _zone(name: str) -> str:
    if name:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("it is no time zone; one looks like Europe/Berlin") from None
    return name


class ProfileSettings(_Section):
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds everything random of this profile.")
    aliases: list[str] = Field(
        default_factory=list,
        description="Names, mail addresses and phone numbers of this person in chats; engramd owner adds some too.",
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        "", description='Of times without a zone, such as "Europe/Berlin"; empty: the zone of this machine.'
    )
    day_first: bool | None = Field(
        None, description="Whether 3/4/2024 is in April; asked only where a whole export does not tell."
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="Keys of [training] that differ for this profile."
    )


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
    training: TrainingRecipe = Field(default_factory=TrainingRecipe)
    profiles: dict[str, ProfileSettings] = Field(default_factory=dict)

    _notices: list[str] = PrivateAttr(default_factory=list)

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
            return self.training
        return TrainingRecipe.model_validate(self.training.model_dump() | own.training)

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
    raise_first(_profile_faults(settings, layers) + _flag_faults(settings, layers))
    notices += _recipe_notices(settings, layers)
    settings._notices = notices
    return settings, layers


def _layer(layers: tuple[Layer, ...], key: str) -> Layer | None:
    return next((layer for layer in layers if lookup(layer.values, key)[0]), None)


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
