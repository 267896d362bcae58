"""What came home from another machine, judged before anything of it is believed.

A checkpoint is trained on, a result moves the head: so each file is known by name, each byte by the manifest, and the
manifest by the result, which must be one of this very job. What a lying machine can still do is train badly, or send
figures that it made up: the gate and the person judge those as they judge any version.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon import durable
from daemon.compute import tensor_files
from daemon.compute.tensor_files import Malformed
from trainer import names
from trainer.contract import JobResult, JobSpec, Plan
from trainer.names import ExitCode

MAX_RESULT = 1 << 20  # bytes
MAX_MANIFEST = 4 << 20
HOME_COMES = (ExitCode.DONE, ExitCode.INTERRUPTED)  # with a checkpoint; after another end the one it names stays there
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What may come beside the checkpoint. Progress and log are mirrored line by line, and judged there.
BESIDE = (names.RESULT, names.METRICS, names.PLAN, names.LOSSES, names.BEFORE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_STATE = (
    ("global_step", int), ("start_step", int), ("segment", int), ("step_in_segment", int), ("samples_seen", int),
    ("tokens", int), ("chain_seed", int), ("chain_key", dict), ("optimizer_family", str), ("spec_sha256", str),
)  # fmt: skip


class Refused(Exception):
    """Something of it is wrong, so nothing of it is taken. The message is one sentence that names it."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What may be put in place: `files` lie in the staged folder, `checkpoint` too unless it was at home already."""

    result: JobResult
    files: tuple[str, ...]
    checkpoint: str | None
    fetched: bool  # whether the checkpoint's folder is in the staged one
    bytes: int  # of all of it


def may_come(path: str) -> bool:
    """Whether a file of this path below the job folder over there is asked for at all."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return path in BESIDE
    return _is_checkpoint(folder) and _NAME.fullmatch(name) is not None and _kind(name) is not None


def accept(
    staged: Path, job: Path, spec_sha256: str, *, fingerprint: str | None = None,
    pulse: durable.Pulse = durable.no_pulse,
) -> Arrived:  # fmt: skip
    """Judge the folder that the files were fetched into. `fingerprint` is that of the base that was sent.

    Raises Refused with one sentence. What is accepted is sealed: files 0400 (0600 beside the checkpoint).
    """
    raw = (job / names.SPEC).read_bytes()
    if hashlib.sha256(raw).hexdigest() != spec_sha256:
        raise Refused(f"{names.SPEC} of {job.name} is not the one that was sent away")
    spec = JobSpec.model_validate_json(raw)
    files, folders = _walk(staged)
    if names.RESULT not in files:
        raise Refused(f"{names.RESULT} did not come home")
    result = _result(staged / names.RESULT, spec_sha256)
    checkpoint = result.checkpoint if result.exit_code in HOME_COMES else None
    if strange := sorted(folders - {checkpoint}):
        raise Refused(f"the folder {_shown(strange[0])} came home, which the result does not name")
    at_home = checkpoint is not None and checkpoint not in folders
    _beside(staged, files, spec)
    _steps(spec, job, result)
    if checkpoint is not None:
        _checkpoint((job if at_home else staged) / checkpoint, job, spec, result, fingerprint, pulse)
    total = 0
    for path in sorted(staged.rglob("*")):
        if path.is_file():
            total += path.lstat().st_size
            path.chmod(0o600 if path.parent == staged else 0o400)
    return Arrived(result, tuple(sorted(files)), checkpoint, not at_home and bool(folders), total)


def _walk(staged: Path) -> tuple[set[str], set[str]]:
    """Names of files and folders at the top; every entry down to the files of a checkpoint is plain and known."""
    files, folders = set(), set()
    for entry in _entries(staged):
        if entry.is_dir(follow_symlinks=False):
            if not _is_checkpoint(entry.name):
                raise Refused(f"the folder {_shown(entry.name)} came home, and no job has one of that name")
            folders.add(entry.name)
            for inner in _entries(Path(entry.path)):
                where = f"{entry.name}/{inner.name}"
                if inner.is_dir(follow_symlinks=False):
                    raise Refused(f"the folder {_shown(where)} came home, and a checkpoint has none")
                _plain(inner, where)
        else:
            _plain(entry, entry.name)
            if entry.name not in BESIDE:
                raise Refused(f"the file {_shown(entry.name)} came home, and it was not asked for")
            files.add(entry.name)
    return files, folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _plain(entry: os.DirEntry[str], where: str) -> None:
    told = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(told.st_mode):
        raise Refused(f"{_shown(where)} is a symbolic link")
    if not stat.S_ISREG(told.st_mode):
        raise Refused(f"{_shown(where)} is no regular file")
    if told.st_nlink != 1:
        raise Refused(f"{_shown(where)} is a hard link to something else")


def _result(path: Path, spec_sha256: str) -> JobResult:
    content = _json(path, names.RESULT, MAX_RESULT)
    try:
        result = JobResult.model_validate(content)
    except ValidationError:
        raise Refused(f"{names.RESULT} is none that the contract knows") from None
    if result.spec_sha256 != spec_sha256:
        raise Refused(f"{names.RESULT} is of another spec")
    if result.exit_code == ExitCode.LOCKED or result.export_sha256 is not None:
        raise Refused(f"{names.RESULT} says what no finetune says")
    if any(CONTROL.search(text) for text in (result.reason or "", *result.notices, *result.metrics)):
        raise Refused(f"{names.RESULT} holds control characters")
    if (result.checkpoint is None) != (result.checkpoint_sha256 is None):
        raise Refused(f"{names.RESULT} names a checkpoint without its hash")
    if result.checkpoint is not None and not _is_checkpoint(result.checkpoint):
        raise Refused(f"{names.RESULT} names {_shown(result.checkpoint)}, which is no checkpoint's name")
    if result.exit_code == ExitCode.DONE and result.checkpoint is None:
        raise Refused(f"{names.RESULT} says that the job is done, and names no checkpoint")
    return result


def _beside(staged: Path, files: set[str], spec: JobSpec) -> None:
    """metrics, plan, losses, scores: of a shape that their readers take."""
    if names.METRICS in files and not isinstance(_json(staged / names.METRICS, names.METRICS), dict):
        raise Refused(f"{names.METRICS} is no object")
    if names.BEFORE in files and not isinstance(_json(staged / names.BEFORE, names.BEFORE), dict):
        raise Refused(f"{names.BEFORE} is no object")
    if names.PLAN in files:
        try:
            plan = Plan.model_validate(_json(staged / names.PLAN, names.PLAN))
        except ValidationError:
            raise Refused(f"{names.PLAN} is none that the contract knows") from None
        if plan.segments != _planned(spec):
            raise Refused(f"{names.PLAN} does not plan what {names.SPEC} orders")
    if names.LOSSES in files:
        most = max((place for segment in spec.segments for place in segment), default=-1)
        try:
            for line in tensor_files.check_lines(staged / names.LOSSES):
                if not _is_losses(line, most):
                    raise Malformed("has a line that tells of no sample of this job")
        except Malformed as why:
            raise Refused(f"{names.LOSSES} {why}") from None


def _is_losses(line: Any, most: int) -> bool:
    if not isinstance(line, dict) or set(line) != {"step", "losses"} or type(line["step"]) is not int:
        return False
    return isinstance(line["losses"], list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and 0 <= pair[0] <= most
        and (pair[1] is None or type(pair[1]) in (int, float)) for pair in line["losses"]
    )  # fmt: skip


def _planned(spec: JobSpec) -> list[int]:
    """Optimizer steps of each segment: a step is so many samples of one segment, its last may be short."""
    per_step = spec.recipe.samples_per_step
    return [-(-len(segment) // per_step) for segment in spec.segments]


def _steps(spec: JobSpec, job: Path, result: JobResult) -> None:
    """The job begins where its parent ended, and a job that is done has taken every step of its spec."""
    before = _parent_state(job).get("global_step", 0) if spec.parent else 0
    planned = sum(_planned(spec))
    if result.start_step not in (None, before):
        raise Refused(f"{names.RESULT} begins at step {result.start_step}, and its parent ended at {before}")
    if result.global_step is not None and not before <= result.global_step <= before + planned:
        raise Refused(f"{names.RESULT} ends at step {result.global_step}, and the job ends at {before + planned}")
    if result.checkpoint is not None:
        step = names.checkpoint_step(result.checkpoint)
        if step is None or not before < step <= before + planned:
            raise Refused(f"{result.checkpoint} is no step of this job: it goes from {before} to {before + planned}")
    if result.exit_code != ExitCode.DONE:
        return
    seen = sum(len(segment) for segment in spec.segments)
    told = (result.global_step, names.checkpoint_step(result.checkpoint or ""))
    if told != (before + planned, before + planned) or result.steps not in (None, planned):
        raise Refused(f"{names.RESULT} says done, and not at step {before + planned}, where the job ends")
    if result.samples_seen not in (None, seen):
        raise Refused(f"{names.RESULT} says that {result.samples_seen} samples were seen, and the job has {seen}")


def _checkpoint(
    folder: Path, job: Path, spec: JobSpec, result: JobResult, fingerprint: str | None, pulse: durable.Pulse
) -> None:
    name = folder.name
    manifest = _manifest(folder, result.checkpoint_sha256 or "")
    there = {entry.name for entry in _entries(folder)} if folder.is_dir() and not folder.is_symlink() else set()
    listed: dict[str, Any] = manifest["files"]
    if extra := sorted(there - set(listed) - {names.MANIFEST}):
        raise Refused(f"{_shown(f'{name}/{extra[0]}')} is not in its manifest")
    for one in sorted(listed):
        _file(folder / one, listed[one], f"{name}/{one}", pulse)
    told = {"spec_sha256": result.spec_sha256, "parent": spec.parent}
    base = _parent_manifest(job).get("base_fingerprint") if spec.parent else fingerprint
    if base is not None:
        told["base_fingerprint"] = base
    for key, value in told.items():
        if manifest.get(key) != value:
            raise Refused(f"{name}/{names.MANIFEST} says another {key} than this job has")
    _whole(folder, set(listed), spec, result)
    _state(folder, job, spec, result)


def _manifest(folder: Path, sha256: str) -> dict[str, Any]:
    name = f"{folder.name}/{names.MANIFEST}"
    try:
        with tensor_files.opened(folder / names.MANIFEST) as file:
            content = file.read(MAX_MANIFEST + 1)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refused(f"{name} is not the one whose hash {names.RESULT} names")
        manifest = tensor_files.parse_json(content)
    except Malformed as why:
        raise Refused(f"{name} {why}") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise Refused(f"{name} lists no files")
    for one, told in manifest["files"].items():
        if not _NAME.fullmatch(one) or _kind(one) is None or one == names.MANIFEST:
            raise Refused(f"{name} lists {_shown(one)}, which no checkpoint holds")
        if not isinstance(told, dict) or set(told) != {"sha256", "size"} or type(told["size"]) is not int:
            raise Refused(f"{name} tells of {one} neither size nor hash")
    return manifest


def _file(path: Path, told: dict[str, Any], where: str, pulse: durable.Pulse) -> None:
    """Size and hash as the manifest says, and inside what its name says."""
    try:
        with tensor_files.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != told["size"]:
                raise Refused(f"{where} has {size:,} bytes, and its manifest says {told['size']:,}")
            if durable.sha256_fd(file.fileno(), pulse) != told["sha256"]:
                raise Refused(f"{where} has another hash than its manifest says")
        kind = _kind(path.name)
        if kind == "safetensors":
            tensor_files.check_safetensors(path)
        elif kind == "torch":
            tensor_files.check_torch(path)
        else:
            tensor_files.read_json(path)
    except Malformed as why:
        raise Refused(f"{where} {why}") from None


def _whole(folder: Path, listed: set[str], spec: JobSpec, result: JobResult) -> None:
    """All that the next job needs of it."""
    name = folder.name
    lora = spec.recipe.method == "lora"
    stems = {
        "its weights": ("adapter_model" if lora else "model", "safetensors"),
        "its optimizer": ("optimizer", "torch"),
        names.SCHEDULER: ("scheduler", "torch"),
        "its random state": ("rng_state", "torch"),
        names.STATE: ("trainer_state", "json"),
    }
    if result.weights == "ema":
        stems["the mean of its weights"] = ("ema", "safetensors")
    for what, (stem, kind) in stems.items():
        if not any(one.startswith(stem) and _kind(one) == kind for one in listed):
            raise Refused(f"{name} lacks {what}")
    for index in sorted(one for one in listed if one.endswith(".index.json")):
        told = _json(folder / index, f"{name}/{index}")
        parts = told.get("weight_map") if isinstance(told, dict) else None
        if not isinstance(parts, dict) or not all(isinstance(one, str) and one in listed for one in parts.values()):
            raise Refused(f"{name}/{index} names files that did not come with it")


def _state(folder: Path, job: Path, spec: JobSpec, result: JobResult) -> None:
    where = f"{folder.name}/{names.STATE}"
    state = _json(folder / names.STATE, where)
    if not isinstance(state, dict) or not all(type(state.get(key)) is kind for key, kind in _STATE):
        raise Refused(f"{where} does not say where training stands")
    before = _parent_state(job) if spec.parent else {}
    expected = {
        "spec_sha256": result.spec_sha256, "global_step": names.checkpoint_step(folder.name),
        "start_step": before.get("global_step", 0), "chain_seed": before.get("chain_seed", spec.seed),
        "chain_key": spec.recipe.chain_key(),
    }  # fmt: skip
    for key, value in expected.items():
        if state[key] != value:
            raise Refused(f"{where} says another {key} than this job has")


def _parent_state(job: Path) -> dict[str, Any]:
    """Of our own parent checkpoint, which we sent."""
    found = tensor_files.parse_json((job / names.PARENT / names.STATE).read_bytes())
    return found if isinstance(found, dict) else {}


def _parent_manifest(job: Path) -> dict[str, Any]:
    found = tensor_files.parse_json((job / names.PARENT / names.MANIFEST).read_bytes())
    return found if isinstance(found, dict) else {}


def _json(path: Path, name: str, most: int = tensor_files.MAX_JSON) -> Any:
    try:
        return tensor_files.read_json(path, most)
    except Malformed as why:
        raise Refused(f"{name} {why}") from None


def _is_checkpoint(name: str) -> bool:
    step = names.checkpoint_step(name)
    return step is not None and len(name) < 40 and name == f"{names.CHECKPOINT_PREFIX}{step}"


def _kind(name: str) -> str | None:
    """What a file of a checkpoint is, by its ending; None where a checkpoint has none such."""
    kinds = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".json": "json"}
    return kinds.get(Path(name).suffix)


def _shown(text: str) -> str:
    """A name that somebody else chose, as one may print it."""
    return repr(text[:120])
