"""From `claimed/` into `archive/YYYY-MM/`, once the ledger has what the file said."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from daemon import durable
from daemon.home import Home

_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


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
