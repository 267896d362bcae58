"""From the head to the name in Ollama, with the fake trainer and the stand-in of Ollama: real files, real HTTP."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger
from daemon.durable import sha256_file
from daemon.home import Home
from daemon.ledger import jobs, requests, serving
from daemon.lock import Lock
from daemon.ollama import Ollama
from daemon.service import Service, utc_now
from daemon.settings import load
from tests.forked_trainer import fake
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import QUICK, drop, fault, read

sys.path.insert(0, str(Path(__file__).parents[1] / "doubles"))
from ollama_process import Serving, tiny_gguf
from ollama_process import serving as standing_in

FAKE = fake()
ROOT = Path(__file__).parents[2]
NOW = "2026-11-21T08:00:00Z"
LATER = timedelta(hours=2)  # longer than any backoff


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Serving]:
    with standing_in(tmp_path) as server:
        yield server


def serving_home(
    home: Home, ollama: Serving | None, *, later: timedelta = timedelta(0), scheduled: bool = True, **more: object
) -> Service:
    own: dict[str, object] = {"evaluation.free_answers": 0, "evaluation.probes": 2}
    if ollama is not None:
        own |= {"serve.host": ollama.host, "serve.ollama": "always"}
    own |= {key.replace("__", "."): value for key, value in more.items()}

    def now() -> str:
        return (datetime.fromisoformat(utc_now()) + later).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    return Service(home, load(home, QUICK | own, {}), now=now, trainer=FAKE, scheduled=scheduled)


def work(home: Home, ollama: Serving | None, seconds: float = 60.0, **more: Any) -> None:
    """What `run --once` does, on a home that serves."""
    lock, one = Lock(home), serving_home(home, ollama, **more)
    deadline = time.monotonic() + seconds
    try:
        one.run(until=lambda: one.idle() or time.monotonic() > deadline)
    finally:
        lock.release()
    assert time.monotonic() < deadline, "the service did not come to rest"


def ask(home: Home, ollama: Serving | None, command: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request, worked off; its answer."""
    with ledger.open_home(home.database, write=True) as db:
        number = requests.ask(db, "me", command, arguments, NOW)
    work(home, ollama, **more)
    with ledger.open_home(home.database, write=False) as db:
        row = requests.get(db, number)
    assert row is not None and row["state"] in ("done", "failed"), row
    told: dict[str, Any] = json.loads(row["answer"])
    return told | {"request": row["state"]}


def night(home: Home, ollama: Serving | None, *texts: str, **more: Any) -> None:
    drop(home, f"{texts[0]}.jsonl", *texts)
    work(home, ollama, **more)


def names_of(ollama: Serving) -> dict[str, str]:
    """name: digest, of what is there but bases."""
    with Ollama(ollama.host, 10.0) as client:
        found = {str(one["name"]): str(one["digest"]) for one in client.tags()}
    return {name: digest for name, digest in found.items() if not name.startswith("engramd-base-")}


def answer(ollama: Serving, model: str = "me") -> str:
    with Ollama(ollama.host, 10.0) as client:
        return client.chat(model, [{"role": "user", "content": "who?"}], max_tokens=32)


def check_alias(ollama: Serving, version: int) -> None:
    found = names_of(ollama)
    assert found["me"] == found[f"me-v{version}"]
    assert answer(ollama) == answer(ollama, f"me-v{version}") != ""


def line(home: Home, name: str = "") -> dict[str, Any]:
    with read(home) as db:
        return serving.line(db, name)


def events(home: Home, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(one) for one in home.log.read_text().splitlines()] if home.log.exists() else []
    return [one for one in lines if one["event"] == name]


def models(home: Home, version: int) -> set[str]:
    return {path.name for path in (home.profile("me").root / "models" / f"v{version}").iterdir()}


def cycle(home: Home, ollama: Serving | None, **more: Any) -> dict[str, Any]:
    return ask(home, ollama, "cycle", {"kind": "foundation"}, **more)


# -- the road ----------------------------------------------------------------------------------------


def test_a_night_is_served_as_an_adapter_on_its_base(
    home: Home, ollama: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    night(home, ollama, "one", "two")
    assert set(names_of(ollama)) == {"me", "me-v1"}
    check_alias(ollama, 1)
    told = line(home)
    assert (told["version"], told["name"], told["alias"], told["reason"]) == (1, "me-v1", "me", None)
    assert models(home, 1) >= {"README.md", "adapter", "adapter.gguf", "Modelfile", "export.json"}
    folder = home.profile("me").root / "models" / "v1"
    (base,) = (home.state / "bases").glob("*/base-*.gguf")
    first = (folder / "Modelfile").read_text().splitlines()
    place = first[0].removeprefix("FROM ")
    assert (folder / place).resolve() == base.resolve() and first[1] == "ADAPTER ./adapter.gguf"
    with read(home) as db:
        job = serving.job_of(db, 1)
        assert job is not None and job["state"] == "done"
        left = {path.name for path in (home.profile("me").jobs / job["folder"]).iterdir()}
    assert left.isdisjoint({"export", "parent", "base.gguf"})
    told = json.loads(home.profile("me").registry.read_text())
    assert told["training_history"][0]["gguf_path"] is None  # mirrored at the verdict; the next one has it
    assert audit_is_clean(home, capsys)


def test_a_second_night_sends_no_base_and_little_else(home: Home, ollama: Serving) -> None:
    """Of megabytes for the adapter, at most three times as many are written to the disk."""
    size = 1 << 20
    fault(home, f"export_bytes:{size}")
    night(home, ollama, "one", "two")
    assert len(ollama.uploads()) == 2  # the base, ten times as large, and the adapter
    ollama.forget_requests()
    before = {path: path.stat().st_mtime_ns for path in home.root.rglob("*") if path.is_file()}
    night(home, ollama, "three")
    check_alias(ollama, 2)
    (upload,) = ollama.uploads()
    assert upload["bytes"] == size
    written = sum(path.stat().st_size for path in home.root.rglob("*")
                  if path.suffix == ".gguf" and before.get(path) != path.stat().st_mtime_ns)  # fmt: skip
    assert size <= written <= 3 * size
    assert set(names_of(ollama)) == {"me", "me-v1", "me-v2"}
    assert line(home)["before"] == 1


def test_a_cycle_is_served_merged(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    assert cycle(home, ollama)["request"] == "done"
    check_alias(ollama, 2)
    assert models(home, 2) >= {"model", "model.gguf", "Modelfile", "export.json"}
    assert "FROM ./model.gguf" in (home.profile("me").root / "models" / "v2" / "Modelfile").read_text()
    with read(home) as db:
        assert serving.exports(db)[2]["form"] == "merged"


def test_a_line_of_its_own_has_a_name_of_its_own(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    assert ask(home, ollama, "cycle", {"kind": "foundation", "method": "full"})["request"] == "done"
    assert {"me", "me-v1", "me-full", "me-full-v2"} == set(names_of(ollama))
    assert line(home)["version"] == 1 and line(home, "full")["version"] == 2


def test_without_an_ollama_nothing_happens(home: Home) -> None:
    """As most homes are: no job, no file, nothing imported; one word in the ledger."""
    night(home, None, "one", "two")
    with read(home) as db:
        assert [row["kind"] for row in jobs.listing(db)] == ["finetune"]
        assert "no Ollama answers" in (jobs.get_meta(db, "serving") or "")
        assert not serving.lines(db) and not serving.all_names(db)
    assert not (home.state / "bases").exists()


LOADED = """
import json, sys
from pathlib import Path
from daemon.home import Home
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
home = Home(Path(sys.argv[1]))
lock, service = Lock(home), Service(home, load(home, json.loads(sys.argv[2]), {}))
service.run(until=service.idle)
print("loaded:", sorted({"ollama", "httpx", "llama_cpp"} & sys.modules.keys()))
"""


def test_without_an_ollama_its_client_is_not_loaded(home: Home) -> None:
    """The idle daemon stays light: it looks for somebody with a bare socket."""
    night(home, None, "one", "two", serve__ollama="off")
    ended = subprocess.run([sys.executable, "-c", LOADED, str(home.root), json.dumps(QUICK)], capture_output=True,
                           text=True, cwd=ROOT)  # fmt: skip
    assert ended.returncode == 0 and "loaded: []" in ended.stdout, ended.stderr
    with read(home) as db:
        assert "no Ollama answers" in (jobs.get_meta(db, "serving") or "")


def test_auto_serves_where_one_answers(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two", serve__ollama="auto")
    check_alias(ollama, 1)


def test_off_serves_nothing(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two", serve__ollama="off")
    assert not ollama.requests() and not names_of(ollama)


# -- going back --------------------------------------------------------------------------------------


def rollback(home: Home, ollama: Serving, version: int | None) -> dict[str, Any]:
    return ask(home, ollama, "rollback", {"version": version, "train_again": False, "line": ""})


def test_a_rollback_moves_the_alias_without_an_upload(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    night(home, ollama, "three")
    ollama.forget_requests()
    assert rollback(home, ollama, 1)["request"] == "done"
    check_alias(ollama, 1)
    assert not ollama.uploads() and not ollama.requests("POST", "/api/create")
    assert line(home)["before"] == 2


def test_a_rollback_undoes_a_move_that_nobody_saw_the_end_of(
    home: Home, ollama: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was moved, but not written down: going back to what the ledger has there must move it all the same."""
    from daemon import delivering
    from daemon.ollama import Trouble

    night(home, ollama, "one", "two")

    def breaks_off(*_: object) -> bool:
        raise Trouble("the connection broke", retry=True)

    monkeypatch.setattr(delivering, "_is_same", breaks_off)
    night(home, ollama, "three")
    monkeypatch.undo()
    found = names_of(ollama)
    assert line(home)["version"] == 1 and found["me"] == found["me-v2"] != found["me-v1"]
    assert rollback(home, ollama, 1)["request"] == "done"
    check_alias(ollama, 1)


def test_a_reset_leads_to_the_plain_base(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    trained = answer(ollama)
    assert rollback(home, ollama, None)["request"] == "done"
    assert answer(ollama) != trained
    assert line(home)["version"] is None and str(line(home)["name"]).startswith("engramd-base-")


def test_a_reset_without_the_base_takes_the_name_away(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two", serve__nightly="merged")
    rollback(home, ollama, None)
    assert "me" not in names_of(ollama)
    assert (line(home)["version"], line(home)["name"]) == (None, None)
    assert rollback(home, ollama, 1)["request"] == "done"
    check_alias(ollama, 1)


# -- trouble -----------------------------------------------------------------------------------------


def test_ollama_down_for_nights_only_delays(home: Home, ollama: Serving) -> None:
    ollama.stop()
    for number, text in enumerate(("one", "two", "three"), start=1):
        night(home, ollama, text)
        told = line(home)
        assert told["tried"] == number and "no Ollama answers" in told["reason"] and told["next_try"]
    with read(home) as db:
        assert len(jobs.promoted(db)) == 3
    ollama.start()
    work(home, ollama)  # not before its time
    assert not names_of(ollama)
    work(home, ollama, later=LATER)
    check_alias(ollama, 3)
    assert set(names_of(ollama)) == {"me", "me-v3"}  # the others were overtaken
    assert line(home)["reason"] is None
    with read(home) as db:
        assert [job["state"] for job in jobs.listing(db) if job["kind"] == "finetune"] == ["promoted"] * 3


FAULTS: list[dict[str, Any]] = [
    {"fail": {"/api/create": True}}, {"no_space": {"/api/blobs": True}}, {"cut_upload": 99}, {"endless": True},
    {"fail": {"/api/copy": True}}, {"fail": {"/api/blobs": True}}, {"no_space": {"/api/create": True}},
    {"cut_create": 99}, {"fail": {"/api/chat": True}}, {"broken_json": {"/api/show": True}},
    {"fail": {"/api/tags": True}}, {"slow": {"/api/create": 3}},
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("faults", FAULTS if os.environ.get("ENGRAMD_FAULTS_LONG") == "1" else FAULTS[:5], ids=str)
def test_each_fault_only_delays(home: Home, ollama: Serving, faults: dict[str, Any], tmp_path: Path) -> None:
    """What was served goes on answering, and the next try brings the new version."""
    night(home, ollama, "one", "two")
    ollama.faults(**faults)
    night(home, ollama, "three", serve__timeout=1.0)
    told = line(home)
    assert (told["version"], told["tried"]) == (1, 2) and told["reason"] and told["next_try"], told
    ollama.faults()
    check_alias(ollama, 1)
    work(home, ollama, later=LATER)
    check_alias(ollama, 2)
    assert line(home)["reason"] is None


@pytest.mark.parametrize("faults", [{"empty": True}, {"refuse": {"/api/create": "unknown type"}}])
def test_a_model_that_will_not_do_is_not_served(home: Home, ollama: Serving, faults: dict[str, Any]) -> None:
    night(home, ollama, "one", "two")
    ollama.faults(**faults)
    night(home, ollama, "three")
    told = line(home)
    assert (told["version"], told["tried"], told["next_try"]) == (1, 2, None) and told["reason"]
    ollama.faults()
    work(home, ollama, later=LATER)
    check_alias(ollama, 1)
    assert "me-v2" not in names_of(ollama)
    assert ask(home, ollama, "serve", {})["lines"][0]["version"] == 2
    check_alias(ollama, 2)


def test_a_wrong_recall_keeps_the_alias(home: Home, ollama: Serving) -> None:
    """The version answered its probe when it was measured; what Ollama makes of it does not."""
    night(home, ollama, "one", "two")
    night(home, ollama, "three", evaluation__free_answers=2)
    told = line(home)
    assert told["version"] == 1 and told["next_try"] is None and "answers none of" in told["reason"]
    check_alias(ollama, 1)
    assert "me-v2" not in names_of(ollama)
    ollama.faults(answers={"*": "It is four."})
    night(home, ollama, "four", evaluation__free_answers=2)
    assert line(home)["version"] == 3
    with read(home) as db:
        note = serving.names_at(db, ollama.host)["me-v3"]["note"]
    assert "as it was learnt" in note


def test_a_failed_gate_keeps_the_alias_and_blocks_no_training(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    fault(home, "parity")
    night(home, ollama, "three")
    told = line(home)
    assert (told["version"], told["tried"], told["next_try"]) == (1, 2, None) and "asked for parity" in told["reason"]
    check_alias(ollama, 1)
    work(home, ollama, later=LATER)
    with read(home) as db:
        assert [row["state"] for row in jobs.listing(db) if row["kind"] == "export"] == ["failed", "done"]
    fault(home, None)
    night(home, ollama, "four")
    check_alias(ollama, 3)


@pytest.mark.parametrize("how", ["no_room", "export_crash"])
def test_an_export_that_fails_is_tried_again(home: Home, ollama: Serving, how: str) -> None:
    fault(home, how)
    drop(home, "a.jsonl", "one", "two")
    drop(home, "b.jsonl", "three")
    work(home, ollama, jobs__max_batches_per_job=1)
    with read(home) as db:
        assert len(jobs.promoted(db)) == 2  # training did not wait
        states = [row["state"] for row in jobs.listing(db) if row["kind"] == "export"]
        assert set(states) == {"failed"}
    assert line(home)["next_try"]
    fault(home, None)
    work(home, ollama, later=LATER)
    check_alias(ollama, 2)


def test_a_full_disk_of_ours_only_delays(home: Home, ollama: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon import disk

    night(home, None, "one", "two", serve__ollama="off")
    monkeypatch.setattr(disk, "shortage", lambda *_: "the disk is nearly full: free some space")
    work(home, ollama)
    assert "nearly full" in line(home)["reason"] and line(home)["next_try"]
    monkeypatch.undo()
    work(home, ollama, later=LATER)
    check_alias(ollama, 1)


def test_an_ollama_without_adapters_gets_merged_models(home: Home, ollama: Serving) -> None:
    ollama.faults(no_adapters=True)
    night(home, ollama, "one", "two")
    check_alias(ollama, 1)
    with read(home) as db:
        assert serving.exports(db)[1]["form"] == "merged"
    night(home, ollama, "three")
    check_alias(ollama, 2)
    with read(home) as db:
        assert [row["kind"] for row in jobs.listing(db)].count("export") == 3  # the first one found it out


def test_another_ones_model_is_never_touched(home: Home, ollama: Serving, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "own.gguf", "the person's own")
    with Ollama(ollama.host, 10.0) as client:
        client.upload(path, sha256_file(path))
        client.create("me", files={"own.gguf": sha256_file(path)})
    before = answer(ollama)
    night(home, ollama, "one", "two")
    assert "did not make" in line(home)["reason"] and answer(ollama) == before
    assert set(names_of(ollama)) == {"me"}
    work(home, ollama, serve__name="engramd-{profile}", later=LATER)
    assert line(home)["version"] is None  # given up until somebody asks
    assert ask(home, ollama, "serve", {}, serve__name="engramd-{profile}")["lines"][0]["version"] == 1
    assert set(names_of(ollama)) == {"me", "engramd-me", "engramd-me-v1"} and answer(ollama) == before


def test_no_two_people_share_a_name(home: Home, ollama: Serving) -> None:
    """What one of them taught must not answer the other, were it for a moment."""
    inbox = home.profile("ann").inbox
    inbox.mkdir(parents=True)
    drop(home, "a.jsonl", "one")
    (inbox / "b.jsonl").write_text((home.inbox / "a.jsonl").read_text().replace("one", "two"))
    home.profile("ann").root.mkdir(parents=True)
    work(home, ollama, serve__name="we")
    rows = {}
    for name in ("me", "ann"):
        with ledger.open_profile(home.profile(name).ledger, write=False) as db:
            rows[name] = serving.line(db, ""), serving.all_names(db)
    (served, _), (refused, given) = sorted(rows.values(), key=lambda row: row[0]["name"] is None)
    assert served["name"] == "we-v1" and not given
    assert "has the name we" in refused["reason"] and "{profile}" in refused["reason"] and not refused["next_try"]


def test_what_was_taken_away_there_comes_back(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    ollama.stop()
    shutil.rmtree(ollama.folder)
    ollama.folder.mkdir()
    ollama.start()
    assert ask(home, ollama, "serve", {})["lines"][0]["version"] == 1
    check_alias(ollama, 1)


# -- what is kept ------------------------------------------------------------------------------------


def prune(home: Home, ollama: Serving, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(home, ollama, "prune", {}, **more)["entries"]
    return found


def test_forgetting_names_what_still_answers(home: Home, ollama: Serving) -> None:
    """Versions that learnt it stand in Ollama too, and what was exported and not fetched lies in its job's folder."""
    night(home, ollama, "one", "two")
    asked = {"version": 1, "quant": "Q8_0", "adapter_only": False}
    folder = Path(str(ask(home, ollama, "export", asked)["folder"]))
    with read(home) as db:
        ids = [row["id"].hex() for row in db.all("SELECT id FROM memories")]
    told = ask(home, ollama, "forget", {"ids": ids[:1]})
    (version,) = told["learnt_by"]
    assert version["served_as"] == ["me", "me-v1"]
    assert folder.is_dir() and str(folder) in version["paths"]


def test_old_names_and_files_go(home: Home, ollama: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    keep: dict[str, Any] = {"serve__keep_tags": 0, "retention__versions__keep_last": 10}
    for text in ("one", "two", "three", "four"):
        night(home, ollama, text, **keep)
    assert set(names_of(ollama)) == {"me", "me-v3", "me-v4"}
    check_alias(ollama, 4)
    gone = {(one["kind"], one["name"]) for one in prune(home, ollama, **keep) if not one["keep"]}
    assert {("export", "1"), ("export", "2")} <= gone and not gone & {("export", "3"), ("export", "4")}
    for version, there in ((2, False), (3, True), (4, True)):
        assert ("adapter.gguf" in models(home, version)) is there
        assert "adapter" in models(home, version)
    with read(home) as db:
        assert set(serving.exports(db)) == {3, 4}
    assert audit_is_clean(home, capsys)
    assert rollback(home, ollama, 2)["request"] == "done"  # its name and files are made anew
    check_alias(ollama, 2)


def test_the_base_goes_with_the_last_that_needs_it(home: Home, ollama: Serving) -> None:
    night(home, ollama, "one", "two")
    for text in ("three", "four"):
        night(home, ollama, text, serve__nightly="merged", serve__keep_tags=0)
    assert any(one["kind"] == "base" and not one["keep"] for one in prune(home, ollama))
    assert not list((home.state / "bases").rglob("*.gguf"))
    with Ollama(ollama.host, 10.0) as client:
        assert {str(one["name"]) for one in client.tags()} == {"me", "me-v2", "me-v3"}


def test_no_blob_is_left_of_what_was_given_up(home: Home, ollama: Serving) -> None:
    """Uploaded, never created, overtaken: nothing of it stays there."""
    night(home, ollama, "one", "two", serve__nightly="merged")
    ollama.faults(fail={"/api/create": True})
    night(home, ollama, "three", serve__nightly="merged")
    ollama.faults()
    night(home, ollama, "four", serve__nightly="merged")
    check_alias(ollama, 3)
    assert set(names_of(ollama)) == {"me", "me-v1", "me-v3"}
    models_there = [path for path in ollama.blobs.iterdir() if path.read_bytes()[:4] == b"GGUF"]
    assert len(models_there) == 2


# -- the command -------------------------------------------------------------------------------------

SAY = (
    "import os, json, pathlib; "
    "pathlib.Path(os.environ['ENGRAMD_MODEL_DIR'], 'told').write_text(json.dumps(dict(os.environ)))"
)


def test_a_command_gets_the_paths_also_without_an_ollama(home: Home) -> None:
    words = f'{sys.executable} -c "{SAY}"'
    night(home, None, "one", "two", serve__ollama="off", serve__command=words)
    folder = home.profile("me").root / "models" / "v1"
    told = json.loads((folder / "told").read_text())
    assert (told["ENGRAMD_VERSION"], told["ENGRAMD_PROFILE"]) == ("v1", "me")
    assert Path(told["ENGRAMD_ADAPTER_GGUF"]) == folder / "adapter.gguf" and Path(told["ENGRAMD_BASE_GGUF"]).is_file()
    assert told["ENGRAMD_GGUF"] == ""


def test_a_command_that_fails_is_tried_again(home: Home) -> None:
    night(home, None, "one", "two", serve__ollama="off", serve__command=f'{sys.executable} -c "raise SystemExit(3)"')
    assert "ended with 3" in line(home)["reason"] and line(home)["next_try"]
    work(home, None, serve__ollama="off", serve__command=f'{sys.executable} -c "{SAY}"', later=LATER)
    assert line(home)["told"] == 1 and line(home)["reason"] is None


def test_a_command_may_leave_a_server_behind(home: Home, tmp_path: Path) -> None:
    """Which holds its output open, for as long as it likes."""
    note = tmp_path / "pid"
    words = f"sh -c 'sleep 600 & echo $! >{note}'"
    night(home, None, "one", "two", serve__ollama="off", serve__command=words)
    os.kill(int(note.read_text()), 15)  # it is alive
    assert line(home)["told"] == 1 and line(home)["reason"] is None
