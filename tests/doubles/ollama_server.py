"""A stand-in for an Ollama server: its documented API (docs/api.md, as of 0.33) over files, for tests.

    python tests/doubles/ollama_server.py --port 0 --models DIR [--faults FILE] [--log FILE] [--answers auto]

Prints `http://127.0.0.1:PORT` as one line; loopback only; SIGTERM ends it. With llama_cpp it really loads the GGUF
(`--answers auto` or `real`), else, and with `pretend`, it answers with a text that follows from blobs and question.
Every request is a JSON line in the log (DIR/requests.jsonl): time, method, path, bytes of its body, the JSON in it.

Faults are one JSON object in the faults file (DIR/faults.json), read anew for each request; `POST /_faults` writes
it. A count starts over whenever the file changes. `N` is how many times, true: always; an ENDPOINT is a path's
beginning, as "/api/create", or with a method, "POST /api/blobs".

    slow {ENDPOINT: seconds}      waits before it answers          fail {ENDPOINT: N}     500
    no_space {ENDPOINT: N}        as where the disk is full        refuse {ENDPOINT: "words"}  400
    broken_json {ENDPOINT: N}     200, and no JSON                 down true              takes no connections
    cut_upload N, cut_create N    the connection breaks in the middle of it
    rewrite true                  imported GGUFs are written anew: another digest
    no_adapters true              as Ollama from 0.34.1 on         version "0.34.2"
    answers {question: answer}    instead of the model's own answer; {"*": answer} to every question
    empty true, garbage true      no answer, or nonsense           endless true           an answer without an end
"""

import argparse
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ollama_answers import installed
from ollama_blobs import DIGEST, Refused, Store
from ollama_faults import Faults
from ollama_models import Models

VERSION = "0.33.3"
CHUNK = 1 << 16


class Server(ThreadingHTTPServer):
    """Its listening socket is closed and opened again while `down` says so; each connection has a thread."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", arguments.port), Handler)
        folder = Path(arguments.models)
        self.faults = Faults(Path(arguments.faults or folder / "faults.json"))
        self.store = Store(folder)
        real = arguments.answers == "real" or (arguments.answers == "auto" and installed())
        self.models = Models(self.store, self.faults, real)
        self.log = Path(arguments.log or folder / "requests.jsonl")
        self.log_lock = threading.Lock()

    def note(self, **record: object) -> None:
        line = json.dumps({"time": time.time(), **record})
        with self.log_lock, self.log.open("a") as file:
            file.write(line + "\n")

    def serve_until(self, stop: threading.Event) -> None:
        address = self.server_address
        up = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        up.start()
        while not stop.wait(0.02):
            down = bool(self.faults.now().get("down"))
            if down and up.is_alive():
                self.shutdown()
                up.join()
                self.socket.close()
            elif not down and not up.is_alive():
                self.socket = socket.socket(self.address_family, self.socket_type)
                self.server_address = address
                self.server_bind()
                self.server_activate()
                up = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
                up.start()
        self.socket.close()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Cut(Exception):
    """The connection breaks here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is two writes: without this each one costs 40 ms
    server: Server

    def log_message(self, format: str, *values: object) -> None: ...

    def _handle(self) -> None:
        self.answered = False
        call = f"{self.command} {self.path}"
        try:
            if self.server.faults.now().get("down"):
                raise Cut
            self._answer(call)
        except Refused as refused:
            self._json({"error": refused.words}, refused.status)
        except (Cut, ConnectionError):
            self.close_connection = True
        except Exception as error:
            self._json({"error": f"{type(error).__name__}: {error}"}, 500)
            raise

    do_GET = do_POST = do_HEAD = do_DELETE = _handle

    def _answer(self, call: str) -> None:
        faults = self.server.faults
        uploading = self.path.startswith("/api/blobs/")
        body = b"" if uploading else b"".join(self._body())
        if not uploading:
            self._note(len(body), body)
        if self.path == "/_faults" and self.command == "POST":
            temporary = faults.path.with_name("faults-new.json")
            temporary.write_bytes(body)
            temporary.rename(faults.path)
            return self._json({})
        if seconds := faults.on("slow", call):
            time.sleep(float(seconds))
        if faults.on("fail", call):
            self._drain(uploading)
            raise Refused(500, "something went wrong")
        if words := faults.on("refuse", call):
            self._drain(uploading)
            raise Refused(400, words)
        if faults.on("broken_json", call):
            return self._send(200, b"<html>this is no JSON</html>")
        if uploading:
            return self._blob(call)
        try:
            request = json.loads(body) if body else {}
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return self._endpoint(call, request)

    def _note(self, size: int, body: bytes = b"") -> None:
        try:
            content = json.loads(body) if body else None
        except ValueError:
            content = None
        self.server.note(method=self.command, path=self.path, bytes=size, body=content)

    def _drain(self, uploading: bool) -> None:
        if uploading:
            self._note(sum(len(part) for part in self._body()))

    def _endpoint(self, call: str, request: dict[str, Any]) -> None:
        models, store = self.server.models, self.server.store
        name = request.get("model") or request.get("name")
        streams: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "POST /api/create": lambda: self._creating(call, models.create(request)),
            "POST /api/generate": lambda: models.generate(request),
            "POST /api/chat": lambda: models.chat(request),
        }
        if call in ("GET /", "HEAD /"):
            self._send(200, b"Ollama is running", "text/plain")
        elif call == "GET /api/version":
            self._json({"version": self.server.faults.now().get("version", VERSION)})
        elif call == "GET /api/tags":
            self._json({"models": [store.listed(each) for each in store.names()]})
        elif call == "GET /api/ps":
            self._json({"models": models.running()})
        elif call == "POST /api/show":
            self._json(models.show(name))
        elif call == "POST /api/copy":
            store.copy(request.get("source", ""), request.get("destination", ""))
            self._send(200, b"")
        elif call == "DELETE /api/delete":
            models.delete(name)
            self._send(200, b"")
        elif call in streams:
            self._stream(streams[call](), request.get("stream", True), call == "POST /api/create")
        else:
            self._send(404, b"404 page not found", "text/plain")

    def _creating(self, call: str, lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        faults = self.server.faults
        full, cut = faults.on("no_space", call), faults.on("cut_create")
        for number, line in enumerate(lines):
            yield line
            if number == 0 and full:
                raise Refused(500, f"write {self.server.store.blobs}/sha256-1: no space left on device")
            if number == 0 and cut:
                raise Cut

    def _body(self) -> Iterator[bytes]:
        """What the client sends, as it comes, in either of HTTP's forms."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            part = self.rfile.read1(min(left, CHUNK))
            if not part:
                raise Cut
            left -= len(part)
            yield part

    def _blob(self, call: str) -> None:
        store, digest = self.server.store, self.path.removeprefix("/api/blobs/")
        if self.command == "HEAD":
            self._note(0)
            if not store.blob(digest).exists():
                raise Refused(404, f'blob "{digest}" not found')
            return self._send(200, b"")
        if not DIGEST.fullmatch(digest):
            self._drain(True)
        target = store.blob(digest)
        cut, full = self.server.faults.on("cut_upload"), self.server.faults.on("no_space", call)
        half = int(self.headers.get("Content-Length") or 0) // 2
        found, size = hashlib.sha256(), 0
        temporary = store.blobs / f"{digest[7:]}-{os.getpid()}-{threading.get_ident()}"
        try:
            with temporary.open("wb") as file:
                for part in self._body():
                    size += len(part)
                    if cut and size > half:
                        raise Cut
                    if full and size > half and not self.answered:  # the client is still sending
                        self.close_connection = True
                        self._json({"error": f"write {target}: no space left on device"}, 500)
                    found.update(part)
                    file.write(part)
            if full:
                return
            if "sha256:" + found.hexdigest() != digest.replace("-", ":"):
                raise Refused(400, f'digest mismatch, expected "{digest}", got "sha256:{found.hexdigest()}"')
            present = target.exists()
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
            self._note(size)
        self._send(200 if present else 201, b"")

    def _send(self, status: int, content: bytes, kind: str = "application/json; charset=utf-8") -> None:
        self.answered = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        if not self.answered:
            self._send(status, b"" if self.command == "HEAD" else json.dumps(content).encode())

    def _stream(self, lines: Iterable[dict[str, Any]], wanted: object, creating: bool) -> None:
        """NDJSON, a line as soon as it is known; or, where no stream is wanted, one object in the end.

        An error after the first line is a line of its own, without a status, as Ollama has it.
        """
        if wanted is False:
            return self._json(_joined(list(lines), creating))
        iterator = iter(lines)
        first = next(iterator)
        self.answered = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for line in itertools.chain([first], iterator):
                self._part(line)
        except Refused as refused:
            self._part({"error": refused.words})
        self.wfile.write(b"0\r\n\r\n")

    def _part(self, line: dict[str, Any]) -> None:
        content = json.dumps(line).encode() + b"\n"
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


def _joined(lines: list[dict[str, Any]], creating: bool) -> dict[str, Any]:
    whole = dict(lines[-1])
    if not creating and "message" in whole:
        whole["message"] = {
            "role": "assistant",
            "content": "".join(line["message"]["content"] for line in lines),
        }
    elif not creating:
        whole["response"] = "".join(line["response"] for line in lines)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", required=True)
    parser.add_argument("--faults")
    parser.add_argument("--log")
    parser.add_argument("--answers", choices=["auto", "real", "pretend"], default="auto")
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    server = Server(arguments)
    server.note(started=datetime.now(UTC).isoformat())
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_until(stop)
    os._exit(0)  # llama.cpp may be in the middle of an answer


if __name__ == "__main__":
    sys.exit(main())
