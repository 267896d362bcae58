"""What rented machines cost: reserved before a job leaves, settled when its meter stands, swept where nobody did.

The daemon itself never talks to RunPod: a child does (`daemon/compute/sweep.py`), at the start and whenever a job's
courier is gone while its meter may run.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon.compute import renting
from daemon.home import python_path
from daemon.ledger import Database, spending, uses
from daemon.logs import get_logger
from daemon.rules import costs
from daemon.settings_compute import ComputeSettings, RunPodSettings
from trainer import names
from trainer.contract import JobSpec, TrainingRecipe

COMMAND = (sys.executable, "-m", "daemon.compute", "sweep")
AGAIN = 60.0  # seconds until a sweep that failed, or found a meter that still runs, is made again
MOST_AGAIN = 3600.0  # the same, where it failed again and again
LOOK = 1.0  # seconds between two looks at what is open
LONGEST = 300.0  # seconds of one sweep
HERE = "here"

_log = get_logger()


def terms_of(settings: RunPodSettings) -> costs.Terms:
    return costs.Terms(settings.price_per_hour, settings.budget_per_job, settings.budget_per_month)


def reserve(
    home_db: Database, db: Database, *, name: str, profile: str, job: Mapping[str, Any], folder: Path,
    settings: RunPodSettings, timeout_hours: float, now: str,
) -> spending.Reserved | str:  # fmt: skip
    """Take what the job may cost out of the month, or the sentence for which it waits. `db` is the profile's."""
    spec = JobSpec.model_validate_json((folder / names.SPEC).read_bytes())
    longest = timeout_hours * 3600 + settings.start_minutes * 60
    tokens = _tokens(db, spec, folder)
    to_train = None if tokens is None else math.ceil(tokens * _share_left(job, folder))
    speed, measured = _speed(home_db, db, profile, spec.recipe, settings)
    seconds = costs.expected(to_train, speed if measured != HERE else None)
    found = spending.reserve(
        home_db, name=name, profile=profile, job=int(job["id"]), terms=terms_of(settings), seconds=seconds,
        longest=longest, now=now,
    )  # fmt: skip
    if not isinstance(found, str):
        left = settings.budget_per_month - spending.of_month(home_db, now)
        _log.info("budget_reserved", profile=profile, job=job["id"], dollars=round(found.dollars, 2),
                  until=found.until, left_of_month=round(left, 2))  # fmt: skip
    return found


def unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _speed(
    home_db: Database | None, db: Database, profile: str, recipe: TrainingRecipe, settings: RunPodSettings
) -> tuple[float | None, str | None]:
    """Tokens a second, and whether they were set, measured on a pod, or here, which says little of a pod."""
    if settings.tokens_per_second:
        return settings.tokens_per_second, "set"
    rented = spending.jobs_of(home_db, profile) if home_db is not None else set()
    if found := uses.pace(db, recipe, rented)[0]:
        return found, "pod"
    found = uses.pace(db, recipe)[0]
    return found, HERE if found else None


def _tokens(db: Database, spec: JobSpec, folder: Path) -> int | None:
    """By the plan of an earlier attempt, else by the samples of earlier jobs."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((folder / names.PLAN).read_bytes())["tokens"])
    each = uses.pace(db, spec.recipe)[1]
    return None if each is None else int(each * sum(len(segment) for segment in spec.segments))


def _share_left(job: Mapping[str, Any], folder: Path) -> float:
    """Of the job's steps, from its newest checkpoint here on: an attempt that was broken off need not be paid again."""
    begins, steps = int(job.get("parent_step") or 0), int(job.get("steps") or 0)
    own = max((names.checkpoint_step(entry.name) or 0 for entry in folder.iterdir()), default=0)
    return min(1.0, max(0.0, 1.0 - (own - begins) / steps)) if own and steps else 1.0


def outlook(
    home_db: Database | None, db: Database, profile: str, recipe: TrainingRecipe, tokens: int | None,
    settings: RunPodSettings, timeout_hours: float, now: str,
) -> dict[str, Any]:  # fmt: skip
    """What a job of so many tokens would cost on a pod, before anything is asked of anybody: `rows` is the table of
    costs.table, empty where nobody has measured; `waits` why it would not be sent now."""
    terms, (speed, measured) = terms_of(settings), _speed(home_db, db, profile, recipe, settings)
    seconds = tokens / speed if tokens and speed else None
    month = spending.of_month(home_db, now) if home_db is not None else 0.0
    longest = timeout_hours * 3600 + settings.start_minutes * 60
    expected = costs.expected(tokens, speed if measured != HERE else None)
    found = costs.allow(terms, costs.Spent(month=month), expected, longest)
    rows = costs.table(seconds, terms) if seconds is not None and settings.price_per_hour > 0.0 else []
    return {
        "price_per_hour": settings.price_per_hour, "tokens_per_second": speed, "measured": measured,
        "rows": [{"what": row.what, "seconds": row.seconds, "dollars": round(row.dollars, 4)} for row in rows],
        "at_most": None if isinstance(found, str) else round(found.dollars, 4),
        "budget_per_job": settings.budget_per_job, "budget_per_month": settings.budget_per_month,
        "spent_this_month": round(month, 4), "waits": found if isinstance(found, str) else None,
    }  # fmt: skip


class Sweeper:
    """Of one home. `place_of` tells of an open attempt its job's folder, and whether a courier is at work on it; None
    where the profile, or the job, is not there any more. `open_names`: of jobs that will be taken up again; `rests`:
    whether that is not now."""

    def __init__(
        self, db: Database, settings: ComputeSettings, home: Callable[[], str],
        place_of: Callable[[str, int], tuple[Path, bool] | None], open_names: Callable[[], set[str]],
        clock: Callable[[], float] = time.monotonic, command: Sequence[str] = COMMAND,
        rests: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._db, self._settings, self._home = db, settings, home
        self._place_of, self._open_names = place_of, open_names
        self._clock, self._command, self._rests = clock, command, rests
        self._not_before = self._looked = -math.inf
        rents = "runpod" in (settings.where, settings.full, settings.cycles)
        self._first: bool | None = rents or None  # look for pods that no row tells of; None: if any was rented lately
        self._pause = AGAIN
        self._left: set[str] = set()  # names of pods that were left for jobs which go on
        self._kept: set[str] = set()  # names that the child was told of, as of such jobs
        self._child: tuple[subprocess.Popen[bytes], float] | None = None
        self._answer: Any = None
        self._trouble: str | None = None

    def tick(self, now: str) -> bool:
        """Start a sweep where one is due, and record what came of it. Gives whether anything was done."""
        if self._child is not None:
            return self._poll(now)
        if self._clock() - self._looked < LOOK:
            return False
        self._looked = self._clock()
        if self._first is None:
            self._first = spending.lately(self._db, now)
        attempts, busy = self._settled(now)
        kept = self._open_names() if attempts or self._first or self._left else set()
        if not (attempts or self._first or self._left - kept) or self._clock() < self._not_before:
            return False
        self._begin(attempts, sorted(kept), busy)
        return True

    def stop(self, now: str) -> None:
        """The daemon ends. What the child has told RunPod already is done all the same."""
        if self._child is not None:
            self._child[0].kill()
            self._child[0].wait()
            self._child = None
        self._settled(now)

    def _settled(self, now: str) -> tuple[list[dict[str, str]], list[str]]:
        """Settle what is known to stand. Gives the open attempts whose meter may run, and those of couriers at work."""
        attempts: list[dict[str, str]] = []
        busy: list[str] = []
        for row in spending.open_ones(self._db):
            found = self._place_of(row["profile"], row["job"])
            folder, at_work = found or (Path(os.devnull), False)
            rent = renting.read(folder)
            if at_work:
                busy.append(row["name"])
            elif folder.is_dir() and rent.since is None:  # notes are made before a meter can run
                self._settle(row, rent.dollars, now)
                self._left |= set() if rent.pod is None else {row["name"]}
            else:
                attempts.append({"name": row["name"], "folder": str(folder)})
        return attempts, busy

    def _begin(self, attempts: list[dict[str, str]], kept: list[str], busy: list[str]) -> None:
        settings = self._settings.runpod
        asked = {"api": settings.api, "home": self._home(), "remove": settings.after == "terminate",
                 "attempts": attempts, "kept": kept, "busy": busy, "rest": self._rests()}  # fmt: skip
        self._kept = set(kept)
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115 (closed by _poll)
        with tempfile.TemporaryFile() as question:
            question.write(json.dumps(asked).encode())
            question.seek(0)
            environment = {**os.environ, "PYTHONPATH": python_path()}
            child = subprocess.Popen(self._command, stdin=question, stdout=self._answer, stderr=subprocess.DEVNULL,
                                     env=environment, start_new_session=True)  # fmt: skip
        self._child = child, self._clock()
        self._not_before = self._clock() + self._pause

    def _poll(self, now: str) -> bool:
        assert self._child is not None
        child, began = self._child
        if child.poll() is None:
            if self._clock() - began > LONGEST:
                child.kill()
            return False
        self._child = None
        self._answer.seek(0)
        text = self._answer.read(1 << 20)
        self._answer.close()
        try:
            told = json.loads(text)
        except ValueError:
            told = {"error": f"the sweep of rented pods ended with code {child.returncode}"}
        if told.get("error"):
            self._pause = min(2 * self._pause, MOST_AGAIN)
            if told["error"] != self._trouble:
                self._trouble = told["error"]
                note = "tried again; each pod stops by itself in time"
                _log.warning("pods_not_swept", reason=told["error"], note=note)
            return True
        self._trouble, self._first, self._pause = None, False, AGAIN
        self._left = {pod["name"] for pod in told["pods"] if pod["what"] != "removed"} & self._kept
        for pod in told["pods"]:
            _log.info("pod_found", pod=pod["pod"], name=pod["name"], decision=pod["what"])
        rows = {row["name"]: row for row in spending.open_ones(self._db)}
        for one in told["stands"]:
            row = rows.get(one["name"])
            if row is not None and not (self._place_of(row["profile"], row["job"]) or ("", False))[1]:
                self._settle(row, one["dollars"], now)
        return True

    def _settle(self, row: dict[str, Any], job_dollars: float | None, now: str) -> None:
        """`job_dollars` is what all attempts of the job have cost; what was settled of them already is taken off. None:
        nobody knows any more, and all that was reserved is taken for spent."""
        before = spending.of_job(self._db, row["profile"], row["job"]) - row["reserved"]
        spent = row["reserved"] if job_dollars is None else max(0.0, job_dollars - before)
        spending.settle(self._db, row["name"], spent, "the meter stands", now)
        left = self._settings.runpod.budget_per_month - spending.of_month(self._db, now)
        _log.info("budget_settled", profile=row["profile"], job=row["job"], dollars=round(spent, 4),
                  reserved=round(row["reserved"], 2), left_of_month=round(left, 2))  # fmt: skip
