"""What llama.cpp itself makes of a GGUF file: token ids and logits, in a process of its own.

A process of its own, because llama.cpp ends its process where a file breaks one of its assumptions, and because the
model's memory is free again as soon as the figures are there. Needs the extra `gguf` (llama-cpp-python).

    python -m trainer.llama_engine REQUEST.json ANSWER.npz
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOOK = 1.0  # seconds between two looks at the process


class Refused(Exception):
    """llama.cpp does not load or run the file; the message says why, in its own last words."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`ids`: of each text. `logits`: float32 [positions, vocabulary]. `ends`: those of the asked tokens that end an
    answer."""

    ids: list[list[int]]
    logits: NDArray[np.float32]
    ends: set[int]


def installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def ask(
    model: Path, adapter: Path | None, texts: list[tuple[str, bool]], tokens: list[int], ends: list[int],
    pulse: Callable[[], None],
) -> Answer:
    """Token ids of each text (with or without what the model puts before a prompt), logits after each of `tokens`, and
    which of `ends` end an answer. `pulse` is called all along and may raise. Raises Refused."""  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="engramd-llama-") as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.npz")
        asked = {
            "model": str(model.resolve()), "adapter": None if adapter is None else str(adapter.resolve()),
            "texts": texts, "tokens": tokens, "ends": ends,
        }  # fmt: skip
        request.write_text(json.dumps(asked))
        with Path(folder, "log").open("w+b") as log:
            _run([sys.executable, "-m", "trainer.llama_engine", str(request), str(answer)], log, pulse)
        with np.load(answer) as found:
            cuts = np.cumsum(found["lengths"])[:-1]
            ids = [part.tolist() for part in np.split(found["ids"], cuts)] if texts else []
            return Answer(ids, found["logits"], set(found["ends"].tolist()))


def _run(command: list[str], log: Any, pulse: Callable[[], None]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
        try:
            while True:
                pulse()
                try:
                    process.wait(_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        raise Refused((lines or [f"it ended with {process.returncode}"])[-1].rstrip("."))


def _main(request: Path, answer: Path) -> None:
    try:
        llama_cpp: Any = importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"llama-cpp-python cannot be loaded: {error}") from error
    asked = json.loads(request.read_bytes())
    tokens: list[int] = asked["tokens"]
    model = llama_cpp.Llama(
        asked["model"], n_ctx=len(tokens) + 8, n_batch=max(512, len(tokens)), n_ubatch=max(512, len(tokens)),
        n_gpu_layers=0, logits_all=True, lora_path=asked["adapter"], verbose=False,
    )  # fmt: skip
    if asked["adapter"] and not getattr(model, "_lora_adapter", True):  # a null pointer, which Llama takes for one
        raise SystemExit("llama.cpp does not open the adapter: it is none of this model, or is damaged")
    ids = [model.tokenize(text.encode(), add_bos=special, special=True) for text, special in asked["texts"]]
    model.eval(tokens)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    ends = [token for token in asked["ends"] if llama_cpp.llama_vocab_is_eog(vocab, token)]
    np.savez(
        answer,
        ids=np.asarray([token for some in ids for token in some], dtype=np.int64),
        lengths=np.asarray([len(some) for some in ids], dtype=np.int64),
        logits=np.asarray(model.scores[: len(tokens)], dtype=np.float32),
        ends=np.asarray(ends, dtype=np.int64),
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
