"""WhatsApp: headers, times and names in the forms of its regions, and files that look like its and are not."""

import io
import zipfile
from datetime import timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon import readers
from daemon.readers import whatsapp
from daemon.records import BadItem, LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))
NAME = "WhatsApp Chat with Anna.txt"


def heard(text: str | bytes, name: str = NAME, day_first: bool | None = None, zone: Any = ZONE) -> list[Any]:
    raw = text if isinstance(text, bytes) else text.encode()
    locale = readers.Locale(zone, day_first)
    return list(readers.read(io.BytesIO(raw), name, len(raw), None, locale=locale))


def said(text: str | bytes, **more: Any) -> list[Utterance]:
    return [one for one in heard(text, **more) if isinstance(one, Utterance)]


def clocks(text: str | bytes, **more: Any) -> list[str | None]:
    return [one.clock for one in said(text, **more)]


def claimed(text: str, name: str) -> bool:
    """Whether anything in a file is taken for a message of WhatsApp."""
    try:
        return any(isinstance(one, Utterance) and one.source == "whatsapp" for one in heard(text, name))
    except Refused:
        return False


# ---- forms of a header ------------------------------------------------------------------------------

AT_NIGHT = [
    "12/31/23, 9:41 PM - Ann: Hi", "12/31/23, 9:41\u202fPM - Ann: Hi", "12/31/23, 9:41\u00a0pm - Ann: Hi",
    "31/12/2023, 21:41 - Ann: Hi", "31/12/2023 21:41 - Ann: Hi", "31.12.23, 21:41 - Ann: Hi",
    "31-12-2023 21:41 - Ann: Hi", "2023-12-31 21:41 - Ann: Hi", "2023-12-31, 9:41 p.m. - Ann: Hi",
    "31/12/23, 9:41 p. m. - Ann: Hi", "31/12/23 9:41\u202fp.\u00a0m. - Ann: Hi", "31/12/23 21.41 - Ann: Hi",
    "31.12.2023 klo 21.41 - Ann: Hi", "31/12/2023 à 21:41 - Ann: Hi", "31.12.2023 kl. 21.41 - Ann: Hi",
    "31. 12. 2023 21:41 - Ann: Hi", "31. 12. 2023. 21:41 - Ann: Hi", "2023. 12. 31. 21:41 - Ann: Hi",
    "2023. 12. 31. 오후 9:41 - Ann: Hi", "2023. 12. 31. du. 9:41 - Ann: Hi", "2023/12/31 21:41 - Ann: Hi",
    "2023/12/31 下午9:41 - Ann: Hi", "2023/12/31, 午後9:41 - Ann: Hi", "2023/12/31 晚上9:41 - Ann: Hi",
    "31.12.23 г., 21:41 - Ann: Hi", "31.12.23 г., 21:41 ч. - Ann: Hi", "31/12/2023, 9:41 CH - Ann: Hi",
    "31.12.2023 ÖS 9:41 - Ann: Hi", "31.12.2023 9:41 ip. - Ann: Hi", "31/12/2023, 9:41 PTG - Ann: Hi",
    "31/12/23, 9:41 μ.μ. - Ann: Hi", "31/12/2023, 9:41 da tarde - Ann: Hi", "31.12.2023, 9:41 пп - Ann: Hi",
    "\u200f٣١\u200f/١٢\u200f/٢٠٢٣، ٩:٤١ م - Ann: Hi", "۲۰۲۳/۱۲/۳۱، ۲۱:۴۱ - Ann: Hi",
    "۲۰۲۳/۱۲/۳۱، ۹:۴۱ ب.ظ. - Ann: Hi",
    "31/12/2023, 9:41 अपराह्न - Ann: Hi", "31/12/2566 21:41 - Ann: Hi", "31/12/66 21:41 - Ann: Hi",
    "31/12/2023, 21:41 Uhr - Ann: Hi", "31.12.2023, 9:41 e pasdites - Ann: Hi",
    "\ufeff31.12.23, 21:41 - Ann: Hi",
]  # fmt: skip
AT_NIGHT_IOS = [
    "[31.12.23, 21:41:05] Ann: Hi", "[31/12/2023, 21:41:05] Ann: Hi", "[12/31/23, 9:41:05 PM] Ann: Hi",
    "[12/31/23, 9:41:05\u202fPM] Ann: Hi", "[31/12/23 9:41:05 p. m.] Ann: Hi", "[31-12-23 21:41:05] Ann: Hi",
    "[31.12.2023 klo 21.41.05] Ann: Hi", "[31/12/2023 à 21:41:05] Ann: Hi", "[31.12.2023 kl. 21.41.05] Ann: Hi",
    "[31.12.23 um 21:41:05] Ann: Hi", "[31/12/2023, 下午9:41:05] Ann: Hi", "[2023/12/31 21:41:05] Ann: Hi",
    "[2023. 12. 31. 오후 9:41:05] Ann: Hi", "[2023-12-31, 9:41:05 PM] Ann: Hi", "[2023-12-31 21:41:05] Ann: Hi",
    "[\u200f٣١\u200f/١٢\u200f/٢٠٢٣، ٩:٤١:٠٥ م] Ann: Hi", "\u200e[31.12.23, 21:41:05] Ann: Hi",
    "[31/12/2023, 9:41:05 nachm.] Ann: Hi", "[31/12/2566 BE 21:41:05] Ann: Hi", "[31/12/2566, 21:41:05] Ann: Hi",
    "31/12/23 21:41:05: Ann: Hi", "31/12/2023, 21:41:05: Ann: Hi", "12/31/23, 9:41:05 PM: Ann: Hi",
]  # fmt: skip


@pytest.mark.parametrize("line", AT_NIGHT)
def test_a_header_of_android(line: str) -> None:
    (one,) = said(line)
    assert (one.speaker, one.text, one.clock, one.time) == ("Ann", "Hi", "2023-12-31T21:41:00", "2023-12-31T19:41:00Z")


@pytest.mark.parametrize("line", AT_NIGHT_IOS)
def test_a_header_of_ios(line: str) -> None:
    (one,) = said(line, name="_chat.txt")
    assert (one.speaker, one.text, one.clock, one.time) == ("Ann", "Hi", "2023-12-31T21:41:05", "2023-12-31T19:41:05Z")


@pytest.mark.parametrize("line", [
    "31/12/23, 9:41 AM - Ann: Hi", "31/12/23, 9:41 am - Ann: Hi", "31/12/23, 9:41 a. m. - Ann: Hi",
    "31.12.23 г., 9:41 ч. - Ann: Hi", "31/12/2023, 9:41 SA - Ann: Hi", "31/12/2023, 9:41 PG - Ann: Hi",
    "31.12.2023 ÖÖ 9:41 - Ann: Hi", "31.12.2023 9:41 ap. - Ann: Hi", "2023/12/31 早上9:41 - Ann: Hi",
    "2023. 12. 31. de. 9:41 - Ann: Hi", "۲۰۲۳/۱۲/۳۱، ۹:۴۱ ق.ظ. - Ann: Hi", "31/12/23, 9:41 π.μ. - Ann: Hi",
    "31/12/2023 à 9:41 - Ann: Hi", "31/12/2023 at 9:41 AM - Ann: Hi",
    "\u200f٣١\u200f/١٢\u200f/٢٠٢٣، ٩:٤١ ص - Ann: Hi",
    "31.12.2023, 9:41 e paradites - Ann: Hi", "31/12/2023, 9:41 da manhã - Ann: Hi", "31.12.2023, 9:41 дп - Ann: Hi",
])  # fmt: skip
def test_a_morning(line: str) -> None:
    assert clocks(line) == ["2023-12-31T09:41:00"]


def test_noon_and_midnight_of_the_clock_of_twelve_hours() -> None:
    halves = ["AM", "PM", "a. m.", "下午", "中午"]
    text = "".join(f"13/1/24, 12:0{n} {half} - Ann: Hi\n" for n, half in enumerate(halves))
    assert clocks(text) == [f"2024-01-13T{hour}:0{n}:00" for n, hour in enumerate(["00", "12", "00", "12", "12"])]
    assert clocks("13/1/24 at 12:30 - Ann: Hi") == ["2024-01-13T12:30:00"]
    assert clocks("2024/1/13 凌晨12:30 - Ann: Hi") == ["2024-01-13T00:30:00"]
    assert clocks("2024/1/13 中午11:30 - Ann: Hi") == ["2024-01-13T11:30:00"]


def test_an_hour_that_has_a_word_which_is_not_known_and_may_be_either_half_is_said() -> None:
    got = heard("31/12/2023, 9:41 xyz - Ann: Hi\n31/12/2023, 9:42 xyz - Ben: Ho\n")
    assert isinstance(got[-1], LeftOut) and "'xyz'" in got[-1].reason
    assert [one.clock for one in got[:-1]] == ["2023-12-31T09:41:00", "2023-12-31T09:42:00"]


# ---- the order of day and month ---------------------------------------------------------------------


def test_one_late_line_decides_for_the_whole_file() -> None:
    early = "".join(f"{d}/{m}/24, 10:00 - Ann: {m} {d}\n" for m in (1, 2, 3) for d in (1, 5, 9))
    assert clocks(early + "13/4/24, 10:00 - Ann: x\n")[1] == "2024-01-05T10:00:00"
    turned = "".join(f"{m}/{d}/24, 10:00 - Ann: {m} {d}\n" for m in (1, 2, 3) for d in (1, 5, 9))
    assert clocks(turned + "4/13/24, 10:00 - Ann: x\n")[1] == "2024-01-05T10:00:00"


def test_a_late_line_decides_behind_many_days_of_low_numbers() -> None:
    lines = [f"{m}/{d}/{y}, 10:00 - Ann: x" for y in (2019, 2020) for m in range(1, 13) for d in range(1, 13)]
    text = "\n".join([*lines, "1/25/2021, 10:00 - Ann: last"])
    assert clocks(text)[12] == "2019-02-01T10:00:00"
    assert clocks(text)[-1] == "2021-01-25T10:00:00"


def test_time_going_forward_decides_where_no_number_does() -> None:
    assert clocks("2/1/24, 9:00 - A: x\n3/1/24, 9:00 - A: x\n1/2/24, 9:00 - A: x\n")[-1] == "2024-02-01T09:00:00"
    assert clocks("1/2/24, 9:00 - A: x\n1/3/24, 9:00 - A: x\n2/1/24, 9:00 - A: x\n")[-1] == "2024-02-01T09:00:00"


def test_what_nothing_tells_is_taken_as_the_profile_says_and_named() -> None:
    text = "3/4/2024, 10:00 - Ann: One\n"
    assert clocks(text) == ["2024-04-03T10:00:00"]
    assert clocks(text, day_first=True) == ["2024-04-03T10:00:00"]
    assert clocks(text, day_first=False) == ["2024-03-04T10:00:00"]
    for first, word in ((None, "day"), (True, "day"), (False, "month")):
        assert f"the {word} was taken" in heard(text, day_first=first)[0].reason
    assert clocks("13/4/2024, 10:00 - Ann: One\n", day_first=False) == ["2024-04-13T10:00:00"]


def test_with_dots_the_day_is_always_first() -> None:
    for day_first in (None, False, True):
        (one,) = heard("05.01.24, 10:00 - Ann: Hi\n", day_first=day_first)
        assert one.clock == "2024-01-05T10:00:00"
    assert clocks("2024.01.05, 10:00 - Ann: Hi\n") == ["2024-01-05T10:00:00"]


def test_years_that_stand_first() -> None:
    text = "".join(f"24/{m:02}/{d:02}, 10:00 - Ann: x\n" for m in (1, 2, 3) for d in (9, 17, 26))
    assert clocks(text)[4] == "2024-02-17T10:00:00"
    assert clocks("2024/03/04, 10:00 - Ann: x\n", day_first=True) == ["2024-03-04T10:00:00"]


def test_no_year_is_read_before_there_was_whatsapp() -> None:
    text = "30.12.23, 10:00 - A: x\n01.01.24, 10:00 - A: x\n31.12.23, 23:59 - A: late\n"
    assert clocks(text) == ["2023-12-30T10:00:00", "2024-01-01T10:00:00", "2023-12-31T23:59:00"]


def test_a_calendar_that_is_not_read_is_refused_with_that_reason() -> None:
    with pytest.raises(Refused, match="calendar"):
        heard("1445/06/18, 10:00 - Ann: x\n1445/06/19, 10:00 - Ann: y\n")


# ---- zones ------------------------------------------------------------------------------------------


def test_nights_on_which_the_clock_is_changed() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    spring = "31.03.24, 01:59 - A: x\n31.03.24, 02:30 - A: there is no such time\n31.03.24, 03:00 - A: x\n"
    assert [one.time for one in said(spring, zone=berlin)] == [
        "2024-03-31T00:59:00Z", "2024-03-31T01:30:00Z", "2024-03-31T01:00:00Z",
    ]  # fmt: skip
    autumn = "27.10.24, 01:59 - A: x\n27.10.24, 02:30 - A: twice\n27.10.24, 03:00 - A: x\n"
    assert [one.time for one in said(autumn, zone=berlin)] == [
        "2024-10-26T23:59:00Z", "2024-10-27T00:30:00Z", "2024-10-27T02:00:00Z",
    ]  # fmt: skip
    assert [one.time for one in said("13.07.24, 00:10 - A: x\n", zone=berlin)] == ["2024-07-12T22:10:00Z"]
    half = said("13.07.24, 00:10 - A: x\n", zone=ZoneInfo("Asia/Kolkata"))
    assert [one.time for one in half] == ["2024-07-12T18:40:00Z"]


def test_a_file_says_no_zone() -> None:
    (one,) = said("13.07.24, 00:10 - A: x\n")
    assert (one.zone_known, one.timestamp, one.clock) == (False, "13.07.24, 00:10", "2024-07-13T00:10:00")


# ---- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "name"), [
    ("Anna Berg", "Anna Berg"), ("~ Mia", "Mia"), ("~\u202fMia", "Mia"), ("~\u00a0Mia\u200e", "Mia"), ("~Mia", "Mia"),
    ("\u202a+49\u00a0170\u00a01234567\u202c", "+49\u00a0170\u00a01234567"), ("\u2068Ann\u2069", "Ann"),
    ("+1 (555) 010‑9999", "+1 (555) 010‑9999"), ("Ann 🌻", "Ann 🌻"), ("Ann - work", "Ann - work"),
    ("Ann:)", "Ann:)"), ("Dr. O'Neill", "Dr. O'Neill"), ('Max "the man" Muster', 'Max "the man" Muster'),
    ("סבא", "סבא"), ("a [b] c", "a [b] c"),
])  # fmt: skip
def test_names(written: str, name: str) -> None:
    android = said(f"31/12/23, 21:41 - {written}: text: with colon - and dash\n31/12/23, 21:42 - {written}: two\n")
    ios = said(f"[31/12/23, 21:41:05] {written}: text: with colon - and dash\n[31/12/23, 21:42:05] {written}: two\n")
    for got in (android, ios):
        assert [one.speaker for one in got] == [name, name]
        assert [one.text for one in got] == ["text: with colon - and dash", "two"]


def test_a_phone_number_is_one_speaker_with_and_without_marks() -> None:
    text = "31/12/23, 21:41 - \u202a+49 170 1\u202c: a\n31/12/23, 21:42 - +49 170 1: b\n"
    assert {one.speaker for one in said(text)} == {"+49 170 1"}


# ---- bodies -----------------------------------------------------------------------------------------


def test_lines_that_look_like_another_format_belong_to_the_message() -> None:
    lines = [
        "Look:", "[31/12/2023, 11:40:26] John: a header of iOS", "[2019-05-29, 15:04] Me: a line of Signal",
        "May 17, 2022  5:29:42 PM", "2024-01-05 10:00:00 INFO start", "[10:41, 31/12/2023] John: copied", "",
        "- a list",
        "a,b,c", "12:30 - lunch", "31/12/2023", "99/99/23, 10:00 - Ann: no such day", "the end",
    ]  # fmt: skip
    (one, two) = said("31/12/23, 21:41 - Ann: " + "\n".join(lines) + "\n31/12/23, 21:42 - Ben: next\n")
    assert one.text == "\n".join(lines)
    assert (two.speaker, two.text) == ("Ben", "next")
    (one,) = said("[31/12/23, 21:41:05] Ann: Look\n31/12/2023, 11:40 - John: of Android\n", name="_chat.txt")
    assert one.text == "Look\n31/12/2023, 11:40 - John: of Android"


def test_line_ends_and_marks_make_no_difference() -> None:
    plain = "[31/12/23, 21:41:05] Ann: One\nand two\n[31/12/23, 21:42:05] Ben: Three\n"
    expected = [(one.speaker, one.text, one.clock) for one in said(plain)]
    assert len(expected) == 2
    for text in (plain.replace("\n", "\r\n"), "\ufeff" + plain, plain.rstrip("\n"), plain.replace("[", "\u200e["),
                 plain.replace("[", "\u200f\u202a["), plain.replace("] ", "]\u00a0")):  # fmt: skip
        assert [(one.speaker, one.text, one.clock) for one in said(text)] == expected
    wide = plain.encode("utf-16")
    assert [(one.speaker, one.text, one.clock) for one in said(wide)] == expected


def test_what_a_person_wrote_is_left_as_it_is() -> None:
    texts = ["<3", "<3 you", "<grin>", "ok (thanks)", "photo omitted from the album", "image of the lake",
             "null and void", "https://maps.google.com/?q=1,2", "Location: at home", "Poll: who comes?", "a: b: c",
             "2/3", ":", "...",
             "He deleted this message", "This message was deleted? Why?", "a > b and c < d", "x -> y <z>",
             "see report.pdf (draft two)", "Video call?", "~ 5 km", "1) 2) 3)", "*bold* _it_",
             "@4917012345 hi"]  # fmt: skip
    android = "".join(f"31/12/23, 21:{n:02} - Ann: {text}\n" for n, text in enumerate(texts))
    ios = "".join(f"[31/12/23, 21:{n:02}:01] Ann: {text}\n" for n, text in enumerate(texts))
    for whole in (android, ios):
        assert [one.text for one in said(whole)] == texts


@pytest.mark.parametrize("size", [40, 61, 200, 997])
def test_messages_are_the_same_however_the_file_is_cut(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = ["one", "two\nlines: of\n\ntext", "<Media omitted>", "", "[x] y", "31/12/23", "9" * 300, "é" * 99, "end"]
    text = "".join(f"{n % 28 + 1}/1/24, 10:{n % 60:02} - Ann: {bodies[n % 9]}\n" for n in range(120))
    text += "".join(f"{n % 28 + 1}/2/24, 1:{n % 60:02} PM - ~ Ben: {bodies[n % 9]}\r\n" for n in range(120))
    whole = heard(text)
    monkeypatch.setattr(whatsapp, "_BLOCK", size)
    assert heard(text) == whole
    assert len(whole) == 240


def test_lines_out_of_order_stay_as_they_are_with_their_own_time() -> None:
    text = "13/1/24, 10:05 - A: later\n13/1/24, 10:01 - B: sent before, came after\n13/1/24, 10:06 - A: end\n"
    assert [(one.clock or "")[11:16] for one in said(text)] == ["10:05", "10:01", "10:06"]


def test_bytes_that_are_no_text_where_a_header_should_be_are_a_line_of_the_message_before() -> None:
    raw = "2023/12/31 下午9:41 - Ann: One\n2023/12/31 下午9:42 - Ann: Two\n2023/12/31 下午9:43 - Ann: Three\n".encode()
    torn = raw.replace("下午9:42".encode(), b"\xe4\xb8\xff\xe5\x8d\x889:42")
    one, three = said(torn)
    assert (one.text.partition("\n")[0], one.text.endswith("9:42 - Ann: Two")) == ("One", True)
    assert (three.text, three.clock) == ("Three", "2023-12-31T21:43:00")


def test_a_message_is_the_same_whether_its_name_was_heard_before_or_not() -> None:
    bodies = ["one", "two\nlines", "see <https://example.org/a>", "fine :)", "<Media omitted>", "“so”", "¿qué?", "a: b",
              "Missed voice call", "Location: https://maps.google.com/?q=1.5,2.5", "x\n- y\n\nz", "été"]  # fmt: skip
    for start in range(len(bodies)):
        turned = bodies[start:] + bodies[:start]
        got = heard("".join(f"31/12/23, 21:{n:02} - Ann: {body}\n" for n, body in enumerate(turned)))
        kinds = {body: (type(one), one.text) for body, one in zip(turned, got, strict=True)}
        if not start:
            first = kinds
        assert kinds == first


def test_text_in_front_of_a_cut_file_is_named() -> None:
    with pytest.raises(Refused) as refused:
        heard("the end of a message\n31/12/23 nonsense\n", name="WhatsApp Chat with Anna.txt")
    assert "WhatsApp" in str(refused.value)


# ---- names of chats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "WhatsApp Chat with Anna.txt", "WhatsApp Chat with Anna(1).txt", "WhatsApp Chat with Anna (2).txt",
    "WhatsApp Chat - Anna.txt", "WhatsApp Chat mit Anna.txt", "Chat de WhatsApp con Anna.txt",
    "Conversa do WhatsApp com Anna.txt", "Discussion WhatsApp avec Anna.txt", "Chat WhatsApp con Anna.txt",
    "Чат WhatsApp с Anna.txt", "WhatsApp-chat met Anna.txt", "Anna ile WhatsApp Sohbeti.txt",
    "WhatsApp Sohbeti - Anna.txt", "与Anna的 WhatsApp 聊天.txt", "Anna.txt",
])  # fmt: skip
def test_the_name_of_the_chat(name: str) -> None:
    assert {one.conversation for one in said("31/12/23, 21:41 - Ann: Hi\n", name=name)} == {"Anna"}


def packed(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_zip_gives_its_name_to_the_chat_in_it() -> None:
    raw = packed({"_chat.txt": "[31/12/23, 21:41:05] Ann: Hi\n", "00000002-PHOTO-2023-12-31-21-41-05.jpg": "x"})
    for name in ("WhatsApp Chat - Anna.zip", "WhatsApp Chat - Anna (1).zip"):
        got = heard(raw, name=name)
        assert [one.conversation for one in got if isinstance(one, Utterance)] == ["Anna"]
        assert not any(isinstance(one, BadItem) for one in got)


def test_chats_in_folders_of_one_zip_are_two() -> None:
    line = "[31/12/23, 21:41:05] Ann: Hi\n"
    raw = packed({"all/WhatsApp Chat - Anna/_chat.txt": line, "all/WhatsApp Chat - Ben/_chat.txt": line})
    assert [one.conversation for one in said(raw, name="all.zip")] == ["Anna", "Ben"]


# ---- what is not WhatsApp's -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), [
    ("app.log", "2024-01-05 10:00:00 - INFO: started\n2024-01-05 10:00:01 - ERROR: broke\n"),
    ("app.txt", "2024-01-05 10:00:00,123 - root - INFO - started: ok\n"),
    ("laravel.txt", "[2024-01-05 10:00:00] local.ERROR: broke\n[2024-01-05 10:00:02] local.INFO: fine\n"),
    ("nginx.txt", "2024/01/05 10:00:00 - nginx[12]: started\n2024/01/05 10:00:01 - nginx[12]: stopped\n"),
    ("x.txt", "[2024-01-05 10:00:00] [info] server: up\n[2024-01-05 10:00:01] [warn] server: slow\n"),
    ("diary.md", "05.01.2024, 10:00 - Dentist: bring the card\n06.01.2024, 11:00 - Lunch: with Mia\n"),
    ("diary.md", "# 2024\n\n05.01.2024, 10:00 - Dentist: bring the card\n"),
    ("a.csv", "date,text\n05.01.2024 10:00,Ann: hello\n"),
    ("b.txt", "date,speaker,text\n05.01.2024 10:00,Ann,hello\n05.01.2024 10:01,Ben,hello\n"),
    ("chat.md", "[2019-05-29, 15:04] Me: hello\n[2019-05-29, 15:05] Anna: hello\n"),
    ("chat.md", "[2019-05-29 15:04:10] Ben: hello  \n\n[2019-05-29 15:05:11] Anna: hello  \n"),
    ("Anna.txt", "May 17, 2022  5:29:42 PM\nAnna\nHello\n\n"),
    ("plan.txt", "5/1/2024, 10:00 - 11:00 Dentist\n6/1/2024, 9:00 - 9:30 Stand-up\n"),
    ("plan.txt", "5.1.2024 10:00 - Dentist: card\n6.1.2024 9:00 - Gym: shoes\n7.1.2024 9:00 - Mood: good\n"
                 "8.1.2024 9:00 - Lunch: Mia\n9.1.2024 9:00 - Read: Kafka\n"),
    ("notes.txt", "12/31/23 was a good day: we went out.\n"),
])  # fmt: skip
def test_files_that_are_not_claimed(name: str, text: str) -> None:
    assert not claimed(text, name)
