"""Times as people and programs write them."""

import pytest

from daemon.readers.dates import date_in, parse_time


@pytest.mark.parametrize(
    ("raw", "utc"),
    [
        ("2024-01-15T10:20:30Z", "2024-01-15T10:20:30Z"),
        ("2024-01-15T10:20:30.123456+02:00", "2024-01-15T08:20:30Z"),
        ("2024-01-15T10:20:30+0200", "2024-01-15T08:20:30Z"),
        ("2024-01-15 10:20", "2024-01-15T10:20:00Z"),
        ("2024-01-15", "2024-01-15T00:00:00Z"),
        ("2024/1/5", "2024-01-05T00:00:00Z"),
        ("15.01.2024 10:20", "2024-01-15T10:20:00Z"),
        ("Mon, 15 Jan 2024 10:20:30 +0100", "2024-01-15T09:20:30Z"),
        ("January 15, 2024", "2024-01-15T00:00:00Z"),
        ("1705314030", "2024-01-15T10:20:30Z"),
        (1705314030, "2024-01-15T10:20:30Z"),
        (1705314030.5, "2024-01-15T10:20:30Z"),
        (1705314030123, "2024-01-15T10:20:30Z"),
        ("1705314030123456", "2024-01-15T10:20:30Z"),
        ("yesterday", None),
        ("2024-02-30", None),
        ("", None),
        ("9" * 30, None),
        (1e300, None),
        (float("inf"), None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
    ],
)
def test_parse_time(raw: str | float, utc: str | None) -> None:
    assert parse_time(raw) == utc


def test_date_in_a_name() -> None:
    assert date_in("notes-2024-01-15-walk.md") == "2024-01-15T00:00:00Z"
    assert date_in("IMG_20240115_1.txt") == "2024-01-15T00:00:00Z"
    assert date_in("1234567890123.txt") is None
