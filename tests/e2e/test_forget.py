"""`engramd forget` at the command line, with the real trainer: with a daemon at work and without one."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.ledger import jobs, memories
from tests.e2e.test_daemon import Daemon, events, until
from tests.faults.night import ROOT, Night

SECRET = "Grandmother's silver spoon is hidden behind the loose brick — tell nobody."
WEIGHTS = (".safetensors", ".pt", ".pth")


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    yield Night(tmp_path / "home", forked=True)


def _say(night: Night, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ENGRAMD_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(night.command(*arguments), env=environment, capture_output=True, text=True)


def _files_with(night: Night, text: str) -> list[str]:
    """No weights: what they learnt is named instead. A word of the text that stands alone is found as well."""
    forms = [text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le"), b"silver spoon", b"loose brick"]
    files = [path for path in night.home.root.rglob("*") if path.is_file() and path.suffix not in WEIGHTS]
    return [str(path) for path in files if any(form in _bytes(path) for form in forms)]


def _bytes(path: Path) -> bytes:
    """Of a file that the daemon may just take away: then nothing of it is left."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _id(night: Night) -> str:
    with night.ledger() as db:
        rows = [row for row in memories.listing(db, limit=-1) if "silver spoon" in (row["response"] or "")]
    return str(rows[0]["id"].hex())


def test_forgotten_while_it_is_being_trained(night: Night) -> None:
    """Job 1 has learnt it; a second batch is in training with it in a context when it is forgotten."""
    lines = [{"prompt": "Where is the spoon?", "response": SECRET}, {"prompt": "Who?", "response": "Thing 9 is mine."}]
    (night.home.inbox / "secret.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _say(night, "run", "--once", "--quiet").returncode == 0
    assert len(_files_with(night, SECRET)) > 5
    id_ = _id(night)
    daemon = Daemon(night)
    try:
        turns = [("user", "And where is it now?"), ("assistant", SECRET), ("user", "Since when?"),
                 ("assistant", "Since the summer of the flood.")]  # fmt: skip
        chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
        (night.home.inbox / ".chat.json").write_text(json.dumps(chat))
        (night.home.inbox / ".chat.json").rename(night.home.inbox / "chat.json")
        night.drop(1, 40)
        until(lambda: len(events(night, "job_started")) == 2)
        dry = daemon.say("forget", id_[:12], "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert "would forget 1 memory" in dry.stdout and "in use" in dry.stdout
        also = json.loads(daemon.say("forget", id_[:12], "--dry-run", "--json").stdout)["said_by"]
        done = daemon.say("forget", id_[:12], *also, "--yes")
        assert done.returncode == 0, done.stderr
        assert "forgot 2 memories" in done.stdout and "base, builtin:tiny" in done.stdout
        until(lambda: len(events(night, "version_promoted")) == 2)
        assert _files_with(night, SECRET) == []
        audit = daemon.say("audit")
        assert audit.returncode == 0, audit.stdout
    finally:
        assert daemon.stop() == 0
    assert _files_with(night, SECRET) == []
    with night.ledger() as db:
        states = [row["state"] for row in jobs.since(db, 0)]
        assert states in (["promoted", "forgotten", "promoted"], ["promoted", "promoted"])  # it may just have ended
        assert memories.counts(db)["state"] == {"trained": 42, "forgotten": 2}
    assert _say(night, "memories", "why", id_).stdout.splitlines()[-1] == "now       forgotten"


def test_nothing_runs_and_it_asks_nobody(night: Night) -> None:
    """Without a daemon the command does it itself; no terminal, no question."""
    (night.home.inbox / "a.txt").write_text(SECRET)
    assert _say(night, "run", "--once", "--quiet").returncode == 0
    assert _say(night, "forget", "--batch", "1").returncode == 0
    assert _files_with(night, SECRET) == []
    assert _say(night, "audit").returncode == 0
    (night.home.inbox / "again.txt").write_text(SECRET)
    assert _say(night, "run", "--once", "--quiet").returncode == 0
    told = json.loads(_say(night, "batches", "--json").stdout)["batches"][0]
    assert (told["memories"], told["forgotten"]) == (0, 1)
    assert _files_with(night, SECRET) == []
    assert _say(night, "forget", "--batch", "9").returncode == 3
