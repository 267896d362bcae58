"""`python -m daemon.compute sweep`: pods of this home, found by their names, and decided upon. A process of its own, so
that the daemon loads no HTTP client and waits for no network.

Reads one JSON object (`Asked`), prints one (`Told`). A pod that no open job will take up again is removed, or stopped,
by compute.runpod.after; pods of other homes, and all others of the account, are not touched.
"""

import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from daemon.compute import renting
from daemon.compute.runpod import prefix_of
from daemon.compute.runpod_api import Api, Denied, PodInfo, Rejected, Unreachable, key

UNSEEN = 120.0  # seconds in which a pod that was just made may be missing in the API's lists


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Attempt(_Strict):
    """One that is open in the ledger, and whose courier is not at work."""

    name: str
    folder: Path  # of the job; one that is no folder where it is gone


class Asked(_Strict):
    api: str
    home: str
    remove: bool  # compute.runpod.after is "terminate"
    attempts: list[Attempt]
    kept: list[str]  # names of jobs that will be taken up again: what runs for them goes on
    busy: list[str] = []  # names whose courier is at work: theirs to decide
    rest: bool = False  # no courier may begin now: pods of `kept` are stopped, with all that is on their volumes


class Stands(_Strict):
    """The meter of this attempt stands: what the job has cost so far."""

    name: str
    dollars: float | None  # None: its notes are gone


class Done(_Strict):
    pod: str
    name: str
    what: str  # removed, stopped, kept


class Told(_Strict):
    stands: list[Stands] = []
    pods: list[Done] = []
    error: str | None = None


def sweep(asked: Asked, api: Api, now: float) -> Told:
    """Raises Unreachable, Denied, Rejected."""
    attempts = {one.name: (one, renting.read(one.folder)) for one in asked.attempts}
    own = [pod for pod in api.all() if pod.name.startswith(prefix_of(asked.home)) and pod.name not in asked.busy]
    done, seen, running, spare = [], set[str](), set[str](), asked.remove
    for pod in sorted(own, key=lambda pod: (not pod.running, pod.id)):
        if pod.name in asked.kept and pod.name not in seen:
            what = _end(api, pod, remove=False) if asked.rest and pod.running else "kept"
            seen.add(pod.name)
            if pod.running and not asked.rest:
                running.add(pod.name)
        else:
            what = _end(api, pod, remove=spare)
            spare = spare or what != "removed"  # of stopped ones, one is enough
        done.append(Done(pod=pod.id, name=pod.name, what=what))
    stands = []
    for name, (attempt, rent) in attempts.items():
        if renting.read(attempt.folder) != rent:
            continue  # a courier has begun since, and these notes are its own
        unseen = rent.since is not None and rent.pod is None and now - rent.since < UNSEEN
        if name in running or (unseen and not any(pod.name == name for pod in own)):
            continue
        if rent.since is not None:
            rent.stand(now)
            rent.write(attempt.folder)
        stands.append(Stands(name=name, dollars=rent.dollars if attempt.folder.is_dir() else None))
    return Told(stands=stands, pods=done)


def _end(api: Api, pod: PodInfo, *, remove: bool) -> str:
    if remove or pod.running:
        api.halt(pod.id, remove=remove)
    return "removed" if remove else "stopped"


def main() -> int:
    try:
        asked = Asked.model_validate_json(sys.stdin.buffer.read())
        told = sweep(asked, Api(asked.api, key()), time.time())
    except (Unreachable, Denied, Rejected) as reason:
        told = Told(error=str(reason))
    print(told.model_dump_json(), flush=True)
    return 0
