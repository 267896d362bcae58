"""A job that answers prompts: the base model in its own words, or a checkpoint's model.

`generated.jsonl` grows in the order of the prompts. Which prompts are answered together follows from the
prompts alone, so an attempt that goes on later gives the same answers as one that was never stopped.
"""

import os
from pathlib import Path

from pydantic import ValidationError

from trainer import base_files, checkpoints, names, reading
from trainer.answering import Answerer, prompt_ids
from trainer.chat_tokens import load_tokenizer
from trainer.contract import BadSpec, Generated, Interrupted, JobSpec, Prompt
from trainer.opening import read_retry, settle_bits
from trainer.prepare import read_prompts
from trainer.progress import ProgressLog
from trainer.report import Flag, Report


def generate(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, report: Report) -> None:
    """Answer what is not answered yet. Metrics: `prompts`, and `finished`, the answers that the model ended itself.

    Raises BadSpec, BaseMissing, NoDevice, and Interrupted once the flag is set; whole groups are kept.
    """
    prompts = read_prompts(job, spec)
    done = _cut_to_whole(job / names.GENERATED, prompts)
    if len(done) < len(prompts):
        _answer(job, spec, prompts, done, stop, log, report)
    report.metrics = {"prompts": float(len(prompts)), "finished": float(sum(one.finished for one in done))}
    log.write("working", note=f"{len(done)} of {len(prompts)} prompts answered")


def _answer(
    job: Path,
    spec: JobSpec,
    prompts: list[Prompt],
    done: list[Generated],
    stop: Flag,
    log: ProgressLog,
    report: Report,
) -> None:
    """Append to `generated.jsonl` and to `done` until all prompts are answered."""
    recipe = spec.recipe
    tokenizer = load_tokenizer(base_files.resolve(recipe.base_model))
    ids = []
    for prompt in prompts:
        try:
            ids.append(prompt_ids(tokenizer, prompt.messages, recipe.max_seq_length, spec.max_new_tokens))
        except BadSpec as error:
            raise BadSpec(f"prompt {prompt.id}: {error}") from error
    log.write("loading")
    folder = None
    if spec.parent is not None:
        found = checkpoints.parent(job, spec.parent)
        folder, report.global_step, report.weights = found.folder, found.state.global_step, spec.parent_weights
    settle_bits()
    model, device = reading.open_for_reading(recipe.base_model, folder, recipe, spec.parent_weights)
    retry = read_retry(job)
    budget = retry.micro_batch_tokens if retry else recipe.micro_batch_tokens
    answerer = Answerer(model, tokenizer, device, budget)

    def live() -> None:
        if stop.is_set():
            raise Interrupted(f"stopped after {len(done)} of {len(prompts)} answers")
        log.beat("working")

    with (job / names.GENERATED).open("a", encoding="utf-8") as file:
        for group in answerer.groups(ids, spec.max_new_tokens):
            if group.stop <= len(done):
                continue
            answers = answerer.answer([ids[n] for n in group], spec.max_new_tokens, live)
            for number, answer in zip(group, answers, strict=True):
                if number < len(done):  # a part of this group was written before it was killed
                    continue
                prompt = prompts[number]
                one = Generated(
                    id=prompt.id, messages=prompt.messages, answer=answer.text, finished=answer.finished
                )
                file.write(one.model_dump_json() + "\n")
                done.append(one)
            file.flush()
            os.fsync(file.fileno())
            log.write("working", note=f"{len(done)} of {len(prompts)} prompts answered")


def _cut_to_whole(path: Path, prompts: list[Prompt]) -> list[Generated]:
    """The answers that are there, each to its prompt in order; the rest of the file is cut off."""
    done: list[Generated] = []
    keep = 0
    if not path.exists():
        path.touch()
        return done
    with path.open("rb") as file:
        for raw, prompt in zip(file, prompts, strict=False):
            try:
                one = Generated.model_validate_json(raw)
            except ValidationError:
                break
            if not raw.endswith(b"\n") or one.id != prompt.id:
                break
            done.append(one)
            keep += len(raw)
    os.truncate(path, keep)
    return done
