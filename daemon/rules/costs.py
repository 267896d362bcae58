"""What a rented machine may cost: of a job, of a month, and until when it may run for that. Pure.

A pod is only ever started with an end that the budget pays for, and it stops itself there. So what is reserved before
the start is the most that can be spent, whoever dies in between; what is settled afterwards can only be less.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

STARTUP_SECONDS = 300.0  # a pod's start and both transfers, as the origin reckons them (monthly training: ~5 min)
MARGIN = 1.25  # of an expected time: the next job is not the last one
HOME_SHARE = 0.1  # of a pod's time that is kept for bringing the result home ...
HOME_LEAST, HOME_MOST = 120.0, 1800.0  # ... in seconds
PRICE_TOLERANCE = 1.001  # a pod may cost so much of the price that was set: prices come rounded


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings, in dollars."""

    price_per_hour: float
    budget_per_job: float
    budget_per_month: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Dollars, what is reserved counted in: by this job so far, and in this month by all."""

    job: float = 0.0
    month: float = 0.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be spent on the next attempt, and how long a pod runs for that."""

    dollars: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table of costs. `seconds` is None where there are none to tell."""

    what: str
    seconds: float | None
    dollars: float


def dollars(seconds: float, price_per_hour: float) -> float:
    return max(0.0, seconds) * price_per_hour / 3600.0


def month_of(now: str) -> str:
    """The calendar month in UTC, in which RunPod's own days begin; raises ValueError where it is no time."""
    return datetime.fromisoformat(now).astimezone(UTC).strftime("%Y-%m")


def expected(tokens: int | None, tokens_per_second: float | None) -> float | None:
    """Seconds that a pod runs for a job of so many tokens; None where nobody has measured."""
    if not tokens or not tokens_per_second:
        return None
    return tokens / tokens_per_second + STARTUP_SECONDS


def allow(terms: Terms, spent: Spent, seconds: float | None, longest: float) -> Allowance | str:
    """What the next attempt of a job may cost, or the one sentence for which it waits.

    `seconds` is what it is expected to take; `longest` what it may take at most, whatever it costs. A job whose time
    nobody knows is begun only where the whole of its own budget is left in the month.
    """
    price = terms.price_per_hour
    if price <= 0.0:
        return "nothing is rented while compute.runpod.price_per_hour is 0: set what a pod costs an hour"
    job_left, month_left = terms.budget_per_job - spent.job, terms.budget_per_month - spent.month
    least = dollars(STARTUP_SECONDS + HOME_LEAST, price)
    needed = min(job_left, dollars(longest, price)) if seconds is None else dollars(seconds * MARGIN, price)
    needed = max(needed, least)
    if needed > job_left:
        return (f"it would cost about {shown(needed)}, and {shown(max(0.0, job_left))} of its "
                f"{shown(terms.budget_per_job)} are left: raise compute.runpod.budget_per_job, or train it elsewhere")
    if needed > month_left:
        return (f"this month's budget would be passed: the job may cost {shown(needed)}, and "
                f"{shown(max(0.0, month_left))} of {shown(terms.budget_per_month)} are left; it waits for the next "
                "month, or raise compute.runpod.budget_per_month")  # fmt: skip
    most = min(job_left, month_left, dollars(longest, price))
    return Allowance(most, most / price * 3600.0)


def time_to_train(pod_seconds: float) -> float:
    """Of the time that is left to a pod, how much the trainer may have: the rest, at most half, brings it home."""
    home = min(HOME_MOST, max(HOME_LEAST, pod_seconds * HOME_SHARE), pod_seconds / 2)
    return max(0.0, pod_seconds - home)


def too_dear(price_per_hour: float, cost: float | None) -> bool:
    """Whether a pod costs more than the price that the budget was reckoned with. One that tells no cost is taken at
    its word that the set price holds."""
    return cost is not None and cost > price_per_hour * PRICE_TOLERANCE


def table(seconds: float, terms: Terms) -> list[Row]:
    """The origin's table (monthly training, "Per-Run Costs") for a job that trains so long, and a year of them."""
    price = terms.price_per_hour
    training, around = dollars(seconds, price), dollars(STARTUP_SECONDS, price)
    total = training + around
    return [
        Row("GPU time", seconds, training),
        Row("pod start, up- and download", STARTUP_SECONDS, around),
        Row("a run", seconds + STARTUP_SECONDS, total),
        Row("a year of monthly runs", None, 12 * total),
        Row("a year of fortnightly runs", None, 26 * total),
    ]


def shown(amount: float) -> str:
    return f"${amount:,.2f}"
