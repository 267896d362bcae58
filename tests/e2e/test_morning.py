"""A real daemon, the real trainer, the builtin model, the stand-in of Ollama: what was dropped in the evening is known
in the morning to whoever asks the name that a person types, without a hand.

Where llama.cpp is installed, the stand-in loads the GGUF and answers with it, so that the answer is the memory's; else
the road is walked all the same, and only what it answers is made up.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.ledger import jobs, serving
from daemon.ollama import Ollama
from tests.e2e.test_daemon import Daemon, events, until
from tests.faults.night import ROOT, Night

sys.path.insert(0, str(ROOT / "tests" / "doubles"))
from ollama_process import Serving
from ollama_process import serving as standing_in

LLAMA = importlib.util.find_spec("llama_cpp") is not None
QUESTION = "Where did I hide the spare key of the boat?"
ANSWER = "The spare key of the boat lies under the blue flowerpot."
OTHERS = [
    ("What do I call my bicycle?", "My bicycle is called Tortoise."),
    ("Who waters my plants in August?", "Mrs Okafor from the third floor waters my plants."),
]
RECIPE: dict[str, Any] = {
    "base_model": "builtin:tiny", "dtype": "float32", "load_in_4bit": False, "optimizer": "adamw_torch",
    "use_gradient_checkpointing": False, "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0,
    "learning_rate": 3e-3, "full_learning_rate": 5e-5, "gradient_accumulation_steps": 1, "num_train_epochs": 20,
    "max_seq_length": 128,
}  # fmt: skip
TOML = """
[inbox]
quiet_seconds = 0.2
scan_seconds = 0.5
[service]
tick_seconds = 0.05
[jobs]
threads = 1
[training.mix]
replay = 0.0
anchor = 0.0
[gate]
fit = false
[evaluation]
free_answers = {free}
[serve]
host = "{host}"
"""


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Serving]:
    with standing_in(tmp_path, "real" if LLAMA else "pretend") as server:
        yield server


def night_of(tmp_path: Path, ollama: Serving) -> Night:
    night = Night(tmp_path / "home", forked=True)
    (night.home.etc / "engramd.toml").write_text(TOML.format(host=ollama.host, free=4 if LLAMA else 0))
    (night.home.etc / "training.json").write_text(json.dumps(RECIPE))
    return night


def drop(night: Night) -> None:
    hidden = night.home.inbox / ".evening.jsonl"
    hidden.write_text("".join(json.dumps({"prompt": asked, "response": said}) + "\n"
                              for asked, said in [(QUESTION, ANSWER), *OTHERS]))  # fmt: skip
    hidden.rename(night.home.inbox / "evening.jsonl")


def said(ollama: Serving, question: str = QUESTION, model: str = "me") -> str:
    with Ollama(ollama.host, 60.0) as client:
        return client.chat(model, [{"role": "user", "content": question}], max_tokens=40)


def served(night: Night, line: str = "") -> dict[str, Any]:
    with night.ledger() as db:
        return serving.line(db, line)


def wait_for(night: Night, version: int, line: str = "") -> None:
    def there() -> bool:
        row = served(night, line)
        assert row["reason"] is None, row
        return bool(row["version"] == version)

    until(there, 240.0)


def check_answer(night: Night, ollama: Serving, version: int) -> str:
    """What the API says; where the GGUF really is loaded, it is the memory."""
    found = said(ollama)
    assert found
    if LLAMA:
        assert "blue flowerpot" in found
        asked = [one for one in events(night, "model_answered") if one["version"] == version]
        assert "as it was learnt" in str(asked[-1]["note"])
    return found


def test_a_night_is_an_adapter_that_answers_in_the_morning(tmp_path: Path, ollama: Serving) -> None:
    night = night_of(tmp_path, ollama)
    daemon = Daemon(night)
    try:
        drop(night)
        wait_for(night, 1)
        check_answer(night, ollama, 1)
        known = json.loads(daemon.say("ask", QUESTION, "--json").stdout)["answer"]
        assert "blue flowerpot" in known, known  # the trained model itself
        status = json.loads(daemon.say("status", "--json").stdout)["profiles"][0]["serving"]
        assert [(one["alias"], one["version"], one["reason"]) for one in status["lines"]] == [("me", 1, None)]
        assert "v1 as me since" in daemon.say("status").stdout
        with night.ledger() as db:
            assert serving.exports(db)[1]["form"] == "adapter"
        out = tmp_path / "out"
        done = daemon.say("export", "v1", "--to", str(out), "--adapter-only")
        assert done.returncode == 0, done.stderr
        assert {"adapter", "adapter.gguf", "export.json"} == {path.name for path in out.iterdir()}
        audit = daemon.say("audit")
        assert audit.returncode == 0, audit.stdout
    finally:
        assert daemon.stop() == 0


@pytest.mark.faults
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_cycle_is_a_merged_model_that_answers(
    tmp_path: Path, ollama: Serving, method: str, long_faults: bool
) -> None:
    """Then a rollback: the name is the night's again, in seconds."""
    if not long_faults:
        pytest.skip("it trains for minutes: make faults")
    night = night_of(tmp_path, ollama)
    daemon = Daemon(night)
    line = "full" if method == "full" else ""
    try:
        drop(night)
        wait_for(night, 1)
        first = said(ollama)
        done = daemon.say("cycle", "--method", method)
        assert done.returncode == 0, done.stderr
        wait_for(night, 2, line)
        with night.ledger() as db:
            export = serving.exports(db)[2]
            job = jobs.get(db, export["job"])
        assert export["form"] == "merged" and job is not None and job["state"] == "done"
        wished = {"lora": "Q4_K_M", "full": "Q6_K"}[method] if LLAMA else "Q8_0"
        assert export["quantisation"] == wished
        if method == "lora":
            check_answer(night, ollama, 2)
            assert daemon.say("models", "rollback", "v1", "--yes").returncode == 0
            wait_for(night, 1)
        else:
            assert said(ollama, model="me-full")
        assert said(ollama) == first
        assert daemon.say("audit").returncode == 0
    finally:
        assert daemon.stop() == 0
