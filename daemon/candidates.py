"""What is handed on of a version that was exported: the model to be made, what it is asked, paths for a command."""

import json
from typing import Any

from pydantic import ValidationError

from daemon import bases, jobdir
from daemon.delivering import Model, Question
from daemon.exporting import Made, bases_of
from daemon.ledger import jobs, serving
from daemon.rules import served
from daemon.world import World
from trainer import names
from trainer.contract import Probe

MOST_PROBES = 5
_BASE = "engramd-base"
_GROUPS = ("new", "recent", "old")  # what only the memories can have taught, the freshest first


def base_name(fingerprint: str, made: Made) -> str:
    """The name in Ollama of the base below adapters."""
    onto = "" if made.told.merge_onto == "original" else f"_{made.told.merge_onto}"
    return f"{_BASE}-{fingerprint[:12]}-{made.told.quantisation.lower()}{onto}"


def model_of(world: World, name: str, version: dict[str, Any], made: Made) -> Model:
    told, base = made.told, None
    if made.base_gguf is not None:
        key = jobs.chain_key(world.db, version["chain"]) or {}
        base = base_name(str(key.get("base_fingerprint")), made)
    return Model(
        name, made.gguf, made.sha256, told.template, told.context_length, tuple(told.stop),
        world.settings.serve.system, base, made.base_gguf, made.base_sha256,
    )  # fmt: skip


def questions_of(world: World, version: dict[str, Any]) -> tuple[Question, ...]:
    """Probes of its job that it answered freely and exactly when it was measured; none where the records are gone."""
    job = jobs.get(world.db, version["job"]) or {}
    folder = world.paths.jobs / str(job.get("folder"))
    known = [line for line in jobdir.read_metrics(folder)
             if line.get("group") in _GROUPS and (line.get("candidate") or {}).get("free_exact")]  # fmt: skip
    known.sort(key=lambda line: _GROUPS.index(line["group"]))
    wanted = [str(line.get("id")) for line in known[:MOST_PROBES]]
    try:
        lines = (folder / names.PROBES).read_bytes().splitlines() if wanted else []
        probes = {one.id: one for one in map(Probe.model_validate_json, lines)}
    except (OSError, ValidationError):
        return ()
    return tuple(
        Question(tuple({"role": turn.role, "content": turn.content} for turn in one.messages), one.answer)
        for one in (probes[name] for name in wanted if name in probes)
    )


def environment_of(world: World, version: dict[str, Any], made: Made) -> dict[str, str]:
    """For serve.command. A path that does not apply is empty."""
    adapter = made.told.form == "adapter"
    return {
        "ENGRAMD_VERSION": f"v{version['id']}",
        "ENGRAMD_PROFILE": world.name,
        "ENGRAMD_LINE": str(version["line"]),
        "ENGRAMD_MODEL_DIR": str(made.folder),
        "ENGRAMD_GGUF": "" if adapter else str(made.gguf),
        "ENGRAMD_ADAPTER_GGUF": str(made.gguf) if adapter else "",
        "ENGRAMD_BASE_GGUF": str(made.base_gguf or ""),
        "ENGRAMD_EXPORT": json.dumps({"form": made.told.form, "quantisation": made.told.quantisation}),
    }

def names_decided(world: World, host: str) -> dict[str, tuple[bool, str]]:
    """name: (whether it stays, why), of all names that we gave there."""
    db, serve = world.db, world.settings.serve
    rows = {line: row for line, row in serving.lines(db).items() if row["host"] == host}
    wanted = {line: head["version"] for line, head in jobs.heads(db).items()}
    aliases = {serve.alias(world.name, line) for line in {*rows, *wanted}}
    names = serving.names_at(db, host)
    found = served.decide(names.values(), rows, wanted, aliases, serve.keep_tags)
    for name, (keep, _) in found.items():
        if names[name]["kind"] == "base" and not keep and (others := _users_of(world, name)):
            found[name] = (True, f"below versions of {', '.join(others)}")
    return found


def _users_of(world: World, base: str) -> list[str]:
    """Other profiles that serve from this base, for which it would have to be imported again."""
    top, start = bases_of(world), base.removeprefix(f"{_BASE}-").partition("-")[0]
    return sorted({one for path in top.glob(f"{start}*/base-*.gguf") for one in bases.others(path, world.name)})
