"""The desktop's unit under a person's own service manager: installed, trained, taken away, and what stays."""

import json

from tests.faults.night import RECIPE, TOML
from tests.systemd.conftest import ENGRAMD, UNIT
from tests.systemd.machine import Machine, until


def test_a_person_installs_trains_and_uninstalls(machine: Machine) -> None:
    uid = machine.sh("id -u bob").strip()
    runtime = f"/run/user/{uid}"
    # What logind does at a login; it does not run in the machine.
    nothing = "[Service]\nExecStart=\nExecStart=true\n"
    machine.write("/etc/systemd/system/user-runtime-dir@.service.d/none.conf", nothing)
    machine.sh(f"mkdir -p /run/user && install -d -m 0700 -o bob -g bob {runtime} && systemctl daemon-reload")
    machine.run("systemctl", "start", f"user@{uid}.service")
    for name, text in (("engramd.toml", TOML.format(most=1000)), ("training.json", json.dumps(RECIPE))):
        machine.write(f"/home/bob/mem/etc/{name}", text)
    machine.sh("chown -R bob: /home/bob/mem")

    def say(words: str) -> str:
        return machine.sh(f"export XDG_RUNTIME_DIR={runtime}; {words}", user="bob")

    assert "write: /home/bob/.config/systemd/user/engramd.service" in say(f"{ENGRAMD} install --home ~/mem")
    shown = say(f"systemctl --user show -p ActiveState -p Type -p UnitFileState {UNIT}").split()
    assert set(shown) == {"ActiveState=active", "Type=notify", "UnitFileState=enabled"}
    say("echo 'I planted three apple trees.' >~/mem/inbox/a.txt")
    log = "/home/bob/mem/state/logs/engramd.jsonl"
    until(lambda: "version_promoted" in machine.sh(f"cat {log}"), lambda: machine.sh(f"cat {log}"), 90)
    assert not machine.sh("find ~/mem/state ~/mem/inbox -perm /go=rwx ! -type l", user="bob")
    said = say(f"{ENGRAMD} uninstall")
    assert "kept: /home/bob/mem: all memories" in said
    assert "inactive" in machine.sh(
        f"export XDG_RUNTIME_DIR={runtime}; systemctl --user is-active {UNIT}", user="bob", check=False
    )
    assert not machine.sh("find ~/.config/systemd -name 'engramd*'", user="bob")
    assert machine.sh("ls ~/mem", user="bob").split() == ["etc", "inbox", "state"]
