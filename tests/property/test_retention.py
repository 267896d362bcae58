"""The retention policy against a reference that was written from its sentences in another way: by the calendar."""

import calendar
import random
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon.rules.retention import Item, decide, most_kept

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
    for count, label in (
        (policy.keep_daily, lambda day: day.toordinal()),
        (policy.keep_weekly, lambda day: (day - timedelta(days=day.weekday())).toordinal()),
        (policy.keep_monthly, lambda day: day.year * 12 + day.month),
        (policy.keep_yearly, lambda day: day.year),
    ):
        found: dict[int, str] = {}
        for day in sorted(by_day):
            found[label(day)] = by_day[day]
        for period in sorted(found)[max(0, len(found) - count) :] if count else []:
            stay.add(found[period])
    if policy.keep_within:
        number, unit = int(policy.keep_within[:-1]), policy.keep_within[-1]
        local = now.astimezone(zone)
        if unit == "h":
            begin = now - timedelta(hours=number)
        elif unit in "dw":
            begin = local - timedelta(days=number * (7 if unit == "w" else 1))
        else:
            year, month = local.year, local.month
            for _ in range(number * (12 if unit == "y" else 1)):
                year, month = (year - 1, 12) if month == 1 else (year, month - 1)
            begin = local.replace(year=year, month=month, day=min(local.day, calendar.monthrange(year, month)[1]))
        stay |= {item.name for item in past if number and item.time >= begin}
    return stay


def test_ten_thousand_cases_equal_the_reference() -> None:
    dice = random.Random(4)
    kept = removed = 0
    for case in range(CASES):
        zone = ZoneInfo(dice.choice(ZONES))
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(3 * 365 * 86400))
        reach = dice.choice((3, 40, 400, 2000))
        items = [
            Item(f"{n:03}", now - timedelta(seconds=dice.randrange(-86400, reach * 86400)), dice.randrange(9))
            for n in range(dice.randrange(30))
        ]
        within = f"{dice.randrange(1, 60)}{dice.choice('hdwmy')}" if dice.random() < 0.3 else ""
        counts = [dice.randrange(6) if dice.random() < 0.5 else 0 for _ in range(5)]
        policy = Keep(*counts, within)
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


def test_no_more_are_kept_than_was_said() -> None:
    dice = random.Random(9)
    for _ in range(300):
        policy = Keep(*(dice.randrange(20) for _ in range(5)), dice.choice(("", "9d", "3w", "2m")))
        if policy == Keep():
            continue
        now = datetime(2026, 11, 21, 3, tzinfo=UTC) + timedelta(days=dice.randrange(800))
        items = [Item(f"{n:04}", now - timedelta(days=n)) for n in range(900)]
        kept = sum(decision.keep for decision in decide(items, policy, now, ZoneInfo("UTC")))
        assert kept <= most_kept(policy)
