"""Gemini: Takeout's `MyActivity.json` and `MyActivity.html`, chats of AI Studio and the Gemini CLI (seen in exports).

Takeout has one entry for each prompt and its answer, the newest first, with titles in the language of the account.
Entries are known by their structure (an answer in HTML, the product's name), never by English words. An entry has no
conversation except in newer exports (`details[].url`): else those within 30 minutes of each other are one.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

from daemon.readers.ai_chats import conversations, name_of, text_of
from daemon.readers.dates import parse_time
from daemon.readers.gemini_html import entries as html_entries
from daemon.readers.gemini_html import plain
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**Gemini.** Google Takeout, My Activity, Gemini Apps; choose JSON if you can, HTML is read too. Drop the zip as it is,
or `MyActivity.json`. Each entry gives your prompt and the answer; entries without an answer are left out. Prompts that
are no more than 30 minutes apart are one conversation, where Takeout does not say it. Chats of AI Studio
(`chunkedPrompt`) and of the Gemini CLI (`sessionId`) are read as well. `[sources.gemini] train_on = "me"` learns your
own words instead.
"""

SOURCE = "gemini"
_GAP = 30 * 60  # seconds
_MOST = 200_000  # entries that are held to turn them round; a year of heavy use has some ten thousand
# What Takeout puts in front of a prompt, by language.
_VERBS = (
    "Prompted ", "Said ", "Asked ", "Eingegebener Prompt: ", "Prompt eingegeben: ", "Gesagt: ", "Requête : ",
    "Vous avez saisi ", "Has escrito ", "Has pedido ", "Petición: ", "Hai inserito ", "Prompt inserito: ", "Prompt: ",
    "Você pediu ", "Comando enviado: ", "Запит: ", "Запрос: ", "Вы ввели: ", "Wpisany prompt: ", "Prompt ingevoerd: ",
    "İstem: ", "プロンプト: ", "提示：", "输入的提示：", "프롬프트: ",
)  # fmt: skip
_PRODUCT = re.compile(r"Gemini|Bard", re.IGNORECASE)
_CHAT = re.compile(r"/app/([0-9a-zA-Z]+)")


class Entry(NamedTuple):
    """A prompt and its answer. `answer` is None where there is none."""

    prompt: str
    answer: str | None
    raw: str | None
    time: str | None
    zone_known: bool
    chat: str | None


def _claims(sniff: Sniff) -> bool:
    keys = {key.removeprefix("item.") for key in sniff.keys}
    if "chunkedPrompt" in keys or {"sessionId", "messages.item.type", "messages.item.content"} <= keys:
        return True
    if {"header", "title", "products.item"} <= keys or {"header", "title", "safeHtmlItem.item.html"} <= keys:
        return _PRODUCT.search(sniff.text or sniff.head.decode("utf-8", "replace")) is not None
    head = sniff.head[:4000].lstrip().lower()
    return head.startswith((b"<html", b"<!doctype html")) and b"outer-cell" in sniff.head and (
        _PRODUCT.search(sniff.head.decode("utf-8", "replace")) is not None
    )


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    start = stream.tell()
    first = stream.read(256).lstrip()[:1]
    stream.seek(start)
    if first == b"<":
        yield from _activity(Entry(*one) for one in html_entries(stream, facts.locale.zone))
        return
    values = conversations(stream)
    one = next(values, None)
    if isinstance(one, dict) and ("chunkedPrompt" in one or "sessionId" in one):
        number = 0
        while one is not None:
            number += 1
            if isinstance(one, BadItem):
                yield one
            elif "chunkedPrompt" in one:
                yield from _studio(one, facts, number)
            else:
                yield from _session(one, number)
            one = next(values, None)
    elif one is not None:
        yield from _activity(_json_entries(one, values))


# ---- Takeout --------------------------------------------------------------------------------------


def _json_entries(
    first: dict[str, Any] | BadItem, rest: Iterator[dict[str, Any] | BadItem]
) -> Iterator[Entry | BadItem]:
    one: dict[str, Any] | BadItem | None = first
    while one is not None:
        yield one if isinstance(one, BadItem) else _entry(one)
        one = next(rest, None)


def _entry(one: dict[str, Any]) -> Entry | BadItem:
    products = one.get("products")
    names = [text_of(one.get("header")), *(map(text_of, products) if isinstance(products, list) else [])]
    if not any(_PRODUCT.search(name) for name in names):
        others = ", ".join(dict.fromkeys(filter(None, names)))[:60]
        return BadItem("entry", f"it is no activity of Gemini but of {others or 'nothing'}")
    parts = one.get("safeHtmlItem")
    htmls = [text_of(part.get("html")) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    answer = "\n\n".join(filter(None, map(plain, htmls))).strip()
    raw = one.get("time")
    time = parse_time(raw) if isinstance(raw, str) else None
    details = one.get("details")
    urls = [text_of(part.get("url")) for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    chat = next((found[1] for found in map(_CHAT.search, urls) if found), None)
    shown = text_of(raw)[:64] if isinstance(raw, str) else None
    return Entry(text_of(one.get("title")), answer or None, shown, time, True, chat)


def _activity(found: Iterable[Entry | BadItem]) -> Iterator[Heard]:
    """Oldest first. Raises Refused where there are more entries than can be turned round."""
    held: list[Entry] = []
    for one in found:
        if isinstance(one, BadItem):
            yield one
        else:
            held.append(one)
            if len(held) > _MOST:
                raise Refused(f"more than {_MOST:,} entries in one file: choose a shorter time in Takeout")
    held.reverse()
    held.sort(key=lambda entry: entry.time or "")
    last: str | None = None
    chat = "activity"
    for entry in held:
        if entry.time and (last is None or _seconds(last, entry.time) > _GAP):
            chat = f"activity of {entry.time}"
        last = entry.time or last
        name = entry.chat or chat
        prompt = _prompt(entry.prompt)
        if entry.answer is None or not prompt:
            reason = "an entry without an answer" if prompt else "an entry without a prompt"
            yield LeftOut(reason, "", (prompt or entry.answer or "")[:300], entry.raw, entry.time, entry.zone_known)
            continue
        key = entry.raw or entry.time or prompt[:100]
        for role, text in (("user", prompt), ("assistant", entry.answer)):
            yield Utterance(SOURCE, name, "", text, entry.raw, entry.time, entry.zone_known, f"{key} {role}", None,
                            "user" if role == "user" else "assistant")  # fmt: skip


def _prompt(title: str) -> str:
    title = title.replace("\u00a0", " ").strip()
    for verb in _VERBS:
        if title.startswith(verb):
            return title[len(verb) :].strip()
    return title


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


# ---- AI Studio, Gemini CLI ------------------------------------------------------------------------


def _studio(one: dict[str, Any], facts: FileFacts, number: int) -> Iterator[Heard]:
    name = facts.name if number == 1 else f"{facts.name} {number}"
    chunks = one["chunkedPrompt"].get("chunks") if isinstance(one["chunkedPrompt"], dict) else None
    for place, chunk in enumerate(chunks if isinstance(chunks, list) else [], 1):
        if not isinstance(chunk, dict):
            continue
        role, text = chunk.get("role"), text_of(chunk.get("text")).strip()
        raw = chunk.get("createTime")
        shown = text_of(raw)[:64] if isinstance(raw, str) else None
        time = parse_time(raw) if isinstance(raw, str) else facts.modified
        yield _said(name, role, text, shown, time, f"chunk {place}", thought=chunk.get("isThought") is True)


def _session(one: dict[str, Any], number: int) -> Iterator[Heard]:
    messages = one.get("messages")
    name = name_of(one.get("sessionId")) or f"session {number}"
    for place, message in enumerate(messages if isinstance(messages, list) else [], 1):
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(text_of(part.get("text")) for part in content if isinstance(part, dict))
        raw = message.get("timestamp")
        shown = text_of(raw)[:64] if isinstance(raw, str) else None
        time = parse_time(raw) if isinstance(raw, str) else None
        yield _said(name, message.get("type"), text_of(content).strip(), shown, time, f"message {place}")


def _said(
    name: str, role: Any, text: str, raw: str | None, time: str | None, where: str, *, thought: bool = False
) -> Utterance | LeftOut:
    who = {"user": "user", "model": "assistant", "gemini": "assistant"}.get(role) if isinstance(role, str) else None
    if thought or who is None or not text:
        reason = "a thought of the model" if thought else "it has no text" if who else "a notice or the work of a tool"
        return LeftOut(reason, str(role or "")[:60], text[:300], raw, time, True, where)
    return Utterance(SOURCE, name, "", text, raw, time, True, where, None, "user" if who == "user" else "assistant")


READER = StreamReader(SOURCE, _claims, _read)
