"""The line to another machine: ssh and rsync as programs, each call with an end, and what their ends mean.

ssh asks nothing and takes no host key by itself: a person has opened the way before (docs/elsewhere.md). Options are
those of ssh_config(5) and rsync(1), where the exit codes stand too.
"""

import ctypes
import json
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from daemon.compute.ground import MARK
from daemon.compute.places import LineLost, NotNow, Say
from daemon.compute.telling import Report

MODULES = ("ground", "following", "guarding", "there")  # what is sent, in the order of their imports
CONNECT_SECONDS = 15
SILENT_SECONDS = 60.0  # an answer that does not come within so long does not come
MOST_ERRORS = 64 << 20  # bytes of what one call says on its stderr: they lie on our disk
_PULSE = 0.5
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_SECRET = re.compile(r"(?i)(key|token|secret|password)$")
_LOST = (10, 12, 20, 30, 35, 255)  # rsync's: sockets, the stream, a signal, time
_NO_SPACE = "No space left on device"
_PRELUDE = """
import sys, types
if sys.version_info < (3, 11):
    print({mark!r} + '{{"old": "%d.%d"}}' % sys.version_info[:2])
    sys.exit()
def module(name, text):
    made = sys.modules[name] = types.ModuleType(name)
    made.__path__ = []
    exec(compile(text, name, "exec"), made.__dict__)
    parent, _, short = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], short, made)
module("daemon", "")
module("daemon.compute", "")
"""


def program(told: dict[str, Any]) -> bytes:
    """What Python over there reads: the modules, then the one call."""
    parts = [_PRELUDE.format(mark=MARK)]
    for name in MODULES:
        text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        parts.append(f"module({f'daemon.compute.{name}'!r}, {text!r})\n")
    parts.append(f"sys.modules['daemon.compute.there'].main({json.dumps(told)!r})\n")
    return "".join(parts).encode()


def die_with_us() -> None:
    """In a child, before its program: it must not outlive us and write into a folder that another one works in."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment() -> dict[str, str]:
    """Of ssh and rsync: ours, without what looks like a secret, which `SendEnv` could give away."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
    return {**kept, "LC_ALL": "C"}


@dataclass(slots=True)
class Line:
    """`pulse` is called twice a second while anything is at work; what it raises ends that."""

    host: str  # as ssh takes it, with user@ or without
    label: str = ""  # for sentences
    config: str = ""
    port: int | None = None
    identity: str = ""
    options: tuple[str, ...] = ()  # further ones, such as UserKnownHostsFile=...
    python: str = "python3"
    pulse: Callable[[], None] = lambda: None
    alive: Callable[[], None] = lambda: None  # each time that the other side says it is still at a long call
    report: Report = field(default_factory=Report)  # of its bytes, as rsync counts them
    _words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.label = self.label or self.host
        given = (
            *self.options, "BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={CONNECT_SECONDS}",
            "ServerAliveInterval=10", "ServerAliveCountMax=3", "ControlMaster=no", "ControlPath=none",
            "ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no", "LogLevel=ERROR",
        )  # fmt: skip
        self._words = ["ssh", "-T", *(["-F", str(Path(self.config).expanduser())] if self.config else [])]
        self._words += ["-p", str(self.port)] if self.port else []
        self._words += ["-i", str(Path(self.identity).expanduser())] if self.identity else []
        for one in given:  # of options given twice the first counts, also before the config's
            self._words += ["-o", one]

    # -- calls ----------------------------------------------------------------------------------

    def call(self, verb: str, told: dict[str, Any]) -> dict[str, Any]:
        """The answer to one call. Raises LineLost, NotNow, and what `pulse` raises."""
        answer: dict[str, Any] | None = None
        for said in self.stream(verb, told):
            answer = answer if said is None else said
        if answer is None:
            raise NotNow(f"{self.label} answers, but does not run {self.python} for engramd: a shell without chatter, "
                         "and no forced command, is needed there")  # fmt: skip
        return answer

    def stream(self, verb: str, told: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
        """Answers as they come; None where none came for a moment. Raises LineLost, NotNow."""
        words = [*self._words, "--", self.host.replace("[", "").replace("]", ""), f"{shlex.quote(self.python)} -I -"]
        with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as errors:
            text.write(program({**told, "verb": verb}))
            text.seek(0)
            child = _start(words, text, errors)
            try:
                yield from self._answers(child, errors)
                code = child.wait()
            finally:
                _end(child)
            self._judge_ssh(code, _text_of(errors))

    def _answers(self, child: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[dict[str, Any] | None]:
        buffer, heard = b"", time.monotonic()
        for piece in self._pieces(child, errors):
            if piece is None:
                if time.monotonic() - heard > SILENT_SECONDS:
                    raise LineLost(f"no answer for {SILENT_SECONDS:.0f} s")
                yield None
                continue
            heard = time.monotonic()
            *lines, buffer = (buffer + piece).split(b"\n")
            if len(buffer) > 8 << 20:
                raise NotNow(f"{self.label} answers without end")
            for line in lines:
                if line.startswith(MARK.encode()):
                    answer = self._answer(line[len(MARK) :])
                    if "beat" in answer:
                        self.alive()
                    yield None if "beat" in answer else answer

    def _pieces(self, child: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[bytes | None]:
        assert child.stdout is not None
        while True:
            self.pulse()
            if os.fstat(errors.fileno()).st_size > MOST_ERRORS:
                raise NotNow(f"{self.label} complains without end")
            if not select.select([child.stdout], [], [], _PULSE)[0]:
                yield None
                continue
            piece = os.read(child.stdout.fileno(), 1 << 16)
            if not piece:
                return
            yield piece

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise LineLost("an answer came in pieces")
        if "old" in answer:
            raise NotNow(f"{self.python} on {self.label} is Python {answer['old']}; 3.11 or newer is needed: name one "
                         "in compute.ssh.python")  # fmt: skip
        if "error" in answer:
            raise NotNow(f"{self.label} says: {answer['error']}")
        return answer

    def _judge_ssh(self, code: int, errors: str) -> None:
        last = (errors.strip().splitlines() or [f"exit code {code}"])[-1]
        if code == 0:
            return
        if "Host key verification failed" in errors:
            raise NotNow(f"the host key of {self.label} is not known here, or not the one it was: run ssh {self.host} "
                         "once as the user who runs engramd, and compare the fingerprint")  # fmt: skip
        if "Permission denied (" in errors:
            raise NotNow(f"{self.label} does not let us in ({last}): a key without a passphrase, in its "
                         "authorized_keys, must open it; try ssh -o BatchMode=yes " + self.host)  # fmt: skip
        if any(said in errors for said in ("Bad owner or permissions", "Bad configuration option", "Can't open user")):
            raise NotNow(f"the ssh config cannot be used: {last}")
        if code in (126, 127):
            raise NotNow(f"{self.label} has no {self.python}: install Python 3.11 or newer there, or name one in "
                         "compute.ssh.python")  # fmt: skip
        if code > 128 or code < 0:  # 255 is ssh's own; the others are signals, there or here
            raise LineLost(last)
        raise NotNow(f"{self.label} says: {last}")

    # -- files ----------------------------------------------------------------------------------

    def send(self, folder: Path, names: Sequence[str], target: str, *, grow: bool, say: Say, what: str) -> None:
        """Copy these files below `folder` into `target` over there. `grow`: they never change, so that what a cut
        left is gone on with. Raises LineLost, NotNow."""
        remote = f"{self._rsync_host()}:{target}/"
        words = ["--copy-links", "--chmod=D700,F600", *(["--partial", "--append-verify"] if grow else []),
                 f"{folder}/", remote]  # fmt: skip
        self._rsync(words, names, lambda done: say(f"sending {what} to {self.label}: {done}"), [])

    def fetch(self, source: str, names: Sequence[str], folder: Path, *, grow: bool, most: int, say: Say) -> None:
        """Bring those of these files that are there, none larger than `most` bytes. Raises LineLost, NotNow."""
        remote = f"{self._rsync_host()}:{source}/"
        words = ["--no-links", "--no-devices", "--no-specials", "--no-perms", "--chmod=D700,F600", "--ignore-times",
                 "--ignore-missing-args", f"--max-size={most}", *(["--partial", "--append-verify"] if grow else []),
                 remote, f"{folder}/"]  # fmt: skip
        self._rsync(words, names, lambda done: say(f"fetching from {self.label}: {done}"),
                    [folder / name for name in names])  # fmt: skip

    def _rsync_host(self) -> str:
        user, at, machine = self.host.rpartition("@")
        return f"{user}{at}[{machine}]" if ":" in machine and not machine.startswith("[") else self.host

    def _rsync(self, words: list[str], names: Sequence[str], say: Say, coming: Sequence[Path]) -> None:
        shell = " ".join(f"'{word}'" if re.search(r"[\s\"]", word) else word for word in self._words)
        words = ["rsync", "--protect-args", "--files-from=-", "--from0", "--stats", "--info=progress2", "--no-h",
                 "--outbuf=L", "--timeout=300", "-e", shell, *words]  # fmt: skip
        before, output = _sizes(coming), b""
        with tempfile.TemporaryFile() as listed, tempfile.TemporaryFile() as errors:
            listed.write(b"\0".join(name.encode() for name in names))
            listed.seek(0)
            child = _start(words, listed, errors)
            try:
                for piece in self._pieces(child, errors):
                    output = (output + (piece or b""))[-8192:]
                    if found := re.findall(rb"\s(\d+)\s+(\d+)%", output):
                        say(f"{int(found[-1][0]) / 1e6:,.1f} MB, {found[-1][1].decode()} %")
                code = child.wait()
            finally:
                _end(child)
                self._count(output, _sizes(coming) - before)
            self._judge_rsync(code, _text_of(errors))

    def _count(self, output: bytes, grown: int) -> None:
        """By rsync's own account; of one that was cut off, what is seen to have come."""
        told = {key: int(value) for key, value in re.findall(rb"Total bytes (sent|received): (\d+)", output)}
        self.report.sent += told.get(b"sent", 0)
        self.report.fetched += told.get(b"received", max(0, grown))

    def _judge_rsync(self, code: int, errors: str) -> None:
        if code == 0:
            return
        lines = [line for line in errors.strip().splitlines() if not line.startswith("rsync error:")]
        last = (lines or [f"rsync ended with code {code}"])[-1]
        if _NO_SPACE in errors:
            raise NotNow(f"a disk is full, here or on {self.label}: {last}")
        if code == 255 or "Permission denied (" in errors or "Host key verification" in errors:
            self._judge_ssh(255, errors)
        if code in _LOST or code < 0:
            raise LineLost(last)
        raise NotNow(f"rsync with {self.label}: {last}")


def _start(words: list[str], stdin: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, env=environment(),
                                preexec_fn=die_with_us)
    except FileNotFoundError:
        raise NotNow(f"{words[0]} is not installed on this machine; it is needed for compute.where") from None


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _text_of(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(1 << 20).decode("utf-8", "replace")


def _sizes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
