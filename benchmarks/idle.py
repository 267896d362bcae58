"""What engramd costs while nothing happens: memory and CPU time of the idle daemon, and how quick `status` is.

    python benchmarks/idle.py [--smoke] [--json FILE]

Bars: RSS <= 55 MiB; CPU time <= 0.2 % over a minute, as the kernel counts it; no heavy package loaded;
`engramd status` <= 12 x `python -c pass`, interleaved, median of the ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "accelerate")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")} | {"PYTHONPATH": str(ROOT)}


def engramd(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "daemon", "--home", str(home), *arguments]


def idle(home: Path, seconds: float) -> dict[str, Any]:
    """RSS in MiB and the share of one processor of a daemon that has settled."""
    with open(home / "out", "wb") as out:
        daemon = subprocess.Popen(engramd(home, "run"), env=ENVIRONMENT, stdout=out, stderr=out)
    try:
        process = psutil.Process(daemon.pid)
        deadline = time.monotonic() + 60
        while '"profile_ready"' not in (home / "out").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(min(5.0, seconds))
        before = process.cpu_times()
        began = time.monotonic()
        time.sleep(seconds)
        after = process.cpu_times()
        cpu = (after.user + after.system) - (before.user + before.system)
        loaded = [one.path for one in process.memory_maps() if any(f"/{name}/" in one.path for name in HEAVY)]
        return {
            "rss_mib": process.memory_info().rss / 2**20,
            "cpu_percent": 100 * cpu / (time.monotonic() - began),
            "heavy_libraries": len(loaded),
        }
    finally:
        daemon.terminate()
        daemon.wait(30)


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def status(home: Path, repeats: int) -> dict[str, float]:
    pairs = []
    for _ in range(repeats + 1):  # the first pair warms the caches
        pairs.append((seconds_of(engramd(home, "status")), seconds_of([sys.executable, "-c", "pass"])))
    ratios = [a / b for a, b in pairs[1:]]
    return {
        "status_seconds": statistics.median(a for a, _ in pairs[1:]),
        "pass_seconds": statistics.median(b for _, b in pairs[1:]),
        "status_ratio": statistics.median(ratios),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark of the idle daemon and of `engramd status`.")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, no bars")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engramd-idle-") as folder:
        home = Path(folder)
        found = idle(home, 3.0 if options.smoke else 60.0)
        found |= status(home, 3 if options.smoke else 15)
    for name, value in found.items():
        print(f"{name:20}{value:>10.3f}" if isinstance(value, float) else f"{name:20}{value:>10}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    bars = {
        "RSS <= 55 MiB": found["rss_mib"] <= 55,
        "CPU <= 0.2 %": found["cpu_percent"] <= 0.2,
        "no heavy package": found["heavy_libraries"] == 0,
        "status <= 12 x pass": found["status_ratio"] <= 12,
    }
    if options.smoke:
        return 0
    for name, held in bars.items():
        print(f"{'held' if held else 'MISSED'}: {name}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
