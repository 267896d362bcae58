"""Talking to a GGUF over stdio, by llama.cpp: the same lines as chat.py, the same options, the same prompts.

The tokenizer's own template renders, and its token ids go to llama.cpp: neither Ollama's rendering nor llama.cpp's
has a part in it. Needs the extra `gguf` (llama-cpp-python), and no torch.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainer import base_files
from trainer.base_files import BaseMissing
from trainer.chat_lines import Request, answer_all, say, say_error
from trainer.chat_tokens import encode, end_tokens, load_tokenizer, prompt_text
from trainer.contract import BadSpec, JobEnded, NoDevice
from trainer.names import ExitCode

_CONTEXT = 4096  # tokens of a conversation for which memory is taken at first


def chat(
    gguf: Path, adapter: Path | None, tokenizer: str, source: TextIO = sys.stdin, sink: TextIO = sys.stdout
) -> int:
    """Load a model, and the adapter on top, say so, and answer until `source` ends; the exit code. `tokenizer` is the
    name of the base model whose tokenizer it is."""
    try:
        folder = base_files.resolve(tokenizer)
        speaker = Speaker(gguf, adapter, load_tokenizer(folder), _stated_ends(folder), _at_first(folder))
    except (JobEnded, BaseMissing) as end:
        say_error(sink, end)
        return end.exit_code if isinstance(end, JobEnded) else ExitCode.BAD_SPEC
    say(sink, {"ready": True, "base": tokenizer, "gguf": gguf.name, "adapter": adapter and adapter.name})
    answer_all(source, sink, speaker.answer)
    return ExitCode.DONE


class Speaker:
    """A model that answers, one token after the other. What it has read already of a conversation is not read again."""

    def __init__(
        self, gguf: Path, adapter: Path | None, tokenizer: PreTrainedTokenizerBase, ends: set[int], context: int
    ) -> None:
        """`context`: tokens for which memory is taken at first. Raises NoDevice where llama.cpp is not there, BadSpec
        where it does not open the files."""
        try:
            self._llama_cpp: Any = importlib.import_module("llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise NoDevice(f"llama-cpp-python cannot be loaded: {error}") from error
        self._gguf, self._adapter, self._tokenizer = gguf, adapter, tokenizer
        self._ends = ends | end_tokens(tokenizer)
        self._held: list[int] = []  # the tokens that its key-value cache holds
        self._model = self._open(context)
        self._longest: int = self._llama_cpp.llama_model_n_ctx_train(self._model.model)

    def answer(self, request: Request) -> tuple[str, int]:
        """The text that follows, without `prefix` and end tokens, and the number of tokens it took. Raises BadSpec for
        a conversation that is longer than the model's context, at whose end an answer is cut."""
        prompt = encode(self._tokenizer, prompt_text(self._tokenizer, request.messages) + request.prefix)
        if len(prompt) >= self._longest:
            raise BadSpec(
                f"the conversation has {len(prompt)} tokens, and this model holds {self._longest}: begin a new one"
            )
        most = min(request.max_new_tokens, self._longest - len(prompt))
        self._make_room(len(prompt) + most)
        generator = np.random.default_rng(request.seed)
        said: list[int] = []
        new = prompt
        try:
            logits = self._read(new)
            while (token := _choose(logits, request.temperature, generator)) not in self._ends:
                if self._llama_cpp.llama_vocab_is_eog(self._vocabulary, token):
                    break
                said.append(token)
                if len(said) >= most:
                    break
                logits = self._read([*prompt, *said])
        except RuntimeError as error:
            self._held = []
            raise BadSpec(f"llama.cpp gave up on this conversation: {error}") from error
        return str(self._tokenizer.decode(said, skip_special_tokens=True)), len(said)

    def _read(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits after the last of `tokens`, of shape [vocabulary]; what the cache shares with them stays."""
        same = 0
        for ours, theirs in zip(self._held, tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        self._held = []
        self._model.n_tokens = same
        self._model.eval(tokens[same:])
        self._held = list(tokens)
        found = self._llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(found, shape=(self._model.n_vocab(),))

    @property
    def _vocabulary(self) -> Any:
        return self._llama_cpp.llama_model_get_vocab(self._model.model)

    def _make_room(self, tokens: int) -> None:
        """A longer context, where this conversation may need one; a model's own may be gigabytes."""
        if tokens > self._model.n_ctx():
            self._held = []
            self._model.close()
            self._model = self._open(tokens)

    def _open(self, context: int) -> Any:
        """On a GPU where this llama.cpp knows one and it has room (a training may be there), else on the processor."""
        for layers in (-1, 0) if self._llama_cpp.llama_supports_gpu_offload() else (0,):
            try:
                model = self._llama_cpp.Llama(
                    str(self._gguf), lora_path=self._adapter and str(self._adapter), n_ctx=context, n_gpu_layers=layers,
                    verbose=False,
                )  # fmt: skip
                if self._adapter is not None and not getattr(model, "_lora_adapter", True):
                    # Llama looks for None, but is given a null pointer: the base alone would answer.
                    raise ValueError("it is no adapter of this model, or is damaged")
                return model
            except (ValueError, RuntimeError, OSError, AssertionError) as error:
                reason = " ".join(str(error).split())
        raise BadSpec(f"llama.cpp does not open {self._adapter or self._gguf}: {reason}")


def _choose(logits: NDArray[np.float32], temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    shares = np.exp(scaled)
    return int(generator.choice(len(shares), p=shares / shares.sum()))


def _stated_ends(folder: Path) -> set[int]:
    """End tokens as the model's own settings have them."""
    stated = _read_json(folder / "generation_config.json").get("eos_token_id")
    return {one for one in (stated if isinstance(stated, list) else [stated]) if isinstance(one, int)}


def _at_first(folder: Path) -> int:
    """Tokens of context to begin with: llama.cpp complains of more than the model was made for."""
    config = _read_json(folder / "config.json")
    longest = (config.get("text_config") or config).get("max_position_embeddings")
    return min(_CONTEXT, longest) if isinstance(longest, int) else _CONTEXT


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none; what is wrong with a base model's files the tokenizer's loading has said."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
