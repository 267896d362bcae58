"""The line with the time of an entry in Google Takeout's HTML, as each language of the account writes it.

"Jan 5, 2025, 3:04:05 PM CET", "5 janv. 2025, 15:04:05 CET", "05.01.2025, 15:04:05 MEZ", "2025/01/05 15:04:05 JST":
the medium forms of the Unicode locale data (CLDR) and the short name of a zone. Times always have seconds, and
the line holds nothing else: so a prompt that speaks of a date is not taken for one.
"""

import re
import unicodedata
from datetime import datetime, timedelta, timezone, tzinfo

from daemon.readers.dates import local_to_utc

# Hours from UTC of the short names of zones. Those that mean several are taken as in the US or Western Europe,
# unless the profile's own zone has that name at that time.
_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "WET": 0, "WEZ": 0, "WEST": 1, "WESZ": 1, "BST": 1, "CET": 1, "MEZ": 1, "CEST": 2,
    "MESZ": 2, "EET": 2, "OEZ": 2, "SAST": 2, "EEST": 3, "OESZ": 3, "MSK": 3, "TRT": 3, "PKT": 5, "IST": 5.5,
    "NPT": 5.75, "ICT": 7, "WIB": 7, "HKT": 8, "SGT": 8, "AWST": 8, "JST": 9, "KST": 9, "ACST": 9.5, "AEST": 10,
    "ACDT": 10.5, "AEDT": 11, "NZST": 12, "NZDT": 13, "NST": -3.5, "NDT": -2.5, "BRT": -3, "ART": -3, "CLST": -3,
    "CLT": -4, "AST": -4, "ADT": -3, "EST": -5, "EDT": -4, "COT": -5, "PET": -5, "CST": -6, "CDT": -5, "MST": -7,
    "MDT": -6, "PST": -8, "PDT": -7, "AKST": -9, "AKDT": -8, "HST": -10,
}  # fmt: skip
# How the names of a month begin, in some twenty languages.
_MONTHS = (
    "jan ene gen ian sty oca янв січ ιαν", "feb fev fév lut şub фев лют φεβ", "mar mär mrt мар бер μαρ",
    "apr avr abr ápr kwi nis апр квіт απρ", "may mai mei mag maj máj мая май трав μαι",
    "jun juin jún giu iun cze haz июн черв ιουν", "jul juil júl lug iul lip tem июл лип ιουλ",
    "aug aoû ag ago agu ağu sie авг серп αυγ", "sep set eyl wrz szept сен вер σεπ",
    "oct okt ott out eki paź окт жовт οκτ",
    "nov kas lis ноя лист νοε", "dec déc dez dic des gru ara дек груд δεκ",
)  # fmt: skip
_WORD = r"[^\W\d_]{2,12}\.?"
_DATE = re.compile(
    rf"(?:(?P<n1>{_WORD}) (?P<d1>\d{{1,2}}),? (?P<y1>\d{{4}})"
    rf"|(?P<d2>\d{{1,2}})\.? (?:de |d['’])?(?P<n2>{_WORD}) (?:de )?(?P<y2>\d{{4}})(?: [гр]\.)?"
    r"|(?P<d3>\d{1,2})[./-] ?(?P<m3>\d{1,2})[./-] ?(?P<y3>\d{4})"
    r"|(?P<y4>\d{4})(?:[./-] ?|年)(?P<m4>\d{1,2})(?:[./-] ?|月)(?P<d4>\d{1,2})(?:日|\.)?"
    rf"|(?P<y5>\d{{4}})\. (?P<n5>{_WORD}) (?P<d5>\d{{1,2}})\.)"
    r"(?:,? (?:kl\.? |klo |um |at |at\. |às |a las |alle |à )?|T)"
    r"(?P<before>[^\W\d_]{2} ?)?(?P<h>\d{1,2})[:.](?P<mi>\d\d)[:.](?P<s>\d\d)"
    r"(?: ?(?P<after>[AaPp]\.? ?[Mm]\.?))?"
    r"(?: ?\[?(?P<zone>(?:UTC|GMT|Z)(?=$|[+-])|[^\W\d_]{2,6})?(?P<off>[+-]\d{1,2}(?::?\d\d)?)?\]?)?"
)


def _bare(text: str) -> str:
    """Without case, dots and marks above letters."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in parts if not unicodedata.combining(sign) and sign != ".")


_STEMS = {_bare(stem): number for number, stems in enumerate(_MONTHS, 1) for stem in stems.split()}
_LONGEST = max(map(len, _STEMS))
_AFTERNOON = frozenset(map(_bare, ("pm", "오후", "下午", "午後", "晚上")))
_BEFORE_NOON = frozenset(map(_bare, ("am", "오전", "上午", "午前", "凌晨", "早上")))


def time_of(line: str, zone: tzinfo | None) -> tuple[str, bool] | None:
    """(UTC, whether the line tells its zone) of a line that is a time and nothing else; None for any other.
    Where it does not tell it, the time is taken in `zone` (None: UTC)."""
    if not 14 < len(line) < 64:
        return None
    found = _DATE.fullmatch(line)
    if found is None:
        return None
    kind = next(kind for kind in "12345" if found["y" + kind])
    named = found["n" + kind] if kind in "125" else None
    month = int(found["m" + kind]) if named is None else _month(named)
    half = _bare((found["before"] or found["after"] or "").replace(" ", ""))
    if half and half not in _AFTERNOON and half not in _BEFORE_NOON:
        return None
    hour = int(found["h"])
    if half:
        hour = hour % 12 + (12 if half in _AFTERNOON else 0)
    try:
        moment = datetime(  # noqa: DTZ001
            int(found["y" + kind]), month, int(found["d" + kind]), hour, int(found["mi"]), int(found["s"])
        )
        away = _away(moment, found["zone"], found["off"], zone, "年" in line)
        utc = local_to_utc(moment if away is None else moment.replace(tzinfo=away), zone)
    except (ValueError, OverflowError):
        return None
    return None if utc is None else (utc, away is not None)


def _month(name: str) -> int:
    """Its number, 0 for no month."""
    bare = _bare(name)
    return next((_STEMS[bare[:size]] for size in range(_LONGEST, 1, -1) if bare[:size] in _STEMS), 0)


def _away(moment: datetime, name: str | None, offset: str | None, zone: tzinfo | None, chinese: bool) -> tzinfo | None:
    """The zone that the line tells; None where it tells none that is known."""
    hours: float | None = None
    if name is not None:
        if zone is not None and offset is None and moment.replace(tzinfo=zone).tzname() == name:
            return zone
        hours = 8 if name == "CST" and chinese else _ZONES.get(name.upper())
        if hours is None:
            return None
    if offset is not None:
        digits = offset[1:].replace(":", "")
        size = int(digits) if len(digits) < 3 else int(digits[:-2]) + int(digits[-2:]) / 60
        hours = (hours or 0) + (-size if offset[0] == "-" else size)
    return None if hours is None else timezone(timedelta(hours=hours))
