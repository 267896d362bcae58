"""The readers of large exports beside the limit: time per message, peak memory, and how both grow.

For each format an export is made, and read in processes of their own on one core, in turn: by our reader, and by
the least that could be done with the same file: for JSON a plain pass of `ijson.items` that throws the values away,
for WhatsApp a loop over the lines that matches one header pattern with each. The ratio (the limit's time over ours)
is taken within each turn, and the median is told. Time is the process's CPU time, without imports, so that other
work on the machine does not count; peak RSS is the kernel's. A third kind of process goes on from messages to memories.

    python benchmarks/readers.py [--smoke] [--messages 1000000] [--only NAME] [--repeats 3] [--json FILE]

Bars: ratio >= 0.5 for JSON and >= 0.4 for WhatsApp; peak RSS <= 200 MiB; time per message with 1,000,000
messages <= 1.15 x that with 10,000.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PREFIX = {  # of a plain pass
    "telegram": "messages.item", "chatgpt": "item", "claude": "item",
    "discord": "messages.item", "facebook": "messages.item",
}  # fmt: skip
LEAST_TIMED = 100_000  # messages that a process reads at least: a short file is read several times

# One header of Android with its variants, as people write the pattern who read such a file line by line.
HEADER = r"(\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}),? (\d{1,2}:\d{2}(?::\d{2})?(?:\s?[AaPp]\.?\s?[Mm]\.?)?) - ([^:]+): (.*)"

CHILD = f"HEADER = {HEADER!r}" + """
import io, json, os, re, sys, time, zipfile
what, path, argument, times = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
name, size = os.path.basename(path), os.path.getsize(path)
def opened():  # the file itself, or those in a zip
    if not path.endswith(".zip"):
        yield open(path, "rb")
    else:
        archive = zipfile.ZipFile(path)
        for member in archive.namelist():
            yield io.BufferedReader(archive.open(member), 1 << 16)
if what == "limit" and argument:
    import ijson
    def once():
        count = 0
        for file in opened():
            for _ in ijson.items(file, argument, use_float=True):
                count += 1
        return count
elif what == "limit":
    header = re.compile(HEADER).match
    def once():
        count = 0
        with open(path, encoding="utf-8") as file:
            for line in file:
                if header(line):
                    count += 1
        return count
else:
    from daemon import readers
    from daemon.records import BadItem, LeftOut, Utterance
    from daemon.rules.sessions import ChatRules, Sessions
    def heard(file):
        return readers.read(file, name, size, None, locale=readers.Locale(None, True))
    if what == "read":
        def once():
            count = bad = 0
            with open(path, "rb") as file:
                for one in heard(file):
                    if type(one) is BadItem:
                        raise SystemExit(f"{one.where}: {one.reason}")
                    count += 1
            return count
    else:
        def once():
            with open(path, "rb") as file:
                return sum(1 for _ in Sessions(("Anna Lindqvist",), ChatRules()).memories(heard(file)))
used = []
for _ in range(times):
    began = time.process_time()
    count = once()
    used.append(time.process_time() - began)
# Not getrusage: its maximum holds what the parent had before the exec as well.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) / 1024
print(json.dumps({"seconds": sorted(used)[len(used) // 2], "count": count, "mib": peak}))
"""


def once(what: str, path: Path, prefix: str, count: int) -> dict[str, float]:
    """One process that does `what` ("read", "limit", "memories"): CPU seconds, what it counted, peak MiB."""
    times = max(1, min(10, LEAST_TIMED // count))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what, str(path), prefix, str(times)], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{path.name}, {what}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, folder: Path, sizes: list[int], repeats: int) -> dict[str, Any]:
    """The figures of one format: time per message at each size, the rest at the largest."""
    from benchmarks import _exports

    per_message: dict[int, float] = {}
    found: dict[str, Any] = {"format": name, "messages": sizes[-1]}
    prefix = PREFIX.get(name, "")
    for count in sizes:
        path = _exports.write(name, folder / f"{name}-{count}", count)
        ours, limits, peaks = [], [], []
        for _ in range(repeats):
            run = once("read", path, prefix, count)
            if run["count"] != count:
                raise SystemExit(f"{name}: {run['count']:,} of {count:,} messages came")
            ours.append(run["seconds"])
            peaks.append(run["mib"])
            limits.append(once("limit", path, prefix, count)["seconds"])
        per_message[count] = statistics.median(ours) / count * 1e6
        found |= {
            "file_mib": path.stat().st_size / (1 << 20),
            "messages_per_second": count / statistics.median(ours),
            "limit_per_second": count / statistics.median(limits),
            "ratio": statistics.median(limit / our for limit, our in zip(limits, ours, strict=True)),
            "peak_mib": max(peaks),
        }
        if count == sizes[-1]:
            memories = once("memories", path, prefix, count)
            found["with_memories_per_second"] = count / memories["seconds"]
            found["with_memories_peak_mib"] = memories["mib"]
        shutil.rmtree(path.parent)
    found["microseconds_per_message"] = per_message
    found["growth"] = per_message[sizes[-1]] / per_message[sizes[0]]
    return found


def bars(row: dict[str, Any]) -> dict[str, bool]:
    least = 0.5 if row["format"] in PREFIX else 0.4
    return {
        f"{row['format']}: ratio {row['ratio']:.2f} >= {least}": row["ratio"] >= least,
        f"{row['format']}: peak RSS {row['peak_mib']:.0f} <= 200 MiB": row["peak_mib"] <= 200,
        f"{row['format']}: growth {row['growth']:.2f} <= 1.15": row["growth"] <= 1.15,
    }


HEAD = (
    f"{'':10}{'file MiB':>9}{'messages/s':>12}{'the limit':>12}{'ratio':>7}{'peak MiB':>10}"
    f"{'to memories/s':>15}  us/message"
)


def line(row: dict[str, Any]) -> str:
    each = ", ".join(f"{us:.2f} at {count:,}" for count, us in row["microseconds_per_message"].items())
    return (
        f"{row['format']:10}{row['file_mib']:9,.0f}{row['messages_per_second']:12,.0f}{row['limit_per_second']:12,.0f}"
        f"{row['ratio']:7.2f}{row['peak_mib']:10.0f}{row['with_memories_per_second']:15,.0f}  {each}"
    )


def main() -> int:
    from benchmarks import _exports

    parser = argparse.ArgumentParser(description="Benchmark of the readers.")
    parser.add_argument("--smoke", action="store_true", help="10,000 messages, no bars")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--only", choices=list(_exports.EXPORTS), action="append", help="this format; may be repeated")
    parser.add_argument("--repeats", type=int, default=None, help="turns (default: 3; with --smoke: 1)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    most = 10_000 if options.smoke else options.messages
    sizes = [most // 10, most] if options.smoke else sorted({min(most, count) for count in (10_000, 100_000, most)})
    began, rows, held = time.monotonic(), [], True
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="engramd-readers-") as folder:
        for name in options.only or _exports.EXPORTS:
            row = measure(name, Path(folder), sizes, options.repeats or (1 if options.smoke else 3))
            rows.append(row)
            print(line(row), flush=True)
    print(f"({time.monotonic() - began:.0f} s)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.smoke:
        return 0
    for row in rows:
        for name, good in bars(row).items():
            print(f"{'held' if good else 'MISSED'}: {name}")
            held = held and good
    return 0 if held else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
