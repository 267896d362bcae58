"""Export jobs: what is asked of the trainer, where what it made goes, `engramd export` and `engramd serve`; and room on
a GPU before a job."""

import functools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import exporting, jobdir, ledger
from daemon import service as service_module
from daemon.__main__ import main
from daemon.delivering import Worker
from daemon.home import Home
from daemon.ledger import Database, jobs, serving
from daemon.lock import Lock
from daemon.ollama import Ollama
from daemon.room import Room
from daemon.service import Service
from daemon.settings_serving import ServeSettings
from tests.unit.test_service import QUICK, fault, read
from tests.unit.test_serving import (
    FAKE,
    LATER,
    Serving,
    ask,
    check_alias,
    cycle,
    events,
    line,
    models,
    names_of,
    night,
    ollama,
    serving_home,
    work,
)
from trainer import names

__all__ = ["ollama"]  # the fixture

OFF: dict[str, Any] = {"serve__ollama": "off"}
ALWAYS: dict[str, Any] = {"serve__ollama": "always", "serve__host": "http://127.0.0.1:9"}  # where nobody is


@pytest.fixture(autouse=True)
def _fake_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "Service", functools.partial(Service, trainer=FAKE))


@pytest.fixture
def exported(home: Home) -> Home:
    """One night and its export; nobody to serve it."""
    night(home, None, "one", "two", **ALWAYS)
    return home


def db_of(home: Home) -> Database:
    return ledger.open_profile(home.profile("me").ledger, write=False)


def spec_of(home: Home, version: int) -> Any:
    with read(home) as db:
        job = serving.job_of(db, version)
    assert job is not None
    return jobdir.read_spec(home.profile("me").jobs / job["folder"])


def engramd(home: Home, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    flags = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    found = main([words[0], "--home", str(home.root), *flags, *words[1:]])
    out, err = capsys.readouterr()
    assert found == code and "Traceback" not in err, (found, out, err)
    return out + err


# -- what is asked -----------------------------------------------------------------------------------


def test_a_night_asks_for_an_adapter_and_its_base_once(exported: Home) -> None:
    spec = spec_of(exported, 1)
    assert (spec.kind, spec.export.form, spec.export.base_gguf) == ("export", "adapter", None)
    with read(exported) as db:
        version = jobs.version(db, 1)
        assert version is not None and spec.parent == version["checkpoint_sha256"]
        row = serving.export(db, 1)
    (base,) = (exported.state / "bases").glob("*/base-*.gguf")
    note = json.loads(base.with_suffix(".json").read_text())
    assert row is not None and note == {"profiles": ["me"], "sha256": row["base_sha256"], "size": base.stat().st_size}
    night(exported, None, "three", **ALWAYS)
    assert spec_of(exported, 2).export.base_gguf == note["sha256"]


def test_the_weights_that_are_relied_on_are_exported(home: Home) -> None:
    fault(home, "weights:ema")
    night(home, None, "one", "two", **ALWAYS)
    assert spec_of(home, 1).parent_weights == "ema"


def test_without_llama_cpp_it_is_q8(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon import logs

    logs.configure(home, quiet=True)
    monkeypatch.setattr(exporting, "can_quantise", lambda: False)
    night(home, None, "one", "two", **ALWAYS)
    assert spec_of(home, 1).export.quantisation == "Q8_0"
    assert "llama-cpp-python" in events(home, "export_notice")[0]["note"]
    monkeypatch.setattr(exporting, "can_quantise", lambda: True)
    night(home, None, "three", **ALWAYS)
    assert spec_of(home, 2).export.quantisation == "Q4_K_M"
    assert ask(home, None, "cycle", {"kind": "foundation", "method": "full"}, **ALWAYS)["request"] == "done"
    assert (spec_of(home, 3).export.quantisation, spec_of(home, 3).export.form) == ("Q6_K", "merged")


def test_a_system_prompt_is_handed_on(home: Home) -> None:
    night(home, None, "one", "two", serve__system="You are me.", **ALWAYS)
    assert spec_of(home, 1).export.system == "You are me."


# -- what was made -----------------------------------------------------------------------------------


def test_a_lost_file_is_made_again(exported: Home, ollama: Serving) -> None:
    (exported.profile("me").root / "models" / "v1" / "adapter.gguf").unlink()
    shutil.rmtree(exported.state / "bases")
    work(exported, ollama, later=LATER)
    check_alias(ollama, 1)
    assert "adapter.gguf" in models(exported, 1) and list((exported.state / "bases").glob("*/base-*.gguf"))


def test_an_export_that_is_not_what_it_says_is_thrown_away(
    home: Home, ollama: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.collect

    def broken(world: Any, job: dict[str, Any], now: str, pulse: Any) -> None:
        path = world.paths.jobs / job["folder"] / names.EXPORT / names.ADAPTER_GGUF
        path.write_bytes(b"torn")
        real(world, job, now, pulse)

    monkeypatch.setattr(exporting, "collect", broken)
    night(home, ollama, "one", "two")
    assert not names_of(ollama) and "not what its result says" in line(home)["reason"]
    monkeypatch.undo()
    work(home, ollama, later=LATER)
    check_alias(ollama, 1)


def test_an_export_without_a_place_fails_and_ends_nothing(
    home: Home, ollama: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_place(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "models/v1")

    monkeypatch.setattr(exporting, "_into_place", no_place)
    night(home, ollama, "one", "two")
    assert not names_of(ollama) and "cannot be put to its place" in line(home)["reason"]
    with read(home) as db:
        assert [job["state"] for job in jobs.listing(db) if job["kind"] == "finetune"] == ["promoted"]
    monkeypatch.undo()
    work(home, ollama, later=LATER)
    check_alias(ollama, 1)


def test_an_overtaken_export_is_given_up(home: Home, ollama: Serving) -> None:
    """The head goes back while the export of the newer one runs."""
    night(home, ollama, "one", "two")
    night(home, None, "three", **OFF)
    fault(home, "step_seconds:60")
    lock, one = Lock(home), serving_home(home, ollama)
    deadline = time.monotonic() + 60
    try:
        db = one._worlds["me"][0].db

        def at_work() -> bool:
            job = jobs.open_job(db)
            return job is not None and job["kind"] == "export" and job["state"] == "running"

        one.run(until=lambda: at_work() or time.monotonic() > deadline)
    finally:
        lock.release()
    assert time.monotonic() < deadline
    assert ask(home, ollama, "rollback", {"version": 1, "train_again": False, "line": ""})["request"] == "done"
    check_alias(ollama, 1)
    with read(home) as db:
        job = serving.job_of(db, 2)
        assert job is not None and job["state"] == "undone" and jobs.open_job(db) is None
        folder = home.profile("me").jobs / job["folder"]
    assert not (folder / "parent").exists() and not (folder / "export").exists()


# -- the command line --------------------------------------------------------------------------------


def test_a_version_is_copied_to_a_folder(exported: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    said = engramd(exported, capsys, "export", "v1", "--to", str(out), "--quant", "Q8_0", "--set", "serve.ollama=off")
    assert "v1 is in" in said
    assert {path.name for path in out.iterdir()} == {"model", "model.gguf", "Modelfile", "export.json"}
    assert models(exported, 1).isdisjoint({"model", "model.gguf"})  # what is served is as it was
    again = engramd(exported, capsys, "export", "v1", "--to", str(out), code=1)
    assert "not empty" in again
    adapter = tmp_path / "adapter"
    (adapter / ".tmp-engramd-export" / "half").mkdir(parents=True)  # an empty folder, but for what was cut off
    engramd(exported, capsys, "export", "v1", "--to", str(adapter), "--adapter-only", "--json")
    assert {path.name for path in adapter.iterdir()} == {"adapter", "adapter.gguf", "export.json"}
    work(exported, None, **OFF)  # the fetched one leaves nothing
    assert not list(exported.profile("me").jobs.glob("*-export/export"))
    assert "there is no v9" in engramd(exported, capsys, "export", "v9", "--to", str(tmp_path / "x"), code=3)


def test_a_refused_version_can_be_taken_along(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.unit.test_gate import BAD, poison

    night(home, None, "one", "two", **OFF)
    poison(home, **BAD)
    night(home, None, "three", **OFF)
    fault(home, None)
    with read(home) as db:
        (refused,) = [row["id"] for row in jobs.versions(db) if row["state"] == "refused"][:1]
    out = tmp_path / "out"
    assert "(refused)" in engramd(home, capsys, "export", f"v{refused}", "--to", str(out), "--quant", "f16")
    assert (out / "model.gguf").is_file()


def test_an_export_that_fails_says_why(exported: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault(exported, "parity")
    said = engramd(exported, capsys, "export", "v1", "--to", str(tmp_path / "out"), code=1)
    assert "asked for parity" in said and not (tmp_path / "out").exists()


def test_status_says_what_is_served_and_what_waits(
    home: Home, ollama: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    night(home, ollama, "one", "two")
    assert "serving   v1 as me since" in engramd(home, capsys, "status")
    ollama.stop()
    night(home, ollama, "three")
    said = engramd(home, capsys, "status")
    assert "v1 as me since" in said and "v2 waits, next try " in said and ": no Ollama answers at" in said
    told = json.loads(engramd(home, capsys, "status", "--json"))["profiles"][0]["serving"]
    assert [(one["version"], one["wanted"], one["tries"]) for one in told["lines"]] == [(1, 2, 1)]
    asked = ("serve", "--set", f"serve.host={ollama.host}", "--set", "serve.ollama=always",
             "--set", "evaluation.free_answers=0")  # fmt: skip
    assert "v2 waits" in engramd(home, capsys, *asked, code=75)
    ollama.start()
    assert "v2 as me since" in engramd(home, capsys, *asked)
    check_alias(ollama, 2)


def test_status_takes_no_export_for_training() -> None:
    from daemon.cli import running
    from daemon.cli.status import what_next

    job = {"id": 7, "kind": "export", "state": "running", "phase": "working"}
    assert running.line(job) == "job 7  export  working"
    counts = {"claimed": 0, "reading": 0}
    said = what_next({"batches": counts, "job": job, "files_in_inbox": 0, "waiting_memories": 0, "waits": None},
                     runs=True)  # fmt: skip
    assert "judged" not in said and "job 7 ends" in said


def test_training_in_the_foreground_does_not_serve(home: Home, ollama: Serving) -> None:
    """`engramd train` ends with the training; the next daemon serves it."""
    night(home, ollama, "one", "two", scheduled=False)
    assert not names_of(ollama)
    work(home, ollama)
    check_alias(ollama, 1)


def test_a_pause_holds_the_export_too(home: Home, ollama: Serving) -> None:
    night(home, None, "one", "two", **OFF)
    ask(home, None, "pause", {"until": ""}, **OFF)
    work(home, ollama)  # comes to rest all the same
    assert not names_of(ollama)
    ask(home, None, "resume", {}, **OFF)
    work(home, ollama)
    check_alias(ollama, 1)


def test_a_snapshot_has_no_gguf(exported: Home) -> None:
    from tests.unit.test_going_back import snapshot

    name = snapshot(exported)
    assert not list((exported.snapshots / name).rglob("*.gguf"))


# -- room on a GPU -----------------------------------------------------------------------------------


def wait(room: Room, job: dict[str, Any], on_gpu: bool = True) -> None:
    deadline = time.monotonic() + 30
    while not room.is_there(job, lambda: on_gpu):
        assert time.monotonic() < deadline


def running(ollama: Serving) -> list[str]:
    with Ollama(ollama.host, 10.0) as client:
        return client.running()


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


def test_models_make_room_and_come_back(home: Home, ollama: Serving, worker: Worker) -> None:
    night(home, ollama, "one", "two")
    with Ollama(ollama.host, 10.0) as client:
        client.load("me", "1h")
    room = Room("me", ServeSettings(host=ollama.host), worker)
    wait(room, {"id": 1, "attempts": 0}, on_gpu=False)
    assert running(ollama) != []  # on a processor nothing has to go
    wait(room, {"id": 1, "attempts": 0})
    assert running(ollama) == []
    deadline = time.monotonic() + 30
    while running(ollama) == []:
        room.give_back()
        assert time.monotonic() < deadline


def test_a_silent_ollama_delays_training_for_seconds_only(ollama: Serving, worker: Worker) -> None:
    ollama.faults(slow={"/api/": 60})
    room, begun = Room("me", ServeSettings(host=ollama.host), worker), time.monotonic()
    wait(room, {"id": 1, "attempts": 0})
    assert time.monotonic() - begun < 12
    nobody = Room("me", ServeSettings(host="http://127.0.0.1:9"), Worker())
    begun = time.monotonic()
    wait(nobody, {"id": 1, "attempts": 0})
    assert time.monotonic() - begun < 5


def test_a_gpu_job_waits_for_room(home: Home, ollama: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the service: what was loaded is unloaded before the trainer starts, and is back afterwards."""
    from daemon import estimates, logs

    logs.configure(home, quiet=True)
    night(home, ollama, "one", "two")
    with Ollama(ollama.host, 10.0) as client:
        client.load("me-v1", "1h")
    monkeypatch.setattr(estimates, "device", lambda wish: estimates.Device("gpu", "a card", 1 << 40))
    night(home, ollama, "three")
    kinds = [json.loads(one)["event"] for one in home.log.read_text().splitlines()]
    assert kinds.index("models_unloaded") < len(kinds) - 1 - kinds[::-1].index("job_started")
    check_alias(ollama, 2)


def test_cycles_are_merged_whatever_the_nights_are(exported: Home) -> None:
    assert cycle(exported, None, **ALWAYS)["request"] == "done"
    assert spec_of(exported, 2).export.form == "merged"
