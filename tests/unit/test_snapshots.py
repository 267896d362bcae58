"""Snapshots on a real disk: links, copies, manifests, and what `verify` finds."""

import os
import random
import shutil
from pathlib import Path

import pytest

from daemon import snapshots
from daemon.snapshots import Part


def sealed(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o400)
    return path


def problems(folder: Path) -> list[str]:
    return list(snapshots.problems(folder, {}))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A sealed file of some size, a small one, and one that still changes."""
    root = tmp_path / "state"
    sealed(root / "chains/1/checkpoint-2/weights", random.Random(1).randbytes(20_000))
    sealed(root / "chains/1/checkpoint-2/manifest.json", b'{"files": {}}')
    (root / "progress.jsonl").write_bytes(b'{"step": 1}\n')
    return root


def parts(state: Path) -> list[Part]:
    return [Part(path, str(path.relative_to(state))) for path in state.rglob("*") if path.is_file()]


def test_sealed_files_are_links_and_others_copies(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "snapshots"
    made = snapshots.create(top, "2026-11-21", parts(state), {"profile": "me"})
    weights = made.path / "chains/1/checkpoint-2/weights"
    assert weights.samefile(state / "chains/1/checkpoint-2/weights")
    assert not (made.path / "progress.jsonl").samefile(state / "progress.jsonl")
    assert problems(made.path) == [] and snapshots.names_in(top) == ["2026-11-21"]
    assert snapshots.read(made.path)["profile"] == "me"


def test_a_night_without_change_costs_no_bytes(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "snapshots"
    first = snapshots.create(top, "2026-11-21", parts(state), {})
    second = snapshots.create(top, "2026-11-22", parts(state), {})
    assert second.new_bytes < 2000  # the manifest alone
    assert (second.path / "progress.jsonl").samefile(first.path / "progress.jsonl")
    (state / "progress.jsonl").write_bytes(b'{"step": 2}\n')
    third = snapshots.create(top, "2026-11-23", parts(state), {})
    assert not (third.path / "progress.jsonl").samefile(second.path / "progress.jsonl")
    assert [problems(one.path) for one in (first, second, third)] == [[], [], []]


def test_a_name_that_is_no_utf8_is_kept(tmp_path: Path, state: Path) -> None:
    (state / os.fsdecode(b"old \xff.txt")).write_bytes(b"something")
    (state / "grün.txt").write_bytes(b"something else")
    made = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {})
    assert problems(made.path) == [] and made.files == 5
    assert {path.name for path in made.path.iterdir()} >= {os.fsdecode(b"old \xff.txt"), "grün.txt"}


def test_a_second_one_of_a_day_has_a_number(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "snapshots"
    for expected in ("2026-11-21", "2026-11-21-2", "2026-11-21-3"):
        name = snapshots.free_name(top, "2026-11-21")
        assert snapshots.create(top, name, parts(state), {}).path.name == expected
    assert snapshots.names_in(top) == ["2026-11-21", "2026-11-21-2", "2026-11-21-3"]


def test_half_a_snapshot_is_none(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "snapshots"
    with pytest.raises(FileNotFoundError):
        snapshots.create(top, "2026-11-21", [*parts(state), Part(state / "gone", "gone")], {})
    assert snapshots.names_in(top) == [] and not (top / "2026-11-21").exists()
    assert snapshots.sweep(top) == [".tmp-2026-11-21"] and os.listdir(top) == []


def test_verify_finds_each_of_a_thousand_flipped_bytes(tmp_path: Path, state: Path) -> None:
    whole = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {"profile": "me"}).path
    dice = random.Random(7)
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"manifest.json", "manifest.sha256", "weights", "progress.jsonl"}
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    assert problems(copy) == []
    for _ in range(1000):
        victim = copy / dice.choice(files).relative_to(whole)
        content = bytearray(victim.read_bytes())
        place = dice.randrange(len(content))
        content[place] ^= 1 << dice.randrange(8)
        victim.chmod(0o600)
        victim.write_bytes(content)
        assert problems(copy), f"{victim.name} byte {place}"
        content = bytearray((whole / victim.relative_to(copy)).read_bytes())
        victim.write_bytes(content)
    assert problems(copy) == []


def test_missing_and_foreign_files_are_found(tmp_path: Path, state: Path) -> None:
    folder = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {}).path
    (folder / "extra").write_bytes(b"x")
    (folder / "progress.jsonl").unlink()
    assert problems(folder) == [
        f"{folder / 'extra'} is not in the snapshot's manifest", f"{folder / 'progress.jsonl'} is missing"
    ]  # fmt: skip


def test_what_was_forgotten_is_no_damage(tmp_path: Path, state: Path) -> None:
    folder = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {}).path
    old = snapshots.read(folder)["files"]["progress.jsonl"]["sha256"]
    (folder / "progress.jsonl").unlink()
    after = {old: {None}}
    assert list(snapshots.problems(folder, {}, lambda sha256: after.get(sha256, set()))) == []


def test_an_export_has_its_own_bytes(tmp_path: Path, state: Path) -> None:
    folder = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {}).path
    size = snapshots.export(folder, tmp_path / "off" / "disk")
    assert size > 20_000 and problems(tmp_path / "off" / "disk") == []
    assert not (tmp_path / "off/disk/progress.jsonl").samefile(folder / "progress.jsonl")
    weights = folder / "chains/1/checkpoint-2/weights"
    weights.chmod(0o600)
    weights.write_bytes(b"torn")
    with pytest.raises(snapshots.Damaged, match="weights is damaged"):
        snapshots.export(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_export_leaves_out_what_was_forgotten(tmp_path: Path, state: Path) -> None:
    folder = snapshots.create(tmp_path / "snapshots", "2026-11-21", parts(state), {}).path
    old = snapshots.read(folder)["files"]["progress.jsonl"]["sha256"]
    (folder / "progress.jsonl").unlink()
    after = {old: {None}}
    snapshots.export(folder, tmp_path / "off", lambda sha256: after.get(sha256, set()))
    assert problems(tmp_path / "off") == [] and "progress.jsonl" not in snapshots.read(tmp_path / "off")["files"]


def test_names_of_a_day_go_up_whatever_was_pruned(tmp_path: Path) -> None:
    for name in ("2026-11-21-2", "2026-11-21-10", "2026-11-20"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert snapshots.names_in(tmp_path) == ["2026-11-20", "2026-11-21-2", "2026-11-21-10"]
    assert snapshots.free_name(tmp_path, "2026-11-21") == "2026-11-21-11"
    assert snapshots.free_name(tmp_path, "2026-11-22") == "2026-11-22"


def test_another_file_system_gets_copies(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path("/dev/shm") / f"engramd-{os.getpid()}"
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("no second file system here")
    try:
        made = snapshots.create(other, "2026-11-21", parts(state), {})
        assert problems(made.path) == [] and made.new_bytes >= 20_000
    finally:
        shutil.rmtree(other, ignore_errors=True)
