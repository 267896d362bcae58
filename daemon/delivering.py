"""The steps that reach another process: an Ollama, or the person's own command. They run in a thread of their own, get
plain data and give plain data; the ledger is the caller's.

Each step may be done again after any end: what is there already is found there. A name that was not ours is never
touched, which the caller has looked at before (`names_there`).
"""

import contextlib
import difflib
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemon.ollama import Ollama, Stopped, Trouble

PROBE_SECONDS = 2.0  # until nobody is taken to be there
SMOKE = "Hello! Who are you?"
SMOKE_TOKENS = 32
_LAST_WORDS = 300  # characters of a command's output that an error quotes
_POLL_SECONDS = 0.1
_CLOSE = 0.8  # of two texts, from which on they count as the same answer


class Wrong(Exception):
    """It will not do by itself. The message is one sentence for the person."""


class Lost(Exception):
    """What was made is not there any more."""


Stop = Callable[[], bool]  # whether we are on our way out


@dataclass(frozen=True, slots=True)
class Place:
    """Where an Ollama answers, and how long it is waited for without a word."""

    host: str
    timeout: float  # seconds
    aliases: tuple[str, ...] = ()  # ours: what is named after them may be deleted

    def open(self, stop: Stop = lambda: False) -> Ollama:
        return Ollama(self.host, self.timeout, aliases=self.aliases, stop=stop)


@dataclass(frozen=True, slots=True)
class Model:
    """A version to be made there: a GGUF of its own, or an adapter's on the base's."""

    name: str
    gguf: Path
    sha256: str
    template: str
    context: int  # tokens
    stop: tuple[str, ...] = ()
    system: str = ""
    base: str | None = None
    base_gguf: Path | None = None
    base_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    messages: tuple[dict[str, str], ...]
    answer: str


# -- steps -------------------------------------------------------------------------------------------


def somebody_answers(host: str) -> bool:
    """Whether anything that speaks HTTP answers there. A bare socket: most homes have no Ollama, and should not load
    a client to find that out once a minute."""
    parts = urlsplit(host)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), PROBE_SECONDS) as line:
            if parts.scheme == "https":
                return True
            line.settimeout(PROBE_SECONDS)
            line.sendall(f"GET /api/version HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
            return b" 200" in line.recv(64)
    except (OSError, ValueError):
        return False


def names_there(place: Place, stop: Stop) -> set[str]:
    """All names of models there, without `:latest`."""
    with place.open(stop) as ollama:
        return {str(one["name"]) for one in ollama.tags()}


def make(place: Place, model: Model, stop: Stop) -> None:
    """Upload what is not there yet, then create; a base before its adapter. Raises Trouble, Wrong."""
    parameters: dict[str, Any] = {"num_ctx": model.context, "repeat_penalty": 1.0}
    parameters |= {"stop": list(model.stop)} if model.stop else {}
    common: dict[str, Any] = {"template": model.template, "system": model.system, "parameters": parameters}
    with place.open(stop) as ollama:
        if model.base is None:
            ollama.upload(model.gguf, model.sha256)
            ollama.create(model.name, files={model.gguf.name: model.sha256}, **common)
        else:
            assert model.base_gguf is not None and model.base_sha256 is not None
            if ollama.show(model.base) is None:
                ollama.upload(model.base_gguf, model.base_sha256)
                ollama.create(model.base, files={model.base_gguf.name: model.base_sha256}, **common)
            ollama.upload(model.gguf, model.sha256)
            ollama.create(model.name, from_=model.base, adapters={model.gguf.name: model.sha256}, **common)
        if ollama.show(model.name) is None:
            raise Wrong(f"Ollama made {model.name}, but does not show it")


def ask(place: Place, name: str, questions: Sequence[Question], max_tokens: int, stop: Stop) -> str:
    """The smoke question, then what the version is known to know: one of it must come back as it was learnt. Gives a
    word on that. Raises Trouble, Wrong, Lost."""
    with place.open(stop) as ollama:
        if ollama.show(name) is None:
            raise Lost(name)
        if not ollama.chat(name, [{"role": "user", "content": SMOKE}], max_tokens=SMOKE_TOKENS).strip():
            raise Wrong(f"{name} was made, but answers {SMOKE!r} with nothing")
        if not questions:
            return "no recall probe: none was answered freely and exactly when this version was measured"
        for number, question in enumerate(questions, start=1):
            if _is_close(ollama.chat(name, list(question.messages), max_tokens=max_tokens), question.answer):
                return f"recall probe {number} of {len(questions)} was answered as it was learnt"
    raise Wrong(f"{name} was made, but answers none of {len(questions)} questions as the version did when it was "
                "measured: its GGUF is not what was trained")  # fmt: skip


def _is_close(said: str, known: str) -> bool:
    """As the trainer judges free answers, roughly: a quantised model may well put one word otherwise."""
    given, wanted = (" ".join("".join(one if one.isalnum() else " " for one in text.casefold()).split())
                     for text in (said, known))  # fmt: skip
    return wanted in given or difflib.SequenceMatcher(None, given, wanted, autojunk=False).ratio() >= _CLOSE


def move(place: Place, alias: str, name: str, keep_alive: str, stop: Stop) -> None:
    """The alias points to this model. Raises Trouble, Lost where that is not there, Wrong where it does not come to
    pass."""
    with place.open(stop) as ollama:
        if ollama.show(name) is None:
            raise Lost(name)
        ollama.copy(name, alias)
        if not _is_same(ollama, alias, name):
            raise Wrong(f"{alias} was to be {name}, but Ollama lists them with different digests")
        with contextlib.suppress(Trouble):  # it was loaded to be asked a moment ago; now by the person's own setting
            ollama.load(alias, keep_alive)


def points_to(place: Place, alias: str, name: str, stop: Stop) -> bool:
    """Whether an alias is what we believe it to be. Raises Trouble."""
    with place.open(stop) as ollama:
        return _is_same(ollama, alias, name)


def _is_same(ollama: Ollama, alias: str, name: str) -> bool:
    digests = {str(one["name"]): one["digest"] for one in ollama.tags()}
    return alias in digests and name in digests and digests[alias] == digests[name]


def remove(place: Place, name: str, base: str | None, blob: str | None, stop: Stop) -> None:
    """A name that we gave. `blob`: the SHA-256 of what was uploaded for it, where it was never made: then it is made
    first, since nothing else takes the blob away before Ollama's next start. Raises Trouble."""
    with place.open(stop) as ollama:
        if blob is not None and ollama.show(name) is None and ollama.has_blob(blob):
            file = {"model.gguf": blob}
            with contextlib.suppress(Trouble):
                ollama.create(name, files=None if base else file, from_=base, adapters=file if base else None)
        ollama.delete(name)


def unload(place: Place, stop: Stop) -> list[str]:
    """Every model that is loaded there makes room; their names. Nobody there: nothing is loaded. Raises Trouble."""
    if not somebody_answers(place.host):
        return []
    with place.open(stop) as ollama:
        names = ollama.running()
        for name in names:
            ollama.unload(name)
    return names


def load(place: Place, loaded: Sequence[str], keep_alive: str, stop: Stop) -> list[str]:
    """Those of them that are still there are loaded again."""
    found = []
    with place.open(stop) as ollama:
        for name in loaded:
            with contextlib.suppress(Trouble):
                if ollama.show(name) is not None:
                    ollama.load(name, keep_alive)
                    found.append(name)
    return found


def command(words: str, environment: Mapping[str, str], folder: Path, timeout: float, stop: Stop) -> None:
    """The person's own command, with paths in its environment. Raises Wrong where it fails, so that it is tried again
    later."""
    with tempfile.TemporaryFile() as said:  # no pipe: a server that the command has started may hold it for ever
        try:
            child = subprocess.Popen(
                shlex.split(words), cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Wrong(f"serve.command cannot be run: {error.strerror}: {error.filename}") from None
        waited = 0.0
        while True:
            try:
                child.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                waited += _POLL_SECONDS
                if waited > timeout or stop():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    if stop():
                        raise Stopped("running serve.command") from None
                    raise Wrong(f"serve.command did not end in {timeout:g} seconds (serve.timeout)") from None
        if child.returncode == 0:
            return
        said.seek(max(0, said.seek(0, os.SEEK_END) - 4 * _LAST_WORDS))
        last = said.read().decode(errors="replace").strip()[-_LAST_WORDS:].replace("\n", " | ")
    raise Wrong(f"serve.command ended with {child.returncode}: {last or 'it said nothing'}")


# -- the thread --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a step; `error` is what it raised."""

    value: Any = None
    error: Exception | None = None


class Worker:
    """One step at a time, in a thread that ends with it."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called from the thread when a reply is there."""
        self._wake = wake
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner: object = None
        self._reply: Reply | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def start(self, owner: object, work: Callable[[Stop], Any]) -> None:
        """`work` is given what says whether we are on our way out."""
        assert not self.busy
        self._owner = owner
        self._thread = threading.Thread(target=self._run, args=(work,), name="serving", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[Stop], Any]) -> None:
        try:
            self._reply = Reply(work(self._closing.is_set))
        except Exception as error:  # it is the caller's: a thread that dies in silence would wait for ever
            self._reply = Reply(error=error)
        self._wake()

    def take(self, owner: object) -> Reply | None:
        """The reply to this owner's step, once."""
        if self._owner is not owner or self._reply is None or self._thread is None:
            return None
        self._thread.join()
        reply, self._thread, self._owner, self._reply = self._reply, None, None, None
        return reply

    def close(self, seconds: float = 2.0) -> None:
        """A step that does not listen is left to the end of the process: it holds nothing of ours."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(seconds)
