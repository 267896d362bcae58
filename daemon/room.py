"""Room on the GPU: models that an Ollama has loaded are unloaded before a job is trained there, and loaded again after.

Ollama is asked in a thread of its own. Whether it answers or not, training begins a few seconds later at most.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from daemon import delivering
from daemon.delivering import Place, Worker
from daemon.logs import get_logger
from daemon.settings_serving import ServeSettings

MOST_SECONDS = 8.0  # until training begins, whatever Ollama does
_SILENCE = 3.0  # seconds, of one call

_log = get_logger()


class Room:
    """Of one profile's jobs."""

    def __init__(
        self, profile: str, serve: ServeSettings, worker: Worker, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._serve, self._worker, self._clock = serve, worker, clock
        self._place = Place(serve.where(), _SILENCE)
        self._for: tuple[int, int] | None = None  # job and attempt that room was asked for
        self._until = -math.inf
        self._made = False
        self._unloaded: list[str] = []
        self._log = _log.bind(profile=profile)

    def is_there(self, job: dict[str, Any], on_gpu: Callable[[], bool]) -> bool:
        """Whether this job may start now, as far as other models are concerned. Asked again until it is."""
        if self._serve.ollama == "off" or not self._serve.unload:
            return True
        wanted = (job["id"], job["attempts"])
        if self._for != wanted:
            if not on_gpu() or self._worker.busy:
                return True
            self._for, self._made, self._until = wanted, False, self._clock() + MOST_SECONDS
            self._worker.start(self, lambda stop: delivering.unload(self._place, stop))
        if not self._made:
            self._made = self._look()
        return self._made

    def _look(self) -> bool:
        reply = self._worker.take(self)
        if reply is not None and reply.error is None:
            if reply.value:
                self._unloaded = list(dict.fromkeys([*self._unloaded, *reply.value]))
                self._log.info("models_unloaded", models=reply.value, note="they make room for training")
            return True
        if reply is not None or self._clock() > self._until:
            reason = str(reply.error) if reply is not None else f"no answer in {MOST_SECONDS:g} seconds"
            self._log.warning("models_not_unloaded", reason=reason, note="training begins all the same")
            return True
        return False

    def give_back(self) -> None:
        """Nothing is trained for now: what made room is loaded again."""
        reply = self._worker.take(self)
        if reply is not None and reply.error is None and reply.value:
            self._log.info("models_loaded", models=reply.value)
        if not self._unloaded or self._worker.busy:
            return
        loaded, self._unloaded, self._for = self._unloaded, [], None
        self._worker.start(self, lambda stop: delivering.load(self._place, loaded, self._serve.keep_alive, stop))
