"""The exports of benchmarks/readers.py are what the readers take them for, and its processes measure."""

from pathlib import Path

import pytest

from benchmarks import _exports
from benchmarks import readers as bench
from daemon import readers
from daemon.records import LeftOut, Utterance


@pytest.mark.parametrize("name", _exports.EXPORTS)
def test_every_message_of_an_export_is_read(name: str, tmp_path: Path) -> None:
    path = _exports.write(name, tmp_path, 123)
    with open(path, "rb") as stream:
        size = path.stat().st_size
        items = list(readers.read(stream, path.name, size, None, locale=readers.Locale(None, True)))
    said = [one for one in items if isinstance(one, Utterance)]
    assert len(items) == 123 and len(said) > 110
    assert all(isinstance(one, Utterance | LeftOut) for one in items)
    assert {one.source for one in said} == {name}
    texts = set(_exports.texts())
    assert all(one.text.removesuffix("https://example.org") in texts for one in said)
    for chat in {one.conversation for one in said}:
        times = [one.time for one in said if one.conversation == chat]
        assert times == sorted(times) and None not in times


@pytest.mark.parametrize("what", ["read", "limit", "memories"])
def test_a_process_of_its_own_measures(what: str, tmp_path: Path) -> None:
    path = _exports.write("telegram", tmp_path, 200)
    found = bench.once(what, path, bench.PREFIX["telegram"], 200)
    assert found["seconds"] > 0 and 5 < found["mib"] < 200
    assert found["count"] == 200 if what != "memories" else 20 < found["count"] <= 200


def test_bars_of_a_row() -> None:
    row = {"format": "whatsapp", "ratio": 0.41, "peak_mib": 201.0, "growth": 1.0}
    assert list(bench.bars(row).values()) == [True, False, True]
    assert list(bench.bars({**row, "format": "telegram"}).values()) == [False, False, True]
