"""Whose a home is, and what one who may not use it can do. In a shared home members ask, only its owner works."""

import grp
import os
import pwd
from pathlib import Path

from daemon.cli.exit_codes import UserError
from daemon.home import Home


def only_the_owner_works(home: Home) -> None:
    """Raises UserError where work done here would leave files that a shared home's service cannot use."""
    from daemon.sharing import is_shared

    try:
        owner = home.root.stat().st_uid
    except OSError:
        return
    if owner != os.geteuid() and is_shared(home):
        raise UserError(
            f"no engramd runs on {home.root}, and only {_user(owner)} works there: sudo systemctl start engramd"
        )


def closed(error: PermissionError) -> str:
    """One sentence for a file that this user may not use, with what opens it."""
    path = Path(os.fsdecode(error.filename)) if error.filename else None
    if path is None:
        return str(error)
    seen = next((one for one in (path, *path.parents) if _owner(one)), None)
    owner = _owner(seen) if seen else None
    sentence = f"{path}: {error.strerror}"
    if owner is None or owner[0] in (0, os.geteuid()):
        return sentence
    user, group = _user(owner[0]), _group(owner[1])
    joined = owner[1] in (*os.getgroups(), os.getegid())
    ways = [f"sudo -u {user} engramd ..."] + ([] if joined else [f"join its group: sudo gpasswd --add {_me()} {group}"])
    return f"{sentence}; it belongs to {user}: {', or '.join(ways)}"


def _owner(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_uid, found.st_gid


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _me() -> str:
    return _user(os.geteuid())
