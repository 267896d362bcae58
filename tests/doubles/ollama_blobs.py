"""What the stand-in for Ollama keeps on disk: blobs by their SHA-256, and one manifest for each model.

Laid out as Ollama's own folder: `blobs/sha256-<hex>` and `manifests/registry.ollama.ai/<library>/<model>/<tag>`.
A blob goes when the last model that names it is deleted or made anew; blobs that no model ever named go when the
server starts. Standard library only: it runs beside ollama_server.py, not as part of a package.
"""

import hashlib
import json
import mmap
import os
import re
import struct
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MODEL = "application/vnd.ollama.image.model"
ADAPTER = "application/vnd.ollama.image.adapter"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
PARAMETERS = "application/vnd.ollama.image.params"
CONFIG = "application/vnd.docker.container.image.v1+json"

DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
NAME = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_-]{0,79}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,79}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,79})?"
)
QUANTISES_TO = {"f32", "f16", "q4_k_s", "q4_k_m", "q8_0"}
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


class Refused(Exception):
    """An answer other than 200, in Ollama's words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


@dataclass(frozen=True)
class Gguf:
    """A GGUF file's header. Arrays among its values are left out; offsets are in bytes from the file's start."""

    values: dict[str, Any]
    version: int
    tensors: int
    count: int
    values_end: int
    infos_end: int

    @property
    def alignment(self) -> int:
        return int(self.values.get("general.alignment", 32))


def read_gguf(path: Path) -> Gguf:
    """The header of a GGUF file (version 2 or 3, little endian), read to its last tensor's name; Refused otherwise."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise Refused(400, "supplied file was not in GGUF format")
            return _header(data)
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise Refused(500, f"invalid file magic or broken GGUF header: {error}") from None


def _header(data: mmap.mmap) -> Gguf:
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    at, values = 24, {}
    for _ in range(count):
        name, at = _text(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        values[name], at = _value(data, at + 4, kind)
    values_end = at
    for _ in range(tensors):
        _, at = _text(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        at += 4 + 8 * dimensions + 4 + 8
    if at > len(data):
        raise ValueError("the file ends too early")
    return Gguf({k: v for k, v in values.items() if v is not None}, version, tensors, count, values_end, at)


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    if at + 8 + length > len(data):
        raise ValueError("the file ends too early")
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == 8:
        return _text(data, at)
    if kind in _SCALARS:
        form = _SCALARS[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind != 9:
        raise ValueError(f"a value of kind {kind}")
    inner, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SCALARS:
        return None, at + length * struct.calcsize(_SCALARS[inner])
    for _ in range(length):  # texts, or arrays in an array
        at = _value(data, at, inner)[1]
    return None, at


def model_name(name: object) -> str:
    """`model:tag`, as Ollama lists it; without a tag it is `latest`."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refused(400, "invalid model name")
    return name if ":" in name else f"{name}:latest"


class Store:
    """Models by their name. Every change of a manifest is one rename."""

    def __init__(self, folder: Path) -> None:
        self.blobs, self.manifests = folder / "blobs", folder / "manifests" / "registry.ollama.ai"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self._remove(path.name for path in self.blobs.iterdir())

    def blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise Refused(400, "invalid digest format")
        return self.blobs / digest.replace(":", "-")

    def put(self, content: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        temporary = self.blobs / f"{digest[7:]}-put-{threading.get_ident()}"
        temporary.write_bytes(content)
        temporary.rename(self.blob(digest))
        return digest

    def names(self) -> list[str]:
        found = (path.relative_to(self.manifests).parts for path in self.manifests.glob("*/*/*"))
        return sorted(
            f"{'' if space == 'library' else space + '/'}{model}:{tag}" for space, model, tag in found
        )

    def path(self, name: str) -> Path:
        model, _, tag = model_name(name).partition(":")
        space, _, model = model.rpartition("/")
        return self.manifests / (space or "library") / model / tag

    def manifest(self, name: str) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(self.path(name).read_bytes())
        except FileNotFoundError:
            raise Refused(404, f"model '{name}' not found") from None
        return manifest

    def layers(self, name: str) -> dict[str, list[str]]:
        """The digests of a model's layers by their kind."""
        found: dict[str, list[str]] = {}
        for layer in self.manifest(name)["layers"]:
            found.setdefault(layer["mediaType"], []).append(layer["digest"])
        return found

    def text(self, name: str, kind: str, default: str = "") -> str:
        digests = self.layers(name).get(kind)
        return self.blob(digests[0]).read_text() if digests else default

    def parameters(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text(name, PARAMETERS, "{}"))
        return found

    def header(self, name: str) -> Gguf:
        return read_gguf(self.blob(self.layers(name)[MODEL][0]))

    def listed(self, name: str) -> dict[str, Any]:
        """A model as /api/tags has it."""
        manifest, path = self.manifest(name), self.path(name)
        config = json.loads(self.blob(manifest["config"]["digest"]).read_bytes())
        return {
            "name": name,
            "model": name,
            "modified_at": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(),
            "size": sum(layer["size"] for layer in manifest["layers"]),
            "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
            "details": {"parent_model": "", "format": "gguf", "family": config["model_family"],
                        "families": [config["model_family"]], "parameter_size": "1M",
                        "quantization_level": config["file_type"]},
        }  # fmt: skip

    def write(self, name: str, layers: list[tuple[str, str]]) -> None:
        """Names these (kind, digest) as the model's layers; what only its forerunner named goes."""
        header = read_gguf(self.blob(next(digest for kind, digest in layers if kind == MODEL)))
        config = self.put(
            json.dumps(
                {
                    "model_format": "gguf",
                    "model_family": header.values.get("general.architecture", "unknown"),
                    "file_type": str(header.values.get("general.file_type", "unknown")),
                }
            ).encode()
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": self._layer(CONFIG, config),
            "layers": [self._layer(kind, digest) for kind, digest in layers],
        }
        with self.lock:
            before = self._digests(self.path(name))
            self._rename(self.path(name), json.dumps(manifest).encode())
            self._remove(before)

    def _layer(self, kind: str, digest: str) -> dict[str, Any]:
        return {"mediaType": kind, "digest": digest, "size": self.blob(digest).stat().st_size}

    @staticmethod
    def _rename(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parents[4] / f"manifest-{os.getpid()}-{threading.get_ident()}"
        temporary.write_bytes(content)
        temporary.rename(path)

    def copy(self, source: str, destination: str) -> None:
        with self.lock:
            self.manifest(source)
            self._rename(self.path(destination), self.path(source).read_bytes())

    def delete(self, name: str) -> None:
        with self.lock:
            self.manifest(name)
            gone = self._digests(self.path(name))
            self.path(name).unlink()
            if not any(self.path(name).parent.iterdir()):
                self.path(name).parent.rmdir()
            self._remove(gone)

    @staticmethod
    def _digests(path: Path) -> set[str]:
        if not path.exists():
            return set()
        manifest = json.loads(path.read_bytes())
        return {layer["digest"].replace(":", "-") for layer in [manifest["config"], *manifest["layers"]]}

    def _remove(self, blobs: Any) -> None:
        """Of these blobs, by file name, those that no model names."""
        with self.lock:
            named = set().union(*(self._digests(path) for path in self.manifests.glob("*/*/*")))
            for name in set(blobs) - named:
                (self.blobs / name).unlink(missing_ok=True)

    def rewritten(self, digest: str) -> str:
        """The same GGUF with one value more, as Ollama writes imported ones anew: another digest, equal tensors."""
        source = self.blob(digest)
        header, data = read_gguf(source), source.read_bytes()
        if "standin.rewritten" in header.values:
            return digest
        key = b"standin.rewritten"
        values = data[24 : header.values_end] + struct.pack("<Q", len(key)) + key + struct.pack("<IB", 7, 1)
        head = b"GGUF" + struct.pack("<IQQ", header.version, header.tensors, header.count + 1)
        head += values + data[header.values_end : header.infos_end]
        step = header.alignment
        start = -(-header.infos_end // step) * step
        return self.put(head + b"\0" * (-len(head) % step) + data[start:])
