"""Talking to a model in a child process, with a child that obeys the protocol and knows nothing."""

import io
import json
import sys
from pathlib import Path

import pytest

from daemon.__main__ import main
from daemon.cli import talking
from daemon.cli.talking import Talk, TalkError

CHILD = """
import json, sys
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
                    "model": "builtin:tiny"}  # fmt: skip
    assert _main(tmp_path, "ask", "crash", "--base") == 1
    assert _main(tmp_path, "ask", " ", "--base") == 2


def test_chat_keeps_the_history(
    child: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert _main(tmp_path, "chat", "--base") == 0
    assert capsys.readouterr().out == "one (200)\none / one (200) / two (200)\n"
