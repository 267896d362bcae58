"""K-quants (Q4_K_M, Q5_K_M, Q6_K), which only llama.cpp itself writes: through llama-cpp-python, the extra `gguf`.

It runs in a child process: what the library prints is kept away from the log, and a crash or a wish to stop ends the
child alone. As a program: `python -m trainer.quantise SOURCE OUT Q4_K_M`.
"""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import durable
from trainer.contract import BadSpec, JobEnded, OutOfMemory, Quantisation

FILE_TYPES = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype of llama.h
ROW = 256  # values; a tensor whose rows are no multiple of it gets a larger format of blocks of 32 (see `fallbacks`)
_FALLBACK = {"Q4_K_M": "Q5_0", "Q5_K_M": "Q5_1", "Q6_K": "Q8_0"}
_POLL = 0.5  # seconds


def available() -> bool:
    """Whether llama-cpp-python is installed; nothing is loaded."""
    return importlib.util.find_spec("llama_cpp") is not None


def quantise(
    source: Path, out: Path, quantisation: Quantisation, pulse: Callable[[], None] = lambda: None
) -> None:
    """Write the f16 or bf16 GGUF `source` as `out`, whole or not at all.

    `pulse` is called twice a second and may raise to stop. Raises BadSpec with the command that mends it where
    llama-cpp-python is missing, or with llama.cpp's own last words where it fails; OutOfMemory where it was killed.
    """
    if quantisation not in FILE_TYPES:
        raise BadSpec(f"{quantisation} is no K-quant: {', '.join(FILE_TYPES)} are")
    if not available():
        raise BadSpec(f'{quantisation} needs llama-cpp-python: pip install "engramd[gguf]", or use Q8_0')
    temporary = out.with_name(f".tmp-{out.name}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "trainer.quantise", str(source), str(temporary), quantisation]
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        try:
            while True:
                try:
                    ended = child.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    pulse()
            if ended != 0:
                said.seek(0)
                raise _explained(ended, said.read(), quantisation)
            durable.sync(temporary)
            temporary.replace(out)
            durable.sync(out.parent)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            temporary.unlink(missing_ok=True)


def fallbacks(source: Path, quantisation: Quantisation) -> str | None:
    """One sentence about matrices whose rows K-quants cannot cut, and what llama.cpp takes for them; None: all fit."""
    import gguf

    odd = [t.name for t in gguf.GGUFReader(source).tensors if len(t.shape) > 1 and int(t.shape[0]) % ROW]
    if not odd or quantisation not in _FALLBACK:
        return None
    return (
        f"{len(odd)} tensors ({odd[0]}, ...) have rows that are no multiple of {ROW} values: llama.cpp writes them as "
        f"{_FALLBACK[quantisation]}, or as F16 where 32 does not divide them either"
    )


def _explained(ended: int, said: bytes, quantisation: str) -> JobEnded:
    if ended == -signal.SIGKILL:
        return OutOfMemory(f"quantising to {quantisation} was killed: too little memory, or by hand")
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "error" in line.lower() or "fail" in line.lower()), None)
    last = told or (lines[-1] if lines else f"it ended with {ended}")
    return BadSpec(f"llama.cpp could not quantise to {quantisation}: {last[:300]}")


def _main(source: str, out: str, quantisation: str) -> int:
    import ctypes

    llama_cpp: Any = importlib.import_module("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[quantisation]
    params.nthread = len(os.sched_getaffinity(0))
    return int(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
