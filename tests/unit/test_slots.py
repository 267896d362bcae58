"""What an expression means, and which slot of it is due: by tables, the traps of the calendar by name."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from daemon.rules.slots import Slot, due_slot, next_slot, parse, slot_on

BERLIN = ZoneInfo("Europe/Berlin")
HELSINKI = ZoneInfo("Europe/Helsinki")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def days(text: str, first: str, number: int) -> list[str]:
    """The days of so many that an expression is due on, and at what time of them."""
    expression, start = parse(text), date.fromisoformat(first)
    every = (start + timedelta(days=n) for n in range(number))
    return [f"{day:%m-%d} {expression.at:%H:%M}" for day in every if expression.on(day)]


@pytest.mark.parametrize(
    ("text", "expected"),  # of January and February 2026; the 1st of January is a Thursday
    [
        ("off", []),
        ("sun 04:30", [f"{d} 04:30" for d in ("01-04", "01-11", "01-18", "01-25", "02-01", "02-08", "02-15", "02-22")]),
        ("1st 03:30", ["01-01 03:30", "02-01 03:30"]),
        ("15th 4:00", ["01-15 04:00", "02-15 04:00"]),
        ("1st,22nd 04:00", ["01-01 04:00", "01-22 04:00", "02-01 04:00", "02-22 04:00"]),
        ("31st 03:00", ["01-31 03:00"]),
        ("last 03:00", ["01-31 03:00", "02-28 03:00"]),
        ("monthly", ["01-01 03:30", "02-01 03:30"]),
        ("Monthly  05:00", ["01-01 05:00", "02-01 05:00"]),
        ("quarterly", ["01-01 03:30"]),
        ("every 2 weeks on fri from 2026-01-02", [f"{d} 03:30" for d in ("01-02", "01-16", "01-30", "02-13", "02-27")]),
        ("every 3 weeks on mon 01:00 from 2026-01-14", ["01-19 01:00", "02-09 01:00"]),
        ("every week on sat from 2026-02-10", ["02-14 03:30", "02-21 03:30", "02-28 03:30"]),
        ("30 3 1 * *", ["01-01 03:30", "02-01 03:30"]),
        ("0 4 * * 0", [f"{d} 04:00" for d in ("01-04", "01-11", "01-18", "01-25", "02-01", "02-08", "02-15", "02-22")]),
        ("0 4 * feb sun#", None),
        ("5 4 * 2 7", [f"{d} 04:05" for d in ("02-01", "02-08", "02-15", "02-22")]),
        ("5 4 13 * fri", [f"{d} 04:05" for d in ("01-02", "01-09", "01-13", "01-16", "01-23", "01-30", "02-06",
                                                "02-13", "02-20", "02-27")]),  # either, as Vixie's cron has it
        ("5 4 */10 * fri", []),  # both, where one begins with a star: 1, 11, 21, 31
        ("0 3 28-31 feb *", ["02-28 03:00"]),
        ("*/15 22,2-4 1 * *", ["01-01 02:00", "02-01 02:00"]),
        ("0 3 5/10 * *", [f"{d} 03:00" for d in ("01-05", "01-15", "01-25", "02-05", "02-15", "02-25")]),
        ("0 3 * * fri-sun", [f"{d:%m-%d} 03:00" for d in (date(2026, 1, 1) + timedelta(days=n) for n in range(59))
                             if d.weekday() >= 4]),
        ("0 0 29 2 *", []),
    ],
)  # fmt: skip
def test_what_an_expression_means(text: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError):
            parse(text)
    else:
        assert days(text, "2026-01-01", 59) == expected


def test_weekdays_may_go_over_the_end_of_the_week() -> None:
    assert days("fri-mon 01:00", "2026-01-05", 7) == ["01-05 01:00", "01-09 01:00", "01-10 01:00", "01-11 01:00"]
    assert days("mon-fri 02:00", "2026-01-05", 7) == [f"01-{n:02} 02:00" for n in range(5, 10)]
    assert days("tue,thu", "2026-01-05", 7) == ["01-06 03:30", "01-08 03:30"]
    assert len(days("daily 03:00", "2026-01-01", 365)) == 365


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is no time that engramd understands; use daily 03:00"),
        ("sometimes", "it is no time that engramd understands"),
        ("03:00", "it is no time that engramd understands"),
        ("daily 24:00", "'24:00' is no time of day"),
        ("daily 3", "'3' is no time of day"),
        ("daily 03:00 please", "'03:00 please' is no time of day"),
        ("32nd 03:00", "a month has no 32nd"),
        ("0th 03:00", "a month has no 0th"),
        ("every 2 weeks on fri", "add such as from 2026-01-02"),
        ("every 2 weeks on fri from 2026-02-30", "'2026-02-30' is no date"),
        ("every 0 weeks on fri from 2026-01-02", "the number goes from 1 to 52"),
        ("every 2 days", "it looks like every 2 weeks on fri 03:30 from 2026-01-02"),
        ("60 3 1 * *", "'60' is no minute of cron; a minute goes from 0 to 59"),
        ("0 3 1 13 *", "'13' is no month of cron"),
        ("0 3 1 * 8", "'8' is no weekday of cron"),
        ("0 3 5-2 * *", "'5-2' is no day of cron"),
        ("*/0 3 * * *", "'*/0' is no minute of cron"),
        ("0 3 1 *", "cron has five fields (minute, hour, day, month, weekday), and here are 4"),
        ("0 3 30 2 *", "no such day ever comes"),
        ("0 3 ¹ * *", "'¹' is no day of cron"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("zone", "text", "day", "due"),
    [
        ("Europe/Helsinki", "daily 03:00", "2026-03-29", "2026-03-29T01:00"),  # 03:00 to 04:00 is left out
        ("Europe/Helsinki", "daily 03:59", "2026-03-29", "2026-03-29T01:00"),
        ("Europe/Helsinki", "daily 04:00", "2026-03-29", "2026-03-29T01:00"),
        ("Europe/Helsinki", "daily 03:00", "2026-10-25", "2026-10-25T00:00"),  # 03:00 comes twice
        ("Europe/Helsinki", "daily 03:30", "2026-10-25", "2026-10-25T00:30"),
        ("Australia/Lord_Howe", "daily 02:15", "2026-10-04", "2026-10-03T15:30"),  # half an hour is left out
        ("Australia/Lord_Howe", "daily 01:45", "2026-04-05", "2026-04-04T14:45"),  # half an hour comes twice
        ("America/Sao_Paulo", "daily 00:30", "2018-11-04", "2018-11-04T03:00"),  # midnight is left out
        ("America/Sao_Paulo", "daily 23:30", "2018-02-17", "2018-02-18T01:30"),  # 23:30 comes twice
        ("America/Nuuk", "daily 23:30", "2026-03-28", "2026-03-29T01:00"),  # the gap ends with the day
        ("Asia/Kathmandu", "daily 03:00", "2026-05-01", "2026-04-30T21:15"),
        ("Pacific/Apia", "daily 03:00", "2011-12-29", "2011-12-29T13:00"),
        ("Pacific/Apia", "daily 03:00", "2011-12-30", None),  # that day never was
        ("Pacific/Apia", "daily 03:00", "2011-12-31", "2011-12-30T13:00"),
    ],
)
def test_the_instant_of_a_slot(zone: str, text: str, day: str, due: str | None) -> None:
    slot = slot_on(parse(text), ZoneInfo(zone), date.fromisoformat(day))
    assert (slot and slot.due) == (utc(due) if due else None)
    assert slot is None or slot.key == f"{day}T{text[-5:]}"


def test_a_slot_is_due_from_its_instant_on_and_only_once() -> None:
    nightly = parse("daily 03:00")
    assert due_slot(nightly, BERLIN, utc("2026-05-02T00:59:59"), date(2026, 5, 1)) is None
    found = due_slot(nightly, BERLIN, utc("2026-05-02T01:00"), date(2026, 5, 1))
    assert found == (Slot(datetime.fromisoformat("2026-05-02T03:00"), utc("2026-05-02T01:00")), 0)
    assert due_slot(nightly, BERLIN, utc("2026-05-02T22:00"), date(2026, 5, 2)) is None
    assert due_slot(nightly, BERLIN, utc("2026-04-02T22:00"), date(2026, 5, 2)) is None  # set back


def test_missed_slots_are_one() -> None:
    found = due_slot(parse("daily 03:00"), BERLIN, utc("2026-05-09T12:00"), date(2026, 5, 1))
    assert found and (found[0].key, found[1]) == ("2026-05-09T03:00", 7)
    found = due_slot(parse("1st 03:00"), BERLIN, utc("2026-05-09T12:00"), date(2026, 1, 1))
    assert found and (found[0].key, found[1]) == ("2026-05-01T03:00", 3)


def test_what_was_due_before_it_was_in_force_is_nobodys() -> None:
    nightly = parse("daily 03:00")
    since = utc("2026-05-09T12:00")
    assert due_slot(nightly, BERLIN, utc("2026-05-10T00:00"), since=since) is None
    found = due_slot(nightly, BERLIN, utc("2026-05-10T12:00"), since=since)
    assert found and (found[0].key, found[1]) == ("2026-05-10T03:00", 0)


def test_days_that_ran_under_a_wrong_clock_are_passed_over() -> None:
    nightly, ahead = parse("daily 03:00"), {date(2026, 5, 4)}
    found = due_slot(nightly, BERLIN, utc("2026-05-04T12:00"), date(2026, 5, 3), taken=ahead)
    assert found is None
    found = due_slot(nightly, BERLIN, utc("2026-05-05T12:00"), date(2026, 5, 3), taken=ahead)
    assert found and (found[0].key, found[1]) == ("2026-05-05T03:00", 0)
    coming = next_slot(nightly, BERLIN, utc("2026-05-03T12:00"), date(2026, 5, 3), taken=ahead)
    assert coming and coming.key == "2026-05-05T03:00"


@pytest.mark.parametrize(
    ("text", "now", "last", "key"),
    [
        ("daily 03:00", "2026-05-01T00:59", None, "2026-05-01T03:00"),
        ("daily 03:00", "2026-05-01T01:00", None, "2026-05-02T03:00"),
        ("daily 20:00", "2026-05-01T02:00", "2026-05-01", "2026-05-02T20:00"),  # one a day
        ("last 03:00", "2026-01-31T12:00", "2026-01-31", "2026-02-28T03:00"),
        ("0 0 29 2 *", "2096-03-01T00:00", None, "2104-02-29T00:00"),  # 2100 has none
        ("off", "2026-05-01T00:00", None, None),
        ("daily 03:00", "9999-12-31T12:00", None, None),
    ],
)
def test_what_comes_next(text: str, now: str, last: str | None, key: str | None) -> None:
    coming = next_slot(parse(text), BERLIN, utc(now), date.fromisoformat(last) if last else None)
    assert (coming and coming.key) == key


def test_a_slot_of_the_day_before_may_come_after_midnight() -> None:
    """In Nuuk the last hour of a Saturday in March is left out: what is due in it comes with Sunday."""
    nuuk = ZoneInfo("America/Nuuk")
    coming = next_slot(parse("sat 23:30"), nuuk, utc("2026-03-29T00:59:59"))
    assert coming and (coming.key, coming.due) == ("2026-03-28T23:30", utc("2026-03-29T01:00"))
    found = due_slot(parse("sat 23:30"), nuuk, utc("2026-03-29T01:00"), date(2026, 3, 21))
    assert found and found[0].key == "2026-03-28T23:30"


def test_a_clock_of_1970_is_survived() -> None:
    nightly = parse("daily 03:00")
    assert due_slot(nightly, UTC, utc("1970-01-01T00:00"), date(2026, 5, 1)) is None
    found = due_slot(nightly, UTC, utc("2026-05-01T12:00"), None, since=utc("1970-01-01T00:00"))
    assert found and found[0].key == "2026-05-01T03:00"
    assert due_slot(nightly, ZoneInfo("Pacific/Auckland"), utc("0001-01-02T00:00")) is not None


def test_the_longest_wait_of_two_weeks_goes_on_over_the_turn_of_the_year() -> None:
    fortnight = parse("every 2 weeks on fri from 2026-01-02")
    coming, now = [], utc("2026-12-01T00:00")
    while len(coming) < 4:
        slot = next_slot(fortnight, HELSINKI, now)
        assert slot
        coming.append(slot.key[:10])
        now = slot.due
    assert coming == ["2026-12-04", "2026-12-18", "2027-01-01", "2027-01-15"]
