"""The one thing that the daemon and the trainer both know: what a job folder holds.

A job is a pure function of its folder. The daemon writes `spec.json` (`JobSpec`), `samples.jsonl`
(one `Sample` a line) and `probes.jsonl` (one `Probe` a line); `python -m trainer JOBDIR` writes the
rest, `result.json` (`JobResult`) last. docs/contract.md walks through a folder made by hand.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer.names import CONTRACT_VERSION, ExitCode

FULL_RATE_BOUNDS = (1e-5, 5e-5)
FULL_RATE_DEFAULT = 3e-5

Method = Literal["lora", "full"]
Kind = Literal["prepare", "finetune", "evaluate", "generate", "export"]
Use = Literal["new", "replay", "anchor"]
Group = Literal["new", "crossed", "recent", "old", "held_out", "anchor"]
Weights = Literal["raw", "ema"]
Quantisation = Literal["f16", "bf16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
MergeOnto = Literal["original", "dequantised"]


class JobEnded(Exception):
    """The job cannot go on. The message is one sentence for the person; `exit_code` says what follows."""

    exit_code: ExitCode


class BadSpec(JobEnded):
    """Something in the job folder is wrong: the same folder would fail again."""

    exit_code = ExitCode.BAD_SPEC


class Interrupted(JobEnded):
    """The trainer was asked to stop; what was done is in the newest checkpoint."""

    exit_code = ExitCode.INTERRUPTED


class OutOfMemory(JobEnded):
    """The device has too little memory for this layout."""

    exit_code = ExitCode.OUT_OF_MEMORY


class Diverged(JobEnded):
    """The loss exploded or is no number; the newest checkpoint is from before."""

    exit_code = ExitCode.DIVERGED


class NoDevice(JobEnded):
    """The device that was asked for cannot be used."""

    exit_code = ExitCode.NO_DEVICE


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingRecipe(_Strict):
    """What a training run does. Embedded in the daemon's settings, so each default exists once.

    Names and values of the upper half are those of the origin's `etc/training.json`.
    """

    base_model: str = Field("Qwen/Qwen3-14B", min_length=1)
    max_seq_length: int = Field(2048, ge=16, le=1_048_576)  # tokens
    lora_rank: int = Field(8, ge=1, le=1024)
    lora_alpha: int = Field(16, ge=1, le=4096)
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    num_train_epochs: int = Field(3, ge=1, le=1000)
    learning_rate: float = Field(2e-4, gt=0.0, le=1.0)  # LoRA's; full fine-tuning reads the next one
    full_learning_rate: float = FULL_RATE_DEFAULT
    per_device_train_batch_size: int = Field(1, ge=1, le=4096)  # samples
    gradient_accumulation_steps: int = Field(16, ge=1, le=65536)
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor"] = "paged_adamw_8bit"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    load_in_4bit: bool = True
    use_gradient_checkpointing: bool = True
    save_steps: int = Field(1250, ge=1)
    save_total_limit: int = Field(3, ge=1)

    method: Method = "lora"
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0.0, le=1.0)
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0)
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0)
    adam_epsilon: float = Field(1e-8, gt=0.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    packing: bool = True
    micro_batch_tokens: int = Field(2048, ge=16)  # tokens of one forward pass, padding included
    carry_optimizer: bool = True
    ema_decay: float = Field(0.98, ge=0.0, lt=1.0)  # LoRA's: of the running mean of the weights, a step; 0: none
    full_ema_decay: float = Field(0.0, ge=0.0, lt=1.0)  # the same of full fine-tuning: four bytes a weight more

    @field_validator("full_learning_rate", mode="before")
    @classmethod
    def _clamp_full_rate(cls, value: Any) -> float:
        """Clamp to [1e-5, 5e-5]; what is not a number becomes 3e-5 (origin: training fixes, 3)."""
        try:
            rate = float(value)
        except (TypeError, ValueError):
            return FULL_RATE_DEFAULT
        low, high = FULL_RATE_BOUNDS
        return max(low, min(high, rate)) if rate == rate else FULL_RATE_DEFAULT

    @property
    def rate(self) -> float:
        """The peak learning rate of this recipe's method."""
        return self.learning_rate if self.method == "lora" else self.full_learning_rate

    @property
    def mean_decay(self) -> float:
        """Of the running mean of the trained weights, with this recipe's method."""
        return self.ema_decay if self.method == "lora" else self.full_ema_decay

    @property
    def samples_per_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def quantised(self) -> bool:
        """Whether the base is held in nf4: a full fine-tune trains every weight and cannot be."""
        return self.load_in_4bit and self.method == "lora"

    def chain_key(self) -> dict[str, Any]:
        """What must stay equal for moments to carry from one checkpoint to the next."""
        lora = self.method == "lora"
        return {
            "base_model": self.base_model,
            "method": self.method,
            "rank": self.lora_rank if lora else None,
            "alpha": self.lora_alpha if lora else None,
            "targets": "all-linear" if lora else None,
            "quantised": self.quantised,
            "dtype": self.dtype,
            "optimizer": "adamw_8bit" if self.optimizer == "paged_adamw_8bit" else self.optimizer,
        }


class Message(_Strict):
    """One turn of a chat. `loss` marks the turns that are learnt: only assistant turns may carry it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    loss: bool = False

    @model_validator(mode="after")
    def _only_the_assistant_learns(self) -> Self:
        if self.loss and self.role != "assistant":
            raise ValueError(f"a {self.role} turn cannot carry loss")
        return self


class Sample(_Strict):
    """One training example. `id` is unique in its job; `memory` names the memory it was made from."""

    id: str = Field(min_length=1)
    messages: Annotated[list[Message], Field(min_length=1)]
    use: Use = "new"
    memory: str | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not any(m.loss and m.content.strip() for m in self.messages):
            raise ValueError(f"sample {self.id} has no non-empty assistant turn that carries loss")
        return self


class Probe(_Strict):
    """A question whose answer is known, scored before and after training; `memory` says where it comes from.

    `group`: of a memory that is new in this job, was trained lately (recent) or before that (old), is kept out of
    training (held_out), or general text (anchor); crossed is a new memory's answer behind another one's question,
    which tells whether answers fit their own. `form`: asked as it was trained, or by a template. `free`: the
    model answers in its own words too.
    """

    id: str = Field(min_length=1)
    messages: Annotated[list[Message], Field(min_length=1)]  # ends with the user's turn
    answer: str = Field(min_length=1)
    memory: str | None = None
    group: Group = "new"
    form: Literal["own", "template"] = "own"
    free: bool = False


class Prompt(_Strict):
    """One line of `prompts.jsonl`: what a generate job answers, each by itself."""

    id: str = Field(min_length=1)
    messages: Annotated[list[Message], Field(min_length=1)]  # ends with the user's turn


class Generated(_Strict):
    """One line of `generated.jsonl`: the answer to the prompt of this id. `finished`: the model ended it itself."""

    id: str
    messages: list[Message]
    answer: str
    finished: bool


class Export(_Strict):
    """What an export job makes of `parent`, in `JOBDIR/export/`.

    `adapter`: `adapter/` (as PEFT keeps it) and `adapter.gguf`, to be served on top of the base's own GGUF.
    `merged`: `model/` (as transformers keeps it, 16 bits) and `model.gguf`; of a full chain there is nothing to merge.
    """

    form: Literal["adapter", "merged"]
    quantisation: Quantisation = "Q4_K_M"  # of model.gguf, or of the base below an adapter
    merge_onto: MergeOnto = "original"  # of adapters that were trained on nf4 weights: onto which ones they are added
    base_gguf: str | None = None  # SHA-256 of JOBDIR/base.gguf; None: an adapter's job makes export/base.gguf first
    keep_model: bool = True  # whether `model/` stays when model.gguf is made
    system: str = ""  # a system prompt for the Modelfile


class ExportedFile(_Strict):
    size: int  # bytes
    sha256: str


class Exported(_Strict):
    """`export/export.json`, written last: what was made, and how it compares with the model that was trained.

    `template` is a Go template as Ollama's Modelfile has it, which renders chats as the tokenizer's own does.
    `parity`: `logits` (99 of 100 logits differ by less, as a share of their standard deviation), `kl` (nats a token,
    mean), `token_ids` (share of the text's token ids that are equal: 1.0), each with its `_limit`; `engine_`: the same
    of llama.cpp beside the file.
    """

    form: Literal["adapter", "merged"]
    quantisation: Quantisation
    architecture: str  # as GGUF calls it
    merge_onto: MergeOnto = "original"
    files: dict[str, ExportedFile]  # by path below `export/`
    template: str
    stop: list[str] = Field(default_factory=list)
    context_length: int  # tokens of a served conversation
    parity: dict[str, float] = Field(default_factory=dict)
    engine: Literal["llama.cpp", "reader"] = "reader"  # what the parity was measured with
    notices: list[str] = Field(default_factory=list)


class JobSpec(_Strict):
    """`spec.json`. Neither ids of the ledger nor times are in it: equal work has an equal hash.

    `segments` lists, for each segment, the samples' positions (0-based lines of `samples.jsonl`) in
    the order in which they are trained; the trainer never shuffles. `parent` is the SHA-256 of the
    manifest of `JOBDIR/parent`, or None where the job starts a chain from the base. `served` is that of
    `JOBDIR/served`, the version that is relied on, where it is not the parent: it is only scored.
    `parent_weights` and `served_weights` say which of a checkpoint's weights are relied on.
    `seed` seeds adapter weights and dropout of a new chain; a parent's chain seed wins over it.
    """

    contract_version: Literal[1] = CONTRACT_VERSION
    kind: Kind = "finetune"
    recipe: TrainingRecipe
    segments: list[list[int]] = Field(default_factory=list)
    samples_sha256: str | None = None
    probes_sha256: str | None = None
    prompts_sha256: str | None = None
    max_new_tokens: int = Field(128, ge=1, le=65_536)  # of an answer that the model gives itself
    parent: str | None = None
    parent_weights: Weights = "raw"
    served: str | None = None
    served_weights: Weights = "raw"
    export: Export | None = None
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _an_export_has_an_order(self) -> Self:
        if (self.kind == "export") != (self.export is not None):
            raise ValueError("export goes with kind export, and only with it")
        if self.kind == "export" and self.parent is None:
            raise ValueError("an export job needs the checkpoint that it exports: parent")
        return self

    def to_bytes(self) -> bytes:
        """The canonical text of `spec.json`; its SHA-256 is what checkpoints record as the spec's hash."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return text.encode() + b"\n"


class Retry(_Strict):
    """`retry.json`: how the next attempt differs in layout after running out of memory."""

    micro_batch_tokens: int = Field(ge=16)
    use_gradient_checkpointing: bool


class Plan(_Strict):
    """`plan.json`: what a job will do, known before a weight is loaded."""

    samples: int  # in samples.jsonl
    segments: list[int]  # optimizer steps of each segment
    steps: int  # all of them
    sample_uses: int  # samples over all segments: each epoch counts
    tokens: int  # rendered, over all segments
    loss_tokens: int  # of those, the ones that carry loss
    sequences: int  # sequences of at most max_seq_length that samples.jsonl renders to
    split_samples: int  # samples longer than max_seq_length, trained in parts
    cut_prompts: int  # prompts of which only the last part fits
    dropped_turns: int = 0  # turns of context, the oldest ones, left out where a sample is too long
    longest: int  # tokens of the longest sequence


class Progress(_Strict):
    """One line of `progress.jsonl`; each line is also the heartbeat. `time` is UTC ISO 8601."""

    time: str
    phase: Literal["loading", "preparing", "training", "saving", "evaluating", "working"]
    step: int | None = None  # global step, after it was taken
    steps: int | None = None  # the last global step of this job
    loss: float | None = None  # mean over the step's loss tokens, nats
    lr: float | None = None
    grad_norm: float | None = None  # before clipping
    tokens: int | None = None  # real tokens of this job so far
    tokens_per_second: float | None = None
    samples_seen: int | None = None  # of this job
    note: str | None = None
    checkpoint: str | None = None  # the folder that was saved or resumed from, relative to the job folder


class JobResult(_Strict):
    """`result.json`, written last. `reason` is one sentence for the person where the job did not end well."""

    contract_version: Literal[1] = CONTRACT_VERSION
    exit_code: ExitCode
    reason: str | None = None
    spec_sha256: str | None = None
    checkpoint: str | None = None  # name of the newest checkpoint folder in the job folder
    checkpoint_sha256: str | None = None  # of its manifest
    start_step: int | None = None
    global_step: int | None = None
    steps: int | None = None  # of this job, over all its attempts
    samples_seen: int | None = None
    tokens: int | None = None
    last_loss: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    weights: Weights = "raw"  # which of the checkpoint's weights score better, and are to be relied on
    export_sha256: str | None = None  # of export/export.json
    seconds: float | None = None
    notices: list[str] = Field(default_factory=list)  # fallbacks, each in one sentence


def what_is_wrong(error: ValidationError) -> str:
    """The first complaint of a validation, as `key: what is allowed`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
