"""A profile of the origin system (MetaHuman OS): what each path of it is, what is taken, and why the rest is left.

Judged by the path alone, relative to the profile's folder; what a file really holds, the readers say. Every path
has an answer: a kind of what is read, or the reason why it is not.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple
from zlib import crc32

from daemon.rules.duplicates import words_of

Kind = Literal[
    "memories", "tasks", "transcripts", "notes", "interviews", "curated", "datasets", "settings", "registry", "other"
]
# In this order they are read and handed over: what was recorded wins over what was made of it later.
READ: tuple[Kind, ...] = ("memories", "tasks", "transcripts", "notes", "interviews", "curated", "datasets")
DERIVED: frozenset[Kind] = frozenset(("curated", "datasets"))
DEEPEST = 30  # folders; the inbox looks 32 deep


class Place(NamedTuple):
    """What lies at a path; with a reason it is left."""

    kind: Kind
    reason: str = ""


_PACKAGES = frozenset(("node_modules", "__pycache__", "venv", "site-packages", "bower_components"))
_CACHES = frozenset(("cache", "caches", "tmp", "temp"))
_HALF_WRITTEN = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".swo", ".bak", ".orig", ".lock", "~")
_WEIGHTS = frozenset(("safetensors", "gguf", "ggml", "bin", "pt", "pth", "ckpt", "onnx", "npy", "npz", "h5"))
_MEDIA = frozenset((
    "wav", "mp3", "m4a", "ogg", "oga", "opus", "flac", "aac", "webm", "mp4", "mov", "mkv", "avi", "jpg", "jpeg", "png",
    "gif", "webp", "heic", "svg", "ico", "bmp", "pdf", "doc", "docx", "xls", "xlsx", "ppt", "pptx",
))  # fmt: skip
_STORES = frozenset(("db", "sqlite", "sqlite3", "db-wal", "db-shm", "faiss", "index", "parquet", "arrow", "pkl"))
_PACKED = frozenset(("zip", "gz", "tgz", "tar", "7z", "rar", "xz", "bz2", "zst"))
_CODE = frozenset(("ts", "tsx", "js", "mjs", "cjs", "py", "sh", "svelte", "css", "html", "map", "vue"))
_DATASETS = frozenset((
    "fine_tune_dataset.jsonl", "curated_memories.json", "formatted_samples.json", "schema_applied.json",
))  # fmt: skip
_RUN_FILES = frozenset(("run-summary.json", "modelfile", "trainer_state.json", "metadata.json", "status.json"))
_YEAR = re.compile(r"(?:19|20)\d\d")
_TOP = {  # folders of a profile that hold no memory
    "persona": "it says who the persona is and is no memory: [curation] system_prompt may say it here",
    "logs": "a log, no memory",
    "state": "the running state of the origin, no memory",
    "run": "the running state of the origin, no memory",
    "etc": "a setting of the origin that has no counterpart here",
}
_IN_MEMORY = {  # folders of `memory/` that hold no memory
    "index": "an index, which was made of the memories",
    "vector": "an index, which was made of the memories",
    "embeddings": "an index, which was made of the memories",
    "functions": "a program that the origin learnt to call, no memory",
}
_ARCHIVED = "the origin has made memories of it already: engramd add takes it all the same"
_MACHINES = "a text that the origin wrote for itself, no memory of the person: engramd add takes it all the same"
_TEXTS = frozenset(("md", "markdown", "txt"))
_ELSEWHERE = "no place where memories lie: engramd add takes it, if it is one"


def base_of(names: Iterable[str], name: str) -> str | None:
    """Where in a profile the folder lies that was named, by what is in it: "" where it is the profile itself,
    "memory/" or "memory/episodic/" for a part of it; None where it is none of these."""
    found = set(names)
    if "memory" in found:
        return ""
    if "episodic" in found:
        return "memory/"
    if name == "episodic" or any(_YEAR.fullmatch(one) for one in found):
        return "memory/episodic/"
    known = {"persona", "out", "model-registry.json", "training.json"} | _DATASETS
    return "" if found & known else None


def why_not_entered(path: str) -> str:
    """Why a folder is not looked into, file by file; empty where it is."""
    name = posixpath.basename(path)
    if name in _PACKAGES:
        return "packages of a program"
    if name.lower() in (".git", ".svn", ".hg"):
        return "the history of a version control"
    if name.startswith("."):
        return "a hidden folder of a program"
    if name.lower() in _CACHES and not path.startswith("memory/episodic/"):
        return "a cache"
    if path == "profiles":
        return "profiles of other people: each is imported by itself, with its own --profile"
    return ""


def place_of(path: str) -> Place:
    """What the file at this path of a profile is ("/" between its parts)."""
    name = posixpath.basename(path).lower()
    suffix = name.rpartition(".")[2] if "." in name else ""
    if reason := _by_name(name, suffix):
        return Place("other", reason)
    if path in ("etc/training.json", "training.json"):
        return Place("settings")
    if name == "model-registry.json":
        return Place("registry")
    if name.endswith(".jsonl") and path.startswith(("logs/", "state/", "run/")):
        return Place("other", "a log, no memory")
    if name in _DATASETS:
        return Place("datasets")
    folders = path.split("/")[:-1]
    if folders[:1] == ["memory"]:
        return _in_memory(folders[1:], suffix)
    if any(one.startswith("voice") for one in folders):
        return Place("other", "a voice's training, no text")
    if folders[:1] == ["out"] or not folders:
        return _of_a_run(name, suffix)
    if folders[:2] in (["persona", "therapy"], ["persona", "interviews"]) and name != "index.json":
        return Place("interviews")
    return Place("other", _TOP.get(folders[0], _ELSEWHERE))


def _by_name(name: str, suffix: str) -> str:
    """What a name alone decides, wherever the file lies."""
    if suffix == "enc":
        return "it is encrypted: have the origin decrypt it, then import again"
    if name.startswith((".", "~$")) or name in ("thumbs.db", "desktop.ini"):
        return "a hidden file of a program"
    if name.endswith(_HALF_WRITTEN):
        return "a temporary or half-written file"
    if suffix in _WEIGHTS:
        return "weights, which are not taken over"
    if suffix in _MEDIA:
        return "a picture, sound, video or document, no text"
    if suffix in _STORES:
        return "a database or an index, no text"
    if suffix in _PACKED:
        return "an archive: unpack it, or engramd add takes a zip as it is"
    if suffix in _CODE:
        return "a program or a part of a web page"
    if name.startswith(("readme", "license", "changelog")):
        return "a word about the files, no memory"
    return "a log, no memory" if suffix == "log" else ""


def _in_memory(folders: list[str], suffix: str) -> Place:
    where = folders[0] if folders else ""
    if where in _IN_MEMORY:
        return Place("other", _IN_MEMORY[where])
    if folders[:2] == ["inbox", "_archive"]:
        return Place("other", _ARCHIVED)
    if where in ("curiosity", "procedural") and (suffix in _TEXTS or folders[1:2] == ["research"]):
        return Place("other", _MACHINES)
    if "curated" in folders:
        return Place("curated")
    if where == "tasks":
        return Place("tasks")
    if where == "audio":
        return Place("transcripts")
    return Place("memories" if where == "episodic" else "notes")


def _of_a_run(name: str, suffix: str) -> Place:
    """In `out/`, or beside the folders of the profile."""
    if suffix in ("jsonl", "ndjson"):
        return Place("datasets")
    if name in _RUN_FILES or name.startswith(("adapter_", "tokenizer", "config", "vocab", "generation_", "special_")):
        return Place("other", "belongs to a trained model, and no weights are taken over")
    return Place("other", _ELSEWHERE)


# ---- what was made of something else ---------------------------------------------------------------


_RUN = 8  # words
_SHARE = 0.8  # of the runs of a text that must be known


class Told:
    """What was said already: knows a text again that was cut out of a longer one, or lost its beginning.

    Of each text its runs of eight words are remembered by hash (about 70 bytes a word). Shorter texts count as
    the same only together with what was asked.
    """

    def __init__(self) -> None:
        self._runs: set[int] = set()
        self._wholes: set[int] = set()

    def add(self, content: str, response: str | None) -> None:
        asked, answered = words_of(content), words_of(response or "")
        self._runs |= _runs(asked) | _runs(answered)
        self._wholes.add(_whole(asked, answered))
        self._wholes.add(_whole(answered, asked))  # the origin turns pairs of mode dual round

    def holds(self, content: str, response: str | None) -> bool:
        asked, answered = words_of(content), words_of(response or "")
        if _whole(asked, answered) in self._wholes:
            return True
        learnt = answered or asked
        if answered and _whole(answered, []) in self._wholes:  # under a stock question
            return True
        runs = _runs(learnt)
        return bool(runs) and len(runs & self._runs) >= _SHARE * len(runs)


def text_key(content: str, response: str | None) -> int:
    """64 bits of the words of a memory, the same in every process."""
    return _whole(words_of(content), words_of(response or ""))


def _whole(asked: list[str], answered: list[str]) -> int:
    data = "\0".join((" ".join(asked), " ".join(answered))).encode("utf-8", "replace")
    return crc32(data) << 32 | crc32(data[::-1])


def _runs(words: list[str]) -> set[int]:
    return {crc32(" ".join(words[at : at + _RUN]).encode("utf-8", "replace")) for at in range(len(words) - _RUN + 1)}


def curated_key(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """(id, time) by which a curated item names the memory that it was made of; ids alone collide."""
    id_, time = item.get("id"), item.get("originalTimestamp", item.get("timestamp"))
    return (id_, time) if isinstance(id_, str) and isinstance(time, str) else None


# ---- settings and registry -------------------------------------------------------------------------


class Differs(NamedTuple):
    """One key of the origin's training.json that is another one here, or none."""

    key: str  # as it stands in the file
    setting: str  # as it is called here; empty: there is none
    theirs: Any
    here: Any
    problem: str = ""  # why it cannot be taken over


_REMARKS = ("comment", "notes")


def settings_that_differ(
    theirs: Mapping[str, Any], training: Mapping[str, Any], cycle: Mapping[str, Any]
) -> list[Differs]:
    """The origin's training.json against the values in force here, in the order of the file."""
    found = []
    for key, value in theirs.items():
        section, here = ("training", training) if key in training else ("cycle", cycle)
        if key in _REMARKS or (key in here and _same(here[key], value)):
            continue
        if key not in here:
            found.append(Differs(key, "", value, None, "there is no such setting here"))
            continue
        problem = "the origin's own weights are not taken over" if key == "base_model" and _is_path(value) else ""
        found.append(Differs(key, f"{section}.{key}", value, here[key], problem))
    return found


def _same(here: Any, theirs: Any) -> bool:
    return bool(here == theirs) and isinstance(here, bool) == isinstance(theirs, bool)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", ".", "~", "profiles/", "out/")) or value.count("/") > 1)


def history_of(registry: Any) -> dict[str, Any] | None:
    """{"original_base_model", "current_base_model", "versions": [...]} of a model-registry.json; None if it is none."""
    if not isinstance(registry, Mapping) or not isinstance(registry.get("training_history", []), list):
        return None
    if not {"training_history", "original_base_model", "current_base_model"} & set(registry):
        return None
    keys = ("version", "timestamp", "base_model_used", "samples_trained", "training_success")
    versions = [
        {key: run.get(key) for key in keys} for run in registry.get("training_history", []) if isinstance(run, Mapping)
    ]
    return {
        "original_base_model": registry.get("original_base_model"),
        "current_base_model": registry.get("current_base_model"),
        "versions": versions,
    }
