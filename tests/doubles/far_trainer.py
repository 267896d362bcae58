"""The fake trainer as it is started on another machine: its checkpoints have every file that one must have.

What comes home is judged, so these are real safetensors and archives as torch.save writes them, made without torch.
In the job's folder over there nobody can put a `fault`: ~/faults holds them, as fake_trainer reads them.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # behind the trainer's code that was sent

from tests.doubles import fake_trainer
from trainer import base_files, names


def safetensors(data: bytes) -> bytes:
    header = json.dumps({"weights": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def archive(content: Any) -> bytes:
    """As torch.save writes a dictionary without tensors."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in (("data.pkl", pickle.dumps(content, 2)), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return buffer.getvalue()


class Job(fake_trainer.Job):
    def __init__(self, folder: Path, alive: int | None) -> None:
        super().__init__(folder, alive)
        faults = Path.home() / "faults"
        if faults.exists():
            self.faults = dict((line.split(":", 1) + [""])[:2] for line in faults.read_text().split() if line)
        size = int(self.faults.get("bytes", 0))
        self.padding = hashlib.shake_256(b"padding").digest(size)  # nothing that could be packed

    def start(self) -> dict[str, Any]:
        """State and base of what the job starts from."""
        parent = self.folder / names.PARENT
        if not self.spec.parent:
            return {"global_step": 0, "chain_seed": self.spec.seed}
        found: dict[str, Any] = json.loads((parent / names.STATE).read_text())
        return found

    def save(self, step: int, job_step: int, weights: str) -> str:
        before, spec = self.start(), hashlib.sha256(self.raw).hexdigest()
        state = {
            "global_step": step, "start_step": before["global_step"], "segment": 0, "step_in_segment": 0,
            "samples_seen": 1, "tokens": 1, "chain_seed": before["chain_seed"], "optimizer_family": "adamw_torch",
            "chain_key": self.spec.recipe.chain_key(), "spec_sha256": spec, "job_step": job_step, "weights": weights,
        }  # fmt: skip
        data = {
            names.STATE: json.dumps(state).encode(),
            names.ADAPTER_WEIGHTS: safetensors(weights.encode() + self.padding),
            names.ADAPTER_CONFIG: b"{}", names.OPTIMIZER: archive({"family": "adamw_torch", "state": {}}),
            names.SCHEDULER: archive({}), names.RNG: archive({}), names.EMA: safetensors(weights.encode()),
        }  # fmt: skip
        told = {
            "files": {name: {"sha256": hashlib.sha256(one).hexdigest(), "size": len(one)}
                      for name, one in data.items()},
            "spec_sha256": spec, "parent": self.spec.parent,
            "base_fingerprint": base_files.fingerprint(base_files.resolve(self.spec.recipe.base_model)),
        }  # fmt: skip
        name = f"{names.CHECKPOINT_PREFIX}{step}"
        temporary, target = self.folder / f".tmp-{name}", self.folder / name
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for file, one in {**data, names.MANIFEST: json.dumps(told, sort_keys=True).encode()}.items():
            (temporary / file).write_bytes(one)
            (temporary / file).chmod(0o400)
        if "lie" in self.faults:  # what is in the file is not what its manifest says
            (temporary / names.ADAPTER_WEIGHTS).chmod(0o600)
            (temporary / names.ADAPTER_WEIGHTS).write_bytes(safetensors(b"x" * len(weights.encode() + self.padding)))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(temporary, target)
        return hashlib.sha256((target / names.MANIFEST).read_bytes()).hexdigest()


fake_trainer.Job = Job  # type: ignore[misc]

if __name__ == "__main__":
    raise SystemExit(fake_trainer.main())
