"""What every command shares: exit codes, one sentence on stderr, pipes, interrupts, completion, doctor."""

import argparse
import json
import subprocess
import sys

import pytest

from daemon import cli
from daemon.__main__ import main
from daemon.cli import doctor
from daemon.cli.exit_codes import MEANINGS, Exit, UserError
from daemon.home import Home


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: engramd")
    for code, meaning in MEANINGS.items():
        assert f"{code:>5}  {meaning}" in shown
    assert all(f"    {name} " in shown for name in cli.available())
    assert set(Exit) == MEANINGS.keys()


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dance"])
    assert ended.value.code == Exit.USAGE
    assert "dance" in capsys.readouterr().err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "execute", fail)
    return main(["config"])


def test_errors_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, UserError("no such job", Exit.NOTHING)) == 3
    assert capsys.readouterr().err == "engramd: no such job\n"
    assert failing(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = [sys.executable, "-m", "daemon", "config", "--template"]
    child = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(timeout=60) == 141


def test_a_malformed_set_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", "lora_rank"]) == Exit.USAGE
    assert "KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in cli.available())


def test_doctor_asks_torch_in_a_child(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """One run with the real torch; the other checks need none."""
    home.inbox.mkdir(parents=True)
    assert main(["doctor", "--json", "--home", str(home.root), "--set", "training.base_model=no/such"]) == 0
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert checks["torch"]["detail"][0].isdigit()
    assert checks.keys() >= {
        "Python",
        "settings",
        "torch",
        "device",
        "bitsandbytes",
        "disk",
        "inbox",
        "clock",
        "Ollama",
        "llama.cpp",
    }
    assert "no Ollama answers" in checks["Ollama"]["detail"]
    assert checks["base model"]["state"] == "warn"
    assert "engramd base fetch no/such" in checks["base model"]["detail"]


def test_doctor_goes_on_where_torch_does_not_answer(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", "raise ImportError('no libcudart')")
    assert main(["doctor", "--home", str(home.root)]) == Exit.FAILED
    assert "cannot be imported: ImportError: no libcudart" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "_ASK_TORCH", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_CHILD_SECONDS", 0.2)
    (check,) = doctor._torch(None)
    assert check.state == "fail"


def test_doctor_says_what_is_wrong_with_settings_and_inbox(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_ASK_TORCH", 'print(\'{"torch": "2", "cuda": false, "bitsandbytes": "1"}\')')
    home.root.mkdir()
    home.inbox.write_text("a file")
    call = ["doctor", "--json", "--home", str(home.root)]
    assert main([*call, "--set", "jobs.nice=99"]) == Exit.FAILED
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (states["settings"], states["inbox"]) == ("fail", "fail")
    home.inbox.unlink()
    home.inbox.mkdir()
    home.inbox.chmod(0o777)
    main(call)
    states = {check["name"]: check["state"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (states["settings"], states["inbox"]) == ("ok", "warn")


def test_global_options_stand_before_or_after_the_command() -> None:
    for argv in (["--home", "/x", "config"], ["config", "--home", "/x"], ["--home=/x", "config"]):
        parsed: argparse.Namespace = cli.build_parser(argv).parse_args(argv)
        assert parsed.home == "/x"
