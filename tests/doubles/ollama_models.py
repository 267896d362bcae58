"""The stand-in's models at work: made, shown, loaded, asked, unloaded. Answers are the lines of Ollama's streams."""

import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ollama_answers
import ollama_template
from ollama_answers import Asked
from ollama_blobs import (
    ADAPTER,
    MODEL,
    PARAMETERS,
    QUANTISES_TO,
    SYSTEM,
    TEMPLATE,
    Refused,
    Store,
    model_name,
    read_gguf,
)

DEFAULT_TEMPLATE = "{{ .Prompt }}"
PENALTY = (
    1.1  # where neither the model nor the request says another (until 0.34; then 1: ollama/ollama#17679)
)
KEEP = 300.0  # seconds that a model stays loaded
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(keep_alive: object) -> float:
    """How long a model stays: a number of seconds or one of Go's durations; below 0: for ever."""
    if keep_alive is None:
        return KEEP
    if isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        return float(keep_alive) if keep_alive >= 0 else float("inf")
    if isinstance(keep_alive, str):
        number = keep_alive.rstrip("abcdefghijklmnopqrstuvwxyz")
        try:
            value = float(number) * _UNITS[keep_alive[len(number) :]]
            return value if value >= 0 else float("inf")
        except (ValueError, KeyError):
            pass
    raise Refused(400, f'time: missing unit in duration "{keep_alive}"')


@dataclass
class Running:
    name: str
    runner: Any
    until: float


class Models:
    """One model is asked at a time: a context of llama.cpp is not shared between threads."""

    def __init__(self, store: Store, faults: Any, real: bool) -> None:
        self.store, self.faults, self.real = store, faults, real
        self.loaded: dict[tuple[str, ...], Running] = {}
        self.lock = threading.RLock()

    # ---- made and shown

    def create(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST /api/create. What is refused at once has a status; later errors are lines of the stream."""
        name = model_name(request.get("model") or request.get("name"))
        files, adapters = request.get("files") or {}, request.get("adapters") or {}
        if adapters and self.faults.now().get("no_adapters"):
            raise Refused(400, "LoRA adapters are no longer supported")
        if not request.get("from") and not files:
            raise Refused(400, "neither 'from' or 'files' was specified")
        wanted = str(request.get("quantize") or "").lower()
        if wanted and wanted not in QUANTISES_TO:
            raise Refused(
                400,
                f"unsupported quantization type {wanted.upper()} - supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0",
            )
        if wanted:
            raise Refused(400, "quantization is only supported for F16 and F32 models")
        for digest in [*files.values(), *adapters.values()]:
            if not self.store.blob(digest).exists():
                raise Refused(400, f"blob not found (digest {digest}): file does not exist")
        if request.get("template"):
            ollama_template.parse(request["template"])
        base = request.get("from")
        if base and model_name(base) not in self.store.names():
            raise Refused(
                404, f"pull model manifest: file does not exist: {base}"
            )  # there is no library to pull from
        return self._create(name, request, files, adapters)

    def _create(
        self, name: str, request: dict[str, Any], files: dict[str, str], adapters: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        yield {"status": "parsing GGUF"}
        layers: list[tuple[str, str]] = []
        kinds: dict[str, str] = {}
        if base := request.get("from"):
            for kind, digests in self.store.layers(base).items():
                layers += [(kind, digest) for digest in digests]
        for kind, given in ((MODEL, files), (ADAPTER, adapters)):
            for digest in given.values():
                is_adapter = read_gguf(self.store.blob(digest)).values.get("general.type") == "adapter"
                if is_adapter != (kind == ADAPTER):
                    raise Refused(400, "unknown type")
                made = self.store.rewritten(digest) if self.faults.now().get("rewrite") else digest
                yield {"status": f"{'using existing' if made == digest else 'creating new'} layer {made}"}
                layers.append((kind, made))
        parameters = {**(self.store.parameters(base) if base else {}), **(request.get("parameters") or {})}
        texts = {
            TEMPLATE: request.get("template") or "",
            SYSTEM: request.get("system") or "",
            PARAMETERS: json.dumps(parameters) if parameters else "",
        }
        kinds.update({kind: text for kind, text in texts.items() if text})
        layers = [(kind, digest) for kind, digest in layers if kind not in kinds]
        layers += [(kind, self.store.put(text.encode())) for kind, text in kinds.items()]
        yield {"status": "writing manifest"}
        self.store.write(name, layers)
        yield {"status": "success"}

    def show(self, name: object) -> dict[str, Any]:
        name = model_name(name)
        layers, listed = self.store.layers(name), self.store.listed(name)
        parameters = []
        for key, value in self.store.parameters(name).items():
            for one in value if isinstance(value, list) else [value]:
                parameters.append(f"{key:<30} {json.dumps(one)}")
        template = self.store.text(name, TEMPLATE, DEFAULT_TEMPLATE)
        system = self.store.text(name, SYSTEM)
        lines = ['# Modelfile generated by "ollama show"', f"# FROM {name}", ""]
        lines += [f"FROM {self.store.blob(digest)}" for digest in layers[MODEL]]
        lines += [f"ADAPTER {self.store.blob(digest)}" for digest in layers.get(ADAPTER, [])]
        lines += [f'TEMPLATE """{template}"""'] + ([f'SYSTEM """{system}"""'] if system else [])
        lines += [f"PARAMETER {' '.join(line.split(None, 1))}" for line in parameters]
        return {
            "modelfile": "\n".join(lines) + "\n",
            "parameters": "\n".join(parameters),
            "template": template,
            "system": system,
            "details": listed["details"],
            "model_info": self.store.header(name).values,
            "capabilities": ["completion"],
            "modified_at": listed["modified_at"],
        }

    def delete(self, name: object) -> None:
        self.store.delete(model_name(name))

    # ---- loaded and asked

    def running(self) -> list[dict[str, Any]]:
        """As /api/ps has it. The stand-in says that a model lies whole on a GPU."""
        with self.lock:
            self._expire()
            return [
                {
                    "name": one.name,
                    "model": one.name,
                    "size": size,
                    "size_vram": size,
                    "digest": "",
                    "details": {},
                    "expires_at": datetime.fromtimestamp(min(one.until, 4e9), UTC).isoformat(),
                    "context_length": ollama_answers.CONTEXT,
                }
                for key, one in self.loaded.items()
                for size in [sum(self._size(digest) for digest in key)]
            ]

    def _size(self, digest: str) -> int:
        path = self.store.blob(digest)
        return path.stat().st_size if path.exists() else 0

    def _expire(self) -> None:
        for key, one in list(self.loaded.items()):
            if one.until <= time.time():
                one.runner.close()
                del self.loaded[key]

    def _key(self, name: str) -> tuple[str, ...]:
        layers = self.store.layers(name)
        return (*layers[MODEL], *layers.get(ADAPTER, []))

    def _runner(self, name: str, keep: float) -> Any:
        """The model, loaded; a person's machine holds one, so another one goes."""
        self._expire()
        key = self._key(name)
        if key not in self.loaded:
            for other in list(self.loaded):
                self.loaded.pop(other).runner.close()
            paths = [self.store.blob(digest) for digest in key]
            context = int(self.store.parameters(name).get("num_ctx", 0))
            runner = ollama_answers.load(paths[0], paths[1:], context, self.real)
            self.loaded[key] = Running(name, runner, 0.0)
        self.loaded[key].until = time.time() + keep
        return self.loaded[key].runner

    def _only(self, name: str, keep: float) -> str:
        """A request without a question: loads, or with keep_alive 0 unloads."""
        with self.lock:
            if keep == 0:
                found = self.loaded.pop(self._key(name), None)
                if found:
                    found.runner.close()
                return "unload"
            self._runner(name, keep)
            return "load"

    def generate(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST /api/generate."""
        name, keep = self._name(request)
        head = {"model": request["model"], "created_at": datetime.now(UTC).isoformat()}
        question = request.get("prompt") or ""
        if not question:
            reason = self._only(name, keep)
            return iter([{**head, "response": "", "done": True, "done_reason": reason}])
        system = request.get("system") or self.store.text(name, SYSTEM)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": question})
        parts = self._answer(name, keep, request, messages)
        return (
            {**head, **({"response": text} if text is not None else {"response": "", **done})}
            for text, done in parts
        )

    def chat(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """POST /api/chat."""
        name, keep = self._name(request)
        head = {"model": request["model"], "created_at": datetime.now(UTC).isoformat()}
        messages = request.get("messages") or []
        if not messages:
            reason = self._only(name, keep)
            nothing = {"role": "assistant", "content": ""}
            return iter([{**head, "message": nothing, "done": True, "done_reason": reason}])
        system = self.store.text(name, SYSTEM)
        if system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": system}, *messages]
        parts = self._answer(name, keep, request, messages)
        return (
            {**head, "message": {"role": "assistant", "content": text or ""}, **done} for text, done in parts
        )

    def _name(self, request: dict[str, Any]) -> tuple[str, float]:
        name = model_name(request.get("model"))
        self.store.manifest(name)
        return name, seconds(request.get("keep_alive"))

    def _answer(
        self, name: str, keep: float, request: dict[str, Any], messages: list[dict[str, str]]
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """The answer's pieces, then None with what was counted. Checked and loaded before the first piece."""
        options = {**self.store.parameters(name), **(request.get("options") or {})}
        template = request.get("template") or self.store.text(name, TEMPLATE, DEFAULT_TEMPLATE)
        prompt = messages[-1]["content"] if request.get("raw") else ollama_template.render(template, messages)
        stop = options.get("stop") or []
        asked = Asked(
            prompt,
            int(options.get("num_predict", -1)),
            float(options.get("temperature", 0.8)),
            [stop] if isinstance(stop, str) else list(stop),
            float(options.get("repeat_penalty", PENALTY)),
            int(options.get("repeat_last_n", 64)),
        )
        with self.lock:
            self._runner(name, keep or KEEP)
        return self._pieces(name, keep, asked, messages[-1]["content"])

    def _pieces(
        self, name: str, keep: float, asked: Asked, question: str
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        began, count = time.monotonic_ns(), 0
        with self.lock:
            runner = self._runner(name, keep or KEEP)  # another thread may have unloaded it in between
            for piece in self._told(asked, question) or runner.answer(asked):
                count += 1
                yield piece, {"done": False}
            if keep == 0:
                self._only(name, keep)
        spent = time.monotonic_ns() - began
        yield (
            None,
            {
                "done": True,
                "done_reason": "length" if count == asked.tokens else "stop",
                "total_duration": spent,
                "load_duration": 0,
                "prompt_eval_count": len(asked.prompt.split()),
                "prompt_eval_duration": 0,
                "eval_count": count,
                "eval_duration": spent,
            },
        )

    def _told(self, asked: Asked, question: str) -> Iterator[str] | None:
        """An answer that the faults file wants, instead of the model's own."""
        faults = self.faults.now()
        if faults.get("empty"):
            return iter(())
        if faults.get("garbage"):
            letters = random.Random(asked.prompt)
            return iter(["".join(letters.choice("qxzjkvw&#%") for _ in range(12)) for _ in range(4)])
        if faults.get("endless"):
            return self._endless()
        answers = faults.get("answers") or {}
        told = answers.get(question, answers.get("*"))
        return iter([told]) if told is not None else None

    def _endless(self) -> Iterator[str]:
        while self.faults.now().get("endless"):
            time.sleep(0.005)
            yield " and"
