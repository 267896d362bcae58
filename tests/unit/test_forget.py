"""What was forgotten is in no file any more, comes back by no road, and everything else is still there."""

import gzip
import json
import os
import shutil
import signal
import sqlite3
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import chains, forgetting, inbox, ledger
from daemon.audit import Audit
from daemon.home import Home
from daemon.ledger import batches, jobs, memories, requests
from daemon.lock import Lock
from daemon.rules.emptied import without_records
from daemon.rules.needles import Needles, forms_of
from daemon.service import Service, utc_now
from daemon.settings import load
from tests.forked_trainer import fake

FAKE = fake()
QUICK = {
    "inbox.quiet_seconds": 0.05, "inbox.scan_seconds": 0.1, "service.tick_seconds": 0.02,
    "training.mix.replay": 0.0, "training.mix.anchor": 0.0,
    "training.base_model": "builtin:tiny", "training.gradient_accumulation_steps": 3,
    "training.num_train_epochs": 2, "jobs.stop_seconds": 5.0, "evaluation.held_out_percent": 0,
}  # fmt: skip
SECRET = 'The key to Zoë\'s "blue" house/garden lies under the third flowerpot.'
ASKED = "Where did I hide the key of Zoë's house?"


def _service(home: Home, **settings: object) -> Service:
    return Service(home, load(home, QUICK | {k.replace("__", "."): v for k, v in settings.items()}, {}), trainer=FAKE)


def _run(home: Home, until: Callable[[Service], bool] = Service.idle, **settings: object) -> None:
    lock = Lock(home)
    try:
        one = _service(home, **settings)
        deadline = time.monotonic() + 60
        one.run(until=lambda: until(one) or time.monotonic() > deadline)
    finally:
        lock.release()
    assert time.monotonic() < deadline, "it did not come to rest"


def _drop(home: Home, name: str, *items: dict[str, Any], inside: str = "") -> None:
    folder = home.inbox / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))


def _pair(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


OTHERS = [_pair(f"Who is {n}?", f"{n} is a friend from the choir.") for n in ("Ann", "Ben", "Cid", "Dot")]


def _read(home: Home) -> ledger.Database:
    return ledger.open_profile(home.profile("me").ledger, write=False)


def _id(home: Home, text: str = SECRET) -> str:
    with _read(home) as db:
        rows = [row for row in memories.listing(db, limit=-1) if text in (row["response"] or row["content"])]
    assert rows, "no memory says it"
    return str(rows[0]["id"].hex())


def _ask(home: Home, **arguments: Any) -> int:
    with ledger.open_home(home.database, write=True) as db:
        return requests.ask(db, "me", "forget", {"ids": [], "batch": None, "source": None} | arguments, utc_now())


def _answer(home: Home, request: int) -> dict[str, Any]:
    with ledger.open_home(home.database, write=False) as db:
        row = requests.get(db, request) or {}
    assert row["state"] == "done", row
    return dict(json.loads(row["answer"]))


def _forget(home: Home, **arguments: Any) -> dict[str, Any]:
    request = _ask(home, **arguments)
    _run(home)
    return _answer(home, request)


def _holding(home: Home, *texts: str) -> list[str]:
    """Files below the home in which a text stands, in any form; zips and gzips are opened, databases read whole."""
    forms = [form for text in texts for form in forms_of(text)]
    found = []
    for path in sorted(home.root.rglob("*")):
        if not path.is_file():
            continue
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if contents[0][:2] == b"\x1f\x8b":
            contents.append(gzip.decompress(contents[0]))
        if path.suffix == ".db":
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            contents += ["\n".join(db.iterdump()).encode()]
            db.close()
        if any(form in one for one in contents for form in forms):
            found.append(str(path.relative_to(home.root)))
    return found


def _problems(home: Home) -> list[str]:
    with _read(home) as db, ledger.open_home(home.database, write=False) as home_db:
        audit = Audit(home.profile("me"), db, home_db, chains.why_damaged, inbox.folder_sha256, False)
        return [finding.problem for finding in audit.run()]


def _is_clean(home: Home) -> None:
    assert _holding(home, SECRET, ASKED) == []
    assert _problems(home) == []


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two jobs; the memory is in the first, and quoted by a log, a refused file and a reason."""
    home = Home(tmp_path_factory.mktemp("grown") / "home")
    _drop(home, "a.jsonl", *OTHERS[:2], _pair(ASKED, SECRET), *OTHERS[2:])
    home.failed.joinpath("me").mkdir(parents=True)
    _run(home)
    _drop(home, "b.jsonl", _pair("Who is Eve?", "Eve is my sister."))
    (home.inbox / "torn.json").write_text('[{"prompt": "x", "response": ' + json.dumps(SECRET) + ', "cut')
    _run(home)
    home.log.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"level": "debug", "event": "read", "text": text}) for text in (SECRET, "harmless")]
    home.log.write_text("\n".join(lines) + "\n")
    job = home.profile("me").jobs / "1-finetune"
    (job / "trainer.log").write_text(f"first line\nsample says {SECRET}\nlast line\n")
    (job / "rendered.jsonl").write_text(
        "".join(json.dumps({"id": f"{_id(home, text)}#0", "sequences": [{"text": f"<q>{text}</q>"}]}) + "\n"
                for text in (SECRET, "Ann is a friend"))
    )  # fmt: skip
    return home


@pytest.fixture
def home(grown: Home, tmp_path: Path) -> Home:
    shutil.copytree(grown.root, tmp_path / "home", symlinks=True)
    return Home(tmp_path / "home")


def test_forgotten_means_in_no_file(home: Home) -> None:
    assert len(_holding(home, SECRET)) >= 7
    told = _forget(home, ids=[_id(home)])
    _is_clean(home)
    assert told["memories"] == 1
    with _read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 5, "forgotten": 1}
        (row,) = [row for row in memories.listing(db) if row["state"] == "forgotten"]
        assert (row["content"], row["response"], row["detail"], row["timestamp"]) == ("", None, None, None)
    archived = home.profile("me").archive.rglob("*a.jsonl")
    assert [json.loads(line) for line in next(archived).read_text().splitlines()] == OTHERS
    samples = (home.profile("me").jobs / "1-finetune" / "samples.jsonl").read_text()
    assert len(samples.splitlines()) == 5 and "Ann is a friend" in samples
    log = home.profile("me").jobs / "1-finetune" / "trainer.log"
    assert log.read_text() == "first line\nlast line\n"
    assert "harmless" in home.log.read_text()


def test_what_was_learnt_is_named(home: Home) -> None:
    told = _forget(home, ids=[_id(home)])
    assert [version["version"] for version in told["learnt_by"]] == [1, 2]  # the second goes on from the first
    assert [version["in_use"] for version in told["learnt_by"]] == [False, True]
    assert all(Path(path).is_dir() for version in told["learnt_by"] for path in version["paths"])
    assert told["rebuild"]["from"] == "base"
    _drop(home, "c.jsonl", _pair("Who is Gil?", "Gil is my neighbour across the road."))
    _run(home)
    told = _forget(home, ids=[_id(home, "Gil is")])
    assert [version["version"] for version in told["learnt_by"]] == [3]
    with _read(home) as db:
        step = jobs.versions(db)[1]["step"]
    assert told["rebuild"]["step"] == step and Path(told["rebuild"]["path"]).name == f"checkpoint-{step}"


def test_what_is_dropped_again_is_refused_and_not_archived(home: Home) -> None:
    original = [*OTHERS[:2], _pair(ASKED, SECRET), *OTHERS[2:]]
    _forget(home, ids=[_id(home)])
    _drop(home, "a.jsonl", *original)
    _drop(home, "other name.jsonl", _pair(ASKED, SECRET))
    _drop(home, "grown.json", {"messages": [
        {"role": "user", "content": ASKED}, {"role": "assistant", "content": SECRET},
        {"role": "user", "content": "And the gate?"}, {"role": "assistant", "content": "The gate stands open."},
    ]})  # fmt: skip
    _run(home)
    assert _holding(home, SECRET) == []
    assert _problems(home) == []
    with _read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 6, "forgotten": 1}
        told = {row["name"]: row["forgotten"] for row in reversed(batches.listing(db))}
    assert told == {"a.jsonl": 1, "b.jsonl": 0, "torn.json": 0, "other name.jsonl": 1, "grown.json": 2}


def test_a_dry_run_names_every_place_and_changes_nothing(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.cli import execute

    def state() -> dict[str, bytes]:
        ignored = ("-wal", "-shm")
        return {str(p): p.read_bytes() for p in home.root.rglob("*") if p.is_file() and not p.name.endswith(ignored)}

    before, held = state(), set(_holding(home, SECRET, ASKED))
    assert execute(["--home", str(home.root), "forget", _id(home)[:12], "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert state() == before and told["elsewhere"] is None
    sets = ("--set", "compute.ssh.host=gpubox")
    assert execute(["--home", str(home.root), "forget", _id(home)[:12], "--dry-run", *sets]) == 0
    assert "ssh gpubox rm -r engramd-compute" in capsys.readouterr().out  # what lies there is named, and not removed
    named = {place["path"] for place in told["places"]}
    assert {path for path in held if not path.endswith(("-wal", "-shm"))} <= named
    done = _forget(home, ids=[_id(home)])
    assert {place["path"] for place in done["places"]} == {path for path in named if not path.endswith("ledger.db")}


def test_the_words_of_two_memories_stay_with_the_other(home: Home) -> None:
    _drop(home, "c.jsonl", _pair("And Ann?", "Ann is a friend from the choir."))
    _run(home)
    with _read(home) as db:
        (first,) = [row for row in memories.listing(db) if row["content"] == "Who is Ann?"]
    told = _forget(home, ids=[first["id"].hex()])
    with _read(home) as db:
        (other,) = [row for row in memories.listing(db) if row["content"] == "And Ann?"]
    assert told["said_by"] == [other["id"].hex()]
    assert _holding(home, "Who is Ann?") == []
    assert _problems(home) == []


def test_the_context_of_others_loses_it(home: Home) -> None:
    turns = [("user", ASKED + " I forgot."), ("assistant", "It is where Kim left it, near the old well."),
             ("user", "Which well is that?"), ("assistant", "The one behind the mill.")]  # fmt: skip
    _drop(home, "chat.json", {"messages": [{"role": role, "content": text} for role, text in turns]})
    _run(home)
    told = _forget(home, ids=[_id(home, "Kim left it")])
    assert told["context_of"] == 1
    assert _holding(home, turns[0][1], turns[1][1]) == []
    assert _problems(home) == []
    with _read(home) as db:
        (row,) = [row for row in memories.listing(db) if row["response"] == turns[3][1]]
        assert memories.from_row(row).context == () and row["content"] == "Which well is that?"


@pytest.mark.parametrize("kind", ["zip", "gzip", "folder", "list", "text", "whole"])
def test_archived_formats(tmp_path: Path, kind: str) -> None:
    home = Home(tmp_path / "home")
    home.inbox.mkdir(parents=True)
    items = [_pair(ASKED, SECRET), OTHERS[0]]
    if kind == "zip":
        with zipfile.ZipFile(home.inbox / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.json", json.dumps(items[0]))
            archive.writestr("b.json", json.dumps(items[1]))
    elif kind == "gzip":
        (home.inbox / "x.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    elif kind == "folder":
        (home.inbox / "notes").mkdir()
        (home.inbox / "notes" / "a.md").write_text(f"# {ASKED}\n\n{SECRET}\n")
        (home.inbox / "notes" / "b.md").write_text("# A day\n\nWe walked along the river.\n")
    elif kind == "list":
        (home.inbox / "x.json").write_text(json.dumps(items, indent=2))
    elif kind == "text":
        (home.inbox / "x.txt").write_bytes(SECRET.encode("utf-16"))
    else:
        _drop(home, "x.jsonl", items[0])
    _run(home)
    told = _forget(home, ids=[_id(home)])
    assert _holding(home, SECRET) == []
    assert _problems(home) == []
    kept = [path for path in home.profile("me").archive.rglob("*") if path.is_file()]
    assert bool(kept) == (kind in ("folder", "list"))
    assert told["places"]
    if kind == "folder":
        assert [path.name for path in kept] == ["b.md"]


def test_a_whole_batch_and_a_whole_source(home: Home) -> None:
    with _read(home) as db:
        by_name = {row["name"]: row["id"] for row in batches.listing(db)}
    told = _forget(home, batch=by_name["b.jsonl"])
    assert told["memories"] == 1 and _holding(home, "Eve is my sister.") == []
    assert not list(home.profile("me").archive.rglob("*b.jsonl"))
    _forget(home, batch=by_name["torn.json"])  # refused: it has no memories, but a file
    assert not list(home.profile("me").failed.iterdir())
    with _read(home) as db:
        source = next(memories.listing(db, state="trained"))["source"]
    assert _forget(home, source=source)["memories"] == 5
    assert _holding(home, SECRET, *(item["response"] for item in OTHERS)) == []
    assert _problems(home) == []


def test_nothing_to_forget_is_said(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from daemon.cli import execute
    from daemon.cli.exit_codes import UserError

    for arguments in (["--source", "nobody"], ["--batch", "77"], ["ffff"]):
        with pytest.raises(UserError, match=r"no memory"):
            execute(["--home", str(home.root), "forget", "--yes", *arguments])
    with pytest.raises(UserError, match="name ids, or one"):
        execute(["--home", str(home.root), "forget"])


def _snapshot(home: Home) -> Path:
    """As a snapshot will be: hard links of sealed files, a copy of the ledger."""
    target, root = home.snapshots / "2026-11-20", home.profile("me").root
    for path in sorted(root.rglob("*")):
        place = target / path.relative_to(root)
        if path.is_symlink() or ".db" in path.name:
            continue
        if path.is_dir():
            place.mkdir(parents=True)
        else:
            os.link(path, place)
    source, copy = sqlite3.connect(root / "ledger.db"), sqlite3.connect(target / "ledger.db")
    source.backup(copy)
    source.close()
    copy.close()
    return target


def test_snapshots_forget_too(home: Home) -> None:
    target = _snapshot(home)
    assert len([path for path in _holding(home, SECRET) if path.startswith("snapshots")]) >= 4
    told = _forget(home, ids=[_id(home)])
    _is_clean(home)
    assert any(path.startswith(str(home.snapshots)) for version in told["learnt_by"] for path in version["paths"])
    with ledger.open_profile(target / "ledger.db", write=False) as copy:
        assert memories.counts(copy)["state"] == {"trained": 5, "forgotten": 1}
    with _read(home) as db:
        paths = {row["path"] for row in db.all("SELECT path FROM redactions")}
    assert "snapshots/2026-11-20/ledger.db" in paths
    assert not list(home.root.rglob(".engramd-*"))


def test_a_running_job_is_stopped_and_frozen_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    _drop(home, "a.jsonl", *OTHERS, _pair(ASKED, SECRET))
    folder = home.profile("me").jobs
    folder.mkdir(parents=True)
    (folder / "fault").write_text("step_seconds:0.3")
    asked: list[int] = []

    def at_work(one: Service) -> bool:
        if (folder / "1-finetune" / "progress.jsonl").exists():
            asked.append(_ask(home, ids=[_id(home)]))
            (folder / "fault").unlink()
            return True
        return False

    lock = Lock(home)
    try:
        one = _service(home)
        deadline = time.monotonic() + 60
        one.run(until=lambda: bool(asked and one.idle()) or (not asked and at_work(one) and False)
                or time.monotonic() > deadline)  # fmt: skip
    finally:
        lock.release()
    _answer(home, asked[0])
    _is_clean(home)
    with _read(home) as db:
        assert [row["state"] for row in jobs.since(db, 0)] == ["forgotten", "promoted"]
        assert jobs.uses_of(db, 2) == {"new": 4}
        assert memories.counts(db)["state"] == {"trained": 4, "forgotten": 1}
    assert not (folder / "1-finetune").exists()


def test_a_held_memory_that_is_forgotten_leaves_nothing_to_decide(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    folder = home.profile("me").jobs
    folder.mkdir(parents=True)
    (folder / "fault").write_text("diverge")
    _drop(home, "a.jsonl", _pair(ASKED, SECRET))
    _run(home)
    _forget(home, ids=[_id(home)])
    _is_clean(home)
    with _read(home) as db:
        assert batches.counts(db) == {"done": 1}


def _killed_at(home: Home, number: int) -> bool:
    """Do it in a child that is killed at its n-th step towards the disk. Whether it came so far."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def step(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        try:
            from daemon import durable
            from daemon.ledger import forgetting as rows

            durable.write_atomic = step(durable.write_atomic)  # type: ignore[assignment]
            durable.rename_durable = step(durable.rename_durable)  # type: ignore[assignment]
            durable.fsync_dir = step(durable.fsync_dir)  # type: ignore[assignment]
            for name in ("record", "erase", "cut_quotes", "compact", "redacted"):
                setattr(rows, name, step(getattr(rows, name)))
            _run(home)
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def test_killed_at_any_step_it_is_finished_by_the_next_start(home: Home, tmp_path: Path, long_faults: bool) -> None:
    _snapshot(home)
    request = _ask(home, ids=[_id(home)])
    number, killed = 1, True
    while killed:
        one = Home(tmp_path / f"killed {number}")
        shutil.copytree(home.root, one.root, symlinks=True)
        killed = _killed_at(one, number)
        _run(one)
        assert _answer(one, request)["memories"] == 1
        _is_clean(one)
        assert not list(one.root.rglob(".engramd-*"))
        shutil.rmtree(one.root)
        number += 1 if long_faults else 4 + number // 4
    assert number > 15


def test_needles_of_many_are_found_like_needles_of_few() -> None:
    lines = [f"On day {n} I met {n * 7} herons, by the “old” river." for n in range(300)]
    needles = Needles(lines)
    said = f"before {lines[17]} after"
    assert needles.in_text(said) == [lines[17]]
    for form in forms_of(lines[17]):
        data = b'{"x": "' + form + b'"}'
        assert needles.are_in(data) and needles.count(data) >= 1
        assert not needles.are_in(needles.cut_bytes(data))
    assert not needles.are_in(b'{"x": "On day 17 I met nobody"}')
    assert needles.cut(f"first\n{lines[3]}\nlast") == "first\nlast"
    assert needles.in_text("On day 17 I met nobody") == []


def test_a_chat_of_people(tmp_path: Path) -> None:
    """Messages are the units: what was joined in one memory stands in several lines of the export."""
    from daemon.readers import STREAM_READERS

    if not any(reader.name == "whatsapp" for reader in STREAM_READERS):
        pytest.skip("no reader of WhatsApp yet")
    home = Home(tmp_path / "home")
    home.inbox.mkdir(parents=True)
    (home.etc).mkdir()
    (home.etc / "engramd.toml").write_text('[profiles.me]\naliases = ["Mia"]\n')
    chat = ["12.01.24, 10:00 - Tom: Where is it?", "12.01.24, 10:01 - Mia: Under the pot of the lemon tree",
            "12.01.24, 10:01 - Mia: the one by the door, you know", "12.01.24, 10:05 - Tom: Thanks a lot!",
            "12.01.24, 10:06 - Mia: Come over for dinner tonight"]  # fmt: skip
    more = [*chat, "12.01.24, 10:07 - Tom: With pleasure, see you", "12.01.24, 10:08 - Mia: Bring the small dog along"]
    (home.inbox / "WhatsApp Chat.txt").write_text("\n".join(chat) + "\n")
    _run(home)
    told = _forget(home, ids=[_id(home, "lemon tree")])
    gone = ("Under the pot of the lemon tree", "the one by the door, you know")
    assert told["context_of"] == 1 and _holding(home, *gone) == []
    assert _problems(home) == []
    (home.inbox / "WhatsApp Chat.txt").write_text("\n".join(more) + "\n")
    _run(home)
    assert _holding(home, *gone) == []
    assert _problems(home) == []
    with _read(home) as db:
        assert memories.counts(db)["state"] == {"trained": 2, "forgotten": 1}


def test_the_dry_run_speaks_of_the_open_job(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    _drop(home, "a.jsonl", *OTHERS, _pair(ASKED, SECRET))
    folder = home.profile("me").jobs
    folder.mkdir(parents=True)
    (folder / "fault").write_text("no_device")
    _run(home)
    with _read(home) as db:
        job = jobs.open_job(db)
        assert job is not None and job["state"] == "frozen"
        world = forgetting.World("me", home, home.profile("me"), db, load(home, QUICK, {}),
                                 *_rules(home), seed=int(jobs.get_meta(db, "seed") or 0))  # fmt: skip
        told = forgetting.dry_run(world, {"ids": [_id(home)]})
    assert ("state/profiles/me/jobs/1-finetune", "removed") in [(one["path"], one["what"]) for one in told["places"]]


def _rules(home: Home) -> tuple[Any, Any]:
    from daemon.world import rules_of

    return rules_of(home)


def test_a_job_that_only_asks_about_it_is_frozen_anew(tmp_path: Path) -> None:
    """Its questions are sealed: a file that `spec.json` names must not change under a job that goes on."""
    home = Home(tmp_path / "home")
    for number in range(2):
        _drop(home, f"{number}.jsonl", *OTHERS[number * 2 : number * 2 + 2], *([_pair(ASKED, SECRET)] * (not number)))
        _run(home)
    folder = home.profile("me").jobs
    (folder / "fault").write_text("no_device")
    _drop(home, "new.jsonl", _pair("What is new?", "The bicycle is new, and it is green."))
    _run(home)
    with _read(home) as db:
        assert jobs.uses_of(db, 3) == {"new": 1}
    probes = folder / "3-finetune" / "probes.jsonl"
    assert _id(home).encode() in probes.read_bytes() and SECRET.split()[-1].encode() in probes.read_bytes()
    (folder / "fault").unlink()
    _forget(home, ids=[_id(home)])
    _run(home)
    _is_clean(home)
    with _read(home) as db:
        assert [row["state"] for row in jobs.since(db, 2)] == ["forgotten", "promoted"]
        assert memories.counts(db)["state"] == {"trained": 5, "forgotten": 1}


def test_an_answer_behind_another_ones_question_goes_too() -> None:
    """Too short to be looked for by its words, and nobody says whose answer it is."""
    gone, stays = "a" * 64, "b" * 64
    lines = [
        {"id": f"{gone}?", "messages": [], "answer": "Rome.", "memory": gone},
        {"id": f"{stays}?", "messages": [], "answer": "Oslo.", "memory": stays},
        {"id": f"{stays}?crossed", "messages": [], "answer": "Rome.", "memory": stays, "group": "crossed"},
    ]
    data = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    new = without_records(data, frozenset({gone}), frozenset(), str)
    assert new is not None and b"Rome" not in new and b"Oslo" in new and new.count(b"\n") == 3
    assert without_records(data, frozenset({"c" * 64}), frozenset(), str) == data
