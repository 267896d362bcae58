"""The shipped unit with its way out over SSH: what it forbids must leave ssh, rsync and the courier their work."""

from collections.abc import Iterator

import pytest

from daemon.compute import telling
from tests.elsewhere import Machine as Far
from tests.elsewhere import machine as far_machine
from tests.systemd.conftest import ENGRAMD, HOME, UNIT, Engramd

KEYS = f"{HOME}/.ssh"


@pytest.fixture
def far() -> Iterator[Far]:
    with far_machine() as made:
        yield made


def test_a_job_leaves_the_service_and_comes_home(engramd: Engramd, far: Far) -> None:
    """Key, config and known hosts in the service's own home, as docs/elsewhere.md says; the drop-in as shipped."""
    inside, toml = engramd.machine, f"{HOME}/etc/engramd.toml"
    config = far.config.read_text().replace(str(far.root), KEYS)
    before = inside.sh(f"cat {toml}")
    inside.write(f"{KEYS}/config", config)
    for name in ("client_key", "known_hosts"):
        inside.write(f"{KEYS}/{name}", (far.root / name).read_text())
    inside.sh(f"chown -R engramd: {KEYS}; chmod 700 {KEYS}; chmod 600 {KEYS}/*")
    try:
        inside.write(toml, before + far.toml(fake=True).replace(f'config = "{far.config}"\n', ""))
        inside.run(ENGRAMD, "install", "--system", "--with", "ssh")
        doctor = inside.run("setpriv", "--reuid=engramd", "--regid=engramd", "--init-groups", ENGRAMD, "--home", HOME,
                            "doctor", check=False).stdout  # fmt: skip
        assert "far: Python 3" in doctor
        inside.run("systemctl", "restart", UNIT)
        engramd.drop(0, 5)
        engramd.until(engramd.promoted)
        (folder,) = engramd.home.profile("me").jobs.iterdir()
        assert telling.read(folder)["fetched"] > 0 and len(engramd.events("job_came_home")) == 1
        assert far.trainers() == far.guardians() == []
    finally:
        inside.write(toml, before)
        inside.sh(f"rm -rf {KEYS} /etc/systemd/system/{UNIT}.d/ssh.conf; systemctl daemon-reload")
        inside.run("systemctl", "stop", UNIT)
