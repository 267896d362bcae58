"""Gemini: what of an activity is a prompt and its answer, in which language and zone, and what is none."""

import io
import json
import zipfile
from datetime import timedelta, timezone
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Memory, Refused, Utterance

ZONE = timezone(timedelta(hours=2))


def heard(value: Any, name: str = "MyActivity.json") -> list[Any]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return list(readers.read(io.BytesIO(raw), name, len(raw), 1_700_000_000.0, locale=readers.Locale(ZONE)))


def said(value: Any, name: str = "MyActivity.json") -> list[tuple[str | None, str]]:
    return [(one.role, one.text) for one in heard(value, name) if isinstance(one, Utterance)]


def reasons(value: Any, name: str = "MyActivity.json") -> list[str]:
    return [one.reason for one in heard(value, name) if isinstance(one, LeftOut)]


def entry(prompt: str, answer: str | None = "<p>Yes.</p>", at: str = "2025-06-01T10:00:00.123Z", **more: Any) -> Any:
    whole = {
        "header": "Gemini Apps", "title": f"Prompted {prompt}", "time": at, "products": ["Gemini Apps"],
        "activityControls": ["Gemini Apps Activity"], **more,
    }  # fmt: skip
    if answer is not None:
        whole["safeHtmlItem"] = [{"html": answer}]
    return whole


# ---- Takeout, JSON ------------------------------------------------------------------------------------


def test_an_entry_is_a_prompt_and_its_answer_of_one_time() -> None:
    first, second = heard([entry("Do bees sleep?", "<p>They <b>do</b>.</p><ul><li>At night</li></ul>")])
    assert (first.source, first.role, first.text) == ("gemini", "user", "Do bees sleep?")
    assert (second.role, second.text) == ("assistant", "They do.\n\n- At night")
    assert first.time == second.time == "2025-06-01T10:00:00Z"
    assert (first.timestamp, first.zone_known) == ("2025-06-01T10:00:00.123Z", True)
    assert first.message != second.message


def test_the_newest_stands_first_in_the_file_and_last_in_what_is_heard() -> None:
    got = heard([entry("third", at="2025-06-01T12:00:00Z"), entry("second", at="2025-06-01T10:30:00Z"),
                 entry("first", at="2025-06-01T10:00:00Z")])  # fmt: skip
    mine = [one for one in got if one.role == "user"]
    assert [one.text for one in mine] == ["first", "second", "third"]
    assert mine[0].conversation == mine[1].conversation != mine[2].conversation


def test_a_chat_that_is_named_is_a_conversation_whatever_the_time() -> None:
    def linked(prompt: str, chat: str, at: str) -> Any:
        return entry(prompt, at=at, details=[{"name": "From", "url": f"https://gemini.google.com/app/{chat}"}])

    got = heard([linked("c", "aaaa1111", "2025-06-09T10:00:00Z"), linked("b", "bbbb2222", "2025-06-01T10:01:00Z"),
                 linked("a", "aaaa1111", "2025-06-01T10:00:00Z")])  # fmt: skip
    assert [(one.text, one.conversation) for one in got if one.role == "user"] == [
        ("a", "aaaa1111"), ("b", "bbbb2222"), ("c", "aaaa1111")]  # fmt: skip


def test_two_prompts_of_one_second_are_two() -> None:
    got = heard([entry("b"), entry("a")])
    assert len({one.message for one in got}) == 4


@pytest.mark.parametrize(
    ("header", "title", "prompt"),
    [
        ("Gemini Apps", "Prompted How are you?", "How are you?"),
        ("Gemini Apps", "Prompted\u00a0How are you?", "How are you?"),
        ("Bard", "Said How are you?", "How are you?"),
        ("Gemini-Apps", "Eingegebener Prompt: Wie geht es dir?", "Wie geht es dir?"),
        ("Applications Gemini", "Prompt : Ça va ?", "Ça va ?"),
        ("Aplicaciones de Gemini", "Has escrito ¿Qué tal?", "¿Qué tal?"),
        ("Додатки Gemini", "Запит: Як справи?", "Як справи?"),
        ("Gemini アプリ", "送信したメッセージ: 元気?", "元気?"),
        ("Gemini Apps", "Prompted Prompted twice", "Prompted twice"),
    ],
)
def test_the_verb_before_a_prompt_is_not_the_persons(header: str, title: str, prompt: str) -> None:
    whole = {**entry("", products=[header]), "header": header, "title": title}
    assert said([whole])[0] == ("user", prompt)


@pytest.mark.parametrize("verb", ["Kysytty: ", "Du bad om ", "Ви запитали "])
def test_a_verb_of_an_unknown_language_is_learnt_from_the_file(verb: str) -> None:
    prompts = ["Bees?", "How long is a rope?", "Bees and honey", "A poem", "Why", "Is tea healthy?"]
    whole = [{**entry(""), "title": verb + prompt} for prompt in prompts]
    assert [text for role, text in said(whole) if role == "user"] == prompts[::-1]


def test_words_with_which_a_person_begins_are_theirs() -> None:
    prompts = ["Explain bees", "Explain tea", "Explain rope", "Why", "How"]
    whole = [{**entry(""), "title": prompt} for prompt in prompts]
    assert [text for role, text in said(whole) if role == "user"] == prompts[::-1]
    whole = [entry(f"Explain {n}") for n in range(9)]
    assert said(whole)[0] == ("user", "Explain 8")


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (entry("What now?", None), "an entry without an answer"),
        (entry("What now?", ""), "an entry without an answer"),
        ({**entry("", None), "title": "Used Gemini Apps"}, "an activity that is no prompt"),
        ({**entry(""), "title": "Gave feedback: Good response"}, "an activity that is no prompt"),
        ({**entry(""), "title": ""}, "an entry without a prompt"),
        ({**entry("x"), "header": "Search", "products": ["Search"], "title": "Searched for gemini"},
         "an activity of Search, not of Gemini"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_with_an_answer_is_left_out_with_its_reason(odd: Any, reason: str) -> None:
    whole = [entry("One?"), odd]
    assert said(whole) == [("user", "One?"), ("assistant", "Yes.")]
    assert reasons(whole) == [reason]


def test_attached_files_are_named() -> None:
    whole = [entry("What is this?", attachedFiles=["rose-1a2b.png", "notes.txt"], imageFile="rose-1a2b.png",
                   subtitles=[{"name": "Attached 2 files."}])]  # fmt: skip
    left_out = [(one.reason, one.text) for one in heard(whole) if isinstance(one, LeftOut)]
    assert left_out == [("an attached file", "rose-1a2b.png"), ("an attached file", "notes.txt")]
    assert said(whole)[0] == ("user", "What is this?")


def test_several_pieces_of_an_answer_are_one() -> None:
    whole = entry("Code?", None, safeHtmlItem=[
        {"html": "<p>See:</p><pre><code>if a &lt; b:\n    print(1)</code></pre>"}, {"html": "<p>Done &amp; so.</p>"}])
    assert said([whole])[1] == ("assistant", "See:\n\nif a < b:\n    print(1)\n\nDone & so.")


@pytest.mark.parametrize("odd", [None, 5, "x", [], {}, [None, 5, {"html": 7, "url": 7}], True])
@pytest.mark.parametrize("key", ["title", "time", "products", "safeHtmlItem", "details", "attachedFiles", "titleUrl"])
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    got = said([entry("Two?", at="2025-06-01T11:00:00Z"), {**entry("odd"), key: odd}, entry("One?")])
    assert [text for role, text in got if role == "user" and text in ("One?", "Two?")] == ["One?", "Two?"]


def test_a_torn_export_gives_what_was_whole() -> None:
    raw = json.dumps([entry(f"p{n}", at=f"2025-06-01T10:00:{n:02}Z") for n in range(40, 0, -1)]).encode()
    got = heard(raw[:-100])
    assert [one.text for one in got if isinstance(one, Utterance) and one.role == "user"] == [
        f"p{n}" for n in range(2, 41)]  # fmt: skip
    assert len([one for one in got if isinstance(one, BadItem)]) == 1


def test_the_activity_of_another_product_is_refused() -> None:
    other = {**entry("x"), "header": "Search", "products": ["Search"], "title": "Searched for bees"}
    with pytest.raises(Refused):
        heard([other, other])


# ---- Takeout, HTML ------------------------------------------------------------------------------------


def cell(body: str, product: str = "Gemini Apps", more: str = "") -> str:
    return (
        '<div class="outer-cell mdl-cell mdl-cell--12-col mdl-shadow--2dp"><div class="mdl-grid">'
        f'<div class="header-cell mdl-cell mdl-cell--12-col"><p class="mdl-typography--title">{product}<br></p></div>'
        f'<div class="content-cell mdl-cell mdl-cell--6-col mdl-typography--body-1">{body}</div>'
        '<div class="content-cell mdl-cell mdl-cell--6-col mdl-typography--body-1 mdl-typography--text-right"></div>'
        '<div class="content-cell mdl-cell mdl-cell--12-col mdl-typography--caption"><b>Products:</b><br>&emsp;'
        f"{product}<br>{more}</div></div></div>"
    )


def page(*cells: str) -> bytes:
    styles = "<style>.mdl-grid{display:flex}</style>" * 5
    return (f'<html><head><meta charset="utf-8"><title>My Activity History</title>{styles}</head><body>'
            f'<div class="mdl-grid">{"".join(cells)}</div></body></html>').encode()  # fmt: skip


def test_a_cell_is_a_prompt_a_time_and_an_answer() -> None:
    body = "Prompted\u00a0Do bees sleep?<br>Jun 1, 2025, 12:00:05\u202fPM CEST<br><p>They do.</p><ol><li>So.</li></ol>"
    first, second = heard(page(cell(body)), "MyActivity.html")
    assert (first.role, first.text, first.time) == ("user", "Do bees sleep?", "2025-06-01T10:00:05Z")
    assert (second.role, second.text, second.zone_known) == ("assistant", "They do.\n\n1. So.", True)


@pytest.mark.parametrize(
    ("line", "time"),
    [
        ("Jun 1, 2025, 3:04:05 PM UTC", "2025-06-01T15:04:05Z"),
        ("Jun 1, 2025, 12:04:05 AM GMT+02:00", "2025-05-31T22:04:05Z"),
        ("1 Jun 2025, 15:04:05 BST", "2025-06-01T14:04:05Z"),
        ("01.06.2025, 15:04:05 MESZ", "2025-06-01T13:04:05Z"),
        ("1 juin 2025, 15:04:05 CEST", "2025-06-01T13:04:05Z"),
        ("1 jun 2025, 15:04:05 GMT-03:00", "2025-06-01T18:04:05Z"),
        ("2025/06/01 15:04:05 JST", "2025-06-01T06:04:05Z"),
        ("1 черв. 2025 р., 15:04:05 EEST", "2025-06-01T12:04:05Z"),
    ],
)
def test_the_line_with_the_time_is_read_in_many_languages(line: str, time: str) -> None:
    got = heard(page(cell(f"Prompted One?<br>{line}<br><p>Yes.</p>")), "MyActivity.html")
    assert [(one.text, one.time, one.zone_known) for one in got] == [("One?", time, True), ("Yes.", time, True)]


def test_a_time_without_a_zone_is_that_of_the_profile() -> None:
    (one, _) = heard(page(cell("Prompted One?<br>Jun 1, 2025, 3:04:05 PM<br><p>Yes.</p>")), "MyActivity.html")
    assert (one.time, one.zone_known) == ("2025-06-01T13:04:05Z", False)


def test_a_date_in_the_prompt_or_the_answer_is_none_of_the_entry() -> None:
    body = ("Prompted On Jun 1, 2020, 3:04:05 PM it rained<br>Jun 1, 2025, 3:04:05 PM UTC<br>"
            "<p>Jun 2, 2020, 3:04:05 PM UTC</p>")  # fmt: skip
    assert [(one.text, one.time) for one in heard(page(cell(body)), "MyActivity.html")] == [
        ("On Jun 1, 2020, 3:04:05 PM it rained", "2025-06-01T15:04:05Z"),
        ("Jun 2, 2020, 3:04:05 PM UTC", "2025-06-01T15:04:05Z"),
    ]


def test_cells_of_other_products_and_without_an_answer_are_left_out() -> None:
    time = "<br>Jun 1, 2025, 3:04:05 PM UTC<br>"
    whole = page(cell(f"Prompted One?{time}<p>Yes.</p>"), cell(f"Searched for bees{time}", "Search"),
                 cell(f"Prompted Two?{time}"), cell(f"Used Gemini Apps{time}"))  # fmt: skip
    assert said(whole, "MyActivity.html") == [("user", "One?"), ("assistant", "Yes.")]
    assert sorted(reasons(whole, "MyActivity.html")) == [
        "an activity of Search, not of Gemini", "an activity that is no prompt", "an entry without an answer"]


def test_the_page_says_as_much_as_the_json() -> None:
    answers = ["<p>One &lt;b&gt;.</p><p>Two.</p>", "<ul><li>a</li><li>b</li></ul>", "<h2>T</h2><p>x<br>y</p>",
               "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
               "<pre><code>if x:\n    y()\n\nz</code></pre>"]  # fmt: skip
    as_json = [entry(f"p{n}", answer, at=f"2025-06-01T10:00:0{n}Z") for n, answer in enumerate(answers)]
    cells = [cell(f"Prompted p{n}<br>Jun 1, 2025, 10:00:0{n} AM UTC<br>{a}") for n, a in enumerate(answers)]
    assert said(page(*cells[::-1]), "MyActivity.html") == said(as_json[::-1])


def test_a_torn_page_gives_what_was_whole() -> None:
    raw = page(*[cell(f"Prompted p{n}<br>Jun 1, 2025, 10:00:0{n} AM UTC<br><p>Yes.</p>") for n in range(9)])
    mine = [text for role, text in said(raw[: raw.index(b"p8") - 40], "MyActivity.html") if role == "user"]
    assert mine == [f"p{n}" for n in range(8)]


@pytest.mark.parametrize("size", [1 << 16, 1 << 17])
def test_a_page_is_read_the_same_wherever_the_pieces_end(size: int) -> None:
    filler = "é" * size
    raw = page(*[cell(f"Prompted p{n}<br>Jun 1, 2025, 10:00:0{n} AM UTC<br><p>{filler}</p>") for n in range(4)])
    assert said(raw, "MyActivity.html")[1::2] == [("assistant", filler)] * 4


# ---- AI Studio, Gemini CLI ----------------------------------------------------------------------------


def test_a_chat_of_ai_studio_is_read_without_its_thoughts() -> None:
    chat = {"runSettings": {}, "systemInstruction": {"text": "Be kind"}, "chunkedPrompt": {"chunks": [
        {"text": "Do bees sleep?", "role": "user", "tokenCount": 4, "createTime": "2025-06-01T10:00:00Z"},
        {"text": "Hm.", "role": "model", "isThought": True}, {"driveDocument": {"id": "x"}, "role": "user"},
        {"text": "They do.", "role": "model", "createTime": "2025-06-01T10:00:05Z"},
        {"text": "", "parts": [{"text": "Well"}, {"text": " and long."}], "role": "model"},
    ]}}  # fmt: skip
    for value in (chat, [chat]):
        got = heard(value, "Bees")
        assert [(one.role, one.text, one.time) for one in got if isinstance(one, Utterance)] == [
            ("user", "Do bees sleep?", "2025-06-01T10:00:00Z"), ("assistant", "They do.", "2025-06-01T10:00:05Z"),
            ("assistant", "Well and long.", "2023-11-14T22:13:20Z"),
        ]  # fmt: skip
        assert [one.reason for one in got if isinstance(one, LeftOut)] == ["a thought of the model", "it has no text"]


def test_a_session_of_the_cli_is_read() -> None:
    session = {"sessionId": "s-1", "projectHash": "h", "startTime": "2025-06-01T10:00:00Z", "messages": [
        {"id": "1", "timestamp": "2025-06-01T10:00:00.000Z", "type": "user", "content": "Hi"},
        {"id": "2", "timestamp": "2025-06-01T10:00:01.000Z", "type": "gemini", "content": "", "toolCalls": [{}]},
        {"id": "3", "timestamp": "2025-06-01T10:00:02.000Z", "type": "info", "content": "Update available"},
        {"id": "4", "timestamp": "2025-06-01T10:00:03.000Z", "type": "gemini", "content": "Hello."},
    ]}  # fmt: skip
    assert said(session, "session.json") == [("user", "Hi"), ("assistant", "Hello.")]
    assert reasons(session, "session.json") == ["it has no text", "a notice or the work of a tool"]


# ---- the zip of Takeout ---------------------------------------------------------------------------------


def test_a_zip_of_takeout_gives_the_activity_and_no_attachments() -> None:
    folder = "Takeout/My Activity/Gemini Apps"
    files = {
        f"{folder}/MyActivity.json": json.dumps([entry("One?", attachedFiles=["notes-1.txt"])]),
        f"{folder}/notes-1.txt": "Nobody said this.", f"{folder}/rose.png": "x",
        "Takeout/Keep/note.md": "A note of my own.",
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, value in files.items():
            archive.writestr(path, value)
    got = heard(out.getvalue(), "takeout-001.zip")
    assert [one.text for one in got if isinstance(one, Utterance)] == ["One?", "Yes."]
    assert [one.content for one in got if isinstance(one, Memory)] == ["A note of my own."]
    assert {f"{folder}/notes-1.txt", f"{folder}/rose.png"} <= {one.where for one in got if isinstance(one, LeftOut)}


def test_notes_that_happen_to_lie_beside_an_activity_are_read() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("MyActivity.json", json.dumps([entry("One?")]))
        archive.writestr("stuff/MyActivity.json", json.dumps([entry("Two?")]))
        archive.writestr("stuff/note.md", "A note of my own.")
        archive.writestr("note.md", "Another.")
    got = heard(out.getvalue(), "gemini.zip")
    assert [one.content for one in got if isinstance(one, Memory)] == ["Another.", "A note of my own."]
