"""benchmarks/gpu.py in its small form: it must run on the first try on a machine that is lent for an hour."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.jobs import ROOT


def test_the_small_form_measures_every_setting(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--smoke", "--json", figures],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["ceiling_tflops"] > 0
    settings = {(row["base"], row["rows"], row["recompute"]) for row in told["rows"]}
    assert len(settings) == len(told["rows"]) == 8
    for row in told["rows"]:
        assert row["steps"] >= 1 and row["tokens_per_second"] > 0 and row["stall_seconds"] > 0, row
        assert "padded rows" not in row["note"], row
    assert not [path for path in tmp_path.iterdir() if path != figures], "left behind"
