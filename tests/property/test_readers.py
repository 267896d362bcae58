"""Made-up conversations, written as each program writes them, are read back: no message lost or invented, the right
speaker, the right time, the right order."""

import csv
import io
import os
import re
import unicodedata
from datetime import datetime, timedelta, timezone

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemon import readers
from daemon.records import BadItem, LeftOut, Utterance
from tests.property import writers
from tests.property.writers import PLAIN_TEXTS, Said, chats

ZONES = st.integers(-12 * 4, 14 * 4).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))
EXAMPLES = int(os.environ.get("ENGRAMD_PROPERTY_EXAMPLES", "50"))  # more: others than the first fifty, at random
modest = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 50,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
UTC_DAY_FIRST = readers.Locale()
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]")

Row = tuple[str, str, str | None]


def heard(data: bytes, name: str, locale: readers.Locale = UTC_DAY_FIRST) -> dict[str, list[Utterance]]:
    """The messages by conversation; nothing else may come but what is left out."""
    found: dict[str, list[Utterance]] = {}
    for one in readers.read(io.BytesIO(data), name, len(data), None, locale=locale):
        assert not isinstance(one, BadItem), one
        if not isinstance(one, LeftOut):
            assert isinstance(one, Utterance), one
            found.setdefault(one.conversation, []).append(one)
    return found


def rows(said: list[Utterance]) -> list[Row]:
    return [(one.speaker, one.text.strip(), one.time) for one in said]


def expected(said: list[Said]) -> list[Row]:
    return [(one.who, one.text.strip(), one.utc) for one in said]


def only(found: dict[str, list[Utterance]]) -> list[Utterance]:
    assert len(found) == 1, list(found)
    return next(iter(found.values()))


def same_chats(found: dict[str, list[Utterance]], wanted: list[list[Said]]) -> None:
    assert sorted(map(rows, found.values())) == sorted(map(expected, wanted))


# ---- chats with an AI ---------------------------------------------------------------------------------


def same_with_ai(found: dict[str, list[Utterance]], wanted: list[list[Said]]) -> None:
    """The roles stand for the speakers."""
    shown = sorted([(one.role, one.text.strip(), one.time) for one in said] for said in found.values())
    assert shown == sorted(
        [(("user", "assistant")[n % 2], one.text.strip(), one.utc) for n, one in enumerate(said)] for said in wanted
    )


@modest
@given(st.data(), st.lists(chats(), min_size=1, max_size=3))
def test_chatgpt(data: st.DataObject, wanted: list[list[Said]]) -> None:
    value = [writers.chatgpt(data.draw, said, number) for number, said in enumerate(wanted)]
    export: object = value[0] if len(value) == 1 and data.draw(st.booleans()) else value
    raw = writers.dumped(export, data.draw(st.booleans()), data.draw(st.booleans()))
    found = heard(raw, "conversations.json")
    same_with_ai(found, wanted)
    again = heard(writers.zipped({"conversations.json": raw, "user.json": b"{}", "chat.html": b"<html>"}), "export.zip")
    assert {key: rows(said) for key, said in again.items()} == {key: rows(said) for key, said in found.items()}


@modest
@given(st.data(), st.lists(chats(), min_size=1, max_size=3))
def test_claude(data: st.DataObject, wanted: list[list[Said]]) -> None:
    value = [writers.claude(data.draw, said, number) for number, said in enumerate(wanted)]
    same_with_ai(heard(writers.dumped(value, data.draw(st.booleans())), "conversations.json"), wanted)


# ---- chats between people -----------------------------------------------------------------------------


@modest
@given(st.data(), st.lists(chats(), min_size=1, max_size=3), ZONES, st.booleans())
def test_telegram(data: st.DataObject, wanted: list[list[Said]], zone: timezone, with_unix: bool) -> None:
    value = [writers.telegram(data.draw, said, number, zone, with_unix) for number, said in enumerate(wanted)]
    alone = len(value) == 1 and data.draw(st.booleans())
    export = value[0] if alone else {"about": "x", "chats": {"about": "y", "list": value}}
    if not alone and data.draw(st.booleans()):
        export = {"about": "x", "personal_information": {"user_id": 7001, "first_name": "A"}, **export}
    found = heard(writers.dumped(export, data.draw(st.booleans())), "result.json", readers.Locale(zone))
    same_chats(found, wanted)
    assert all(one.zone_known == with_unix for said in found.values() for one in said)
    for said in found.values():
        assert [one.message for one in said] == [str(number) for number in range(1, len(said) + 1)]
        for one in said:
            assert one.owner == (one.speaker_id == "user7001" if "personal_information" in export else None)


@modest
@given(st.data(), chats())
def test_discord(data: st.DataObject, wanted: list[Said]) -> None:
    raw = writers.dumped(writers.discord(data.draw, wanted), data.draw(st.booleans()), data.draw(st.booleans()))
    found = only(heard(raw, "Direct Messages - x [9].json"))
    assert rows(found) == expected(wanted)
    assert [one.message for one in found] == [str(10**17 + place) for place in range(len(wanted))]


@modest
@given(st.lists(chats(), min_size=1, max_size=3))
def test_slack(wanted: list[list[Said]]) -> None:
    channels = {f"channel-{number}": said for number, said in enumerate(wanted)}
    same_chats(heard(writers.slack(channels), "export.zip"), wanted)


@modest
@given(st.data(), chats(people=3))
def test_facebook_and_its_broken_letters(data: st.DataObject, wanted: list[Said]) -> None:
    raw = writers.dumped(writers.facebook(wanted, "tea_1"), data.draw(st.booleans()), data.draw(st.booleans()))
    assert rows(only(heard(raw, "message_1.json"))) == expected(wanted)


@modest
@given(st.data(), chats(people=3), st.integers(1, 11))
def test_facebook_in_several_files(data: st.DataObject, wanted: list[Said], cut: int) -> None:
    newest, oldest = wanted[cut:], wanted[:cut]
    parts = [part for part in (newest, oldest) if part]
    files = {}
    for number, part in enumerate(parts, 1):
        raw = writers.dumped(writers.facebook(part, "tea_1"), data.draw(st.booleans()))
        files[f"messages/inbox/tea_1/message_{number}.json"] = raw
    assert rows(only(heard(writers.zipped(files), "facebook.zip"))) == expected(wanted)


@modest
@given(st.data(), chats(texts=PLAIN_TEXTS))
def test_mail(data: st.DataObject, wanted: list[Said]) -> None:
    found = only(heard(writers.mbox(wanted, data.draw), "All mail.mbox"))
    ids = writers._ids(wanted)
    assert [(one.speaker_id, one.text, one.time) for one in found] == [
        (f"p{ids[one.who]}@example.org", one.text, one.utc) for one in wanted
    ]


@modest
@given(
    chats(), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]), st.booleans(),
    st.sampled_from(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p"]), ZONES,
)  # fmt: skip
def test_csv(wanted: list[Said], delimiter: str, end: str, shuffled: bool, form: str, zone: timezone) -> None:
    file = io.StringIO()
    table = csv.writer(file, delimiter=delimiter, lineterminator=end)
    header = ["text", "speaker", "date"] if shuffled else ["date", "speaker", "text"]
    table.writerow(header)
    for one in wanted:
        moment = one.when if "Z" in form else one.when.astimezone(zone)
        row = {"date": moment.strftime(form), "speaker": one.who, "text": one.text}
        table.writerow([row[key] for key in header])
    locale = readers.Locale(zone, "%d/%m" in form)
    assert rows(only(heard(file.getvalue().encode(), "chat.csv", locale))) == expected(wanted)


# ---- WhatsApp -----------------------------------------------------------------------------------------

_FORMS = (
    "%d/%m/%Y, %H:%M", "%m/%d/%y, %I:%M %p", "%d.%m.%y, %H:%M", "%Y-%m-%d, %H:%M", "%d/%m/%y %H:%M", "%Y/%m/%d, %H:%M",
    "%m/%d/%y, %I:%M\u202f%p", "%d/%m/%Y, %I:%M\u202f%p", "%d-%m-%Y %H:%M",
)  # fmt: skip
_IOS_FORMS = (
    "%d.%m.%y, %H:%M:%S", "%m/%d/%y, %I:%M:%S\u202f%p", "%d/%m/%Y, %H:%M:%S", "%Y-%m-%d, %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
)  # fmt: skip
_LIKE_A_HEADER = re.compile(r"^\W*\d{1,4}[/.-]\d{1,2}[/.-]\d", re.M)


_FOR_WHATSAPP = writers.TEXTS.filter(
    lambda text: not _LIKE_A_HEADER.search(text) and text.strip() == text and text != "null"
)  # WhatsApp itself writes "null" for what it could not export


def told(text: str) -> str:
    """What of a text counts: WhatsApp itself puts invisible marks and odd blanks into texts."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


@modest
@given(
    chats(people=3, texts=_FOR_WHATSAPP),
    st.sampled_from([*((form, False) for form in _FORMS), *((form, True) for form in _IOS_FORMS)]),
    ZONES, st.sampled_from(["\n", "\r\n"]), st.booleans(),
)  # fmt: skip
def test_whatsapp(wanted: list[Said], form: tuple[str, bool], zone: timezone, end: str, packed: bool) -> None:
    text = writers.whatsapp(wanted, form[0], form[1], zone).replace("\n", end)
    locale = readers.Locale(zone, form[0].startswith("%d"))
    data, name = text.encode(), "_chat.txt" if form[1] else "WhatsApp Chat with Bo.txt"
    if packed:
        data, name = writers.zipped({name: data, "00000001-PHOTO.jpg": b"\xff\xd8\xff"}), "WhatsApp Chat - Bo.zip"
    found = only(heard(data, name, locale))
    seconds = 0 if form[1] else 60
    assert [(one.speaker, told(one.text), one.time) for one in found] == [
        (one.who, told(one.text), _cut(one.when, seconds)) for one in wanted
    ]
    assert not any(one.zone_known for one in found)


def _cut(moment: datetime, seconds: int) -> str:
    """UTC to the minute where the export has no seconds. (All zones are whole quarters of an hour.)"""
    return f"{moment.replace(second=0) if seconds else moment:%Y-%m-%dT%H:%M:%SZ}"


# ---- Signal, iMessage, Gemini -------------------------------------------------------------------------


@modest
@given(chats(people=3, texts=PLAIN_TEXTS, step=60), ZONES, st.booleans())
def test_signal(wanted: list[Said], zone: timezone, comma: bool) -> None:
    me = wanted[0].who
    data = writers.signal_chat(wanted, me, zone, comma).encode()
    found = only(heard(data, "Bo.md", readers.Locale(zone)))
    assert [(one.speaker, one.owner, told(one.text), one.time) for one in found] == [
        ("Me" if one.who == me else one.who, one.who == me, told(one.text), _cut(one.when, 60)) for one in wanted
    ]


@modest
@given(chats(people=3, texts=PLAIN_TEXTS), ZONES, st.booleans())
def test_imessage(wanted: list[Said], zone: timezone, read: bool) -> None:
    me = wanted[0].who
    found = only(heard(writers.imessage(wanted, me, zone, read).encode(), "Bo.txt", readers.Locale(zone)))
    assert [(one.speaker, one.owner, told(one.text), one.time) for one in found] == [
        ("Me" if one.who == me else one.who, one.who == me, told(one.text), one.utc) for one in wanted
    ]


@modest
@given(st.data(), chats(texts=PLAIN_TEXTS))
def test_gemini(data: st.DataObject, wanted: list[Said]) -> None:
    """Each prompt before its answer, the oldest first; where conversations begin is the reader's to say."""
    wanted = wanted[: len(wanted) // 2 * 2]
    found = heard(writers.dumped(writers.gemini(wanted), data.draw(st.booleans())), "MyActivity.json")
    every = [one for said in found.values() for one in said]
    every.sort(key=lambda one: one.time or "")  # stable: within a conversation the order stays
    assert [(one.role, told(one.text), one.time) for one in every] == [
        (("user", "assistant")[n % 2], told(one.text), wanted[n - n % 2].utc) for n, one in enumerate(wanted)
    ]
