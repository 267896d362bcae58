"""The unit files of `systemd/` with the paths of this machine in them. Pure: nothing is read or run here.

The shipped files are whole and valid, for a checkout in /opt/engramd and a home in /var/lib/engramd (%h/engramd
in the user unit). So each of the lines that name a path is exchanged for one with the real path; comments stay.
Quoting: systemd.syntax(7), specifiers (%%): systemd.unit(5), tmpfiles.d(5).
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CODE, HOME, USER_CODE = "/opt/engramd", "/var/lib/engramd", "%h/engramd"
MARK = "# Written by `engramd install`: `engramd uninstall` removes it, and a file without this line is left alone."
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))  # what ProtectHome= takes away
_NOT_IN_UNITS = re.compile(r"[\x00-\x1f\x7f\"'\\$`]")


class BadPath(ValueError):
    """A path that cannot stand in a unit file; says so in one sentence."""


@dataclass(frozen=True, slots=True)
class Program:
    """Where the code that the unit starts lies."""

    code: Path  # the checkout
    prefix: Path  # its virtual environment
    interpreter: Path  # what that was made with: sys.base_prefix

    @property
    def command(self) -> Path:
        return self.prefix / "bin" / "engramd"

    def under_homes(self) -> list[Path]:
        """What of it a service with ProtectHome=yes could not see; the outermost folders, each once."""
        inside = [path for path in (self.code, self.prefix, self.interpreter) if is_personal(path)]
        return sorted({path for path in inside if not any(other in path.parents for other in inside)})


def is_personal(path: Path) -> bool:
    """Whether it lies in a folder that a hardened service does not see."""
    return any(hidden in (path, *path.parents) for hidden in _HIDDEN)


def quoted(text: str) -> str:
    """As one word of a unit or tmpfiles line. Raises BadPath."""
    if _NOT_IN_UNITS.search(text):
        raise BadPath(f"{text!r} cannot stand in a unit file: quotes, backslashes, $ and control characters cannot")
    escaped = text.replace("%", "%%")
    return f'"{escaped}"' if re.search(r"\s", escaped) else escaped


def system_unit(template: str, program: Program, home: Path) -> str:
    """The system unit. Raises BadPath, and ValueError where the template is not the shipped one."""
    below_state = home.parent == Path("/var/lib")
    place = f"StateDirectory={quoted(home.name)}" if below_state else f"ReadWritePaths={quoted(str(home))}"
    lines: dict[str, str | None] = {
        f"ExecStart={CODE}/.venv/bin/engramd run": f"ExecStart={quoted(str(program.command))} run",
        f"Environment=ENGRAMD_HOME={HOME}": f"Environment={quoted(f'ENGRAMD_HOME={home}')}",
        f"Documentation=file:{CODE}/docs/systemd.md": _documentation(program.code),
        f"Environment=HF_HOME={HOME}/huggingface": f"Environment={quoted(f'HF_HOME={home}/huggingface')}",
        "StateDirectory=engramd": place,
    }
    if not below_state:
        lines["StateDirectoryMode=0750"] = None
    if hidden := program.under_homes():
        shown = " ".join(quoted(str(path)) for path in hidden)
        lines["ProtectHome=yes"] = f"ProtectHome=tmpfs\nBindReadOnlyPaths={shown}"
    return _exchange(template, lines)


def user_unit(template: str, program: Program, home: Path) -> str:
    """The desktop's unit. Raises BadPath, and ValueError where the template is not the shipped one."""
    return _exchange(template, {
        f"ExecStart={USER_CODE}/.venv/bin/engramd run": f"ExecStart={quoted(str(program.command))} run",
        f"Environment=ENGRAMD_HOME={USER_CODE}": f"Environment={quoted(f'ENGRAMD_HOME={home}')}",
        f"Documentation=file:{USER_CODE}/docs/systemd.md": _documentation(program.code),
    })  # fmt: skip


def tmpfiles(template: str, program: Program, home: Path) -> str:
    """The folders of the system service. Raises BadPath."""
    body = []
    for line in template.splitlines():
        words = line.split()
        if line.startswith("#") or not words:
            body.append(line)
            continue
        words[1:2] = [quoted(words[1].replace(HOME, str(home), 1))]
        words[-1] = quoted(words[-1].replace(CODE, str(program.code), 1))
        body.append(" ".join(words))
    return marked("\n".join(body) + "\n")


def sysusers(template: str, home: Path) -> str:
    """The service's user, whose home folder is the home. Raises BadPath."""
    return marked(template.replace(HOME, quoted(str(home))))


def wrapper(program: Program, home: Path) -> str:
    """A command for everybody's PATH that finds the service's home by itself."""
    return "\n".join([
        "#!/bin/sh", MARK, "# The command line of the system service: it knows the home.",
        'if [ -z "$ENGRAMD_HOME" ]; then', f"  ENGRAMD_HOME={shlex.quote(str(home))}",
        f"  HF_HOME={shlex.quote(f'{home}/huggingface')}", "  export ENGRAMD_HOME HF_HOME", "fi",
        f'exec {shlex.quote(str(program.command))} "$@"', "",
    ])  # fmt: skip


def marked(text: str) -> str:
    return f"{MARK}\n\n{text}"


def is_ours(text: str) -> bool:
    return MARK in text.splitlines()[:2]


def _documentation(code: Path) -> str | None:
    """A URL for `systemctl help`; none where the path is not one."""
    return f"Documentation=file:{code}/docs/systemd.md" if re.fullmatch(r"[A-Za-z0-9/._-]+", str(code)) else None


def _exchange(template: str, lines: dict[str, str | None]) -> str:
    """The unit without its opening remarks, which speak of the shipped paths. None takes a line away."""
    unit = template[template.index("[Unit]") :].splitlines()
    for old, new in lines.items():
        if unit.count(old) != 1:
            raise ValueError(f"the shipped unit has no line {old!r}, or several: it does not fit to this engramd")
        place = unit.index(old)
        unit[place : place + 1] = [] if new is None else [new]
    return marked("\n".join(unit) + "\n")
