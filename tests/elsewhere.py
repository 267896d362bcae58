"""Another machine on this one: a real sshd on loopback that lets in one user, with a home of its own, by a key.

Made by root, of files below /var/tmp, and gone afterwards; the system's own sshd has no part in it. A relay in front of
it counts bytes, and is the network that goes down.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
FAR_TRAINER = ROOT / "tests" / "doubles" / "far_trainer.py"
_PACKAGES = {"/usr/sbin/sshd": "openssh-server", "/usr/bin/rsync": "rsync", "/usr/bin/ssh": "openssh-client"}
_SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {root}/host_key
PidFile none
UsePAM no
AuthenticationMethods publickey
AuthorizedKeysFile {root}/authorized_keys
StrictModes no
AllowUsers {user}
PrintMotd no
AcceptEnv ENGRAMD_* *_API_KEY
MaxStartups 100
"""
_SSH = """
Host far
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {root}/client_key
  IdentitiesOnly yes
  HostKeyAlias far
  UserKnownHostsFile {root}/known_hosts
  GlobalKnownHostsFile /dev/null
  SendEnv ENGRAMD_* *_API_KEY
"""
# `python`, but for `python -m trainer`, which is the double.
_FAKE = """#!/bin/sh
if [ "$1" = -m ] && [ "$2" = trainer ]; then shift 2; exec {python} {double} "$@"; fi
exec {python} "$@"
"""


def not_installed() -> str | None:
    """Why ssh, sshd and rsync are not here; None where they are. Installs what is missing, as root on Debian."""
    with open(Path(tempfile.gettempdir()) / "engramd-tests-packages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be in the middle of it
        if os.geteuid() == 0 and shutil.which("apt-get") and (missing := _missing()):
            quiet = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", "PATH": os.environ["PATH"]}
            install = ["apt-get", "install", "-y", *sorted(missing)]
            for command in (install, ["apt-get", "update"], install):  # the lists may be old, or not there
                if _missing():
                    subprocess.run(command, capture_output=True, env=quiet)
            if "openssh-server" in missing and shutil.which("systemctl"):  # nobody asked for one that runs
                subprocess.run(["systemctl", "disable", "--now", "ssh.service", "ssh.socket"], capture_output=True)
    return f"not installed: {', '.join(sorted(_missing()))}" if _missing() else None


def _missing() -> set[str]:
    return {package for path, package in _PACKAGES.items() if not os.path.exists(path)}


def why_not() -> str | None:
    """Why no such machine can be made here; None where it can."""
    if os.geteuid() != 0:
        return "another user and an sshd need root"
    if reason := not_installed():
        return reason
    if not _open_to_all(FAR_TRAINER):
        return f"{ROOT} cannot be read by another user"
    return None


def _open_to_all(path: Path) -> bool:
    return all(one.stat().st_mode & 0o001 for one in path.resolve().parents) and bool(path.stat().st_mode & 0o004)


class Relay:
    """The network between: forwards to one port, counts, and is cut or down on request."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.home = 0  # bytes towards here
        self.away = 0
        self.is_down = threading.Event()
        self.slowness = 0.0  # seconds a byte, towards here
        self._cut_at: int | None = None
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Every connection is reset."""
        with self._guard:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def cut_after(self, more: int) -> None:
        """Once so many bytes more have come towards here, every connection is reset."""
        self._cut_at = self.home + more

    @property
    def cuts_left(self) -> bool:
        return self._cut_at is not None

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            with self._guard:
                self._open |= {near, far}
            for one, other, homewards in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(one, other, homewards), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, homewards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                while self.is_down.is_set():
                    time.sleep(0.02)  # silence, as of a cable that is out
                if homewards:
                    time.sleep(len(data) * self.slowness)
                    self.home += len(data)
                    if self._cut_at is not None and self.home >= self._cut_at:
                        self._cut_at = None
                        self.cut()
                else:
                    self.away += len(data)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._guard:
            self._open -= {source, target}
        source.close()


class Machine:
    """Enter the `with` block, and it answers as host `far` of `config`."""

    def __enter__(self) -> "Machine":
        self.root = Path(tempfile.mkdtemp(prefix="engramd-far-", dir="/var/tmp"))
        self.root.chmod(0o755)
        self.user = f"far{secrets.token_hex(4)}"
        self.home = self.root / "home"
        self._sshd: subprocess.Popen[bytes] | None = None
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        _run("useradd", "--create-home", "--home-dir", str(self.home), "--shell", "/bin/sh", self.user)
        _run("usermod", "-p", "*", self.user)  # no password, and not locked either
        self.home.chmod(0o755)
        for key in ("host_key", "client_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / key))
        shutil.copy(self.root / "client_key.pub", self.root / "authorized_keys")
        host = (self.root / "host_key.pub").read_text()
        (self.root / "known_hosts").write_text(f"far {host}")
        Path("/run/sshd").mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        (self.root / "sshd_config").write_text(_SSHD.format(port=self.port, root=self.root, user=self.user))
        self.start_sshd()
        self.relay = Relay(self.port)
        self.config = self.root / "config"
        self.config.write_text(_SSH.format(port=self.relay.port, root=self.root, user=self.user))
        self._make_pythons()

    def _make_pythons(self) -> None:
        """One with what this one has, and one whose trainer is the double."""
        found = Path(sys.executable).resolve()
        if not _open_to_all(found):  # such as below /root: a copy by second names
            copy = self.root / "python"
            if subprocess.run(["cp", "-al", sys.base_prefix, str(copy)], capture_output=True).returncode:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(sys.base_prefix, copy, symlinks=True)
            found = copy / found.relative_to(Path(sys.base_prefix).resolve())
        venv = self.root / "venv"
        _run(str(found), "-m", "venv", "--without-pip", str(venv))
        site = next(venv.glob("lib/python*/site-packages"))
        here = [path for path in sys.path if path.endswith("site-packages")]
        (site / "here.pth").write_text("\n".join(here) + "\n")
        self.python = self.root / "far-python"  # a copied one finds its own library only so
        libraries = found.parent.parent / "lib"
        self.python.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {venv}/bin/python "$@"\n')
        self.python.chmod(0o755)
        self.fake_python = self.root / "fake-python"
        self.fake_python.write_text(_FAKE.format(python=self.python, double=FAR_TRAINER))
        self.fake_python.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "relay"):
            self.relay.close()
        self.stop_sshd()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        subprocess.run(["userdel", self.user], capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    # -- sshd -------------------------------------------------------------------------------------

    def start_sshd(self) -> None:
        with open(self.root / "sshd.log", "ab") as log:
            self._sshd = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.root / "sshd_config")], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError((self.root / "sshd.log").read_text())

    def sessions(self) -> list[int]:
        """Of sshd, one or two processes each."""
        if self._sshd is None:
            return []
        found = psutil.Process(self._sshd.pid).children(recursive=True)
        return [one.pid for one in found if _name(one).startswith("sshd")]

    def kill_sessions(self) -> bool:
        pids = self.sessions()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def stop_sshd(self) -> None:
        if self._sshd is not None:
            self.kill_sessions()
            self._sshd.kill()
            self._sshd.wait()
            self._sshd = None

    # -- what is there --------------------------------------------------------------------------

    def processes(self) -> list[int]:
        found = []
        for process in psutil.process_iter(["pid", "username", "status"]):
            if process.info["username"] == self.user and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.info["pid"])
        return found

    def trainers(self) -> list[int]:
        """Living trainers of this user; a guardian has the command line of what it was forked from."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(psutil.Error):
                if "--lock-fd" in psutil.Process(pid).cmdline():
                    found.append(pid)
        return found

    def guardians(self) -> list[int]:
        """What is left of calls to Python that are no trainer and belong to no session of sshd."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(psutil.Error):
                words, parent = psutil.Process(pid).cmdline(), psutil.Process(pid).ppid()
                if words[-2:] == ["-I", "-"] and parent not in self.sessions() and "sh" not in words[0][-3:]:
                    found.append(pid)
        return found

    @property
    def folder(self) -> Path:
        return self.home / "engramd-compute"

    def toml(self, *, fake: bool, more: str = "") -> str:
        """`[compute]` of a home whose jobs are trained here."""
        python = self.fake_python if fake else self.python
        return (f'\n[compute]\nwhere = "ssh"\n[compute.ssh]\nhost = "far"\nconfig = "{self.config}"\n'
                f'python = "{python}"\n{more}')  # fmt: skip


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """For a fixture: skips where there can be none."""
    import pytest

    if why := why_not():
        pytest.skip(why)
    with Machine() as made:
        yield made
