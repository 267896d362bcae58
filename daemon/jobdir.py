"""A job's folder: written whole by the daemon before anything of the job is recorded, read after it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from pydantic import ValidationError

from daemon import durable
from trainer import contract, names

_TEMPORARY = ".tmp-"


def stage(jobs: Path, job: int) -> Path:
    """A fresh temporary folder for this job; what a crash left there is removed."""
    jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = jobs / f"{_TEMPORARY}{job}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def write_lines(path: Path, items: Iterable[contract.Sample | contract.Probe | contract.Prompt]) -> str:
    """One JSON line each, sealed. Gives the SHA-256 of the file."""
    with Lines(path) as lines:
        for item in items:
            lines.add(item)
    return lines.sha256


class Lines:
    """A JSONL of samples, probes or prompts, written one by one and sealed at the end; `sha256` is that of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "xb")  # noqa: SIM115 (closed by the with that this is used in)
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def add(self, item: contract.Sample | contract.Probe | contract.Prompt) -> None:
        line = item.model_dump_json(exclude_defaults=True).encode() + b"\n"
        self._digest.update(line)
        self._file.write(line)

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        _seal(self._file, self._path)


def _seal(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    path.chmod(0o400)


class JsonList:
    """A JSON list, written item by item and sealed at the end: one line each, so that `head` and `diff` are of use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "xb")  # noqa: SIM115 (closed by the with that this is used in)
        self._lines = 0

    def add(self, item: dict[str, Any]) -> None:
        self._file.write((b",\n" if self._lines else b"[\n") + orjson.dumps(item))
        self._lines += 1

    def __enter__(self) -> "JsonList":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write(b"\n]\n" if self._lines else b"[]\n")
        _seal(self._file, self._path)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """`run-summary.json`: what a person would ask about this run a month later."""
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    durable.write_atomic(folder / names.SUMMARY, text.encode() + b"\n", 0o400)


def seal(staged: Path, spec: contract.JobSpec, folder: Path) -> str:
    """Write `spec.json` last and give the folder its name. Gives the spec's SHA-256."""
    data = spec.to_bytes()
    durable.write_atomic(staged / names.SPEC, data, 0o400)
    durable.fsync_dir(staged)
    os.rename(staged, folder)
    durable.fsync_dir(folder.parent)
    return hashlib.sha256(data).hexdigest()


def remove_unrecorded(jobs: Path, recorded: set[str]) -> list[str]:
    """Remove staged folders, and job folders of which no transaction spoke: nothing has used them."""
    removed = []
    for entry in sorted(jobs.iterdir()) if jobs.exists() else []:
        if entry.is_dir() and entry.name not in recorded:
            shutil.rmtree(entry)
            removed.append(entry.name)
    return removed


def clear_result(folder: Path) -> None:
    """Before a resume: the outcome of the last attempt must not be taken for that of the next."""
    (folder / names.RESULT).unlink(missing_ok=True)
    durable.fsync_dir(folder)


def read_result(folder: Path) -> contract.JobResult | None:
    """None where the trainer wrote none, or one that this release cannot read."""
    try:
        return contract.JobResult.model_validate_json((folder / names.RESULT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.json` says of each question of the job; empty where the trainer wrote none that can be read."""
    try:
        told = orjson.loads((folder / names.METRICS).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return []
    lines = told.get("probes") if isinstance(told, dict) else None
    return [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []


def count_probes(folder: Path) -> int:
    """How many questions the job was given."""
    try:
        with open(folder / names.PROBES, "rb") as file:
            return sum(1 for line in file if line.strip())
    except FileNotFoundError:
        return 0


def sizes(folder: Path, checkpoint: str | None, adopted: Path) -> dict[str, int]:
    """Bytes: of the samples, and of the last checkpoint by its manifest, which lies in the job's folder or was
    adopted into its chain."""
    found = {"samples": (folder / names.SAMPLES).stat().st_size if (folder / names.SAMPLES).exists() else 0}
    for place in (adopted, *([folder / checkpoint] if checkpoint else [])):
        try:
            files = orjson.loads((place / names.MANIFEST).read_bytes())["files"]
        except (FileNotFoundError, NotADirectoryError):
            continue
        found["checkpoint"] = sum(int(one["size"]) for one in files.values())
    return found


def write_retry(folder: Path, retry: contract.Retry) -> None:
    durable.write_atomic(folder / names.RETRY, retry.model_dump_json().encode() + b"\n")


def read_retry(folder: Path) -> contract.Retry | None:
    try:
        return contract.Retry.model_validate_json((folder / names.RETRY).read_bytes())
    except FileNotFoundError:
        return None


def read_spec(folder: Path) -> contract.JobSpec:
    return contract.JobSpec.model_validate_json((folder / names.SPEC).read_bytes())


def read_plan(folder: Path) -> contract.Plan | None:
    try:
        return contract.Plan.model_validate_json((folder / names.PLAN).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step that this job has written itself."""
    if not folder.is_dir():  # somebody freed space; audit tells
        return None
    steps = {step: entry for entry in folder.iterdir() if (step := names.checkpoint_step(entry.name)) is not None}
    return steps[max(steps)] if steps else None


def tail_log(folder: Path, characters: int = 300) -> str:
    """The last line of `trainer.log`, for the sentence that says why a job crashed."""
    try:
        lines = (folder / names.LOG).read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1][:characters] if lines else ""


def is_untidy(folder: Path) -> bool:
    """Whether links to what the job started from, or was compared with, are left in it."""
    return any((folder / name).exists() for name in (names.PARENT, names.SERVED, names.BASE_GGUF))


def tidy(folder: Path, keep: str | None = None) -> None:
    """After the verdict: links to other checkpoints and the intermediate ones go, the records stay, and of a refused
    candidate its last checkpoint, `keep`. The parent's links go last, so that a crash leaves work that is seen."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name == keep:
            continue
        if names.checkpoint_step(entry.name) is not None or entry.name.startswith(".tmp-"):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    if keep != names.EXPORT and (folder / names.EXPORT).exists():  # gigabytes: durably out of the way first
        durable.remove_durable(folder / names.EXPORT)
    (folder / names.BASE_GGUF).unlink(missing_ok=True)
    shutil.rmtree(folder / names.SERVED, ignore_errors=True)
    shutil.rmtree(folder / names.PARENT, ignore_errors=True)
