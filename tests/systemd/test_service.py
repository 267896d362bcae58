"""The shipped unit under a really booted systemd: ready, trained, killed, hung, stopped, and the same bits after."""

from daemon.ledger import memories
from tests.systemd.conftest import HOME, UNIT, Engramd, Undisturbed


def test_it_is_ready_and_trains_what_a_member_drops(engramd: Engramd, undisturbed: Undisturbed) -> None:
    shown = engramd.show("ActiveState", "SubState", "Type", "User", "UnitFileState")
    assert shown == {
        "ActiveState": "active", "SubState": "running", "Type": "notify", "User": "engramd", "UnitFileState": "enabled",
    }  # fmt: skip
    assert any("step" in text and "loss" in text for text in undisturbed.status), undisturbed.status


def in_mid_training(engramd: Engramd) -> None:
    """Batch 0 is being trained: past its first checkpoint, before its last steps."""
    engramd.drop(0, 40)
    engramd.until(lambda: engramd.steps() >= 5)
    assert engramd.trainers() and not engramd.promoted()


def finished_as(engramd: Engramd, undisturbed: Undisturbed, *, resumed: bool = True) -> None:
    engramd.until(engramd.promoted)
    assert engramd.head() == undisturbed.bits
    with engramd.ledger() as db:
        assert memories.counts(db)["state"] == {"trained": 40}
    assert not engramd.trainers()
    assert engramd.events("resuming_from_checkpoint") or not resumed
    audit = engramd.machine.run(
        "setpriv", "--reuid=engramd", "--regid=engramd", "--init-groups", "engramd", "audit", check=False
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_kills_of_trainer_daemon_and_both(engramd: Engramd, undisturbed: Undisturbed) -> None:
    """One job, three kills: the trainer; the daemon, whose trainer systemd takes along; both in one moment."""
    in_mid_training(engramd)
    main = engramd.show("MainPID", "NRestarts")
    engramd.machine.run("kill", "-KILL", *map(str, engramd.trainers()))
    for restarts, whom in enumerate(("main", "all"), start=1):
        engramd.until(lambda number=restarts: len(engramd.events("resuming_from_checkpoint")) == number)  # type: ignore[misc]
        taken = engramd.steps()
        engramd.until(lambda least=taken + 4: engramd.steps() >= least)  # type: ignore[misc]
        old = engramd.trainers()
        if restarts == 1:
            assert engramd.show("MainPID", "NRestarts") == main  # the trainer alone had died
        engramd.machine.run("systemctl", "kill", f"--kill-whom={whom}", "-s", "KILL", UNIT)
        engramd.until(lambda pids=old: pids and not set(pids) & set(engramd.trainers()))  # type: ignore[misc]
    finished_as(engramd, undisturbed)
    after = engramd.show("MainPID", "NRestarts")
    assert after["MainPID"] != main["MainPID"] and int(after["NRestarts"]) == int(main["NRestarts"]) + 2


def test_a_hang_is_noticed(engramd: Engramd, undisturbed: Undisturbed) -> None:
    in_mid_training(engramd)
    main = engramd.show("MainPID")["MainPID"]
    engramd.machine.run("systemctl", "kill", "--kill-whom=main", "-s", "STOP", UNIT)
    engramd.until(lambda: engramd.show("MainPID")["MainPID"] not in (main, "0"))
    assert "watchdog" in engramd.journal().lower()
    finished_as(engramd, undisturbed, resumed=False)  # the trainer may well have finished meanwhile


def test_a_stop_saves_and_the_next_start_goes_on(engramd: Engramd, undisturbed: Undisturbed) -> None:
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
