"""A rented pod of RunPod's: found again by its name, or made; the job runs over SSH; then its meter is stopped.

A stopped pod cannot be reached: its container is gone, with its sshd. So what the next job needs is fetched while it
runs, at once, and the meter stands before anything of it is judged. Whatever happens here, the pod stops itself when
what was reserved for it is used up: the end is given to it at its start (`renting.START`).
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon.compute import renting, runpod_api
from daemon.compute.line import Line
from daemon.compute.orders import Order
from daemon.compute.places import Gone, Heard, Leave, LineLost, NotNow, Say, Wanted
from daemon.compute.runpod_api import Api, Denied, PodInfo, Rejected, Unreachable
from daemon.compute.ssh import Ssh
from daemon.compute.telling import Report
from daemon.rules import costs
from daemon.settings_compute import SshSettings

LOOK = 1.0  # seconds between two looks at a pod that starts
LEAST_LEFT = 5.0  # seconds; with less, nothing is started any more


class Pod:
    """As `places.Place` has it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.report = Report(where="runpod", host="RunPod")
        self.label = "RunPod"
        self._job = Path()
        self._say: Say = lambda note: None
        self._rent = renting.Rent()
        self._ssh: Ssh | None = None
        self._client: Api | None = None
        self._deaf = False  # while a meter is stopped
        self._fresh = False  # the pod was made by this courier
        self._began = 0.0  # when the pod was found, or asked for

    # -- prepare ----------------------------------------------------------------------------------

    def prepare(self, job: Path, say: Say) -> None:
        """Raises LineLost only once files went over: until the pod has answered it is waited for here."""
        self._job, self._say, self._rent = job, say, renting.read(job)
        with self._money():
            pod = self._reachable(self._find_or_make())
            self._ssh = self._over_ssh(pod)
            before = self.report.sent
            while True:
                try:
                    self._ssh.prepare(job, say)
                    return
                except LineLost as lost:
                    self._look(lost)
                    if self.report.sent > before:
                        raise
                    self._await(pod)

    def _find_or_make(self) -> PodInfo:
        order, api = self._order, self._api()
        if order.runpod.price_per_hour <= 0.0:
            raise NotNow("nothing is rented while compute.runpod.price_per_hour is 0: set what a pod costs an hour")
        if not (order.runpod.template or order.runpod.image):
            raise NotNow("a pod is made of compute.runpod.template or compute.runpod.image: set one of them")
        self._began, self._fresh = time.time(), False
        found = api.named(order.name)
        for other in found[1:]:  # an answer was lost, and it was made twice
            api.halt(other.id, remove=True)
        pod = found[0] if found else self._left_of_another(api)
        if pod is not None and pod.running:
            if self._rent.pod != pod.id or self._rent.since is None:  # of a courier whose notes are lost
                self._begins(pod.id, pod.cost)
        elif pod is not None:
            pod = self._resumed(api, pod)
        if pod is None:
            pod, self._fresh = self._made(api), True
        if costs.too_dear(order.runpod.price_per_hour, pod.cost):
            api.halt(pod.id, remove=True)
            self._stands()
            raise NotNow(f"such a pod costs {costs.shown(pod.cost or 0.0)} an hour, and compute.runpod.price_per_hour "
                         f"is {costs.shown(order.runpod.price_per_hour)}: nothing was rented")  # fmt: skip
        self.label = f"pod {pod.id}"
        self.report.pod = pod.id
        return pod

    def _left_of_another(self, api: Api) -> PodInfo | None:
        """A stopped pod of an earlier job of this home, whose volume has base and environment already."""
        if self._order.runpod.after != "stop":
            return None
        prefix = prefix_of(self._order.home)
        return next((pod for pod in api.all() if pod.name.startswith(prefix) and not pod.running), None)

    def _made(self, api: Api) -> PodInfo:
        now = self._in_time()
        self._begins(None, None)
        key = renting.public_key_of(self._order.runpod.identity)
        try:
            pod = api.create(renting.body(self._order, now, key))
        except Rejected:
            self._stands()
            raise
        self._begins(pod.id, pod.cost, again=True)
        return pod

    def _resumed(self, api: Api, pod: PodInfo) -> PodInfo | None:
        """Started again with a new end; None where that machine has no GPU for it any more, and it was removed."""
        now = self._in_time()
        key = renting.public_key_of(self._order.runpod.identity)
        api.update(pod.id, {"name": self._order.name, "env": renting.environment(self._order, now, key)})
        self._begins(pod.id, pod.cost)
        try:
            api.start(pod.id)
        except Rejected as reason:
            self._say(f"{reason}; another pod is made")
            api.halt(pod.id, remove=True)
            self._stands()
            return None
        again = api.get(pod.id)
        if again is not None and again.gpus == 0:  # RunPod starts it without, where all of its machine are taken
            api.halt(pod.id, remove=True)
            self._stands()
            return None
        return again

    def _reachable(self, pod: PodInfo) -> PodInfo:
        """Once it has an address. Raises NotNow where it does not get one in time."""
        api = self._api()
        while not (pod.running and pod.ip and pod.port):
            self._await(pod)
            found = api.get(pod.id)
            if found is None:
                self._stands()
                raise NotNow(f"pod {pod.id} was removed while it started")
            pod = found
        return pod

    def _await(self, pod: PodInfo) -> None:
        """A moment. Raises NotNow where it was long enough: a pod that was just made goes, of one that had answered
        before the volume stays."""
        if time.time() > self._began + self._order.runpod.start_minutes * 60:
            self._halt(remove=self._fresh)
            raise NotNow(f"pod {pod.id} did not open its SSH port within compute.runpod.start_minutes, and was "
                         f"{'removed' if self._fresh else 'stopped'}")  # fmt: skip
        self._say(f"pod {pod.id} starts")
        self._pause(LOOK)

    def _over_ssh(self, pod: PodInfo) -> Ssh:
        order, settings = self._order, self._order.runpod
        hosts = str(self._job / ".pod-hosts").replace('"', "")
        own = ("IdentitiesOnly=yes",) if settings.identity else ()
        options = (
            "StrictHostKeyChecking=accept-new", f'UserKnownHostsFile="{hosts}"', "GlobalKnownHostsFile=none",
            f"HostKeyAlias={pod.id}-{int(self._rent.since or 0)}", *own,
        )  # fmt: skip
        line = Line(
            f"root@{pod.ip}", label=self.label, config=order.ssh.config, port=pod.port, identity=settings.identity,
            options=options, python=settings.python or "python3",
        )  # fmt: skip
        left = costs.time_to_train(self._rent.until - time.time())
        there = SshSettings.model_validate(
            {**order.ssh.model_dump(), "host": f"root@{pod.ip}", "python": settings.python, "folder": renting.FOLDER}
        )
        told = order.model_copy(update={"ssh": there, "deadline_hours": max(left, 1.0) / 3600})
        return Ssh(told, line=line, report=self.report)

    # -- at work --------------------------------------------------------------------------------

    def start(self) -> None:
        with self._money():
            try:
                self._there().start()
            except LineLost as lost:
                self._look(lost)
                raise

    def watch(self, progress_at: int, log_at: int) -> Iterator[Heard | Gone]:
        with self._money():
            try:
                yield from self._there().watch(progress_at, log_at)
            except LineLost as lost:
                self._look(lost)
                raise

    def stop(self) -> None:
        self._there().stop()

    def fetch(self, staged: Path, wanted: Sequence[Wanted], say: Say) -> None:
        with self._money():
            try:
                self._there().fetch(staged, wanted, say)
            except LineLost as lost:
                self._look(lost)
                raise

    def pause(self) -> None:
        """All is here, and not judged yet. A pod that is going to be removed need not run for that; one that stays is
        tidied first."""
        if self._order.runpod.after == "terminate":
            with contextlib.suppress(Unreachable, Denied, Rejected):  # release comes
                self._halt(remove=False)

    def release(self, done: bool) -> None:
        """Raises NotNow where the API cannot be told; the daemon's sweep goes on trying, and the pod's end holds."""
        remove = self._order.runpod.after == "terminate"
        if not remove and self._rent.since is not None:
            with contextlib.suppress(LineLost, NotNow):
                self._there().release(done)
        try:
            self._halt(remove=remove)
        except (Unreachable, Denied, Rejected) as reason:
            raise NotNow(f"{reason}: the sweep tries again, and {self.label} stops by itself in time") from None

    # -- money ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _money(self) -> Iterator[None]:
        """Where the job cannot go on for now, the meter does not either. A line that is lost is another matter: what
        was paid for goes on over there."""
        try:
            yield
        except (NotNow, Leave):
            with contextlib.suppress(Unreachable, Denied, Rejected):
                self._halt(remove=False)
            raise
        except (Denied, Rejected, Unreachable) as reason:
            raise NotNow(str(reason)) from None

    def _halt(self, *, remove: bool) -> None:
        """The meter stands: known from the API, not hoped for. Nobody who asks us to leave is heard meanwhile."""
        self._deaf = True
        try:
            self._stop_meter(remove=remove)
        finally:
            self._deaf = False

    def _stop_meter(self, *, remove: bool) -> None:
        if self._rent.pod is not None:
            self._api().halt(self._rent.pod, remove=remove)
        elif self._rent.since is not None:
            found = self._api().named(self._order.name)
            for pod in found:
                self._api().halt(pod.id, remove=remove)
            if not found:  # it may have been made, and be in no list yet: the sweep knows more, later
                return
        self._stands()

    def _look(self, lost: LineLost) -> None:
        """The line is lost: is there still a pod behind it? Raises NotNow where there is none."""
        if self._rent.pod is None:
            return
        try:
            found = self._api().get(self._rent.pod)
        except (Unreachable, Rejected):
            return
        if found is not None and found.running:
            if found.port is not None and self._ssh is not None and self._ssh.line.port != found.port:
                raise NotNow(f"{self.label} was started anew by somebody else; the job goes on there") from lost
            return
        over = time.time() >= self._rent.until - renting.STOP_MOST
        self._stands()
        why = "its time was over" if over else "RunPod, or somebody, stopped it"
        said = f"{self.label} stopped before the job was home: {why}; it goes on from its last checkpoint"
        raise NotNow(said) from lost

    def _begins(self, pod: str | None, cost: float | None, *, again: bool = False) -> None:
        """A meter may run from now on. `again`: the same one, of which more is known now."""
        rent, now = self._rent, time.time()
        if not again and rent.since is not None:
            rent.stand(now)
        rent.since = rent.since if again and rent.since is not None else now
        rent.pod, rent.name, rent.until = pod, self._order.name, self._order.until
        rent.price = max(self._order.runpod.price_per_hour, cost or 0.0)
        rent.write(self._job)

    def _stands(self) -> None:
        self._rent.stand(time.time())
        self._rent.write(self._job)
        self.report.dollars = round(self._rent.dollars, 4)

    def _in_time(self) -> float:
        now = time.time()
        if self._order.until - now < LEAST_LEFT:
            raise NotNow("the time that was paid for this job is over; what is left of its budget is looked at again")
        return now

    def _pause(self, seconds: float) -> None:
        """Also between tries of the API: asks all the while whether to go on."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not self._deaf:
                self._say("")
            time.sleep(min(0.2, left))

    def _api(self) -> Api:
        if self._client is None:
            self._client = Api(self._order.runpod.api, runpod_api.key(), self._pause)
        return self._client

    def _there(self) -> Ssh:
        assert self._ssh is not None, "prepare comes first"
        return self._ssh


def prefix_of(home: str) -> str:
    """With which the names of all pods of a home begin."""
    return f"engramd-{home}-"
