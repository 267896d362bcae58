"""A MetaHuman OS profile is taken over: every file and memory of it is taken, or left with a reason."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from daemon import durable, handing_over, importing, readers
from daemon.__main__ import main
from daemon.cli.exit_codes import Exit
from daemon.home import Home
from daemon.ledger import batches, memories
from daemon.rules import metahuman
from daemon.rules.curation import Curation
from tests.unit.test_service import read, work

LONG = (
    "The cello came back from the workshop on a wet Thursday and the new bridge makes the low strings speak at once, "
    "so I played the sarabande twice before supper and forgot the soup, which burned, and nobody minded at all because "
    "the rain had stopped and the neighbours were standing in the yard to listen until it was dark."
)
CUT = " ".join(LONG.split()[:40])  # what the origin's curator leaves of it


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.inbox.mkdir(parents=True)
    return home


def event(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"evt2025110{number}", "timestamp": f"2025-11-0{number}T10:00:00.{number}00Z", "type": "observation",
        "content": f"On day {number} the heron stood in the same place by the weir, number {number * 7}.", "tags": [],
        "entities": [], "importance": 0.5, "metadata": {"cognitiveMode": "emulation"},
    } | more  # fmt: skip


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2), encoding="utf-8")


CHAT = event(1, type="conversation", content='Me: "How was the evening with the cello?"', response=LONG)
UNFIT = event(2, content="I shouted at the printer again and it did not help, as the printer has no ears at all.")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """As the origin lays one out."""
    top = tmp_path / "profiles" / "greggles"
    days = top / "memory" / "episodic" / "2025"
    put(days / "11" / "01" / "evt20251101-cello.json", CHAT)
    put(days / "11" / "02" / "evt20251102-printer.json", UNFIT)
    put(days / "evt20251103-heron.json", event(3))
    put(top / "memory/episodic/dreams/2025/evt4.json", event(4, type="dream"))
    put(top / "memory/episodic/reflections/evt5.json", event(5, type="reflection"))
    tool = {"toolName": "search", "toolInputs": {"q": "weir"}, "toolOutputs": {"hits": 3}, "success": True}
    put(top / "memory/episodic/tool-invocations/evt6.json", event(6, type="tool_invocation", metadata=tool))
    put(days / "evt7.json", event(7, tags=["curator", "background-task"], content="Curated 12 memories for training"))
    put(top / "memory/tasks/active/t1.json", {"id": "t1", "title": "Have the cello valued", "status": "todo"})
    put(top / "memory/audio/transcripts/a.txt", "I walked to the mill and back before it rained.\r\nThen I slept.\r\n")
    put(top / "memory/audio/inbox/a.wav", b"RIFF\x00\x00")
    put(top / "memory/episodic/2025/evt9.json.enc", "{}")
    put(top / "memory/index/embeddings-nomic.json", {"vectors": []})
    put(top / "memory/inbox/_archive/old.md", "# An old note")
    curated = [
        {"id": CHAT["id"], "originalTimestamp": CHAT["timestamp"], "conversationalEssence": "The cello is back.",
         "userMessage": "How was the evening with the cello?", "assistantResponse": CUT, "suitableForTraining": True,
         "cognitiveMode": "emulation", "memoryType": "conversation"},
        {"id": UNFIT["id"], "originalTimestamp": UNFIT["timestamp"], "conversationalEssence": UNFIT["content"],
         "userMessage": "", "assistantResponse": "", "suitableForTraining": False, "memoryType": "observation"},
        {"id": "evt20200101", "originalTimestamp": "2020-01-01T00:00:00Z", "conversationalEssence": "",
         "userMessage": "Where is the key to the shed?", "assistantResponse": "It hangs behind the kitchen door.",
         "suitableForTraining": True, "memoryType": "conversation"},
    ]  # fmt: skip
    put(top / "memory/curated/training-datasets/curated-2025-11-21.json", curated)
    run = top / "out/fine-tuned-models/2025-11-21/run-1"
    lines = [
        {"instruction": "How was the evening with the cello?", "input": "", "output": CUT},
        {"instruction": "What colour is the boat?", "input": "", "output": "The boat was painted green in the spring."},
    ]
    put(run / "fine_tune_dataset.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    put(run / "formatted_samples.json", [{"mode": "dual", "weird": 1}])
    put(run / "run-summary.json", {"samples": 2})
    put(run / "model/model-00001-of-00006.safetensors", b"\x00" * 64)
    put(run / "model.gguf", b"GGUF")
    put(run / "Modelfile", "FROM ./model.gguf")
    put(top / "persona/core.json", {"identity": {"name": "Greg"}})
    put(top / "logs/actions/2025-11-21.jsonl", json.dumps(event(8)) + "\n")
    put(top / "state/x.json", {"a": 1})
    put(top / "etc/training.json", {"lora_rank": 16, "lora_alpha": 16, "base_model": "profiles/greggles/out/v1/model",
                                    "colour": "red", "num_train_epochs": 0, "max_samples": 5000})  # fmt: skip
    put(top / "etc/models.json", {"a": 1})
    put(top / "etc/model-registry.json", {
        "original_base_model": "Qwen/Qwen3-14B", "current_base_model": "profiles/greggles/out/v1/model",
        "training_history": [{"version": 1, "timestamp": "2025-11-21T10:00:00Z", "base_model_used": "Qwen/Qwen3-14B",
                              "samples_trained": 3247, "training_success": True}],
    })  # fmt: skip
    put(top / "node_modules/x/package.json", {"name": "x"})
    put(top / "node_modules/x/index.js", "1")
    put(top / ".git/config", "[core]")
    return top


def call(home: Home, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["--home", str(home.root), *words])
    return code, out.getvalue(), err.getvalue()


def taken_over(home: Home, folder: Path, *words: str) -> dict[str, Any]:
    code, out, err = call(home, "import-metahuman", str(folder), "--json", *words)
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out)
    return found


def row(told: dict[str, Any], end: str) -> dict[str, Any]:
    (found,) = [one for one in told["rows"] if one["path"].endswith(end)]
    return dict(found)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
    }  # fmt: skip


def everything(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


# ---- what is what ----------------------------------------------------------------------------------


def test_every_file_is_taken_or_left_with_a_reason(home: Home, profile: Path) -> None:
    told = taken_over(home, profile)
    assert told["files"]["found"] == everything(profile) == sum(one["files"] for one in told["rows"])
    assert all((one["decision"] == "left") == bool(one["reason"]) for one in told["rows"])
    taken = {one["path"] for one in told["rows"] if one["decision"] == "taken"}
    assert {path.rpartition("/")[2] for path in taken} == {
        "evt20251101-cello.json", "evt20251102-printer.json", "evt20251103-heron.json", "evt4.json", "evt5.json",
        "evt6.json", "evt7.json", "t1.json", "a.txt", "curated-2025-11-21.json", "fine_tune_dataset.jsonl",
        "training.json", "model-registry.json",
    }  # fmt: skip
    assert "encrypted" in row(told, ".enc")["reason"]
    assert "weights" in row(told, ".safetensors")["reason"]
    assert "weights" in row(told, "model.gguf")["reason"]
    assert row(told, "node_modules/")["files"] == 2
    assert row(told, ".git/")["reason"] == "the history of a version control"
    assert "persona" in row(told, "core.json")["reason"]
    assert "log" in row(told, "2025-11-21.jsonl")["reason"]
    assert "no reader" in row(told, "formatted_samples.json")["reason"]
    assert "index" in row(told, "embeddings-nomic.json")["reason"]


def test_what_was_made_of_a_memory_is_not_taken_beside_it(home: Home, profile: Path) -> None:
    told = taken_over(home, profile)
    curated, lines = row(told, "curated-2025-11-21.json"), row(told, "fine_tune_dataset.jsonl")
    assert (curated["made_of"] + curated["twice"], curated["new"], curated["items"]) == (2, 1, 1)
    assert (lines["made_of"], lines["new"], lines["items"]) == (1, 1, 1)
    work(home)
    with read(home) as db:
        texts = {one["content"]: one for one in memories.listing(db, limit=-1)}
    assert "Where is the key to the shed?" in texts and "What colour is the boat?" in texts
    assert [one["response"] for one in texts.values()].count(LONG) == 1
    assert CUT not in [one["response"] for one in texts.values()]
    assert len(texts) == told["memories"]["new"] == 11


def test_the_curators_mark_reaches_the_memory_that_it_is_about(home: Home, profile: Path) -> None:
    told = taken_over(home, profile)
    assert told["memories"]["left_out"] == {
        "marked as unsuitable for training by the origin's curator": 1, "a notice of the curator": 1,
    }  # fmt: skip
    work(home)
    with read(home) as db:
        (found,) = [one for one in memories.listing(db, limit=-1) if one["content"] == UNFIT["content"]]
    assert (found["state"], found["reason"]) == ("skipped", "marked as unsuitable for training")
    assert found["timestamp"] == UNFIT["timestamp"]


def test_files_go_as_they_are_with_their_paths(home: Home, profile: Path) -> None:
    told = taken_over(home, profile)
    names = [Path(one["path"]).name for one in told["batches"]]
    assert names == [
        "metahuman-greggles-01-memories", "metahuman-greggles-02-tasks", "metahuman-greggles-03-transcripts",
        "metahuman-greggles-04-curated", "metahuman-greggles-05-datasets",
    ]  # fmt: skip
    there, here = files_below(profile), files_below(home.inbox / names[0])
    same = [path for path, data in here.items() if there[path] == data]
    assert len(here) == 7 and len(same) == 6  # the seventh bears the curator's mark
    source = profile / "memory/episodic/2025/evt20251103-heron.json"
    copy = home.inbox / names[0] / "memory/episodic/2025/evt20251103-heron.json"
    assert copy.stat().st_mtime_ns == source.stat().st_mtime_ns


def test_a_second_run_takes_nothing_twice(home: Home, profile: Path) -> None:
    before = files_below(profile)
    first = taken_over(home, profile)
    waiting = taken_over(home, profile)  # nobody has claimed it yet
    assert waiting["batches"] == [] and len(waiting["waiting"]) == 5
    assert len([one for one in home.inbox.iterdir() if one.name.startswith("metahuman")]) == 5
    work(home)
    again = taken_over(home, profile)
    assert again["memories"]["new"] == 0 and again["batches"] == again["waiting"] == []
    assert again["memories"]["known"] + again["memories"]["made_of"] + again["memories"]["twice"] == (
        first["memories"]["read"]
    )
    put(profile / "memory/episodic/2025/12/evt.json", event(9))
    grown = taken_over(home, profile)
    assert [one["files"] for one in grown["batches"]] == [1]
    assert files_below(profile).items() >= before.items()


def test_a_dry_run_writes_nothing_and_says_the_same(home: Home, profile: Path) -> None:
    dry = taken_over(home, profile, "--dry-run", "--settings")
    assert files_below(home.root) == {} and list(home.inbox.iterdir()) == []
    wet = taken_over(home, profile)
    for key in ("files", "memories", "kinds", "rows", "settings", "registries"):
        assert dry[key] == wet[key], key


def test_forgotten_memories_do_not_come_back(home: Home, profile: Path) -> None:
    taken_over(home, profile)
    work(home)
    with read(home) as db:
        (one,) = [m for m in memories.listing(db, limit=-1) if m["content"].startswith("On day 3 ")]
    code, out, err = call(home, "forget", one["id"].hex(), "--yes")
    assert code == 0, out + err
    again = taken_over(home, profile)
    assert row(again, "heron.json")["reason"] == "forgotten here" and again["batches"] == []


# ---- settings, registry ----------------------------------------------------------------------------


def test_settings_are_shown_and_taken_over_only_where_nobody_changed_ours(home: Home, profile: Path) -> None:
    code, out, _ = call(home, "import-metahuman", str(profile), "--dry-run")
    assert code == 0
    assert "training.lora_rank 16 here 8" in out and "cycle.max_samples 5000 here 3000" in out
    assert "lora_alpha" not in out
    assert "colour red (there is no such setting here)" in out
    assert "training.num_train_epochs 0 here 3 (not allowed here:" in out
    assert "training.base_model profiles/greggles/out/v1/model here Qwen/Qwen3-14B (the origin's own weights" in out
    ours = home.etc / "training.json"
    put(ours, {"comment": "mine", "base_model": "unsloth/Qwen3-14B", "lora_rank": 8})
    told = taken_over(home, profile, "--settings")
    assert json.loads(ours.read_text()) == {
        "comment": "mine", "base_model": "unsloth/Qwen3-14B", "lora_rank": 16, "max_samples": 5000
    }  # fmt: skip
    assert "2 settings were written" in told["settings_written"]
    assert [one["key"] for one in taken_over(home, profile, "--settings")["settings"]] == [
        "base_model", "colour", "num_train_epochs"
    ]  # fmt: skip
    put(ours, {"lora_rank": 4})
    told = taken_over(home, profile, "--settings")
    assert '"lora_rank": 16' in told["settings_written"] and "stays as it is" in told["settings_written"]
    assert json.loads(ours.read_text()) == {"lora_rank": 4}


def test_settings_that_would_break_ours_are_not_written(home: Home, profile: Path) -> None:
    put(profile / "etc/training.json", {"lora_rank": True, "lora_alpha": "much", "save_steps": 500})
    told = taken_over(home, profile, "--settings")
    assert {one["key"]: bool(one["problem"]) for one in told["settings"]} == {
        "lora_rank": True, "lora_alpha": True, "save_steps": False
    }  # fmt: skip
    written = json.loads((home.etc / "training.json").read_text())
    assert written.keys() == {"comment", "save_steps"} and "import-metahuman" in written["comment"]
    assert call(home, "config")[0] == 0


def test_what_lies_outside_of_the_profile_is_named_and_not_read(home: Home, profile: Path) -> None:
    (profile / "etc/training.json").unlink()
    outside = profile.parent.parent / "etc/training.json"
    put(outside, {"lora_rank": 64})
    _, out, _ = call(home, "import-metahuman", str(profile), "--dry-run")
    assert f"outside of the profile, and not read: {outside}" in out and "64" not in out


def test_our_own_home_inside_of_the_profile_is_not_read(profile: Path) -> None:
    home = Home(profile / "memory" / "engramd")
    home.inbox.mkdir(parents=True)
    put(home.root / "archive.json", event(9))
    told = taken_over(home, profile)
    assert row(told, "memory/engramd/")["reason"] == "engramd's own files"
    assert told["memories"]["new"] == 11 and taken_over(home, profile)["batches"] == []


def test_the_registry_is_shown_and_kept(home: Home, profile: Path) -> None:
    _, out, _ = call(home, "import-metahuman", str(profile))
    assert "etc/model-registry.json: 1 version, begun on Qwen/Qwen3-14B" in out
    assert "v1  2025-11-21T10:00:00Z  3247 samples on Qwen/Qwen3-14B" in out
    assert "No weights are taken over" in out
    assert "taken      7         7  memories" in out and "left       1            the history of a" in out
    kept = home.profile("me").root / "imported" / "model-registry.json"
    assert kept.read_bytes() == (profile / "etc/model-registry.json").read_bytes()
    taken_over(home, profile)
    assert len(list(kept.parent.iterdir())) == 1
    put(profile / "etc/model-registry.json", {"training_history": []})
    assert taken_over(home, profile)["copies"] == [str(kept.with_name("model-registry-2.json"))]
    put(profile / "etc/model-registry.json", '{"training_history": 7')
    assert "cannot be read" in row(taken_over(home, profile), "model-registry.json")["reason"]


# ---- odd trees -------------------------------------------------------------------------------------


def test_odd_files(home: Home, profile: Path, tmp_path: Path) -> None:
    odd = profile / "memory" / "episodic" / "odd"
    put(tmp_path / "outside.json", event(1, content="A thing that lies outside of the profile and is no part of it."))
    put(odd / "bom.json", b"\xef\xbb\xbf" + json.dumps(event(1, content="With a mark of bytes in front.")).encode())
    lines = json.dumps(event(2, content="With\r\nline ends"), indent=1)
    put(odd / "windows.json", lines.encode().replace(b"\n", b"\r\n"))
    put(odd / "utf16.json", json.dumps(event(3, content="In sixteen bits, it was said.")).encode("utf-16"))
    put(odd / "list.json", [event(4, content="The first of a list of two memories."), event(5, content="The second.")])
    put(odd / "empty.json", b"")
    put(odd / "blank.json", b"  \n ")
    put(odd / "broken.json", b'{"content": "torn in the mid')
    put(odd / "half.json.tmp", b"{}")
    put(odd / "list-with-junk.json", [7, {"content": "Beside junk there is a good one."}, {"a": 1}])
    put(odd / "copy.json", CHAT)
    put(odd / "user.json", event(6, content="In a file that has the name of a companion."))
    put(odd / "back\\slash\u202e.json", event(7, content="Under a name that is odd in two ways."))
    (odd / os.fsdecode(b"bad\xff.json")).write_text(json.dumps(event(8, content="Under a name that is no text.")))
    (odd / "link.json").symlink_to(tmp_path / "outside.json")
    (odd / "linked").symlink_to(tmp_path)
    os.mkfifo(odd / "pipe.json")
    with socket.socket(socket.AF_UNIX) as sock, pytest.MonkeyPatch.context() as inside:
        inside.chdir(odd)  # the address of a socket may not be long
        sock.bind("socket.json")
    deep = odd.joinpath(*["d"] * 40)
    put(deep / "deep.json", event(9))
    put(profile / "profiles/other/memory/episodic/x.json", event(1, content="Of somebody else altogether, not me."))
    told = taken_over(home, profile)
    assert told["files"]["found"] == everything(profile) + 1  # os.walk counts a linked folder among folders
    reasons = {one["path"].rpartition("odd/")[2]: one["reason"] for one in told["rows"] if "/odd/" in one["path"]}
    for name, words in {
        "empty.json": "is empty", "blank.json": "empty", "broken.json": "the JSON cannot be read",
        "half.json.tmp": "temporary", "copy.json": "the same as in memory/episodic/2025/11/01/evt20251101-cello.json",
        "link.json": "symbolic link", "linked": "symbolic link", "pipe.json": "FIFO", "socket.json": "socket",
    }.items():  # fmt: skip
        assert words in reasons[name], (name, reasons[name])
    assert any(reason and "folders deep" in reason for reason in reasons.values())
    assert "other people" in row(told, "profiles/")["reason"]
    junk = row(told, "list-with-junk.json")
    assert (junk["new"], junk["bad"], junk["decision"]) == (1, 2, "taken")
    work(home)
    with read(home) as db:
        texts = {one["content"] for one in memories.listing(db, limit=-1)}
        assert batches.counts(db) == {"done": 5}
    assert texts >= {
        "With a mark of bytes in front.", "With\nline ends", "In sixteen bits, it was said.", "The second.",
        "Beside junk there is a good one.", "In a file that has the name of a companion.",
        "Under a name that is odd in two ways.", "Under a name that is no text.",
    }  # fmt: skip
    assert not any("outside" in text or "somebody else" in text for text in texts)
    assert len(texts) == told["memories"]["new"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(home: Home, profile: Path) -> None:
    shut = profile / "memory/episodic/2025/evt20251103-heron.json"
    shut.chmod(0)
    (profile / "memory/tasks").chmod(0)
    try:
        told = taken_over(home, profile)
    finally:
        (profile / "memory/tasks").chmod(0o700)
    assert "chmod u+r" in row(told, "heron.json")["reason"]
    assert "chmod u+rwx" in row(told, "tasks/")["reason"]


def test_unreadable_files_are_named(home: Home, profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, also for root: the system refuses."""
    real = importing.open_inside

    def refuse(root: Path, path: str) -> Any:
        if path.endswith("heron.json"):
            raise PermissionError(13, "Permission denied", path)
        return real(root, path)

    monkeypatch.setattr(importing, "open_inside", refuse)
    told = taken_over(home, profile)
    assert row(told, "heron.json")["reason"] == (
        "it cannot be read (Permission denied): chmod u+r it, then import again"
    )


def test_a_huge_file_is_named_and_a_long_one_streamed(home: Home, profile: Path) -> None:
    with open(profile / "memory/episodic/huge.jsonl", "wb") as file:
        file.truncate(3 << 20)
    put(profile / "memory/episodic/long.jsonl", "".join(
        json.dumps(event(1, content=f"Line {n} of a long file, which tells of day {n}.")) + "\n" for n in range(3000)
    ))  # fmt: skip
    told = taken_over(home, profile, "--set", "inbox.max_file_mb=2")
    assert "max_file_mb" in row(told, "huge.jsonl")["reason"]
    assert row(told, "long.jsonl")["new"] == 3000


def test_parts_of_a_profile_and_folders_that_are_none(home: Home, profile: Path, tmp_path: Path) -> None:
    assert row(taken_over(home, profile / "memory", "--dry-run"), "episodic/2025/evt7.json")["kind"] == "memories"
    assert row(taken_over(home, profile / "memory/episodic", "--dry-run"), "2025/evt7.json")["kind"] == "memories"
    for folder, words in (
        (profile.parent, "name the folder of one"), (profile.parent.parent, "(greggles)"),
        (tmp_path / "nothing", "No such file"), (home.root, "engramd's own home"), (home.inbox, "engramd's own home"),
        (profile / "etc", "no profile of MetaHuman OS"),
    ):  # fmt: skip
        if folder == profile / "etc":
            (folder / "training.json").unlink()
            (folder / "model-registry.json").unlink()
        code, _, err = call(home, "import-metahuman", str(folder))
        assert code == Exit.NOTHING and words in err and "Traceback" not in err, (folder, err)


def test_another_profile_gets_it(home: Home, profile: Path) -> None:
    assert call(home, "import-metahuman", str(profile), "--profile", "anna")[0] == Exit.NOTHING
    toml = "[profiles.anna]\n"
    put(home.etc / "engramd.toml", toml)
    told = taken_over(home, profile, "--profile", "anna")
    assert all(Path(one["path"]).parent == home.inbox / "anna" for one in told["batches"])
    assert told["copies"] == [str(home.profile("anna").root / "imported/model-registry.json")]


# ---- trouble ---------------------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_leaves_no_half(
    home: Home, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shutil.copyfileobj, []

    def full(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 8:  # in the third batch
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(handing_over.shutil, "copyfileobj", full)
    code, out, err = call(home, "import-metahuman", str(profile))
    assert code == Exit.FAILED and "No space left on device" in out and "Traceback" not in err
    assert not [one for one in home.inbox.iterdir() if durable.is_temp(one.name)]
    monkeypatch.undo()
    told = taken_over(home, profile)
    assert (len(told["waiting"]), len(told["batches"])) == (2, 3)


def test_a_file_that_changes_meanwhile_stays_behind(
    home: Home, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.copyfileobj

    def meddle(source: Any, *rest: Any) -> None:
        real(source, *rest)
        heron = profile / "memory/episodic/2025/evt20251103-heron.json"
        if os.path.samestat(os.fstat(source.fileno()), heron.stat()):
            with open(heron, "a") as file:
                file.write("\n")

    monkeypatch.setattr(handing_over.shutil, "copyfileobj", meddle)
    told = taken_over(home, profile)
    assert "changed while it was read" in row(told, "heron.json")["reason"]
    assert not list(home.inbox.rglob("*heron.json"))
    monkeypatch.undo()
    assert "heron.json" in str(files_below(Path(taken_over(home, profile)["batches"][0]["path"])).keys())


KILLED_AT = """
import os, sys
from daemon import cli, durable, handing_over, inbox
count = int(sys.argv[1])
def dying(module, name):
    real = getattr(module, name)
    def one(*args, **kwargs):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), 9)
        return real(*args, **kwargs)
    setattr(module, name, one)
for module, name in ((handing_over, "_put"), (durable, "sync_filesystem"), (inbox, "publish"), (durable, "fsync_dir"),
                     (durable, "write_atomic"), (durable, "remove")):
    dying(module, name)
sys.exit(cli.execute(sys.argv[2:]))
"""


@pytest.mark.parametrize("step", [1, 4, 8, 9, 10, 11, 12, 16, 21, 26, 31, 33])
def test_killed_at_any_step(home: Home, profile: Path, step: int) -> None:
    argv = ["--home", str(home.root), "import-metahuman", str(profile)]
    ended = subprocess.run([sys.executable, "-c", KILLED_AT, str(step), *argv], capture_output=True, timeout=120)
    assert ended.returncode == -9, ended.stderr
    told = taken_over(home, profile)
    assert told["memories"]["new"] == 11
    whole = [one for one in home.inbox.iterdir() if not one.name.startswith(".")]
    assert sorted(one.name for one in whole) == sorted(
        [Path(one["path"]).name for one in told["batches"]] + told["waiting"]
    )
    assert (home.profile("me").root / "imported/model-registry.json").is_file()
    if step in (9, 21):
        work(home)
        with read(home) as db:
            assert memories.total(db) == 11 and batches.counts(db) == {"done": 5}


# ---- the rules -------------------------------------------------------------------------------------


def test_every_path_has_an_answer() -> None:
    for path in ("a", "x.json", "memory/x", "out/a/b.jsonl", "persona/therapy/s1.json", "weird/place/x", "memory/.x"):
        place = metahuman.place_of(path)
        assert place.kind in (*metahuman.READ, "settings", "registry") or place.reason, path
    assert metahuman.place_of("persona/therapy/s1.json").kind == "interviews"
    assert metahuman.place_of("memory/semantic/facts.json").kind == "notes"
    assert metahuman.place_of("MODEL-REGISTRY.json").kind == "registry"
    assert "wrote for itself" in metahuman.place_of("memory/procedural/overnight/2025-11-21.md").reason
    assert "voice" in metahuman.place_of("out/voice-training/dataset/metadata.jsonl").reason


def test_told_knows_what_was_cut_out_and_nothing_else() -> None:
    told = metahuman.Told()
    told.add("How was the evening with the cello?", LONG)
    told.add("Yes?", "Yes.")
    assert told.holds("Anything", CUT) and told.holds("Anything", LONG.partition("and ")[2])
    assert told.holds(LONG, "How was the evening with the cello?")  # turned round
    assert told.holds("yes", "YES!") and not told.holds("Is it raining?", "Yes.")
    assert not told.holds("Anything", LONG.replace("the", "a"))


def test_batches_are_split(profile: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_over, "MOST_FILES", 3)
    source = importing.source_of(profile, home, readers.Limits(), readers.Locale(), Curation.default())
    done = importing.Import(source, None)
    done.look()
    found = [(batch.name, len(batch.rows)) for batch in handing_over.batches_of(done)]
    assert found[:3] == [
        ("metahuman-greggles-01-memories", 3), ("metahuman-greggles-02-memories", 3),
        ("metahuman-greggles-03-memories", 1),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _rights_again(tmp_path: Path) -> Iterator[None]:
    yield
    for path in tmp_path.rglob("*heron.json"):
        path.chmod(0o600)
