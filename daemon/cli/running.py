"""The job at work, as `status` and the progress line show it: step, loss, time left."""

import sys
import time
from datetime import UTC, datetime
from typing import Any

from daemon import ledger, progress_tail
from daemon.cli import drawing
from daemon.home import Home, ProfilePaths
from daemon.ledger import jobs

_BELOW_A_STEP = ("loading", "preparing")


def describe(paths: ProfilePaths, job: dict[str, Any], now: float | None = None) -> dict[str, Any]:
    """The open job with what its trainer last said. `now` is wall time, in seconds since the epoch."""
    lines = progress_tail.tail(paths.jobs / str(job["folder"]))
    step = _newest(lines, "step")
    first = int(job["parent_step"])
    taken = max(0, int(step) - first) if isinstance(step, int) else 0
    running = job["state"] == "running"
    return {
        "id": job["id"],
        "kind": job["kind"],
        "state": job["state"],
        "reason": job["reason"],
        "phase": lines[-1].get("phase") if lines and running else None,
        "note": lines[-1].get("note") if lines and running else None,
        "step": first + taken,
        "steps": first + int(job["steps"]),
        "steps_done": taken,
        "steps_planned": int(job["steps"]),
        "loss": _newest(lines, "loss"),
        "tokens_per_second": _newest(lines, "tokens_per_second"),
        "seconds_left": _time_left(lines, int(job["steps"]) - taken, now) if running else None,
        "attempts": job["attempts"],
        "started_at": job["started_at"],
        "folder": str(paths.jobs / str(job["folder"])),
    }


def line(job: dict[str, Any]) -> str:
    """One line for eyes out of `describe`."""
    if job["kind"] != "finetune":  # it has no steps, and no loss
        doing = job["phase"] or "starting" if job["state"] == "running" else job["state"]
        return f"job {job['id']}  {job['kind']}  {doing}"
    parts = [
        f"job {job['id']}",
        drawing.bar(job["steps_done"], job["steps_planned"]),
        f"step {job['step']}/{job['steps']}",
    ]
    if job["loss"] is not None:
        parts.append(f"loss {job['loss']:.4f}")
    if job["state"] != "running":
        parts.append(job["state"])
    elif job["seconds_left"] is not None:
        parts.append(f"{drawing.duration(job['seconds_left'])} left")
    elif job["phase"] in _BELOW_A_STEP or job["phase"] is None:
        parts.append(job["phase"] or "starting")
    if job["phase"] in ("saving", "evaluating", "working"):  # working: on its way to another machine, or back
        parts.append(job["note"] if job["phase"] == "working" and job.get("note") else job["phase"])
    return "  ".join(parts)


def _newest(lines: list[progress_tail.Line], key: str) -> Any:
    return next((told[key] for told in reversed(lines) if told.get(key) is not None), None)


def _seconds(line: progress_tail.Line) -> float | None:
    try:
        return datetime.fromisoformat(str(line["time"])).replace(tzinfo=UTC).timestamp()
    except (KeyError, ValueError):
        return None


def _time_left(lines: list[progress_tail.Line], missing: int, now: float | None) -> float | None:
    """From the pace of the newest steps; None before two of them were told."""
    told = [(told["step"], at) for told in lines
            if isinstance(told.get("step"), int) and (at := _seconds(told)) is not None]  # fmt: skip
    if not told:
        return None
    first, last = int(told[0][0]), int(told[-1][0])
    began, ended = told[0][1], told[-1][1]
    if last <= first or ended < began:
        return None
    since = max(0.0, (time.time() if now is None else now) - ended)
    return max(0.0, missing * (ended - began) / (last - first) - since)


class ProgressLine:
    """One line at the bottom of a terminal that is written over; nothing where stderr is none."""

    def __init__(self, home: Home, *, quiet: bool = False) -> None:
        self._home = home
        self._shown = False
        self._off = quiet or not sys.stderr.isatty()

    def show(self) -> None:
        if self._off:
            return
        for name in self._home.profile_names():
            if job := _open_job(self._home.profile(name)):
                text = line(describe(self._home.profile(name), job))
                self.say(text if name == "me" else f"{name}: {text}")
                return
        self.clear()

    def say(self, text: str) -> None:
        if not self._off:
            sys.stderr.write(f"\r{drawing.fit(text, drawing.width() - 1)}\x1b[K")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def _open_job(paths: ProfilePaths) -> dict[str, Any] | None:
    from sqlite3 import Error

    from daemon.migrations import SchemaError

    try:
        with ledger.open_profile(paths.ledger, write=False) as db:
            return jobs.open_job(db)
    except (ledger.Absent, SchemaError, Error):  # a line of progress is never worth an error
        return None
