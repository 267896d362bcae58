"""The readers against damaged exports (tools/fuzz_readers.py), in its short form.

ENGRAMD_FUZZ_INPUTS sets how many; the long form is the tool itself.
"""

import os
import random
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from daemon.records import BadItem, LeftOut, Memory, Utterance
from tools import fuzz_readers, mutations

INPUTS = int(os.environ.get("ENGRAMD_FUZZ_INPUTS", "2000"))  # read here: tests see no ENGRAMD_ variables
PARTS = 4  # tests, so that two processes share them


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_exports_give_memories_or_one_reason(part: int, capsys, tmp_path) -> None:
    fuzz_readers.prepare()
    report = fuzz_readers.fuzz(range(part, INPUTS, PARTS), seed=20_240_115)
    for failure in report.failures:
        fuzz_readers.save(failure, 20_240_115, tmp_path)
    assert not report.kinds, f"{dict(report.kinds)}\n{capsys.readouterr().out}"
    assert report.inputs == len(range(part, INPUTS, PARTS))
    assert len(report.outcomes) > 3, "nearly all was refused: the damage is too coarse to find anything"


def test_an_input_depends_on_seed_and_number_alone() -> None:
    formats = mutations.seeds()
    for number in range(50):
        one, two = (mutations.damaged(random.Random(f"1:{number}"), formats) for _ in range(2))
        assert one == two
    assert mutations.damaged(random.Random("1:1"), formats) != mutations.damaged(random.Random("2:1"), formats)


@pytest.mark.parametrize(
    "wrong",
    [
        Utterance("x", "c", "Anna", ""),
        Utterance("x", "c", "Anna", "a\ud800"),
        Utterance("x", "c", 5, "text"),  # type: ignore[arg-type]
        Utterance("x", "c", "Anna", "text", time="2024-01-15"),
        Utterance("x", "c", "Anna", "text", message=7),  # type: ignore[arg-type]
        Utterance("x", "c", "Anna", "text", role="human"),  # type: ignore[arg-type]
        LeftOut("Traceback (most recent call last)"),
        LeftOut(""),
        BadItem("line 1", "x" * 5000),
        Memory(type="journal", content=" "),
        Memory(type="journal", content="x", extra={}, payload={"a": {1, 2}}),
        "text",
    ],
)
def test_what_no_reader_may_give_is_noticed(wrong: object) -> None:
    with pytest.raises(fuzz_readers.Wrong):
        fuzz_readers.check(wrong)  # type: ignore[arg-type]


def test_a_hang_is_noticed_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Iterator[Utterance]:
        while True:
            try:
                pass
            except Exception:  # as a reader might
                yield Utterance("x", "c", "", "x")

    def sigprof(signum: int, frame: FrameType | None) -> None:
        raise fuzz_readers.Hang

    signal.signal(signal.SIGPROF, sigprof)
    monkeypatch.setattr(fuzz_readers.readers, "read", never)
    monkeypatch.setattr(fuzz_readers, "MOST_SECONDS", 0.05)
    outcome, kind, used = fuzz_readers.attempt(b"x", "a.txt", "seed")
    assert outcome == "failed" and kind.startswith("Hang") and used < 5


def test_a_failure_is_made_small() -> None:
    data = b"a" * 700 + b"BAD" + b"c" * 900
    assert fuzz_readers.made_smaller(data, lambda shorter: b"BAD" in shorter) == b"BAD"
