"""A chat of an unknown owner waits; the command that the status names settles it. Grown exports, edits, previews."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from daemon import cli
from daemon.home import Home
from daemon.ledger import batches, memories
from tests.unit.test_service import QUICK, read, work

CHAT = """\
12/03/2024, 09:15 - Messages and calls are end-to-end encrypted.
12/03/2024, 09:15 - Anna: The red bicycle stands behind the old mill now
12/03/2024, 09:16 - Ben: Then I will fetch it on Friday after the market closes
13/03/2024, 10:00 - Anna: The key hangs next to the kitchen door as always
13/03/2024, 10:02 - Ben: Thank you, I remember the little blue hook there
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.inbox.mkdir(parents=True)
    return home


def engramd(home: Home, line: str) -> Any:
    settings = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    out = io.StringIO()
    with redirect_stdout(out):
        code = cli.execute(["--home", str(home.root), *settings, *shlex.split(line)])
    assert code == 0, out.getvalue()
    return json.loads(out.getvalue()) if "--json" in line else out.getvalue()


def drop(home: Home, text: str, name: str = "WhatsApp Chat with Anna.txt") -> None:
    (home.inbox / name).write_text(text)


def states(home: Home) -> dict[str, int]:
    with read(home) as db:
        return batches.counts(db)


def learnt(home: Home) -> list[tuple[str | None, str, str | None]]:
    with read(home) as db:
        rows = list(memories.listing(db, limit=-1))
    return sorted((row["time"], row["content"], row["response"]) for row in rows)


def test_a_chat_of_an_unknown_owner_waits_for_the_command_that_status_names(home: Home) -> None:
    drop(home, CHAT)
    work(home)
    assert states(home) == {"needs_owner": 1} and learnt(home) == []
    (waiting,) = engramd(home, "status --json")["profiles"][0]["needs_owner"]
    command = re.search(r'engramd (owner "Anna" --profile me)', waiting["reason"])
    assert command is not None
    engramd(home, command[1].replace("Anna", "Ben"))
    work(home)
    assert states(home) == {"done": 1}
    assert [row[1:] for row in learnt(home)] == [
        ("The red bicycle stands behind the old mill now", "Then I will fetch it on Friday after the market closes"),
        ("The key hangs next to the kitchen door as always", "Thank you, I remember the little blue hook there"),
    ]  # fmt: skip
    assert engramd(home, "status --json")["profiles"][0]["needs_owner"] == []


def test_it_waits_over_a_restart_and_a_name_in_the_settings_settles_it_too(home: Home) -> None:
    drop(home, CHAT)
    work(home)
    work(home)
    assert states(home) == {"needs_owner": 1}
    home.etc.mkdir(exist_ok=True)
    (home.etc / "engramd.toml").write_text('[profiles.me]\naliases = ["ben"]\n')
    work(home)
    assert states(home) == {"done": 1} and len(learnt(home)) == 2


def test_a_grown_export_adds_only_its_new_messages_and_nothing_is_trained_twice(home: Home) -> None:
    engramd(home, "owner Ben")
    drop(home, CHAT)
    work(home)
    more = """\
13/03/2024, 10:03 - Anna: Good luck with the long ride home then
13/03/2024, 10:04 - Ben: It is downhill all the way to the river
"""
    drop(home, CHAT + more, "WhatsApp Chat with Anna (1).txt")
    work(home)
    with read(home) as db:
        rows = batches.listing(db)
        assert [(row["memories"], row["duplicates"]) for row in rows] == [(1, 2), (2, 0)]
        assert memories.trained_exactly_once(db) == 3


def test_a_chat_may_be_given_up(home: Home) -> None:
    drop(home, CHAT)
    work(home)
    engramd(home, "discard 1")
    assert states(home) == {"discarded": 1}
    assert not list(home.profile("me").claimed.iterdir())
    assert list(home.profile("me").archive.rglob("*Anna.txt"))


def test_read_shows_the_turns_while_the_owner_is_unknown_and_takes_nothing(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "chat.txt"
    file.write_text(CHAT)
    found = engramd(home, f"read {file} --json --set profiles.me.timezone=Europe/Berlin")
    assert found["readers"] == ["whatsapp"] and found["memories"] == []
    assert found["owner"]["known"] is False and found["owner"]["speakers"] == {"Anna": 2, "Ben": 2}
    notice, first, *_ = found["turns"]
    assert notice["use"] == "left out" and notice["reason"]
    assert first | {"where": None} == {
        "speaker": "Anna", "role": "unknown", "timestamp": first["timestamp"], "time": "2024-03-12T08:15:00Z",
        "zone_known": False, "text": "The red bicycle stands behind the old mill now", "use": "unknown",
        "reason": "who you are in this chat is not known yet", "memory": None, "conversation": first["conversation"],
        "where": None,
    }  # fmt: skip
    assert not home.profile("me").ledger.exists()
    engramd(home, "owner Ben")
    found = engramd(home, f"read {file} --json")
    assert [turn["role"] for turn in found["turns"]] == [None, "user", "assistant", "user", "assistant"]
    assert [turn["use"] for turn in found["turns"]] == ["left out", "context", "learnt", "context", "learnt"]
    assert [memory["speaker"] for memory in found["memories"]] == ["Ben", "Ben"]


def test_preview_shows_what_would_be_trained_and_writes_nothing(home: Home, tmp_path: Path) -> None:
    engramd(home, "owner Ben")
    drop(home, CHAT)
    work(home)  # trains it, so that a foundation has something to take
    before = sorted(path for path in home.root.rglob("*") if path.is_file() and "logs" not in path.parts)
    found = engramd(home, f"preview --foundation --json --out {tmp_path / 'dataset.jsonl'}")
    assert found["memories"] == 2 and found["source"] == {"whatsapp": 2} and found["month"] == {"2024-03": 2}
    assert found["plan"]["tokens"] > found["plan"]["loss_tokens"] > 0 and found["plan"]["steps"] == 2
    assert any("⟦Then I will fetch it" in text for one in found["examples"] for text in one["texts"])
    assert len((tmp_path / "dataset.jsonl").read_text().splitlines()) == 2
    after = sorted(path for path in home.root.rglob("*") if path.is_file() and "logs" not in path.parts)
    assert [p for p in after if "-wal" not in p.name and "-shm" not in p.name] == [
        p for p in before if "-wal" not in p.name and "-shm" not in p.name
    ]


def telegram(*texts: str) -> str:
    messages = [
        {"id": n, "type": "message", "date": "2024-05-01T10:00:00", "date_unixtime": str(1_714_557_600 + 60 * n),
         "from": "Ben" if n % 2 else "Anna", "from_id": f"user{n % 2 + 1}", "text": text}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    return json.dumps({"name": "Anna", "type": "personal_chat", "id": 77, "messages": messages})


def test_an_edited_message_takes_the_place_of_one_that_waits(home: Home) -> None:
    engramd(home, "owner Ben")
    slow = {"inbox__quiet_seconds": 0.05, "training__base_model": "/nowhere/model"}  # nothing is trained meanwhile
    where = "Where is the yellow ladder now?"
    drop(home, telegram(where, "It leans against the west wall", "And the saw?", "In the shed"), "result.json")
    work(home, **slow)
    drop(home, telegram(where, "It leans against the east wall", "And the saw?", "In the shed"), "result.json")
    work(home, **slow)
    with read(home) as db:
        rows = list(memories.listing(db, limit=-1))
        assert sorted((row["state"], row["response"]) for row in rows) == [
            ("skipped", "It leans against the west wall"), ("waiting", "In the shed"),
            ("waiting", "It leans against the east wall"),
        ]  # fmt: skip
        assert {row["reason"] for row in rows if row["state"] == "skipped"} == {"superseded by an edited text"}
        assert [(row["memories"], row["duplicates"]) for row in batches.listing(db)] == [(1, 1), (2, 0)]


def test_an_edit_after_training_is_learnt_as_well(home: Home) -> None:
    engramd(home, "owner Ben")
    drop(home, telegram("Where is the yellow ladder now?", "It leans against the west wall"), "result.json")
    work(home)
    drop(home, telegram("Where is the yellow ladder now?", "It stands in the cellar since Monday"), "result.json")
    work(home)
    with read(home) as db:
        assert memories.trained_exactly_once(db) == 2


def test_a_memory_that_was_held_for_a_secret_is_taken_once_the_settings_allow_it(home: Home) -> None:
    (home.inbox / "note.txt").write_text("The key for the shed computer is AKIAIOSFODNN7EXAMPLQ since last spring.")
    work(home)
    with read(home) as db:
        (row,) = memories.listing(db, limit=-1)
        assert row["state"] == "skipped" and "secret" in row["reason"]
    home.etc.mkdir(exist_ok=True)
    (home.etc / "curation.toml").write_text('[secrets]\naction = "redact"\n')
    work(home)
    with read(home) as db:
        (row,) = memories.listing(db, limit=-1)
        assert row["state"] == "trained"
        assert memories.trained_exactly_once(db) == 1
    samples = [path.read_text() for path in home.profile("me").jobs.rglob("samples.jsonl")]
    assert len(samples) == 1 and "AKIA" not in samples[0]
