"""What runs OVER THERE, sent through ssh's standard input at each call: nothing of it needs to be installed.

This, and the modules of this package that it imports, use the standard library only. A call is `main(json)`; answers
are lines of JSON. `line.py` puts the program together.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from daemon.compute import following, guarding
from daemon.compute.ground import (
    RUN,
    Told,
    beat,
    files_of,
    is_locked,
    job_of,
    leave,
    place_of,
    read,
    root_of,
    say,
    sha256_of,
    sync,
    tree_sha256,
    write,
)  # fmt: skip

STORES = ("code", "bases", "checkpoints", "environments")
UNUSED_DAYS = {"code": 30, "environments": 90, "bases": 90}
LEFT_DAYS = 30  # a job's folder that nobody asked for so long
# What we name so; compute.ssh.folder may be one where others have a `code` or `checkpoints` too: theirs stays.
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?|[0-9a-f]{40}-[0-9a-f]{12}")


def hello(told: Told) -> None:
    """Is this machine fit, what of the job is there already, and how far did the job get?"""
    root = root_of(told)
    for kind in (*STORES, "jobs"):
        os.makedirs(os.path.join(root, kind), mode=0o700, exist_ok=True)  # with its parents: umask 077
    there = {kind: [key for key in told["keys"].get(kind, ()) if _is_there(told, kind, key)] for kind in STORES}
    job = job_of(told)
    free = os.statvfs(root)
    say({
        "folder": root, "python": sys.version.split()[0], "free": free.f_bavail * free.f_frsize,
        "rsync": shutil.which("rsync") is not None, "there": there, "running": is_locked(os.path.join(job, "lock")),
        "missing": [one for one in told["modules"] if importlib.util.find_spec(one) is None],
        "laid": bool(read(os.path.join(job, RUN, "laid.json"))), "steps": _steps(job),
    })  # fmt: skip


def _is_there(told: Told, kind: str, key: str) -> bool:
    path = place_of(told, kind, key)
    if not os.path.exists(os.path.join(path, "ready") if kind == "environments" else path):
        return False
    os.utime(path)  # it is in use
    return True


def _steps(job: str) -> list[int]:
    """Of the checkpoints that this job has here."""
    names = os.listdir(job) if os.path.isdir(job) else []
    ends = [one[len("checkpoint-") :] for one in names if one.startswith("checkpoint-")]
    return sorted(int(one) for one in ends if one.isdigit())


def keep(told: Told) -> None:
    """What was sent as KEY.part gets its name, if it is what it is called."""
    path = place_of(told, told["kind"], told["key"])
    wrong = None if os.path.isdir(path) else _wrong(told, path + ".part")
    if wrong:
        shutil.rmtree(path + ".part", ignore_errors=True)
    elif not os.path.isdir(path):
        for name in files_of(path + ".part"):
            sync(os.path.join(path + ".part", name))
        os.rename(path + ".part", path)
        sync(os.path.dirname(path))
    say({"wrong": wrong})


def _wrong(told: Told, part: str) -> str | None:
    kind, key = told["kind"], told["key"]
    if kind == "code":
        return None if tree_sha256(part, files_of(part)) == key else "the trainer's code"
    if kind == "bases":
        sys.path.insert(0, place_of(told, "code", told["code"]))
        from trainer import base_files

        return None if base_files.fingerprint(Path(part)) == key else "the base model"
    manifest = os.path.join(part, "manifest.json")
    if not os.path.exists(manifest) or sha256_of(manifest) != key:
        return "the manifest of a checkpoint"
    for name, one in read(manifest).get("files", {}).items():
        file = os.path.join(part, os.path.basename(name))
        if not os.path.exists(file) or sha256_of(file) != one["sha256"]:
            return f"{name} of a checkpoint"
    return None


def lay(told: Told) -> None:
    """The job's folder as the trainer wants it: checkpoints by hard links; files that are at home no more go."""
    job = job_of(told)
    if is_locked(os.path.join(job, "lock")):
        say({"running": True})
        return
    for name, key in told["links"].items():
        target = os.path.join(job, name)
        if not os.path.isdir(target):
            temporary = os.path.join(job, ".tmp-" + name)
            shutil.rmtree(temporary, ignore_errors=True)
            _link(place_of(told, "checkpoints", key), temporary)
            manifest = os.path.join(temporary, "manifest.json")
            if not os.path.exists(manifest):  # removed by the end of another home's job, a moment ago
                say({"wrong": name})
                return
            os.rename(temporary, target)
    for name in told["absent"]:
        if os.path.lexists(os.path.join(job, name)):
            os.unlink(os.path.join(job, name))
    if sha256_of(os.path.join(job, "spec.json")) != told["spec"]:
        say({"wrong": "spec.json"})
        return
    os.makedirs(os.path.join(job, RUN), exist_ok=True)
    write(os.path.join(job, RUN, "laid.json"), {"spec": told["spec"]})
    say({"running": False})


def _link(source: str, target: str) -> None:
    os.makedirs(target)
    for name in files_of(source):
        try:
            os.link(os.path.join(source, name), os.path.join(target, name))
        except OSError:  # a file system without links
            shutil.copy2(os.path.join(source, name), os.path.join(target, name))


def finish(told: Told) -> None:
    """The last checkpoint is kept for the next job; what is home, and what is old, goes."""
    job = job_of(told)
    if told["done"] and not is_locked(os.path.join(job, "lock")):
        for step in _steps(job)[-1:]:
            _store(told, os.path.join(job, f"checkpoint-{step}"))
        shutil.rmtree(job, ignore_errors=True)
    tidy(root_of(told), told["keep"])
    say({})


def _store(told: Told, checkpoint: str) -> None:
    manifest = os.path.join(checkpoint, "manifest.json")
    target = place_of(told, "checkpoints", sha256_of(manifest)) if os.path.exists(manifest) else checkpoint
    if not os.path.isdir(target):
        shutil.rmtree(target + ".part", ignore_errors=True)
        _link(checkpoint, target + ".part")
        os.rename(target + ".part", target)
    os.utime(target)


def tidy(root: str, keep_checkpoints: int) -> None:
    now = time.time()
    _prune(os.path.join(root, "checkpoints"), lambda place, age: place >= keep_checkpoints)
    for kind, days in UNUSED_DAYS.items():
        _prune(os.path.join(root, kind), lambda place, age: age > days * 86_400, now)  # noqa: B023 (called at once)
    _prune(os.path.join(root, "jobs"), lambda place, age: age > LEFT_DAYS * 86_400, now)


def _prune(folder: str, goes: Callable[[int, float], bool], now: float = 0.0) -> None:
    """Remove folders by their place in the order of last use, the newest is 0, and their age; none that is at work."""
    found = []
    for name in filter(_OURS.fullmatch, os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not (name.endswith(".part") and time.time() - os.stat(path).st_mtime < 86_400):
            found.append((os.stat(path).st_mtime, path))
    for place, (used, path) in enumerate(sorted(found, reverse=True)):
        if goes(place, now - used) and not is_locked(os.path.join(path, "lock")):
            shutil.rmtree(path, ignore_errors=True)


SLOW = ("keep", "lay", "finish")  # where they hash, copy or remove large files
VERBS = {
    "hello": hello, "keep": keep, "lay": lay, "finish": finish,
    "environment": guarding.environment, "begin": guarding.begin, "halt": guarding.halt, "watch": following.watch,
}  # fmt: skip


def main(text: str) -> None:
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a watch whose line is gone just ends
    told = json.loads(text)
    slow = told["verb"] in SLOW
    if slow:
        beat()
    try:
        VERBS[told["verb"]](told)
    except OSError as error:
        say({"error": f"{error.strerror}: {error.filename}"})
    if slow:
        leave()
