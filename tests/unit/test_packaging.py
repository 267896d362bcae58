"""One version, a lock that holds, and nobody else's `daemon` or `trainer` in our environment."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, distributions, packages_distributions, version
from pathlib import Path

import pytest

from daemon.__main__ import main

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [
        line
        for line in (CHECKOUT / "requirements.lock").read_text().splitlines()
        if line[:1] not in ("", "#")
    ]
    return {canonical(name): pinned for name, _, pinned in (line.partition("==") for line in lines)}


def test_nobody_else_installs_daemon_or_trainer() -> None:
    """PyPI has distributions that do, python-daemon among them; either would hide our package or be hidden."""
    owners = packages_distributions()
    for package in ("daemon", "trainer"):
        assert set(owners.get(package, [])) <= {"engramd"}
        code = f"import {package}; print({package}.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT.root
        )
        assert Path(found.stdout.strip()).parent == CHECKOUT / package
    assert "python-daemon" not in {canonical(d.metadata["Name"]) for d in distributions()}


def test_the_version_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert version("engramd") == PROJECT["version"]
    released = re.findall(r"^## \[(\d[^\]]*)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == PROJECT["version"]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"engramd {PROJECT['version']}\n"


def test_the_command_is_installed() -> None:
    (entry,) = [e for e in distribution("engramd").entry_points if e.group == "console_scripts"]
    assert (entry.name, entry.value) == ("engramd", "daemon.__main__:main")
    assert entry.load() is main


def test_the_lock_pins_every_requirement_exactly() -> None:
    pinned = pins()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {canonical(match[0]) for match in (re.match(r"[\w.-]+", text) for text in wanted) if match}
    assert names <= pinned.keys()
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", text) for text in pinned.values()), (
        "exact, without a build tag"
    )
    assert "engramd" not in pinned


def test_the_lock_names_no_host_and_no_path() -> None:
    text = (CHECKOUT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|@|--|^\s*[/.]", text, re.MULTILINE)


def test_the_environment_is_the_locked_one() -> None:
    """What was tested is what a user gets: an installed version may differ from its pin by a build tag alone."""
    installed = {canonical(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions()}
    differing = {n: (v, installed[n]) for n, v in pins().items() if n in installed and installed[n] != v}
    assert differing == {}
