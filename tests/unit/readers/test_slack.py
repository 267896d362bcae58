"""Slack: the export as a zip, a day alone, and the marks in its texts."""

import io
import json
import zipfile
from typing import Any

import pytest

from daemon import readers
from daemon.readers.slack import plain
from daemon.records import BadItem, LeftOut, Utterance


def message(ts: str, text: Any = "hi", user: Any = "U1", **more: Any) -> dict[str, Any]:
    return {"type": "message", "user": user, "text": text, "ts": ts, **more}


def zipped(files: dict[str, Any], root: str = "") -> list[Any]:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for path, value in files.items():
            archive.writestr(root + path, value if isinstance(value, str) else json.dumps(value))
    data = raw.getvalue()
    return list(readers.read(io.BytesIO(data), "export.zip", len(data), None))


USERS = [
    {"id": "U1", "name": "ada", "profile": {"display_name": "Ada", "real_name": "Ada Berg"}},
    {"id": "U2", "name": "bo", "profile": {"display_name": "", "real_name": "Bo Lind"}},
    {"id": "U3", "name": "cleo", "profile": {}},
    {"id": "U4", "name": "helper", "is_bot": True, "profile": {"real_name": "Helper"}},
]
EXPORT: dict[str, Any] = {
    "users.json": USERS,
    "channels.json": [{"id": "C1", "name": "general", "members": ["U1", "U2", "U3"]}],
    "dms.json": [{"id": "D1", "members": ["U1", "U2"]}],
    "mpims.json": [{"id": "G1", "name": "mpdm-ada--bo--cleo-1", "members": ["U1", "U2", "U3"]}],
    "general/2024-01-16.json": [message("1705395600.000100", "later", "U2")],
    "general/2024-01-15.json": [
        message("1705309200.000100", "<@U2> and <@U9|zoe> in <#C1>?", "U1"),
        message("1705309201.000100", "beep", "U4"),
        message("1705309202.000100", "joined", "U3", subtype="channel_join"),
        message("1705309203.000100", "in a thread", "U3", thread_ts="1705309200.000100"),
    ],
    "D1/2024-01-15.json": [message("1705309300.000200", "just us", "U1")],
    "mpdm-ada--bo--cleo-1/2024-01-15.json": [message("1705309400.000300", "three of us", "U2")],
    "nowhere/2024-01-15.json": [message("1705309500.000300", "unlisted", "U7", user_profile={"real_name": "Guest"})],
}


@pytest.mark.parametrize("root", ["", "My workspace Slack export/"])
def test_a_whole_export(root: str) -> None:
    got = zipped(EXPORT, root)
    said = [(one.conversation, one.speaker, one.text, one.group) for one in got if isinstance(one, Utterance)]
    assert said == [
        ("D1", "Ada", "just us", False),
        ("C1", "Ada", "@Bo Lind and @zoe in #general?", True),
        ("C1", "cleo", "in a thread", True),
        ("C1", "Bo Lind", "later", True),
        ("G1", "Bo Lind", "three of us", True),
        ("nowhere", "Guest", "unlisted", None),
    ]
    out = [(one.reason, one.speaker) for one in got if isinstance(one, LeftOut)]
    assert out == [("by a bot or an app", "Helper"), ("a system message (channel_join)", "cleo")]
    assert got[0].message == "1705309300.000200"
    assert got[0].time == "2024-01-15T09:01:40Z"
    assert not [one for one in got if isinstance(one, BadItem)]


def test_a_day_that_is_torn_leaves_the_others() -> None:
    got = zipped({**EXPORT, "general/2024-01-15.json": json.dumps(EXPORT["general/2024-01-15.json"])[:-30]})
    bad = [one for one in got if isinstance(one, BadItem)]
    assert [one.where for one in bad] == ["general/2024-01-15.json, after message 1705309202.000100"]
    assert "later" in [one.text for one in got if isinstance(one, Utterance)]


def test_a_folder_of_days_of_another_program_is_not_claimed() -> None:
    got = zipped({"journal/2024-01-15.json": {"content": "A quiet day by the lake."}})
    assert [one.source for one in got] != ["slack"]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<https://example.org>", "https://example.org"),
        ("<https://example.org|the plan>", "the plan"),
        ("<mailto:a@example.org|a@example.org>", "a@example.org"),
        ("<!here> <!channel>", "@here @channel"),
        ("<!subteam^S1|@team>", "@team"),
        ("<!date^1705309200^{date}|Monday>", "Monday"),
        ("&lt;@U1&gt; &amp;amp;", "<@U1> &amp;"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<@U1>", "@Ada"),
        ("<@U404>", "@U404"),
    ],
)
def test_marks(raw: str, shown: str) -> None:
    if raw == "1 < 2 and 3 > 2":  # Slack writes these as &lt; and &gt;; as they stand here they are a mark
        raw = "1 &lt; 2 and 3 &gt; 2"
    assert plain(raw, {"U1": "Ada"}, {}) == shown


@pytest.mark.parametrize("odd", [None, 5, [], {}, [5]])
@pytest.mark.parametrize("key", ["type", "user", "text", "ts", "subtype", "bot_id", "user_profile", "files"])
def test_no_value_of_a_wrong_type_does_harm(key: str, odd: Any) -> None:
    raw = json.dumps([message("1705309200.000100"), {**message("1705309201.000100"), key: odd}]).encode()
    got = list(readers.read(io.BytesIO(raw), "2024-01-15.json", len(raw), None))
    assert len(got) == 2


@pytest.mark.parametrize(
    ("more", "speaker", "text"),
    [
        ({"subtype": "file_share", "text": "<@U1|ada> uploaded a file: <https://f/1|plan.pdf>"}, "Ada", None),
        ({"subtype": "file_share", "text": "<@U1> uploaded an image: <https://f/1|a> and commented: Look &amp; see"},
         "Ada", "Look & see"),
        ({"subtype": "file_mention", "text": "<@U1> mentioned a file: <https://f/1|plan.pdf>"}, "Ada", None),
        ({"subtype": "file_comment", "user": None, "text": "<@U2> commented on <@U1>’s file <https://f/1|a>: nice",
          "comment": {"user": "U2", "comment": "nice, <@U1>"}}, "Bo Lind", "nice, @Ada"),
        ({"subtype": "file_share", "text": "our plan"}, "Ada", "our plan"),
        ({"text": "<@U2> uploaded a file: <https://f/1|a>"}, "Ada", "@Bo Lind uploaded a file: a"),
    ],
)  # fmt: skip
def test_what_slack_wrote_about_a_file_is_nobodys_words(more: dict[str, Any], speaker: str, text: str | None) -> None:
    said = {**message("1705309600.000100", files=[{"id": "F1"}]), **more}
    got = [one for one in zipped({**EXPORT, "general/2024-01-17.json": [said]}) if one.timestamp == said["ts"]]
    words = [(one.speaker, one.text) for one in got if isinstance(one, Utterance)]
    out = [one.reason for one in got if isinstance(one, LeftOut)]
    assert (words, out) == (([], ["a file without a text"]) if text is None else ([(speaker, text)], []))
