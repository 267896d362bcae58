"""`model-registry.json`: the ledger's versions for people and jq, with the fields of the origin. Never read back."""

import json
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.ledger import Database, jobs
from trainer import names


def mirror(db: Database, *, base_model: str, chains: Path) -> dict[str, Any]:
    """What the file holds; the first keys of the whole and of each entry are the origin's. Three queries, however many
    versions there are: it is written at each promotion."""
    head = jobs.get_head(db)
    rows = {row["id"]: row for row in jobs.versions_with_jobs(db)}
    uses = jobs.uses_by_job(db)
    methods = {row["id"]: json.loads(row["key"]).get("method") for row in jobs.chains(db)}
    return {
        "original_base_model": base_model,
        "current_base_model": _checkpoint(chains, head["chain"], head["step"]) if head else base_model,
        "model_type": "local" if head else "huggingface",
        "head": head,
        "training_history": [
            _version(
                row, rows.get(row["parent"]), uses.get(row["job"], {}), methods.get(row["chain"]), base_model, chains
            )
            for row in rows.values()
        ],
    }


def write(path: Path, told: dict[str, Any]) -> bool:
    """Replace the file where it differs. Gives whether it did."""
    content = json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"
    if path.is_file() and path.read_bytes() == content:
        return False
    durable.write_atomic(path, content)
    return True


def _version(
    row: dict[str, Any], parent: dict[str, Any] | None, uses: dict[str, int], method: str | None, base_model: str,
    chains: Path,
) -> dict[str, Any]:  # fmt: skip
    result = json.loads(row["result"] or "{}")
    return {
        "version": row["id"],
        "run_id": str(row["job"]),
        "timestamp": row["created_at"],
        "base_model_used": _checkpoint(chains, parent["chain"], parent["step"]) if parent else base_model,
        "output_model_path": _checkpoint(chains, row["chain"], row["step"]),
        "gguf_path": None,
        "samples_trained": row["samples"],
        "training_success": row["state"] in ("promoted", "undone"),
        "state": row["state"],
        "decision": row["reason"],
        "decided_at": row["decided_at"],
        "parent": row["parent"],
        "chain": row["chain"],
        "step": row["step"],
        "method": method,
        "checkpoint_sha256": row["checkpoint_sha256"],
        "spec_sha256": row["spec_sha256"],
        "memories": uses,
        "cycle": json.loads(row["cycle"]) if row["cycle"] else None,
        "loss": result.get("last_loss"),
        "metrics": result.get("metrics"),
        "steps": row["steps"],
        "tokens": result.get("tokens"),
        "started_at": row["started_at"],
        "finished_at": row["finished_at"],
    }


def _checkpoint(chains: Path, chain: int, step: int) -> str:
    return str(chains / str(chain) / f"{names.CHECKPOINT_PREFIX}{step}")
