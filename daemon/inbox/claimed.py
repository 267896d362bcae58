"""What lies in `claimed/`, for recovery; and from there into `archive/YYYY-MM/`, once the ledger has it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from daemon import durable
from daemon.home import Home
from daemon.inbox.folders import folder_state
from daemon.inbox.outcomes import Claim

_CLAIMED_NAME = re.compile(r"([0-9a-f]{64})-(.+)", re.DOTALL)
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


def split_claimed_name(name: str) -> tuple[str, str] | None:
    """(sha256, name) out of `<sha256>-<name>`."""
    match = _CLAIMED_NAME.fullmatch(name)
    return (match[1], match[2]) if match else None


def claimed_files(home: Home, profile: str) -> list[Claim]:
    """What recovery finds: every claim, in name order. Removes what a killed daemon left half done.

    Only for the daemon: nobody else writes into these folders. In the inbox itself, where `add` may be at
    work, only what is on its way out is removed.
    """
    paths = home.profile(profile)
    folder = paths.claimed
    for owned in (folder, paths.failed):
        if owned.is_dir():
            durable.remove_temps(owned)
    if paths.inbox.is_dir():
        durable.remove_gone(paths.inbox)
    if not folder.is_dir():
        return []
    claims: list[Claim] = []
    with os.scandir(folder) as listing:
        for item in listing:
            parts = split_claimed_name(item.name)
            if parts is None or item.is_symlink():
                continue
            status = item.stat(follow_symlinks=False)
            is_folder = item.is_dir(follow_symlinks=False)
            size = folder_state(Path(item.path))[2] if is_folder else status.st_size
            claims.append(
                Claim(profile, parts[0], parts[1], Path(item.path), size, status.st_mtime, is_folder)
            )
    return sorted(claims, key=lambda claim: (claim.name, claim.sha256))


def archive_slice(home: Home, profile: str, claims: Sequence[Path], month: str) -> list[Path]:
    """Where each claim lies now; one flush per folder. Safe to repeat after a crash, in a later month too."""
    if _MONTH.fullmatch(month) is None:
        raise ValueError(f"{month!r} is no month: YYYY-MM")
    archive = home.profile(profile).archive
    folder = archive / month
    durable.make_folder(folder)
    places: list[Path] = []
    superfluous: list[Path] = []
    for claim in claims:
        target = folder / claim.name
        if not os.path.lexists(claim):
            target = _earlier(archive, claim.name) or target
            if not os.path.lexists(target):
                raise FileNotFoundError(claim)
        elif os.path.lexists(target):  # the name holds the hash: the same file was dropped twice this month
            superfluous.append(claim)
        else:
            os.rename(claim, target)
        places.append(target)
    durable.fsync_dir(folder)
    for claim in superfluous:
        durable.remove(claim)
    durable.fsync_dirs({claim.parent for claim in claims if claim.parent.is_dir()})
    return places


def archive(home: Home, profile: str, claim: Path, month: str) -> Path:
    return archive_slice(home, profile, [claim], month)[0]


def _earlier(archive_root: Path, name: str) -> Path | None:
    months = sorted((path for path in archive_root.iterdir() if path.is_dir()), reverse=True)
    return next((month / name for month in months if os.path.lexists(month / name)), None)
