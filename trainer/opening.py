"""Opening a model for training, as the newest checkpoint left it; and what its checkpoints hold."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer import adapter, base_files, base_model, checkpoints, moments, names, optimizers
from trainer.averaging import Average
from trainer.batches import LossHead, packs_cleanly
from trainer.checkpoints import Found
from trainer.contract import BadSpec, JobSpec, Retry, TrainingRecipe
from trainer.divergence import Detector
from trainer.progress import ProgressLog
from trainer.ranks import Alone
from trainer.report import Report
from trainer.saving import Saver

_HALF_SCALE = 1024.0  # float16 alone: keeps small gradients above zero; taken out again before the step


@dataclass(frozen=True, slots=True)
class Opened:
    """A model on its device; `packing` says whether samples may share a row."""

    model: nn.Module
    head: LossHead
    device: torch.device
    packing: bool
    micro_batch_tokens: int


@dataclass(slots=True)
class Run:
    """A model that is ready to train, and where its training stands."""

    opened: Opened
    accelerator: Accelerator
    autocast: Callable[[], AbstractContextManager[None]]
    trained: dict[str, nn.Parameter]
    optimizer: optimizers.Stepper
    average: Average | None
    detector: Detector
    packing: bool
    micro_batch_tokens: int
    scale: float  # of the loss, before the backward pass
    chain_seed: int
    global_step: int
    start_step: int
    segment: int
    step_in_segment: int
    samples_seen: int
    tokens: int
    last_loss: float | None
    save: Callable[["Run"], tuple[Path, str]]
    team: Alone

    def tell(self, report: Report) -> None:
        report.start_step, report.global_step = self.start_step, self.global_step
        report.steps = self.global_step - self.start_step
        report.samples_seen, report.tokens, report.last_loss = self.samples_seen, self.tokens, self.last_loss


def open_run(job: Path, spec: JobSpec, log: ProgressLog, report: Report, team: Alone) -> Run:
    """Base, adapter, moments and position from this job's newest checkpoint, else its parent's, else anew.

    Raises BadSpec, BaseMissing, NoDevice.
    """
    recipe = spec.recipe
    device = base_model.choose_device()
    dtype, notice = base_model.choose_dtype(recipe, device)
    report.notice(notice)
    family, notice = optimizers.family(recipe, device)
    report.notice(notice)
    if recipe.lr_scheduler_type in ("linear", "cosine"):
        report.notice(
            f"lr_scheduler_type {recipe.lr_scheduler_type} falls within each job: "
            "how work is cut into jobs changes the result"
        )
    for sentence in report.notices:
        log.write("loading", note=sentence)
    base = base_files.resolve(recipe.base_model)
    fingerprint = base_files.fingerprint(base)
    found = team.first_does(lambda: _find_start(job, spec, fingerprint, family, report))
    chain_seed = found.state.chain_seed if found else spec.seed

    settle_bits()
    _notice_change(found, team, report, log)
    model, trained = _load_for_training(recipe, base, device, dtype, found, chain_seed, team)
    optimizer = optimizers.make(trained, recipe, device)
    if found is not None:
        _restore(found, optimizer, team, carry=found.own or recipe.carry_optimizer)
    average = _average(model, optimizer, recipe, found, team)
    retry = read_retry(job)
    opened = _lay_out(model, recipe, retry, device, report, team)
    mixed = "bf16" if dtype == torch.bfloat16 and recipe.method == "lora" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    half = dtype == torch.float16
    state = found.state if found else None
    own = state if found and found.own else None
    before = state.global_step if state else 0
    manifest = {
        "base_fingerprint": fingerprint,
        "environment": checkpoints.environment(device, dtype, team.size, team.sharded),
        "parent": spec.parent,
    }
    run = Run(
        opened=opened,
        accelerator=accelerator,
        autocast=partial(torch.autocast, "cuda", dtype=dtype) if half else accelerator.autocast,
        trained=trained,
        optimizer=optimizer,
        average=average,
        detector=Detector(
            vocabulary=_inner(model).config.get_text_config().vocab_size,
            mean=state.detector_mean if state else None,
            strikes=state.detector_strikes if state else 0,
            first=own.detector_first if own else None,
        ),
        packing=opened.packing,
        micro_batch_tokens=opened.micro_batch_tokens,
        scale=_HALF_SCALE if half else 1.0,
        chain_seed=chain_seed,
        global_step=before,
        start_step=own.start_step if own else before,
        segment=own.segment if own else 0,
        step_in_segment=own.step_in_segment if own else 0,
        samples_seen=own.samples_seen if own else 0,
        tokens=own.tokens if own else 0,
        last_loss=own.last_loss if own else None,
        save=Saver(job, spec, report.spec_sha256, family, manifest),
        team=team,
    )
    run.tell(report)
    log.cut_after(run.global_step)
    if found is not None:
        where = found.folder.name
        if found.own:
            report.checkpoint, report.checkpoint_sha256 = where, found.sha256
        log.write("loading", step=run.global_step, note="resuming_from_checkpoint", checkpoint=where)
    return run


def settle_bits() -> None:
    """Ask for deterministic kernels where torch has them; where it has none it goes on with the usual one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def read_retry(job: Path) -> Retry | None:
    """What `retry.json` overrides after running out of memory. Raises BadSpec where it cannot be read."""
    path = job / names.RETRY
    if not path.exists():
        return None
    try:
        return Retry.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadSpec(f"{names.RETRY} cannot be read") from error


def _find_start(job: Path, spec: JobSpec, fingerprint: str, family: str, report: Report) -> Found | None:
    """The checkpoint to go on from, if there is any, once it is known to fit the spec."""
    found, passed_over = checkpoints.newest(job, report.spec_sha256)
    for sentence in passed_over:
        report.notice(sentence)
    if found is None and spec.parent is not None:
        found = checkpoints.parent(job, spec.parent)
    if found is None:
        return None
    state = found.state
    if found.base_fingerprint != fingerprint:
        name = spec.recipe.base_model
        raise BadSpec(f"{found.folder.name} was trained on another base model than {name} is now")
    wanted = spec.recipe.chain_key()
    for key in ("method", "rank", "alpha", "targets", "quantised", "dtype"):
        if state.chain_key[key] != wanted[key]:
            raise BadSpec(
                f"{found.folder.name} was trained with {key} {state.chain_key[key]}, "
                f"but the recipe says {wanted[key]}: that needs a new chain"
            )
    if state.optimizer_family != family and (found.own or spec.recipe.carry_optimizer):
        raise BadSpec(
            f"{found.folder.name} holds moments of {state.optimizer_family}, but this run would use {family}: "
            "choose that optimizer again, start a new chain, or set carry_optimizer to false"
        )
    return found


def _load_for_training(
    recipe: TrainingRecipe,
    base: Path,
    device: torch.device,
    dtype: torch.dtype,
    found: Found | None,
    chain_seed: int,
    team: Alone,
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The model with its adapter (LoRA) or all its weights (full) ready to train, and those by name.

    In pieces it is cut from a whole one, which one process at a time has in the machine's memory.
    """
    there = torch.device("cpu") if team.sharded else device
    model = team.in_turn(lambda: team.cut(_loaded(recipe, base, there, dtype, found, chain_seed), device))
    return model, team.of_this_one(adapter.trainable(model))


def _loaded(
    recipe: TrainingRecipe,
    base: Path,
    device: torch.device,
    dtype: torch.dtype,
    found: Found | None,
    chain_seed: int,
) -> nn.Module:
    if recipe.method == "full":
        model: nn.Module = base_model.load_model(found.folder if found else base, device, dtype)
        model = placed(model, device)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    else:
        loaded = base_model.load_model(base, device, dtype, quantised=recipe.quantised)
        adapted = adapter.add_adapter(placed(loaded, device), recipe, chain_seed)
        if found is not None:
            adapter.load_adapter(adapted, found.folder)
        model = adapted
    return model


def placed(model: Any, device: torch.device) -> Any:
    """On its device; a quantised model already is, and refuses to be moved."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def _restore(found: Found, optimizer: optimizers.Stepper, team: Alone, *, carry: bool) -> None:
    """Moments (unless each job starts its own), compensation terms, random state."""
    if carry:
        optimizer.load(moments.read(found.folder, team.pieces and team.pieces.cut))
    terms = found.folder / names.COMPENSATION
    if isinstance(optimizer, optimizers.Compensated) and terms.exists():
        optimizer.load_low_bits(_tensors(terms, team))
    checkpoints.restore_random_state(found)


def _average(
    model: nn.Module, optimizer: optimizers.Stepper, recipe: TrainingRecipe, found: Found | None, team: Alone
) -> Average | None:
    """The running mean as the checkpoint left it; of one that has none, of a new chain: from the weights there."""
    if recipe.mean_decay == 0.0:
        return None
    stored = adapter.by_stored_name(model)
    whole = {adapter.stored_name(name): name for name in adapter.trainable(model)}
    average = Average(stored, lambda name: optimizer.whole(whole[name]), recipe.mean_decay)
    if found is not None and (found.folder / names.EMA).exists():
        average.load(_tensors(found.folder / names.EMA, team), found.folder.name)
    return average


def _tensors(path: Path, team: Alone) -> dict[str, Tensor]:
    return load_file(path) if team.pieces is None else moments.read_tensors(path, team.pieces.cut)


def _notice_change(found: Found | None, team: Alone, report: Report, log: ProgressLog) -> None:
    """Bits are promised for one number of processes, and for pieces or none."""
    if found is None or (found.processes, found.sharded) == (team.size, team.sharded):
        return
    sentence = (
        f"{found.folder.name} was made in {_told(found.processes, found.sharded)}, this goes on in "
        f"{_told(team.size, team.sharded)}: losses agree to rounding, not to the bit"
    )
    report.notice(sentence)
    log.write("loading", note=sentence)


def _told(processes: int, sharded: bool) -> str:
    several = f"{processes} processes" if processes > 1 else "1 process"
    return several + (" with the model in pieces" if sharded else "")


def _lay_out(
    model: nn.Module, recipe: TrainingRecipe, retry: Retry | None, device: torch.device, report: Report, team: Alone
) -> Opened:
    checkpointing = recipe.use_gradient_checkpointing if retry is None else retry.use_gradient_checkpointing
    if checkpointing and not base_model.enable_gradient_checkpointing(_inner(model)):
        report.notice("this model cannot do gradient checkpointing: training without it")
    head = LossHead(model)
    packing = recipe.packing and team.agree(packs_cleanly(model, head, device))
    if recipe.packing and not packing:
        report.notice("this model would see across samples packed in one row: training with padded rows")
    return Opened(
        model, head, device, packing, retry.micro_batch_tokens if retry else recipe.micro_batch_tokens
    )


def _inner(model: nn.Module) -> PreTrainedModel:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner
