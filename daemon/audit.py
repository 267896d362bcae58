"""The ledger against the disk: every disagreement in a sentence. Reads only, also beside a running daemon."""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.home import ProfilePaths
from daemon.ledger import Database, checks, jobs, serving
from trainer import names

_TEMPORARY = (".tmp-", durable.TEMP_PREFIX, durable.GONE_PREFIX)
_AT_WORK_SECONDS = 600.0  # a running daemon's temporary files are at most so old
_NUMBERED = re.compile(r"\.[0-9]+$")
_OPEN = ("frozen", "running", "finished")


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` and `subject` identify it over two looks; `problem` is the sentence."""

    check: str
    subject: str
    problem: str


@dataclass(slots=True)
class Audit:
    """One profile under audit. What lies in other hands comes as functions."""

    paths: ProfilePaths
    db: Database
    home_db: Database | None
    verify: Callable[[Path, str], str | None]  # a checkpoint against its manifest's hash: what is wrong
    folder_sha256: Callable[[Path], str]  # of a batch that was dropped as a folder
    runs: bool  # a daemon works on this home meanwhile
    tell: Callable[[str], None] = lambda text: None
    pause: Callable[[], None] = lambda: time.sleep(1.0)
    redactions: dict[str, set[str | None]] | None = None  # hash before -> hashes after
    notes: list[str] = field(default_factory=list)  # worth knowing, no disagreement

    def run(self) -> list[Finding]:
        """All findings. With a daemon at work a finding counts only where a second look sees it too."""
        self.redactions = None
        first = {check: list(check(self)) for check in CHECKS}
        found = [finding for findings in first.values() for finding in findings]
        if not found or not self.runs:
            return found
        self.tell("looking again")
        self.pause()
        before = {(finding.check, finding.subject) for finding in found}
        self.redactions = None
        again = [finding for check, findings in first.items() if findings for finding in check(self)]
        return [finding for finding in again if (finding.check, finding.subject) in before]


# -- the ledger alone --------------------------------------------------------------------------------


def _sound(audit: Audit) -> Iterator[Finding]:
    for db in filter(None, (audit.db, audit.home_db)):
        for complaint in checks.unsound(db):
            yield Finding("database", f"{db.path.name}: {complaint}", f"{db.path.name} is damaged: {complaint}")
    if audit.home_db is None:
        return
    marks = checks.high_water(audit.home_db, audit.paths.name)
    for kind, newest in checks.newest_ids(audit.db).items():
        if newest > marks.get(kind, 0):
            yield Finding("numbers", kind, f"{kind} {newest} is above the mark {marks.get(kind, 0)} of home.db, "
                          "so that its number could be given twice")  # fmt: skip


def _memories(audit: Audit) -> Iterator[Finding]:
    audit.tell("memories")
    for row in checks.memories_out_of_line(audit.db):
        parts = [f"{row[key]} {word}" for key, word in
                 (("promoted", "promoted"), ("open", "open"), ("bad", "failed or refused")) if row[key]]  # fmt: skip
        yield Finding("memories", row["id"], f"memory {row['id'][:12]} is {row['state']}, but `new` in "
                      f"{' and '.join(parts) or 'no'} jobs")  # fmt: skip
    for row in checks.batches_out_of_line(audit.db):
        yield Finding("memories", f"batch {row['id']}", f"batch {row['id']} ({row['name']}) is {row['state']} with "
                      f"{row['memories']} memories, but {row['rows']} are there and {row['unsettled']} of them are "
                      "not settled")  # fmt: skip
    for row in checks.not_quite_forgotten(audit.db):
        yield Finding("memories", row["id"], f"memory {row['id'][:12]} is forgotten, but something of it is left")
    if strays := checks.strays(audit.db):
        yield Finding("memories", "strays", f"{strays} memories lie outside the range of their batch")


# -- files of the batches ----------------------------------------------------------------------------


def _archived(paths: ProfilePaths) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for month in _entries(paths.archive):
        if month.is_dir():
            found |= {entry.name: entry for entry in _entries(month) if not _is_temporary(entry)}
    return found


def _batch_files(audit: Audit) -> Iterator[Finding]:
    claimed = {entry.name for entry in _entries(audit.paths.claimed) if not _is_temporary(entry)}
    archived = _archived(audit.paths)
    failed = {_NUMBERED.sub("", entry.name) for entry in _entries(audit.paths.failed)}
    failed |= {entry.name for entry in _entries(audit.paths.failed)}
    audit.notes.clear()
    expected: set[str] = set()
    restored = int(jobs.get_meta(audit.db, checks.RESTORED) or 0)
    rows = checks.all_batches(audit.db)
    for row in rows:
        who, path = f"batch {row['id']} ({row['name']})", row["path"]
        if row["state"] in ("claimed", "reading", "needs_owner"):
            expected.add(path)
            if path not in claimed:
                yield Finding("files", path, f"{who} is {row['state']}, but its file is not in {audit.paths.claimed}")
        elif row["state"] == "refused":
            if row["name"] not in failed:  # the person may well have mended it and dropped it again
                audit.notes.append(f"{who} was refused, and its file is no longer in {audit.paths.failed}")
        elif path not in archived and row["id"] <= restored:
            audit.notes.append(f"{who} was read in the home that this ledger came from, and its file stayed there")
        elif path not in archived and None not in _after(audit, row["sha256"]):
            where = "still in claimed/" if path in claimed else "in no folder of archive/"
            yield Finding("files", path, f"{who} is {row['state']}, but its file is {where}")
    known = {row["path"]: row for row in rows}
    for name in sorted(claimed - expected):
        if name not in known:
            yield Finding("files", name, f"{audit.paths.claimed / name} is known to no batch")
        elif name in archived or known[name]["state"] == "refused":
            yield Finding("files", name, f"{audit.paths.claimed / name} was read before and lies there still")
    for name in sorted(archived.keys() - known.keys()):
        yield Finding("files", name, f"{archived[name]} is known to no batch")
    yield from _batch_bytes(audit, known, archived)


def _after(audit: Audit, sha256: str) -> set[str | None]:
    """What a sealed file became when memories in it were forgotten; None where it was removed."""
    if audit.redactions is None:
        audit.redactions = checks.redactions(audit.db)
    return checks.hashes_after(audit.redactions, sha256)


def _batch_bytes(audit: Audit, known: dict[str, dict[str, Any]], archived: dict[str, Path]) -> Iterator[Finding]:
    for number, (name, path) in enumerate(sorted(archived.items()), start=1):
        if number % 64 == 1:
            audit.tell(f"hashing the archive: {number} of {len(archived)}")
        if name not in known:
            continue
        try:
            sha256 = audit.folder_sha256(path) if path.is_dir() else durable.sha256_file(path)
        except OSError as error:
            yield Finding("bytes", name, f"{path} cannot be read: {error.strerror}")
            continue
        if sha256 != known[name]["sha256"] and sha256 not in _after(audit, known[name]["sha256"]):
            yield Finding("bytes", name, f"{path} does not hold what was dropped: its SHA-256 differs")


# -- jobs --------------------------------------------------------------------------------------------


def _job_folders(audit: Audit) -> Iterator[Finding]:
    rows = checks.all_jobs(audit.db)
    recorded = {row["folder"] for row in rows}
    for entry in _entries(audit.paths.jobs):
        if entry.is_dir() and not _is_temporary(entry) and entry.name not in recorded:
            yield Finding("jobs", entry.name, f"{entry} is the folder of no recorded job")
    for row in rows:
        audit.tell(f"job {row['id']}")
        if row["pruned_at"]:
            continue
        folder = audit.paths.jobs / row["folder"]
        try:
            spec = (folder / names.SPEC).read_bytes()
        except OSError:
            if row["state"] == "forgotten" or (row["state"] == "undone" and not row["result"]):  # thrown back
                continue
            missing = "folder" if not folder.is_dir() else names.SPEC
            yield Finding("jobs", row["folder"], f"job {row['id']} is {row['state']}, but its {missing} is missing")
            continue
        if hashlib.sha256(spec).hexdigest() != row["spec_sha256"]:
            yield Finding("jobs", row["folder"], f"{folder / names.SPEC} is not the one that was frozen")
            continue
        if row["kind"] != "finetune":
            continue
        sealed = json.loads(spec)
        changed = _after(audit, sealed["samples_sha256"] or "")
        if None in changed and not (folder / names.SAMPLES).exists():
            continue
        for number, problem in enumerate(_uses(folder, sealed, row, changed)):
            yield Finding("uses", f"{row['folder']} {number}", f"job {row['id']}: {problem}")


def _uses(folder: Path, spec: dict[str, Any], row: dict[str, Any], changed: set[str | None]) -> Iterator[str]:
    """What is learnt in each epoch, old memories and general text in one or more of them, and no step more or less
    than that takes."""
    digest, kinds = hashlib.sha256(), list[str]()
    try:
        with open(folder / names.SAMPLES, "rb") as file:
            for raw in file:
                digest.update(raw)
                kinds.append("anchor" if b'"use":"anchor"' in raw else "replay" if b'"use":"replay"' in raw else "new")
    except OSError as error:
        yield f"{names.SAMPLES} cannot be read: {error.strerror}"
        return
    if digest.hexdigest() not in {spec["samples_sha256"], *changed}:
        yield f"{names.SAMPLES} is not the one that {names.SPEC} names"
        return
    epochs = spec["recipe"]["num_train_epochs"]
    uses = Counter(position for segment in spec["segments"] for position in segment)
    wrong = [place for place, kind in enumerate(kinds)
             if not (epochs if kind == "new" else 1) <= uses[place] <= epochs]  # fmt: skip
    if wrong or len(uses) > len(kinds):
        amount = len(wrong) or len(uses) - len(kinds)
        yield (f"{amount} of its {len(kinds)} samples are not used exactly {epochs} times, or at least once "
               "where they are of old memories or general text")  # fmt: skip
    if uses.total() != row["samples"]:
        yield f"its segments use samples {uses.total()} times, but {row['samples']} are recorded"
    if (general := kinds.count("anchor")) != row["anchors"]:
        yield f"{general} samples of general text are in it, but {row['anchors']} are recorded"
    if (made := len(kinds) - general) != (row["counted"] or 0):
        yield f"{made} samples were made, but {row['counted'] or 0} are counted for its memories"
    per_step = spec["recipe"]["per_device_train_batch_size"] * spec["recipe"]["gradient_accumulation_steps"]
    steps = sum(-(-len(segment) // per_step) for segment in spec["segments"])
    if steps != row["steps"]:
        yield f"its segments take {steps} steps, but {row['steps']} are recorded"
    if spec["parent"] != row["parent_sha256"]:
        yield f"{names.SPEC} names another parent than the ledger"


def _lineage(audit: Audit) -> Iterator[Finding]:
    """Of each line: the promoted versions are straight, each on the one before it; the head is their end."""
    of_lines: dict[str, list[dict[str, Any]]] = {line: [] for line in ("", *jobs.heads(audit.db))}
    for row in checks.all_jobs(audit.db):
        if row["state"] == "promoted":
            of_lines.setdefault(row["line"], []).append(row)
    for line, rows in of_lines.items():
        yield from _straight(audit, line, sorted(rows, key=lambda row: row["v_id"] or 0))


def _straight(audit: Audit, line: str, promoted: list[dict[str, Any]]) -> Iterator[Finding]:
    points = {(point["chain"], point["step"]): point for point in jobs.checkpoints(audit.db)}
    before: dict[str, Any] | None = None
    for row in promoted:
        who = f"job {row['id']}"
        if row["v_id"] is None or row["v_state"] != "promoted":
            yield Finding("lineage", f"{who} version", f"{who} is promoted, but its version is not")
            continue
        point = points.get((row["chain"], row["v_step"]))
        if point is None or (point["sha256"], point["job"]) != (row["v_sha256"], row["id"]):
            yield Finding("lineage", f"{who} checkpoint", f"{who} is promoted, but its checkpoint is not recorded as "
                          f"checkpoint-{row['v_step']} of chain {row['chain']}")  # fmt: skip
        if row["v_step"] - row["parent_step"] != row["steps"]:
            yield Finding("lineage", f"{who} steps", f"{who} took {row['v_step'] - row['parent_step']} steps from its "
                          f"parent to its checkpoint, but {row['steps']} are recorded")  # fmt: skip
        begins = row["parent_sha256"] is None and (before is None or before["chain"] != row["chain"])
        parent = (before["v_sha256"], before["v_step"]) if before and not begins else (None, 0)
        if (row["parent_sha256"], row["parent_step"]) != parent:
            expected = f"job {before['id']}" if before else "the base"
            yield Finding("lineage", f"{who} parent", f"{who} did not start from the checkpoint of {expected}, the one "
                          f"before it in the line")  # fmt: skip
        if row["v_parent"] != (before["v_id"] if before else None):
            expected = f"v{before['v_id']}, the promoted version before it" if before else "the base"
            yield Finding("lineage", f"{who} line", f"v{row['v_id']} does not name {expected}, as its parent")
        if row["v_line"] != line:
            yield Finding("lineage", f"{who} of line", f"v{row['v_id']} is of another line than {who}")
        before = row
    yield from _head(jobs.get_head(audit.db, line), before, f" of line {line}" if line else "")


def _verdicts(audit: Audit) -> Iterator[Finding]:
    """Scores and figures are those of versions that were judged."""
    for problem in checks.verdicts_out_of_line(audit.db):
        yield Finding("verdicts", problem.partition(" ")[0], problem)


def _head(head: dict[str, Any] | None, newest: dict[str, Any] | None, of: str) -> Iterator[Finding]:
    if newest is None:
        if head is not None:
            yield Finding("lineage", f"head{of}", f"there is a head{of}, v{head['version']}, but no promoted job")
    elif head is None:
        yield Finding("lineage", f"head{of}", f"job {newest['id']} is promoted, but there is no head{of}")
    else:
        place = (head["version"], head["step"], head["sha256"])
        if place != (newest["v_id"], newest["v_step"], newest["v_sha256"]):
            problem = (f"the head{of} is v{head['version']}, but the newest promoted version is v{newest['v_id']}, of "
                       f"job {newest['id']}, or their checkpoints differ")  # fmt: skip
            yield Finding("lineage", f"head{of}", problem)


# -- checkpoints -------------------------------------------------------------------------------------


def _chain_folders(audit: Audit) -> Iterator[Finding]:
    rows = checks.all_jobs(audit.db)
    points = {(point["chain"], point["step"]): point for point in jobs.checkpoints(audit.db)}
    specs = {row["id"]: row["spec_sha256"] for row in rows}
    # Between the rename and the verdict's transaction a candidate's checkpoint lies in its chain already; so does that
    # of a refused one that a person is promoting.
    candidates = {(row["v_chain"], row["v_step"]) for row in rows if row["state"] in ("finished", "refused")}
    chains = checks.chain_ids(audit.db)
    for line, head in jobs.heads(audit.db).items():
        place, of = _checkpoint(audit.paths, head["chain"], head["step"]), f" of line {line}" if line else ""
        if not place.is_dir():
            yield Finding("checkpoints", str(place), f"the head's checkpoint {place}{of} is missing")
    for folder in _entries(audit.paths.chains):
        if _is_temporary(folder):
            continue
        if not folder.name.isdecimal() or int(folder.name) not in chains:
            yield Finding("checkpoints", str(folder), f"{folder} is the folder of no recorded chain")
            continue
        for entry in _entries(folder):
            step = names.checkpoint_step(entry.name)
            point = points.get((int(folder.name), -1 if step is None else step))
            if _is_temporary(entry) or (step is not None and (int(folder.name), step) in candidates):
                continue
            if point is None:
                yield Finding("checkpoints", str(entry), f"{entry} is no recorded checkpoint")
            elif problem := _damage(audit, entry, point["sha256"], specs.get(point["job"])):
                yield Finding("checkpoints", str(entry), problem)


def _damage(audit: Audit, checkpoint: Path, sha256: str, spec_sha256: str | None) -> str | None:
    audit.tell(f"hashing {checkpoint.parent.name}/{checkpoint.name}")
    if problem := audit.verify(checkpoint, sha256):
        return problem if checkpoint.is_dir() else None  # pruned while it was read
    try:
        made_by = json.loads((checkpoint / names.MANIFEST).read_bytes()).get("spec_sha256", spec_sha256)
    except (OSError, ValueError) as error:
        return f"{checkpoint / names.MANIFEST} cannot be read: {error}"
    return None if made_by == spec_sha256 else f"{checkpoint} was made by another job than the recorded one"


def _current_model(audit: Audit) -> Iterator[Finding]:
    link, head = audit.paths.current_model, jobs.get_head(audit.db)
    if head is None:
        if os.path.lexists(link):
            yield Finding("current_model", "link", f"{link} is there, but nothing was promoted")
        return
    wanted = audit.paths.chains / str(head["chain"])
    if not link.is_symlink():
        yield Finding("current_model", "link", f"{link} is no symlink to {wanted}")
    elif link.resolve() != wanted.resolve():
        yield Finding("current_model", "link", f"{link} leads to {link.resolve()}, but the head is in {wanted}")


def _exports(audit: Audit) -> Iterator[Finding]:
    """What is served by: each file of an export as `export.json` says; nothing of one that nobody has recorded."""
    rows, models = serving.exports(audit.db), audit.paths.root / "models"
    at_work = {about.get(serving.OF) for row in checks.all_jobs(audit.db)
               if row["kind"] == "export" and row["state"] in _OPEN and (about := serving.about(row))}  # fmt: skip
    for entry in _entries(models):
        digits = entry.name.removeprefix("v")
        if digits.isdecimal() and int(digits) not in rows.keys() | at_work and (entry / names.EXPORTED).exists():
            yield Finding("exports", entry.name, f"{entry / names.EXPORTED} is of an export that is not recorded: "
                          "engramd prune takes it away")  # fmt: skip
    for number, row in rows.items():
        folder = models / f"v{number}"
        try:
            files = json.loads((folder / names.EXPORTED).read_bytes())["files"]
        except (OSError, ValueError, KeyError):
            yield Finding("exports", f"v{number}", f"v{number} was exported, but {folder / names.EXPORTED} is gone")
            continue
        audit.tell(f"hashing the export of v{number}")
        for name, told in sorted(files.items()):
            path = folder / name
            if name in (names.BASE_GGUF, names.MODELFILE):  # that one lies with the bases, this one names it there
                continue
            if not path.is_file() or durable.sha256_file(path) != told["sha256"]:
                yield Finding("exports", str(path), f"{path} is not what was exported of v{number}, or gone")
        if row["base"] and not (models.parents[1].parent / "bases" / row["base"]).is_file():
            yield Finding("exports", row["base"], f"state/bases/{row['base']} is gone, on which v{number} stands")


def _leftovers(audit: Audit) -> Iterator[Finding]:
    """Temporary files of nobody: with a daemon at work only old ones, and none of its open job."""
    paths = audit.paths
    at_work = {row["folder"] for row in checks.all_jobs(audit.db) if row["state"] in _OPEN}
    models = paths.root / "models"
    folders = [paths.root, paths.claimed, paths.chains, paths.jobs, *_entries(paths.archive), *_entries(paths.chains),
               models, *_entries(models)]  # fmt: skip
    folders += [entry for entry in _entries(paths.jobs) if entry.name not in at_work]
    for folder in folders:
        for entry in _entries(folder):
            if _is_temporary(entry) and not (audit.runs and _is_young(entry)):
                yield Finding("leftovers", str(entry), f"{entry} was left by a writer that did not come to its end")


def _checkpoint(paths: ProfilePaths, chain: int, step: int) -> Path:
    return paths.chains / str(chain) / f"{names.CHECKPOINT_PREFIX}{step}"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMPORARY)


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime < _AT_WORK_SECONDS
    except FileNotFoundError:
        return True


CHECKS: tuple[Callable[[Audit], Iterator[Finding]], ...] = (
    _sound, _memories, _batch_files, _job_folders, _lineage, _verdicts, _chain_folders, _current_model, _exports,
    _leftovers,
)  # fmt: skip
