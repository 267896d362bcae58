"""A conversation with a model in a trainer's child process: JSON lines over its stdin and stdout."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from daemon.home import python_path

Message = dict[str, str]
_THREADS = str(max(1, (os.cpu_count() or 1) // 2))  # more than the machine has free makes torch crawl
_LAST_WORDS = 400  # characters of its stderr that an error quotes at most


class TalkError(Exception):
    """The model cannot be talked to, or did not answer. The message is one sentence."""


def chat_command(target: str) -> list[str]:
    """`target` is a checkpoint's folder, the name of a base model, or a GGUF (see `gguf_options`)."""
    return [sys.executable, "-m", "trainer", "chat", target]


def gguf_options(tokenizer: str, adapter: Path | None = None) -> list[str]:
    """What belongs after `chat_command` of a GGUF: the base model whose tokenizer it is, and an adapter on top."""
    return ["--tokenizer", tokenizer, *([] if adapter is None else ["--adapter-gguf", str(adapter)])]


def llama_is_there() -> bool:
    """Whether the trainer, which runs in this Python, can answer by llama.cpp; finds it without loading it."""
    return importlib.util.find_spec("llama_cpp") is not None


class Talk:
    """One child, alive until `close`. Raises TalkError, also where it ends before its time."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it and wait until its model is loaded."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        try:
            self._child = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env={"OMP_NUM_THREADS": _THREADS, **os.environ, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise TalkError(f"the trainer cannot be started: {error.strerror}") from None
        try:
            self.about = self._receive()
        except BaseException:
            self.close()
            raise

    def say(
        self, messages: Sequence[Message], *, max_new_tokens: int = 200, temperature: float = 0.0,
        seed: int = 0, prefix: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """The answer, with its `text` and number of `tokens`. `prefix` is how the answer must begin."""
        asked: dict[str, Any] = {
            "messages": list(messages), "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed
        }  # fmt: skip
        if prefix:
            asked["prefix"] = prefix
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(asked, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise TalkError(self._why_gone()) from None
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        """The next line that is an object; anything else on its stdout is some library's chatter."""
        assert self._child.stdout is not None
        for raw in self._child.stdout:
            try:
                found = json.loads(raw)
            except ValueError:
                continue
            if isinstance(found, dict):
                if "error" in found:
                    raise TalkError(str(found["error"]))
                return found
        raise TalkError(self._why_gone())

    def _why_gone(self) -> str:
        code = self._child.wait()
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"the trainer ended (exit code {code}): {words[-1][:_LAST_WORDS] if words else 'without a word'}"

    def close(self) -> None:
        """End of input ends it; a child that does not listen is killed."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
