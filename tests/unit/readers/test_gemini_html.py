"""Gemini's activity as a page: answers as text, what of an entry is Google's own, times as languages write them."""

import io
from datetime import timedelta, timezone
from html import escape
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon import readers
from daemon.readers.gemini_html import entries, plain
from daemon.readers.takeout_dates import time_of
from daemon.records import LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))
APP = "https://gemini.google.com/app/"
NOON = "Jan 5, 2025, 12:00:00\u202fPM UTC"
PAIR = [("user", "How tall?"), ("assistant", "Yes.")]


def heard(raw: bytes, name: str = "MyActivity.html") -> list[Any]:
    return list(readers.read(io.BytesIO(raw), name, len(raw), None, locale=readers.Locale(ZONE)))


def said(raw: bytes, name: str = "MyActivity.html") -> list[tuple[str | None, str]]:
    return [(one.role, one.text) for one in heard(raw, name) if isinstance(one, Utterance)]


def cell(body: str, app: str = "", product: str = "Gemini Apps") -> str:
    details = f'<b>Details:</b><br>&emsp;<a href="{APP}{app}">{APP}{app}</a><br>' if app else ""
    return (
        '<div class="outer-cell mdl-cell mdl-cell--12-col mdl-shadow--2dp"><div class="mdl-grid">'
        f'<div class="header-cell mdl-cell mdl-cell--12-col"><p class="mdl-typography--title">{product}<br></p></div>'
        f'<div class="content-cell mdl-cell mdl-cell--6-col mdl-typography--body-1">{body}</div>'
        '<div class="content-cell mdl-cell mdl-cell--6-col mdl-typography--body-1 mdl-typography--text-right"></div>'
        '<div class="content-cell mdl-cell mdl-cell--12-col mdl-typography--caption"><b>Products:</b><br>&emsp;'
        f"{product}<br>{details}<b>Why is this here?</b><br>&emsp;This activity was saved.</div></div></div>"
    )


def page(*cells: str, style: str = ".mdl-grid{display:flex}") -> bytes:
    head = f'<html><head><title>My Activity History</title><style type="text/css">{style}</style></head>'
    return f'{head}<body><div class="mdl-grid">{"".join(cells)}</div></body></html>'.encode()


# ---- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One <b>two</b>.</p>\n<p>Three &amp; four</p>", "One two.\n\nThree & four"),
        ("<ul><li><p>first</p></li><li>second</li></ul>", "- first\n\n- second"),
        ("<ol><li>one</li><li>two</li></ol><p>end</p><ol><li>again</li></ol>", "1. one\n2. two\n\nend\n\n1. again"),
        ("<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>", "A | B\n\n1 | 2"),
        ("<h3>Tower</h3><hr><blockquote>said</blockquote>", "Tower\n\nsaid"),
        ("<p>x</p><script>bad()</script><style>p{}</style>", "x"),
        ("a<br>b", "a\nb"), ("1 &lt; 2 <", "1 < 2 <"), ("<!-- no --><a title='>'>x</A>", "x"), ("", ""),
    ],
)  # fmt: skip
def test_html_becomes_text(html: str, text: str) -> None:
    assert plain(html) == text


def test_code_keeps_its_lines_and_indents() -> None:
    code = "def f(x):\n    if x:\n\n\n        return 1\n\treturn 0"
    html = f"<p>So:</p><pre><code>{escape(code)}\n</code></pre><p>Done.</p>"
    assert plain(html) == f"So:\n\n{code}\n\n\nDone."
    assert plain(f"<pre>{code}</pre>") == code


# ---- entries ------------------------------------------------------------------------------------------


def test_an_entry_of_the_page_is_a_prompt_and_its_answer() -> None:
    first, second = heard(page(cell(f"Prompted&nbsp;How tall?<br>{NOON}<br><p>Yes.</p>")))
    assert [(one.role, one.text) for one in (first, second)] == PAIR
    assert (first.time, first.zone_known) == ("2025-01-05T12:00:00Z", True)
    assert first.timestamp == "Jan 5, 2025, 12:00:00 PM UTC"


@pytest.mark.parametrize("cells", [1, 300])
def test_the_styles_may_be_longer_than_what_is_looked_at(cells: int) -> None:
    times = [f"Jan 5, 2025, 12:{n // 60:02}:{n % 60:02} PM UTC" for n in range(cells)]
    body = [cell(f"Prompted How tall?<br>{time}<br><p>Yes.</p>") for time in times]
    raw = page(*body, style=".mdl-grid{display:flex}" * 6000)
    assert len(raw) > 130_000
    assert said(raw, "Meine Aktivitäten.html") == PAIR * cells


def test_a_page_of_another_product_is_refused_with_its_name() -> None:
    watched = cell("Watched <a href='https://example.org'>Gemini explained</a><br>" + NOON, product="YouTube")
    for style in (".mdl-grid{}", ".mdl-grid{display:flex}" * 6000):
        with pytest.raises(Refused, match="an activity of YouTube, not of Gemini"):
            heard(page(watched, style=style), "watch-history.html")
    assert said(page(watched, cell(f"Prompted How tall?<br>{NOON}<br><p>Yes.</p>"))) == PAIR


def test_the_small_print_names_the_chat() -> None:
    raw = page(
        cell(f'Prompted b<br>{NOON}<br><p>See <a href="{APP}ffff0000">there</a>.</p>', "abcd1234"),
        cell("Prompted a<br>Jan 5, 2025, 9:00:00 AM UTC<br><p>Yes.</p>", "abcd1234"),
    )
    assert {one.conversation for one in heard(raw)} == {"abcd1234"}


def test_what_google_writes_below_a_prompt_is_no_part_of_it() -> None:
    body = (
        'Eingegebener Prompt:&nbsp;How\n  tall?<br>2 Dateien angehängt.<br>- <a href="tower-1.png">tower.png</a><br>'
        '-  <a href="a-2.pdf">a.pdf</a><br><a href="https://gemini.google.com/gems/edit/1">Poet</a> wurde verwendet.'
        "<br>http://googleusercontent.com/youtube_content/10<br>18.04.2026, 17:38:51 MESZ<br><p>Yes.</p>"
    )
    got = heard(page(cell(body, product="Gemini-Apps")), "MeineAktivitäten.html")
    assert [one.text for one in got if isinstance(one, LeftOut)] == ["tower.png", "a.pdf"]
    assert [(one.role, one.text, one.time) for one in got if isinstance(one, Utterance)] == [
        ("user", "How\n  tall?", "2026-04-18T15:38:51Z"), ("assistant", "Yes.", "2026-04-18T15:38:51Z")
    ]  # fmt: skip


def test_a_prompt_with_a_number_in_its_last_line_keeps_it() -> None:
    raw = page(cell(f"Prompted Sum up<br>chapter 3<br>{NOON}<br><p>Yes.</p>"))
    assert said(raw)[0] == ("user", "Sum up\nchapter 3")


def test_a_canvas_of_the_page_is_no_prompt() -> None:
    canvas = cell(f"Created Gemini Canvas titled&nbsp;List<br>{NOON}<br><p>a document</p>")
    assert said(page(canvas, cell(f"Prompted How tall?<br>{NOON}<br><p>Yes.</p>"))) == PAIR


def test_code_of_the_page_keeps_its_indents_and_its_dates() -> None:
    code = "if x:\n    log('''\nJan 5, 2025, 12:00:00 PM UTC\n''')"
    raw = page(cell(f"Prompted Write<br>{NOON}<br><p>So:</p><pre><code>{escape(code)}</code></pre>"))
    assert said(raw) == [("user", "Write"), ("assistant", f"So:\n\n{code}")]


@pytest.mark.parametrize("size", [1, 7, 4093])
def test_letters_are_whole_however_the_bytes_come(size: int) -> None:
    class Slow(io.BytesIO):
        def read(self, most: int | None = -1) -> bytes:
            return super().read(size)

    words = ("塔の高さはどれくらいですか 🗼 " * 300).strip()
    raw = page(cell(f"送信したメッセージ: {words}<br>2025/11/13 20:10:22 JST<br><p>{words}&amp;</p>"))
    (one,) = entries(Slow(raw), None)
    assert one.answer == words + "&"
    assert (one.prompt, one.time) == (f"送信したメッセージ: {words}", "2025-11-13T11:10:22Z")


def test_a_long_page_in_one_line_breaks_no_letter() -> None:
    words = "x" + "塔の高さは" * 20_000
    raw = page(cell(f"送信したメッセージ: a<br>2025/11/13 20:10:22 JST<br><p>{words}</p>", product="Gemini アプリ"))
    assert said(raw, "マイアクティビティ.html") == [("user", "a"), ("assistant", words)]


@pytest.mark.parametrize(
    "junk", ["<a href='" * 50_000, "<" * 100_000, "<div class='outer-cell'>" * 3000, "</div>" * 9000]
)
def test_damaged_html_loses_no_entry_before_it(junk: str) -> None:
    raw = page(cell(f"Prompted How tall?<br>{NOON}<br><p>Yes.</p>")).replace(b"</body>", junk.encode())
    assert said(raw)[:1] == PAIR[:1]


# ---- times --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "utc"),
    [
        ("Jan 5, 2025, 3:04:05 PM CET", "2025-01-05T14:04:05Z"),
        ("Jan 5, 2025, 12:04:05 AM UTC", "2025-01-05T00:04:05Z"),
        ("18 Sept 2025, 12:01:52 CET", "2025-09-18T11:01:52Z"),
        ("05.01.2025, 15:04:05 MEZ", "2025-01-05T14:04:05Z"),
        ("28 févr. 2026, 22:30:00 CET", "2026-02-28T21:30:00Z"),
        ("5 août 2025, 15:04:05 CEST", "2025-08-05T13:04:05Z"),
        ("5 de jan. de 2025, 15:04:05 BRT", "2025-01-05T18:04:05Z"),
        ("5 ene 2025, 15:04:05 CET", "2025-01-05T14:04:05Z"),
        ("5 giu 2025, 15:04:05 CEST", "2025-06-05T13:04:05Z"),
        ("3 paź 2025, 15:04:05 CEST", "2025-10-03T13:04:05Z"),
        ("5 янв. 2025 г., 15:04:05 MSK", "2025-01-05T12:04:05Z"),
        ("5 трав. 2025 р., 15:04:05 EEST", "2025-05-05T12:04:05Z"),
        ("5 Ağu 2025 15:04:05 TRT", "2025-08-05T12:04:05Z"),
        ("5.1.2025 klo 15.04.05 EET", "2025-01-05T13:04:05Z"),
        ("2025/01/05 15:04:05 JST", "2025-01-05T06:04:05Z"),
        ("2025. 1. 5. 오후 3:04:05 KST", "2025-01-05T06:04:05Z"),
        ("2025年1月5日 15:04:05 CST", "2025-01-05T07:04:05Z"),
        ("2025. jan. 5. 15:04:05 CET", "2025-01-05T14:04:05Z"),
        ("5 Jan 2025, 15:04:05 GMT+05:30", "2025-01-05T09:34:05Z"),
        ("5 Jan 2025, 15:04:05 GMT-3", "2025-01-05T18:04:05Z"),
    ],
)
def test_the_time_as_languages_write_it(line: str, utc: str) -> None:
    assert time_of(line, ZONE) == (utc, True)


@pytest.mark.parametrize(
    "line",
    [
        "Jan 5, 2025, 3:04 PM", "See you Jan 5, 2025, 3:04:05 PM", "5 Foo 2025, 15:04:05 CET", "35.01.2025, 15:04:05",
        "Jan 5, 2025, 3:04:05 PM and then", "Jan 5, 2025, 25:04:05", "2025",
    ],
)  # fmt: skip
def test_what_is_no_time_is_none(line: str) -> None:
    assert time_of(line, ZONE) is None


def test_a_time_without_a_known_zone_is_taken_in_the_profiles() -> None:
    assert time_of("05.01.2025, 15:04:05", ZONE) == ("2025-01-05T13:04:05Z", False)
    assert time_of("2025年1月5日 下午3:04:05 [台北標準時間]", ZONE) == ("2025-01-05T13:04:05Z", False)


def test_a_short_name_of_several_zones_is_that_of_the_profile() -> None:
    assert time_of("Jul 5, 2025, 3:04:05 PM IST", ZoneInfo("Europe/Dublin")) == ("2025-07-05T14:04:05Z", True)
    assert time_of("Jul 5, 2025, 3:04:05 PM IST", ZONE) == ("2025-07-05T09:34:05Z", True)
