"""One fine-tuning job, from the order that the daemon wrote to a durable checkpoint.

Read it downwards: `finetune` prepares, opens the model where the last checkpoint left it, takes the
steps, scores the probes. What it may rely on: a step's samples, its rate, its dropout and its layout
follow from the spec and the global step alone; nothing else may reach the weights.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from trainer import checkpoints, names
from trainer.batches import build
from trainer.chat_tokens import TokenSequence
from trainer.contract import BadSpec, Interrupted, JobSpec, TrainingRecipe
from trainer.evaluation import Before, score_after
from trainer.losses import LossLog, NoLosses, by_sample
from trainer.opening import Run, open_run
from trainer.packing import MicroBatch, layout
from trainer.prepare import Prepared, prepare
from trainer.progress import ProgressLog
from trainer.ranks import Alone
from trainer.report import Flag, Report
from trainer.scoring import make_scoring
from trainer.seeds import derive


def finetune(
    job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, report: Report, team: Alone | None = None
) -> None:
    """Do the job, or what is left of it. `report` tells at every moment what has been done. `team`: the processes that
    share it, of which the first one writes and tells.

    Raises BadSpec, BaseMissing, NoDevice, Diverged, and Interrupted once the flag is set and the step
    in hand is saved.
    """
    if not spec.segments:
        raise BadSpec(f"{names.SPEC}: a finetune job needs at least one segment")
    team = team or Alone()
    if team.first:
        checkpoints.sweep(job)
    prepared = team.all_do(lambda: prepare(job, spec, stop, log, write=team.first))
    team.spread(spec.recipe)
    agreed = team.flag(stop)
    scorers = team.scorers
    scoring = make_scoring(job, spec, prepared.tokenizer, scorers.flag(stop), log, scorers)
    before = Before(job, spec, scoring, report) if scoring else None
    log.write("loading")
    if before:
        team.scores(before.score_apart)
    run = open_run(job, spec, log, report, team)
    if before:
        team.scores(lambda: before.score_in(run))
    losses = LossLog(job, run.global_step) if team.first else NoLosses()
    try:
        train(run, job, spec, prepared, agreed, log, losses, report)
    finally:
        losses.close()
    if scoring and before:
        team.scores(lambda: score_after(job, run, scoring, before, report))


def train(
    run: Run,
    job: Path,
    spec: JobSpec,
    prepared: Prepared,
    stop: Flag,
    log: ProgressLog,
    losses: LossLog,
    report: Report,
) -> None:
    """Take the steps that are left. On return the last one is in a durable checkpoint."""
    recipe = spec.recipe
    last_step = run.start_step + prepared.plan.steps
    pad = int(prepared.tokenizer.pad_token_id)
    parameters = list(run.trained.values())
    began, tokens_before = time.monotonic(), run.tokens
    run.opened.model.train()

    while run.segment < len(spec.segments):
        # The samples of this step, and the rows that their tokens lie in.
        segment = spec.segments[run.segment]
        first = run.step_in_segment * recipe.samples_per_step
        samples = segment[first : first + recipe.samples_per_step]
        sequences, micro_batches = lay_out(run, recipe, prepared, samples)
        loss, each = set_gradients(run, sequences, micro_batches, pad, log)

        # The update, and one look at the device for all that is told of it.
        if run.scale != 1.0:
            _unscale(parameters, run.scale)
        grad_norm = run.team.clip(run.accelerator, parameters, recipe.max_grad_norm)
        rate = rate_at(recipe, run.global_step, run.global_step - run.start_step, prepared.plan.steps)
        run.optimizer.step(rate)
        if run.average is not None:
            run.average.update()
        seen = torch.cat([loss.view(1), grad_norm.to(loss).view(1), *each]).cpu().numpy()
        run.last_loss, norm = float(seen[0]), float(seen[1])
        run.detector.observe(run.global_step + 1, run.last_loss, norm)

        # Where we stand now, and how well each sample was known.
        run.global_step += 1
        run.samples_seen += len(samples)
        run.tokens += sum(sequence.length for sequence in sequences)
        run.step_in_segment += 1
        if run.step_in_segment == prepared.plan.segments[run.segment]:
            run.segment, run.step_in_segment = run.segment + 1, 0
        losses.write(run.global_step, samples, by_sample(seen[2:], micro_batches, samples, prepared))
        log.write(
            "training",
            step=run.global_step,
            steps=last_step,
            loss=run.last_loss,
            lr=rate,
            grad_norm=norm,
            tokens=run.tokens,
            tokens_per_second=round((run.tokens - tokens_before) / (time.monotonic() - began), 1),
            samples_seen=run.samples_seen,
        )
        run.tell(report)

        stopping = stop.is_set()  # asked once: a stop that comes after this look is the next step's
        due = run.global_step % recipe.save_steps == 0 and run.detector.calm
        if due or run.global_step == last_step:  # never for a stop: it must not decide otherwise than no stop
            run.detector.compare(run.global_step, loss_again(run, spec, prepared, pad))
        if due or run.global_step == last_step or stopping:
            losses.sync()
            save(run, job, recipe, log, report)
        if stopping and run.global_step < last_step:
            raise Interrupted(f"stopped at step {run.global_step} of {last_step}")


def lay_out(
    run: Run, recipe: TrainingRecipe, prepared: Prepared, samples: Sequence[int]
) -> tuple[list[TokenSequence], list[MicroBatch]]:
    """The token sequences of these samples, and the rows that they lie in."""
    sequences = [sequence for sample in samples for sequence in prepared.tokenised[sample].sequences]
    rows = layout(
        [sequence.length for sequence in sequences],
        packing=run.packing,
        max_seq_length=recipe.max_seq_length,
        micro_batch_tokens=run.micro_batch_tokens,
    )
    return sequences, rows


def set_gradients(
    run: Run, sequences: list[TokenSequence], micro_batches: list[MicroBatch], pad: int, log: ProgressLog
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradients of a step's mean loss; that loss, and those of all its learnt tokens in the order of the rows.

    Each token that is learnt weighs the same, in whichever micro-batch it lies.
    """
    loss_tokens = sum(sequence.loss_tokens for sequence in sequences)
    loss = torch.zeros((), device=run.opened.device)
    each: dict[int, torch.Tensor] = {}
    for number, counts in run.team.turns(len(micro_batches)):
        batch = build(micro_batches[number], sequences, packing=run.packing, pad=pad, device=run.opened.device)
        torch.manual_seed(derive(run.chain_seed, "dropout", run.global_step, number))
        with run.autocast():
            token_losses = run.opened.head.losses(batch)
            part = token_losses.sum() / loss_tokens
        if counts:
            each[number] = token_losses.detach()
            loss += part.detach()
        else:
            part = part * 0.0
        run.accelerator.backward(part * run.scale if run.scale != 1.0 else part)
        log.beat("training")
    sizes = [sum(sequences[one].loss_tokens for row in micro.rows for one in row) for micro in micro_batches]
    return run.team.together(run.trained, loss, each, sizes)


@torch.no_grad()
def loss_again(run: Run, spec: JobSpec, prepared: Prepared, pad: int) -> float:
    """The loss, now, of the samples that the job began with: what training made of them."""
    samples = spec.segments[0][: spec.recipe.samples_per_step]
    sequences, micro_batches = lay_out(run, spec.recipe, prepared, samples)
    total = 0.0
    run.opened.model.eval()
    for number, counts in run.team.turns(len(micro_batches)):
        batch = build(micro_batches[number], sequences, packing=run.packing, pad=pad, device=run.opened.device)
        with run.autocast():
            total += float(run.opened.head.losses(batch).sum()) * counts
    run.opened.model.train()
    return run.team.total(total) / sum(sequence.loss_tokens for sequence in sequences)


def rate_at(recipe: TrainingRecipe, global_step: int, job_step: int, job_steps: int) -> float:
    """The learning rate of the step that follows `global_step` taken ones.

    `constant` and `constant_with_warmup` know the global step alone, so that cutting work into jobs
    changes nothing. `linear` and `cosine` fall within each job, from the full rate, and never reach 0.
    """
    if recipe.lr_scheduler_type == "constant_with_warmup":
        return recipe.rate * min(1.0, (global_step + 1) / max(1, recipe.warmup_steps))
    if recipe.lr_scheduler_type == "linear":
        return recipe.rate * (1 - job_step / job_steps)
    if recipe.lr_scheduler_type == "cosine":
        return recipe.rate * 0.5 * (1 + math.cos(math.pi * job_step / job_steps))
    return recipe.rate


def save(run: Run, job: Path, recipe: TrainingRecipe, log: ProgressLog, report: Report) -> None:
    """A durable checkpoint of this moment, then room for it."""
    log.write("saving", step=run.global_step)
    folder, sha256 = run.save(run)
    report.checkpoint, report.checkpoint_sha256 = folder.name, sha256
    if run.team.first:
        checkpoints.prune(job, recipe.save_total_limit)
    log.write("saving", step=run.global_step, note="saved", checkpoint=folder.name)


def _unscale(parameters: list[nn.Parameter], scale: float) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, 1 / scale)
