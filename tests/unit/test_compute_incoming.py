"""What came home from another machine: a good one is taken, and each hostile change is refused by name."""

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.compute import incoming, tensor_files
from daemon.compute.incoming import Arrived, Refused, accept
from tests import jobs
from trainer import names
from trainer.names import ExitCode

CHECKPOINT = "checkpoint-2"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of two steps that the real trainer did; it is only copied from."""
    folder = tmp_path_factory.mktemp("done") / "job"
    jobs.write_job(folder, jobs.some_samples(8), recipe=jobs.recipe(ema_decay=0.9))
    assert jobs.run(folder).exit_code == 0
    return folder


class Home:
    """A job at home that was sent away, and the folder that its files were fetched into."""

    def __init__(self, root: Path, done: Path, *, linked: tuple[str, ...] = ()) -> None:
        self.job, self.staged = root / "job", root / "staged"
        self.job.mkdir(parents=True)
        for name in (names.SPEC, names.SAMPLES):
            shutil.copy(done / name, self.job / name)
        for name in linked:
            shutil.copytree(done / name, self.job / name)
        self.staged.mkdir()
        for name in incoming.BESIDE:
            if (done / name).exists():
                shutil.copy(done / name, self.staged / name)
        newest = jobs.checkpoint(done).name
        shutil.copytree(done / newest, self.staged / newest)
        self.folder = self.staged / newest
        for path in self.folder.iterdir():
            path.chmod(0o600)

    def accept(self, **more: Any) -> Arrived:
        return accept(self.staged, self.job, jobs.sha256(self.job / names.SPEC), **more)

    def refusal(self, **more: Any) -> str:
        with pytest.raises(Refused) as told:
            self.accept(**more)
        sentence = str(told.value)
        assert sentence and "\n" not in sentence and "Traceback" not in sentence
        return sentence

    def change(self, path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    def result(self, **fields: Any) -> None:
        self.change(self.staged / names.RESULT, lambda told: told.update(fields))

    def reseal(self) -> None:
        """What a liar does: manifest and result say just what the files are."""
        files = {
            path.name: {"sha256": jobs.sha256(path), "size": path.stat().st_size}
            for path in self.folder.iterdir()
            if path.name != names.MANIFEST
        }
        self.change(self.folder / names.MANIFEST, lambda told: told.update(files=files))
        self.result(checkpoint_sha256=jobs.sha256(self.folder / names.MANIFEST))


@pytest.fixture
def home(tmp_path: Path, done: Path) -> Home:
    return Home(tmp_path, done)


def archive(content: bytes, name: str = "archive/data.pkl", **more: bytes) -> bytes:
    """As torch.save writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(name, content)
        file.writestr("archive/version", b"3\n")
        for key, data in more.items():
            file.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def safetensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("code", [ExitCode.OUT_OF_MEMORY, ExitCode.DIVERGED, ExitCode.NO_DEVICE])
def test_an_end_without_a_checkpoint_may_name_one_that_was_saved_before(home: Home, code: ExitCode) -> None:
    """It stays there, where the job goes on from it: memory that runs out at step 25 is no lie about step 20."""
    home.result(exit_code=int(code))
    assert "which the result does not name" in home.refusal()
    shutil.rmtree(home.folder)
    arrived = home.accept()
    assert (arrived.result.exit_code, arrived.checkpoint, arrived.fetched) == (code, None, False)


def test_a_whole_job_is_taken(home: Home) -> None:
    arrived = home.accept()
    assert arrived.checkpoint == CHECKPOINT and arrived.fetched
    assert set(arrived.files) == {names.RESULT, names.PLAN, names.LOSSES}
    assert arrived.bytes == sum(path.stat().st_size for path in home.staged.rglob("*") if path.is_file())
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in home.folder.iterdir())


def test_a_full_one_and_one_with_a_parent_are_taken(tmp_path: Path, done: Path) -> None:
    for number, more in enumerate(({"method": "full", "full_ema_decay": 0.9}, {"ema_decay": 0.9})):
        job = tmp_path / f"made-{number}"
        parent = jobs.checkpoint(done) if number else None
        jobs.write_job(job, jobs.some_samples(6, 10), recipe=jobs.recipe(**more), parent=parent)
        assert jobs.run(job).exit_code == 0
        home = Home(tmp_path / f"home-{number}", job, linked=(names.PARENT,) if parent else ())
        arrived = home.accept()
        assert arrived.result.start_step == (2 if parent else 0) and arrived.checkpoint == jobs.checkpoint(job).name


def test_a_checkpoint_that_is_at_home_already_need_not_come(home: Home) -> None:
    home.folder.rename(home.job / CHECKPOINT)
    arrived = home.accept()
    assert arrived.checkpoint == CHECKPOINT and not arrived.fetched
    (home.job / CHECKPOINT / names.STATE).unlink()
    assert names.STATE in home.refusal()


def test_an_end_without_a_checkpoint_is_taken(home: Home) -> None:
    shutil.rmtree(home.folder)
    home.result(exit_code=14, reason="no card", checkpoint=None, checkpoint_sha256=None, global_step=0, steps=0)
    assert home.accept().checkpoint is None
    home.result(exit_code=0)
    assert "names no checkpoint" in home.refusal()


def test_only_what_the_next_job_needs_is_asked_for() -> None:
    for good in (names.RESULT, f"{CHECKPOINT}/{names.OPTIMIZER}", f"{CHECKPOINT}/model-00001-of-00002.safetensors"):
        assert incoming.may_come(good)
    for bad in ("spec.json", "parent/optimizer.pt", f"{CHECKPOINT}/../x.json", "checkpoint-02/x.json", "/etc/passwd",
                f"{CHECKPOINT}/evil.py", f"{CHECKPOINT}/.hidden.json", "checkpoint-2/a/b.json", ""):  # fmt: skip
        assert not incoming.may_come(bad), bad


# -- the result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"spec_sha256": "0" * 64}, "another spec"),
        ({"checkpoint_sha256": "0" * 64}, "not the one whose hash"),
        ({"checkpoint_sha256": None}, "without its hash"),
        ({"checkpoint": "../../chains/1/checkpoint-2"}, "no checkpoint's name"),
        ({"checkpoint": "checkpoint-02"}, "no checkpoint's name"),
        ({"global_step": 99}, "ends at step 99"),
        ({"start_step": 1}, "begins at step 1"),
        ({"steps": 1}, "not at step 2"),
        ({"samples_seen": 4}, "4 samples were seen"),
        ({"exit_code": 15}, "no finetune says"),
        ({"exit_code": 77}, "contract"),
        ({"extra": 1}, "contract"),
        ({"notices": ["\x1b]0;owned\x07"]}, "control characters"),
        ({"reason": "\u202etxt.exe"}, "control characters"),
        ({"export_sha256": "0" * 64}, "no finetune says"),
        ({"metrics": {"loss": "small"}}, "contract"),
    ],
)
def test_a_result_that_cannot_be(home: Home, fields: dict[str, Any], what: str) -> None:
    home.result(**fields)
    assert what in home.refusal()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"exit_code": NaN}', b'{"a":1,"a":2}', b"x" * 2_000_000]
)
def test_a_result_that_is_none(home: Home, content: bytes) -> None:
    (home.staged / names.RESULT).write_bytes(content)
    assert home.refusal().startswith(names.RESULT)


def test_no_result_at_all(home: Home) -> None:
    (home.staged / names.RESULT).unlink()
    assert "did not come home" in home.refusal()


def test_the_spec_that_was_sent_is_the_one_that_counts(home: Home) -> None:
    with pytest.raises(Refused, match="not the one that was sent"):
        accept(home.staged, home.job, "0" * 64)


def test_done_before_the_end(home: Home) -> None:
    """A real checkpoint of the middle, called the end of the job."""
    home.folder.rename(home.staged / "checkpoint-1")
    home.result(checkpoint="checkpoint-1", global_step=1, steps=1)
    assert "not at step 2" in home.refusal()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (names.PLAN, b'{"samples": 1}'),
        (names.METRICS, b"[]"),
        (names.BEFORE, b"7"),
        (names.LOSSES, b'{"step": 1, "losses": [[9999999999999, 1.0]]}\n'),
        (names.LOSSES, b'{"step": 1, "losses": [[0, "x"]]}\n'),
        (names.LOSSES, b'{"step": 1, "losses": [[0, 1.0]]}'),
    ],
)
def test_what_lies_beside_has_the_shape_that_its_readers_take(home: Home, name: str, content: bytes) -> None:
    (home.staged / name).write_bytes(content)
    assert home.refusal().startswith(name)


def test_another_plan(home: Home) -> None:
    home.change(home.staged / names.PLAN, lambda told: told.update(segments=[7]))
    assert "does not plan" in home.refusal()


# -- names, links, paths -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spec.json", "samples.jsonl", "evil.sh", ".bashrc", "compute.json", "lock", "a\nb"])
def test_a_file_that_nobody_asked_for(home: Home, name: str) -> None:
    (home.staged / name).write_bytes(b"x")
    assert "was not asked for" in home.refusal()


@pytest.mark.parametrize("name", ["parent", "checkpoint-1", "checkpoint-007", ".ssh"])
def test_a_folder_that_nobody_asked_for(home: Home, name: str) -> None:
    (home.staged / name).mkdir()
    assert repr(name) in home.refusal()


def test_a_file_beside_the_manifest(home: Home) -> None:
    (home.folder / "extra.json").write_text("{}")
    assert home.refusal() == f"'{CHECKPOINT}/extra.json' is not in its manifest"


def test_a_folder_in_the_checkpoint(home: Home) -> None:
    (home.folder / "more").mkdir()
    assert "a checkpoint has none" in home.refusal()


@pytest.mark.parametrize("where", ["staged", "folder"])
@pytest.mark.parametrize("kind", ["symlink", "hard", "pipe", "folder"])
def test_links_and_special_files(home: Home, tmp_path: Path, where: str, kind: str) -> None:
    path = home.staged / names.RESULT if where == "staged" else home.folder / names.OPTIMIZER
    secret = tmp_path / "elsewhere"
    secret.write_bytes(path.read_bytes())
    path.unlink()
    if kind == "symlink":
        path.symlink_to(secret)
    elif kind == "hard":
        os.link(secret, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        (home.staged / CHECKPOINT).rename(tmp_path / "away") if where == "folder" else None
        (home.staged / CHECKPOINT).symlink_to(tmp_path / "away") if where == "folder" else path.symlink_to("/etc")
    told = home.refusal()
    assert path.name in told or CHECKPOINT in told
    assert "link" in told or "regular file" in told
    assert secret.exists()


@pytest.mark.parametrize(
    "name", ["../../outside.json", "/etc/passwd.json", "a/b.json", "..", "", ".hidden.json", "evil.py", "manifest.json"]
)
def test_a_manifest_that_lists_a_path_outside(home: Home, name: str) -> None:
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    home.change(home.folder / names.MANIFEST, lambda told: told["files"].update({name: entry}))
    home.result(checkpoint_sha256=jobs.sha256(home.folder / names.MANIFEST))
    assert f"lists {name!r}" in home.refusal()


# -- the checkpoint ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [names.ADAPTER_WEIGHTS, names.OPTIMIZER, names.STATE, names.MANIFEST, names.EMA])
@pytest.mark.parametrize("how", ["flipped", "truncated", "longer", "missing"])
def test_wrong_bytes(home: Home, name: str, how: str) -> None:
    path = home.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flipped": bytes(data), "truncated": bytes(data[:-9]), "longer": bytes(data) + b"\0"}
    path.unlink() if how == "missing" else path.write_bytes(changed[how])
    assert f"{CHECKPOINT}/{name}" in home.refusal()


@pytest.mark.parametrize(
    ("key", "value"),
    [("spec_sha256", "0" * 64), ("parent", "0" * 64), ("files", {}), ("files", []), ("files", {"a": 1})],
)
def test_a_manifest_of_something_else(home: Home, key: str, value: Any) -> None:
    home.change(home.folder / names.MANIFEST, lambda told: told.update({key: value}))
    home.result(checkpoint_sha256=jobs.sha256(home.folder / names.MANIFEST))
    assert CHECKPOINT in home.refusal()


def test_another_base(home: Home) -> None:
    assert "another base_fingerprint" in home.refusal(fingerprint="0" * 64)


@pytest.mark.parametrize(
    ("key", "value"),
    [("global_step", 3), ("start_step", 1), ("spec_sha256", ""), ("chain_seed", 8), ("chain_key", {}), ("tokens", "1")],
)
def test_a_state_of_something_else(home: Home, key: str, value: Any) -> None:
    home.change(home.folder / names.STATE, lambda told: told.update({key: value}))
    home.reseal()
    assert names.STATE in home.refusal()


@pytest.mark.parametrize("name", [names.ADAPTER_WEIGHTS, names.OPTIMIZER, names.SCHEDULER, names.RNG, names.STATE])
def test_a_part_that_the_next_job_needs_is_not_there(home: Home, name: str) -> None:
    (home.folder / name).unlink()
    home.reseal()
    assert "lacks" in home.refusal()


def test_the_mean_of_the_weights_is_relied_on_and_not_there(home: Home) -> None:
    (home.folder / names.EMA).unlink()
    home.reseal()
    assert home.accept().result.weights == "raw"
    home.result(weights="ema")
    assert "the mean of its weights" in home.refusal()


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("a pickle", pickle.dumps(Evil())),
        ("a pickle", archive(pickle.dumps({}, 2))),
        ("its header would be", b""),
        ("its header would be", (1 << 60).to_bytes(8, "little") + b"{}"),
        ("its header would be", (50).to_bytes(8, "little") + b"{}"),
        ("no JSON", safetensors(b"{]")),
        ("no object", safetensors([1, 2, 3])),
        ("without type", safetensors({"w": 1})),
        ("no known type", safetensors({"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, b"1234")),
        ("no known type", safetensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234")),
        ("fill its place", safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234")),
        ("fill its", safetensors({"w": {"dtype": "U8", "shape": [1 << 61] * 9, "data_offsets": [0, 4]}}, b"1234")),
        ("does not end", safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345")),
        ("does not end", safetensors({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"1234")),
        ("leave holes", safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678")),
        ("overlap", safetensors({k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, b"1234")),
        ("no texts", safetensors({"__metadata__": {"a": 1}})),
        ("no JSON", safetensors(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":1}', b"1")),
    ],
)  # fmt: skip
def test_weights_that_are_no_safetensors(home: Home, what: str, content: bytes) -> None:
    """Manifest and result agree with them: only what they hold gives them away."""
    (home.folder / names.ADAPTER_WEIGHTS).write_bytes(content)
    home.reseal()
    told = home.refusal()
    assert f"{CHECKPOINT}/{names.ADAPTER_WEIGHTS}" in told and what in told


def test_a_header_as_large_as_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write((40 << 20).to_bytes(8, "little"))
        file.truncate(64 << 20)
    with pytest.raises(tensor_files.Malformed, match="header would be"):
        tensor_files.check_safetensors(path)


def packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("posix.system", archive(pickle.dumps(Evil(), 2))),
        ("STACK_GLOBAL", archive(b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.")),
        ("FRAME", archive(pickle.dumps(Evil(), 4))),
        ("builtins.eval", archive(b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.")),
        ("torch.load", archive(b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.")),
        ("INST", archive(b"(X\x04\x00\x00\x00trueios\nsystem\n.")),
        ("BUILD", archive(b"\x80\x02ccollections\nOrderedDict\n)R}b.")),
        ("NEWOBJ", archive(b"\x80\x02ccollections\nOrderedDict\n)\x81.")),
        ("behind", archive(pickle.dumps({}, 2) + pickle.dumps(Evil(), 2))),
        ("no whole archive", archive(b"\x80\x02}")),
        ("no whole archive", archive(b"")),
        ("no archive", pickle.dumps({})),
        ("no archive", b""),
        ("no whole archive", archive(pickle.dumps({}, 2))[:-30]),
        ("packed", packed(b"\0" * 1_000_000)),
        ("does not write", archive(pickle.dumps({}, 2), "archive/../x")),
        ("no archive as", archive(pickle.dumps({}, 2), "other/data.pkl")),
        ("no data.pkl", archive(b"", "archive/byteorder")),
    ],
)
@pytest.mark.parametrize("name", [names.OPTIMIZER, names.RNG, names.SCHEDULER])
def test_moments_that_are_no_tensors(home: Home, name: str, what: str, content: bytes) -> None:
    (home.folder / name).write_bytes(content)
    home.reseal()
    told = home.refusal()
    assert f"{CHECKPOINT}/{name}" in told and what in told


def test_an_index_that_names_what_did_not_come(home: Home) -> None:
    index = home.folder / "adapter_model.safetensors.index.json"
    for part, good in ((names.ADAPTER_WEIGHTS, True), ("adapter_model-00002-of-00002.safetensors", False)):
        index.write_text(json.dumps({"weight_map": {"w": part}}))
        home.reseal()
        if good:
            home.accept()
            index.chmod(0o600)
            (home.folder / names.MANIFEST).chmod(0o600)
            (home.staged / names.RESULT).chmod(0o600)
        else:
            assert "names files that did not come with it" in home.refusal()


def test_json_of_a_checkpoint_is_bounded(home: Home) -> None:
    (home.folder / names.ADAPTER_CONFIG).write_bytes(b'"' + b"x" * tensor_files.MAX_JSON + b'"')
    home.reseal()
    assert "is larger than" in home.refusal()


def test_a_refusal_leaves_the_job_as_it_was(home: Home) -> None:
    before = sorted(path.name for path in home.job.rglob("*"))
    home.result(global_step=99)
    home.refusal()
    assert sorted(path.name for path in home.job.rglob("*")) == before
