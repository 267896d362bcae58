"""Gemini: Takeout's `MyActivity.json` and `MyActivity.html`, chats of AI Studio and the Gemini CLI (seen in exports).

Takeout has one entry for each prompt and its answer, the newest first, with titles in the language of the account.
Entries are known by their structure (an answer in HTML, the product's name) before words of a language. An entry has
no conversation except in newer exports (`details[].url`): else those within 30 minutes of each other are one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

from daemon.readers.ai_chats import conversations, name_of, text_of
from daemon.readers.dates import parse_time, zoned_time
from daemon.readers.gemini_html import CHAT, plain
from daemon.readers.gemini_html import entries as html_cells
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Refused, Utterance

ABOUT = """\
**Gemini.** Google Takeout, My Activity, Gemini Apps; choose JSON if you can, HTML is read too. Drop the zip as it is,
or `MyActivity.json`. Each entry gives your prompt and the answer; entries without an answer, attached files and what is
no prompt (a canvas, feedback) are left out. Prompts that are no more than 30 minutes apart are one conversation, where
Takeout does not say it. Chats of AI Studio (`chunkedPrompt`) and of the Gemini CLI (`sessionId`) are read as well.
`[sources.gemini] train_on = "me"` learns your own words instead.
"""

SOURCE = "gemini"
_GAP = 30 * 60  # seconds
_MOST = 200_000  # entries that are held to turn them round; a year of heavy use has some ten thousand
# What Takeout puts in front of a prompt, by language. Others are learnt from the file, see _verbs.
_VERBS = (
    "Prompted ", "Branched ", "Live Prompt ", "Added chat from link: ", "Said ", "Asked ", "Eingegebener Prompt: ",
    "Prompt eingegeben: ", "Gesagt: ", "Prompt : ", "Requête : ", "Vous avez saisi ", "Has escrito ", "Has pedido ",
    "Petición: ", "Hai inserito ", "Prompt inserito: ", "Prompt: ", "Você pediu ", "Comando enviado: ", "Запит: ",
    "Запрос: ", "Вы ввели: ", "Wpisany prompt: ", "Prompt ingevoerd: ", "İstem: ", "送信したメッセージ: ",
    "プロンプト: ", "提示：", "输入的提示：", "프롬프트: ",
)  # fmt: skip
# Entries that are no prompts even where they have an answer in HTML: a canvas, a vote.
_NO_PROMPT = re.compile(
    r"(?:Created Gemini Canvas|Used (?:Gemini|Bard|an Assistant)|Selected preferred draft|Gave feedback"
    r"|Cleared previous feedback|Answered survey)\b"
)
_LEARNT = re.compile(r"[^\n:：]{2,40}?(?: ?: |：)")
_BLANKS = str.maketrans("\u00a0\u202f", "  ")
_PRODUCT = re.compile(r"Gemini|Bard", re.IGNORECASE)
_PAGE = (b"outer-cell", b"mdl-typography", b".mdl-")


class Entry(NamedTuple):
    """A prompt and its answer. `answer` is None where there is none."""

    prompt: str
    answer: str | None
    raw: str | None
    time: str | None
    zone_known: bool
    chat: str | None
    files: tuple[str, ...] = ()


def _claims(sniff: Sniff) -> bool:
    keys = {key.removeprefix("item.") for key in sniff.keys}
    if "chunkedPrompt" in keys or {"sessionId", "messages.item.type", "messages.item.content"} <= keys:
        return True
    if {"header", "title", "products.item"} <= keys or {"header", "title", "safeHtmlItem.item.html"} <= keys:
        return _PRODUCT.search(sniff.text or sniff.head.decode("utf-8", "replace")) is not None
    return _is_page(sniff.head, sniff.whole)


def _is_page(head: bytes, whole: bool) -> bool:
    """Whether it is a page of Takeout's activity that may be of Gemini. Its styles alone may fill the head."""
    if not head[:4000].lstrip().lower().startswith((b"<html", b"<!doctype html")):
        return False
    if not any(mark in head for mark in _PAGE):
        return False
    return _PRODUCT.search(head.decode("utf-8", "replace")) is not None or (
        not whole and b"outer-cell" not in head
    )


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterable[Heard]:
    start = stream.tell()
    first = stream.read(256).lstrip()[:1]
    stream.seek(start)
    if first == b"<":
        yield from _activity(_html_entries(stream, facts))
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
        yield from _activity(_json_entries(chain((one,), values), facts))


# ---- Takeout --------------------------------------------------------------------------------------


def _html_entries(stream: BinaryIO, facts: FileFacts) -> Iterator[Entry | LeftOut]:
    for cell in html_cells(stream, facts.locale.zone):
        if cell.product and not _PRODUCT.search(cell.product):
            yield LeftOut(f"an activity of {cell.product[:60]}, not of Gemini", "", cell.prompt[:300], cell.raw,
                          cell.time, cell.zone_known)  # fmt: skip
        else:
            yield Entry(*cell[1:])


def _json_entries(values: Iterable[dict[str, Any] | BadItem], facts: FileFacts) -> Iterator[Entry | LeftOut | BadItem]:
    for one in values:
        yield one if isinstance(one, BadItem) else _entry(one, facts)


def _entry(one: dict[str, Any], facts: FileFacts) -> Entry | LeftOut:
    names = [text_of(one.get("header")), *map(text_of, _list(one, "products"))]
    raw = one.get("time")
    time, known = zoned_time(raw, facts.locale.zone) if isinstance(raw, str) else (None, True)
    shown = text_of(raw)[:64] if isinstance(raw, str) else None
    title = text_of(one.get("title"))
    if not any(_PRODUCT.search(name) for name in names):
        others = " ".join(", ".join(dict.fromkeys(filter(None, names)))[:60].split())
        return LeftOut(f"an activity of {others or 'nothing'}, not of Gemini", "", title[:300], shown, time, known)
    htmls = [text_of(part.get("html")) for part in _list(one, "safeHtmlItem") if isinstance(part, dict)]
    answer = "\n\n".join(filter(None, map(plain, htmls))).strip()
    links = [part.get("url") for part in _list(one, "details") if isinstance(part, dict)]
    chats = (CHAT.search(text_of(link)) for link in (*links, one.get("titleUrl")))
    chat = next((found[1] for found in chats if found), None)
    files = (text_of(file.get("name") if isinstance(file, dict) else file) for file in
             (*_list(one, "attachedFiles"), one.get("imageFile")))  # fmt: skip
    return Entry(title, answer or None, shown, time, known, chat, tuple(dict.fromkeys(filter(None, files))))


def _list(one: dict[str, Any], key: str) -> list[Any]:
    value = one.get(key)
    return value if isinstance(value, list) else []


def _activity(found: Iterable[Entry | LeftOut | BadItem]) -> Iterator[Heard]:
    """Oldest first. Raises Refused where there are more entries than can be turned round."""
    held: list[Entry] = []
    for one in found:
        if isinstance(one, (BadItem, LeftOut)):
            yield one
        else:
            held.append(one._replace(prompt=one.prompt.translate(_BLANKS).strip()))
            if len(held) > _MOST:
                raise Refused(f"more than {_MOST:,} entries in one file: choose a shorter time in Takeout")
    held = _oldest_first(held)
    verbs, always = _verbs(held)
    last: str | None = None
    chat = "activity"
    keys: dict[tuple[str, str], int] = {}
    for entry in held:
        if entry.time and (last is None or _seconds(last, entry.time) > _GAP):
            chat = f"activity of {entry.time}"
        last = entry.time or last
        for file in entry.files:
            yield LeftOut("an attached file", "user", file[:200], entry.raw, entry.time, entry.zone_known)
        prompt, named = _prompt(entry.prompt, verbs)
        reason = _why_not(entry, prompt, named, always)
        if reason:
            text = (entry.prompt or entry.answer or "")[:300]
            yield LeftOut(reason, "", text, entry.raw, entry.time, entry.zone_known)
            continue
        name, key = entry.chat or chat, entry.raw or entry.time or prompt[:100]
        number = keys[name, key] = keys.get((name, key), 0) + 1
        key = key if number == 1 else f"{key} #{number}"  # two in one second
        for role, text in (("user", prompt), ("assistant", entry.answer or "")):
            yield Utterance(SOURCE, name, "", text, entry.raw, entry.time, entry.zone_known, f"{key} {role}", None,
                            "user" if role == "user" else "assistant")  # fmt: skip


def _oldest_first(newest_first: list[Entry]) -> list[Entry]:
    """What has no time stays behind the one before it."""
    found: list[tuple[str, Entry]] = []
    time = ""
    for entry in reversed(newest_first):
        time = entry.time or time
        found.append((time, entry))
    found.sort(key=lambda pair: pair[0])
    return [entry for _, entry in found]


def _why_not(entry: Entry, prompt: str, named: bool, always: bool) -> str | None:
    """Why an entry is no prompt with its answer; None where it is one."""
    if not named and _NO_PROMPT.match(entry.prompt):
        return "an activity that is no prompt"
    if not prompt:
        return "an entry without a prompt"
    if entry.answer is None:
        return "an entry without an answer"
    # Where prompts bear a verb, what bears none and belongs to no chat is a canvas, a vote and the like.
    return "an activity that is no prompt" if always and not named and entry.chat is None else None


def _verbs(held: list[Entry]) -> tuple[tuple[str, ...], bool]:
    """(What stands in front of prompts, whether it does so before at least half of them): the known ones, and what
    ends in a colon and begins more than half of the entries with an answer, which no person's words do."""
    answered = [entry.prompt for entry in held if entry.answer is not None]
    known = sum(_prompt(title, _VERBS)[1] for title in answered)
    if known and 2 * known >= len(answered):
        return _VERBS, True
    begins = Counter(found[0] for title in answered if (found := _LEARNT.match(title)))
    for verb, count in begins.most_common(1):
        if count > 2 and 2 * count > len(answered):
            return (verb, *_VERBS), True
    for size in (3, 2, 1):  # words that no colon ends: only where nearly all begin so, as no person does
        words = Counter(" ".join([*parts[:size], ""]) for title in answered if len(parts := title.split(" ")) > size)
        for verb, count in words.most_common(1):
            if count > 5 and 10 * count >= 9 * len(answered):
                return (verb, *_VERBS), False
    return _VERBS, False


def _prompt(title: str, verbs: tuple[str, ...]) -> tuple[str, bool]:
    """(The prompt, whether a verb stood before it)."""
    for verb in verbs:
        if title.startswith(verb):
            return title[len(verb) :].strip(), True
        if title == verb.rstrip():
            return "", True  # a file alone
    return title, False


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


# ---- AI Studio, Gemini CLI ------------------------------------------------------------------------


def _studio(one: dict[str, Any], facts: FileFacts, number: int) -> Iterator[Heard]:
    name = facts.name if number == 1 else f"{facts.name} {number}"
    chunks = one["chunkedPrompt"].get("chunks") if isinstance(one["chunkedPrompt"], dict) else None
    for place, chunk in enumerate(chunks if isinstance(chunks, list) else [], 1):
        if not isinstance(chunk, dict):
            continue
        role, text = chunk.get("role"), text_of(chunk.get("text")).strip() or _of_parts(chunk.get("parts"))
        raw = chunk.get("createTime")
        shown = text_of(raw)[:64] if isinstance(raw, str) else None
        time = parse_time(raw) if isinstance(raw, str) else facts.modified
        yield _said(name, role, text, shown, time, f"chunk {place}", thought=chunk.get("isThought") is True)


def _of_parts(parts: Any, between: str = "") -> str:
    """The text of pieces; those of an answer that was streamed are cut anywhere."""
    texts = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict):
            part = None if part.get("thought") is True else part.get("text")
        texts.append(text_of(part))
    return between.join(filter(None, texts)).strip()


def _session(one: dict[str, Any], number: int) -> Iterator[Heard]:
    messages = one.get("messages")
    name = name_of(one.get("sessionId")) or f"session {number}"
    for place, message in enumerate(messages if isinstance(messages, list) else [], 1):
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        content = _of_parts(content, "\n") if isinstance(content, list) else text_of(content).strip()
        raw = message.get("timestamp")
        shown = text_of(raw)[:64] if isinstance(raw, str) else None
        time = parse_time(raw) if isinstance(raw, str) else None
        yield _said(name, message.get("type"), content, shown, time, f"message {place}")


def _said(
    name: str, role: Any, text: str, raw: str | None, time: str | None, where: str, *, thought: bool = False
) -> Utterance | LeftOut:
    who = {"user": "user", "model": "assistant", "gemini": "assistant"}.get(role) if isinstance(role, str) else None
    if thought or who is None or not text:
        reason = "a thought of the model" if thought else "it has no text" if who else "a notice or the work of a tool"
        return LeftOut(reason, str(role or "")[:60], text[:300], raw, time, True, where)
    return Utterance(SOURCE, name, "", text, raw, time, True, where, None, "user" if who == "user" else "assistant")


READER = StreamReader(SOURCE, _claims, _read)
