"""Talking to a model over stdio, with torch. chat_lines.py describes the lines, gguf_chat.py talks to a GGUF."""

import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer import base_files, names
from trainer.answering import stop_tokens
from trainer.base_files import BaseMissing
from trainer.chat_lines import Request, answer_all, say, say_error
from trainer.chat_tokens import encode, load_tokenizer, prompt_text
from trainer.contract import JobEnded, TrainingRecipe, Weights
from trainer.names import ExitCode
from trainer.reading import open_for_reading, recipe_of

__all__ = ["Request", "Speaker", "chat"]


def chat(
    path: str,
    base: str | None,
    source: TextIO = sys.stdin,
    sink: TextIO = sys.stdout,
    weights: Weights = "raw",
) -> int:
    """Load a base model, or a checkpoint with these of its weights, say so, and answer until `source` ends; the
    exit code."""
    try:
        name, checkpoint, recipe = _what_lies_at(path, base)
        tokenizer = load_tokenizer(base_files.resolve(name))
        model, device = open_for_reading(name, checkpoint, recipe, weights)
    except (JobEnded, BaseMissing) as end:
        say_error(sink, end)
        return end.exit_code if isinstance(end, JobEnded) else ExitCode.BAD_SPEC
    if (
        isinstance(model, PeftModel)
        and not recipe.quantised
        and next(model.parameters()).dtype == torch.float32
    ):
        model = model.merge_and_unload()  # half the products; in 16 bits it would round the training away
    speaker = Speaker(model, tokenizer, device)
    step = names.checkpoint_step(checkpoint.name) if checkpoint is not None else None
    ready = {"ready": True, "base": name, "checkpoint": checkpoint and checkpoint.name, "step": step}
    say(sink, ready if weights == "raw" else {**ready, "weights": weights})
    answer_all(source, sink, speaker.answer)
    return ExitCode.DONE


class Speaker:
    """A model that answers, one token after the other, with a key-value cache."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._ends = stop_tokens(model, tokenizer)

    @torch.inference_mode()
    def answer(self, request: Request) -> tuple[str, int]:
        """The text that follows, without `prefix` and end tokens, and the number of tokens it took."""
        text = prompt_text(self._tokenizer, request.messages) + request.prefix
        generator = torch.Generator(self._device).manual_seed(request.seed)
        inputs = torch.tensor([encode(self._tokenizer, text)], device=self._device)
        cache, said = None, []
        for _ in range(request.max_new_tokens):
            output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            token = _choose(output.logits[0, -1].float(), request.temperature, generator)
            if token in self._ends:
                break
            said.append(token)
            inputs = torch.tensor([[token]], device=self._device)
        return str(self._tokenizer.decode(said, skip_special_tokens=True)), len(said)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))


def _what_lies_at(path: str, base: str | None) -> tuple[str, Path | None, TrainingRecipe]:
    """Base name, checkpoint folder if it is one, and a recipe that says how to load the base."""
    folder = Path(path).expanduser()
    if not (folder / names.STATE).exists():
        name = base or path
        return name, None, TrainingRecipe(base_model=name, load_in_4bit=False)
    recipe = recipe_of(folder, base)
    return recipe.base_model, folder, recipe
