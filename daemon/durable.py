"""The crash law's primitives: after any of these returns, a power cut keeps what it did.

Work in a temporary name, fsync the file, rename, fsync the folder. Nothing here knows what it writes.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

TEMP_PREFIX = ".engramd-tmp-"  # short of a name's own length, so that a 255 byte name has a temporary one too
GONE_PREFIX = ".engramd-gone-"  # a folder on its way out; anyone who finds one may finish the removal
CHUNK = 1 << 20
OPEN_SAFELY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # never blocks, never follows
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_FICLONE = 0x40049409
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Pulse = Callable[[], None]  # called between pieces of long work; what it raises ends the work safely


def no_pulse() -> None:
    return None


def is_temp(name: str) -> bool:
    return name.startswith(TEMP_PREFIX)


def temp_beside(path: Path) -> Path:
    return path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"


def is_being_written(fd: int) -> bool:
    """Whether anybody has this file (opened for reading by us) open for writing: a pause is not its end.

    Linux refuses a read lease on such a file. Where leases cannot be had (another owner's file, some
    network file systems) the answer is no.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # a lease that is broken at once must not kill us
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def fsync_dir(folder: str | Path) -> None:
    fd = os.open(folder, _FOLDER_FLAGS)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems have no fsync of a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """Each regular file and folder below, the deepest first, then the folder itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                fsync_file(path)
        fsync_dir(Path(parent))


def sync_filesystem(folder: Path) -> None:
    """One flush for many files: cheaper than an fsync each where a slice holds hundreds."""
    fd = os.open(folder, _FOLDER_FLAGS)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:  # not Linux
            os.sync()
        elif syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(fd)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Makes what is missing, parents included, with exactly this mode; never changes what exists."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent, mode)
    before = os.umask(0)  # it would cut the mode
    try:
        path.mkdir(mode & 0o777)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    finally:
        os.umask(before)
    if stat.S_IMODE(path.stat().st_mode) != mode:  # the set-group-id bit comes from the parent, or by this, which
        path.chmod(mode)  # RestrictSUIDSGID= of the system service does not allow
    fsync_dir(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """The old content or the new one, never a mixture and never nothing."""
    temp = temp_beside(path)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def rename_durable(source: Path, target: Path) -> None:
    """The new place is durable before the old one is forgotten."""
    os.rename(source, target)
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def link_or_clone(source: Path, target: Path) -> bool:
    """A second name for a sealed file, or, where the file system gives none, a clone that shares its blocks (FICLONE,
    as `ioctl_ficlone(2)` has it). False where neither goes: on another file system, say."""
    try:
        os.link(source, target)
        return True
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    fd = os.open(source, OPEN_SAFELY)
    try:
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(out, _FICLONE, fd)
            os.fchmod(out, stat.S_IMODE(os.fstat(fd).st_mode))
            os.fsync(out)
            return True
        except OSError:
            target.unlink()
            return False
        finally:
            os.close(out)
    finally:
        os.close(fd)


def link_tree(source: Path, target: Path, pulse: Pulse = no_pulse) -> None:
    """Second names for all files of a sealed folder, copies where the file system refuses them; fsynced."""
    make_folder(target)
    for root, _, names in os.walk(source):
        inside = target / Path(root).relative_to(source)
        inside.mkdir(exist_ok=True, mode=0o700)
        for name in names:
            if not link_or_clone(Path(root) / name, inside / name):
                copy_durable(Path(root) / name, inside / name, pulse, 0o400)
        fsync_dir(inside)


def copy_durable(source: Path, target: Path, pulse: Pulse = no_pulse, mode: int = 0o600) -> str:
    """Copies one regular file to a name that is free, fsynced; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    fd = os.open(source, OPEN_SAFELY)
    with os.fdopen(fd, "rb", buffering=0) as reading:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(source))
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(out, "wb", buffering=CHUNK) as writing:
            while chunk := reading.read(CHUNK):
                digest.update(chunk)
                writing.write(chunk)
                pulse()
            writing.flush()
            os.utime(writing.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
            os.fchmod(writing.fileno(), mode)
            os.fsync(writing.fileno())
    return digest.hexdigest()


def copy_tree_durable(source: Path, target: Path, pulse: Pulse = no_pulse) -> None:
    """To a name that is free; links as links, and what is neither file, link nor folder not at all."""
    target.mkdir(mode=0o700)
    for name in sorted(os.listdir(source)):
        one, other = source / name, target / name
        mode = one.lstat().st_mode
        if stat.S_ISDIR(mode):
            copy_tree_durable(one, other, pulse)
        elif stat.S_ISLNK(mode):
            other.symlink_to(os.readlink(one))
        elif stat.S_ISREG(mode):
            copy_durable(one, other, pulse)
    fsync_dir(target)


def remove(path: Path) -> None:
    """A file, a link or a whole folder; nothing there is fine too.

    A folder is gone from its name at once: half a folder would look like another batch after a crash.
    What cannot be removed below the new name waits for `remove_gone`.
    """
    if path.is_dir() and not path.is_symlink():
        gone = path.parent / f"{GONE_PREFIX}{secrets.token_hex(8)}"
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_durable(path: Path) -> None:
    """As `remove`, and the old name is durably gone before anything below it goes: a power cut leaves no half of it."""
    if path.is_dir() and not path.is_symlink():
        gone = path.parent / f"{GONE_PREFIX}{secrets.token_hex(8)}"
        rename_durable(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
        fsync_dir(path.parent)


def remove_gone(folder: Path) -> None:
    for path in [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(GONE_PREFIX)]:
        shutil.rmtree(path, ignore_errors=True)


def remove_temps(folder: Path) -> int:
    """What a killed writer left. Only for folders that have one writer, which is the caller."""
    remove_gone(folder)
    stale = [Path(entry.path) for entry in os.scandir(folder) if is_temp(entry.name)]
    for path in stale:
        remove(path)
    return len(stale)


def move_across(source: Path, target: Path, pulse: Pulse = no_pulse) -> None:
    """Between file systems: copy under a temporary name, fsync, rename, and only then forget the source."""
    temp = temp_beside(target)
    try:
        if source.is_dir() and not source.is_symlink():
            copy_tree_durable(source, temp, pulse)
        elif source.is_symlink():
            temp.symlink_to(os.readlink(source))
        else:
            copy_durable(source, temp, pulse)
        os.rename(temp, target)
    except BaseException:
        remove(temp)
        raise
    fsync_dir(target.parent)
    remove(source)
    fsync_dir(source.parent)


def move(source: Path, target: Path, pulse: Pulse = no_pulse) -> None:
    """`rename_durable` where it can, `move_across` where the file systems differ."""
    try:
        rename_durable(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        move_across(source, target, pulse)


def sha256_file(path: Path, pulse: Pulse = no_pulse) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return sha256_fd(fd, pulse)
    finally:
        os.close(fd)


def sha256_fd(fd: int, pulse: Pulse = no_pulse, limit: int | None = None) -> str:
    """From where the descriptor stands to the end, or until more than `limit` bytes came.

    The limit ends the chase after a file that is being written faster than it is read.
    """
    digest, read = hashlib.sha256(), 0
    while chunk := os.read(fd, CHUNK):
        digest.update(chunk)
        read += len(chunk)
        if limit is not None and read > limit:
            break
        if len(chunk) == CHUNK:
            pulse()
    return digest.hexdigest()


def fsync_dirs(folders: Iterable[str | Path]) -> None:
    """Each folder once."""
    for folder in sorted({str(folder) for folder in folders}):
        fsync_dir(folder)
