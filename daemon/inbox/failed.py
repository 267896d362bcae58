"""inbox/failed/: what could not be taken, each with a sentence that says why and what mends it."""

import contextlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.durable import make_folder, move, write_atomic
from daemon.home import Home
from daemon.inbox.names import free_path, numbered, readable, safe_name
from daemon.records import BadItem

REASON_SUFFIX = ".reason.json"
MAX_LISTED = 10_000  # a reason file is for people; a million bad lines would make it a burden


def inbox_modes(home: Home) -> tuple[int, int]:
    """Modes of new folders and files in the inbox: private, or the group's where the inbox is shared."""
    try:
        shared = home.inbox.stat().st_mode & stat.S_IWGRP
    except FileNotFoundError:
        shared = 0
    return (0o2770, 0o660) if shared else (0o700, 0o600)


def _reason(
    profile: str, name: str, reason: str, now_iso: str, batch: str | int | None, bad_items: Sequence[BadItem]
) -> dict[str, Any]:
    listed = [{"where": item.where, "reason": item.reason} for item in bad_items[:MAX_LISTED]]
    if len(bad_items) > MAX_LISTED:
        listed.append({"where": "further on", "reason": f"{len(bad_items) - MAX_LISTED:,} more, not listed."})
    return {
        "file": readable(name),
        "profile": profile,
        "time": now_iso,
        "reason": reason,
        "batch": batch,
        "bad_items": listed,
    }


def _write(path: Path, reason: dict[str, Any], mode: int) -> None:
    text = json.dumps(reason, ensure_ascii=False, indent=2)
    write_atomic(path, text.encode("utf-8", "replace") + b"\n", mode)


def _says_the_same(path: Path, reason: dict[str, Any]) -> bool:
    """Whether this very refusal is there already, from before a crash; only its time may differ."""
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(there, dict) and {**there, "time": ""} == {**reason, "time": ""}


def explain(home: Home, profile: str, name: str, reason: str, now_iso: str, bad_items: Sequence[BadItem] = ()) -> None:
    """Only the reason, `<name>.reason.json`: for what has to stay in the inbox. Safe to repeat."""
    folder = home.profile(profile).failed
    folder_mode, file_mode = inbox_modes(home)
    make_folder(folder, folder_mode)
    body, path = _reason(profile, name, reason, now_iso, None, bad_items), folder / (safe_name(name) + REASON_SUFFIX)
    if not _says_the_same(path, body):
        _write(path, body, file_mode)


def withdraw(home: Home, profile: str, name: str) -> None:
    """What `explain` wrote, once its command was run and the thing was taken."""
    path = home.profile(profile).failed / safe_name(name)
    if not os.path.lexists(path):
        with contextlib.suppress(OSError):
            path.with_name(path.name + REASON_SUFFIX).unlink(missing_ok=True)


def reject(
    home: Home,
    path: Path,
    profile: str,
    name: str,
    reason: str,
    now_iso: str,
    bad_items: Sequence[BadItem] = (),
    batch: str | int | None = None,
) -> Path:
    """Moves a file or folder into inbox/failed/<profile>/ under a free name, its reason beside it.

    Where `path` is gone and this refusal lies there already, a crash came between: that place is returned.
    Raises OSError where the file system does not allow the move.
    """
    folder = home.profile(profile).failed
    folder_mode, file_mode = inbox_modes(home)
    make_folder(folder, folder_mode)
    body, safe = _reason(profile, name, reason, now_iso, batch, bad_items), safe_name(name)
    if not os.path.lexists(path):
        for one in numbered(safe):
            if not os.path.lexists(folder / one):
                raise FileNotFoundError(path)
            if _says_the_same(folder / (one + REASON_SUFFIX), body):
                return folder / one
    target = free_path(folder, safe)
    _write(
        target.with_name(target.name + REASON_SUFFIX), body, file_mode
    )  # first, so that none lies there without
    try:
        move(path, target)
    except OSError:
        target.with_name(target.name + REASON_SUFFIX).unlink(missing_ok=True)
        raise
    if file_mode != 0o600 and target.is_file() and not target.is_symlink():
        with contextlib.suppress(OSError):  # a claimed file is 0600, and its owner wants to read it here
            target.chmod(file_mode)
    return target


def report_bad_items(
    home: Home,
    profile: str,
    name: str,
    reason: str,
    bad_items: Sequence[BadItem],
    now_iso: str,
    batch: str | int | None = None,
) -> Path:
    """Only the reason file, where the good part was taken: `<name>.bad-lines.reason.json`. Safe to repeat."""
    folder = home.profile(profile).failed
    folder_mode, file_mode = inbox_modes(home)
    make_folder(folder, folder_mode)
    body = _reason(profile, name, reason, now_iso, batch, bad_items)
    for one in numbered(safe_name(name)):
        path = folder / f"{one}.bad-lines{REASON_SUFFIX}"
        if _says_the_same(path, body):
            return path
        if not os.path.lexists(path):
            _write(path, body, file_mode)
            return path
    raise AssertionError("unreachable: the numbers do not end")
