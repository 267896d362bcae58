"""Checkpoints: everything the trainer needs to go on, bit for bit.

A checkpoint appears under its name whole or not at all, and its manifest tells a torn one from a good
one. Equal training gives equal bytes in every file: no time, id or absolute path is in any of them,
because the next job's seed is made from the manifest's hash.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import names
from trainer.contract import BadSpec
from trainer.durable import sync

_TEMPORARY = ".tmp-"
_BLOCK = 1 << 20


class Torn(Exception):
    """The folder is no whole checkpoint; the message says why."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """`trainer_state.json`: where training stands."""

    global_step: int  # optimizer steps of the chain
    start_step: int  # the global step at which the job began
    segment: int  # the position in the job: the next step's segment ...
    step_in_segment: int  # ... and the number of steps already taken of it
    samples_seen: int  # of the job
    tokens: int  # of the job
    last_loss: float | None
    detector_mean: float | None
    detector_strikes: int
    chain_seed: int
    chain_key: dict[str, Any]
    optimizer_family: str
    spec_sha256: str
    detector_first: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A whole checkpoint to go on from. `own`: of this very job, so its position counts."""

    folder: Path
    sha256: str  # of its manifest
    state: TrainerState
    base_fingerprint: str
    own: bool
    processes: int = 1  # that shared the work, and ...
    sharded: bool = False  # ... whether the model lay in pieces


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save(
    job: Path,
    state: TrainerState,
    write_weights: Callable[[Path], None],
    *,
    write_moments: Callable[[Path], None],
    scheduler: dict[str, Any],
    manifest: dict[str, Any],
) -> tuple[Path, str]:
    """Write `checkpoint-<global_step>` into the job folder; returns it and its manifest's SHA-256.

    `write_weights` and `write_moments` write their files into the folder that they are given; `manifest` says what the
    manifest tells beside the files. A torn folder of the same name is replaced.
    """
    name = f"{names.CHECKPOINT_PREFIX}{state.global_step}"
    folder, temporary = job / name, job / f"{_TEMPORARY}{name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        temporary.mkdir()
        write_weights(temporary)
        write_moments(temporary)
        _save_tensors(temporary / names.SCHEDULER, scheduler)
        _save_tensors(temporary / names.RNG, _random_state())
        _write_json(temporary / names.STATE, asdict(state))
        _seal(temporary, {"spec_sha256": state.spec_sha256, **manifest})
    except Exception:  # a full disk most of all: half a checkpoint only takes room
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        _remove(folder)
    temporary.rename(folder)
    sync(job)
    return folder, sha256_of(folder / names.MANIFEST)


def _seal(folder: Path, told: dict[str, Any]) -> None:
    """The manifest, with size and hash of each file; then nothing is written there again, and all is on the disk."""
    files = {
        path.name: {"sha256": sha256_of(path), "size": path.stat().st_size} for path in sorted(folder.iterdir())
    }
    _write_json(folder / names.MANIFEST, {**told, "files": files})
    for path in sorted(folder.iterdir()):
        path.chmod(0o400)
        sync(path)
    sync(folder)


def verify(folder: Path) -> str:
    """SHA-256 of the manifest of a whole checkpoint. Raises Torn where anything is missing or altered."""
    try:
        content = (folder / names.MANIFEST).read_bytes()
        files = json.loads(content)["files"]
        for name, told in files.items():
            path = folder / name
            if path.stat().st_size != told["size"] or sha256_of(path) != told["sha256"]:
                raise Torn(f"{name} is not as its manifest says")
    except FileNotFoundError as error:
        raise Torn(f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Torn(f"{names.MANIFEST} cannot be read") from error
    return hashlib.sha256(content).hexdigest()


def read(folder: Path, *, own: bool) -> Found:
    """Verify a checkpoint and read where it stands. Raises Torn."""
    sha256 = verify(folder)
    try:
        state = TrainerState(**json.loads((folder / names.STATE).read_bytes()))
        told = json.loads((folder / names.MANIFEST).read_bytes())
        fingerprint, environment = told["base_fingerprint"], told.get("environment", {})
        processes, sharded = int(environment.get("processes", 1)), bool(environment.get("sharded", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Torn(f"{names.STATE} cannot be read") from error
    return Found(folder, sha256, state, fingerprint, own, processes, sharded)


def newest(job: Path, spec_sha256: str) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint that this very spec made in `job`, and a sentence for each one passed over."""
    notices = []
    for folder in reversed(in_order(job)):
        try:
            found = read(folder, own=True)
        except Torn as reason:
            notices.append(f"{folder.name} was passed over: {reason}")
            continue
        if found.state.spec_sha256 == spec_sha256:
            return found, notices
        notices.append(f"{folder.name} was passed over: another spec made it")
    return None, notices


def parent(job: Path, sha256: str) -> Found:
    """The checkpoint in `JOBDIR/parent` that the spec names. Raises BadSpec where it is not that one."""
    return _named(job, names.PARENT, sha256)


def served(job: Path, sha256: str) -> Found:
    """The same of `JOBDIR/served`. Raises BadSpec."""
    return _named(job, names.SERVED, sha256)


def _named(job: Path, name: str, sha256: str) -> Found:
    try:
        found = read(job / name, own=False)
    except Torn as reason:
        raise BadSpec(f"the {name} checkpoint is torn: {reason}") from reason
    if found.sha256 != sha256:
        raise BadSpec(f"the checkpoint in {name} is not the one that {names.SPEC} names")
    return found


def restore_random_state(found: Found) -> None:
    stored = torch.load(found.folder / names.RNG, map_location="cpu", weights_only=True)
    torch.set_rng_state(stored["cpu"])
    if "cuda" in stored and torch.cuda.is_available():
        torch.cuda.set_rng_state(stored["cuda"])


def prune(job: Path, keep: int) -> None:
    """Remove the oldest checkpoints of a job beyond `keep`; the newest, just written, always stays."""
    for folder in in_order(job)[: -max(keep, 1)]:
        _remove(folder)


def sweep(job: Path) -> None:
    """Remove what a killed trainer left half written."""
    for path in job.glob(f"{_TEMPORARY}*"):
        _remove(path) if path.is_dir() else path.unlink()


def in_order(job: Path) -> list[Path]:
    """The checkpoint folders of a job, by step."""
    found = [(names.checkpoint_step(path.name), path) for path in job.iterdir() if path.is_dir()]
    return [path for step, path in sorted((s, p) for s, p in found if s is not None)]


def environment(
    device: torch.device, dtype: torch.dtype, processes: int = 1, sharded: bool = False
) -> dict[str, Any]:
    """What equal bits need to be equal beside folder and recipe."""
    import accelerate
    import peft
    import transformers

    versions = {"accelerate": accelerate, "peft": peft, "torch": torch, "transformers": transformers}
    several = {"processes": processes, "sharded": sharded} if processes > 1 else {}
    return {
        **several,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: module.__version__ for name, module in versions.items()},
    }


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _save_tensors(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch writes a path's name into the archive; a buffer has none
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _remove(folder: Path) -> None:
    """First out of the name's way, then gone: a half-removed checkpoint never bears its name."""
    doomed = folder
    if not folder.name.startswith(_TEMPORARY):
        doomed = folder.with_name(f"{_TEMPORARY}gone-{folder.name}")
        if doomed.exists():
            shutil.rmtree(doomed)
        os.rename(folder, doomed)
    shutil.rmtree(doomed)
