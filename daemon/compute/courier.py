"""A job's way to another machine and back: prepare, start, watch, fetch, release.

To the supervisor this is the trainer. What it may rely on: until `result.json` is in the job's folder nothing there
has changed but progress, log and a temporary folder, so any end of this process is that of a trainer that was killed;
and over there a trainer goes on without us, where the next courier finds it.
"""

import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import ValidationError

from daemon import durable
from daemon.compute import incoming, places, telling
from daemon.compute.ground import sha256_of
from daemon.compute.incoming import Refused
from daemon.compute.mirror import Mirror, plain
from daemon.compute.orders import Order
from daemon.compute.places import Gone, Leave, LineLost, NotNow, Place, Wanted
from trainer import names
from trainer.contract import JobResult
from trainer.names import ExitCode

STAGED = ".tmp-home"  # in the job's folder: what came home so far; a trainer that works here removes it
FIRST_TRIES = 3  # of a machine that was not heard yet: then the job waits for it
LONGEST_PAUSE = 30.0  # seconds between two tries of a lost line
LEAVE_SHARE = 0.9  # of the time that a stop may take: then what is left to fetch stays there, and a meter is stopped
_OVER = (ExitCode.DONE, ExitCode.BAD_SPEC, ExitCode.DIVERGED)  # nobody goes on from what is over there

T = TypeVar("T")


class Detached(Exception):
    """The daemon is gone. What runs over there goes on, and the next courier finds it."""


@dataclass(frozen=True, slots=True)
class End:
    """Of this process, as the trainer's."""

    code: int
    signal: str | None = None


class Courier:
    def __init__(self, job: Path, order: Order, stop: threading.Event, gone: threading.Event) -> None:
        """`stop`: save and end; `gone`: the daemon is."""
        self._job, self._order, self._stop, self._gone = job, order, stop, gone
        self._spec = sha256_of(str(job / names.SPEC))
        self._place: Place = places.choose(order)
        earlier = telling.load(job)
        if (earlier.where, earlier.host) == (self._place.report.where, self._place.report.host):
            for key in telling.Report.__dataclass_fields__:
                setattr(self._place.report, key, getattr(earlier, key))
        self._report = self._place.report
        self._logged_run = self._report.run
        self._mirror = Mirror(job, -1)
        self._at_home = False  # the result is in place: from then on nothing else may become of the job
        self._leaves = True  # a stop ends at once what is at hand: nothing runs over there that we know of
        self._heard = False  # the place has answered
        self._tries, self._counted = 0, (self._report.sent, self._report.fetched)
        self._lost_since: float | None = None
        self._asked_at: float | None = None
        self._began = time.monotonic()

    def run(self) -> End:
        """The whole way. Whatever happens, `result.json` says it where the daemon has to know."""
        try:
            return self._way()
        except Detached:
            return End(ExitCode.INTERRUPTED)
        except Leave:
            if why := self._why_not_its_fault():
                return self._own_result(ExitCode.NO_DEVICE, why)
            return self._own_result(ExitCode.INTERRUPTED, f"stopped on the way to {self._place.label}")
        except NotNow as reason:
            return self._own_result(ExitCode.NO_DEVICE, str(reason))
        except Refused as reason:
            shutil.rmtree(self._job / STAGED, ignore_errors=True)
            return self._own_result(ExitCode.BAD_SPEC, f"what came home from {self._place.label} is refused: {reason}")
        except (KeyError, TypeError, ValueError) as error:  # answers that are none
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
            return self._own_result(ExitCode.NO_DEVICE, f"{self._place.label} answers what cannot be read ({said})")
        finally:
            self._tell()

    def _way(self) -> End:
        place, report = self._place, self._report
        with report.timed("prepare"):
            self._again(lambda: place.prepare(self._job, self._say))
        self._tell()
        with report.timed("start"):
            self._again(place.start)
        self._leaves = False
        if report.run == self._logged_run:
            self._mirror.log_at = report.log_at
        self._tell()
        with report.timed("train"):
            gone = self._follow()
        self._tell()
        with report.timed("fetch"):
            end = self._bring_home(gone)
        self._at_home = True
        try:
            place.release(done=end.signal is None and end.code in _OVER)
        except (LineLost, NotNow, KeyError, TypeError, ValueError) as reason:  # it goes with the next job, or by age
            print(f"{place.label} was not tidied: {plain(str(reason))}", flush=True)
        return end

    def _tell(self) -> None:
        self._report.log_at = max(0, self._mirror.log_at)
        self._report.write(self._job)

    # -- whether to go on -----------------------------------------------------------------------

    def _why_not_its_fault(self) -> str | None:
        """Why a job that is left once its time is over has not run into it: there is no line, or it is on its way."""
        now, most = time.monotonic(), self._order.timeout_seconds
        if now - self._began < most - min(60.0, most / 10):  # the daemon's clock began before ours
            return None
        if self._lost_since is not None:
            silent = now - self._lost_since
            return f"no line to {self._place.label} for {silent:.0f} s: the job goes on once there is one"
        return f"the way to {self._place.label} and back takes longer than jobs.timeout_hours: it is gone on with"

    def _say(self, note: str) -> None:
        """Raises Detached, and Leave where a stop was asked for and nothing can come of waiting."""
        if self._gone.is_set():
            raise Detached
        if self._stop.is_set() and not self._at_home:
            now = time.monotonic()
            self._asked_at = self._asked_at or now
            if self._leaves or now - self._asked_at > LEAVE_SHARE * self._order.stop_seconds:
                raise Leave
        if note:
            self._mirror.note(note)

    def _again(self, step: Callable[[], T]) -> T:
        """The step, as often as the line is lost in it."""
        while True:
            try:
                found = step()
                self._heard, self._lost_since = True, None
                return found
            except LineLost as lost:
                self._wait(lost)

    def _wait(self, lost: LineLost) -> None:
        """Until the next try. Raises NotNow where the place never answered, Leave where a stop cannot be told."""
        now, place = time.monotonic(), self._place
        self._report.cuts += 1
        if (self._report.sent, self._report.fetched) != self._counted:  # something came through in the meantime
            self._tries, self._counted, self._lost_since = 0, (self._report.sent, self._report.fetched), None
        self._lost_since = self._lost_since or now
        silent = now - self._lost_since
        self._tries += 1
        if not self._heard and self._tries >= FIRST_TRIES:
            raise NotNow(f"{place.label} does not answer: {plain(str(lost))}")
        until = now + min(LONGEST_PAUSE, max(0.5, silent))
        while time.monotonic() < until:
            if self._asked_at is not None and time.monotonic() - self._asked_at > self._order.stop_seconds / 2:
                raise Leave
            self._say(f"no line to {place.label} for {silent:.0f} s ({plain(str(lost), 120)}), trying again")
            self._gone.wait(0.2)

    # -- at work --------------------------------------------------------------------------------

    def _follow(self) -> Gone:
        told = False
        while True:
            try:
                for one in self._place.watch(self._mirror.progress_at, self._mirror.log_at):
                    self._heard, self._lost_since = True, None
                    if isinstance(one, Gone):
                        return one
                    self._mirror.take(one)
                    self._say("")
                    if self._stop.is_set() and not told:
                        self._place.stop()
                        told = True
            except LineLost as lost:
                self._wait(lost)

    # -- home -----------------------------------------------------------------------------------

    def _bring_home(self, gone: Gone) -> End:
        """Fetch what the next job needs, judge it, put it in place. Raises Refused, NotNow, Detached."""
        staged = self._job / STAGED
        durable.make_folder(staged)
        for entry in staged.iterdir():  # also what an rsync that was killed did not remove
            if entry.is_symlink() or not entry.is_dir():
                entry.unlink()
        self._fetch(staged, [Wanted(name, optional=True) for name in incoming.BESIDE])
        if not (staged / names.RESULT).is_file():
            return self._without_result(gone)
        result = _result_of(staged / names.RESULT)
        checkpoint = result.checkpoint if result.exit_code in incoming.HOME_COMES else None
        for entry in staged.iterdir():  # what an earlier courier left of another end
            if entry.is_dir() and entry.name != checkpoint:
                shutil.rmtree(entry)
        if checkpoint is not None:
            self._fetch_checkpoint(staged, checkpoint, result.checkpoint_sha256 or "")
        self._place.pause()
        base = self._order.base_fingerprint or None
        arrived = incoming.accept(staged, self._job, self._spec, fingerprint=base, pulse=self._judging)
        self._put_in_place(staged, arrived)
        return End(int(arrived.result.exit_code))

    def _judging(self) -> None:
        """While gigabytes are read here: a sign of life, and no end of it for a stop, as it is almost done."""
        if self._gone.is_set():
            raise Detached
        self._mirror.note("looking at what came home")

    def _fetch(self, staged: Path, wanted: list[Wanted]) -> None:
        self._again(lambda: self._place.fetch(staged, wanted, self._say))

    def _fetch_checkpoint(self, staged: Path, name: str, sha256: str) -> None:
        """Its manifest first, which names the rest. What is wrong with it is left for `incoming` to say."""
        if names.checkpoint_step(name) is None or self._is_here(self._job / name, sha256):
            return
        manifest = f"{name}/{names.MANIFEST}"
        durable.make_folder(staged / name)
        self._fetch(staged, [Wanted(manifest, incoming.MAX_MANIFEST)])
        if not self._is_here(staged / name, sha256):
            raise Refused(f"{manifest} is not the one that {names.RESULT} names")
        wanted = _listed(name, staged / manifest)
        free = shutil.disk_usage(self._job).free
        needed = sum(one.size or 0 for one in wanted) - _size(staged / name)
        if needed > free:
            raise NotNow(f"the disk of {self._job} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are to come "
                         f"home from {self._place.label}: free some space")  # fmt: skip
        for entry in (staged / name).iterdir():
            if f"{name}/{entry.name}" not in {one.name for one in wanted} | {manifest}:
                entry.unlink()
        self._fetch(staged, wanted)

    def _is_here(self, folder: Path, sha256: str) -> bool:
        manifest = folder / names.MANIFEST
        return manifest.is_file() and sha256_of(str(manifest)) == sha256

    def _put_in_place(self, staged: Path, arrived: incoming.Arrived) -> None:
        """Each by rename, the result last: from then on the job has ended."""
        durable.fsync_tree(staged)
        if arrived.checkpoint is not None and arrived.fetched:
            target = self._job / arrived.checkpoint
            if target.exists():
                durable.remove_durable(target)
            durable.rename_durable(staged / arrived.checkpoint, target)
        for name in sorted(set(arrived.files) - {names.RESULT}):
            durable.rename_durable(staged / name, self._job / name)
        durable.rename_durable(staged / names.RESULT, self._job / names.RESULT)
        shutil.rmtree(staged, ignore_errors=True)

    def _without_result(self, gone: Gone) -> End:
        """The trainer crashed, or was killed, over there: this process ends as it did."""
        shutil.rmtree(self._job / STAGED, ignore_errors=True)
        if gone.code == ExitCode.NO_DEVICE:
            said = f"the trainer cannot be started on {self._place.label}: the end of {names.LOG} says why"
            return self._own_result(ExitCode.NO_DEVICE, said)
        if gone.signal is not None:
            return End(1, gone.signal)
        if gone.code is not None and not self._mirror.progress_at:  # it never got to work: no fault of the job's
            said = (f"the trainer on {self._place.label} ends (exit code {gone.code}) before its first word: the end "
                    f"of {names.LOG} says why")  # fmt: skip
            return self._own_result(ExitCode.NO_DEVICE, said)
        known = gone.code is None or gone.code in tuple(ExitCode)  # which go with a result
        return End(1 if known else gone.code or 1)

    def _own_result(self, code: ExitCode, reason: str) -> End:
        result = JobResult(exit_code=code, reason=plain(reason), spec_sha256=self._spec)
        durable.write_atomic(self._job / names.RESULT, result.model_dump_json(indent=1).encode() + b"\n")
        print(result.reason, flush=True)
        return End(int(code))


def _result_of(path: Path) -> JobResult:
    """Raises Refused."""
    if path.stat().st_size > incoming.MAX_RESULT:
        raise Refused(f"{names.RESULT} is larger than any")
    try:
        return JobResult.model_validate_json(path.read_bytes())
    except ValidationError:
        raise Refused(f"{names.RESULT} is none that the contract knows") from None


def _listed(checkpoint: str, manifest: Path) -> list[Wanted]:
    """The files that a manifest names. Raises Refused where one may not come."""
    try:
        files = orjson.loads(manifest.read_bytes())["files"]
        wanted = [Wanted(f"{checkpoint}/{name}", int(one["size"]), str(one["sha256"])) for name, one in files.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"{names.MANIFEST} of {checkpoint} cannot be read") from None
    for one in wanted:
        if not incoming.may_come(one.name) or (one.size or 0) < 0:
            raise Refused(f"{names.MANIFEST} of {checkpoint} names {plain(one.name, 100)}, which no checkpoint has")
    return wanted


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
