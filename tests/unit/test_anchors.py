"""General text: made once by the untouched base, or brought by a person, and mixed into every job."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import anchors, ledger
from daemon.__main__ import main
from daemon.home import Home
from daemon.ledger import generating, jobs, memories, requests
from daemon.lock import Lock
from daemon.rules import mixing
from daemon.settings import load
from daemon.world import World, open_world
from tests.unit.test_going_back import audit_is_clean
from tests.unit.test_service import QUICK, drop, fault, read, service, work
from trainer import base_files, names
from trainer.contract import Generated, JobSpec, Message, Sample

ROOT = Path(__file__).parents[2]
MIX = {"training__mix__anchor": 0.5}


def world(home: Home, **mix: Any) -> World:
    settings = load(home, QUICK | {f"training.mix.{key}": value for key, value in mix.items()}, {})
    return open_world(home, "me", settings)


def place(home: Home) -> Path:
    (found,) = (home.state / "bases").glob("*/anchors.jsonl")
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def folder(home: Home, job: int) -> Path:
    with read(home) as db:
        return home.profile("me").jobs / str((jobs.get(db, job) or {})["folder"])


def run_until(home: Home, reached: Callable[[ledger.Database], bool], **settings: object) -> None:
    """A daemon that runs until the ledger says so, or a minute is over."""
    one, lock, deadline = service(home, **settings), Lock(home), time.monotonic() + 60

    def is_reached() -> bool:
        with read(home) as db:
            return reached(db)

    try:
        one.run(until=lambda: is_reached() or time.monotonic() > deadline)
        assert is_reached()
    finally:
        lock.release()


def waits(home: Home) -> str:
    with read(home) as db:
        return jobs.get_meta(db, "waits") or ""


# -- made by the base --------------------------------------------------------------------------------


def test_the_base_answers_once_and_every_job_has_some_of_it(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one", "two", "three", "four")
    work(home, **MIX, training__mix__anchor_prompts=40)
    drop(home, "b.jsonl", "five", "six")
    work(home, **MIX, training__mix__anchor_prompts=40)
    with read(home) as db:
        rows = sorted(jobs.listing(db), key=lambda row: row["id"])
        assert [(row["kind"], row["state"]) for row in rows] == [
            ("generate", "done"), ("finetune", "promoted"), ("finetune", "promoted")
        ]  # fmt: skip
        assert [row["anchors"] for row in rows] == [0, 8, 4]  # as many as there are new ones, for each of two epochs
        assert [row["samples"] for row in rows] == [0, 16, 8]
        assert memories.counts(db)["state"] == {"trained": 6}
        assert jobs.uses_of(db, 2) == {"new": 4}
    made = lines(place(home))
    assert len(made) == 40 and all(one["use"] == "anchor" and one["messages"][-1]["loss"] for one in made)
    assert made[0]["messages"][-1]["content"] == f"answer to {made[0]['id']}"
    spec = JobSpec.model_validate_json((folder(home, 1) / names.SPEC).read_bytes())
    assert spec.parent is None and spec.max_new_tokens == 128 and not spec.segments
    used = [one for job in (2, 3) for one in lines(folder(home, job) / names.SAMPLES) if one.get("use") == "anchor"]
    assert len({one["id"] for one in used}) > 8  # each job draws anew
    assert not any(mixing.is_measured_by(one["id"]) for one in used) and not any("memory" in one for one in used)
    first, second = json.loads((folder(home, 2) / names.SPEC).read_bytes())["segments"]
    assert sorted(Counter(first + second).values()) == [1] * 8 + [2] * 4
    asked = [one for one in lines(folder(home, 2) / names.PROBES) if one.get("group") == "anchor"]
    assert asked and all(mixing.is_measured_by(one["id"].removesuffix("?")) for one in asked)
    assert audit_is_clean(home, capsys)


def test_the_same_night_is_the_same_with_general_text(home: Home) -> None:
    other = Home(home.root.parent / "other")
    for one in (home, other):
        drop(one, "a.jsonl", "one", "two", "three")
        work(one, **MIX)
    names_of = (names.SAMPLES, names.SPEC, names.PROBES)
    assert [(folder(home, 2) / name).read_bytes() for name in names_of] == [
        (folder(other, 2) / name).read_bytes() for name in names_of
    ]


def test_without_a_share_nothing_is_generated(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home)
    with read(home) as db:
        assert [row["kind"] for row in jobs.listing(db)] == ["finetune"]
    assert not (home.state / "bases").exists()


def test_a_job_that_fails_is_said_and_the_nights_go_on(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one", "two")
    fault(home, "crash")
    run_until(home, lambda db: any(row["state"] == "failed" for row in jobs.listing(db)), **MIX, jobs__retries=1)
    fault(home, None)
    work(home, **MIX, jobs__retries=1)
    with read(home) as db:
        rows = sorted(jobs.listing(db), key=lambda row: row["id"])
        assert [(row["kind"], row["state"]) for row in rows] == [("generate", "failed"), ("finetune", "promoted")]
        assert rows[1]["anchors"] == 0
    capsys.readouterr()
    assert main(["--home", str(home.root), "status"]) == 0
    assert "jobs go without general text (training.mix.anchor): job 1" in capsys.readouterr().out
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE jobs SET finished_at='2020-01-01T00:00:00.000Z' WHERE id=1")  # a day later
    drop(home, "b.jsonl", "three")
    work(home, **MIX)
    with read(home) as db:
        assert [row["kind"] for row in jobs.listing(db)] == ["finetune", "generate", "finetune", "generate"]
        assert jobs.get_meta(db, anchors.NOTE) is None
        assert (jobs.get(db, 4) or {})["anchors"] > 0


def test_answers_are_kept_however_often_a_crash_repeats_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off after the file was written and before the transaction."""
    drop(home, "a.jsonl", "one", "two")

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(generating, "done", dies)
        with pytest.raises(RuntimeError, match="killed"):
            work(home, **MIX)
    before = place(home).read_bytes()
    with read(home) as db:
        assert (jobs.get(db, 1) or {})["state"] == "finished"
    work(home, **MIX)
    assert place(home).read_bytes() == before
    with read(home) as db:
        assert [(row["kind"], row["state"]) for row in jobs.listing(db)] == [
            ("finetune", "promoted"), ("generate", "done")
        ]  # fmt: skip


def test_what_a_job_holds_beside_memories_is_audited(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    drop(home, "a.jsonl", "one", "two")
    work(home, **MIX)
    with ledger.open_profile(home.profile("me").ledger, write=True) as db, db.transaction():
        db.execute("UPDATE jobs SET anchors=anchors+1 WHERE id=2")
    capsys.readouterr()
    assert main(["--home", str(home.root), "audit"]) != 0
    assert "4 samples of general text are in it, but 5 are recorded" in capsys.readouterr().out


def test_without_the_file_it_is_made_anew(home: Home) -> None:
    drop(home, "a.jsonl", "one")
    work(home, **MIX)
    shutil.rmtree(home.state / "bases")
    drop(home, "b.jsonl", "two")
    work(home, **MIX)
    with read(home) as db:
        assert [row["kind"] for row in jobs.listing(db)] == ["finetune", "generate", "finetune", "generate"]


def generated(id_: str, answer: str, *, finished: bool = True) -> str:
    turns = [Message(role="user", content="Why?")]
    return Generated(id=id_, messages=turns, answer=answer, finished=finished).model_dump_json() + "\n"


def test_which_answers_are_of_use(home: Home) -> None:
    with world(home, anchor=0.5).db as db:
        here = world(home, anchor=0.5)
        base = base_files.resolve("builtin:tiny")
        home_db = ledger.open_home(home.database, write=True)
        anchors.freeze(here, home_db, here.recipe, base, "f" * 64, "2026-01-01T00:00:00.000Z")
        job = jobs.get(db, 1) or {}
        with db.transaction():
            jobs.start(db, 1, "2026-01-01T00:00:00.000Z")
            jobs.finish(db, 1, {"exit_code": 0}, "2026-01-01T00:00:01.000Z")
        answers = [
            generated("whole", "Because of the rain."), generated("cut", "It rains. The sun", finished=False),
            generated("endless", "and so on and", finished=False), generated("empty", "  "),
            generated("thought", "<think>\nHm.\n</think>\n\nYes."), generated("only-thought", "<think>\nHm"),
            "{torn",
        ]  # fmt: skip
        folder = here.paths.jobs / "1-generate"
        (folder / names.GENERATED).write_text("".join(answers))
        anchors.collect(here, job)
        pool = anchors.pool(here, "f" * 64, "2026-01-01T00:00:02.000Z")
        assert pool is not None
        kept = {one.id: one.messages[-1].content for one in (*pool.trained, *pool.measured)}
        assert kept == {"whole": "Because of the rain.", "cut": "It rains.", "thought": "Yes."}
        home_db.close()


# -- prompts -----------------------------------------------------------------------------------------


def test_the_shipped_prompts_are_many_and_of_many_kinds(home: Home) -> None:
    texts = list(anchors._texts(ROOT / "etc" / "anchor_prompts.toml"))
    assert len(texts) == len(set(texts)) >= 300
    assert all(len(text) < 300 for text in texts)
    assert len({text[0] for text in texts if not text.isascii()}) > 10  # several scripts
    elsewhere = home.root / "base"
    elsewhere.mkdir(parents=True)
    found = anchors.prompts_for(world(home, anchor=0.5), elsewhere)
    assert sorted(prompt.messages[-1].content for prompt in found) == sorted(texts)
    assert anchors.prompts_for(world(home, anchor=0.5), elsewhere) == found
    few = anchors.prompts_for(world(home, anchor=0.5, anchor_prompts=40), elsewhere)
    assert len(few) == 40 and {prompt.messages[-1].content for prompt in few} < set(texts)


def test_a_base_that_brings_its_own_is_asked_those(home: Home) -> None:
    builtin = base_files.resolve("builtin:tiny")
    asked = [one["messages"][0]["content"] for one in lines(builtin / "anchor_prompts.jsonl")]
    measured = {one["messages"][0]["content"] for one in lines(builtin / "general_questions.jsonl")}
    assert len(asked) > 500 and not measured & set(asked)
    found = anchors.prompts_for(world(home, anchor=0.5, anchor_prompts=30), builtin)
    assert len(found) == 30 and all(prompt.messages[0].content in asked for prompt in found)


def test_the_homes_own_prompts_win(home: Home) -> None:
    home.etc.mkdir(parents=True)
    here, nowhere = world(home, anchor=0.5), home.root
    path = home.etc / "anchor_prompts.toml"
    path.write_text('[mine]\nprompts = ["Why?", "How?", "Why?"]\n')
    assert sorted(prompt.messages[0].content for prompt in anchors.prompts_for(here, nowhere)) == ["How?", "Why?"]
    for text in ("[mine\n", "[mine]\nprompts = 3\n", "", "mine = 3\n"):
        path.write_text(text)
        with pytest.raises(anchors.Wrong, match=r"anchor_prompts\.toml"):
            anchors.prompts_for(here, nowhere)


# -- a file of one's own -----------------------------------------------------------------------------


def test_a_persons_own_file(home: Home) -> None:
    home.root.mkdir(parents=True)
    rows = [{"prompt": f"Why {n}?", "response": f"Because {n}."} for n in range(30)]
    chats = [{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                           {"role": "assistant", "content": "Hello.", "weight": 1}]}]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in [*rows, *chats, *rows])
    (home.root / "general.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    found = anchors.read_file(home.root / "general.jsonl")
    assert len(found) == 31 and all(isinstance(one, Sample) and one.use == "anchor" for one in found)
    drop(home, "a.jsonl", "one", "two")
    work(home, **MIX, training__mix__anchors="general.jsonl")
    with read(home) as db:
        (job,) = jobs.listing(db)
        assert (job["kind"], job["state"], job["anchors"]) == ("finetune", "promoted", 4)
    assert {one["id"] for one in lines(folder(home, 1) / names.SAMPLES) if one.get("use") == "anchor"} <= {
        one.id for one in found
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\n', "line 1, does not end with an answer"),
        ('{"prompt": "a", "response": "b"}\n\n{"text": "x"}\n', "line 3, has neither messages, nor"),
        ("[1]\n", "line 1, is no object"),
        ("nonsense\n", "is not JSON Lines"),
        ("", "holds no chat"),
        ('{"messages": [{"role": "assistant", "content": "b"}]}', "line 1, asks nothing"),
        ('{"messages": [{"role": "king", "content": "b"}]}', "line 1, has a turn that is wrong: role"),
        ('{"messages": ["b"]}', "line 1, has a turn without role and content"),
        ('{"prompt": 3, "response": "b"}', "line 1, has a turn that is wrong: content"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "general.jsonl"
    path.write_text(text)
    with pytest.raises(anchors.Wrong) as caught:
        anchors.read_file(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_training_waits_for_a_file_that_is_wrong(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    here = world(home, anchor=0.5, anchors="general.jsonl")
    (home.root / "general.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(anchors.Wrong, match="is not UTF-8"):
        anchors.pool(here, "f", "2026-01-01T00:00:00Z")
    (home.root / "general.jsonl").unlink()
    drop(home, "a.jsonl", "one")
    run_until(home, lambda db: bool(jobs.get_meta(db, "waits")), **MIX, training__mix__anchors="general.jsonl")
    assert "cannot be read: No such file or directory; mend the file that training.mix.anchors names" in waits(home)
    with read(home) as db:
        assert jobs.listing(db) == []
    (home.root / "general.jsonl").write_text('{"prompt": "Why?", "response": "So."}\n')
    work(home, **MIX, training__mix__anchors="general.jsonl")
    with read(home) as db:
        assert [row["state"] for row in jobs.listing(db)] == ["promoted"]
    assert waits(home) == ""


def test_a_prompt_has_the_same_id_for_ever() -> None:
    asked, told = Message(role="user", content="Why?"), Message(role="assistant", content="x")
    assert anchors._prompt([asked]).id == anchors._prompt([asked, told]).id == "anchor-d60ffbcae18616ca"


def test_going_back_leaves_the_job_that_asks_the_base_alone(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        drop(home, f"{name}.jsonl", name)
        work(home)
    fault(home, "no_device")
    drop(home, "c.jsonl", "c")
    run_until(home, lambda db: bool(jobs.get_meta(db, "waits")), **MIX)
    with read(home) as db:
        assert (jobs.open_job(db) or {})["kind"] == "generate"
    with ledger.open_home(home.database, write=True) as db:
        asked = {"version": 1, "train_again": True}
        number = requests.ask(db, "me", "rollback", asked, "2026-11-21T08:00:00Z")
    lock, one = Lock(home), service(home, **MIX)
    one.run(until=lambda: (requests.get(one._db, number) or {}).get("state") in ("done", "failed"))
    lock.release()
    with read(home) as db:
        assert (jobs.get_head(db) or {})["version"] == 1
        assert (jobs.open_job(db) or {})["kind"] == "generate"
    fault(home, None)
    work(home, **MIX)
    with read(home) as db:
        told = [f"{row['kind']} {row['state']}" for row in reversed(jobs.listing(db))]
        assert told == ["finetune promoted", "finetune undone", "generate done", "finetune promoted"]
        assert memories.counts(db)["state"] == {"trained": 3}
    assert audit_is_clean(home, capsys)
