"""The zip of a ChatGPT export: its chats in several files, what comes with them, and what nobody said."""

import io
import json
import zipfile
from typing import Any

import pytest

from daemon import readers
from daemon.records import BadItem, LeftOut, Memory, Refused, Utterance


def heard(raw: bytes, name: str) -> list[Any]:
    return list(readers.read(io.BytesIO(raw), name, len(raw), None))


def conversation(ident: str, *texts: str) -> dict[str, Any]:
    """A conversation in one line, in which the two speak in turn."""
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    last = "root"
    for number, text in enumerate(texts):
        message = {
            "id": f"m{number}", "author": {"role": ("user", "assistant")[number % 2]}, "recipient": "all",
            "create_time": 1705309200.0 + number, "content": {"content_type": "text", "parts": [text]},
            "weight": 1.0, "metadata": {},
        }  # fmt: skip
        mapping[f"n{number}"] = {"id": f"n{number}", "message": message, "parent": last, "children": []}
        last = f"n{number}"
    return {"title": "Tea", "create_time": 1705309140.0, "mapping": mapping, "current_node": last, "id": ident}


CHAT = conversation("c-1", "Which tea?", "Green tea.")


def zipped(files: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, value in files.items():
            archive.writestr(path, value if isinstance(value, str | bytes) else json.dumps(value))
    return out.getvalue()


def test_a_zip_in_several_files_is_read_and_what_comes_with_it_is_named() -> None:
    files = {
        "chat.html": "<html><body>Which tea?</body></html>", "user.json": {"id": "u", "email": "ada@example.org"},
        "export_manifest.json": {"files": []}, "message_feedback.json": [], "shared_conversations.json": [],
        "conversations-000.json": [CHAT], "conversations-001.json": [conversation("c-2", "Second file")],
        "user-abc/file_0001-tea.png": b"\x89PNG", "dalle-generations/file-x.webp": b"RIFF",
    }  # fmt: skip
    got = heard(zipped(files), "export.zip")
    assert [one.text for one in got if isinstance(one, Utterance)] == ["Which tea?", "Green tea.", "Second file"]
    assert sorted(one.where for one in got if isinstance(one, LeftOut)) == sorted(set(files) - {
        "conversations-000.json", "conversations-001.json"})  # fmt: skip
    assert not [one for one in got if isinstance(one, BadItem | Memory)]


def test_a_zip_of_companions_alone_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match="holds no memory"):
        heard(zipped({"user.json": {"id": "u"}, "message_feedback.json": []}), "export.zip")


def test_files_that_were_sent_are_no_notes_of_the_person() -> None:
    files = {
        "conversations.json": [CHAT], "file-AbC123xyzAbC123xyzAbCd-report.txt": "Nobody said this.",
        "file_0000000012ab00000000ff-table.csv": "a,b\n1,2\n", "user-x1/file_00000000ff12345678.dat": b"\x00\x01",
        "textdocs/d1.json": {"id": "d1", "title": "Tea", "content": "Written together.", "created_at": "2024-01-01"},
        "notes.md": "My own note.",
    }  # fmt: skip
    got = heard(zipped(files), "export.zip")
    assert [one.content for one in got if isinstance(one, Memory)] == ["My own note."]
    assert {one.where for one in got if isinstance(one, LeftOut)} == set(files) - {"conversations.json", "notes.md"}
    assert not [one for one in got if isinstance(one, BadItem)]
    del files["conversations.json"]
    assert len([one for one in heard(zipped(files), "notes.zip") if isinstance(one, Memory)]) > 1
