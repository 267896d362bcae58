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
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from trainer import adapter, base_files, base_model, checkpoints, names, optimizers
from trainer.averaging import Average
from trainer.batches import LossHead, packs_cleanly
from trainer.checkpoints import Found, TrainerState
from trainer.contract import BadSpec, JobSpec, Retry, TrainingRecipe
from trainer.divergence import Detector
from trainer.progress import ProgressLog
from trainer.report import Report

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

    def tell(self, report: Report) -> None:
        report.start_step, report.global_step = self.start_step, self.global_step
        report.steps = self.global_step - self.start_step
        report.samples_seen, report.tokens, report.last_loss = self.samples_seen, self.tokens, self.last_loss


def open_run(job: Path, spec: JobSpec, log: ProgressLog, report: Report) -> Run:
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
    found = _find_start(job, spec, fingerprint, family, report)
    chain_seed = found.state.chain_seed if found else spec.seed

    settle_bits()
    model, trained = _load_for_training(recipe, base, device, dtype, found, chain_seed)
    optimizer = optimizers.make(trained, recipe, device)
    if found is not None:
        _restore(found, optimizer, carry=found.own or recipe.carry_optimizer)
    average = _average(model, optimizer, recipe, found)
    retry = read_retry(job)
    opened = _lay_out(model, recipe, retry, device, report)
    mixed = "bf16" if dtype == torch.bfloat16 and recipe.method == "lora" else "no"
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    half = dtype == torch.float16
    state = found.state if found else None
    own = state if found and found.own else None
    before = state.global_step if state else 0
    save = partial(
        _save,
        job,
        spec=spec,
        spec_sha256=report.spec_sha256,
        family=family,
        manifest={
            "base_fingerprint": fingerprint,
            "environment": checkpoints.environment(device, dtype),
            "parent": spec.parent,
        },
    )
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
        save=save,
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
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The model with its adapter (LoRA) or all its weights (full) ready to train, and those by name."""
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
    return model, adapter.trainable(model)


def placed(model: Any, device: torch.device) -> Any:
    """On its device; a quantised model already is, and refuses to be moved."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def _restore(found: Found, optimizer: optimizers.Stepper, *, carry: bool) -> None:
    """Moments (unless each job starts its own), compensation terms, random state."""
    if carry:
        optimizer.load(checkpoints.moments_of(found))
    terms = found.folder / names.COMPENSATION
    if isinstance(optimizer, optimizers.Compensated) and terms.exists():
        optimizer.load_low_bits(load_file(terms))
    checkpoints.restore_random_state(found)


def _average(
    model: nn.Module, optimizer: optimizers.Stepper, recipe: TrainingRecipe, found: Found | None
) -> Average | None:
    """The running mean as the checkpoint left it; of one that has none, of a new chain: from the weights there."""
    if recipe.mean_decay == 0.0:
        return None
    stored = adapter.by_stored_name(model)
    whole = {adapter.stored_name(name): name for name in adapter.trainable(model)}
    average = Average(stored, lambda name: optimizer.whole(whole[name]), recipe.mean_decay)
    if found is not None and (found.folder / names.EMA).exists():
        average.load(load_file(found.folder / names.EMA), found.folder.name)
    return average


def _lay_out(
    model: nn.Module, recipe: TrainingRecipe, retry: Retry | None, device: torch.device, report: Report
) -> Opened:
    checkpointing = recipe.use_gradient_checkpointing if retry is None else retry.use_gradient_checkpointing
    if checkpointing and not base_model.enable_gradient_checkpointing(_inner(model)):
        report.notice("this model cannot do gradient checkpointing: training without it")
    head = LossHead(model)
    packing = recipe.packing and packs_cleanly(model, head, device)
    if recipe.packing and not packing:
        report.notice("this model would see across samples packed in one row: training with padded rows")
    return Opened(
        model, head, device, packing, retry.micro_batch_tokens if retry else recipe.micro_batch_tokens
    )


def _save(
    job: Path, run: Run, *, spec: JobSpec, spec_sha256: str, family: str, manifest: dict[str, Any]
) -> tuple[Path, str]:
    recipe = spec.recipe
    state = TrainerState(
        global_step=run.global_step,
        start_step=run.start_step,
        segment=run.segment,
        step_in_segment=run.step_in_segment,
        samples_seen=run.samples_seen,
        tokens=run.tokens,
        last_loss=run.last_loss,
        detector_mean=run.detector.mean,
        detector_strikes=run.detector.strikes,
        detector_first=run.detector.first,
        chain_seed=run.chain_seed,
        chain_key=recipe.chain_key(),
        optimizer_family=family,
        spec_sha256=spec_sha256,
    )
    scheduler = {
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "warmup_steps": recipe.warmup_steps,
        "global_step": run.global_step,
        "start_step": run.start_step,
    }
    return checkpoints.save(
        job,
        state,
        partial(_write_weights, run, recipe),
        moments=run.optimizer.state(),
        scheduler=scheduler,
        manifest=manifest,
    )


def _write_weights(run: Run, recipe: TrainingRecipe, folder: Path) -> None:
    model = run.opened.model
    if run.average is not None:
        save_file(run.average.state(), folder / names.EMA, metadata={"format": "pt"})
    if isinstance(model, PeftModel):
        adapter.save_adapter(model, folder, recipe)
        return
    assert isinstance(model, PreTrainedModel)
    model.config._name_or_path = recipe.base_model
    model.save_pretrained(folder)
    if isinstance(run.optimizer, optimizers.Compensated):
        save_file(run.optimizer.low_bits(), folder / names.COMPENSATION)


def _inner(model: nn.Module) -> PreTrainedModel:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner
