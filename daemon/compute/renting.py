"""A pod's own part of the bargain: what it is made of, the end that it is given, and what it has cost so far.

`pod.json` in the job's folder is written before each request that may start a meter, so that no crash makes a pod
cheaper than it was.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon import durable
from daemon.compute.orders import Order
from daemon.rules import costs

FILE = "pod.json"
VOLUME = "/workspace"
FOLDER = "engramd-compute"  # from the home there, a link into the volume; compute.ssh.folder is another machine's
STOP_SHARE, STOP_MOST = 0.05, 20.0  # of the time that is left, and seconds: the API takes a moment to stop a pod

# Runs as the pod's start command, so again at each start. First the end is set up, then the door is opened: sshd is
# the image's, the key in PUBLIC_KEY is ours or the one that RunPod's account settings put there. runpodctl and its
# key, which is good for this pod alone, are in every pod (github.com/runpod/runpodctl, README).
START = """
stop() {
  runpodctl stop pod "$RUNPOD_POD_ID" && return
  curl -fsS -X POST -H "Authorization: Bearer $RUNPOD_API_KEY" "$ENGRAMD_API/pods/$RUNPOD_POD_ID/stop"
}
(
  left=$((ENGRAMD_UNTIL - $(date +%s)))
  [ "$left" -gt "$ENGRAMD_SECONDS" ] && left=$ENGRAMD_SECONDS
  [ "$left" -gt 0 ] && sleep "$left"
  while :; do stop; sleep 5; done
) > /dev/null 2>&1 &
umask 077
mkdir -p ~/.ssh {volume}/engramd
[ -n "$PUBLIC_KEY" ] && printf '%s\\n' "$PUBLIC_KEY" >> ~/.ssh/authorized_keys
[ -e ~/{folder} ] || ln -s {volume}/engramd ~/{folder}
mkdir -p /run/sshd
ssh-keygen -A
PATH="$PATH:/usr/sbin:/sbin"
$(command -v sshd) -D
while :; do sleep 3600; done
"""


@dataclass(slots=True)
class Rent:
    """`since`: unix time from which a meter may run; None: it stands. `until`: of the newest start."""

    pod: str | None = None
    name: str = ""
    since: float | None = None
    until: float = 0.0
    price: float = 0.0  # dollars an hour, the higher of what was set and what the API tells
    dollars: float = 0.0  # of the times before

    def spent(self, now: float) -> float:
        """Dollars up to now. A pod whose end has passed has stopped there."""
        if self.since is None:
            return self.dollars
        return self.dollars + costs.dollars(min(now, self.until) - self.since, self.price)

    def stand(self, now: float) -> None:
        """The meter is known to stand."""
        self.dollars, self.since = self.spent(now), None

    def write(self, job: Path) -> None:
        durable.write_atomic(job / FILE, json.dumps(asdict(self), indent=1).encode() + b"\n", 0o600)


def read(job: Path) -> Rent:
    """As it was written last; an empty one where there is none, or it cannot be read."""
    try:
        told = json.loads((job / FILE).read_bytes())
        return Rent(**{key: told[key] for key in Rent.__dataclass_fields__ if key in told})
    except (OSError, ValueError, TypeError):
        return Rent()


def stops_at(order: Order, now: float) -> float:
    """When the pod stops itself: a little before what is paid for is over."""
    left = order.until - now
    return order.until - min(STOP_MOST, max(0.0, left) * STOP_SHARE)


def environment(order: Order, now: float, public_key: str) -> dict[str, str]:
    """What the start command reads. The account's key is not in it."""
    until, price = int(stops_at(order, now)), order.runpod.price_per_hour
    seconds = until - int(now)
    if order.budget > 0.0 and price > 0.0:  # a clock that was set back since makes no end later than what is paid for
        seconds = min(seconds, int(order.budget / price * 3600.0))
    told = {
        "ENGRAMD_UNTIL": str(until), "ENGRAMD_SECONDS": str(max(1, seconds)),
        "ENGRAMD_API": order.runpod.api.rstrip("/"),
    }  # fmt: skip
    return told | ({"PUBLIC_KEY": public_key} if public_key else {})


def body(order: Order, now: float, public_key: str) -> dict[str, Any]:
    """Of POST /pods."""
    settings = order.runpod
    script = START.replace("{volume}", VOLUME).replace("{folder}", FOLDER)
    made = {
        "name": order.name, "computeType": "GPU", "gpuCount": settings.gpus, "volumeInGb": settings.volume_gb,
        "volumeMountPath": VOLUME, "ports": ["22/tcp"], "supportPublicIp": True, "interruptible": False,
        "env": environment(order, now, public_key), "dockerStartCmd": ["bash", "-c", script],
    }  # fmt: skip
    if settings.gpu:
        made |= {"gpuTypeIds": list(settings.gpu), "gpuTypePriority": "custom"}
    return made | ({"templateId": settings.template} if settings.template else {"imageName": settings.image})


def public_key_of(identity: str) -> str:
    """The public half beside a private key's file; empty where there is none, and RunPod's own setting counts."""
    if not identity:
        return ""
    path = Path(identity).expanduser()
    try:
        return path.with_name(path.name + ".pub").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
