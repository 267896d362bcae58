"""Sections of the settings about what is learnt, how it is measured, and what is refused."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MixSettings(Section):
    """`[training.mix]`: what goes into a job beside what is new."""

    replay: float = Field(
        0.3, ge=0.0, le=0.9,
        description="Share of old memories in each job, trained once more so that they are not forgotten; 0: none.",
    )  # fmt: skip
    strategy: Literal["random", "least_recently_rehearsed", "highest_loss"] = Field(
        "random",
        description="Which old ones: a seeded draw, those whose last training is longest ago, or those that were "
        "known least when they were trained last.",
    )
    anchor: float = Field(
        0.3, ge=0.0, le=0.9,
        description="Share of general text in each job, which keeps the abilities of the base model; 0: none.",
    )  # fmt: skip
    anchors: str = Field(
        "", description="A JSONL file of chats as general text; empty: the base model's own answers, made once."
    )
    anchor_prompts: int = Field(
        1024, ge=1, le=100_000, description="At most so many general prompts are answered by the base model."
    )
    anchor_tokens: int = Field(128, ge=1, le=65_536, description="The longest of these answers, in tokens.")

    @model_validator(mode="after")
    def _room_for_what_is_new(self) -> "MixSettings":
        if self.replay + self.anchor > 0.95:
            raise ValueError("replay and anchor together must leave at least 0.05 for what is new")
        return self


class EvaluationSettings(Section):
    """`[evaluation]`: what each new version is measured by."""

    held_out_percent: float = Field(
        2.0, ge=0.0, le=50.0, description="Share of the memories kept out of training, to measure by."
    )
    held_out_from: int = Field(
        1000, ge=0, le=1_000_000_000, description="Below so many memories none is held out."
    )
    probes: int = Field(
        64, ge=0, le=10_000, description="Questions of each kind: new, recent, old and held-out memories, general text."
    )
    free_answers: int = Field(
        16, ge=0, le=10_000, description="To so many of them the model also answers in its own words."
    )
    free_answer_tokens: int = Field(64, ge=1, le=65_536, description="The longest of these answers, in tokens.")


class GateSettings(Section):
    """`[gate]`: by how much a new version may be worse than the one in service. 0.1 nats is 10 % of perplexity."""

    enabled: bool = Field(True, description="Whether a worse version is refused; it is measured in any case.")
    least_probes: int = Field(8, ge=1, le=10_000, description="A kind with fewer questions than this decides nothing.")
    held_out_loss: float = Field(0.2, ge=0.0, le=100.0, description="Nats a token, on held-out memories.")
    old_recall: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of the answers' tokens that it still knows, of old memories."
    )
    general: float = Field(
        0.05, ge=0.0, le=1.0, description="Share of the answers' tokens that it still knows, of general text."
    )
    drift: float = Field(
        0.2, ge=0.0, le=1.0, description="The same, however slowly it was lost: held against the base model itself."
    )
    surprise: float = Field(
        2.5, ge=0.0, le=100.0,
        description="Refused as noise: new memories that surprise the version in service by so many nats a token more "
        "than those of any earlier night and twice as much, and are learnt half as well; 0: never.",
    )  # fmt: skip
    fit: bool = Field(
        True, description="Refused as mixed up: answers that fit each other's questions better than their own."
    )


class VersioningSettings(Section):
    """`[versioning]`: what a new version means for the next one."""

    auto_update_base: bool = Field(
        True, description="With method full: the newest version is what model-registry.json names as the base."
    )
    merge_into_base: bool = Field(
        False,
        description="With method lora: a cycle's merged model becomes the base of what follows, which begins the "
        "moments anew.",
    )
    keep_all_versions: bool = Field(False, description="Whether the files of versions are never pruned.")
