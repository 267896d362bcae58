"""A machine of its own inside this one: a real systemd as PID 1 of new namespaces, on an overlay of `/`.

Nothing of it touches the machine that the tests run on: what it writes lies in a tmpfs that goes with it, and
only basic.target is started, so none of the host's services. Needs root; the checkout and its Python are seen
through the overlay.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = next((p for p in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd") if os.path.exists(p)), "")
_NAMESPACES = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--kill-child")
_MASKED = (
    "systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket "
    "systemd-timesyncd.service systemd-networkd.service systemd-resolved.service systemd-logind.service "
    "systemd-random-seed.service systemd-sysctl.service systemd-modules-load.service systemd-remount-fs.service "
    "systemd-update-utmp.service systemd-hwdb-update.service systemd-firstboot.service systemd-pstore.service "
    "dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount "
    "sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount apparmor.service keyboard-setup.service "
    "console-setup.service e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer fstrim.timer"
)
_SETUP = r"""
set -eu
top=$1; shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
new=$top/root
for seen in "$@"; do  # what lies on other file systems than / is not in its overlay
  mkdir -p "$new$seen"; mount --bind -o ro "$seen" "$new$seen"
done
mount -t proc proc "$new/proc"
mount -t sysfs -o ro sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
mount -t tmpfs -o mode=755 tmpfs "$new/dev"
for name in null zero full random urandom tty; do
  touch "$new/dev/$name"; mount --bind "/dev/$name" "$new/dev/$name"
done
mkdir "$new/dev/shm" "$new/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
ln -s pts/ptmx "$new/dev/ptmx"
ln -s /proc/self/fd "$new/dev/fd"
tr -d - </proc/sys/kernel/random/uuid >"$new/etc/machine-id"
rm -f "$new/etc/fstab"; touch "$new/etc/fstab"
for unit in $masked; do ln -sf /dev/null "$new/etc/systemd/system/$unit"; done
mkdir "$new/.old"
cd "$new"
pivot_root . .old
umount -l /.old
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  "$systemd" --system --unit=basic.target --log-target=journal --show-status=no
"""


def why_not() -> str | None:
    """Why no systemd can be booted here; None where it can."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    hidden = [path for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix)) if path.is_relative_to("/tmp")]
    if hidden:  # in the machine it is another one, and PrivateTmp= hides that from the service, too
        return f"{hidden[0]} lies below /tmp, where no service sees it: run the tests from a checkout elsewhere"
    missing = [name for name in ("unshare", "nsenter", "pivot_root", "systemctl") if shutil.which(name) is None]
    if missing or not SYSTEMD:
        return f"not installed: {', '.join(missing) or 'systemd'}"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"namespaces are refused here: {tried.stderr.strip()}" if tried.returncode else None


def until(what: Callable[[], object], told: Callable[[], object], seconds: float = 60.0) -> None:
    """Look again and again until it is so; past the deadline fail with what `told` has to say."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s\n{told()}"
        time.sleep(0.05)


class Machine:
    """Booted by entering the `with` block, gone with it."""

    def __enter__(self) -> "Machine":
        self._top = Path(tempfile.mkdtemp(prefix="engramd-machine-"))
        self._cgroup = self._own_cgroup()
        self._log = open(self._top.with_suffix(".log"), "w+b")
        needed = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        seen = sorted(str(path) for path in needed if path.stat().st_dev != os.stat("/").st_dev)
        self._outer = subprocess.Popen(
            ["unshare", *_NAMESPACES, "sh", "-c", _SETUP, "sh", str(self._top), *seen],
            env={"PATH": os.environ["PATH"], "masked": _MASKED, "systemd": SYSTEMD}, stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=self._log, start_new_session=True, preexec_fn=self._join_cgroup,
        )  # fmt: skip
        try:
            until(self._has_booted, self._boot_log, 60.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.send_signal(signal.SIGKILL)  # --kill-child takes PID 1 along, and that everything in it
        self._outer.wait()
        self._log.close()
        self._top.with_suffix(".log").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._top.rmdir()
        until(self._cgroup_is_gone, lambda: f"{self._cgroup} is not empty", 20.0)

    # -- talking to it --------------------------------------------------------------------------

    def run(self, *words: str, check: bool = True, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command in the machine, as root or as one of its users."""
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "env", f"HOME=/home/{user}")
        done = subprocess.run(
            [*self._inside(), *(as_user if user else ()), *words], capture_output=True, text=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, *, check: bool = True, user: str | None = None) -> str:
        return self.run("sh", "-c", script, check=check, user=user).stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        shown = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def write(self, path: str, text: str) -> None:
        done = subprocess.run(
            [*self._inside(), "sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path],
            input=text, text=True, capture_output=True, env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    # -- inner works ----------------------------------------------------------------------------

    def _inside(self) -> Sequence[str]:
        return ("nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "-r", "-w")

    @property
    def pid(self) -> int:
        """Its PID 1, as the host counts."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        assert children, self._boot_log()
        return int(children[0])

    def _has_booted(self) -> bool:
        assert self._outer.poll() is None, self._boot_log()
        try:
            if Path(f"/proc/{self.pid}/comm").read_text().strip() != "systemd":
                return False
        except (OSError, AssertionError):
            return False
        return self.run("systemctl", "is-active", "basic.target", check=False).stdout.strip() == "active"

    def _boot_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def _own_cgroup(self) -> Path | None:
        """A group of its own in the unified hierarchy, so that its slices do not lie among the host's."""
        mounts = Path("/proc/mounts").read_text()
        found = re.search(r"^\S+ (\S+) cgroup2 ", mounts, re.MULTILINE)
        if not found:
            return None
        group = Path(found[1]) / self._top.name
        group.mkdir()
        return group

    def _join_cgroup(self) -> None:
        if self._cgroup is not None:
            (self._cgroup / "cgroup.procs").write_text(str(os.getpid()))

    def _cgroup_is_gone(self) -> bool:
        if self._cgroup is None:
            return True
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not self._cgroup.exists()
