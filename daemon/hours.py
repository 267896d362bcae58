"""Windows of hours as a person writes them: `22:00-07:00`, over midnight too, with days in front or without, such as
`mon-fri 22:00-07:00` or `sat,sun 00:00-24:00`. The days are those on which a window begins."""

import re
from dataclasses import dataclass

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")  # datetime.weekday()
_FORM = re.compile(r"(?:([a-z]{3}(?:[-,][a-z]{3})*) )?(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes after midnight; `end` is at most a day behind `begin`, so it may lie beyond 24 h."""

    days: frozenset[int]
    begin: int
    end: int


def parse(text: str) -> Window:
    """Raises ValueError with a sentence."""
    found = _FORM.fullmatch(" ".join(text.strip().lower().split()))
    if found is None:
        raise ValueError(f'{text!r} is no window; one looks like "22:00-07:00" or "mon-fri 22:00-07:00"')
    begin, end = (int(found[n]) * 60 + int(found[n + 1]) for n in (2, 4))
    if begin >= 1440 or end > 1440 or int(found[3]) > 59 or int(found[5]) > 59:
        raise ValueError(f"{text!r} is no window: a day has the hours 00:00 to 24:00")
    if begin == end:
        raise ValueError(f"{text!r} is no window: it ends when it begins; a whole day is 00:00-24:00")
    return Window(_days(found[1], text), begin, end if end > begin else end + 1440)


def _days(text: str | None, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in (text or "mon-sun").split(","):
        first, _, last = part.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ValueError(f"{whole!r} is no window: its days are {', '.join(_DAYS)}")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return frozenset(found)
