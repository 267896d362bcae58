"""`model-registry.json`: the ledger's versions for people and jq, with the fields of the origin. Never read back."""

import json
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.ledger import Database, jobs
from trainer import names


def mirror(db: Database, *, base_model: str, chains: Path) -> dict[str, Any]:
    """What the file holds. Keys of the first two levels that are camel or snake are the origin's own."""
    head = jobs.get_head(db)
    current = _checkpoint(chains, head["chain"], head["step"]) if head else base_model
    return {
        "original_base_model": base_model,
        "current_base_model": current,
        "model_type": "local" if head else "huggingface",
        "head": head,
        "training_history": [_version(db, row, base_model, chains) for row in jobs.versions(db)],
    }


def write(path: Path, told: dict[str, Any]) -> bool:
    """Replace the file where it differs. Gives whether it did."""
    content = json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"
    if path.is_file() and path.read_bytes() == content:
        return False
    durable.write_atomic(path, content)
    return True


def version(db: Database, number: int, *, base_model: str, chains: Path) -> dict[str, Any] | None:
    """One entry of `training_history`."""
    row = jobs.version(db, number)
    return None if row is None else _version(db, row, base_model, chains)


def _version(db: Database, row: dict[str, Any], base_model: str, chains: Path) -> dict[str, Any]:
    job = jobs.get(db, row["job"]) or {}
    result = json.loads(job.get("result") or "{}")
    parent = jobs.version(db, row["parent"]) if row["parent"] else None
    key = jobs.chain_key(db, row["chain"]) or {}
    return {
        "version": row["id"],
        "run_id": str(row["job"]),
        "timestamp": row["created_at"],
        "base_model_used": _checkpoint(chains, parent["chain"], parent["step"]) if parent else base_model,
        "output_model_path": _checkpoint(chains, row["chain"], row["step"]),
        "gguf_path": None,
        "samples_trained": job.get("samples"),
        "training_success": row["state"] in ("promoted", "undone"),
        "state": row["state"],
        "decision": row["reason"],
        "decided_at": row["decided_at"],
        "parent": row["parent"],
        "chain": row["chain"],
        "step": row["step"],
        "method": key.get("method"),
        "checkpoint_sha256": row["checkpoint_sha256"],
        "spec_sha256": job.get("spec_sha256"),
        "memories": jobs.uses_of(db, row["job"]),
        "loss": result.get("last_loss"),
        "metrics": result.get("metrics"),
        "steps": job.get("steps"),
        "tokens": result.get("tokens"),
        "started_at": job.get("started_at"),
        "finished_at": job.get("finished_at"),
    }


def _checkpoint(chains: Path, chain: int, step: int) -> str:
    return str(chains / str(chain) / f"{names.CHECKPOINT_PREFIX}{step}")
