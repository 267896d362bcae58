"""Times as people and programs write them, turned into one UTC form. What cannot be read is None."""

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NUMBER = re.compile(r"-?\d{1,19}(?:\.\d{1,9})?")
_ISO = re.compile(
    r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})"
    r"(?:[T t,]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d{1,9})?)?\s*(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?)?"
)
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:[T ,]+(\d{1,2}):(\d{2})(?::(\d{2}))?)?")
_WORDS = ("%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y", "%A, %d %B %Y", "%A, %B %d, %Y")
_RFC_2822 = re.compile(
    r"(?:[A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}(?::\d{2})? (?:[+-]\d{4}|GMT|UTC)"
)
_IN_TEXT = re.compile(
    r"(?<!\d)(\d{4})[-_.](\d{2})[-_.](\d{2})(?!\d)|(?<!\d)((?:19|20)\d{2})(\d{2})(\d{2})(?!\d)"
)


def parse_time(raw: str | int | float, zone: tzinfo | None = None) -> str | None:
    """UTC for ISO 8601 and its relatives, unix seconds to nanoseconds, RFC 2822, and dates with month names.

    A time without a zone is taken in `zone` (None: UTC); a date alone is midnight there.
    """
    return zoned_time(raw, zone)[0]


def zoned_time(raw: str | int | float, zone: tzinfo | None = None) -> tuple[str | None, bool]:
    """(UTC, whether the raw text itself says its zone) as `parse_time` does it."""
    if isinstance(raw, (int, float)):
        return as_utc(raw), True
    text = raw.strip()
    if len(text) > 64:
        return None, False
    try:
        if (text.isdigit() and len(text) != 8) or _NUMBER.fullmatch(text):
            return as_utc(float(text)), True
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        found = _tolerant(text)
        if found is None:
            return None, False
        moment = found
    return local_to_utc(moment, zone), moment.tzinfo is not None


def local_to_utc(moment: datetime, zone: tzinfo | None) -> str | None:
    """UTC of a moment; one without a zone is taken in `zone` (None: UTC). None outside 1900 to 2200."""
    return _within(moment.replace(tzinfo=zone) if moment.tzinfo is None and zone is not None else moment)


def as_utc(number: float) -> str | None:
    """Unix time; the unit (s, ms, us, ns) follows from the size."""
    size = abs(number)
    if not size < 1e20:  # NaN and infinity as well
        return None
    for limit, unit in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9)):
        if size < limit:
            try:
                return _within(_EPOCH + timedelta(seconds=number / unit))
            except OverflowError:
                return None
    return None


def date_in(text: str) -> str | None:
    """The first date (2024-01-15, 2024_01_15, 20240115) in a file name or a heading."""
    for found in _IN_TEXT.finditer(text):
        year, month, day = (found[1], found[2], found[3]) if found[1] else (found[4], found[5], found[6])
        try:
            return _within(datetime(int(year), int(month), int(day), tzinfo=UTC))
        except ValueError:
            continue
    return None


def _tolerant(text: str) -> datetime | None:
    """With its zone where the text names one, else without."""
    try:
        if found := _ISO.fullmatch(text):
            return _built(found, (1, 2, 3), found[7])
        if found := _DAY_FIRST.fullmatch(text):
            return _built(found, (3, 2, 1), None)
        if _RFC_2822.fullmatch(text):
            from email.utils import parsedate_to_datetime

            return parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    for form in _WORDS:
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007 (a date alone has no zone)
        except ValueError:
            continue
    return None


def _built(found: re.Match[str], order: tuple[int, int, int], zone: str | None) -> datetime:
    year, month, day = (int(found[group]) for group in order)
    hour, minute, second = (int(found[group] or 0) for group in (4, 5, 6))
    moment = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001
    if zone is None:
        return moment
    if zone[0] not in "+-":
        return moment.replace(tzinfo=UTC)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    away = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return moment.replace(tzinfo=timezone(away if zone[0] == "+" else -away))


def _within(moment: datetime) -> str | None:
    try:
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    if not _FIRST <= moment < _LAST:
        return None
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"  # of one width: sorts by time
