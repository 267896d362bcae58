"""What is kept and what may go: one policy for snapshots, checkpoints, versions and job folders.

A rule keeps things, none removes any: what no rule keeps may go. A rule of periods keeps the newest thing of each of
the newest so many days (ISO weeks, months, years) in which there is one, by the calendar of the home's zone. What
lies in the future is kept and counts for no rule, since a clock was wrong then.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol


class Policy(Protocol):
    """As `daemon.settings_sections.Keep` has it; `keep_within` is a text such as "14d" or "1y6m"."""

    @property
    def keep_last(self) -> int: ...
    @property
    def keep_daily(self) -> int: ...
    @property
    def keep_weekly(self) -> int: ...
    @property
    def keep_monthly(self) -> int: ...
    @property
    def keep_yearly(self) -> int: ...
    @property
    def keep_within(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    time: datetime  # with a zone
    size: int = 0  # bytes that would be free without it


@dataclass(frozen=True, slots=True)
class Decision:
    name: str
    keep: bool
    reasons: tuple[str, ...]  # why it is kept; or that no rule keeps it
    size: int


_PERIODS: tuple[tuple[str, str, Callable[[datetime], tuple[int, ...]]], ...] = (
    ("keep_daily", "day", lambda time: (time.year, time.month, time.day)),
    ("keep_weekly", "week", lambda time: tuple(time.isocalendar())[:2]),
    ("keep_monthly", "month", lambda time: (time.year, time.month)),
    ("keep_yearly", "year", lambda time: (time.year,)),
)
_SPAN = re.compile(r"(\d+)([hdwmy])")


def is_empty(policy: Policy) -> bool:
    """Whether it would keep nothing at all. A period of no length is no rule."""
    counts = (getattr(policy, name) for name in ("keep_last", *(name for name, _, _ in _PERIODS)))
    return not any(counts) and not any(int(number) for number, _ in _SPAN.findall(policy.keep_within))


def decide(
    items: Iterable[Item], policy: Policy, now: datetime, zone: tzinfo, protected: Mapping[str, str] | None = None
) -> list[Decision]:
    """A decision on each item, the newest first. `protected` names what stays whatever the policy says, with the
    reason. The newest item of all that are not in the future always stays. Equal times: the later name is newer.

    Raises ValueError for an empty policy, which would remove everything.
    """
    if is_empty(policy):
        raise ValueError("a policy that keeps nothing would remove everything: set at least one keep_ key above 0")
    ordered = sorted(items, key=lambda item: (item.time, item.name), reverse=True)
    reasons: dict[str, list[str]] = {item.name: [] for item in ordered}
    for name, why in (protected or {}).items():
        if name in reasons:
            reasons[name].append(why)
    past = []
    for item in ordered:
        if item.time > now:
            reasons[item.name].append("its date is in the future")
        else:
            past.append(item)
    for rank, item in enumerate(past[: policy.keep_last], 1):
        reasons[item.name].append("the newest" if rank == 1 else f"one of the last {policy.keep_last}")
    for name, period, key in _PERIODS:
        for item in _newest_of_periods(past, getattr(policy, name), zone, key):
            reasons[item.name].append(f"the last of its {period}")
    begin = _begin(policy.keep_within, now.astimezone(zone))
    for item in past:
        if begin is not None and item.time >= begin:
            reasons[item.name].append(f"within {policy.keep_within}")
    if past and not reasons[past[0].name]:
        reasons[past[0].name].append("the newest")
    return [
        Decision(item.name, bool(reasons[item.name]), tuple(reasons[item.name]) or ("no rule keeps it",), item.size)
        for item in ordered
    ]


def _newest_of_periods(
    past: list[Item], count: int, zone: tzinfo, key: Callable[[datetime], tuple[int, ...]]
) -> list[Item]:
    kept: list[Item] = []
    last: tuple[int, ...] | None = None
    for item in past:
        period = key(item.time.astimezone(zone))
        if period != last and len(kept) < count:
            kept.append(item)
        last = period
    return kept


def _begin(within: str, local: datetime) -> datetime | None:
    """The instant so long before a local time; months and years by the calendar, at most to the month's last day."""
    spans = [(int(number), unit) for number, unit in _SPAN.findall(within) if int(number)]
    if not spans:
        return None
    months = sum(number * (12 if unit == "y" else 1) for number, unit in spans if unit in "my")
    years, month = divmod(local.year * 12 + local.month - 1 - months, 12)
    if years < 1:
        return datetime.min.replace(tzinfo=local.tzinfo)
    day = min(local.day, _days_in(years, month + 1))
    begin = local.replace(year=years, month=month + 1, day=day)
    try:
        days = sum(number * (7 if unit == "w" else 1) for number, unit in spans if unit in "dw")
        begin = begin - timedelta(days=days)  # of the calendar: the same time of day, whatever the clocks did
        hours = sum(number for number, unit in spans if unit == "h")
        return (begin.astimezone(UTC) - timedelta(hours=hours)) if hours else begin
    except OverflowError:
        return datetime.min.replace(tzinfo=local.tzinfo)


def _days_in(year: int, month: int) -> int:
    following = datetime(year + month // 12, month % 12 + 1, 1) if year < 9999 else datetime(9999, 12, 31)  # noqa: DTZ001
    return (following - timedelta(days=1)).day


def most_kept(policy: Policy, per_day: float = 1.0) -> int:
    """At most how many items a policy keeps of a line with so many a day, protected ones aside: the rules of periods
    keep one a period each, and the newest of all is among them.

    Each rule is counted by itself, but for those that keep the same: the newest day, week, month and year end with
    the same item, so that all rules together share one.
    """
    counts: list[int] = [policy.keep_last, *(getattr(policy, name) for name, _, _ in _PERIODS)]
    rules = [count for count in counts if count]
    if within := _within_days(policy):
        rules.append(int(within * per_day) + 1)
    return max(1, sum(rules) - max(0, len(rules) - 1))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a profile's things take, in bytes on the disk; of what grows, its size on the last day that counts."""

    checkpoint: int
    job: int  # a whole folder of an ended job
    record: int  # what stays of it for ever
    ledger: int
    snapshot: int = 0  # of a snapshot, besides checkpoints and ledger: folders, manifest, settings
    other: int = 0  # what there is once: dropped files, logs


def bound(
    snapshots: Policy, jobs: Policy, sizes: Sizes, *, checkpoints: int, days: int, per_day: int = 1,
    taken: int | None = None,
) -> int:  # fmt: skip
    """Bytes that a profile uses at most after so many days with one snapshot and `per_day` jobs each, known before the
    first of them.

    `checkpoints` of the head's chain are kept, and `taken` of them (default: all) are linked into each snapshot.
    Snapshots of days in a row share with the one before all but the checkpoints of the day between; an older one
    shares none. A job at work has its own `checkpoints` and one that it writes. The newest snapshot is there before
    the one that must go for it is gone.
    """
    chain = max(checkpoints, 2)  # the head's and its parent's never go
    each = chain if taken is None else taken
    kept = min(most_kept(snapshots), days) + 1
    row = min(kept, _longest_row(snapshots) + 1)
    linked = min(each * row, each + per_day * (row - 1)) + each * (kept - row)
    alive = linked + (chain if each < chain else 0) + checkpoints + 1
    folders = min(most_kept(jobs, per_day), days * per_day) + per_day
    return (
        alive * sizes.checkpoint + (kept + 1) * sizes.ledger + kept * sizes.snapshot + folders * sizes.job
        + days * per_day * sizes.record + sizes.other
    )  # fmt: skip


def _longest_row(policy: Policy) -> int:
    """So many days in a row are kept, of a line with one a day."""
    return max(1, policy.keep_last, policy.keep_daily, int(_within_days(policy)) + 1)


def _within_days(policy: Policy) -> float:
    """At most how many days `keep_within` reaches back, on any day of any zone; 0 where it is no rule."""
    days = {"h": 1 / 24, "d": 1.0, "w": 7.0, "m": 30.6, "y": 366.0}  # 2 months are 62 days at most, 7 months 215
    spans = [(int(number), unit) for number, unit in _SPAN.findall(policy.keep_within) if int(number)]
    some_months = any(unit == "m" for _, unit in spans)
    return sum(number * days[unit] for number, unit in spans) + (some_months + 1 / 12 if spans else 0)  # clocks turn
