"""Where a base model's files lie on this disk, and what identifies them. Standard library only.

Nothing is ever downloaded here: `engramd base fetch NAME` does that, on request of a person.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

BUILTIN_PREFIX = "builtin:"
FOLDER_VARIABLE = "ENGRAMD_BASE_FOLDER"
BLOCK = 64 * 1024  # bytes
BLOCKS = 64  # read from each weight file

_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


class BaseMissing(Exception):
    """The base model is not on this disk. The message is one sentence that says how to bring it."""


def resolve(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of base model `name`: `builtin:tiny`, a folder, or a hub id in the Hugging Face cache. On a machine
    that a job was sent to, ENGRAMD_BASE_FOLDER names where it was put.

    Raises BaseMissing where the folder, its `config.json` or any of its weight files is not there.
    """
    environ = os.environ if environ is None else environ
    if environ.get(FOLDER_VARIABLE):
        folder = Path(environ[FOLDER_VARIABLE])
    elif name.startswith(BUILTIN_PREFIX):
        folder = _builtin(name.removeprefix(BUILTIN_PREFIX))
    elif _looks_like_a_path(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise BaseMissing(f"base model {name}: there is no such folder")
    else:
        folder = _snapshot(name, environ)
    problem = _incomplete(folder)
    if problem is not None:
        raise BaseMissing(f"base model {name}: {problem}{_hint(name)}")
    return folder


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) that identifies a base model without reading all of it: 28 GB take under a second.

    It covers the whole config and tokenizer files, and of each weight file its name, size, safetensors
    header and 64 evenly spaced blocks of 64 KiB. Names of folders and dates have no part in it.
    """
    digest = hashlib.sha256()
    names = [name for name in ("config.json", *_TOKENIZER_FILES) if (folder / name).is_file()]
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for offset, length in _spots(file.read(8), size, path.suffix == ".safetensors"):
                file.seek(offset)
                digest.update(file.read(length))
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold weights, by name: safetensors where there are any, else torch's own."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    return []


def _spots(start: bytes, size: int, has_header: bool) -> list[tuple[int, int]]:
    """Offsets and lengths to hash: the header, then evenly spaced blocks; all of a small file."""
    if size <= BLOCK * BLOCKS:
        return [(0, size)]
    header = min(int.from_bytes(start, "little") + 8, size) if has_header else 0
    return [(0, header), *((i * (size - BLOCK) // (BLOCKS - 1), BLOCK) for i in range(BLOCKS))]


def _builtin(name: str) -> Path:
    root = Path(__file__).resolve().parent / "builtin"
    if name == "tiny":
        return root
    raise BaseMissing(f"base model builtin:{name}: the only one that ships with engramd is builtin:tiny")


def _looks_like_a_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.count("/") != 1 or Path(name).is_dir()


def _snapshot(name: str, environ: Mapping[str, str]) -> Path:
    """The snapshot that the cache's `refs/main` names, else the only one there is."""
    repository = hub_cache(environ) / ("models--" + name.replace("/", "--"))
    snapshots = repository / "snapshots"
    try:
        return snapshots / (repository / "refs" / "main").read_text().strip()
    except OSError:
        found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
        if len(found) == 1:
            return found[0]
    raise BaseMissing(f"base model {name} is not on this disk{_hint(name)}")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder of the Hugging Face cache, by the same variables as huggingface_hub reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return Path(environ[variable]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _incomplete(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json"
    weights = weight_files(folder)
    if not weights:
        return f"{folder} holds no weights"
    absent = _missing_shards(folder)
    return f"{absent} is missing in {folder}" if absent else None


def _missing_shards(folder: Path) -> str | None:
    """The name of a shard that the index lists and the folder lacks."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            listed = json.loads((folder / index).read_text())["weight_map"].values()
            return next((name for name in sorted(set(listed)) if not (folder / name).is_file()), None)
    return None


def _hint(name: str) -> str:
    local = name.startswith(BUILTIN_PREFIX) or _looks_like_a_path(name)
    return "" if local else f"; `engramd base fetch {name}` brings it"
