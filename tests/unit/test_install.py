"""`engramd install` and `uninstall` on folders of their own, with a stand-in for systemctl; and the shipped units."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.__main__ import main
from daemon.cli import install, units
from daemon.cli.exit_codes import Exit

SHIPPED = Path(__file__).resolve().parents[2] / "systemd"
PROGRAM = units.Program(Path("/opt/engramd"), Path("/opt/engramd/.venv"), Path("/usr"))
HOME = Path("/var/lib/engramd")


def shipped(name: str) -> str:
    return (SHIPPED / name).read_text()


def settings_of(unit: str) -> list[str]:
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders in the place of /etc and ~, and commands that only write down how they were called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles", "gpasswd"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\nexit ${{FAIL:-0}}\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "_GPU", tmp_path / "no-card")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def called(machine: Path) -> list[str]:
    path = machine / "called"
    return [line for line in path.read_text().splitlines() if "show-environment" not in line] if path.exists() else []


def written(machine: Path) -> list[str]:
    """All files but the tools and what they wrote down."""
    found = (path.relative_to(machine) for path in machine.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] not in ("bin", "called", "home"))


# -- the units ----------------------------------------------------------------------------------------


def test_every_line_of_the_system_unit_is_explained() -> None:
    """A comment above each group of lines, and no section without."""
    text = shipped("engramd.service").partition("[Service]")[2].partition("[Install]")[0]
    unexplained = []
    comment = False
    for line in text.splitlines():
        if line.startswith("#"):
            comment = True
        elif not line:
            comment = False
        elif not comment and not line.startswith(("Type=", "User=")):
            unexplained.append(line)
    assert not unexplained


def test_what_must_not_be_in_it() -> None:
    """MemoryDenyWriteExecute breaks torch, ProcSubset=pid breaks psutil, and @resources is needed for nice."""
    lines = settings_of(shipped("engramd.service"))
    assert not [line for line in lines if line.startswith(("MemoryDenyWriteExecute", "ProcSubset"))]
    assert not [line for line in lines if line.startswith("SystemCallFilter=~") and "resources" in line]
    assert {"SystemCallErrorNumber=EPERM", "KillMode=mixed", "Type=notify", "OOMPolicy=continue"} <= set(lines)
    writable = [line for line in lines if line.startswith(("ReadWritePaths", "StateDirectory=", "CacheDirectory"))]
    assert writable == ["StateDirectory=engramd"]  # two mounts would be two file systems to a rename


def test_the_shipped_paths_give_the_shipped_unit() -> None:
    assert settings_of(units.system_unit(shipped("engramd.service"), PROGRAM, HOME)) == settings_of(
        shipped("engramd.service")
    )


def test_a_home_elsewhere_is_one_writable_root() -> None:
    unit = units.system_unit(shipped("engramd.service"), PROGRAM, Path("/srv/my memories/100%"))
    lines = settings_of(unit)
    assert 'ReadWritePaths="/srv/my memories/100%%"' in lines
    assert 'Environment="ENGRAMD_HOME=/srv/my memories/100%%"' in lines
    assert not [line for line in lines if line.startswith("StateDirectory")]
    assert install._home_in(unit) == "/srv/my memories/100%"
    below = settings_of(units.system_unit(shipped("engramd.service"), PROGRAM, Path("/var/lib/memories")))
    assert "StateDirectory=memories" in below and not [line for line in below if line.startswith("ReadWrite")]


def test_code_in_a_personal_folder_is_seen_through_a_window() -> None:
    program = units.Program(Path("/home/a/engramd"), Path("/home/a/engramd/.venv"), Path("/home/a/.pyenv/3.11"))
    lines = settings_of(units.system_unit(shipped("engramd.service"), program, HOME))
    assert "ProtectHome=tmpfs" in lines and "ProtectHome=yes" not in lines
    assert "BindReadOnlyPaths=/home/a/.pyenv/3.11 /home/a/engramd" in lines
    assert "ExecStart=/home/a/engramd/.venv/bin/engramd run" in lines


@pytest.mark.parametrize("path", ["/srv/a\nExecStartPre=/bin/evil", '/srv/"', "/srv/$HOME", "/srv/a\\b", "/srv/'"])
def test_a_path_cannot_write_lines_of_its_own(path: str) -> None:
    with pytest.raises(units.BadPath, match="unit file"):
        units.system_unit(shipped("engramd.service"), PROGRAM, Path(path))


def test_a_template_of_another_release_is_noticed() -> None:
    with pytest.raises(ValueError, match="has no line"):
        units.system_unit(shipped("engramd.service").replace("StateDirectory=engramd", ""), PROGRAM, HOME)


def test_the_wrapper_knows_the_home_and_lets_others_through(tmp_path: Path) -> None:
    program = units.Program(tmp_path, tmp_path / "it's", Path("/usr"))
    program.command.parent.mkdir(parents=True)
    program.command.write_text('#!/bin/sh\necho "$ENGRAMD_HOME|$HF_HOME|$1|$2"\n')
    program.command.chmod(0o755)
    script = tmp_path / "engramd"
    script.write_text(units.wrapper(program, Path("/srv/our memories")))

    def said(**more: str) -> str:
        return subprocess.run(["sh", str(script), "a b", "c"], env=more, capture_output=True, text=True).stdout.strip()

    assert said() == "/srv/our memories|/srv/our memories/huggingface|a b|c"
    assert said(ENGRAMD_HOME="/mine") == "/mine||a b|c"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize(("drop_in", "most"), [(None, 1.2), ("gpu", 1.4), ("ssh", 1.5)])
def test_exposure(drop_in: str | None, most: float, tmp_path: Path) -> None:
    """What `systemd-analyze security` gives: 0 is no exposure at all, 10 is all there is."""
    shutil.copy(SHIPPED / "engramd.service", tmp_path)
    if drop_in:
        (tmp_path / "engramd.service.d").mkdir()
        shutil.copy(SHIPPED / "engramd.service.d" / f"{drop_in}.conf", tmp_path / "engramd.service.d")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "./engramd.service"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"exposure level for engramd.service: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    print(f"\nexposure with {drop_in or 'the CPU alone'}: {found[1]}")
    assert float(found[1]) <= most


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("name", ["engramd.service", "user/engramd.service"])
def test_systemd_understands_every_line(name: str, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / name, tmp_path)
    scope = ["--user"] if name.startswith("user/") else []
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", "--recursive-errors=no", "./engramd.service"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "engramd.service" in line and "is not executable" not in line]
    assert not said


# -- install and uninstall ------------------------------------------------------------------------------


def test_the_user_service_is_the_default(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = machine / "home"
    assert main(["install", "--home", str(home)]) == 0
    unit = machine / "config/systemd/user/engramd.service"
    assert written(machine) == ["config/systemd/user/engramd.service"]
    assert f"Environment=ENGRAMD_HOME={home}" in unit.read_text() and units.is_ours(unit.read_text())
    verbs = ("daemon-reload", "enable engramd.service", "restart engramd.service")
    assert called(machine) == [f"systemctl --user {verb}" for verb in verbs]
    said = capsys.readouterr().out
    assert f"write: {unit} (the service)" in said
    assert all(f"run: {line}" in said for line in called(machine)) and "enable-linger" in said
    first = unit.read_text()
    assert main(["install", "--home", str(home)]) == 0 and unit.read_text() == first  # again is no harm


def test_uninstall_takes_its_files_and_keeps_the_memories(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = machine / "home"
    home.mkdir()
    (home / "memory.txt").write_text("mine")
    assert main(["install", "--home", str(home)]) == 0
    own = machine / "config/systemd/user/engramd.service.d/override.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nNice=5\n")
    before = written(machine)
    (machine / "called").unlink()
    capsys.readouterr()
    assert main(["uninstall", "--dry-run"]) == 0
    assert written(machine) == before and called(machine) == []
    assert "would remove: " in (would := capsys.readouterr().out) and f"kept: {home}: all memories" in would
    assert main(["uninstall"]) == 0
    assert called(machine) == ["systemctl --user disable --now engramd.service", "systemctl --user daemon-reload"]
    said = capsys.readouterr().out
    assert said.replace("run:", "would run:").replace("remove:", "would remove:") == would
    assert f"kept: {own}: not written by" in said
    assert written(machine) == ["config/systemd/user/engramd.service.d/override.conf"]
    assert (home / "memory.txt").read_text() == "mine"
    assert main(["uninstall"]) == Exit.NOTHING
    assert "nothing is installed" in capsys.readouterr().err


@pytest.fixture
def root(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return machine


SYSTEM_FILES = [
    "etc/sysusers.d/engramd.conf", "etc/systemd/system/engramd.service", "etc/tmpfiles.d/engramd.conf",
    "usr/local/bin/engramd",
]  # fmt: skip


def test_the_system_service(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "no-card").touch()  # there is one, then
    assert main(["install", "--system", "--for", "root", "--with", "ssh"]) == 0
    drop_ins = [f"etc/systemd/system/engramd.service.d/{name}.conf" for name in ("gpu", "ssh")]
    assert [name for name in written(root) if name != "no-card"] == sorted([*SYSTEM_FILES, *drop_ins])
    assert called(root) == [
        f"systemd-sysusers {root}/etc/sysusers.d/engramd.conf",
        f"systemd-tmpfiles --create {root}/etc/tmpfiles.d/engramd.conf",
        "gpasswd --add root engramd", "systemctl daemon-reload", "systemctl enable engramd.service",
        "systemctl restart engramd.service",
    ]  # fmt: skip
    assert (root / "usr/local/bin/engramd").stat().st_mode & 0o777 == 0o755
    assert "home: /var/lib/engramd" in capsys.readouterr().out
    assert main(["uninstall", "--system"]) == 0
    assert [name for name in written(root) if name != "no-card"] == []
    assert not (root / "etc/systemd/system/engramd.service.d").exists()
    said = capsys.readouterr().out
    assert "kept: /var/lib/engramd: all memories" in said and "kept: user and group engramd" in said


def test_a_dry_run_writes_and_runs_nothing_and_needs_no_root(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--system", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(f"would write: {machine}/{name}" in said for name in SYSTEM_FILES)
    assert "would run: systemctl daemon-reload" in said
    assert written(machine) == [] and called(machine) == []


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) != 0
    said = capsys.readouterr()
    assert said.err.startswith("engramd: ") and said.err.count("\n") == 1
    return said.err


def test_refusals_are_one_sentence(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "sudo" in refused(["install", "--system"], capsys)
    assert "--system" in refused(["install", "--for", "root"], capsys)
    assert "no such user" in refused(["install", "--system", "--for", "nobody-of-that-name"], capsys)
    assert "--home /srv/engramd" in refused(["install", "--system", "--home", "/home/a/b"], capsys)
    assert "unit file" in refused(["install", "--home", "/srv/$x"], capsys)
    monkeypatch.setenv("FAIL", "1")
    assert "cannot be reached" in refused(["install"], capsys)
    monkeypatch.delenv("FAIL")
    mine = machine / "config/systemd/user/engramd.service"
    mine.parent.mkdir(parents=True)
    mine.write_text("[Service]\nExecStart=/bin/true\n")
    for verb in ("install", "uninstall"):
        assert "move it away first" in refused([verb], capsys)
    assert mine.read_text().startswith("[Service]")
    (machine / "bin/systemctl").unlink()
    monkeypatch.setenv("PATH", str(machine / "bin"))
    mine.unlink()
    assert "systemctl is missing" in refused(["install"], capsys)
    assert written(machine) == []


def test_root_does_not_get_a_user_service_by_accident(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--system" in refused(["install"], capsys)


def test_a_failed_command_is_told_with_its_words(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "bin/systemd-sysusers").write_text("#!/bin/sh\necho 'no room for users' >&2\nexit 1\n")
    assert "no room for users" in refused(["install", "--system"], capsys)
