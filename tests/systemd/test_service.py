"""The shipped unit under a really booted systemd: ready, trained, killed, hung, stopped, and the same bits after."""

import signal

import pytest

from daemon.ledger import batches, memories
from tests.systemd.conftest import HOME, UNIT, Engramd


def test_it_is_ready_and_trains_what_a_member_drops(engramd: Engramd, undisturbed: dict[str, str]) -> None:
    shown = engramd.show("ActiveState", "SubState", "Type", "User", "UnitFileState")
    assert shown == {
        "ActiveState": "active", "SubState": "running", "Type": "notify", "User": "engramd", "UnitFileState": "enabled",
    }  # fmt: skip
    seen: set[str] = set()

    def trained() -> bool:
        seen.add(engramd.show("StatusText")["StatusText"])
        return engramd.promoted()

    engramd.drop(0, 40)
    engramd.until(trained)
    assert any("step" in text and "loss" in text for text in seen), seen
    engramd.until(lambda: engramd.show("StatusText")["StatusText"] == "watching the inbox")
    assert engramd.head() == undisturbed
    with engramd.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 40}
        assert batches.counts(db) == {"done": 1}


def in_mid_training(engramd: Engramd) -> None:
    """Batch 0 is being trained: past its first checkpoint, before its last steps."""
    engramd.drop(0, 40)
    engramd.until(lambda: engramd.steps() >= 5)
    assert engramd.trainers() and not engramd.promoted()


def finished_as(engramd: Engramd, undisturbed: dict[str, str], *, resumed: bool = True) -> None:
    engramd.until(engramd.promoted)
    assert engramd.head() == undisturbed
    with engramd.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 40}
    assert not engramd.trainers()
    assert engramd.events("resuming_from_checkpoint") or not resumed
    audit = engramd.machine.run(
        "setpriv", "--reuid=engramd", "--regid=engramd", "--init-groups", "engramd", "audit", check=False
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_killed_trainer_goes_on(engramd: Engramd, undisturbed: dict[str, str]) -> None:
    in_mid_training(engramd)
    main = engramd.show("MainPID")
    engramd.machine.run("kill", "-KILL", *map(str, engramd.trainers()))
    finished_as(engramd, undisturbed)
    assert engramd.show("MainPID") == main  # the daemon went on too


@pytest.mark.parametrize("whom", ["main", "all"])
def test_a_killed_daemon_comes_back(engramd: Engramd, undisturbed: dict[str, str], whom: str) -> None:
    """`main` is the daemon alone, `all` the daemon and its trainer in the same moment."""
    in_mid_training(engramd)
    before = engramd.show("MainPID", "NRestarts")
    engramd.machine.run("systemctl", "kill", f"--kill-whom={whom}", "-s", "KILL", UNIT)
    finished_as(engramd, undisturbed)
    after = engramd.show("MainPID", "NRestarts")
    assert after["MainPID"] != before["MainPID"] and int(after["NRestarts"]) == int(before["NRestarts"]) + 1


def test_a_hang_is_noticed(engramd: Engramd, undisturbed: dict[str, str]) -> None:
    in_mid_training(engramd)
    main = engramd.show("MainPID")["MainPID"]
    engramd.machine.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", UNIT)
    engramd.until(lambda: engramd.show("MainPID")["MainPID"] not in (main, "0"))
    assert "watchdog" in engramd.journal().lower()
    finished_as(engramd, undisturbed, resumed=False)  # the trainer may well have finished meanwhile


def test_a_stop_saves_and_the_next_start_goes_on(engramd: Engramd, undisturbed: dict[str, str]) -> None:
    in_mid_training(engramd)
    done = engramd.steps()
    engramd.machine.run("systemctl", "stop", UNIT)
    shown = engramd.show("ActiveState", "Result", "ExecMainStatus", "ExecMainCode")
    assert shown == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "ExecMainCode": "1"}
    assert not engramd.trainers()
    folder = engramd.home.profile("me").jobs / "1-finetune"
    saved = max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert saved >= done  # nothing that was trained is trained again
    engramd.machine.run("systemctl", "start", UNIT)
    finished_as(engramd, undisturbed)
    assert engramd.events("resuming_from_checkpoint")[-1]["global_step"] == saved


def test_wrong_settings_stop_it_with_a_sentence(engramd: Engramd) -> None:
    """Restarting would not mend them, and would bury the sentence."""
    good = engramd.machine.sh(f"cat {HOME}/etc/engramd.toml")
    try:
        engramd.machine.write(f"{HOME}/etc/engramd.toml", "[inbox]\nquite_seconds = 3\n")
        assert engramd.machine.run("systemctl", "restart", UNIT, check=False).returncode
        shown = engramd.show("ActiveState", "ExecMainStatus")
        assert shown == {"ActiveState": "failed", "ExecMainStatus": "78"}
        said = engramd.journal()
        assert "quite_seconds" in said and "Traceback" not in said
    finally:
        engramd.machine.write(f"{HOME}/etc/engramd.toml", good)


def test_nothing_of_it_outlives_a_stop_that_is_cut_short(engramd: Engramd) -> None:
    """Whatever the daemon leaves behind in its group goes with it."""
    in_mid_training(engramd)
    engramd.machine.run("kill", f"-{int(signal.SIGSTOP)}", *map(str, engramd.trainers()))  # it will not save
    engramd.machine.run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", UNIT)
    engramd.machine.run("systemctl", "stop", UNIT)
    assert not engramd.trainers()
