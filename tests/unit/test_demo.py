"""The demo's drops: examples/ is what the demo tells of its people, and each format is read whole."""

from pathlib import Path

from daemon import readers
from daemon.records import Memory
from tools import demo


def test_examples_are_those_of_their_seed(tmp_path: Path) -> None:
    """`python tools/demo.py --write-examples` makes them anew."""
    demo.write_drops(tmp_path, demo.made_up(demo.EXAMPLES_SEED)[1])
    for made in tmp_path.rglob("*"):
        if made.is_file():
            kept = demo.EXAMPLES / made.relative_to(tmp_path)
            assert kept.read_bytes() == made.read_bytes()
    for drop in ("drop-1", "drop-2"):
        names = {p.relative_to(tmp_path) for p in (tmp_path / drop).rglob("*")}
        assert names == {p.relative_to(demo.EXAMPLES) for p in (demo.EXAMPLES / drop).rglob("*")}


def test_every_telling_is_read_as_one_memory(tmp_path: Path) -> None:
    _, drops = demo.made_up(7)
    demo.write_drops(tmp_path, drops)
    for number, told in enumerate(drops, 1):
        texts = set()
        for path in (tmp_path / f"drop-{number}").rglob("*"):
            if path.is_file() and path.name != demo.BROKEN:
                with path.open("rb") as stream:
                    for item in readers.read(stream, path.name, path.stat().st_size, None):
                        assert isinstance(item, Memory)
                        texts.add(item.response or item.content)
        assert texts == {telling.text for _, tellings in told for telling in tellings}


def test_what_is_asked_was_never_told() -> None:
    _, drops = demo.made_up(3)
    for told in drops:
        prompts = {telling.prompt for _, tellings in told for telling in tellings}
        assert not prompts & {probe.messages[0]["content"] for probe in demo.probes_of(told)["asked"]}
        assert all(len(tellings) in (2, 3) for _, tellings in told)
