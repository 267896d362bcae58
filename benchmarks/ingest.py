"""From files in the inbox to memories in the ledger: files/s, memories/s, peak memory, and what a rescan costs.

Each measurement is a `run --once` of a real daemon in a process of its own, on a fresh home whose base
model is not on disk, so that nothing is trained. Peak RSS is that of the process, as the kernel counts it.

    python benchmarks/ingest.py [--smoke] [--json FILE]

Bars: peak RSS <= 300 MiB; a rescan with nothing new <= 0.1 of the first run's work; time per memory with
1,000,000 lines <= 1.15 x that with 10,000.
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

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import json, resource, sys, time
from pathlib import Path
from daemon import logs
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
home = Home(Path(sys.argv[1]))
settings = load(home, {"training.base_model": "nobody/none", "inbox.quiet_seconds": 0.0, "service.tick_seconds": 0.01})
logs.configure(home, "warning", quiet=True)
lock, service = Lock(home), Service(home, settings)
began, cpu = time.perf_counter(), time.process_time()
service.run(until=service.idle)
used = time.perf_counter() - began, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": used[0], "cpu": used[1], "mib": peak}))
"""


def once(home: Path) -> dict[str, float]:
    """One run until nothing is due: seconds, CPU seconds, peak MiB."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(home)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memories_in(home: Path) -> int:
    from daemon import ledger
    from daemon.home import Home
    from daemon.ledger import memories

    with ledger.open_profile(Home(home).profile("me").ledger, write=False) as db:
        return memories.total(db)


def line(number: int) -> str:
    text = f"On day {number} I walked along the river and counted {number * 7919 % 100_003} stones, " * 4
    return json.dumps({"type": "journal", "timestamp": "2026-01-01T00:00:00Z", "content": text + str(number)})


def files(home: Path, count: int) -> None:
    (home / "inbox").mkdir(parents=True)
    for number in range(count):
        (home / "inbox" / f"{number:06}.json").write_text(line(number))


def jsonl(home: Path, count: int, offset: int = 0) -> None:
    (home / "inbox").mkdir(parents=True, exist_ok=True)
    with open(home / "inbox" / "memories.jsonl", "w") as file:
        for number in range(offset, offset + count):
            file.write(line(number) + "\n")


def measure(folder: Path, smoke: bool) -> dict[str, Any]:
    many, small, large = (1_000, 1_000, 10_000) if smoke else (100_000, 10_000, 1_000_000)
    files(folder / "files", many)
    first, again = once(folder / "files"), once(folder / "files")
    assert memories_in(folder / "files") == many
    empty = folder / "empty"
    (empty / "inbox").mkdir(parents=True)
    idle = statistics.median(once(empty)["seconds"] for _ in range(3))

    shorts = []
    for repeat in range(3):  # the short run is noisy: its median counts
        jsonl(folder / f"small-{repeat}", small)
        shorts.append(once(folder / f"small-{repeat}"))
    jsonl(folder / "large", large)
    long = once(folder / "large")
    assert memories_in(folder / "large") == large
    per_small = statistics.median(run["seconds"] - idle for run in shorts) / small
    per_large = (long["seconds"] - idle) / large
    return {
        "files": many,
        "files_per_second": many / first["seconds"],
        "files_peak_mib": first["mib"],
        "rescan_share": again["seconds"] / first["seconds"],
        "lines": large,
        "memories_per_second": large / long["seconds"],
        "lines_peak_mib": long["mib"],
        "microseconds_per_memory_small": per_small * 1e6,
        "microseconds_per_memory_large": per_large * 1e6,
        "growth": per_large / per_small,
        "start_seconds": idle,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark of the road from file to ledger.")
    parser.add_argument("--smoke", action="store_true", help="small sizes, no bars")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="engramd-ingest-") as folder:
        found = measure(Path(folder), options.smoke)
    for name, value in found.items():
        print(f"{name:32}{value:>14,.3f}" if isinstance(value, float) else f"{name:32}{value:>14,}")
    print(f"({time.monotonic() - began:.0f} s)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    bars = {
        "peak RSS <= 300 MiB": max(found["files_peak_mib"], found["lines_peak_mib"]) <= 300,
        "rescan <= 0.1": found["rescan_share"] <= 0.1,
        "growth <= 1.15": found["growth"] <= 1.15,
    }
    if options.smoke:
        return 0
    for name, held in bars.items():
        print(f"{'held' if held else 'MISSED'}: {name}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
