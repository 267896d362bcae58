"""Answers in a model's own words: always the likeliest token, several questions at a time.

Questions are padded on the left, so that each row's next token comes last. A model that cannot look past
such padding is found out at the start and asked one question at a time.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trainer.chat_tokens import encode, end_tokens, prompt_text
from trainer.contract import Message

_MOST_ROWS = 32
_TOKENS_A_MICRO_BATCH = 4  # without gradients a token takes a fraction of the memory that it takes in training


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finished: bool  # the model ended it itself


class Answerer:
    """A model in eval mode that answers; `tokens` is how many it may hold of several questions and answers."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        micro_batch_tokens: int,
        agree: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        """`agree`: where several processes compute with one model in pieces, what the first of them has: all must go
        on alike, also where two tokens are as likely but for rounding."""
        self._agree = agree
        self._model, self._tokenizer, self._device = model, tokenizer, device
        self._ends = stop_tokens(model, tokenizer)
        self._pad = int(tokenizer.pad_token_id)
        self._tokens = _TOKENS_A_MICRO_BATCH * micro_batch_tokens
        self._rows = _MOST_ROWS if agree(_pads_cleanly(model, self._pad, device)) else 1

    def groups(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[range]:
        """Which prompts are answered together, in their order. It follows from their lengths alone."""
        first = 0
        while first < len(prompts):
            last, longest = first, 0
            while last < len(prompts) and last - first < self._rows:
                longest = max(longest, len(prompts[last]))
                if last > first and (last + 1 - first) * (longest + max_new_tokens) > self._tokens:
                    break
                last += 1
            yield range(first, last)
            first = last

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, each_token: Callable[[], None]
    ) -> list[Answer]:
        """The answers to these prompts, of at most so many tokens each. `each_token` is called in between and may
        raise."""
        ids, mask = _padded(prompts, self._pad, self._device)
        places = (mask.cumsum(-1) - 1).clamp(min=0) if self._rows > 1 else None
        said: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        cache = None
        for _ in range(max_new_tokens):
            each_token()
            extra = {} if places is None else {"attention_mask": mask, "position_ids": places}
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **extra)
            cache = output.past_key_values
            chosen = self._agree(output.logits[:, -1].float().argmax(-1).tolist())
            for row, token in enumerate(chosen):
                ended[row] = ended[row] or token in self._ends
                if not ended[row]:
                    said[row].append(token)
            if all(ended):
                break
            ids = torch.tensor([[token] for token in chosen], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], -1)
            places = None if places is None else places[:, -1:] + 1
        texts = [str(self._tokenizer.decode(some, skip_special_tokens=True)) for some in said]
        return [Answer(text.strip(), end) for text, end in zip(texts, ended, strict=True)]


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that end an answer, as the template and the model's own settings have it."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return end_tokens(tokenizer) | set(stated if isinstance(stated, list) else [stated] if stated is not None else [])


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], limit: int, max_new_tokens: int
) -> list[int]:
    """The tokens up to where the model begins to speak; of too many, the last ones.

    They leave room for the answer within `limit`, but are themselves given at least half of it.
    """
    ids = encode(tokenizer, prompt_text(tokenizer, messages))
    room = max(limit // 2, limit - max_new_tokens)
    if len(ids) <= room:
        return ids
    keep = 1 if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else 0
    return ids[:keep] + ids[len(ids) - room + keep :]


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of shape [rows, longest], the padding on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.no_grad()
def _pads_cleanly(model: nn.Module, pad: int, device: torch.device) -> bool:
    """Whether padding on the left leaves this model's next token alone: tried on a dozen tokens, not believed."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's own takes anything
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return False
    long, short = list(range(3, 12)), list(range(5, 9))
    ids, mask = _padded([long, short], pad, device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    together = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[1, -1].float()
    alone = model(input_ids=ids[1:, -4:], use_cache=False).logits[0, -1].float()
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    return bool((together - alone).abs().max() <= tolerance * alone.std())
