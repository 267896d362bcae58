"""`engramd add`: a copy of a person's file or folder appears in the inbox at once, or not at all."""

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from daemon import durable
from daemon.durable import Pulse, no_pulse
from daemon.home import DEFAULT_PROFILE, RESERVED_NAMES, Home
from daemon.inbox.failed import inbox_modes
from daemon.inbox.names import IGNORED_IN_WORDS, free_path, is_ignored, safe_name
from daemon.records import Refused


def add(
    home: Home, profile: str, source: Path, pulse: Pulse = no_pulse, profiles: Iterable[str] | None = None
) -> Path:
    """Where the copy lies. Never overwrites. Raises Refused with a sentence for the person."""
    inbox = home.profile(profile).inbox
    name = safe_name(source.resolve().name)
    if is_ignored(source.resolve().name):
        raise Refused(f"The inbox ignores {name!r} ({IGNORED_IN_WORDS}); give it another name first.")
    declared = set(home.profile_names() if profiles is None else profiles)

    def is_taken(one: str) -> bool:
        return profile == DEFAULT_PROFILE and (one in declared or one in RESERVED_NAMES)

    folder_mode, file_mode = inbox_modes(home)
    temp = durable.temp_beside(inbox / name)
    try:
        mode = source.stat().st_mode  # a link named here is followed, one inside a folder is not
        durable.make_folder(inbox, folder_mode)
        if stat.S_ISDIR(mode):
            if source.resolve() in (inbox.resolve(), *inbox.resolve().parents):
                raise Refused(f"{source} holds the inbox itself; add the folder with the memories.")
            durable.copy_tree_durable(source.resolve(), temp, pulse)
            if folder_mode != 0o700:
                _share(temp, folder_mode, file_mode)
        elif stat.S_ISREG(mode):
            durable.copy_durable(source.resolve(), temp, pulse, file_mode)
        else:
            raise Refused(f"{source} is neither a file nor a folder.")
        target = _publish(temp, inbox, name, is_taken)
    except OSError as error:
        raise Refused(f"{source} cannot be added: {error.strerror} ({error.filename or inbox}).") from error
    finally:
        durable.remove(temp)
    durable.fsync_dir(inbox)
    return target


def publish(home: Home, profile: str, made: Path, name: str, profiles: Iterable[str]) -> Path:
    """A folder that was made under a temporary name in the inbox, and flushed, appears there as one batch.
    Never overwrites. Raises OSError."""
    inbox = home.profile(profile).inbox
    declared = set(profiles)
    folder_mode, file_mode = inbox_modes(home)
    if folder_mode != 0o700:
        _share(made, folder_mode, file_mode)

    def is_taken(one: str) -> bool:
        return profile == DEFAULT_PROFILE and (one in declared or one in RESERVED_NAMES)

    target = _publish(made, inbox, safe_name(name), is_taken)
    durable.fsync_dir(inbox)
    return target


def _share(tree: Path, folder_mode: int, file_mode: int) -> None:
    """For the group of a shared inbox: the daemon is another user, and must be able to take it away."""
    for parent, _, names in os.walk(tree):
        os.chmod(parent, folder_mode)
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                os.chmod(os.path.join(parent, name), file_mode)


def _publish(temp: Path, inbox: Path, name: str, is_taken: Callable[[str], bool]) -> Path:
    """Gives the copy its name. Two `add`s at once must not overwrite each other: a link fails where a rename
    would replace, and a rename of a folder onto one with something in it fails too."""
    while True:
        target = free_path(inbox, name, is_taken)
        try:
            if temp.is_dir():
                os.rename(temp, target)
            else:
                os.link(temp, target)
            return target
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            os.rename(temp, target)  # a file system without hard links
            return target


def sweep_stale_adds(home: Home, profiles: Iterable[str], now: float, older_than: float = 86_400.0) -> int:
    """Removes what killed `add`s left in the inboxes. `now` is wall time; a day is longer than any copy."""
    swept = 0
    for profile in profiles:
        inbox = home.profile(profile).inbox
        if not inbox.is_dir():
            continue
        for item in os.scandir(inbox):
            if durable.is_temp(item.name) and item.stat(follow_symlinks=False).st_mtime < now - older_than:
                durable.remove(Path(item.path))
                swept += 1
    return swept
