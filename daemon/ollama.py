"""An Ollama server, as far as serving needs it: blobs, models made and shown, asked, loaded and unloaded.

A thin wrapper on the `ollama` package, which is imported only when a call is made: the idle daemon stays light. Every
call either does what it says or raises `Trouble` with one sentence, and with whether a later try may do better. The
wire forms are those of Ollama's docs/api.md. Nothing here knows the ledger; one object belongs to one thread.
"""

import contextlib
import ipaddress
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from daemon.ollama_troubles import NoAdapters, Stopped, Trouble, trouble_of

if TYPE_CHECKING:
    import httpx
    import ollama

CONNECT_SECONDS = 10.0  # a server that is there takes a connection much sooner
UNLOAD_SECONDS = 20.0  # Ollama answers before the memory is free
_PART = 1 << 20  # bytes of a file between two looks at the stop
_PIECES = 32  # more of an answer than was asked for: it does not end
_BASE = re.compile(r"engramd-base-[0-9a-f]{12}-[a-z0-9_]+")

__all__ = ["Loaded", "NoAdapters", "Ollama", "Stopped", "Trouble", "ours"]

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A model in Ollama's memory: bytes of it all, and of those that lie on a GPU."""

    name: str
    size: int
    vram: int


def ours(name: str, aliases: Collection[str]) -> bool:
    """Whether engramd gave this name: an imported base, one of its aliases, or the tag `<alias>-v<N>` of one."""
    short = _short(name)
    tag = re.fullmatch(r"(.+)-v[0-9]+", short)
    return bool(_BASE.fullmatch(short)) or short in aliases or (tag is not None and tag[1] in aliases)


class Ollama:
    """`host` as Ollama's own client reads it (OLLAMA_HOST, else 127.0.0.1:11434, where it is empty).

    `timeout` is in seconds of silence, not of the whole call. `aliases` are the names that may be deleted, with their
    tags and the imported bases. `stop` is asked while files are sent and answers come: where it says yes, Stopped.
    """

    def __init__(
        self,
        host: str,
        timeout: float,
        *,
        aliases: Collection[str] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.host = host or os.environ.get("OLLAMA_HOST", "")
        self.timeout = timeout
        self.aliases = frozenset(aliases)
        self.stop = stop
        self._client: ollama.Client | None = None

    def __enter__(self) -> "Ollama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    # ---- the server

    def version(self) -> str:
        with self._asking("asking for its version") as client:
            return str(self._raw(client, "GET", "/api/version").json()["version"])

    def takes_adapters(self) -> bool:
        """Whether it still serves adapters, by its version; a build without one is believed to."""
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", self.version())
        number = tuple(int(part) for part in found.groups()) if found else (0, 0, 0)
        return number < (0, 34, 1)

    # ---- blobs

    def has_blob(self, digest: str) -> bool:
        url = f"/api/blobs/{_digest(digest)}"
        return self._found("looking for a file", lambda client: self._raw(client, "HEAD", url)) is not None

    def upload(self, path: Path, digest: str, progress: Callable[[int, int], None] | None = None) -> bool:
        """Sends the file whose SHA-256 this is, unless it is there: whether it was sent.

        `progress` gets the bytes that have gone, and all. The package's own way reads the file twice, always sends it
        and cannot be stopped.
        """
        if self.has_blob(digest):
            return False
        try:
            total = path.stat().st_size
        except OSError as error:
            raise Trouble(f"{path} cannot be read: {error.strerror}", retry=False) from None

        def parts() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while part := file.read(_PART):
                    self._go_on(f"sending {path.name} to Ollama")
                    yield part
                    sent += len(part)
                    if progress is not None:
                        progress(sent, total)

        with self._asking(f"sending {path.name}") as client:
            url, headers = f"/api/blobs/{_digest(digest)}", {"Content-Length": str(total)}
            self._raw(client, "POST", url, content=parts(), headers=headers)
        return True

    # ---- models

    def create(
        self,
        model: str,
        *,
        files: Mapping[str, str] | None = None,
        from_: str | None = None,
        adapters: Mapping[str, str] | None = None,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Makes a model of files (name: digest) or of a base and adapters. What had its name is replaced at the end.

        `progress` gets Ollama's lines. NoAdapters where adapters are no longer taken.
        """
        if from_ is not None and self.show(from_) is None:
            # Asked to build on a name that it does not have, Ollama would look for that name on the internet.
            raise Trouble(
                f"Ollama no longer has {from_}, the base of {model}; it is imported again", retry=True
            )
        last = ""
        with self._asking(f"making {model}") as client:
            lines = client.create(
                model=model,
                files=_digests(files),
                from_=from_,
                adapters=_digests(adapters),
                template=template or None,
                system=system or None,
                parameters=dict(parameters) if parameters else None,
                stream=True,
            )
            for line in self._each(lines, f"making {model}"):
                last = line.status or last
                if progress is not None:
                    progress(last)
        if last != "success":
            raise Trouble(f"Ollama broke off making {model}, after: {last or 'nothing'}", retry=True)

    def show(self, model: str) -> dict[str, Any] | None:
        """What Ollama knows of a model: template, parameters, modelfile, details, model_info; None: it has none."""

        def shown(client: "ollama.Client") -> dict[str, Any]:
            return dict(self._raw(client, "POST", "/api/show", json={"model": model}).json())

        return self._found(f"looking at {model}", shown)

    def tags(self) -> list[dict[str, Any]]:
        """Every model there is: name (without `:latest`), size in bytes, digest of its manifest."""
        with self._asking("listing its models") as client:
            return [
                {"name": _short(each.model or ""), "size": int(each.size or 0), "digest": each.digest or ""}
                for each in client.list().models
            ]

    def copy(self, source: str, destination: str) -> None:
        """Gives a model a second name. A model that had that name is replaced in one step."""
        with self._asking(f"giving {source} the name {destination}") as client:
            client.copy(source, destination)

    def delete(self, name: str) -> bool:
        """Whether it was there. Only what engramd named is ever deleted: see `ours`."""
        if not ours(name, self.aliases):
            raise Trouble(f"{name} is no model of engramd's: it is not deleted", retry=False)
        return self._found(f"deleting {name}", lambda client: client.delete(name)) is not None

    # ---- memory

    def loaded(self) -> list[Loaded]:
        with self._asking("listing what it has loaded") as client:
            return [
                Loaded(_short(each.name or each.model or ""), int(each.size or 0), int(each.size_vram or 0))
                for each in client.ps().models
            ]

    def running(self) -> list[str]:
        return [each.name for each in self.loaded()]

    def load(self, model: str, keep_alive: str | float | None = None) -> None:
        """Into memory, for so long after its last use: "5m", seconds, below 0 for ever; None: as Ollama is set."""
        with self._asking(f"loading {model}") as client:
            client.generate(model=model, keep_alive=_keep(keep_alive))

    def unload(self, model: str) -> None:
        """Out of memory, and waits until it is; Trouble where it is still there after UNLOAD_SECONDS."""
        with self._asking(f"unloading {model}") as client:
            client.generate(model=model, keep_alive=0)
        deadline = time.monotonic() + UNLOAD_SECONDS
        pause = threading.Event()
        while _short(model) in self.running():
            self._go_on(f"unloading {model}")
            if time.monotonic() > deadline:
                raise Trouble(
                    f"Ollama still has {model} loaded, {UNLOAD_SECONDS:.0f} s after it was told to", True
                )
            pause.wait(0.1)

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        keep_alive: str | float | None = None,
    ) -> str:
        """The answer, of at most so many tokens; it may be empty. One that does not end is Trouble."""
        said: list[str] = []
        done = False
        with self._asking(f"asking {model}") as client:
            pieces = client.chat(
                model=model,
                messages=list(messages),
                options={"num_predict": max_tokens, "temperature": temperature, "seed": 0},
                keep_alive=_keep(keep_alive),
                stream=True,
            )
            for piece in self._each(pieces, f"asking {model}"):
                said.append(piece.message.content or "")
                done = done or bool(piece.done)
                if len(said) > max_tokens + _PIECES:
                    raise Trouble(f"{model} did not end its answer at {max_tokens} tokens", retry=True)
        if not done:
            raise Trouble(f"Ollama broke off the answer of {model}", retry=True)
        return "".join(said)

    # ---- below

    def _go_on(self, doing: str) -> None:
        if self.stop():
            raise Stopped(doing)

    def _each(self, lines: Iterator[T], doing: str) -> Iterator[T]:
        """The lines of a stream; it is closed at once when the reading ends early, and so is what Ollama does."""
        try:
            for line in lines:
                self._go_on(doing)
                yield line
        finally:
            getattr(lines, "close", lambda: None)()

    @staticmethod
    def _raw(client: "ollama.Client", method: str, url: str, **more: Any) -> "httpx.Response":
        # The package has no call for HEAD and for the version, and `create_blob` is not enough (see `upload`).
        response: httpx.Response = client._request_raw(method, url, **more)  # type: ignore[no-untyped-call]
        return response

    def _opened(self) -> "ollama.Client":
        import httpx
        import ollama

        if self._client is None:
            self._client = ollama.Client(
                self.host,
                timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, CONNECT_SECONDS)),
                follow_redirects=False,  # what a person remembers goes to the host that they named
                limits=httpx.Limits(
                    max_keepalive_connections=0
                ),  # none that a restarted Ollama knows nothing of
                trust_env=not _here(self.host),  # a proxy is not asked for this machine's own Ollama
            )
        return self._client

    @contextlib.contextmanager
    def _asking(self, doing: str) -> Iterator["ollama.Client"]:
        """One call: whatever goes wrong with it becomes Trouble."""
        try:
            yield self._opened()
        except Trouble:
            raise
        except Exception as error:
            trouble = trouble_of(error, doing, self.host or "127.0.0.1:11434", self.timeout)
            if trouble is None:
                raise
            raise trouble from None

    def _found(self, doing: str, call: Callable[["ollama.Client"], T]) -> T | None:
        """What the call gives, or None where Ollama says that it has no such thing."""
        with self._asking(doing) as client:
            try:
                return call(client)
            except Exception as error:
                if getattr(error, "status_code", None) == 404:
                    return None
                raise


def _short(name: str) -> str:
    return name.removesuffix(":latest")


def _digest(digest: str) -> str:
    return digest if digest.startswith("sha256:") else f"sha256:{digest}"


def _digests(files: Mapping[str, str] | None) -> dict[str, str] | None:
    return {name: _digest(digest) for name, digest in files.items()} if files else None


def _keep(keep_alive: str | float | None) -> str | float | None:
    """Ollama takes a number of seconds or a Go duration such as "5m"; "-1" as a text it refuses."""
    if isinstance(keep_alive, str):
        with contextlib.suppress(ValueError):
            return float(keep_alive)
    return keep_alive


def _here(host: str) -> bool:
    """Whether the address is this machine's own."""
    try:
        name = urllib.parse.urlsplit(host if "://" in host else f"//{host}").hostname or "127.0.0.1"
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host.partition("://")[2].startswith("localhost") or host.startswith("localhost")
