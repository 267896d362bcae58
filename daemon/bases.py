"""The GGUFs of base models below adapters: `state/bases/<fingerprint>/base-<quantisation>.gguf`, for all profiles.

A small JSON beside each says what it must be and whose it is; without it, or with another size, a file counts as not
there. The note is written first, the file comes by rename.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import durable
from trainer.contract import Export

FOLDER = "bases"  # below `state/`


def name_of(fingerprint: str, export: Export) -> str:
    """Of a base's GGUF, relative to `state/bases/`."""
    onto = "" if export.merge_onto == "original" else f"-{export.merge_onto}"
    return f"{fingerprint[:16]}/base-{export.quantisation}{onto}.gguf"


def note(gguf: Path) -> dict[str, Any]:
    """`sha256`, `size` in bytes, and the `profiles` that serve from it; empty where there is no note."""
    try:
        found = json.loads(gguf.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_there(gguf: Path, sha256: str | None = None) -> bool:
    """Whether it is there in its whole size, and is that one, if one is named."""
    told = note(gguf)
    try:
        return gguf.stat().st_size == told.get("size") and sha256 in (None, told.get("sha256"))
    except OSError:
        return False


def adopt(gguf: Path, made: Path, *, sha256: str, size: int, profile: str) -> None:
    """Rename a GGUF that a job has made to its place."""
    durable.make_folder(gguf.parent)
    durable.remove_temps(gguf.parent)  # of a daemon that was killed
    durable.fsync_file(made)
    _write(gguf, {"sha256": sha256, "size": size, "profiles": _with(gguf, profile)})
    durable.rename_durable(made, gguf)


def use(gguf: Path, profile: str) -> None:
    """This profile serves from it too."""
    told = note(gguf)
    if told and told.get("profiles") != _with(gguf, profile):
        _write(gguf, {**told, "profiles": _with(gguf, profile)})


def _with(gguf: Path, profile: str) -> list[str]:
    return sorted({*note(gguf).get("profiles", ()), profile})


def others(gguf: Path, profile: str) -> list[str]:
    """Which other profiles serve from it."""
    return sorted({*note(gguf).get("profiles", ())} - {profile})


def of_profile(top: Path, profile: str) -> Iterator[Path]:
    """The GGUFs that this profile has served from."""
    for path in sorted(top.glob("*/base-*.gguf")):
        if profile in note(path).get("profiles", ()):
            yield path


def leave(gguf: Path, profile: str) -> None:
    """This profile serves from it no more; the last one takes it away."""
    if left := others(gguf, profile):
        _write(gguf, {**note(gguf), "profiles": left})
        return
    durable.remove_durable(gguf)
    durable.remove_durable(gguf.with_suffix(".json"))


def _write(gguf: Path, told: dict[str, Any]) -> None:
    durable.write_atomic(gguf.with_suffix(".json"), json.dumps(told, sort_keys=True).encode() + b"\n")
