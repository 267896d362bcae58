"""What a run's checkpoints hold, and who of several processes writes them: the first one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel

from trainer import adapter, checkpoints, moments, names, optimizers
from trainer.checkpoints import TrainerState
from trainer.contract import JobSpec

if TYPE_CHECKING:
    from trainer.opening import Run


@dataclass(frozen=True, slots=True)
class Saver:
    """Writes the checkpoints of one job. `manifest` is what the manifest tells beside the files."""

    job: Path
    spec: JobSpec
    spec_sha256: str
    family: str
    manifest: dict[str, Any]

    def __call__(self, run: Run) -> tuple[Path, str]:
        """The checkpoint's folder and its manifest's SHA-256, in all processes."""
        if run.team.pieces is None:
            return run.team.first_does(lambda: self._whole(run))
        if run.team.first:
            return run.team.agree(self._together(run))
        _write_pieces(run, self.spec, None)
        _write_moments(run, self.family, None)
        return run.team.agree((self.job, ""))

    def _whole(self, run: Run) -> tuple[Path, str]:
        state = run.optimizer.state()
        return self._write(
            run, partial(_write_weights, run, self.spec), lambda folder: moments.write(folder, self.family, state)
        )

    def _together(self, run: Run) -> tuple[Path, str]:
        """The others give their pieces in the same order. Where this fails, the end of this process is theirs."""
        return self._write(run, partial(_write_pieces, run, self.spec), partial(_write_moments, run, self.family))

    def _write(self, run: Run, weights: Any, moments_: Any) -> tuple[Path, str]:
        recipe = self.spec.recipe
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
            optimizer_family=self.family,
            spec_sha256=self.spec_sha256,
        )
        scheduler = {
            "lr_scheduler_type": recipe.lr_scheduler_type,
            "warmup_steps": recipe.warmup_steps,
            "global_step": run.global_step,
            "start_step": run.start_step,
        }
        return checkpoints.save(
            self.job, state, weights, write_moments=moments_, scheduler=scheduler, manifest=self.manifest
        )


def _write_weights(run: Run, spec: JobSpec, folder: Path) -> None:
    model, recipe = run.opened.model, spec.recipe
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


def _write_pieces(run: Run, spec: JobSpec, folder: Path | None) -> None:
    """The same of a model in pieces; without a folder this process only gives its own."""
    pieces, model = run.team.pieces, run.opened.model
    assert pieces is not None and isinstance(model, PreTrainedModel)
    if run.average is not None:
        moments.write_tensors(folder and folder / names.EMA, run.average.mean, pieces)
    whole = {name: tensor for name, tensor in pieces.stream(pieces.local) if tensor is not None}
    if isinstance(run.optimizer, optimizers.Compensated):
        low = run.optimizer.low_bits()
        moments.write_tensors(folder and folder / names.COMPENSATION, low, pieces)
    if folder is not None:
        buffers = {n: t for n, t in model.state_dict().items() if n not in whole and not hasattr(t, "to_local")}
        model.config._name_or_path = spec.recipe.base_model
        model.save_pretrained(folder, state_dict={**whole, **buffers})


def _write_moments(run: Run, family: str, folder: Path | None) -> None:
    assert run.team.pieces is not None
    moments.write_pieces(folder, family, run.optimizer.state(), run.team.pieces)
