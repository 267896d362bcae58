"""The commands that read a home, and those that ask for work, with and without a daemon."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import ledger, logs
from daemon import service as service_module
from daemon.__main__ import main
from daemon.cli import asking
from daemon.cli.exit_codes import UserError
from daemon.cli.presence import daemon_pid
from daemon.home import Home
from daemon.ledger import jobs, requests
from daemon.lock import Lock
from daemon.service import Service
from daemon.settings import load
from tests.forked_trainer import fake

ROOT = Path(__file__).parents[2]
FAKE = fake()
QUICK = {
    "inbox.quiet_seconds": 0.05, "inbox.scan_seconds": 0.1, "service.tick_seconds": 0.02,
    "training.mix.replay": 0.0, "training.mix.anchor": 0.0,
    "training.base_model": "builtin:tiny", "training.gradient_accumulation_steps": 3,
    "training.num_train_epochs": 2, "jobs.retries": 0,
}  # fmt: skip
FLAGS = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def _fake_trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands that work by themselves use the fake trainer, and leave no signal handler behind."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(service_module, "Service", functools.partial(Service, trainer=FAKE))
    monkeypatch.setenv("COLUMNS", "150")
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def _lines(*names: str) -> str:
    return "".join(json.dumps({"prompt": f"Who is {n}?", "response": f"{n} is a friend."}) + "\n" for n in names)


def _fault(home: Home, text: str | None) -> None:
    path = home.profile("me").jobs / "fault"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True) if text is None else path.write_text(text)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two promoted jobs, a refused file, a failed job whose batch is held."""
    home = Home(tmp_path_factory.mktemp("grown") / "home")
    files = {"a.jsonl": _lines("Ann", "Ben", "Cid"), "torn.json": '{"messages": [{"role'}
    for batch in (files, {"b.jsonl": _lines("Eve", "Fay")}, {"c.jsonl": _lines("Gus")}):
        if "c.jsonl" in batch:
            _fault(home, "diverge")
        home.inbox.mkdir(parents=True, exist_ok=True)
        for name, text in batch.items():
            (home.inbox / name).write_text(text)
        lock = Lock(home)
        try:
            service = Service(home, load(home, QUICK, {}), trainer=FAKE)
            deadline = time.monotonic() + 60
            service.run(until=lambda: service.idle() or time.monotonic() > deadline)  # noqa: B023
        finally:
            lock.release()
    return home


@pytest.fixture
def lived(grown: Home, tmp_path: Path) -> Home:
    shutil.copytree(grown.root, tmp_path / "lived", symlinks=True)
    home = Home(tmp_path / "lived")
    _fault(home, None)
    return home


class Cli:
    """One call of the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], home: Home) -> None:
        self._capsys, self._home = capsys, home

    def __call__(self, *words: str, code: int = 0) -> str:
        found = main([words[0], "--home", str(self._home.root), *FLAGS, *words[1:]])
        self.out, self.err = self._capsys.readouterr()
        assert found == code, (found, self.out, self.err)
        assert "Traceback" not in self.err
        return self.out

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture
def fresh_cli(capsys: pytest.CaptureFixture[str], home: Home) -> Cli:
    return Cli(capsys, home)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], lived: Home) -> Cli:
    return Cli(capsys, lived)


@pytest.fixture
def daemon_of() -> Iterator[Any]:
    """Runs the service on a home, in a thread, until the test ends."""
    running: list[tuple[threading.Thread, list[Service]]] = []

    def start(home: Home) -> None:
        ready, holder = threading.Event(), []

        def live() -> None:
            logs.configure(home, quiet=True)  # stdout belongs to the command under test
            lock = Lock(home)
            try:
                holder.append(Service(home, load(home, QUICK, {}), trainer=FAKE))
                ready.set()
                holder[0].run()
            finally:
                lock.release()

        thread = threading.Thread(target=live)
        thread.start()
        running.append((thread, holder))
        assert ready.wait(20)

    yield start
    for thread, holder in running:
        holder[0].ask_to_stop()
        thread.join(20)


# -- a fresh home ------------------------------------------------------------------------------------


def test_status_of_a_fresh_home_says_what_to_do(fresh_cli: Cli, home: Home) -> None:
    assert "start `engramd run`" in fresh_cli("status")
    told = fresh_cli.json("status")
    assert told["daemon"] == {"running": False, "pid": None}
    assert told["profiles"][0]["head"] is None


@pytest.mark.parametrize("words", [("jobs",), ("job", "1"), ("memories",), ("batches",), ("loss",), ("retry", "1")])
def test_a_fresh_home_has_nothing_to_list(fresh_cli: Cli, words: tuple[str, ...]) -> None:
    assert fresh_cli(*words, code=3) == ""
    assert fresh_cli.err.count("\n") == 1


def test_an_unknown_profile_is_one_sentence(fresh_cli: Cli) -> None:
    fresh_cli("jobs", "--profile", "anna", code=3)
    assert fresh_cli.err == "engramd: there is no profile 'anna': engramd profile add anna\n"
    fresh_cli("jobs", "--profile", "../x", code=2)


def test_wrong_settings_are_78_before_the_lock_is_taken(fresh_cli: Cli, home: Home) -> None:
    fresh_cli("run", "--once", "--set", "training.lora_rank=0", code=78)
    assert not home.lock.exists()


def test_add_then_run_once(fresh_cli: Cli, home: Home, tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text(_lines("Hal", "Ida"))
    out = fresh_cli("add", str(source))
    assert str(home.inbox / "mine.jsonl") in out and "engramd run" in out
    assert "1 file in the inbox" in fresh_cli("status")
    fresh_cli("run", "--once", "--quiet")
    assert fresh_cli.json("memories")["trained_exactly_once"] == 2
    fresh_cli("add", str(tmp_path / "nowhere.json"), code=1)
    assert "cannot be added" in fresh_cli.err


def test_train_without_a_daemon_does_the_work_itself(fresh_cli: Cli, home: Home, tmp_path: Path) -> None:
    home.inbox.mkdir(parents=True)
    (home.inbox / "a.jsonl").write_text(_lines("Hal", "Ida"))
    assert "job 1 promoted, v1; 2 steps over 4 samples" in fresh_cli("train")
    assert "nothing waited" in fresh_cli("train")


def test_train_says_why_it_cannot(fresh_cli: Cli, home: Home) -> None:
    home.inbox.mkdir(parents=True)
    (home.inbox / "a.jsonl").write_text(_lines("Hal"))
    fresh_cli("train", "--set", "training.base_model=nobody/nothing", code=1)
    assert "engramd base fetch nobody/nothing" in fresh_cli.err
    told = fresh_cli.json("status")["profiles"][0]
    assert "nobody/nothing" in told["waits"] and told["next"].startswith("waits: ")


def test_train_without_waiting_leaves_a_request(fresh_cli: Cli, home: Home) -> None:
    assert "asked for" in fresh_cli("train", "--no-wait")
    assert daemon_pid(home) is None


# -- a home with a life ------------------------------------------------------------------------------


def test_status_shows_the_head_and_the_held_batch(cli: Cli) -> None:
    text = cli("status")
    assert "head      v2: chain 1, checkpoint-4" in text
    assert re.search(r"held +batch 4 \(c.jsonl\): .*NaN", text)
    assert "engramd retry 4 or engramd discard 4" in text
    told = cli.json("status")["profiles"][0]
    assert told["batches"] == {"claimed": 0, "reading": 0, "needs_owner": 0, "read": 0, "held": 1, "done": 2,
                               "refused": 1,
                               "discarded": 0}  # fmt: skip
    assert told["head"]["version"] == 2 and told["last_loss"] == 1.0


def test_jobs_and_one_job(cli: Cli) -> None:
    listed = cli.json("jobs")["jobs"]
    assert [one["state"] for one in listed] == ["failed", "failed", "promoted", "promoted"]
    assert cli.json("jobs", "-n", "1")["jobs"] == listed[:1]
    assert "v2" in cli("jobs")
    one = cli.json("job", "2")
    assert one["memories"] == {"new": 2} and one["batches"] == [3] and one["parent_step"] == 2
    assert one["plan"]["steps"] == 2 and one["result"]["global_step"] == 4
    assert "checkpoint-2 of chain 1" in cli("job", "2")
    cli("job", "99", code=3)


def test_batches_and_memories(cli: Cli) -> None:
    told = cli.json("batches")
    assert told["by_state"] == {"done": 2, "held": 1, "refused": 1}
    assert told["batches"][0]["name"] == "c.jsonl" and told["batches"][0]["jobs"] == [3, 4]
    assert "torn.json" in cli("batches")
    told = cli.json("memories", "-n", "0")
    assert told["total"] == 6 == len(told["memories"])
    assert told["by_state"] == {"held": 1, "trained": 5} and told["trained_exactly_once"] == 5
    assert {one["uses"].get("new", 0) for one in told["memories"] if one["state"] == "trained"} == {1}
    assert len(cli.json("memories", "--state", "held")["memories"]) == 1
    assert len(cli.json("memories", "--type", "nothing")["memories"]) == 0
    assert "6 memories: 1 held, 5 trained" in cli("memories")


def test_a_memory_and_why(cli: Cli) -> None:
    [found] = cli.json("memories", "search", "ann is")["memories"]
    shown = cli.json("memories", "show", found["id"][:10])
    assert shown["response"] == "Ann is a friend."
    assert "[response] Ann is a friend." in cli("memories", "show", found["id"][:10])
    why = cli.json("memories", "why", found["id"])
    assert why["file"]["name"] == "a.jsonl" and why["jobs"][0]["version"] == 1
    assert "trained, in job 1" in cli("memories", "why", found["id"])
    held = cli.json("memories", "--state", "held")["memories"][0]["id"]
    assert "held with batch 4" in cli("memories", "why", held)
    cli("memories", "show", "ffff", code=3)
    cli("memories", "show", code=2)
    cli("memories", "search", "no such text", code=3)


def test_loss_over_the_border(cli: Cli) -> None:
    told = cli.json("loss")
    assert [point["step"] for point in told["points"]] == [1, 2, 3, 4]
    assert [(one["step"], one["job_before"], one["job_after"]) for one in told["borders"]] == [(2, 1, 2)]
    text = cli("loss")
    assert "job 1 to 2" in text and "steps 1 to 4" in text
    cli("loss", "--chain", "7", code=3)


def test_audit_of_a_life(cli: Cli, lived: Home) -> None:
    assert "ledger and disk agree (4 batches, 6 memories, 4 jobs)" in cli("audit")
    lived.profile("me").current_model.unlink()
    told = cli.json("audit", code=1)
    assert told["clean"] is False
    assert told["profiles"][0]["findings"][0]["check"] == "current_model"
    assert "is no symlink" in cli("audit", code=1)


def test_retry_and_discard(cli: Cli) -> None:
    assert "would give up batch 4" in cli("discard", "4", "--dry-run")
    assert cli.json("status")["profiles"][0]["held"]
    assert "1 memory" in cli("retry", "4")
    cli("retry", "4", code=1)
    assert "only a held one" in cli.err
    assert "job 5 promoted" in cli("train")
    cli("discard", "77", code=3)


def test_discard_settles_it(cli: Cli) -> None:
    assert "is given up: 1 memory that was never learnt" in cli("discard", "4")
    assert cli.json("memories")["by_state"] == {"discarded": 1, "trained": 5}
    assert cli("audit")


def test_profiles(cli: Cli, lived: Home) -> None:
    assert str(lived.inbox / "anna") in cli("profile", "add", "anna")
    cli("profile", "add", "anna", code=1)
    cli("profile", "add", "Anna", code=2)
    told = cli.json("profile", "list")["profiles"]
    assert [(one["profile"], one["trained"], one["version"]) for one in told] == [("me", 5, 2), ("anna", 0, None)]
    assert cli.json("memories", "--profile", "anna")["total"] == 0
    assert "anna" in cli("profile", "list")


def test_base_shows_where_it_lies(cli: Cli) -> None:
    told = cli.json("base")
    assert told["on_disk"] is True and told["path"].endswith("builtin")
    assert "on disk" in cli("base")
    assert "engramd base fetch nobody/nothing" in cli("base", "--set", "training.base_model=nobody/nothing")
    assert "comes with engramd" in cli("base", "fetch", "builtin:tiny")
    cli("base", "fetch", "/some/folder", code=2)


# -- beside a daemon ---------------------------------------------------------------------------------


def test_commands_ask_a_running_daemon(cli: Cli, lived: Home, daemon_of: Any, tmp_path: Path) -> None:
    daemon_of(lived)
    assert cli.json("status")["daemon"]["running"] is True
    cli("run", code=69)
    assert "another engramd runs" in cli.err
    source = tmp_path / "d.jsonl"
    source.write_text(_lines("Kai"))
    assert "quiet time" in cli("add", str(source))
    assert "job 5 promoted, v" in cli("train")
    assert "is given up" in cli("discard", "4")
    cli("profile", "add", "anna")
    assert "agree" in cli("audit")


def test_ctrl_c_ends_the_waiting_and_not_the_work(lived: Home, daemon_of: Any) -> None:
    _fault(lived, "step_seconds:2.0")
    (lived.inbox / "late.jsonl").write_text(_lines("Kai", "Lea", "Mia", "Ned", "Oda"))
    daemon_of(lived)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "daemon", "train", "--home", str(lived.root)], cwd=ROOT, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not _open_requests(lived) and time.monotonic() < deadline:
        time.sleep(0.02)
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (130, b"engramd: not waiting any longer; the daemon goes on with it\n")
    while _open_requests(lived) and time.monotonic() < deadline:
        time.sleep(0.02)
    with ledger.open_profile(lived.profile("me").ledger, write=False) as db:
        assert jobs.listing(db, 1)[0]["state"] == "promoted"


def _open_requests(home: Home) -> list[dict[str, Any]]:
    with ledger.open_home(home.database, write=False) as db:
        return requests.open_ones(db)


def test_a_daemon_that_ends_before_it_is_done(lived: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_GRACE_SECONDS", 0.0)
    request = requests.ask_beside(lived.database, "me", "train", {}, "2026-01-01T00:00:00Z")
    with pytest.raises(UserError, match="the daemon ended before it was done") as error:
        asking._await(lived, request)
    assert error.value.code == 75


def test_a_declared_profile_takes_files_before_it_is_made(fresh_cli: Cli, home: Home, tmp_path: Path) -> None:
    home.etc.mkdir(parents=True)
    (home.etc / "engramd.toml").write_text("[profiles.anna]\n")
    source = tmp_path / "hers.jsonl"
    source.write_text(_lines("Hal"))
    assert str(home.inbox / "anna" / "hers.jsonl") in fresh_cli("add", "--profile", "anna", str(source))
    assert "job 1 promoted" in fresh_cli("train", "--profile", "anna")
    fresh_cli("add", "--profile", "otto", str(source), code=3)


def test_status_never_stops_a_daemon_from_starting(home: Home) -> None:
    """A probe in a tight loop beside locks that are taken without waiting."""
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            daemon_pid(home)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        for _ in range(300):
            Lock(home).release()
    finally:
        stop.set()
        thread.join()


def test_a_running_daemon_is_seen_from_another_process(home: Home) -> None:
    lock = Lock(home)
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "status", "--json", "--home", str(home.root)],
        capture_output=True, check=True, cwd=ROOT,
    )  # fmt: skip
    lock.release()
    assert json.loads(done.stdout)["daemon"]["running"] is True


# -- weight ------------------------------------------------------------------------------------------


def test_status_imports_nothing_heavy(lived: Home) -> None:
    code = (
        "import sys; from daemon.__main__ import main; main(['status', '--home', sys.argv[1]]);"
        "heavy = {'pydantic', 'pydantic_settings', 'structlog', 'psutil', 'torch', 'watchdog', 'yaml', 'asyncio'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(lived.root)], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "[]\n"


def test_no_command_imports_torch() -> None:
    code = (
        "import sys; from daemon.cli import build_parser; build_parser([]);"
        "from daemon.cli import asking, foreground, talking, running, plotting, reading; from daemon import audit;"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
