"""Exports of so many messages as the programs write them, made from a seed, for the benchmark of the readers."""

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TextIO

START = datetime(2019, 3, 15, 8, 0, tzinfo=UTC)  # a day that is no month
NAMES = ("Anna Lindqvist", "Jonas")
PER_CHAT = 20  # messages of one conversation with an AI
PER_FILE = 10_000  # messages of one file of Facebook
_WORDS = (
    "the river was high again and we walked home along the old road past the mill with bread apples two letters "
    "a dog näher größer été où мир чай 日本 tea 🌊 🙂 van sold cello quiet evening train late sorry tomorrow really no "
    "yes I think so maybe later what did she say about it call me when you are there"
)


def texts(count: int = 2000) -> list[str]:
    """Like people's messages: 3 to 30 words, some of more than one line, signs of many scripts."""
    rng = random.Random(7)
    vocabulary, found = _WORDS.split(" "), []
    for _ in range(count):
        words = rng.choices(vocabulary, k=int(rng.triangular(3, 30, 6)))
        if rng.random() < 0.06:
            words.insert(len(words) // 2, "\n")
        if rng.random() < 0.06:
            words.append('"so: she said" <https://example.org/a?b=1&c=2>')
        found.append(" ".join(words).replace(" \n ", "\n"))
    return found


def _said(count: int) -> Iterator[tuple[int, int, str, datetime]]:
    """(number, who, text, when) of each message; a million of them in seven years, with nights between."""
    rng = random.Random(11)
    pool, moment = texts(), START
    pauses = [timedelta(seconds=rng.randrange(5, 195)) for _ in range(997)]
    night = timedelta(hours=9)
    for number in range(count):
        moment += night if number % 250 == 249 else pauses[number % 997]
        yield number, (number * 7 // 3) & 1, pool[number * 17 % 2000], moment


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def telegram(file: TextIO, count: int) -> None:
    file.write('{\n "name": "Jonas",\n "type": "personal_chat",\n "id": 4001,\n "messages": [')
    for number, who, text, when in _said(count):
        seconds = int(when.timestamp())
        said = _json(text)
        if number % 25 == 7:
            said = f'[{said}, {{\n     "type": "link",\n     "text": "https://example.org"\n    }}, ""]'
            entities = (
                f'{{\n     "type": "plain",\n     "text": {_json(text)}\n    }},\n'
                '    {\n     "type": "link",\n     "text": "https://example.org"\n    }'
            )
        else:
            entities = f'{{\n     "type": "plain",\n     "text": {said}\n    }}'
        file.write(
            f'{"," if number else ""}\n  {{\n   "id": {number + 1},\n   "type": "message",\n'
            f'   "date": "{when:%Y-%m-%dT%H:%M:%S}",\n   "date_unixtime": "{seconds}",\n'
            f'   "from": "{NAMES[who]}",\n   "from_id": "user{4000 + who}",\n   "text": {said},\n'
            f'   "text_entities": [\n    {entities}\n   ]\n  }}'
        )
    file.write("\n ]\n}")


def chatgpt(file: TextIO, count: int) -> None:
    said = _said(count)
    file.write("[")
    for first in range(0, count, PER_CHAT):
        nodes, above, children = [], f"root-{first}", []
        for number, _, text, when in (next(said) for _ in range(min(PER_CHAT, count - first))):
            own, role = f"{number:08x}-5f0d-4b1c-9d3e-{number:012x}", ("user", "assistant")[number & 1]
            children.append((above, own))
            nodes.append((own, above, role, _json(text), when.timestamp()))
            above = own
        below = dict(children)
        file.write(
            f'{"," if first else ""}{{"title": "Chat {first}", "create_time": {nodes[0][4]}, "update_time": '
            f'{nodes[-1][4]}, "mapping": {{"root-{first}": {{"id": "root-{first}", "message": null, "parent": null, '
            f'"children": ["{nodes[0][0]}"]}}'
        )
        for own, above, role, said_json, when_s in nodes:
            kid = f'"{below[own]}"' if own in below else ""
            model = ', "model_slug": "gpt-4o", "finish_details": {"type": "stop"}' if role == "assistant" else ""
            file.write(
                f', "{own}": {{"id": "{own}", "message": {{"id": "{own}", "author": {{"role": "{role}", "name": null, '
                f'"metadata": {{}}}}, "create_time": {when_s}, "update_time": null, "content": {{"content_type": '
                f'"text", "parts": [{said_json}]}}, "status": "finished_successfully", "end_turn": true, '
                f'"weight": 1.0, "metadata": {{"request_id": "{own[:13]}", "timestamp_": "absolute"{model}}}, '
                f'"recipient": "all", "channel": null}}, "parent": "{above}", "children": [{kid}]}}'
            )
        file.write(
            f'}}, "moderation_results": [], "current_node": "{nodes[-1][0]}", "plugin_ids": null, "conversation_id": '
            f'"c-{first:08x}", "gizmo_id": null, "is_archived": false, '
            f'"default_model_slug": "gpt-4o", "id": "c-{first:08x}"}}'
        )
    file.write("]")


def claude(file: TextIO, count: int) -> None:
    said = _said(count)
    file.write("[")
    for first in range(0, count, PER_CHAT):
        file.write(
            f'{"," if first else ""}{{"uuid": "c-{first:08x}", "name": "Chat {first}", "summary": "", "created_at": '
            f'"2024-01-15T09:00:00.000000Z", "updated_at": "2024-01-15T09:00:00.000000Z", '
            '"account": {"uuid": "a-1"}, "chat_messages": ['
        )
        for number, _, text, when in (next(said) for _ in range(min(PER_CHAT, count - first))):
            time, words = f"{when:%Y-%m-%dT%H:%M:%S}.{number % 1_000_000:06}Z", _json(text)
            file.write(
                f'{"" if number == first else ","}{{"uuid": "m-{number:012x}", "text": {words}, "content": [{{'
                f'"start_timestamp": "{time}", "stop_timestamp": "{time}", "flags": null, "type": "text", '
                f'"text": {words}, "citations": []}}], "sender": "{("human", "assistant")[number & 1]}", '
                f'"created_at": "{time}", "updated_at": "{time}", "attachments": [], "files": []}}'
            )
        file.write("]}")
    file.write("]")


def discord(file: TextIO, count: int) -> None:
    file.write(
        '{\n  "guild": {\n    "id": "0",\n    "name": "Direct Messages",\n    "iconUrl": "x"\n  },\n  "channel": {\n'
        '    "id": "91",\n    "type": "DirectTextChat",\n    "categoryId": null,\n    "category": "Private",\n'
        '    "name": "jonas",\n    "topic": null\n  },\n  "dateRange": {\n    "after": null,\n    "before": null\n'
        '  },\n  "exportedAt": "2024-06-01T10:00:00+02:00",\n  "messages": ['
    )
    for number, who, text, when in _said(count):
        file.write(
            f'{"," if number else ""}\n    {{\n      "id": "{500_000_000_000_000_000 + number}",\n'
            f'      "type": "Default",\n'
            f'      "timestamp": "{when:%Y-%m-%dT%H:%M:%S}.{number % 1000:03}+00:00",\n      "timestampEdited": null,\n'
            f'      "callEndedTimestamp": null,\n      "isPinned": false,\n      "content": {_json(text)},\n'
            f'      "author": {{\n        "id": "{11 + who}",\n        "name": "{NAMES[who].split()[0].lower()}",\n'
            f'        "discriminator": "0000",\n        "nickname": "{NAMES[who]}",\n        "color": null,\n'
            '        "isBot": false,\n        "roles": [],\n        "avatarUrl": "https://example.org/a.png"\n'
            '      },\n      "attachments": [],\n      "embeds": [],\n      "stickers": [],\n      "reactions": [],\n'
            '      "mentions": [],\n      "inlineEmojis": []\n    }'
        )
    file.write(f'\n  ],\n  "messageCount": {count}\n}}')


def facebook(file: TextIO, count: int, first: int, messages: Iterator[tuple[int, int, str, datetime]]) -> None:
    """One file of a thread: newest first, its UTF-8 written as if it were Latin-1."""
    people = ",".join(f'\n    {{\n      "name": "{name}"\n    }}' for name in NAMES)
    file.write(f'{{\n  "participants": [{people}\n  ],\n  "messages": [')
    last = int((START + timedelta(days=3000)).timestamp() * 1000)
    for number, who, text, _ in islice(messages, count):
        wrong = json.dumps(text.encode().decode("latin-1"))
        file.write(
            f'{"," if number > first else ""}\n    {{\n      "sender_name": "{NAMES[who]}",\n'
            f'      "timestamp_ms": {last - number * 171_000},\n      "content": {wrong},\n'
            '      "is_geoblocked_for_viewer": false,\n      "is_unsent_image_by_messenger_kid_parent": false\n    }'
        )
    file.write(
        '\n  ],\n  "title": "Jonas",\n  "is_still_participant": true,\n  "thread_path": "inbox/jonas_1",\n'
        '  "magic_words": []\n}'
    )


def _facebook_zip(path: Path, count: int) -> None:
    """The files of a thread hold 10,000 messages each, the first file the newest."""
    said = _said(count)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for first in range(0, count, PER_FILE):
            member = f"your_facebook_activity/messages/inbox/jonas_1/message_{first // PER_FILE + 1}.json"
            with archive.open(member, "w") as raw, io.TextIOWrapper(raw, "utf-8") as file:
                facebook(file, min(PER_FILE, count - first), first, said)


def whatsapp(file: TextIO, count: int) -> None:
    for number, who, text, when in _said(count):
        shown = "<Media omitted>" if number % 40 == 9 else text
        file.write(f"{when.day:02}/{when.month:02}/{when:%y}, {when:%H:%M} - {NAMES[who]}: {shown}\n")


_TEXTS: dict[str, tuple[Callable[[TextIO, int], None], str]] = {
    "telegram": (telegram, "result.json"),
    "chatgpt": (chatgpt, "conversations.json"),
    "claude": (claude, "conversations.json"),
    "discord": (discord, "Direct Messages - jonas [91].json"),
    "whatsapp": (whatsapp, "WhatsApp Chat with Jonas.txt"),
}
EXPORTS = (*_TEXTS, "facebook")


def write(name: str, folder: Path, count: int) -> Path:
    """Makes the export of `count` messages in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "facebook":
        _facebook_zip(folder / "facebook-anna.zip", count)
        return folder / "facebook-anna.zip"
    made, file_name = _TEXTS[name]
    with open(folder / file_name, "w", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
        made(file, count)
    return folder / file_name
