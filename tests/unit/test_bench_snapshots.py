"""benchmarks/snapshots.py in its small form, and the state that it measures on."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from benchmarks import snapshots as bench
from daemon import snapshots
from daemon.home import Home
from daemon.ledger import jobs
from tests.jobs import ROOT


def test_the_small_form_measures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "snapshots.py", "--smoke", "--json", figures],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["snapshots"] == bench.SMOKE.before + bench.SMOKE.rounds
    state = (bench.SMOKE.checkpoints + 1) * bench.SMOKE.checkpoint / 1e6
    assert state < told["state_mb"] and told["files"] > 6 * bench.SMOKE.checkpoints
    assert bench.SMOKE.checkpoint / 1e6 < told["new_mb"] < state, "the new checkpoint, and little beside it"
    assert told["snapshot_seconds"] > 0 and told["cp_seconds"] > 0
    assert not list(tmp_path.glob("engramd-*")), "left behind"


def test_all_of_the_state_is_in_the_snapshot(tmp_path: Path) -> None:
    size = bench.Size(checkpoints=4, checkpoint=30_000, memories=5, before=1, rounds=1)
    home, dice = Home(tmp_path / "home"), random.Random(2)
    world = bench.build(home, size, dice)
    try:
        bench.night(world, 5, size, dice)
        _, made = bench.take(world, 5)
        assert jobs.open_job(world.db) is not None
    finally:
        world.db.close()
    assert not list(snapshots.problems(made.path, {}))
    places = {name.rpartition("/")[0] for name in snapshots.read(made.path)["files"]}
    chain = {f"chains/1/checkpoint-{step}" for step in (2, 3, 4, 5)}
    job = "jobs/1000000-finetune"
    assert chain | {job, f"{job}/parent", f"{job}/checkpoint-1000000"} <= places
    assert "chains/1/checkpoint-1" not in places
