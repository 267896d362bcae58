"""Names that the daemon and the trainer share, without a single import of weight.

`engramd status` must answer at once, so what it needs of the contract stands here, away from pydantic;
`trainer/contract.py` gives it out again.
"""

from enum import IntEnum
from typing import Final

CONTRACT_VERSION: Final = 1

# Files of a job folder. The daemon writes the first four, the trainer the rest.
SPEC = "spec.json"
SAMPLES = "samples.jsonl"
PROBES = "probes.jsonl"
RETRY = "retry.json"
PLAN = "plan.json"
RENDERED = "rendered.jsonl"
PROGRESS = "progress.jsonl"
METRICS = "metrics.json"
RESULT = "result.json"
LOG = "trainer.log"
LOCK = "lock"
PARENT = "parent"
SERVED = "served"  # the version that is relied on, where it is not the parent
PROMPTS = "prompts.jsonl"
GENERATED = "generated.jsonl"
BEFORE = "scores-before.json"  # how parent, served version and base do on the probes
LOSSES = "losses.jsonl"  # of each sample, as it was trained
CHECKPOINT_PREFIX = "checkpoint-"

# Of an export job: all but the first lie in the folder `export/`, as `models/v<N>/` has them afterwards.
BASE_GGUF = "base.gguf"  # in the job folder: the base's, made by an earlier job; in export/: made by this one
EXPORT = "export"
EXPORTED = "export.json"  # last: hashes, template, parity
PEFT_FOLDER = "adapter"
ADAPTER_GGUF = "adapter.gguf"
MODEL_FOLDER = "model"
MODEL_GGUF = "model.gguf"
MODELFILE = "Modelfile"

# The origin's names for what goes into a run and what came of it, for people; nothing reads them.
CURATED = "curated_memories.json"
FORMATTED = "formatted_samples.json"
SCHEMA_APPLIED = "schema_applied.json"
DATASET = "fine_tune_dataset.jsonl"  # another name of SAMPLES
SUMMARY = "run-summary.json"

# Files of a checkpoint.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
RNG = "rng_state.pth"
STATE = "trainer_state.json"
MANIFEST = "manifest.json"
EMA = "ema.safetensors"  # the running mean of the trained weights, by the names of the raw ones
COMPENSATION = "compensation.safetensors"  # full fine-tuning in 16 bits: the low halves of the weights


class ExitCode(IntEnum):
    """How a trainer ended; `result.json` says the same with words."""

    DONE = 0
    INTERRUPTED = 10
    BAD_SPEC = 11
    OUT_OF_MEMORY = 12
    DIVERGED = 13
    NO_DEVICE = 14
    LOCKED = 15  # another trainer holds the job's lock; nothing was touched and no result was written


def checkpoint_step(name: str) -> int | None:
    """The global step in a folder name `checkpoint-<step>`, or None where it is no such name."""
    digits = name.removeprefix(CHECKPOINT_PREFIX)
    if digits == name or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits)
