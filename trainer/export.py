"""A job of kind export: what a trained model is served from, made of its checkpoint, and proved to answer alike.

Everything is written below `JOBDIR/export/`; `export.json` comes last and names each file with its hash. An attempt
that was stopped or killed is begun anew: half a model is worth nothing, and nothing of the training is at stake.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainer import (
    base_files,
    checkpoints,
    gguf,
    gguf_adapter,
    gguf_config,
    merge,
    modelfile,
    names,
    ollama_template,
    parity,
    quantise,
)
from trainer.chat_tokens import load_tokenizer
from trainer.checkpoints import Found
from trainer.contract import (
    BadSpec,
    Export,
    Exported,
    ExportedFile,
    Interrupted,
    JobSpec,
    MergeOnto,
    NoDevice,
    Quantisation,
)
from trainer.durable import sync, write_text
from trainer.gguf_config import Facts
from trainer.progress import ProgressLog
from trainer.report import Flag, Report
from trainer.shards import link_or_copy

_BITS = {"f16": 16.0, "bf16": 16.0, "Q8_0": 8.5, "Q6_K": 6.7, "Q5_K_M": 6.2, "Q4_K_M": 5.6}  # of a weight, at most
_SPARE = 64_000_000  # bytes: tokenizers, headers, and what else happens on the disk
_SHORTEST_CONTEXT = 4096  # tokens; what a model was trained with may be far less than it can hold
_WORK = ".tmp-work"  # below export/: what is only needed on the way


@dataclass(slots=True)
class _Work:
    """An export under way."""

    spec: JobSpec
    order: Export
    given: Path  # the base's GGUF that an earlier job made, where the spec names one
    out: Path
    base: Path
    found: Found
    facts: Facts
    template: str
    stops: list[str]
    onto: MergeOnto
    say: Callable[[str], None]
    pulse: Callable[[], None]
    notices: list[str] = field(default_factory=list)

    @property
    def adapted(self) -> bool:
        return (self.found.folder / names.ADAPTER_CONFIG).exists()

    @property
    def between(self) -> Path:
        """For what goes again before the job ends."""
        return self.out / _WORK


def export(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog, report: Report) -> None:
    """Make what `spec.export` asks for of the parent checkpoint. Metrics: the figures of the parity.

    Raises BadSpec (also for a result that does not answer as the model does), BaseMissing, NoDevice where the disk has
    too little room, and Interrupted once the flag is set.
    """
    work = _prepare(job, spec, stop, log)
    _look_for_room(work, job)
    if work.out.exists():
        shutil.rmtree(work.out)
    work.between.mkdir(parents=True)
    if work.order.form == "merged":
        figures, engine = _merged(work)
    else:
        figures, engine = _adapter(work)
    shutil.rmtree(work.between)
    context = min(work.facts.context, max(_SHORTEST_CONTEXT, spec.recipe.max_seq_length))
    write_text(work.out / names.MODELFILE, _modelfile(work, context))
    work.say("hashing")
    told = Exported(
        form=work.order.form,
        quantisation=work.order.quantisation,
        architecture=work.facts.architecture,
        merge_onto=work.onto,
        files=_files(work),
        template=work.template,
        stop=work.stops,
        context_length=context,
        parity=figures,
        engine=engine,
        notices=work.notices,
    )
    write_text(work.out / names.EXPORTED, told.model_dump_json(indent=1) + "\n")
    report.export_sha256 = checkpoints.sha256_of(work.out / names.EXPORTED)
    report.global_step, report.weights = work.found.state.global_step, spec.parent_weights
    report.metrics = {f"parity.{name}": value for name, value in figures.items()}
    for sentence in work.notices:
        report.notice(sentence)
    work.say(f"exported: {work.order.form}, {work.order.quantisation}")


def _prepare(job: Path, spec: JobSpec, stop: Flag, log: ProgressLog) -> _Work:
    """All that can be refused before the first gigabyte is written."""
    assert spec.export is not None and spec.parent is not None  # the contract says so
    order = spec.export

    def pulse() -> None:
        if stop.is_set():
            raise Interrupted("stopped while exporting: the next attempt begins anew")
        log.beat("working")

    def say(note: str) -> None:
        log.write("working", note=note)
        pulse()

    log.write("loading")
    found = checkpoints.parent(job, spec.parent)
    base = base_files.resolve(spec.recipe.base_model)
    if base_files.fingerprint(base) != found.base_fingerprint:
        raise BadSpec(f"{found.folder.name} was trained on another base model than {spec.recipe.base_model} is now")
    adapted = (found.folder / names.ADAPTER_CONFIG).exists()
    if order.form == "adapter" and not adapted:
        raise BadSpec("a full fine-tune has no adapter to export: export it merged")
    if spec.parent_weights == "ema" and not (found.folder / names.EMA).exists():
        raise BadSpec(f"{names.PARENT} holds no running mean of its weights ({names.EMA}): use the raw ones")
    if order.quantisation in quantise.FILE_TYPES and order.base_gguf is None and not quantise.available():
        raise BadSpec(f'{order.quantisation} needs llama-cpp-python: pip install "engramd[gguf]", or use Q8_0')
    facts = gguf_config.read(base if adapted else found.folder)
    template, stops = ollama_template.template_of(load_tokenizer(base))
    onto = order.merge_onto if found.state.chain_key["quantised"] else "original"
    given, out = job / names.BASE_GGUF, job / names.EXPORT
    return _Work(spec, order, given, out, base, found, facts, template, stops, onto, say, pulse)


def _look_for_room(work: _Work, job: Path) -> None:
    """Raises NoDevice where the disk has less room than all that will lie on it at once."""
    order = work.order
    halves = merge.merged_size(work.base if work.adapted else work.found.folder)  # bytes in 16 bits
    needed = _SPARE
    if order.form == "adapter":
        needed += 2 * (work.found.folder / names.ADAPTER_WEIGHTS).stat().st_size
    if order.form == "merged" or order.base_gguf is None:
        needed += round(halves * _BITS[order.quantisation] / 16)
        needed += halves if order.quantisation in quantise.FILE_TYPES else 0
    if order.form == "merged" or work.onto == "dequantised":
        needed += halves
    free = shutil.disk_usage(job).free
    if free < needed:
        raise NoDevice(
            f"an export of this model needs {needed / 1e9:.1f} GB on the disk of {job}, but only {free / 1e9:.1f} GB "
            "are free: make room there (`engramd prune --dry-run` shows what may go)"
        )


def _merged(work: _Work) -> tuple[dict[str, float], Literal["llama.cpp", "reader"]]:
    """`model/` and `model.gguf`; the parity's figures."""
    model, whole = work.out / names.MODEL_FOLDER, work.out / names.MODEL_GGUF
    work.say("merging" if work.adapted else "taking the weights in 16 bits")
    work.notices += merge.merge(
        work.base, work.found.folder, model, weights=work.spec.parent_weights, onto=work.onto, pulse=work.pulse
    )
    _make_gguf(work, model, whole)
    work.say("comparing with the model that was trained")
    figures, engine = parity.compare(model, whole, work.order.quantisation, pulse=work.pulse)
    if not work.order.keep_model:
        shutil.rmtree(model)
    return figures, engine


def _adapter(work: _Work) -> tuple[dict[str, float], Literal["llama.cpp", "reader"]]:
    """`adapter/` and `adapter.gguf`, and `base.gguf` below them unless there is one already; the parity's figures."""
    folder, small = work.out / names.PEFT_FOLDER, work.out / names.ADAPTER_GGUF
    work.say("taking the adapter")
    _copy_adapter(work, folder)
    gguf_adapter.convert(folder, work.base, small, weights="raw", pulse=work.pulse)
    below = work.base
    if work.onto == "dequantised":
        work.say("taking the base as nf4 holds it")
        below = work.between / "base"
        merge.dequantised(work.base, below, pulse=work.pulse)
    whole = work.given
    if work.order.base_gguf is None:
        whole = work.out / names.BASE_GGUF
        _make_gguf(work, below, whole)
    elif not whole.is_file() or checkpoints.sha256_of(whole) != work.order.base_gguf:
        raise BadSpec(f"{names.BASE_GGUF} in the job folder is not the one that {names.SPEC} names")
    work.say("comparing with the model that was trained")
    return parity.compare(below, whole, work.order.quantisation, adapter=folder, adapter_gguf=small, pulse=work.pulse)


def _copy_adapter(work: _Work, folder: Path) -> None:
    """As PEFT opens it, with the weights that are relied on; its tokenizer beside it."""
    folder.mkdir()
    source = names.EMA if work.spec.parent_weights == "ema" else names.ADAPTER_WEIGHTS
    link_or_copy(work.found.folder / source, folder / names.ADAPTER_WEIGHTS)
    config = json.loads((work.found.folder / names.ADAPTER_CONFIG).read_bytes())
    name = work.spec.recipe.base_model
    config["base_model_name_or_path"] = str(work.base) if name.startswith(base_files.BUILTIN_PREFIX) else name
    write_text(folder / names.ADAPTER_CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
    merge.copy_tokenizer(work.base, folder)


def _make_gguf(work: _Work, model: Path, out: Path) -> None:
    """The GGUF of a model folder; K-quants by way of one in 16 bits, which goes as soon as they are made."""
    wanted: Quantisation = work.order.quantisation
    if wanted == "f16" or wanted == "bf16" or wanted == "Q8_0":
        work.say(f"writing {out.name} in {wanted}")
        gguf.convert(model, out, quantisation=wanted, pulse=work.pulse)
        return
    halves = work.between / "halves.gguf"
    work.say("writing a GGUF in 16 bits")
    gguf.convert(model, halves, quantisation=merge.half_named(model), pulse=work.pulse)
    odd = quantise.fallbacks(halves, wanted)
    work.notices += [odd] if odd else []
    work.say(f"quantising {out.name} to {wanted}")
    quantise.quantise(halves, out, wanted, work.pulse)
    halves.unlink()


def _modelfile(work: _Work, context_length: int) -> str:
    adapter = work.order.form == "adapter"
    return modelfile.text_of(
        f"./{names.BASE_GGUF if adapter else names.MODEL_GGUF}",
        adapter=f"./{names.ADAPTER_GGUF}" if adapter else None,
        template=work.template,
        stops=work.stops,
        context_length=context_length,
        system=work.order.system,
    )


def _files(work: _Work) -> dict[str, ExportedFile]:
    """All files below `export/` with size and hash, each on the disk before it is named."""
    told = {}
    for path in sorted(work.out.rglob("*")):
        work.pulse()
        sync(path)
        if path.is_file():
            told[path.relative_to(work.out).as_posix()] = ExportedFile(
                size=path.stat().st_size, sha256=checkpoints.sha256_of(path)
            )
    sync(work.out)
    return told
