"""`model-registry.json`: the ledger's versions for people and jq, with the fields of the origin. Never read back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson

from daemon import durable
from daemon.ledger import Database, jobs, serving
from daemon.settings_learning import VersioningSettings
from trainer import names

MODELS = "models"  # below a profile: the files of each version, in v<N>/
_WEIGHTS = (names.ADAPTER_WEIGHTS, "model.safetensors")
_MOST_KNOWN = 20_000  # small tuples
_known: dict[Any, Any] = {}

T = TypeVar("T")


def mirror(
    db: Database, *, base_model: str, chains: Path, versioning: VersioningSettings | None = None
) -> dict[str, Any]:
    """What the file holds; the first keys of the whole and of each entry are the origin's. As many queries however
    many versions there are, and two looks at the disk for each: it is written at each promotion."""
    versioning = versioning or VersioningSettings()
    heads = jobs.heads(db)
    head = heads.get("")
    rows = {row["id"]: row for row in jobs.versions_with_jobs(db)}
    uses = jobs.uses_by_job(db)
    keys = {row["id"]: json.loads(row["key"]) for row in jobs.chains(db)}
    bases = {chain: str(key.get("base_model") or base_model) for chain, key in keys.items()}
    exports = serving.exports(db)
    original = next((bases[row["chain"]] for row in rows.values()), base_model)
    named = bases[head["chain"]] if head else base_model
    if head and versioning.auto_update_base and keys[head["chain"]].get("method") == "full":
        named = checkpoint(chains, head["chain"], head["step"])  # an adapter is no base: its chain keeps it
    return {
        "original_base_model": original,
        "current_base_model": named,
        "model_type": "local" if _is_local(named) else "huggingface",
        "head": head,
        "heads": heads,
        "training_history": [
            _version(row, rows.get(row["parent"]), uses.get(row["job"], {}), keys[row["chain"]], chains)
            | {"gguf_path": _gguf(chains.parent, exports.get(row["id"]))}
            for row in rows.values()
        ],
        "versioning": {"enabled": True, **versioning.model_dump()},
    }


def write(path: Path, told: dict[str, Any]) -> bool:
    """Replace the file where it differs. Gives whether it did."""
    content = orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)  # years are dumped each night
    if path.is_file() and path.read_bytes() == content:
        return False
    durable.write_atomic(path, content)
    return True


def line_of(told: dict[str, Any], version: int | None) -> list[dict[str, Any]]:
    """The entries of a mirror from this version down to the base, the newest first."""
    entries = {one["version"]: one for one in told["training_history"]}
    found: list[dict[str, Any]] = []
    while version in entries and (not found or version < found[-1]["version"]):
        found.append(entries[version])
        version = found[-1]["parent"]
    return found


def _gguf(root: Path, export: dict[str, Any] | None) -> str | None:
    """Where the GGUF of a version lies that was exported to be served."""
    if export is None:
        return None
    name = names.ADAPTER_GGUF if export["form"] == "adapter" else names.MODEL_GGUF
    return str(root / MODELS / f"v{export['version']}" / name)


def checkpoint(chains: Path, chain: int, step: int) -> str:
    return str(chains / str(chain) / f"{names.CHECKPOINT_PREFIX}{step}")


def summary(root: Path, version: int, folder: str) -> dict[str, Any]:
    """`run-summary.json` of a version, from its own folder or from that of its job; empty where neither is left."""
    for path in _summaries(root, version, folder):
        if found := _read(path):
            return found
    return {}


def _version(
    row: dict[str, Any], parent: dict[str, Any] | None, uses: dict[str, int], key: dict[str, Any], chains: Path
) -> dict[str, Any]:
    result = json.loads(row["result"] or "{}")
    facts = _facts(chains.parent, row["id"], row["folder"])
    roles = {**uses, "anchor": row["anchors"]} if row["anchors"] else uses
    promoted = row["state"] in ("promoted", "undone")
    place = Path(checkpoint(chains, row["chain"], row["step"]))
    if not promoted:  # its checkpoint never came into the chain
        place = chains.parent / "jobs" / row["folder"] / place.name
    used = str(key.get("base_model"))
    if parent and row["parent_sha256"]:  # else it began a chain from the base, whatever the head was
        used = checkpoint(chains, parent["chain"], parent["step"])
    return {
        "version": row["id"],
        "run_id": str(row["job"]),
        "timestamp": row["created_at"],
        "base_model_used": used,
        "output_model_path": str(place),
        "gguf_path": None,
        "samples_trained": row["samples"],
        "training_success": promoted,
        "state": row["state"],
        "decision": row["reason"],
        "decided_at": row["decided_at"],
        "despite": row["despite"],
        "gate": json.loads(row["gate"]) if row["gate"] else None,
        "line": row["line"],
        "parent": row["parent"],
        "chain": row["chain"],
        "step": row["step"],
        "method": key.get("method"),
        "weights": row["weights"],
        "checkpoint_sha256": row["checkpoint_sha256"],
        "spec_sha256": row["spec_sha256"],
        "recipe_sha256": facts[0],
        "dataset_sha256": facts[1],
        "memories": roles,
        "cycle": json.loads(row["cycle"]) if row["cycle"] else None,
        "loss": result.get("last_loss"),
        "metrics": result.get("metrics"),
        "steps": row["steps"],
        "tokens": result.get("tokens"),
        "sizes": _sizes(place),
        "frozen_at": row["frozen_at"],
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
        "seconds": result.get("seconds"),
    }


def recipe_sha256(recipe: dict[str, Any]) -> str:
    """SHA-256 (hex) of a recipe as canonical JSON: equal recipes have equal ones, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _summaries(root: Path, version: int, folder: str) -> tuple[Path, Path]:
    return root / MODELS / f"v{version}" / names.SUMMARY, root / "jobs" / folder / names.SUMMARY


def _facts(root: Path, version: int, folder: str) -> tuple[str | None, str | None]:
    """Hashes of the recipe and of the dataset."""
    for path in _summaries(root, version, folder):
        found = _once(_hashes, path)
        if found is not None:
            return found
    return None, None


def _sizes(folder: Path) -> dict[str, int] | None:
    """Bytes of a checkpoint and of the weights in it, as its manifest says; None where it was pruned."""
    found = _once(_bytes, folder / names.MANIFEST)
    return None if found is None else {"checkpoint_bytes": found[0], "weights_bytes": found[1]}


def _hashes(path: Path) -> tuple[str | None, str | None] | None:
    told = _read(path)
    return (recipe_sha256(told["recipe"]) if "recipe" in told else None, told.get("samples_sha256")) if told else None


def _bytes(path: Path) -> tuple[int, int] | None:
    files = _read(path).get("files")
    if not isinstance(files, dict):
        return None
    sizes = {name: int(one.get("size", 0)) for name, one in files.items()}
    weights = sum(size for name, size in sizes.items() if name in _WEIGHTS or name.startswith("model-"))
    return sum(sizes.values()), weights


def _once(look: Callable[..., T], path: Path) -> T | None:
    """What `look` finds in a file, looked up once for as long as the file stays the same: of years of nights only the
    newest is ever new."""
    try:
        status = path.stat()
    except OSError:
        return None
    key = (look, path, status.st_mtime_ns, status.st_size)
    if key not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = look(path)
    return cast("T | None", _known[key])


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of the disk; empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_local(model: str) -> bool:
    """Whether it is a folder on this disk or comes with the code, rather than a hub's `owner/name`."""
    return model.startswith(("builtin:", "/", "./", "../", "~"))
