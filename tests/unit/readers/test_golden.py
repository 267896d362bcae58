"""Each fixture of tests/fixtures/readers against its golden result, and every reader has one."""

import importlib.util
import json
from pathlib import Path

import pytest

from daemon import readers

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "readers"
_spec = importlib.util.spec_from_file_location("golden", FIXTURES / "golden.py")
assert _spec and _spec.loader
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

CASES = sorted(path.with_name(path.name.removesuffix(".golden.json")) for path in FIXTURES.rglob("*.golden.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: str(path.relative_to(FIXTURES)))
def test_a_fixture_gives_its_golden_result(path: Path) -> None:
    assert golden.heard(path) == json.loads(golden.golden_of(path).read_text(encoding="utf-8"))


def test_every_export_reader_has_a_fixture() -> None:
    sources = {
        item["source"] for path in CASES for item in json.loads(golden.golden_of(path).read_text(encoding="utf-8"))
        if "source" in item
    }  # fmt: skip
    silent = {"ai_files"}  # what it leaves out bears no name of a reader
    missing = {reader.name for reader in (*readers.STREAM_READERS, *readers.TREE_READERS)} - sources
    assert missing == silent
    assert silent <= {path.parent.name for path in CASES}
