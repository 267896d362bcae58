"""The sentence for what the daemon may not read or move: who has to run which command."""

import errno
import grp
import os
import shlex
from pathlib import Path

from daemon.home import Home
from daemon.inbox.failed import inbox_modes
from daemon.inbox.names import readable, safe_name
from daemon.inbox.outcomes import Entry


def not_readable(home: Home, entry: Entry, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "It is a symbolic link, and links are never followed; drop a copy of the file itself."
    if error.errno in (errno.EACCES, errno.EPERM):
        if stays(entry):
            return f"engramd may not read it ({error.strerror}); {_opening(home, entry, entry.path)}."
        there = home.profile(entry.profile).failed / safe_name(entry.name)
        return (
            f"engramd may not read it ({error.strerror}); {_opening(home, entry, there)} "
            "and move it back into the inbox."
        )
    return f"It cannot be read ({error.strerror}); check the disk, then drop it again."


def _opening(home: Home, entry: Entry, there: Path) -> str:
    """The command that opens it to the daemon: by its owner's rights, or in a shared inbox by its group."""
    place, deep = shlex.quote(readable(str(there))), "-R " if entry.kind == "folder" else ""
    try:
        status, group = os.lstat(entry.location), home.inbox.stat().st_gid
    except OSError:
        return f"check who owns {place}"
    if status.st_uid == os.geteuid() or inbox_modes(home)[1] == 0o600:
        return f"as its owner run: chmod {'-R u+rwX,g+rX' if deep else 'u+rw,g+r'} {place}"
    # What was moved in brings its own group along; what was copied in has the inbox's.
    chgrp = "" if status.st_gid == group else f"chgrp {deep}{_group_name(group)} {place} && "
    return f"as its owner run: {chgrp}chmod {deep}{'g+rwX' if deep else 'g+r'} {place}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def stays(entry: Entry) -> bool:
    """A folder of somebody else that we may not write to cannot be moved: its entry for `..` would change."""
    return entry.kind == "folder" and not os.access(entry.location, os.W_OK)


def not_movable(home: Home, entry: Entry, error: OSError) -> str:
    if stays(entry):
        opening = _opening(home, entry, entry.path)
        return f"engramd may not move it out of the inbox ({error.strerror}); {opening}."
    folder = shlex.quote(readable(str(entry.folder)))
    return (
        f"engramd may not move it out of the inbox ({error.strerror}); "
        f"as an administrator run: chmod g+rwX {folder}, and for a folder the same on it."
    )
