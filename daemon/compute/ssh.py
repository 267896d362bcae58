"""A machine of one's own, over SSH. What lies there, by hash: docs/elsewhere.md has the map.

Everything that is large is sent once and known by its hash: the trainer's code, an environment for each lock file,
base models, checkpoints. The job's folder is known by its spec, so that a trainer is found again after any cut.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.compute.following import tail_hash
from daemon.compute.ground import files_of, sha256_of, tree_sha256
from daemon.compute.line import Line
from daemon.compute.orders import Order
from daemon.compute.places import Gone, Heard, LineLost, NotNow, Say, Wanted
from daemon.compute.telling import Report
from daemon.settings_compute import SshSettings
from trainer import base_files, names

MODULES = ("torch", "transformers", "peft", "accelerate", "safetensors", "pydantic")  # without them no job runs
INPUTS = (names.SPEC, names.SAMPLES, names.PROBES, names.PROMPTS, names.RETRY)
HALF_WAY = (names.LOSSES, names.BEFORE, names.PROGRESS)  # go with a checkpoint that was made elsewhere
MOST_BESIDE = 512 << 20  # bytes of a file that comes without a hash
_CODE = Path(base_files.__file__).resolve().parent
_WEIGHTLESS = (".json", ".jinja", ".model", ".txt")
_TAIL = 1024
_GB = 1e9


class Ssh:
    """As `places.Place` has it."""

    def __init__(self, order: Order, line: Line | None = None, report: Report | None = None) -> None:
        """`line`: where it is not the one that the settings name, as to a pod."""
        self._order = order
        self.report = report or Report(where="ssh", host=order.ssh.host)
        self.line = line or line_of(order.ssh)
        self.line.report = self.report
        self.label = self.line.label
        self._python = order.ssh.python
        self._run = secrets.token_hex(8)
        self._attached = False
        self._folder = order.ssh.folder
        self._seen = b""  # the last bytes of progress that were heard
        self._job, self._spec = "", ""
        self._code = ""
        self._say: Say = lambda note: None

    # -- prepare ----------------------------------------------------------------------------------

    def prepare(self, job: Path, say: Say) -> None:
        self._say = say
        self.line.pulse = lambda: say("")
        self.line.alive = lambda: say(f"{self.label} looks at what lies there")
        self._spec = sha256_of(str(job / names.SPEC))
        self._job = f"{self._spec[:40]}-{self._order.mark}"
        code = [f"{_CODE.name}/{name}" for name in files_of(str(_CODE))]
        self._code = tree_sha256(str(_CODE.parent), code)
        links, lock = _checkpoints(job), self._lock()
        keys = {"code": [self._code], "environments": [lock[0]] if lock else [],
                "bases": [self._order.base_fingerprint] if self._order.base else [],
                "checkpoints": sorted(set(links.values()))}  # fmt: skip
        hello = self._call("hello", keys=keys, modules=MODULES if self._python else ())
        self._folder = hello["folder"]
        if hello["running"]:
            say(f"the trainer on {self.label} is at work already")
            self._attached = True
            return
        self._attached = False
        self._fit(hello)
        own = [name for name in links if names.checkpoint_step(name) is not None]
        ahead = [name for name in own if (names.checkpoint_step(name) or 0) > max(hello["steps"], default=-1)]
        links = {name: key for name, key in links.items() if name not in own or name in ahead}
        if lock:
            self._make_environment(*lock, again=True)
        self._bring(job, hello, code, links, say)
        if lock:
            self._await_environment(*lock, say)
        self._lay(job, links, bool(ahead), say)

    def _call(self, verb: str, **told: Any) -> dict[str, Any]:
        return self.line.call(verb, {"folder": self._folder, "job": self._job, **told})

    def _lock(self) -> tuple[str, str] | None:
        """Hash and text of the lock file, where an environment is made."""
        if self._order.ssh.python or self._order.lock_file is None:
            return None
        text = self._order.lock_file.read_text(encoding="utf-8")
        return hashlib.sha256(text.encode()).hexdigest(), text

    def _fit(self, hello: dict[str, Any]) -> None:
        if not hello["rsync"]:
            raise NotNow(f"{self.label} has no rsync: install it there, such as by apt install rsync")
        if hello["missing"]:
            raise NotNow(f"{self._python} on {self.label} lacks {', '.join(hello['missing'])}: install "
                         "requirements.lock there, or leave compute.ssh.python empty and an environment is made")

    def _bring(
        self, job: Path, hello: dict[str, Any], code: list[str], links: dict[str, str], say: Say
    ) -> None:
        """Code, base and checkpoints, as far as they are not there. Raises NotNow where there is no room for them."""
        order = self._order
        parts = [("code", self._code, _CODE.parent, code, "the trainer")]
        if order.base is not None:
            parts.append(("bases", order.base_fingerprint, order.base, _base_names(order.base), "the base model"))
        folders = {key: job / name for name, key in links.items()}
        for key, folder in folders.items():
            parts.append(("checkpoints", key, folder, list(files_of(str(folder))), "a checkpoint"))
        have = [part for part in parts if part[1] in hello["there"][part[0]]]
        self.report.saved += sum(_size(folder, listed) for _, _, folder, listed, _ in have)
        needed = [part for part in parts if part not in have]
        room = order.room + sum(_size(folder, listed) for _, _, folder, listed, _ in needed)
        if hello["free"] < room:
            raise NotNow(f"{self.label} has {hello['free'] / _GB:.1f} GB free in {self._folder}, and the job needs "
                         f"about {room / _GB:.1f} GB: free some space there")  # fmt: skip
        for kind, key, folder, listed, what in needed:
            self._send(kind, key, folder, listed, say, what)

    def _send(self, kind: str, key: str, folder: Path, listed: list[str], say: Say, what: str) -> None:
        for _ in range(2):  # what an earlier cut, or another release, left there may be wrong
            self.line.send(folder, listed, f"{self._folder}/{kind}/{key}.part", grow=True, say=say, what=what)
            wrong = self._call("keep", kind=kind, key=key, code=self._code)["wrong"]
            if wrong is None:
                return
        raise NotNow(f"{wrong} does not arrive on {self.label} as it was sent: its disk or its memory may be failing")

    def _make_environment(self, key: str, text: str, *, again: bool) -> dict[str, Any]:
        return self._call("environment", key=key, requirements=text, make=again)

    def _await_environment(self, key: str, text: str, say: Say) -> None:
        while (told := self._make_environment(key, text, again=False))["state"] == "making":
            say(f"{self.label} makes its environment: {told['told']}")
            time.sleep(1.0)
        if told["state"] != "ready":
            log = f"{self._folder}/environments/{key}/log"
            raise NotNow(f"the environment cannot be made on {self.label}: {told['told']}; its log is {log}, and "
                         "compute.ssh.python names one of your own")  # fmt: skip
        self._python = told["python"]

    def _lay(self, job: Path, links: dict[str, str], ahead: bool, say: Say) -> None:
        wanted = [name for name in (*INPUTS, *(HALF_WAY if ahead else ())) if (job / name).is_file()]
        self.line.send(job, wanted, f"{self._folder}/jobs/{self._job}", grow=False, say=say, what="the job")
        absent = [name for name in INPUTS if name not in wanted]
        if self._call("lay", links=links, absent=absent, spec=self._spec).get("wrong"):
            raise NotNow(f"the job's folder does not arrive on {self.label} as it was sent")

    # -- at work --------------------------------------------------------------------------------

    def start(self) -> None:
        order = self._order
        told = self._call(
            "begin", run=self._run, attach=self._attached, python=self._python, code=self._code,
            base=order.base_fingerprint if order.base else "", threads=order.threads, processes=order.processes,
            sharded=order.sharded, seconds=min(order.timeout_seconds, order.deadline_hours * 3600),
            stop_seconds=0.7 * order.stop_seconds,  # over there it is killed before we are here
        )  # fmt: skip
        self._run = str(told["run"])[:64]
        self.report.run = self._run

    def watch(self, progress_at: int, log_at: int) -> Iterator[Heard | Gone]:
        seen = self._seen if progress_at else b""
        told = {"folder": self._folder, "job": self._job, "run": self._run, "progress_at": progress_at,
                "progress_tail": _tail_of(seen, progress_at), "log_at": log_at}  # fmt: skip
        for said in self.line.stream("watch", told):
            if not said:
                yield Heard()
            elif "gone" in said:
                yield _gone(said["gone"])
                return
            else:
                heard = _heard(said)
                if heard.progress:
                    seen = heard.progress if heard.progress_at == 0 else seen + heard.progress
                    seen = self._seen = seen[-_TAIL:]
                yield heard
        raise LineLost("the watch ended before the trainer")

    def stop(self) -> None:
        self._call("halt")

    # -- home -----------------------------------------------------------------------------------

    def fetch(self, staged: Path, wanted: Sequence[Wanted], say: Say) -> None:
        source = f"{self._folder}/jobs/{self._job}"
        beside = [one.name for one in wanted if one.sha256 is None]
        if beside:
            most = max(one.size or MOST_BESIDE for one in wanted if one.sha256 is None)
            self.line.fetch(source, beside, staged, grow=False, most=most, say=say)
        known = [one for one in wanted if one.sha256 is not None]
        for _ in range(2):  # one that was wrong from some byte on is brought anew
            missing = [one for one in known if not self._is_here(staged / one.name, one)]
            if missing:
                most = max(one.size or 0 for one in missing)
                self.line.fetch(source, [one.name for one in missing], staged, grow=True, most=most, say=say)
            for one in missing:
                path = staged / one.name
                if path.is_file() and path.stat().st_size >= (one.size or 0) and not self._is_here(path, one):
                    path.unlink()

    def _is_here(self, path: Path, wanted: Wanted) -> bool:
        if not path.is_file() or path.stat().st_size != wanted.size:
            return False
        return durable.sha256_file(path, lambda: self._say("looking at what came home")) == wanted.sha256

    def pause(self) -> None:
        """A machine of one's own has no meter."""

    def release(self, done: bool) -> None:
        self._call("finish", done=done, keep=self._order.ssh.keep_checkpoints)


def line_of(settings: SshSettings) -> Line:
    return Line(settings.host, config=settings.config, python=settings.python or "python3")


def ask(settings: SshSettings) -> str:
    """For `engramd doctor`: what the machine says of itself. Raises LineLost, NotNow."""
    told = line_of(settings).call(
        "hello", {"folder": settings.folder, "job": "none", "keys": {}, "modules": MODULES if settings.python else ()}
    )
    try:
        if not told["rsync"]:
            raise NotNow(f"{settings.host} has no rsync: install it there")
        if told["missing"]:
            raise NotNow(f"{settings.python} on {settings.host} lacks {', '.join(told['missing'])}")
        return f"{settings.host}: Python {told['python']}, {told['free'] / _GB:.0f} GB free in {told['folder']}"
    except (KeyError, TypeError) as error:
        raise NotNow(f"{settings.host} answers what cannot be read ({error})") from None


def _checkpoints(job: Path) -> dict[str, str]:
    """What the job's folder has of checkpoints to start from, by the hash of their manifests: the newest of its own."""
    own = sorted((step, entry.name) for entry in job.iterdir()
                 if (step := names.checkpoint_step(entry.name)) is not None)  # fmt: skip
    found = [names.PARENT, names.SERVED, *(name for _, name in own[-1:])]
    return {name: sha256_of(str(job / name / names.MANIFEST)) for name in found
            if (job / name / names.MANIFEST).is_file()}  # fmt: skip


def _base_names(folder: Path) -> list[str]:
    weightless = [path.name for path in folder.iterdir() if path.suffix in _WEIGHTLESS and path.is_file()]
    return sorted({*weightless, *(path.name for path in base_files.weight_files(folder))})


def _size(folder: Path, listed: Sequence[str]) -> int:
    return sum((folder / name).stat().st_size for name in listed)


def _tail_of(seen: bytes, end: int) -> str:
    return tail_hash(lambda _, length: seen[-length:], end)


def _heard(said: dict[str, Any]) -> Heard:
    """Raises LineLost where it is none."""
    try:
        return Heard(
            str(said.get("progress", "")).encode("latin-1"), int(said.get("progress_at", 0)),
            str(said.get("log", "")).encode("latin-1"), int(said.get("log_at", 0)),
        )  # fmt: skip
    except (UnicodeEncodeError, TypeError, ValueError):
        raise LineLost("an answer cannot be read") from None


def _gone(told: Any) -> Gone:
    told = told if isinstance(told, dict) else {}
    code, signal, why = told.get("code"), told.get("signal"), told.get("why")
    return Gone(
        code if isinstance(code, int) and 0 <= code < 256 else None, signal if isinstance(signal, str) else None,
        why if why in ("stop", "deadline") else None,
    )  # fmt: skip
