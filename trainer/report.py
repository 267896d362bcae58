"""What a job has to say for itself so far; it becomes `result.json`, however the job ends."""

from dataclasses import asdict, dataclass, field
from typing import Protocol

from trainer.contract import JobResult, Weights
from trainer.names import ExitCode


class Flag(Protocol):
    """Set when the trainer is asked to stop."""

    def is_set(self) -> bool: ...


@dataclass(slots=True)
class Report:
    spec_sha256: str
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    start_step: int | None = None
    global_step: int | None = None
    steps: int | None = None
    samples_seen: int | None = None
    tokens: int | None = None
    last_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    weights: Weights = "raw"
    export_sha256: str | None = None
    notices: list[str] = field(default_factory=list)

    def notice(self, sentence: str | None) -> None:
        if sentence is not None and sentence not in self.notices:
            self.notices.append(sentence)

    def result(self, exit_code: ExitCode, reason: str | None, seconds: float) -> JobResult:
        return JobResult(exit_code=exit_code, reason=reason, seconds=round(seconds, 3), **asdict(self))
