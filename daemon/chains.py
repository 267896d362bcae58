"""Checkpoints into chains by rename, and out of them by hard link. A sealed checkpoint is never written."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from daemon import durable
from trainer import names

TEMPORARY = ".tmp-"


class DamagedCheckpoint(Exception):
    """A checkpoint's files are not what its manifest says. The message names the first that differs."""


def folder(chains: Path, chain: int, step: int) -> Path:
    return chains / str(chain) / f"{names.CHECKPOINT_PREFIX}{step}"


def manifest_sha256(checkpoint: Path) -> str | None:
    """The checkpoint's identity; None where there is no manifest."""
    try:
        return hashlib.sha256((checkpoint / names.MANIFEST).read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def verify(checkpoint: Path, expected_sha256: str | None = None) -> None:
    """Hash every file of a checkpoint. Raises DamagedCheckpoint."""
    found = manifest_sha256(checkpoint)
    if found is None:
        raise DamagedCheckpoint(f"{checkpoint} has no manifest")
    if expected_sha256 is not None and found != expected_sha256:
        raise DamagedCheckpoint(f"{checkpoint / names.MANIFEST} is not the one that the ledger knows")
    for name, entry in json.loads((checkpoint / names.MANIFEST).read_bytes())["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path} is missing")
        if durable.sha256_file(path) != entry["sha256"]:
            raise DamagedCheckpoint(f"{path} is damaged: its SHA-256 is not the manifest's")


def why_damaged(checkpoint: Path, expected_sha256: str) -> str | None:
    """What `verify` has against a checkpoint, or what keeps it from looking; None where it is whole."""
    try:
        verify(checkpoint, expected_sha256)
    except DamagedCheckpoint as damage:
        return str(damage)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} cannot be verified: {error}"
    return None


def link(checkpoint: Path, target: Path) -> None:
    """Give a checkpoint a second name, file by file; copies where the file system refuses links."""
    durable.link_tree(checkpoint, target)


def begin(checkpoint: Path, chains: Path, chain: int, step: int) -> Path:
    """A new chain that goes on from a checkpoint of anywhere, by hard links. Done already: nothing to do."""
    target = folder(chains, chain, step)
    if not target.exists():
        staged = chains / f"{TEMPORARY}{chain}"
        shutil.rmtree(staged, ignore_errors=True)
        link(checkpoint, staged / target.name)
        durable.fsync_dir(staged)
        durable.rename_durable(staged, target.parent)
    return target


def sweep(chains: Path, recorded: set[int]) -> list[str]:
    """Remove chains of which no transaction spoke: nothing goes on from them. Gives their names."""
    removed = []
    for entry in sorted(chains.iterdir()) if chains.is_dir() else []:
        if entry.name.startswith(TEMPORARY) or (entry.name.isdecimal() and int(entry.name) not in recorded):
            shutil.rmtree(entry)
            removed.append(entry.name)
    return removed


def adopt(job_folder: Path, checkpoint: str, chains: Path, chain: int, sha256: str) -> Path:
    """Rename a job's last checkpoint into its chain. Done already (a crash came after it): nothing to do.

    Raises DamagedCheckpoint where neither place holds the checkpoint with this manifest hash.
    """
    step = names.checkpoint_step(checkpoint)
    if step is None:
        raise DamagedCheckpoint(f"{checkpoint} is no name of a checkpoint")
    target = folder(chains, chain, step)
    source = job_folder / checkpoint
    if manifest_sha256(source) == sha256:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.fsync_dir(chains)
        if target.exists():
            raise DamagedCheckpoint(f"{target} is there already, with another content")
        os.rename(source, target)
        durable.fsync_dir(target.parent)
        durable.fsync_dir(job_folder)
    elif manifest_sha256(target) != sha256:
        raise DamagedCheckpoint(f"{source} does not hold the checkpoint that result.json speaks of")
    return target


def point(current_model: Path, chains: Path, chain: int) -> None:
    """Swap the symlink `current_model` to this chain, in one rename."""
    temporary = current_model.with_name(".tmp-current_model")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(chains / str(chain), current_model.parent))
    os.replace(temporary, current_model)
    durable.fsync_dir(current_model.parent)


def steps(chains: Path, chain: int) -> dict[int, Path]:
    """The checkpoints that lie in a chain's folder."""
    entries = (chains / str(chain)).iterdir() if (chains / str(chain)).is_dir() else iter(())
    return {step: entry for entry in entries if (step := names.checkpoint_step(entry.name)) is not None}


def looks_whole(checkpoint: Path, sha256: str) -> bool:
    """Whether it is the one with this manifest and each file has its size. Reads no weights: `verify` does."""
    if manifest_sha256(checkpoint) != sha256:
        return False
    files = json.loads((checkpoint / names.MANIFEST).read_bytes())["files"]
    try:
        return all((checkpoint / name).stat().st_size == told["size"] for name, told in files.items())
    except OSError:
        return False
