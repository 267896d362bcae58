"""ChatGPT's data export: `conversations.json`, or `conversations-000.json` and on (seen in published exports).

A conversation is a tree, since an answer can be made anew: the line from `current_node` to the root is what was
last on the screen. Left out, each with its reason: hidden and system messages, calls and results of tools,
thoughts, pictures alone. What a person told ChatGPT about themselves is repeated in each conversation: taken once.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

import orjson

from daemon.readers.ai_chats import conversations, latest_leaf, line_of_descent, name_of, text_of
from daemon.readers.dates import parse_time
from daemon.readers.json_chats import utc
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Memory, Utterance

ABOUT = """\
**ChatGPT.** Settings, Data controls, Export data; drop the zip from the mail as it is, or its `conversations.json` (or
`conversations-000.json` and on). Of each conversation the line that was last on the screen is read, not the answers
that were made anew. Hidden and system messages, tools, thoughts and pictures are left out. What you told ChatGPT about
yourself becomes an observation, and so does each thing that it noted of you. The answers are learnt; with
`[sources.chatgpt] train_on = "me"` your own words are.
"""

SOURCE = "chatgpt"
COMPANIONS = frozenset((
    "chat.html", "user.json", "user_settings.json", "message_feedback.json", "model_comparisons.json",
    "shared_conversations.json", "export_manifest.json", "group_chats.json", "shopping.json", "sora.json",
    "assets.json", "conversation_asset_file_names.json", "library_files.json",
))  # fmt: skip
_MARK = re.compile("\ue200([^\ue200\ue201]{0,20000})\ue201")
_OLD_CITED = re.compile(r":contentReference\[oaicite:\d{1,4}\](?:\{index=\d{1,4}\})?|【oaicite:\d{1,4}】")
_CITED = re.compile("【[^】\n]{0,200}†[^】\n]{0,200}】")
_FRAMED = re.compile(r"```(.*)```", re.DOTALL)  # greedy: the person's words may hold fences
_ORDERS = re.compile(
    r"\A(?:(?:Follow the instructions below naturally|All the following instructions should guide your behavior)"
    r"[^\n]*\n\s*)+"
)
_NOTED = re.compile(r"^\d{1,4}\. \[(\d{4}-\d\d-\d\d)\]\.? ?", re.MULTILINE)
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_THOUGHTS = ("thoughts", "reasoning_recap")
_TEXTS = ("text", "multimodal_text", "code")


def _claims(sniff: Sniff) -> bool:
    keys = sniff.keys
    return not keys.isdisjoint(("item.mapping", "mapping", "conversations.item.mapping")) and any(
        ".message" in key or ".children" in key or ".parent" in key for key in keys if "mapping." in key
    )


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    told: set[str] = set()
    for number, one in enumerate(conversations(stream), 1):
        if isinstance(one, BadItem):
            yield one
        else:
            yield from _conversation(one, number, told)


def _conversation(one: dict[str, Any], number: int, told: set[str]) -> Iterator[Heard]:
    where = f"conversation {number}"
    mapping = one.get("mapping")
    if not isinstance(mapping, dict):
        yield BadItem(where, "it has no `mapping` of messages")
        return
    nodes = {key: node for key, node in mapping.items() if isinstance(node, dict)}
    parents = _parents(nodes)
    leaf = one.get("current_node")
    if not isinstance(leaf, str) or leaf not in nodes:
        spoken_at = {key: parents[key] for key, node in nodes.items() if isinstance(node.get("message"), dict)}
        leaf = latest_leaf(spoken_at, lambda key: _made_at(nodes[key]))
    time = _utc(one.get("create_time"))
    # A place in the file is another one in the next export, and in each of the files that an export is cut into.
    name = name_of(one.get("conversation_id")) or name_of(one.get("id")) or (f"of {time}" if time else where)
    line = line_of_descent(parents, leaf) if leaf is not None else []
    spoken = 0
    for key in line:
        message = nodes[key].get("message")
        if not isinstance(message, dict):
            continue
        made = message.get("create_time")
        when = _utc(made)
        time, raw = (time, None) if when is None else (when, str(made))
        for heard in _message(message, key, name, raw, time, where, told):
            spoken += 1
            yield heard
    if not spoken:
        yield LeftOut("an empty conversation", text=text_of(one.get("title"))[:100], time=time, where=where)


def _parents(nodes: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """The parent of each node: its own word, else that of the node which counts it among its children."""
    if all("parent" in node for node in nodes.values()):
        return {key: node["parent"] if isinstance(node["parent"], str) else None for key, node in nodes.items()}
    found: dict[str, str | None] = {}
    for key, node in nodes.items():
        children = node.get("children")
        for child in children if isinstance(children, list) else ():
            if isinstance(child, str):
                found.setdefault(child, key)
    return {
        key: node["parent"] if isinstance(node.get("parent"), str) else found.get(key) for key, node in nodes.items()
    }


def _made_at(node: dict[str, Any]) -> float:
    message = node.get("message")
    made = message.get("create_time") if isinstance(message, dict) else None
    return float(made) if isinstance(made, (int, float)) and made == made and abs(made) < 1e15 else 0.0


def _utc(seconds: Any) -> str | None:
    if isinstance(seconds, str):  # as programs write it that take single conversations from the page
        return parse_time(seconds)
    good = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0
    return utc(int(seconds)) if good and seconds < 1e11 else None


def _message(
    message: dict[str, Any], key: str, name: str, raw: str | None, time: str | None, where: str, told: set[str]
) -> Iterator[Heard]:
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    content = content if isinstance(content, dict) else {}
    kind = content.get("content_type")
    metadata = message.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if kind in ("user_editable_context", "model_editable_context") or metadata.get("is_user_system_message") is True:
        yield from _about_the_person(content, metadata.get("user_context_message_data"), time, told)
        return
    text, media = _text(content)
    reason = _why_not(message, metadata, role, kind)
    if reason is None and not text:
        reason = "a picture, sound or file alone" if media else "an empty message"
    if reason is None:
        yield Utterance(SOURCE, name, "", text, raw, time, True, name_of(message.get("id")) or key, None,
                        "user" if role == "user" else "assistant")  # fmt: skip
    elif text or media or kind in _THOUGHTS or reason == "an empty message":
        yield LeftOut(reason, str(role or ""), text[:300], raw, time, True, where)


def _why_not(message: dict[str, Any], metadata: dict[str, Any], role: Any, kind: Any) -> str | None:
    if role == "tool":
        return "what a tool gave"
    if role not in ("user", "assistant"):
        return "a message of the system"
    if metadata.get("is_visually_hidden_from_conversation") is True:
        return "a hidden message"
    if message.get("weight") == 0:
        return "a message that ChatGPT itself passed over"
    if message.get("recipient") not in (None, "all"):
        return "a call of a tool"
    if kind in _THOUGHTS or message.get("channel") in ("analysis", "commentary"):
        return "a thought of the model"
    if kind not in _TEXTS:
        return f"content of the kind {' '.join(text_of(kind)[:40].split()) or 'unknown'}"
    return None


def _text(content: dict[str, Any]) -> tuple[str, bool]:
    """(the text, whether there was something that is none)."""
    parts = content.get("parts")
    if not isinstance(parts, list):
        plain = content.get("text") or content.get("content") or content.get("result")
        return _clean(text_of(plain)), False
    texts, media = [], False
    for part in parts:
        if isinstance(part, dict):
            spoken = part.get("text") if part.get("content_type") in ("audio_transcription", "text") else None
            media = media or not isinstance(spoken, str)
            part = spoken
        if isinstance(part, str) and part.strip():
            texts.append(_clean(text_of(part)))
    return "\n".join(filter(None, texts)), media


def _clean(text: str) -> str:
    """Without marks of citations, which only ChatGPT's own page can show; what such a mark shows as words stays."""
    if "oaicite" in text:
        text = _OLD_CITED.sub("", text)
    if not text.isascii():
        text = _PRIVATE.sub("", _CITED.sub("", _MARK.sub(_words_of_a_mark, text)))
    return text.strip()


def _words_of_a_mark(mark: re.Match[str]) -> str:
    """Of a name or a link inside the text what a reader of the page sees; of any other mark nothing."""
    kind, _, rest = mark[1].partition("\ue202")
    if kind in ("url", "link_title"):
        return rest.partition("\ue202")[0]
    if kind not in ("entity", "product_entity"):
        return ""
    try:
        shown = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return ""
    return text_of(shown[1]) if isinstance(shown, list) and len(shown) > 1 else ""


def _about_the_person(content: dict[str, Any], data: Any, time: str | None, told: set[str]) -> Iterator[Heard]:
    """What the person wrote of themselves, and what ChatGPT noted of them, each entry of that for itself."""
    data = data if isinstance(data, dict) else {}
    texts: list[tuple[str, str | None, str | None]] = []
    for own, framed in (("about_user_message", "user_profile"), ("about_model_message", "user_instructions")):
        text = text_of(data.get(own)).strip() or _unframed(text_of(content.get(framed)))
        texts.append((text, None, time))
    noted = text_of(content.get("model_set_context")).strip()
    places = [*_NOTED.finditer(noted)]
    texts.append((noted[: places[0].start() if places else None].strip(), None, time))
    for place, after in zip_longest(places, places[1:]):
        entry = noted[place.end() : after.start() if after else None].strip()
        texts.append((entry, place[1], parse_time(place[1]) or time))
    for text, raw, when in texts:
        if text and text not in told:
            if len(told) < 10_000:
                told.add(text)
            yield Memory(type="observation", content=text, timestamp=raw, time=when, tags=("profile",), source=SOURCE)


def _unframed(text: str) -> str:
    """The person's words out of the sentences in which ChatGPT hands them to the model."""
    if text.startswith("The user provided the ") and (found := _FRAMED.search(text)):
        text = _ORDERS.sub("", found[1].lstrip())
    return text.strip()


READER = StreamReader(SOURCE, _claims, _read, COMPANIONS)
