"""From a promoted version to the name that a person talks to: what of that road is next, for one profile.

Wanted is the head of each line. It is made (an export job), uploaded and created as `<alias>-v<N>`, asked, and only
then the alias moves; what it pointed to before stays, to go back to. A name is recorded before it is given and each
step in one transaction when it is done, so that a step that was cut off is found and done again. Training never waits
for it.
"""

import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from daemon import delivering, exporting
from daemon.delivering import Lost, Worker, Wrong
from daemon.ledger import Database, jobs, serving
from daemon.logs import get_logger
from daemon.ollama import NoAdapters, Stopped, Trouble
from daemon.serving_steps import NOTE, Step, Steps
from daemon.world import World
from trainer.names import ExitCode

LOOK_PAUSE = 5.0  # seconds between two looks at what is wanted, unless something happened
AUTO_PAUSE = 60.0  # seconds until an Ollama is looked for again
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=1)  # of the backoff, doubling
CLEAN_PAUSE = 3600.0  # seconds until names are looked through again, unless one moved
MOST_EXPORTS = 5  # jobs of one version that may fail before a person has to look
MERGED = "serve_merged"  # in a ledger's meta: the host whose Ollama takes no adapters

_log = get_logger()
_OPEN = ("frozen", "running", "finished")


class Serving:
    """One profile's road."""

    def __init__(
        self, world: World, home_db: Database, worker: Worker, *, active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`worker` is the home's one thread for it. Not `active`: nothing is done until somebody asks."""
        self._world, self._home_db, self._worker, self._clock = world, home_db, worker, clock
        self._serve, self._active = world.settings.serve, active
        self._steps = Steps(world)
        self._host = self._steps.host
        self._there = self._serve.ollama == "always"  # whether an Ollama is believed to answer
        self._probe_again = self._next_look = self._clean_again = -math.inf
        self._step: Step | None = None
        self._wanted: tuple[str, int] | None = None  # line and version that an export job is to be frozen for
        self._doubted: set[str] = set()  # lines whose alias is looked at first
        self._log = _log.bind(profile=world.name)

    # -- what the service asks ------------------------------------------------------------------

    @property
    def on(self) -> bool:
        return self._active and (self._serve.ollama != "off" or bool(self._serve.command))

    @property
    def at_work(self) -> bool:
        return self._step is not None

    @property
    def wants_export(self) -> bool:
        return self._wanted is not None

    def tick(self, now: str, *, look: bool) -> bool:
        """Record what a step gave, begin the next one. Gives whether anything was done. `look`: something happened
        that may have changed what is wanted."""
        if not self.on:
            return False
        worked = self._take(now)
        if self._step is None and (worked or look or self._clock() >= self._next_look):
            self._look(now)
        return worked

    def first(self, now: str) -> bool | None:
        """Before the next training job is planned: freeze the export of a head that has none. Gives whether there is a
        job now; None: it will be known in a moment, when an Ollama has answered or not."""
        if not self.on:
            return False
        if self._step is not None and self._step.what == "probe":
            return None
        if self._wanted is None:
            return False
        (line, number), self._wanted = self._wanted, None
        head, version = jobs.get_head(self._world.db, line), jobs.version(self._world.db, number)
        if head is None or version is None or head["version"] != number:
            return False
        form = "merged" if jobs.get_meta(self._world.db, MERGED) == self._host else None
        try:
            exporting.freeze(self._world, self._home_db, version, exporting.wish(self._world, version, form=form), now)
        except exporting.NoExport as none:
            self._trouble(line, number, str(none), now, final=none.final)
            return False
        return True

    def overtaken(self, job: dict[str, Any]) -> bool:
        """Whether an open export job is of a version that nobody wants to be served any more."""
        about = serving.about(job)
        if job["kind"] != "export" or about.get(serving.FOR) != serving.SERVING:
            return False
        head = jobs.get_head(self._world.db, str(job["line"]))
        return head is None or head["version"] != about[serving.OF]

    def ask(self, now: str) -> None:
        """Somebody wants it tried at once, and what is served looked at."""
        self._active = True
        self._probe_again = self._next_look = self._clean_again = -math.inf
        with self._world.db.transaction():
            jobs.set_meta(self._world.db, MERGED, None)
            for line, _, row in list(self._lines()):
                serving.ask(self._world.db, line, now)
                if row["name"] and row["host"] == self._host:
                    self._doubted.add(line)

    def clean_soon(self) -> None:
        """What `engramd prune` has given up goes with the next look."""
        self._clean_again = self._next_look = -math.inf

    # -- what is next ---------------------------------------------------------------------------

    def _look(self, now: str) -> None:
        self._next_look, self._wanted = self._clock() + LOOK_PAUSE, None
        if self._serve.ollama == "auto" and not self._there and not self._serve.command \
                and self._clock() < self._probe_again:  # fmt: skip
            return
        for line, wanted, row in list(self._lines()):
            if self._step is None and self._wanted is None and not self._gave_up(row, wanted, now):
                self._begin(self._next(line, wanted, row, now))
        if self._step is None and self._there and self._clock() >= self._clean_again:
            self._begin(self._steps.cleaning())
            if self._step is None and not self._worker.busy:
                self._clean_again = self._clock() + CLEAN_PAUSE

    def _begin(self, step: Step | None) -> None:
        if step is not None and not self._worker.busy:
            self._step = step
            self._worker.start(self, step.work)

    def _lines(self) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
        """Each line, the version that is wanted of it, what is served now."""
        heads, rows = jobs.heads(self._world.db), serving.lines(self._world.db)
        for line in dict.fromkeys([*heads, *rows]):
            yield line, heads[line]["version"] if line in heads else None, serving.line(self._world.db, line)

    def _gave_up(self, row: dict[str, Any], wanted: int | None, now: str) -> bool:
        """It was tried in vain, and is not due again yet, or only once somebody asks."""
        if row["reason"] is None or row["tried"] != wanted:
            return False
        if row["next_try"] is None:
            return True
        left = datetime.fromisoformat(row["next_try"]) - datetime.fromisoformat(now)
        return timedelta(0) < left <= LONGEST_PAUSE  # a clock that was set back is not waited for

    def _next(self, line: str, wanted: int | None, row: dict[str, Any], now: str) -> Step | None:
        alias = self._steps.alias(line)
        here = (row["host"], row["alias"]) == (self._host, alias) and self._steps.stands(alias)
        served_now = (here and row["version"] == wanted and bool(row["name"])) or (
            wanted is None and (row["version"] is None or row["host"] != self._host))  # fmt: skip
        told = not self._serve.command or wanted is None or row["told"] == wanted
        if self._serve.ollama == "auto" and self._clock() >= self._probe_again and not (
                served_now and told and line not in self._doubted):  # fmt: skip
            return Step("probe", line, wanted, lambda _: delivering.somebody_answers(self._host), self._probed)
        if self._serve.ollama != "off" and self._there:
            if line in self._doubted:
                return self._steps.checking(line, row)
            if not served_now:
                return self._steps.to_base(line, row) if wanted is None else self._to_version(line, wanted, row, now)
        if not told and wanted is not None:
            made, version = self._made(line, wanted, row, now), jobs.version(self._world.db, wanted)
            return self._steps.telling(line, version, made) if made and version else None
        return None

    def _to_version(self, line: str, wanted: int, row: dict[str, Any], now: str) -> Step | None:
        alias, known = self._steps.alias(line), self._steps.names()
        name = f"{alias}-v{wanted}"
        state = known[name]["state"] if name in known and alias in known else None
        if state == "made":
            return self._steps.asking(line, wanted, name)
        if state == "answered":
            return self._steps.moving(line, wanted, name, alias)
        made, version = self._made(line, wanted, row, now), jobs.version(self._world.db, wanted)
        return self._steps.making(line, version, made) if made and version else None

    def _made(self, line: str, wanted: int, row: dict[str, Any], now: str) -> exporting.Made | None:
        """The files of a version; where there are none, an export job is wanted, or it failed and is waited for."""
        made = exporting.made(self._world, wanted)
        merged = jobs.get_meta(self._world.db, MERGED) == self._host
        if made is not None and not (merged and made.told.form == "adapter"):
            return made
        job = serving.job_of(self._world.db, wanted)
        if job is not None and job["state"] == "failed":
            ended = str(job["finished_at"] or job["created_at"])
            noted = row["tried"] == wanted and str(row["next_try"] or "") > ended
            if not noted and ended >= str(row["asked_at"] or ""):
                often = serving.failures(self._world.db, wanted, row["asked_at"]) >= MOST_EXPORTS
                reason = f"its export failed (job {job['id']}): {job['reason']}"
                self._trouble(line, wanted, reason, now, final=often or job["exit_code"] == ExitCode.BAD_SPEC)
                return None
        if job is None or job["state"] not in _OPEN:
            self._wanted = (line, wanted)
        return None

    # -- the steps ------------------------------------------------------------------------------

    def _take(self, now: str) -> bool:
        reply = self._worker.take(self) if self._step is not None else None
        if reply is None or self._step is None:
            return False
        step, self._step = self._step, None
        if reply.error is None:
            if step.what not in ("probe", "command"):
                self._probe_again = self._clock() + AUTO_PAUSE  # it has just answered
            try:
                step.done(reply.value, now)
            except Wrong as wrong:
                self._in_vain(step, wrong, now)
            self._doubted -= {step.line} if step.what == "check" else set()
            self._clean_again = -math.inf if step.what in ("alias", "reset") else self._clean_again
        else:
            self._in_vain(step, reply.error, now)
        return True

    def _probed(self, somebody: bool, now: str) -> None:
        self._there, self._probe_again = somebody, self._clock() + AUTO_PAUSE
        self._note(None if somebody else f'no Ollama answers at {self._host}, and none is waited for (serve.ollama = '
                   '"auto")')  # fmt: skip

    # -- what went wrong ------------------------------------------------------------------------

    def _in_vain(self, step: Step, error: Exception, now: str) -> None:
        db = self._world.db
        if isinstance(error, Stopped):
            return
        if step.what == "clean":
            self._clean_again = self._clock() + AUTO_PAUSE
            self._log.info("cleaning_waits", model=step.name, reason=str(error))
            return
        if isinstance(error, Lost):
            with db.transaction():
                serving.set_name(db, self._host, step.name, "making")
            self._log.warning("model_lost", model=step.name, note="it is made again")
            return
        if isinstance(error, NoAdapters):
            with db.transaction():
                jobs.set_meta(db, MERGED, self._host)
            self._log.warning("no_adapters", reason=str(error), note="versions are merged for it from now on")
            return
        if step.what == "check":
            self._doubted.discard(step.line)
        final = isinstance(error, Wrong) and step.what != "command"
        if final and step.what == "ask":
            with db.transaction():  # a model that does not answer as it should is kept for nobody
                serving.set_name(db, self._host, step.name, "leaving")
            self._clean_again = -math.inf
        if isinstance(error, Trouble):
            final = not error.retry
        self._trouble(step.line, step.version, str(error) or repr(error), now, final=final)

    def _trouble(self, line: str, version: int | None, reason: str, now: str, *, final: bool) -> None:
        """Written down, so that `status` can say it: to be tried again later, or not by itself."""
        db, what = self._world.db, f"v{version}" if version else "the base"
        if final:
            with db.transaction():
                serving.failed(db, line, version, reason)
            self._log.error("serving_failed", line=line, version=version, reason=reason,
                            note=f"{what} stays in force, and what was served before goes on; engramd serve tries "
                            "again")  # fmt: skip
            return
        row = serving.line(db, line)
        tries = row["tries"] if row["tried"] == version else 0
        pause = min(FIRST_PAUSE * 2 ** min(tries, 10), LONGEST_PAUSE)
        then = (datetime.fromisoformat(now) + pause).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with db.transaction():
            serving.waits(db, line, version, reason, then)
        self._log.warning("serving_waits", line=line, version=version, reason=reason, next_try=then, tries=tries + 1)

    def _note(self, text: str | None) -> None:
        if jobs.get_meta(self._world.db, NOTE) != text:
            with self._world.db.transaction():
                jobs.set_meta(self._world.db, NOTE, text)
