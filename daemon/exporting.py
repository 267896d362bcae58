"""Export jobs: what of a version is to be made, its folder frozen, what was made put to its place.

A version that is to be served has its files in `models/v<N>/`, `export.json` last. The GGUF of a base below adapters
is made once and lies in `state/bases/<fingerprint>/` for all profiles; a small JSON beside it says what it must be and
whose it is. What a person asked for stays in the job's folder until it was fetched.
"""

import errno
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon import bases, chains, disk, durable, jobdir, registry
from daemon.ledger import Database, jobs, requests, serving
from daemon.logs import get_logger
from daemon.world import World
from trainer import base_files, names
from trainer.contract import (
    Export,
    Exported,
    JobResult,
    JobSpec,
    MergeOnto,
    Quantisation,
    TrainingRecipe,
    Weights,
)

MADE = (names.PEFT_FOLDER, names.MODEL_FOLDER, names.ADAPTER_GGUF, names.MODEL_GGUF, names.MODELFILE, names.EXPORTED)
BASE = names.BASE_GGUF
WITHOUT_LLAMA: Quantisation = "Q8_0"  # the best that needs no compiled package
_K_QUANTS = ("Q4_K_M", "Q5_K_M", "Q6_K")
_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_FROM = re.compile(r"^FROM .*$", re.MULTILINE | re.IGNORECASE)

_log = get_logger()


class NoExport(Exception):
    """It cannot be exported. The message is one sentence; `final` says that time alone changes nothing."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be made of a version. `notice`: why it is not what the settings ask for."""

    export: Export
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """The files of a version, whole as far as their sizes say."""

    folder: Path
    told: Exported
    gguf: Path
    base_gguf: Path | None
    base_sha256: str | None

    @property
    def sha256(self) -> str:
        return self.told.files[self.gguf.name].sha256


# -- what is wanted ----------------------------------------------------------------------------------


def can_quantise() -> bool:
    """Whether llama.cpp is there for the trainer, which runs in this Python; finds it without loading it."""
    return importlib.util.find_spec("llama_cpp") is not None


def wish(world: World, version: dict[str, Any], *, quantisation: str | None = None, form: str | None = None) -> Wish:
    """As `[serve]` says, unless a person named something else: a night's LoRA as an adapter, cycles and whole models
    merged."""
    serve, job = world.settings.serve, jobs.get(world.db, version["job"]) or {}
    key = jobs.chain_key(world.db, version["chain"]) or {}
    full = key.get("method") == "full"
    merged = full or bool(job.get("cycle")) or serve.nightly == "merged"
    chosen: Any = quantisation or (serve.full_quantisation if full else serve.lora_quantisation)
    notice = None
    if chosen in _K_QUANTS and not can_quantise():
        notice = (f"{chosen} needs llama-cpp-python, which is not installed here: {WITHOUT_LLAMA} is made instead "
                  '(pip install "engramd[gguf]")')  # fmt: skip
        chosen = WITHOUT_LLAMA
    onto: MergeOnto = serve.merge_onto if key.get("quantised") else "original"
    chosen_form: Any = form or ("merged" if merged else "adapter")
    return Wish(Export(form=chosen_form, quantisation=chosen, merge_onto=onto, system=serve.system), notice)


def made(world: World, version: int) -> Made | None:
    """The files that are there to be served; None where they are not, or not whole."""
    row = serving.export(world.db, version)
    folder = folder_of(world, version)
    if row is None:
        return None
    try:
        told = read(folder)
        if told is None:
            return None
        gguf = folder / (names.ADAPTER_GGUF if told.form == "adapter" else names.MODEL_GGUF)
        if gguf.stat().st_size != told.files[gguf.name].size:
            return None
        base = bases_of(world) / row["base"] if row["base"] else None
        if base is not None and not bases.is_there(base, row["base_sha256"]):
            return None
    except (OSError, KeyError):
        return None
    return Made(folder, told, gguf, base, row["base_sha256"])


def read(folder: Path) -> Exported | None:
    """What `export.json` says; None where there is none that this release can read."""
    try:
        return Exported.model_validate_json((folder / names.EXPORTED).read_bytes())
    except (OSError, ValidationError):
        return None


def bases_of(world: World) -> Path:
    return world.home.state / bases.FOLDER


def folder_of(world: World, version: int) -> Path:
    return world.paths.root / registry.MODELS / f"v{version}"


# -- freezing ----------------------------------------------------------------------------------------


def freeze(
    world: World, home_db: Database, version: dict[str, Any], wanted: Wish, now: str, *, request: int | None = None
) -> int:
    """Write the folder of an export job, then record it. Gives its number. Raises NoExport."""
    db, paths = world.db, world.paths
    checkpoint, key = _checkpoint(world, version), jobs.chain_key(db, version["chain"]) or {}
    recipe = _recipe(world, version, key)
    try:
        base = base_files.resolve(recipe.base_model)
    except base_files.BaseMissing as missing:
        raise NoExport(str(missing), final=False) from None
    base_gguf = None
    if wanted.export.form == "adapter":
        base_gguf = bases_of(world) / bases.name_of(str(key.get("base_fingerprint")), wanted.export)
        base_gguf = base_gguf if bases.is_there(base_gguf) else None
    _look_for_room(world, wanted.export, checkpoint, base, base_gguf)
    number = requests.next_id(home_db, world.name, "job", at_least=jobs.newest_id(db) + 1)
    folder, staged = paths.jobs / f"{number}-export", jobdir.stage(paths.jobs, number)
    chains.link(checkpoint, staged / names.PARENT)
    export = wanted.export
    if base_gguf is not None:
        if not durable.link_or_clone(base_gguf, staged / BASE):
            durable.copy_durable(base_gguf, staged / BASE)
        export = export.model_copy(update={"base_gguf": bases.note(base_gguf)["sha256"]})
    weights: Weights = "ema" if version["weights"] == "ema" else "raw"
    spec = JobSpec(
        kind="export", recipe=recipe, parent=version["checkpoint_sha256"], parent_weights=weights, export=export
    )
    spec_sha256 = jobdir.seal(staged, spec, folder)
    purpose = serving.SERVING if request is None else serving.REQUEST
    with db.transaction():
        jobs.insert(
            db, job=number, kind="export", folder=folder.name, spec_sha256=spec_sha256, chain=version["chain"],
            parent_sha256=version["checkpoint_sha256"], parent_step=version["step"], steps=0, samples=0, now=now,
            memories=[], batches=[], line=version["line"],
            cycle={serving.OF: version["id"], serving.FOR: purpose, "request": request},
        )  # fmt: skip
    log = _log.bind(profile=world.name, job=number, version=version["id"])
    if wanted.notice:
        log.info("export_notice", note=wanted.notice)
    log.info("job_frozen", kind="export", form=export.form, quantisation=export.quantisation, purpose=purpose,
             makes_base=export.form == "adapter" and base_gguf is None)  # fmt: skip
    return number


def _checkpoint(world: World, version: dict[str, Any]) -> Path:
    """Wherever its verdict has left it. Raises NoExport."""
    sha256 = version["checkpoint_sha256"]
    job = jobs.get(world.db, version["job"]) or {}
    places = [chains.folder(world.paths.chains, one["chain"], one["step"])
              for one in jobs.checkpoints(world.db) if one["sha256"] == sha256]  # fmt: skip
    places.append(world.paths.jobs / str(job.get("folder")) / f"{names.CHECKPOINT_PREFIX}{version['step']}")
    found = next((place for place in places if chains.looks_whole(place, sha256)), None)
    if found is None:
        raise NoExport(f"the checkpoint of v{version['id']} is on this disk no more, or not whole: engramd snapshot "
                       "list shows in which days it may still be", final=True)  # fmt: skip
    return found


def _recipe(world: World, version: dict[str, Any], key: dict[str, Any]) -> TrainingRecipe:
    """As it was trained; where the records of its run are gone, what its chain's key says of it."""
    job = jobs.get(world.db, version["job"]) or {}
    told = registry.summary(world.paths.root, version["id"], str(job.get("folder"))).get("recipe")
    if not isinstance(told, dict):
        told = {"base_model": key.get("base_model"), "method": key.get("method"), "dtype": key.get("dtype"),
                "load_in_4bit": bool(key.get("quantised"))}  # fmt: skip
        told |= {} if key.get("rank") is None else {"lora_rank": key["rank"], "lora_alpha": key["alpha"]}
    try:
        return TrainingRecipe.model_validate(told)
    except ValidationError:
        return TrainingRecipe.model_validate(world.recipe_of(version["line"]).model_dump())


def _look_for_room(world: World, export: Export, checkpoint: Path, base: Path, base_gguf: Path | None) -> None:
    """Raises NoExport where the disk is plainly too full; the trainer looks again, and exactly."""
    weights = sum(file.stat().st_size for file in base_files.weight_files(base))
    need = 3 * disk.used_bytes([checkpoint])[checkpoint]
    if export.form == "merged":
        need += 3 * weights  # the merged model, its GGUF in 16 bits, the quantised one
    elif base_gguf is None:
        need += 2 * weights
    what = "the export of the newest version"
    short = disk.shortage(world.paths.root, need, world.settings.disk.reserve_mb * disk.MB, what)
    if short is not None:
        raise NoExport(short, final=False)


# -- collecting --------------------------------------------------------------------------------------


def collect(world: World, job: dict[str, Any], now: str, pulse: durable.Pulse = durable.no_pulse) -> None:
    """An export job has finished: what it made goes to its place, then it is done. May be done again after any
    crash."""
    db, about = world.db, serving.about(job)
    folder, version = world.paths.jobs / str(job["folder"]), int(about[serving.OF])
    result, log = JobResult.model_validate_json(job["result"]), _log.bind(profile=world.name, job=job["id"])
    for_person = about.get(serving.FOR) == serving.REQUEST
    target = folder / names.EXPORT if for_person else folder_of(world, version)
    told = _told(folder / names.EXPORT, target, result.export_sha256)
    reason = "what it exported is not what its result says"
    base, good = None, told is not None and _is_whole(told, folder / names.EXPORT, target)
    if told is not None and good:
        try:
            base = _collect_base(world, job, folder, told)
            if not for_person:
                _into_place(folder / names.EXPORT, target, told, base, pulse)
        except (OSError, ValidationError) as error:
            if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
                raise  # the disk is waited for
            good, reason = False, f"what it exported cannot be put to its place: {error}"
    if told is None or not good:
        with db.transaction():
            jobs.fail(db, job["id"], reason, None, now)
        jobdir.tidy(folder)
        log.error("export_failed", version=version, reason=reason)
        return
    with db.transaction():
        if not for_person:
            serving.record_export(
                db, version=version, job=job["id"], form=told.form, quantisation=told.quantisation,
                base=str(base.relative_to(bases_of(world))) if base else None,
                base_sha256=bases.note(base)["sha256"] if base else None, now=now,
            )  # fmt: skip
        serving.done(db, job["id"])
    jobdir.tidy(folder, keep=names.EXPORT if for_person else None)
    log.info("export_done", version=version, form=told.form, quantisation=told.quantisation, path=str(target),
             parity=told.parity, engine=told.engine, seconds=result.seconds, notices=told.notices)  # fmt: skip


def _told(made_in: Path, target: Path, sha256: str | None) -> Exported | None:
    """`export.json` with this hash, from where it was made or from where a crash let it come to."""
    for place in (made_in, target):
        if (place / names.EXPORTED).is_file() and durable.sha256_file(place / names.EXPORTED) == sha256:
            return read(place)
    return None


def _into_place(source: Path, target: Path, told: Exported, base: Path | None, pulse: durable.Pulse) -> None:
    """By renames, `export.json` last; what an earlier export has left there goes."""
    durable.make_folder(target)
    durable.remove_temps(target)  # of a daemon that was killed
    wanted = {name.split("/", 1)[0] for name in told.files} - {BASE, names.MODELFILE, names.EXPORTED}
    if (source / names.EXPORTED).exists():
        for path in sorted(source.rglob("*")):  # gigabytes: one by one, so that nobody takes us for stuck
            pulse()
            durable.fsync_dir(path) if path.is_dir() else durable.fsync_file(path)
        durable.remove(target / names.EXPORTED)
    for name in sorted(wanted):
        if (source / name).exists():
            durable.remove(target / name)
            os.rename(source / name, target / name)
    for name in MADE:
        if name not in wanted and name not in (names.MODELFILE, names.EXPORTED):
            durable.remove(target / name)
    durable.write_atomic(target / names.MODELFILE, modelfile(source, target, told, base).encode())
    durable.fsync_dir(target)
    if (source / names.EXPORTED).exists():
        durable.rename_durable(source / names.EXPORTED, target / names.EXPORTED)


def modelfile(source: Path, target: Path, told: Exported, base: Path | None) -> str:
    """For `ollama create NAME -f Modelfile`: as the trainer wrote it, but that the base lies elsewhere now. Its paths
    are understood from its own folder (ollama: parser/parser.go, expandPath)."""
    place = os.path.relpath(base, target) if base else f"./{names.MODEL_GGUF}"
    for folder in (source, target):
        if (folder / names.MODELFILE).is_file():
            return _FROM.sub(lambda _: f"FROM {place}", (folder / names.MODELFILE).read_text(), count=1)
    lines = [f"FROM {place}", *([f"ADAPTER ./{names.ADAPTER_GGUF}"] if told.form == "adapter" else [])]
    lines += [f'TEMPLATE """{told.template}"""', *(f"PARAMETER stop {json.dumps(stop)}" for stop in told.stop)]
    return "\n".join(lines) + "\n"


def _collect_base(world: World, job: dict[str, Any], folder: Path, told: Exported) -> Path | None:
    """The base's GGUF below an adapter, which this job has made, or was given."""
    if told.form != "adapter":
        return None
    export = jobdir.read_spec(folder).export
    key = jobs.chain_key(world.db, job["chain"]) or {}
    assert export is not None
    gguf = bases_of(world) / bases.name_of(str(key.get("base_fingerprint")), export)
    made_now, given, file = folder / names.EXPORT / names.BASE_GGUF, folder / names.BASE_GGUF, told.files.get(BASE)
    if file is not None and made_now.exists():
        bases.adopt(gguf, made_now, sha256=file.sha256, size=file.size, profile=world.name)
    elif not bases.is_there(gguf) and export.base_gguf and given.exists():  # removed meanwhile: its bytes are here
        bases.adopt(gguf, given, sha256=export.base_gguf, size=given.stat().st_size, profile=world.name)
    bases.use(gguf, world.name)
    return gguf


def _is_whole(told: Exported, *places: Path) -> bool:
    """Whether each file lies at one of the places, in its size; the base's GGUF has a note of its own."""
    for name, file in told.files.items():
        found = (place / name for place in places)
        if name != BASE and not any(one.is_file() and one.stat().st_size == file.size for one in found):
            return False
    return True


def fetched(world: World, job: dict[str, Any], now: str) -> None:
    """A person has what was asked for: the job's folder keeps its records."""
    folder = world.paths.jobs / str(job["folder"])
    with world.db.transaction():
        jobs.pruned(world.db, job["id"], now)
    durable.remove(folder / names.EXPORT)
