"""The sections of the settings: each key with its type, its bounds, its default and one sentence about it."""

import re
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from daemon import expressions, hours
from daemon.home import is_profile_name
from daemon.settings_learning import MixSettings, Section
from trainer.contract import TrainingRecipe

TASKS = ("snapshot", "prune", "verify", "cycle")  # what the schedule does besides the cycles that a person names


def _zone(name: str) -> str:
    if name:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("it is no time zone; one looks like Europe/Berlin") from None
    return name


def _expression(text: str) -> str:
    expressions.parse(text)
    return text


class InboxSettings(Section):
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


class JobsSettings(Section):
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


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is written; debug may show texts of memories."
    )
    rotate_mb: float = Field(
        16.0, gt=0.0, le=4096.0, description="state/logs/engramd.jsonl is put aside at this size."
    )
    keep: int = Field(5, ge=0, le=1000, description="So many put-aside log files are kept.")


class ServiceSettings(Section):
    tick_seconds: float = Field(1.0, ge=0.01, le=60.0, description="Pause between two looks at what is due.")


class CurationSettings(Section):
    dual_flip: bool = Field(
        True, description="Train dual-mode pairs with a real human turn from the other side too."
    )
    system_prompt: str = Field("", max_length=20_000, description="Put before every sample; empty for none.")


class ChatSettings(Section):
    """How chats between people become memories."""

    session_gap_hours: float = Field(
        4.0, gt=0.0, le=87_600.0, description="A longer silence between people begins a new conversation."
    )
    context_turns: int = Field(
        12, ge=0, le=1000, description="So many turns before a question are shown with it, and not learnt."
    )


class SourceSettings(Section):
    train_on: Literal["assistant", "me"] = Field(
        "assistant",
        description="Of chats with an AI: learn its answers, or what you said yourself (the roles swap).",
    )


class CycleSettings(Section):
    """Read from `etc/training.json`, as in the origin; `[cycle]` in engramd.toml wins over it."""

    max_samples: int = Field(3000, ge=1, le=100_000_000, description="Cap of a cycle's samples.")
    days_recent: int = Field(30, ge=0, le=36_525, description="Memories of so many days count as recent.")
    old_samples: int = Field(
        3000, ge=0, le=100_000_000, description="Older memories drawn beside the recent ones."
    )
    dataset_builder: Literal["advanced", "classic"] = Field(
        "advanced", description="advanced curates; classic only removes duplicates."
    )


class ProfileSettings(Section):
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


When = Annotated[str, AfterValidator(_expression)]


class CycleSchedule(Section):
    """`[schedule.cycles.NAME]`: a larger training run that comes by itself, with its own selection."""

    when: When = Field("1st 03:30", description="When it comes; the forms are those of the other tasks.")
    kind: Literal["monthly", "foundation"] = Field(
        "monthly", description="monthly goes on with recent memories and some old ones; foundation begins with all."
    )
    method: Literal["", "lora", "full"] = Field("", description="As in [training]; empty: as it stands there.")
    mode: Literal["", "dual", "emulation", "agent"] = Field(
        "", description="Only memories of this mode; empty: of every one."
    )
    days_recent: int | None = Field(
        None, ge=0, le=36_525, description="As in [cycle], which is used where this is not set."
    )
    old_samples: int | None = Field(
        None, ge=0, le=100_000_000, description="As in [cycle], which is used where this is not set."
    )
    max_samples: int | None = Field(
        None, ge=1, le=100_000_000, description="As in [cycle], which is used where this is not set."
    )
    dataset_builder: Literal["", "advanced", "classic"] = Field(
        "", description="As in [cycle]; empty: as it stands there."
    )
    where: Literal["", "local", "ssh", "runpod"] = Field(
        "", description="Where it is trained; empty: as in [compute]."
    )
    profile: str = Field("", description="Whose memories; empty: of each profile, one cycle each.")

    @field_validator("profile")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not is_profile_name(name):
            raise ValueError("a profile's name is of a-z, 0-9, _ and -, at most 32 characters")
        return name


class ScheduleSettings(Section):
    """When the daemon does by itself what a person would otherwise have to think of. Times are local."""

    timezone: Annotated[str, AfterValidator(_zone)] = Field(
        "", description='Of the times below, such as "Europe/Berlin"; empty: the zone of this machine.'
    )
    snapshot: When = Field(
        "daily 03:00",
        description='When a snapshot is taken: "daily 03:00", "mon-fri 02:00", "1st 03:30", "last 03:00", '
        '"every 2 weeks on fri 03:30 from 2026-01-02", "monthly", "quarterly", five fields of cron, or "off". '
        "At most once a day.",
    )
    prune_after_snapshot: bool = Field(True, description="Whether each snapshot is followed by engramd prune.")
    verify: When = Field("sun 04:30", description='When snapshots are hashed anew and compared; "off" for never.')
    verify_max_minutes: int = Field(
        60, ge=1, le=1440, description="A scheduled verify stops after so long; the next one goes on from there."
    )
    cycles: dict[str, CycleSchedule] = Field(
        default_factory=lambda: {"monthly": CycleSchedule()},
        description="Cycles by name; monthly is always one of them, and may be off.",
    )

    @field_validator("cycles")
    @classmethod
    def _names(cls, cycles: dict[str, CycleSchedule]) -> dict[str, CycleSchedule]:
        for name in cycles:
            if not is_profile_name(name) or name in TASKS:
                rule = f"a-z, 0-9, _ and -, and none of {', '.join(TASKS)}"
                raise ValueError(f"{name!r} cannot be a cycle's name: {rule}")
        return {"monthly": CycleSchedule()} | cycles


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _windows(texts: list[str]) -> list[str]:
    for text in texts:
        hours.parse(text)
    return texts


class WhenSettings(Section):
    """`[training.when]`: when a job may run. Outside of it a running job saves and waits."""

    window: Annotated[list[str], BeforeValidator(_one_or_more), AfterValidator(_windows)] = Field(
        default_factory=list,
        description='Hours of training, such as ["22:00-07:00"] or ["mon-fri 22:00-07:00", "sat,sun 00:00-24:00"].',
    )
    idle_minutes: float = Field(
        0.0, ge=0.0, le=1440.0, description="Only once nobody has used this machine for so long; 0: always."
    )
    on_battery: bool = Field(True, description="Whether training goes on while on battery.")
    max_load: float = Field(
        0.0, ge=0.0, le=64.0,
        description="Not while others keep so many of each processor's shares busy (0.5: half of them); 0: no limit.",
    )  # fmt: skip
    gpu_busy_mb: int = Field(
        0, ge=0, le=1_048_576, description="Not while other programs hold more GPU memory than this; 0: no limit."
    )
    max_temperature: int = Field(
        0, ge=0, le=150, description="Not above so many degrees Celsius of GPU or processor; 0: no limit."
    )
    min_free_memory_mb: int = Field(
        0, ge=0, le=16_777_216, description="Not with less free memory than this; 0: no limit."
    )
    settle_minutes: float = Field(
        2.0, ge=0.0, le=1440.0,
        description="What has stopped training must be over for so long before it goes on (windows excepted).",
    )  # fmt: skip


class TrainingSettings(TrainingRecipe):
    """`[training]`: the recipe of every job, and when jobs may run."""

    when: WhenSettings = Field(default_factory=WhenSettings, description="When jobs may run.")
    mix: MixSettings = Field(default_factory=MixSettings, description="What is rehearsed in each job.")

    @property
    def recipe(self) -> TrainingRecipe:
        return TrainingRecipe.model_validate(self.model_dump(exclude={"when", "mix"}))


def _span(text: str) -> str:
    if not re.fullmatch(r"(\d{1,6}[hdwmy])*", text):
        raise ValueError('it is no span of time; one looks like "14d", "36h", "6m" or "1y6m"')
    return text


class Keep(Section):
    """One retention policy: what any rule keeps is kept. Periods are those of the calendar in the home's zone."""

    keep_last: int = Field(0, ge=0, le=1_000_000, description="The newest so many.")
    keep_daily: int = Field(0, ge=0, le=1_000_000, description="The newest of each of so many days.")
    keep_weekly: int = Field(0, ge=0, le=1_000_000, description="The newest of each of so many weeks (ISO).")
    keep_monthly: int = Field(0, ge=0, le=1_000_000, description="The newest of each of so many months.")
    keep_yearly: int = Field(0, ge=0, le=1_000_000, description="The newest of each of so many years.")
    keep_within: Annotated[str, AfterValidator(_span)] = Field(
        "", description='All of the last "36h", "14d", "2w", "6m", "1y"; empty: none.'
    )

    @property
    def keeps_nothing(self) -> bool:
        counts = (self.keep_last, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly)
        return not any(counts) and not re.search("[1-9]", self.keep_within)


class KeepSnapshots(Keep):
    keep_daily: int = Field(14, ge=0, le=1_000_000, description="The newest of each of so many days.")
    keep_weekly: int = Field(8, ge=0, le=1_000_000, description="The newest of each of so many weeks (ISO).")
    keep_monthly: int = Field(12, ge=0, le=1_000_000, description="The newest of each of so many months.")


class KeepVersions(Keep):
    keep_last: int = Field(2, ge=0, le=1_000_000, description="The newest so many.")


class KeepJobs(Keep):
    keep_last: int = Field(30, ge=0, le=1_000_000, description="The newest so many.")
    keep_monthly: int = Field(12, ge=0, le=1_000_000, description="The newest of each of so many months.")


class RetentionSettings(Section):
    """What `engramd prune` keeps; of checkpoints it keeps the newest `training.save_total_limit`."""

    snapshots: KeepSnapshots = Field(default_factory=KeepSnapshots, description="Of snapshots.")
    versions: KeepVersions = Field(
        default_factory=KeepVersions, description="Of the files of versions; their rows always stay."
    )
    jobs: KeepJobs = Field(
        default_factory=KeepJobs, description="Of folders of ended jobs; their records always stay."
    )
    full_checkpoints: int = Field(
        2, ge=1, le=1_000_000, description="Checkpoints of a chain that trains whole models, if the limit is higher."
    )


class DiskSettings(Section):
    reserve_mb: int = Field(
        1024, ge=0, le=1_073_741_824, description="Work waits rather than leave less free space than this."
    )
