"""`compute.json` in a job's folder: to which machine it goes, and on what terms. Never a secret."""

import hashlib
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from daemon import durable
from daemon.settings_compute import RunPodSettings, SshSettings

FILE = "compute.json"
COMMAND = (sys.executable, "-m", "daemon.compute")  # in the trainer's place; called as the trainer is


class Order(BaseModel):
    """What the courier is told. Written anew at each start of the job, so that settings of today hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1] = 1
    where: Literal["ssh", "runpod"]
    ssh: SshSettings
    runpod: RunPodSettings
    name: str = Field(pattern=r"[a-z0-9][a-z0-9-]{0,62}")  # one for each home, profile and job: a pod is found by it
    home: str = Field(pattern=r"[0-9a-f]{12}")  # the same in all names of this home
    base: Path | None = None  # the folder of the base model here; None: it ships with the trainer
    base_fingerprint: str = ""  # trainer.base_files.fingerprint of it
    lock_file: Path | None = None  # of which the environment over there is made
    threads: int = Field(0, ge=0)  # of a process over there; 0: half of its processors
    processes: int = Field(1, ge=0)  # 0: as many as there are GPUs
    sharded: Literal["auto", "never", "always"] = "auto"
    heartbeat_seconds: float = Field(gt=0.0)
    timeout_seconds: float = Field(gt=0.0)
    stop_seconds: float = Field(gt=0.0)
    room: int = Field(0, ge=0)  # bytes that the job's own folder may grow to over there
    deadline_hours: float = Field(gt=0.0)  # from the start of the trainer, or of the pod: after it all is stopped
    budget: float = Field(0.0, ge=0.0)  # dollars of this job
    until: float = Field(0.0, ge=0.0)  # unix time at which a pod stops itself: what is reserved pays until then

    @property
    def mark(self) -> str:
        """A short word for the name, to keep folders over there apart."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:12]


def write(job: Path, order: Order) -> None:
    durable.write_atomic(job / FILE, order.model_dump_json(indent=1).encode() + b"\n", 0o600)


def read(job: Path) -> Order:
    """Raises OSError, pydantic.ValidationError."""
    return Order.model_validate_json((job / FILE).read_bytes())
