"""`engramd pause [--until WHEN]` and `engramd resume`: no training for a while, also not of the job that runs."""

import argparse
import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from daemon.cli import command
from daemon.cli.context import print_json, settings_of
from daemon.cli.exit_codes import Exit, UserError

if TYPE_CHECKING:
    from daemon.cli import Subparsers

_SPAN = re.compile(r"(\d{1,4}) ?(m|h|d)")
_TIME = re.compile(r"(\d{1,2}):(\d{2})")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def register(subparsers: "Subparsers") -> None:
    parser = command(
        subparsers, "pause", usage="engramd pause [--until 07:00 | 2h | 2026-12-24 | \"2026-12-24 18:00\"] [--json]",
        description="A job that runs saves at its next step and goes on later from there. Files are taken and read all "
        "the same.",
    )  # fmt: skip
    parser.add_argument("--until", metavar="WHEN", help="a time of day, a date, both, or a span; without: until resume")
    parser.add_argument("--json", action="store_true", help="keys: paused")
    parser.set_defaults(run=_pause)
    parser = command(subparsers, "resume", usage="engramd resume [--json]")
    parser.add_argument("--json", action="store_true", help="keys: paused")
    parser.set_defaults(run=_resume)


def _pause(args: argparse.Namespace) -> int:
    from daemon.schedule import zone_of

    until = ""
    if args.until is not None:
        zone = zone_of(settings_of(args).schedule.timezone)
        moment = when(args.until, datetime.now(UTC).astimezone(zone))
        until = moment.astimezone(zone).isoformat(timespec="seconds")
    return _say(args, "pause", {"until": until})


def _resume(args: argparse.Namespace) -> int:
    return _say(args, "resume", {})


def _say(args: argparse.Namespace, name: str, arguments: dict[str, str]) -> int:
    from daemon.cli.asking import ask
    from daemon.home import DEFAULT_PROFILE

    told = ask(args, DEFAULT_PROFILE, name, arguments) or {}
    if args.json:
        print_json(told)
    else:
        print(told["paused"] or "training may run")
    return Exit.OK


def when(text: str, now: datetime) -> datetime:
    """The instant that a person means: the next such time of day, a date's beginning, or so long from now, by the
    clock of `now`'s zone. Raises UserError."""
    text = text.strip()
    if span := _SPAN.fullmatch(text):
        moment = now.astimezone(UTC) + timedelta(**{_UNITS[span[2]]: int(span[1])})
    elif (at := _TIME.fullmatch(text)) and (int(at[1]), int(at[2])) <= (24, 0) and int(at[2]) < 60:
        moment = _next(int(at[1]), int(at[2]), now)
    else:
        moment = _date(text, now)
    if moment.astimezone(UTC) <= now.astimezone(UTC):  # by the instant: autumn has an hour of the clock twice
        raise UserError(f"--until {text}: that is over already", Exit.USAGE)
    return moment


def _next(hour: int, minute: int, now: datetime) -> datetime:
    for ahead in (0, 1):
        day = now.date() + timedelta(days=ahead + hour // 24)
        moment = datetime.combine(day, time(hour % 24, minute), now.tzinfo)
        if moment.astimezone(UTC) > now.astimezone(UTC):
            break
    return moment


def _date(text: str, now: datetime) -> datetime:
    try:
        if not _DATE.match(text):
            raise ValueError(text)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)).astimezone(now.tzinfo)
    except (ValueError, OverflowError):
        raise UserError(f"--until {text}: a time looks like 07:00, 2h, 2026-12-24 or \"2026-12-24 18:00\"",
                        Exit.USAGE) from None  # fmt: skip
