"""Back to a day and on again, with the real trainer: the bits of a run that had never gone past that day."""

import json
import os
import subprocess
from pathlib import Path

from tests.faults.night import ROOT, Night


def say(night: Night, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(night.command(*arguments), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_back_and_on_again(tmp_path: Path) -> None:
    night, never = Night(tmp_path / "night", forked=True), Night(tmp_path / "never", forked=True)
    for one in (night, never):
        one.drop(0)
        one.finish()
    day = json.loads(say(night, "snapshot", "create", "--json"))["snapshot"]
    for number in (1, 2):
        night.drop(number)
        never.drop(number)
        if number == 1:
            night.finish()
    never.finish()
    assert "5 memories would wait again" in say(night, "snapshot", "restore", day, "--dry-run")
    say(night, "snapshot", "restore", day, "--yes")
    night.finish()
    assert night.bits() == never.bits()
    night.check_counts(3)
    assert night.audit().returncode == 0
    assert "all is as it was written" in say(night, "snapshot", "verify")
