"""RunPod's REST API, as far as a night needs it: find, create, change, start, stop and terminate pods.

Documented at docs.runpod.io/api-reference (OpenAPI 0.1.0, https://rest.runpod.io/v1): POST and GET /pods, GET, PATCH
and DELETE /pods/{id}, POST /pods/{id}/start and /stop, a bearer key. Its names need not be unique and a POST knows no
key of idempotence, so a pod is always looked for by its name before one is made, and again after an answer was lost.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from daemon.settings_compute import KEY_VARIABLE

KEY = KEY_VARIABLE
CREDENTIAL = "runpod_api_key"  # its name in systemd's LoadCredential=
TRIES = 6
TIMEOUT = 30.0  # seconds of one call
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between tries
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Unreachable(Exception):
    """The API does not answer, or answers with its own faults. One sentence; what was asked may have been done."""


class Denied(Exception):
    """There is no key, or it was refused. One sentence."""


class Rejected(Exception):
    """The API understood and said no: no such GPU is free, say. One sentence."""


@dataclass(frozen=True, slots=True)
class PodInfo:
    """What the API tells of a pod. `cost` is dollars an hour while it runs; None where it does not say."""

    id: str
    name: str
    status: str  # RUNNING, EXITED or TERMINATED: what is wanted of it, not whether it answers yet
    ip: str | None = None
    port: int | None = None  # public, of its port 22
    cost: float | None = None
    gpus: int | None = None  # None where it does not say

    @property
    def running(self) -> bool:
        return self.status == "RUNNING"


def key(environ: Mapping[str, str] | None = None) -> str:
    """From the environment, else from systemd's credentials. Raises Denied."""
    found = os.environ if environ is None else environ
    if found.get(KEY, "").strip():
        return found[KEY].strip()
    if found.get("CREDENTIALS_DIRECTORY"):
        try:
            text = (Path(found["CREDENTIALS_DIRECTORY"]) / CREDENTIAL).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            text = ""
        if text:
            return text
    raise Denied(f"there is no key of RunPod's: set {KEY}, or systemd's credential {CREDENTIAL}")


class Api:
    """Calls with retries. `pause` waits between them, and may raise to end the waiting."""

    def __init__(self, address: str, secret: str, pause: Callable[[float], None] = time.sleep) -> None:
        self._secret = secret
        self._pause = pause
        self._client = httpx.Client(
            base_url=address.rstrip("/"), timeout=TIMEOUT, headers={"Authorization": f"Bearer {secret}"},
            follow_redirects=False, trust_env=True,
        )  # fmt: skip

    def close(self) -> None:
        self._client.close()

    def all(self) -> list[PodInfo]:
        """Every pod of the account that still exists. Raises Unreachable, Denied, Rejected."""
        return self._pods({})

    def named(self, name: str) -> list[PodInfo]:
        """Those of exactly this name, the running ones first."""
        found = [pod for pod in self._pods({"name": name}) if pod.name == name]
        return sorted(found, key=lambda pod: (not pod.running, pod.id))

    def get(self, pod: str) -> PodInfo | None:
        """None where there is no such pod (any more)."""
        answer = self._call("GET", f"/pods/{pod}", gone_is_fine=True)
        found = None if answer is None else _pod(answer)
        return None if found is None or found.status == "TERMINATED" else found

    def create(self, body: Mapping[str, Any]) -> PodInfo:
        """The pod of this name: the one that is there, else a new one. However often it is asked, and wherever an
        answer was lost, one is left: of two, the one that runs. Rejected means that there is certainly none."""
        lost = False
        for number in range(TRIES):
            if found := self.named(str(body["name"])):
                for other in found[1:]:
                    self.terminate(other.id)
                return found[0]
            try:
                answer = self._once("POST", "/pods", dict(body))
            except Unreachable:
                lost = True
                if number + 1 == TRIES:
                    raise
                self._pause(_pause_after(number))
                continue
            except Rejected as reason:
                if lost:
                    raise Unreachable(str(reason)) from None
                raise
            made = _pod(answer)
            if made is None:
                raise Unreachable("RunPod's API answered with something that is no pod")
            return made
        raise Unreachable("RunPod's API made no pod")

    def update(self, pod: str, fields: Mapping[str, Any]) -> None:
        """Name and environment of a stopped pod; a running one may be reset by it."""
        self._call("PATCH", f"/pods/{pod}", dict(fields))

    def start(self, pod: str) -> None:
        self._call("POST", f"/pods/{pod}/start")

    def stop(self, pod: str) -> None:
        """Its GPU is given back, its volume stays. A pod that is gone has stopped too."""
        self._call("POST", f"/pods/{pod}/stop", gone_is_fine=True)

    def terminate(self, pod: str) -> None:
        """It is removed, volume and all."""
        self._call("DELETE", f"/pods/{pod}", gone_is_fine=True)

    def halt(self, pod: str, *, remove: bool) -> None:
        """Stop or terminate, and look until it is so. Raises Unreachable where it still runs after all tries."""
        for number in range(TRIES):
            self.terminate(pod) if remove else self.stop(pod)
            found = self.get(pod)
            if found is None or not (remove or found.running):
                return
            self._pause(_pause_after(number))
        raise Unreachable(f"RunPod's API said that pod {pod} was {'removed' if remove else 'stopped'}, and it is not")

    def _pods(self, query: Mapping[str, str]) -> list[PodInfo]:
        answer = self._call("GET", "/pods", query=query)
        if not isinstance(answer, list):
            raise Unreachable("RunPod's API answered with something that is no list of pods")
        return [pod for one in answer if (pod := _pod(one)) is not None and pod.status != "TERMINATED"]

    def _call(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None,
        gone_is_fine: bool = False,
    ) -> Any:  # fmt: skip
        """Calls that may be made twice. Raises Unreachable, Denied, Rejected."""
        for number in range(TRIES):
            try:
                return self._once(method, path, body, query=query, gone_is_fine=gone_is_fine)
            except Unreachable:
                if number + 1 == TRIES:
                    raise
                self._pause(_pause_after(number))
        raise Unreachable("RunPod's API was not asked")

    def _once(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None,
        gone_is_fine: bool = False,
    ) -> Any:  # fmt: skip
        try:
            answer = self._client.request(method, path, json=body, params=dict(query) if query else None)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"RunPod's API cannot be reached ({type(error).__name__})") from None
        status = answer.status_code
        if status in (401, 403):
            raise Denied(f"RunPod refused the key in {KEY} ({status})")
        if status == 404 and gone_is_fine:
            return None
        if status >= 500 or status in (408, 429) or 300 <= status < 400:
            raise Unreachable(f"RunPod's API answered {status} to {method} {path.partition('?')[0]}")
        if status >= 400:
            raise Rejected(f"RunPod answered {status} to {method} {path}: {self._words(answer.text)}")
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            if method in ("DELETE", "PATCH") or path.endswith(("/start", "/stop")):
                return None  # what they answer is not documented, and not needed
            raise Unreachable("RunPod's API answered with something that is no JSON") from None

    def _words(self, text: str) -> str:
        """The first of what it says, in one line, and never the key."""
        plain = " ".join(re.sub(r"[^\x20-\x7e]", " ", text.replace(self._secret, "...")).split())
        return plain[:200] or "without a word"


def _pause_after(number: int) -> float:
    return _PAUSES[min(number, len(_PAUSES) - 1)]


def _pod(told: Any) -> PodInfo | None:
    """Only what is of the form that is documented; a pod of another form is none."""
    if not isinstance(told, dict) or not _ID.fullmatch(str(told.get("id", ""))):
        return None
    ports, ip = told.get("portMappings"), told.get("publicIp")
    port = ports.get("22") if isinstance(ports, dict) else None
    gpu = told.get("gpu")
    count = gpu.get("count") if isinstance(gpu, dict) else None
    try:
        cost = float(told["costPerHr"])
    except (KeyError, TypeError, ValueError):
        cost = None
    return PodInfo(
        id=str(told["id"]), name=str(told.get("name") or ""), status=str(told.get("desiredStatus") or ""),
        ip=ip if isinstance(ip, str) and re.fullmatch(r"[0-9a-fA-F.:]{3,45}", ip) else None,
        port=port if isinstance(port, int) and 0 < port < 65536 else None, cost=cost,
        gpus=count if isinstance(count, int) else None,
    )  # fmt: skip
