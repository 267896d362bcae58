"""The retention policy against a reference that was written from its sentences in another way: by the calendar."""

import calendar
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon.rules.retention import Item, Sizes, bound, decide, most_kept

CASES = 10_000
ZONES = ("UTC", "Europe/Helsinki", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu")


@dataclass(frozen=True)
class Keep:
    keep_last: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: str = ""


def keep(counts: list[int], within: str) -> Keep:
    last, daily, weekly, monthly, yearly = counts
    return Keep(last, daily, weekly, monthly, yearly, within)


def reference(items: list[Item], policy: Keep, now: datetime, zone: ZoneInfo, protected: set[str]) -> set[str]:
    """Names that stay: for each rule go back day by day (week by week, ...) from today and take what that day has."""
    newest = sorted(items, key=lambda item: (item.time, item.name))
    past = [item for item in newest if item.time <= now]
    stay = {item.name for item in newest if item.time > now} | (protected & {item.name for item in items})
    stay |= {item.name for item in past[max(0, len(past) - policy.keep_last) :]} if policy.keep_last else set()
    if past:
        stay.add(past[-1].name)
    by_day: dict[date, str] = {}
    for item in past:
        by_day[item.time.astimezone(zone).date()] = item.name  # later ones overwrite
    rules: tuple[tuple[int, Callable[[date], int]], ...] = (
        (policy.keep_daily, lambda day: day.toordinal()),
        (policy.keep_weekly, lambda day: (day - timedelta(days=day.weekday())).toordinal()),
        (policy.keep_monthly, lambda day: day.year * 12 + day.month),
        (policy.keep_yearly, lambda day: day.year),
    )
    for count, label in rules:
        found: dict[int, str] = {}
        for day in sorted(by_day):
            found[label(day)] = by_day[day]
        for period in sorted(found)[max(0, len(found) - count) :] if count else []:
            stay.add(found[period])
    if policy.keep_within:
        begin = begin_of(policy.keep_within, now, zone)
        stay |= {item.name for item in past if item.time >= begin}
    return stay


def begin_of(within: str, now: datetime, zone: ZoneInfo) -> datetime:
    """Back month by month, then day by day, on a calendar and a clock on the wall; then hours as they pass."""
    much = dict.fromkeys("hdwmy", 0)
    number = ""
    for sign in within:
        if sign in much:
            much[sign] += int(number)
            number = ""
        else:
            number += sign
    local = now.astimezone(zone)
    year, month = local.year, local.month
    for _ in range(much["m"] + 12 * much["y"]):
        year, month = (year - 1, 12) if month == 1 else (year, month - 1)
    day = date(year, month, min(local.day, calendar.monthrange(year, month)[1]))
    for _ in range(much["d"] + 7 * much["w"]):
        day -= timedelta(days=1)
    wall = datetime.combine(day, local.time(), zone).replace(fold=local.fold)
    return wall.astimezone(UTC) - timedelta(hours=much["h"])


def test_ten_thousand_cases_equal_the_reference() -> None:
    dice = random.Random(4)
    kept = removed = 0
    for case in range(CASES):
        zone = ZoneInfo(dice.choice(ZONES))
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(3 * 365 * 86400))
        reach = dice.choice((3, 40, 400, 2000))
        step = dice.choice((1, 3600, 86400))  # of a whole day: many at the same moment, and at `now` itself
        items = [
            Item(f"{n:03}", now - timedelta(seconds=step * dice.randrange(-86400 // step, reach * 86400 // step)))
            for n in range(dice.randrange(30))
        ]
        spans = [f"{dice.randrange(1, 60)}{unit}" for unit in "ymwdh" if dice.random() < 0.3]
        within = "".join(spans) if dice.random() < 0.3 else ""
        counts = [dice.randrange(6) if dice.random() < 0.5 else 0 for _ in range(5)]
        policy = keep(counts, within)
        if not any(counts) and not within:
            policy = Keep(keep_last=1)
        protected = {item.name: "pinned" for item in items if dice.random() < 0.1}
        decisions = decide(items, policy, now, zone, protected)
        stay = {decision.name for decision in decisions if decision.keep}
        assert stay == reference(items, policy, now, zone, set(protected)), (case, policy, now, zone)
        assert len(decisions) == len(items) and all(decision.reasons for decision in decisions)
        kept, removed = kept + len(stay), removed + len(items) - len(stay)
    assert kept > 10_000 and removed > 10_000  # both outcomes were tried


def test_an_empty_policy_is_refused() -> None:
    for policy in (Keep(), Keep(keep_within="0d")):
        with pytest.raises(ValueError, match="would remove everything"):
            decide([], policy, datetime.now(UTC), ZoneInfo("UTC"))


def test_the_same_moment_tells_by_the_name_and_a_period_of_the_future_has_no_slot() -> None:
    now = datetime(2026, 3, 5, 12, tzinfo=UTC)
    items = [Item("a", now - timedelta(days=1)), Item("b", now - timedelta(days=1)), Item("z", now + timedelta(days=9))]
    decisions = {one.name: one for one in decide(items, Keep(keep_daily=1), now, ZoneInfo("UTC"))}
    assert decisions["b"].reasons == ("the last of its day",) and not decisions["a"].keep
    assert decisions["z"].reasons == ("its date is in the future",)


def test_a_day_is_the_homes() -> None:
    """22:30 and 23:30 in UTC are two days in Berlin's winter and one in New York's."""
    items = [Item(f"at {hour}", datetime(2026, 1, 5, hour, 30, tzinfo=UTC)) for hour in (22, 23)]
    now = datetime(2026, 1, 9, tzinfo=UTC)
    for zone, kept in (("Europe/Berlin", 2), ("America/New_York", 1)):
        decisions = decide(items, Keep(keep_daily=7), now, ZoneInfo(zone))
        assert sum(decision.keep for decision in decisions) == kept, zone


def test_no_more_are_kept_than_was_said() -> None:
    dice = random.Random(9)
    for _ in range(150):
        within = dice.choice(("", "9d", "3w", "2m", "7m", "1y", "36h"))
        policy = keep([dice.randrange(20) for _ in range(5)], within)
        if policy == Keep():
            continue
        now = datetime(2026, 11, 21, 3, tzinfo=UTC) + timedelta(days=dice.randrange(800))
        per_day = dice.choice((1, 3))
        items = [Item(f"{n:04}", now - timedelta(days=1) * n / per_day) for n in range(500 * per_day)]
        kept = sum(decision.keep for decision in decide(items, policy, now, ZoneInfo(dice.choice(ZONES))))
        assert kept <= most_kept(policy, per_day), (policy, now)


def test_the_bound_of_a_year_covers_any_line_of_nights() -> None:
    """Jobs and snapshots on paper: what is alive at the worst moment of each night against what was said before."""
    dice = random.Random(11)
    for _ in range(12):
        taken_of = Keep(dice.randrange(4), dice.randrange(15), dice.randrange(9), dice.randrange(13), dice.randrange(3))
        folders = Keep(keep_last=dice.randrange(1, 40), keep_monthly=dice.randrange(13))
        most, per_day = dice.randrange(1, 6), dice.choice((1, 1, 4))
        taken = dice.choice((None, 1))
        sizes = Sizes(checkpoint=1000, job=100, record=3, ledger=50, snapshot=7)
        if taken_of == Keep():
            continue
        limit = bound(taken_of, folders, sizes, checkpoints=most, days=365, per_day=per_day, taken=taken)
        assert peak_on_paper(taken_of, folders, sizes, most, per_day, taken) <= limit, (taken_of, folders, most)


Snapshots = dict[str, tuple[datetime, set[int]]]  # when, and which checkpoints it links to


def on_paper(snapshots: Snapshots, jobs: dict[str, datetime], chain: list[int], sizes: Sizes, *, at_work: int) -> int:
    alive = set(chain).union(*(points for _, points in snapshots.values()))
    return (
        (len(alive) + at_work) * sizes.checkpoint + len(snapshots) * (sizes.ledger + sizes.snapshot) + sizes.ledger
        + len(jobs) * sizes.job + int(max(jobs)) * sizes.record
    )  # fmt: skip


def peak_on_paper(taken_of: Keep, folders: Keep, sizes: Sizes, most: int, per_day: int, taken: int | None) -> int:
    zone, now = ZoneInfo("Europe/Helsinki"), datetime(2026, 1, 1, 3, tzinfo=UTC)
    snapshots: Snapshots = {}
    jobs: dict[str, datetime] = {}
    chain: list[int] = []
    peak = 0
    for night in range(365):
        for number in range(night * per_day, (night + 1) * per_day):
            jobs[f"{number:05}"] = now - timedelta(minutes=(night + 1) * per_day - number)
            peak = max(peak, on_paper(snapshots, jobs, chain, sizes, at_work=most + 1))
            chain = [*chain, number][-max(most, 2) :]
        snapshots[f"{night:05}"] = (now, set(chain if taken is None else chain[-taken:]))
        peak = max(peak, on_paper(snapshots, jobs, chain, sizes, at_work=0))
        for found, policy in ((snapshots, taken_of), (jobs, folders)):
            items = [Item(name, value[0] if isinstance(value, tuple) else value) for name, value in found.items()]
            for decision in decide(items, policy, now, zone):
                if not decision.keep:
                    del found[decision.name]
        now += timedelta(days=1)
    return peak
