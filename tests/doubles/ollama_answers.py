"""How the stand-in for Ollama answers: by llama.cpp where that is installed, else by a text of its own.

Standard library only, but for llama_cpp, which need not be there.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollama_blobs import Refused, read_gguf

CONTEXT = 1024  # tokens, at most: tests ask short questions


@dataclass(frozen=True)
class Asked:
    """One question to a loaded model."""

    prompt: str
    tokens: int  # at most; below 0: as many as the context holds
    temperature: float
    stop: list[str]
    penalty: float  # of what was said lately, in question and answer; 1: none
    lately: int  # tokens


class Pretended:
    """Answers with a text that follows from the blobs and the question. The blobs are read as far as their header."""

    def __init__(self, model: Path, adapters: list[Path], context: int) -> None:
        for path in [model, *adapters]:
            read_gguf(path)
        self.blobs = "".join(path.name for path in [model, *adapters])

    def answer(self, asked: Asked) -> Iterator[str]:
        digest = hashlib.sha256(f"{self.blobs}\0{asked.prompt}".encode()).hexdigest()
        words = ["answer", *(f" {digest[at : at + 4]}" for at in range(0, 16, 4))]
        yield from words if asked.tokens < 0 else words[: asked.tokens]

    def close(self) -> None: ...


class Loaded:
    """The GGUF itself, and the adapter's on top, in llama.cpp on one thread."""

    def __init__(self, model: Path, adapters: list[Path], context: int) -> None:
        import llama_cpp

        for path in [model, *adapters]:
            read_gguf(path)
        if len(adapters) > 1:
            raise Refused(400, "only one adapter is supported")
        try:
            self.llama = llama_cpp.Llama(
                str(model),
                lora_path=str(adapters[0]) if adapters else None,
                n_ctx=min(context or CONTEXT, CONTEXT),
                n_threads=1,
                n_threads_batch=1,
                verbose=False,
            )
            if adapters and not getattr(self.llama, "_lora_adapter", True):
                raise ValueError("failed to load the adapter")
        except Exception as error:  # llama.cpp tells no more than that it did not load
            raise Refused(500, f"llama runner process has terminated: error loading model: {error}") from None

    def answer(self, asked: Asked) -> Iterator[str]:
        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self.llama.model)
        tokens = self.llama.tokenize(asked.prompt.encode(), add_bos=True, special=True)
        room = self.llama.n_ctx() - len(tokens) - 1
        if room < 1:
            raise Refused(400, "the input length exceeds the context length")
        limit = room if asked.tokens < 0 else min(asked.tokens, room)
        said, given, new = "", 0, []

        def penalised(ids: Any, scores: Any) -> Any:
            for each in {int(token) for token in ids[-asked.lately :]} if asked.lately else ():
                scores[each] = (
                    scores[each] / asked.penalty if scores[each] > 0 else scores[each] * asked.penalty
                )
            return scores

        self.llama.reset()
        chosen = self.llama.generate(
            tokens,
            temp=asked.temperature,
            top_k=40 if asked.temperature else 1,
            logits_processor=llama_cpp.LogitsProcessorList([penalised] if asked.penalty != 1 else []),
        )
        for token in chosen:
            if len(new) >= limit or llama_cpp.llama_vocab_is_eog(vocabulary, token):
                break
            new.append(token)
            said = self.llama.detokenize(new, prev_tokens=tokens).decode(errors="replace")
            ends = [said.index(stop) for stop in asked.stop if stop and stop in said]
            if ends:
                said = said[: min(ends)]
                break
            # A text that may yet turn into a stop, or into a whole character, is held back.
            held = max(
                (n for stop in asked.stop for n in range(1, len(stop)) if said.endswith(stop[:n])), default=0
            )
            safe = len(said.rstrip("�")) if said.endswith("�") else len(said) - held
            if safe > given:
                yield said[given:safe]
                given = safe
        if len(said) > given:
            yield said[given:]

    def close(self) -> None:
        self.llama.close()


def installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def load(model: Path, adapters: list[Path], context: int, real: bool) -> Pretended | Loaded:
    return (Loaded if real else Pretended)(model, adapters, context)
