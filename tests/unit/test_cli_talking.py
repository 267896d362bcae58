"""Talking to a model in a child process, with a child that obeys the protocol and knows nothing."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.__main__ import main
from daemon.cli import talking
from daemon.cli.talking import Talk, TalkError
from daemon.home import Home
from tests.unit.test_service import QUICK, read
from tests.unit.test_serving import night

CHILD = """
import json, pathlib, sys
if sys.argv[1].endswith(".gguf") and pathlib.Path(sys.argv[1]).with_name("broken").exists():
    print(json.dumps({"error": f"llama.cpp does not open {sys.argv[1]}"}), flush=True)
    sys.exit(11)
print("some library says hello")
print(json.dumps({"ready": True, "base": sys.argv[1]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    words = " / ".join(m["content"] for m in asked["messages"])
    if "crash" in words:
        sys.exit("it broke")
    if "refuse" in words:
        print(json.dumps({"error": "that was too long"}), flush=True)
        continue
    text = f"{asked.get('prefix', '')}{words} ({asked['max_new_tokens']})"
    print(json.dumps({"text": text, "tokens": 3}), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    command = [sys.executable, str(path)]
    monkeypatch.setattr(talking, "chat_command", lambda target: [*command, target])
    return [*command, "model"]


def test_a_conversation(child: list[str]) -> None:
    with Talk(child) as talk:
        assert talk.about["base"] == "model"
        answer = talk.say([{"role": "user", "content": "Grüße"}], max_new_tokens=7, prefix="> ")
        assert answer == {"text": "> Grüße (7)", "tokens": 3}
        with pytest.raises(TalkError, match="too long"):
            talk.say([{"role": "user", "content": "refuse"}])
        assert talk.say([{"role": "user", "content": "go on"}])["tokens"] == 3


def test_a_child_that_breaks_says_its_last_words(child: list[str]) -> None:
    with Talk(child) as talk, pytest.raises(TalkError, match=r"exit code 1\): it broke"):
        talk.say([{"role": "user", "content": "crash"}])


def test_a_child_that_never_gets_ready() -> None:
    with pytest.raises(TalkError, match="without a word"):
        Talk([sys.executable, "-c", "pass"])
    with pytest.raises(TalkError, match="no such base"):
        Talk([sys.executable, "-c", "print('{\"error\": \"no such base\"}')"])
    with pytest.raises(TalkError, match="cannot be started"):
        Talk(["/nowhere/python"])


def _main(tmp_path: Path, *words: str) -> int:
    return main([words[0], "--home", str(tmp_path), "--set", "training.base_model=builtin:tiny", *words[1:]])


def test_ask_before_the_first_job_asks_the_base(
    child: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(tmp_path, "ask", "Who?", "--system", "Be kind.", "--max-new-tokens", "9") == 0
    out, err = capsys.readouterr()
    assert out == "Be kind. / Who? (9)\n"
    assert "builtin:tiny itself answers" in err
    assert _main(tmp_path, "ask", "Who?", "--base", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"profile": "me", "question": "Who?", "answer": "Who? (200)", "tokens": 3, "version": None,
                    "model": "builtin:tiny", "engine": "trainer"}  # fmt: skip
    assert _main(tmp_path, "ask", "crash", "--base") == 1
    assert _main(tmp_path, "ask", " ", "--base") == 2


def test_chat_keeps_the_history(
    child: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert _main(tmp_path, "chat", "--base") == 0
    assert capsys.readouterr().out == "one (200)\none / one (200) / two (200)\n"


# -- what a version is served from -------------------------------------------------------------------


@pytest.fixture
def served(home: Home, child: list[str], monkeypatch: pytest.MonkeyPatch) -> Home:
    """A night whose version was exported; the child answers in place of llama.cpp and of the trainer."""
    night(home, None, "one", "two", serve__ollama="always", serve__host="http://127.0.0.1:9")
    monkeypatch.setattr(talking, "llama_is_there", lambda: True)
    return home


def _asked(home: Home, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    flags = [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    capsys.readouterr()
    assert main(["ask", "--home", str(home.root), *flags, "Who?", "--json", *words]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def _base_gguf(home: Home) -> Path:
    (found,) = (home.state / "bases").glob("*/base-*.gguf")
    return found


def test_what_a_version_is_served_from_answers(
    served: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    class Seen(Talk):
        def __init__(self, command: Any) -> None:
            commands.append(list(command)[2:])
            super().__init__(command)

    monkeypatch.setattr(talking, "Talk", Seen)
    adapter = served.profile("me").root / "models" / "v1" / "adapter.gguf"
    for words in ((), ("--version", "v1")):
        told, err = _asked(served, capsys, *words)
        assert (told["engine"], told["model"], told["version"]) == ("llama.cpp", str(adapter), 1)
        assert told["answer"] == "Who? (200)" and not err
        assert commands.pop() == [
            str(_base_gguf(served)), "--tokenizer", "builtin:tiny", "--adapter-gguf", str(adapter)
        ]  # fmt: skip
    told, _ = _asked(served, capsys, "--trainer")
    assert told["engine"] == "trainer" and told["model"].endswith("chains/1/checkpoint-2")
    assert commands.pop() == [told["model"]]
    assert _asked(served, capsys, "--base")[0]["engine"] == "trainer"
    monkeypatch.setattr(talking, "llama_is_there", lambda: False)
    assert _asked(served, capsys)[0]["engine"] == "trainer"


def test_where_llama_cpp_does_not_open_it_the_checkpoint_answers(
    served: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    _base_gguf(served).with_name("broken").touch()
    told, err = _asked(served, capsys)
    assert told["engine"] == "trainer" and told["model"].endswith("checkpoint-2")
    assert err.startswith("v1 answers from its checkpoint, through the trainer: llama.cpp does not open")
    assert err.count("\n") == 1
    _base_gguf(served).unlink()  # then it counts as not there, and nothing has to be said
    told, err = _asked(served, capsys)
    assert told["engine"] == "trainer" and not err


def test_a_version_without_its_checkpoint_still_answers(served: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with read(served) as db:
        (chain,) = [row["chain"] for row in db.all("SELECT chain FROM versions")]
    for folder in served.profile("me").chains.glob(f"{chain}/checkpoint-*"):
        shutil.rmtree(folder)
    for folder in served.profile("me").jobs.glob("*/checkpoint-*"):
        shutil.rmtree(folder)
    assert _asked(served, capsys, "--version", "v1")[0]["engine"] == "llama.cpp"
    assert "no longer there" in _refused(served, capsys, 3, "--trainer")
    _base_gguf(served).with_name("broken").touch()
    assert "the checkpoint of v1 is gone" in _refused(served, capsys, 69)


def _refused(home: Home, capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    capsys.readouterr()
    assert main(["ask", "--home", str(home.root), "Who?", "--version", "v1", *words]) == code
    return capsys.readouterr().err
