"""A stand-in for RunPod's REST API (docs.runpod.io/api-reference, OpenAPI 0.1.0): each pod is a real sshd, for tests.

    python tests/doubles/runpod_api.py --folder DIR --key KEY [--port 0] [--price DOLLARS_AN_HOUR] [--boot SECONDS]

Prints `http://127.0.0.1:PORT/v1` as one line; loopback only; SIGTERM ends it and its pods. POST and GET /pods, GET,
PATCH and DELETE /pods/{id}, POST /pods/{id}/start and /stop, as documented, each with a bearer key: the account's, or
the pod's own, which its start command finds in RUNPOD_API_KEY beside RUNPOD_POD_ID.

A pod is DIR/pods/<id>: `volume/` stays while it exists ("/workspace" in what it is given means it), `home/` is new at
each start. Its start command really runs there, and with it its deadline; what it starts ends when the pod stops.
While a pod runs its meter does: GET /_meter tells seconds and dollars, of each pod and of all.

Faults are one JSON object in DIR/faults.json, read anew for each request; `N` is how many times, true: always; a CALL
is a method and a path's beginning, as "POST /pods".

    fail {CALL: N}       500, nothing done          slow {CALL: seconds}    waits before it answers
    lose {CALL: N}       done, and no answer        lie {CALL: N}           200, nothing done
    refuse {CALL: "w"}   400, nothing done          forget N                lists that know nothing of any pod yet
    never_ssh true       no port is ever mapped     no_start true           the start command never runs
    cost 3.5             what new pods cost         status {CALL: 429}      any other status
"""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

import psutil
from ollama_faults import Faults

MOUNT = "/workspace"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "/usr/sbin/sshd"


@dataclass
class Pod:
    """One that was asked for. `since` is when its meter began to run, None while it stands."""

    id: str
    folder: Path
    asked: dict[str, Any]
    cost: float
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    status: str = "RUNNING"
    port: int = 0
    since: float | None = None
    open_at: float = 0.0
    spent: float = 0.0  # seconds
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def seconds(self) -> float:
        return self.spent + (time.monotonic() - self.since if self.since is not None else 0.0)

    def told(self, never_ssh: bool) -> dict[str, Any]:
        is_open = self.status == "RUNNING" and not never_ssh and time.monotonic() >= self.open_at
        return {
            "id": self.id, "name": self.asked.get("name", "my pod"), "desiredStatus": self.status,
            "image": self.asked.get("imageName", ""), "env": self.asked.get("env", {}), "costPerHr": self.cost,
            "publicIp": "127.0.0.1" if is_open else "", "portMappings": {"22": self.port} if is_open else {},
            "volumeInGb": self.asked.get("volumeInGb", 20), "gpu": {"count": self.asked.get("gpuCount", 1)},
            "templateId": self.asked.get("templateId"), "ports": self.asked.get("ports", []),
        }  # fmt: skip


class Refused(Exception):
    def __init__(self, status: int, words: str = "") -> None:
        self.status, self.words = status, words


class Lost(Exception):
    """The connection breaks, after it was done."""


class Account:
    """All pods of it, and its meter."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder = Path(arguments.folder)
        self.key, self.price, self.boot = arguments.key, arguments.price, arguments.boot
        self.faults = Faults(self.folder / "faults.json")
        self.pods: dict[str, Pod] = {}
        self.gone: list[Pod] = []
        self.lock = threading.RLock()
        self.url = ""

    def create(self, asked: dict[str, Any]) -> Pod:
        if not asked.get("imageName") and not asked.get("templateId"):
            raise Refused(400, "an image or a template is needed")
        pod = Pod(secrets.token_hex(7), self.folder / "pods", asked, float(self.faults.now().get("cost", self.price)))
        pod.folder = pod.folder / pod.id
        (pod.folder / "volume").mkdir(parents=True)
        self.pods[pod.id] = pod
        self.start(pod)
        return pod

    def start(self, pod: Pod) -> None:
        if pod.since is not None:
            return
        shutil.rmtree(pod.folder / "home", ignore_errors=True)
        (pod.folder / "home").mkdir()
        pod.status, pod.since, pod.starts = "RUNNING", time.monotonic(), pod.starts + 1
        pod.open_at = pod.since + self.boot
        pod.port = _free_port()
        if not self.faults.now().get("no_start"):
            _tools(pod)
            pod.process = subprocess.Popen(
                self._inside(pod, pod.asked.get("dockerStartCmd") or ["sleep", "infinity"]), cwd=pod.folder / "home",
                env=self._environment(pod), stdin=subprocess.DEVNULL, start_new_session=True,
                stdout=(log := (pod.folder / "log").open("ab")), stderr=log,
            )  # fmt: skip
            log.close()

    def _inside(self, pod: Pod, words: list[str]) -> list[str]:
        return [word.replace(MOUNT, str(pod.folder / "volume")) for word in words]

    def _environment(self, pod: Pod) -> dict[str, str]:
        given = {name: str(value) for name, value in pod.asked.get("env", {}).items()}
        own = {
            "HOME": str(pod.folder / "home"), "PATH": f"{pod.folder / 'bin'}:{os.environ['PATH']}",
            "RUNPOD_POD_ID": pod.id, "RUNPOD_API_KEY": pod.key, "LANG": "C.UTF-8",
        }  # fmt: skip
        return {name: value.replace(MOUNT, str(pod.folder / "volume")) for name, value in {**given, **own}.items()}

    def stop(self, pod: Pod, status: str = "EXITED") -> None:
        if pod.since is not None:
            pod.spent += time.monotonic() - pod.since
            pod.since = None
        pod.status = status
        _end(pod)

    def terminate(self, pod: Pod) -> None:
        self.stop(pod, "TERMINATED")
        self.pods.pop(pod.id, None)
        self.gone.append(pod)
        shutil.rmtree(pod.folder, ignore_errors=True)

    def meter(self) -> dict[str, Any]:
        pods = [*self.pods.values(), *self.gone]
        each = {
            pod.id: {
                "name": pod.asked.get("name"), "status": pod.status, "starts": pod.starts, "seconds": pod.seconds(),
                "dollars": pod.seconds() * pod.cost / 3600,
            } for pod in pods
        }  # fmt: skip
        running = sorted(pod.id for pod in pods if pod.since is not None)
        return {"pods": each, "running": running, "seconds": sum(pod.seconds() for pod in pods),
                "dollars": sum(one["dollars"] for one in each.values())}  # fmt: skip


def _tools(pod: Pod) -> None:
    """What the image of a pod would have: sshd on its port 22, runpodctl."""
    folder = pod.folder / "bin"
    folder.mkdir(exist_ok=True)
    key = pod.folder / "home" / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    session = folder / "session"
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in {
        "HOME": str(pod.folder / "home"), "RUNPOD_POD_ID": pod.id}.items())  # fmt: skip
    session.write_text(f'#!/bin/sh\nexport {environment}\ncd "$HOME"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    config = pod.folder / "sshd_config"
    config.write_text(
        f"Port {pod.port}\nListenAddress 127.0.0.1\nHostKey {key}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"AuthorizedKeysFile {pod.folder}/home/.ssh/authorized_keys\nForceCommand {session}\nMaxStartups 100\n"
    )
    pretended = {
        "sshd": f'exec {SSHD} -D -e -f {shlex.quote(str(config))}',
        "ssh-keygen": "exit 0",
        "runpodctl": f'[ "$1 $2" = "stop pod" ] || exit 2\nexec {shlex.quote(sys.executable)} -c "{_CTL}" "$3"',
        "session": "",
    }  # fmt: skip
    for name, text in pretended.items():
        if text:
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


_CTL = (
    "import os, sys, urllib.request as r; r.urlopen(r.Request(os.environ['ENGRAMD_API'] + '/pods/' + sys.argv[1] + "
    "'/stop', method='POST', headers={'Authorization': 'Bearer ' + os.environ['RUNPOD_API_KEY']}), timeout=20)"
)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _end(pod: Pod) -> None:
    """Every process of it: by the pod's id in the environment, or, of sshd, which writes its title over that, by the
    pod's folder in its words; and all below them. None may be left."""
    deadline = time.monotonic() + 10
    while (found := _processes(pod)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)
    if pod.process is not None:
        pod.process.wait()


def _processes(pod: Pod) -> list[psutil.Process]:
    found = {}
    for process in psutil.process_iter(["status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            own = bool(words) and words[0].startswith("sshd:") and f"{pod.folder}/" in " ".join(words)
            if own or process.environ().get("RUNPOD_POD_ID") == pod.id:
                found |= {one.pid: one for one in [process, *process.children(recursive=True)]}
    return list(found.values())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", arguments.port), Handler)
        self.account = Account(arguments)
        self.log = self.account.folder / "requests.jsonl"

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *values: object) -> None: ...

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        try:
            if path == "/_meter":
                with self.server.account.lock:
                    return self._send(200, self.server.account.meter())
            status, told = self._answer(f"{self.command} {path.removeprefix('/v1')}", body)
            self._send(status, told)
        except Refused as refused:
            self._send(refused.status, {"error": refused.words})
        except (Lost, ConnectionError):
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _handle

    def _answer(self, call: str, body: bytes) -> tuple[int, Any]:
        account = self.server.account
        faults = account.faults
        asked = json.loads(body) if body else {}
        with account.lock, self.server.log.open("a") as log:
            log.write(json.dumps({"time": time.time(), "call": call, "body": asked}) + "\n")
        if seconds := faults.on("slow", call):
            time.sleep(float(seconds))
        if faults.on("fail", call):
            raise Refused(500, "something went wrong")
        if words := faults.on("refuse", call):
            raise Refused(400, str(words))
        for start, status in (faults.now().get("status") or {}).items():
            if call.startswith(start):
                raise Refused(int(status), "as asked for")
        if faults.on("lie", call):
            return 200, {}
        with account.lock:
            status, told = self._endpoint(call, asked)
        if faults.on("lose", call):
            raise Lost
        return status, told

    def _endpoint(self, call: str, asked: dict[str, Any]) -> tuple[int, Any]:
        account = self.server.account
        method, _, path = call.partition(" ")
        parts = [part for part in path.split("/") if part]
        pod = account.pods.get(parts[1]) if len(parts) > 1 else None
        self._authorised(pod)
        if parts[:1] != ["pods"]:
            raise Refused(404, "no such endpoint")
        never = bool(account.faults.now().get("never_ssh"))
        if call == "POST /pods":
            return 201, account.create(asked).told(never)
        if call == "GET /pods":
            names = parse_qs(urlsplit(self.path).query).get("name")
            some = [] if account.faults.on("forget") else list(account.pods.values())
            return 200, [one.told(never) for one in some if not names or one.asked.get("name") in names]
        if pod is None:
            raise Refused(404, "pod not found")
        if len(parts) == 2 and method == "GET":
            return 200, pod.told(never)
        if len(parts) == 2 and method == "PATCH":
            pod.asked.update(asked)
        elif len(parts) == 2 and method == "DELETE":
            account.terminate(pod)
            return 204, None
        elif parts[2:] == ["start"] and method == "POST":
            account.start(pod)
        elif parts[2:] == ["stop"] and method == "POST":
            account.stop(pod)
        else:
            raise Refused(404, "no such endpoint")
        return 200, pod.told(never)

    def _authorised(self, pod: Pod | None) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given != self.server.account.key and (pod is None or given != pod.key):
            raise Refused(401, "unauthorized")

    def _send(self, status: int, told: Any) -> None:
        content = b"" if told is None else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--price", type=float, default=3.6)
    parser.add_argument("--boot", type=float, default=0.0)
    server = Server(parser.parse_args())
    stop, parent = threading.Event(), os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    while not stop.wait(1.0) and os.getppid() == parent:  # a test that was killed leaves no pods
        pass
    with server.account.lock:
        for pod in list(server.account.pods.values()):
            server.account.stop(pod)
    return 0


if __name__ == "__main__":
    sys.exit(main())
