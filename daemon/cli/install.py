"""`engramd install` and `engramd uninstall`: the service of systemd, for one person or for the whole machine."""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli import command, units
from daemon.cli.context import home_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers

UNIT = "engramd.service"
GROUP = "engramd"
ROOT = Path("/")
DROP_INS = ("gpu", "ssh")
_GPU = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    text: str
    what: str
    mode: int = 0o644


def register(subparsers: "Subparsers") -> None:
    usage = "engramd install [--user | --system [--for USER]... [--with {gpu,ssh}]...] [--dry-run]"
    parser = command(subparsers, "install", usage=usage)
    _whose(parser)
    parser.add_argument(
        "--for", dest="people", action="append", default=[], metavar="USER",
        help="with --system: who may drop files and use the command line (joins the group engramd)",
    )  # fmt: skip
    parser.add_argument(
        "--with", dest="drop_ins", action="append", default=[], choices=DROP_INS,
        help="with --system: devices of a GPU (by itself where a card is), or a way out over SSH",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be written and run")
    parser.set_defaults(run=_install)

    parser = command(subparsers, "uninstall", usage="engramd uninstall [--user | --system] [--dry-run]")
    _whose(parser)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed, and what stays")
    parser.set_defaults(run=_uninstall)


def _whose(parser: argparse.ArgumentParser) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--user", action="store_true", help="a service of your own (the default)")
    whose.add_argument("--system", action="store_true", help="a hardened service of the machine; needs root")


# -- install ------------------------------------------------------------------------------------------


def _install(args: argparse.Namespace) -> int:
    if (args.people or args.drop_ins) and not args.system:
        raise UserError("--for and --with need --system: the user service is yours and sees your devices", Exit.USAGE)
    program = _program()
    try:
        if args.system:
            home = system_home(args)
            files, commands = _system(program, home, args.people, args.drop_ins)
        else:
            home = home_of(args).root
            files, commands = _user(program, home)
    except units.BadPath as error:
        raise UserError(str(error), Exit.USAGE) from None
    _check_systemd(system=args.system, dry=args.dry_run)
    for file in files:
        _check_ours(file.path)
    for file in files:
        _say("write", f"{file.path} ({file.what})", dry=args.dry_run)
        if not args.dry_run:
            _write(file)
    for words in commands:
        _run(words, dry=args.dry_run)
    print(f"home: {home}" + ("" if args.system else "  (drop files into its inbox/)"))
    for sentence in _hints(program, home, args):
        print(sentence)
    return Exit.OK


def _system(
    program: units.Program, home: Path, people: list[str], drop_ins: list[str]
) -> tuple[list[File], list[list[str]]]:
    if units.is_personal(home):
        raise UserError(
            f"the home {home} lies in a person's folder, which the system service does not see: take another one, "
            "such as --home /srv/engramd, or install the user service: engramd install"
        )
    _check_people(people)
    etc, shipped = ROOT / "etc", program.code / "systemd"
    wanted = [name for name in DROP_INS if name in drop_ins or (name == "gpu" and _GPU.exists())]
    unit = etc / "systemd" / "system" / UNIT
    users, folders = etc / "sysusers.d" / "engramd.conf", etc / "tmpfiles.d" / "engramd.conf"
    files = [
        File(users, units.sysusers(_shipped(shipped / "engramd.sysusers"), home), f"user and group {GROUP}"),
        File(folders, units.tmpfiles(_shipped(shipped / "engramd.tmpfiles"), program, home), "the home's folders"),
        File(unit, units.system_unit(_shipped(shipped / UNIT), program, home), "the service"),
        *(
            File(Path(f"{unit}.d/{name}.conf"), units.marked(_shipped(shipped / f"{UNIT}.d" / f"{name}.conf")),
                 "devices of the GPU" if name == "gpu" else "a way out over SSH")
            for name in wanted
        ),
        File(ROOT / "usr/local/bin/engramd", units.wrapper(program, home), "the command line for everybody", 0o755),
    ]  # fmt: skip
    commands = [
        ["systemd-sysusers", str(users)], ["systemd-tmpfiles", "--create", str(folders)],
        *(["gpasswd", "--add", person, GROUP] for person in people),
        ["systemctl", "daemon-reload"], ["systemctl", "enable", UNIT], ["systemctl", "restart", UNIT],
    ]  # fmt: skip
    return files, commands


def _user(program: units.Program, home: Path) -> tuple[list[File], list[list[str]]]:
    if os.geteuid() == 0:
        raise UserError(
            "this would be a service of root: run it as yourself, without sudo, or say --system for the whole machine"
        )
    text = units.user_unit(_shipped(program.code / "systemd" / "user" / UNIT), program, home)
    ctl = ["systemctl", "--user"]
    commands = [[*ctl, "daemon-reload"], [*ctl, "enable", UNIT], [*ctl, "restart", UNIT]]
    return [File(_user_units() / UNIT, text, "the service")], commands


def _hints(program: units.Program, home: Path, args: argparse.Namespace) -> list[str]:
    if not args.system:
        return [
            "To see it: systemctl --user status engramd, or engramd status",
            "It works while you are logged in; for the nights after you log out: loginctl enable-linger",
        ]
    hints = ["To see it: systemctl status engramd, or engramd status",
             f"The base model belongs to the service: sudo -u {GROUP} engramd base fetch NAME"]  # fmt: skip
    if args.people:
        hints.append(f"The group holds from the next login on: {', '.join(args.people)}")
    if program.under_homes():
        shown = ", ".join(str(path) for path in program.under_homes())
        hints.append(
            f"The code lies in {shown}: the service sees it through a window, but others may not be able to start "
            f"`engramd`; a checkout and a Python outside of personal folders, such as {units.CODE}, serve all"
        )
    return hints


# -- uninstall ----------------------------------------------------------------------------------------


def _uninstall(args: argparse.Namespace) -> int:
    etc = ROOT / "etc"
    system_unit, user_unit = etc / "systemd" / "system" / UNIT, _user_units() / UNIT
    unit = system_unit if args.system else user_unit
    if not unit.exists():
        if not args.system and system_unit.exists():
            raise UserError("you have none of your own; the machine's: sudo engramd uninstall --system", Exit.NOTHING)
        raise UserError(f"nothing is installed: there is no {unit}", Exit.NOTHING)
    _check_ours(unit)
    home = _home_in(unit.read_text(encoding="utf-8"))
    places = [unit]
    if args.system:
        places += [Path(f"{unit}.d/{name}.conf") for name in DROP_INS]
        places += [etc / "sysusers.d" / "engramd.conf", etc / "tmpfiles.d" / "engramd.conf"]
        places += [ROOT / "usr/local/bin/engramd"]
    _check_systemd(system=args.system, dry=args.dry_run)
    ctl = ["systemctl"] if args.system else ["systemctl", "--user"]
    print("The service is stopped first; a running job saves and goes on when engramd runs again.")
    _run([*ctl, "disable", "--now", UNIT], dry=args.dry_run)
    kept: list[str] = []
    for path in places:
        if not path.exists():
            continue
        if not units.is_ours(path.read_text(encoding="utf-8", errors="replace")):
            kept.append(f"{path}: not written by `engramd install`")
            continue
        _say("remove", str(path), dry=args.dry_run)
        if not args.dry_run:
            path.unlink()
    kept += _own_drop_ins(Path(f"{unit}.d"), dry=args.dry_run)
    _run([*ctl, "daemon-reload"], dry=args.dry_run)
    kept.append(f"{home}: all memories and models; no command but rm removes them together")
    if args.system:
        kept.append(f"user and group {GROUP}: the files of the home belong to them (userdel {GROUP}, once it is gone)")
    for line in kept:
        print(f"kept: {line}")
    return Exit.OK


def _own_drop_ins(folder: Path, *, dry: bool) -> list[str]:
    """What somebody else put beside the unit; the folder goes once it is empty."""
    if not folder.is_dir():
        return []
    others = [path for path in sorted(folder.iterdir()) if not (dry and path.stem in DROP_INS)]
    if not others and not dry:
        folder.rmdir()
    return [f"{path}: not written by `engramd install`" for path in others]


def _home_in(unit: str) -> str:
    lead = "ENGRAMD_HOME="
    found = next((line for line in unit.splitlines() if line.startswith("Environment=") and lead in line), lead)
    return found.partition(lead)[2].rstrip('"').replace("%%", "%") or "the home"


# -- the pieces ---------------------------------------------------------------------------------------


def system_home(args: argparse.Namespace) -> Path:
    """`--home`, ENGRAMD_HOME, or /var/lib/engramd; never the checkout, which is a person's."""
    chosen = args.home or os.environ.get("ENGRAMD_HOME")
    return Path(chosen).expanduser().resolve() if chosen else Path(units.HOME)


def _program() -> units.Program:
    """Raises UserError where this engramd cannot be started by a unit."""
    code = Path(units.__file__).resolve().parents[2]
    program = units.Program(code, Path(sys.prefix), Path(sys.base_prefix).resolve())
    if not os.access(program.command, os.X_OK):
        raise UserError(f"{program.command} is not there: install engramd into its virtual environment with make")
    return program


def _shipped(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): install from a checkout of engramd") from None


def _user_units() -> Path:
    """Where a person's own units are looked for: systemd.unit(5)."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(config) if config.startswith("/") else Path.home() / ".config") / "systemd" / "user"


def _check_people(people: list[str]) -> None:
    import pwd

    for person in people:
        try:
            pwd.getpwnam(person)
        except KeyError:
            raise UserError(f"--for {person}: there is no such user on this machine", Exit.USAGE) from None


def _check_systemd(*, system: bool, dry: bool) -> None:
    """Raises UserError where the commands that follow could not work."""
    if dry:
        return
    if shutil.which("systemctl") is None:
        raise UserError(
            "systemctl is missing, so there is no systemd here: start `engramd run` by the means that this machine has",
            Exit.UNAVAILABLE,
        )
    if system:
        if os.geteuid() != 0:
            raise UserError("the system service is root's affair: put sudo in front, or leave --system out")
        return
    asked = subprocess.run(["systemctl", "--user", "show-environment"], capture_output=True, check=False)
    if asked.returncode:
        raise UserError(
            "your own systemd cannot be reached: log in on this machine itself or by ssh (su and sudo open no session)",
            Exit.UNAVAILABLE,
        )


def _check_ours(path: Path) -> None:
    if path.exists() and not units.is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{path} was not written by `engramd install`: move it away first")


def _write(file: File) -> None:
    from daemon.durable import write_atomic

    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file.path, file.text.encode(), file.mode)
    except OSError as error:
        raise UserError(f"{file.path} cannot be written: {error.strerror}") from None


def _say(verb: str, what: str, *, dry: bool) -> None:
    print(f"{'would ' if dry else ''}{verb}: {what}", flush=True)


def _run(words: list[str], *, dry: bool) -> None:
    shown = " ".join(words)
    _say("run", shown, dry=dry)
    if dry:
        return
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"`{shown}` cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"`{shown}` failed: {said}")
