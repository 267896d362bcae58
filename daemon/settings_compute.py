"""`[compute]`: on which machine jobs are trained, and in how many processes."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from daemon.settings_learning import Section

KEY_VARIABLE = "RUNPOD_API_KEY"  # RunPod's own; never in the settings
Where = Literal["local", "ssh", "runpod"]
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:\[\]-]*")  # never an option of ssh's


def _processes(value: object) -> object:
    return 0 if value == "auto" else value


class SshSettings(Section):
    host: str = Field(
        "", description="A host of your ssh config, or user@machine; a key must open it without questions."
    )
    config: str = Field("", description="The ssh config to read; empty: that of the user who runs engramd.")
    folder: str = Field(
        "engramd-compute", description="Where everything lies over there, from the home of its user."
    )
    python: str = Field(
        "",
        description="A Python over there that has what the trainer needs; empty: an environment is made there once for "
        "each requirements.lock.",
    )
    keep_checkpoints: int = Field(
        2,
        ge=1,
        le=100,
        description="Checkpoints that stay over there, so that the next job need not send its parent.",
    )

    @field_validator("host")
    @classmethod
    def _no_option(cls, value: str) -> str:
        if value and not _HOST.fullmatch(value):
            raise ValueError("it is no host; one looks like gpubox or anna@gpubox")
        return value


class RunPodSettings(Section):
    """The key is never here: RUNPOD_API_KEY in the environment, or systemd's credential `runpod_api_key`."""

    api: str = Field("https://rest.runpod.io/v1", description="Where the API answers.")
    template: str = Field("", description="Id of the template that pods are made of; empty: by `image`.")
    image: str = Field(
        "", description="Container image of a pod without template; it needs sshd, rsync and Python."
    )
    gpu: list[str] = Field(default_factory=list, description="Kinds of GPU that will do, the best first.")
    gpus: int = Field(1, ge=1, le=8, description="GPUs of a pod.")
    volume_gb: int = Field(100, ge=1, le=10_000, description="Disk of a pod that stays when it is stopped.")
    identity: str = Field("", description="The private ssh key that opens pods; empty: as ssh finds one.")
    price_per_hour: float = Field(
        0.0,
        ge=0.0,
        le=1000.0,
        description="What a running pod costs, in dollars; nothing is rented while it is 0.",
    )
    budget_per_job: float = Field(5.0, ge=0.0, le=100_000.0, description="Dollars that one job may cost.")
    budget_per_month: float = Field(20.0, ge=0.0, le=100_000.0, description="Dollars of a calendar month.")
    tokens_per_second: float = Field(
        0.0,
        ge=0.0,
        le=10_000_000.0,
        description="Measured on such a pod, to reckon costs before; 0: as the last jobs of this home had it.",
    )
    python: str = Field(
        "",
        description="A Python of the image that has what the trainer needs; empty: an environment is made on the "
        "volume.",
    )
    start_minutes: float = Field(
        15.0, gt=0.0, le=240.0, description="Until a pod must have opened its SSH port."
    )
    after: Literal["terminate", "stop"] = Field(
        "terminate",
        description="What becomes of a pod once everything is home; stop keeps its volume for the next.",
    )


class ComputeSettings(Section):
    where: Where = Field(
        "local", description="Where jobs are trained: on this machine, over SSH, on a rented pod."
    )
    full: Where | Literal[""] = Field("", description="The same for method full; empty: as `where`.")
    cycles: Where | Literal[""] = Field("", description="The same for cycles; empty: as `full` or `where`.")
    processes: Annotated[int, BeforeValidator(_processes)] = Field(
        1, ge=0, le=64,
        description='Processes that share a job, one for each GPU; "auto": as many as there are GPUs.',
    )  # fmt: skip
    sharded: Literal["auto", "never", "always"] = Field(
        "auto",
        description="Whether processes share one model (FSDP) instead of holding one each (DDP); auto: where it does "
        "not fit otherwise.",
    )
    ssh: SshSettings = Field(default_factory=SshSettings, description="A machine of your own.")
    runpod: RunPodSettings = Field(default_factory=RunPodSettings, description="A rented one.")

    @model_validator(mode="after")
    def _has_a_host(self) -> "ComputeSettings":
        if "ssh" in (self.where, self.full, self.cycles) and not self.ssh.host:
            raise ValueError('"ssh" needs compute.ssh.host')
        return self
