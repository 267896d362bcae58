"""Drops damaged exports on the readers: nothing but memories, messages, reasons or one sentence may come.

    python tools/fuzz_readers.py [--inputs 100000] [--seed 1] [--jobs 1] [--out DIR] [--only NUMBER]

Each input depends on the seed and its number alone. A reader has one second of CPU time and 200 MiB for it.
Failures of one kind are counted, and the first of each kind is made small and saved in DIR, beside what went wrong.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from zoneinfo import ZoneInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT)) if str(ROOT) not in sys.path else None

from daemon import readers  # noqa: E402
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused, Utterance  # noqa: E402
from daemon.rules.sessions import ChatRules, NeedsOwner, Sessions  # noqa: E402
from tools import mutations  # noqa: E402

MOST_SECONDS = 1.0  # of CPU time: other work on the machine is no hang
MOST_MEMORY = 200 << 10  # KiB that the process grows by one input
MOST_ADDRESSES = 6 << 30  # bytes, of the tool's processes: the machine must live on
MOST_REASON = 2_000  # characters
MOST_TRIES = 400  # to make a failure smaller
PORTION = 500  # inputs that a process is given at once

ZONES = (None, timezone(timedelta(hours=2)), ZoneInfo("Pacific/Apia"), ZoneInfo("America/St_Johns"))
TIMES = (None, 1_700_000_000.0, 1_700_000_000.0, 0.0, -1e9, 1e18, float("nan"))
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
SMALL = readers.Limits(max_file_bytes=1 << 16, max_document_bytes=1 << 12, max_line_bytes=200)


class Hang(BaseException):
    """Not an Exception: no reader may catch it."""


class Wrong(Exception):
    """What a reader gave is not what it may give."""


@dataclass
class Failure:
    number: int
    kind: str  # tells failures of one cause from those of another
    story: str
    name: str
    data: bytes


@dataclass
class Report:
    inputs: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)  # CPU seconds, number of the input
    outcomes: Counter[str] = field(default_factory=Counter)  # inputs by the reader that gave something, or "refused"
    kinds: Counter[str] = field(default_factory=Counter)  # failures
    failures: list[Failure] = field(default_factory=list)  # the first of each kind

    def add(self, other: Report) -> None:
        self.inputs += other.inputs
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.outcomes.update(other.outcomes)
        self.failures += [one for one in other.failures if one.kind not in self.kinds]
        self.kinds.update(other.kinds)


# ---- what a reader may give -------------------------------------------------------------------------


def _text(value: object, what: str) -> str:
    if type(value) is not str:
        raise Wrong(f"{what} is {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong(f"{what} has a lone surrogate") from None
    return value


def _sentence(value: object, what: str) -> None:
    text = _text(value, what)
    if not text.strip() or "\n" in text or "Traceback" in text or len(text) >= MOST_REASON:
        raise Wrong(f"{what} is no sentence for a person: {text[:100]!r}")


def _time(value: object, what: str) -> None:
    if value is not None and (type(value) is not str or not TIME.fullmatch(value)):
        raise Wrong(f"{what} is no UTC time")


def check(one: Heard) -> str:
    """The source of a heard item ("" where it has none). Raises Wrong."""
    kind = type(one).__name__
    if isinstance(one, BadItem):
        _text(one.where, "BadItem.where")
        _sentence(one.reason, "BadItem.reason")
        return ""
    if not isinstance(one, Utterance | LeftOut | Memory):
        raise Wrong(f"a {kind} came")
    _time(one.time, f"{kind}.time")
    if one.timestamp is not None:
        _text(one.timestamp, f"{kind}.timestamp")
    if type(one.zone_known) is not bool:
        raise Wrong(f"{kind}.zone_known is no bool")
    if isinstance(one, LeftOut):
        _sentence(one.reason, "LeftOut.reason")
        for key in ("speaker", "text", "where"):
            _text(getattr(one, key), f"LeftOut.{key}")
        return ""
    if not _text(one.source, f"{kind}.source"):
        raise Wrong(f"{kind}.source is empty")
    return _check_utterance(one) if isinstance(one, Utterance) else _check_memory(one)


def _check_utterance(one: Utterance) -> str:
    for key in ("conversation", "speaker", "text", "where"):
        _text(getattr(one, key), f"Utterance.{key}")
    for key in ("message", "clock", "speaker_id"):
        if getattr(one, key) is not None:
            _text(getattr(one, key), f"Utterance.{key}")
    if not one.text:
        raise Wrong("Utterance.text is empty")
    if one.role not in (None, "system", "user", "assistant", "tool"):
        raise Wrong(f"Utterance.role is {one.role!r}")
    if type(one.owner) not in (bool, type(None)) or type(one.group) not in (bool, type(None)):
        raise Wrong("Utterance.owner or group is neither bool nor None")
    return one.source


def _check_memory(one: Memory) -> str:
    for key in ("type", "content"):
        if not _text(getattr(one, key), f"Memory.{key}").strip() and key == "type":
            raise Wrong("Memory.type is empty")
    for text in (one.response, one.mode, one.speaker, one.conversation):
        if text is not None:
            _text(text, "a text of a Memory")
    for text in (*one.tags, *(turn.text for turn in one.context), *(part.text for part in one.parts)):
        _text(text, "a tag or turn of a Memory")
    if not (one.content.strip() or (one.response or "").strip() or one.payload):
        raise Wrong("a Memory is empty")
    try:
        if len(one.id) != 64:
            raise Wrong("Memory.id is no digest")
    except TypeError as error:
        raise Wrong(f"a Memory cannot be written down: {error}") from None
    return one.source


# ---- one input ----------------------------------------------------------------------------------------


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise Hang


def drop(data: bytes, name: str, rng: random.Random) -> str:
    """The reader that gave something, or "refused". Raises Wrong, Hang or whatever the reader raised."""
    locale = readers.Locale(rng.choice(ZONES), rng.choice((None, True, False)))
    limits = SMALL if rng.random() < 0.03 else readers.Limits()
    source, count = "", 0

    def checked() -> Iterator[Heard]:
        nonlocal source, count
        for one in readers.read(io.BytesIO(data), name, len(data), rng.choice(TIMES), limits, locale=locale):
            count += 1
            source = check(one) or source
            yield one

    heard: Iterable[Heard] = checked()
    try:
        if rng.random() < 0.5:
            heard = Sessions(("me", "Alice", "anna@example.org"), ChatRules(), "me").memories(heard)
        for one in heard:
            check(one)
    except NeedsOwner:
        pass
    except Refused as refusal:
        _sentence(str(refusal), "the refusal")
        return source or "refused"
    if not count:
        raise Wrong("nothing came, not even a refusal")
    return source or "only bad or left-out items"


def attempt(data: bytes, name: str, seed: str) -> tuple[str, str, float]:
    """(outcome, kind of failure or "", CPU seconds) of one input, with the alarm set."""
    rng = random.Random(seed)
    outcome, kind = "failed", ""
    before, began = _peak(), time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            outcome = drop(data, name, rng)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except (Exception, Hang) as error:
        kind = _kind_of(error)
    used = time.process_time() - began
    if used > MOST_SECONDS and not kind:
        kind = "took more than a second"  # in C code, where no alarm is heard
    if not kind and _peak() - before > MOST_MEMORY:
        kind = "took more than 200 MiB"
    return outcome, kind, used


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _kind_of(error: BaseException) -> str:
    if isinstance(error, Wrong):
        return str(error).partition(" for a person:")[0]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/daemon/" in frame.filename]
    if isinstance(error, Hang):  # the alarm comes anywhere: the function of the reader is the cause
        return f"Hang in {Path(own[-1].filename).name}:{own[-1].name}" if own else "Hang"
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:80]}"


def made_smaller(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A shorter input that fails in the same way: pieces are left out while it does."""
    tries, piece = MOST_TRIES, max(1, len(data) // 2)
    until = time.monotonic() + 60
    while piece and tries > 0 and time.monotonic() < until:
        place, changed = 0, False
        while place < len(data) and tries > 0 and time.monotonic() < until:
            tries -= 1
            shorter = data[:place] + data[place + piece :]
            if fails(shorter):
                data, changed = shorter, True
            else:
                place += piece
        if not changed or piece > len(data):
            piece //= 2
    return data


# ---- many inputs --------------------------------------------------------------------------------------


def prepare() -> None:
    """What is loaded on first use must not count for the first input; warnings of parsers are no failures."""
    signal.signal(signal.SIGPROF, _alarm)
    warnings.simplefilter("ignore")
    for formats in mutations.seeds():
        for seed in formats:
            try:
                for _ in readers.read(io.BytesIO(seed.data), seed.name, len(seed.data), None):
                    pass
            except Refused:
                pass
    old = "Zażółć gęślą jaźń, powiedziała Łucja.".encode("cp1250") * 3
    for _ in readers.read(io.BytesIO(old), "a.txt", len(old), None):
        pass


def fuzz(numbers: Iterable[int], seed: int) -> Report:
    """All inputs of these numbers in this process."""
    formats = mutations.seeds()
    report = Report()
    began = time.perf_counter()
    for number in numbers:
        made = mutations.damaged(random.Random(f"{seed}:{number}"), formats)
        own_seed = f"{seed}:{number}:locale"
        outcome, kind, used = attempt(made.data, made.name, own_seed)
        report.inputs += 1
        report.outcomes[outcome] += 1
        report.slowest = max(report.slowest, (used, number))
        if kind:
            if kind not in report.kinds:
                report.failures.append(Failure(number, kind, made.story, made.name, made.data))
            report.kinds[kind] += 1
    report.seconds = time.perf_counter() - began
    return report


def portions(inputs: int) -> list[range]:
    return [range(first, min(inputs, first + PORTION)) for first in range(0, inputs, PORTION)]


def save(failure: Failure, seed: int, out: Path) -> None:
    def fails(data: bytes) -> bool:
        return attempt(data, failure.name, f"{seed}:{failure.number}:locale")[1] == failure.kind

    small = made_smaller(failure.data, fails) if fails(failure.data) else failure.data
    folder = out / str(failure.number)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input").write_bytes(small)
    told = f"{failure.kind}\nname: {failure.name!r}\nmade of: {failure.story}\nagain: --seed {seed} --only {failure.number}\n"
    (folder / "why.txt").write_text(told, encoding="utf-8", errors="replace")
    shown = small if len(small) <= 300 else small[:300] + b"..."
    print(f"FAILED {told}{shown!r}\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=None, help="where failures are saved")
    parser.add_argument("--only", type=int, default=None, help="one input by its number")
    options = parser.parse_args()
    parts = portions(options.inputs) if options.only is None else [range(options.only, options.only + 1)]
    whole, began = Report(), time.monotonic()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    prepare()
    work = partial(fuzz, seed=options.seed)
    with ProcessPoolExecutor(options.jobs) as pool:
        for number, report in enumerate(pool.map(work, parts) if options.jobs > 1 else map(work, parts), 1):
            whole.add(report)
            if number % 10 == 0 or number == len(parts):
                rate = whole.inputs / (time.monotonic() - began)
                print(f"{whole.inputs:>9,} inputs, {rate:,.0f}/s, {sum(whole.kinds.values()):,} failed", flush=True)
    for name, count in whole.outcomes.most_common():
        print(f"{name:32}{count:>9,}")
    print(f"slowest: {whole.slowest[0]:.3f} s CPU (input {whole.slowest[1]})")
    who = resource.RUSAGE_CHILDREN if options.jobs > 1 else resource.RUSAGE_SELF
    print(f"peak RSS of a process: {resource.getrusage(who).ru_maxrss / 1024:.0f} MiB")
    for kind, count in whole.kinds.most_common():
        print(f"FAILED {count:,} times: {kind}")
    if options.out:
        for failure in whole.failures:
            save(failure, options.seed, options.out)
    return 1 if whole.kinds else 0


if __name__ == "__main__":
    raise SystemExit(main())
