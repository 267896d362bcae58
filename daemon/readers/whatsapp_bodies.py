"""What stands behind a header of WhatsApp: whether a person said it, and what of it; and how the chat is called."""

import re
import unicodedata

from daemon.readers import whatsapp_words as words
from daemon.readers.shape import FileFacts
from daemon.readers.whatsapp_dates import STRIPPED

EMPTY = "an empty message, or one that could be seen once"
NOTICE = "a notice of WhatsApp"
MARKED = "a notice of WhatsApp, or media: WhatsApp's own mark stands in front of it"

_ENDS = STRIPPED + "\n"
_IN_ANGLES = re.compile(r"<(?!http)([^<>\n]{3,300})>$")
_ENCLOSED = re.compile(r"[^:：<>]{2,30}[:：]\s?\S.*\.\w{2,5}")  # <attached: 00000021-PHOTO.jpg> in any language
_DOCUMENT = re.compile(r"\S[^\n]{0,200}\.[A-Za-z0-9]{2,5}(?:\s*[•·][\s\u200e\u200f]*\d+[^\n]{0,20})?")
_FILE_NAME = re.compile(r"\S.{0,200}\.[a-z0-9]{2,5} \([^()\n]{4,30}\)", re.IGNORECASE)
_PLACE = re.compile(r"[^\n:]{2,30}: https://maps\.google\.com/\?q=-?[\d.]+,-?[\d.]+")
_OPTION = re.compile(r"\n[\u200e\u200f]*[^\n:a-z]{3,20} ?: ?[^\n]* \([\u200e\u200f]?\d+ [^\n()]+\)(?=\n|$)")
_QUOTES = (("“", "”"), ("„", "“”"), ("«", "»"), ("「", "」"))
_COPY = re.compile(r"(?:\s*\(\d+\)|\s+copy|\s+-\s+copy)$", re.IGNORECASE)
_UNNAMED = re.compile(r"_?chat(?:[ _-]?\d{1,3})?|whatsapp chat|", re.IGNORECASE)


def weighed(text: str, ios: bool) -> tuple[str | None, str]:
    """(why a message is no memory, or None; its text as it was said)."""
    bare = text.strip(_ENDS)
    if not bare:
        return EMPTY, ""
    if ios and text[0] == "\u200e":
        return _marked(bare)
    if bare[-1] == ">" and (found := _IN_ANGLES.match(bare, max(bare.rfind("<"), 0))):
        why, bare, whole = _without_angles(bare, found)
        if whole:
            return why, bare
    lowered = bare[:300].casefold()
    if lowered in words.ALONE:
        return _kind(lowered), bare
    caption, _, last = bare.rpartition("\u200e")
    if caption and last.casefold() in words.MEDIA:
        return _caption(caption)
    head, _, caption = bare.partition("\n")
    if len(head) < 250 and (head := head.strip(STRIPPED)).endswith(")"):
        named = _FILE_NAME.fullmatch(head) is not None
        if named and ("-WA" in head or text[0] == "\u200e" or head.casefold().endswith(words.ATTACHED)):
            return _caption(caption) if caption.strip(_ENDS) else ("media", bare)
    if lowered.startswith(words.PLACE_STARTS) or _PLACE.fullmatch(head):
        return "a place on the map", bare
    if lowered.startswith(words.NOTICE_STARTS):
        return NOTICE, bare
    return ("a poll", bare) if _is_poll(bare) else (None, bare)


def _without_angles(text: str, found: re.Match[str]) -> tuple[str | None, str, bool]:
    """(why it is left out, the text, whether this decides) of a text that ends in <...>: nothing but a placeholder, a
    mark of an edit, or a caption with what was attached to it."""
    inner = found[1].casefold()
    rest = text[: found.start()].strip(_ENDS)
    own = "\u200e" in text[max(found.start() - 2, 0) : found.start()]
    many = " " in inner or not inner.isascii()  # WhatsApp's are more than one word, where words are divided
    edited = len(inner) < 50 and many and any(word in inner for word in words.EDITED)
    enclosed = any(word in inner for word in words.ENCLOSED) or _ENCLOSED.fullmatch(inner) is not None
    if not rest:
        placed = enclosed or (many and not inner[0].isdigit())  # not <grin>, nor <3 you>
        return (EMPTY if edited else "media" if placed else None), text, True
    if enclosed:
        return *_caption(rest), True
    if edited or (own and many):
        again = _IN_ANGLES.match(rest, max(rest.rfind("<"), 0)) if rest[-1] == ">" else None
        return _without_angles(rest, again) if again else (None, rest, False)
    return None, text, False


def _caption(text: str) -> tuple[str | None, str]:
    """What was said to a file; the name of a document and its pages are nothing that was said."""
    text = text.strip(_ENDS)
    return ("media", text) if not text or _DOCUMENT.fullmatch(text) else (None, text)


def _marked(text: str) -> tuple[str | None, str]:
    """A text behind the mark that WhatsApp for iOS puts before its own words, and that a keyboard of a language from
    right to left, or a number that was copied, may put before a person's."""
    lowered = text[:300].casefold()
    first, _, rest = text.partition("\n")
    if _is_poll(text) or first.endswith(":"):
        return "a poll", text  # or an event
    if first.casefold().strip(STRIPPED) in words.MEDIA or (first[:1] == "<" and first.strip(STRIPPED)[-1:] == ">"):
        return _caption(rest) if rest.strip(_ENDS) else ("media", text)
    caption, _, last = text.rpartition("\u200e")
    if caption and (last.casefold() in words.MEDIA or (last[:1] == "<" and last[-1:] == ">")):
        return _caption(caption)  # "‎report.pdf • ‎2 pages ‎document omitted"
    if lowered in words.DELETED or lowered.startswith("this message was deleted by admin"):
        return "a deleted message", text
    if lowered.startswith(words.CALL_STARTS) or lowered in words.CALLS:
        return "a call", text
    if lowered in words.PLACES or lowered.startswith(words.PLACE_STARTS) or _PLACE.fullmatch(text):
        return "a place on the map", text
    if rest or not any(map(str.isalpha, text)) or lowered.startswith(("http://", "https://")):
        return None, text  # WhatsApp's own are one line, of words
    return NOTICE if lowered.startswith(words.NOTICE_STARTS) else MARKED, text


def _is_poll(text: str) -> bool:
    """`POLL:`, its question, and a line for each answer: in every language in capitals where it has any."""
    first = text.partition("\n")[0].strip(STRIPPED)
    return first[-1:] in (":", "：") and len(first) < 30 and first == first.upper() and bool(_OPTION.search(text))


def _kind(lowered: str) -> str:
    kinds = {"a deleted message": words.DELETED, "a call": words.CALLS, "a place on the map": words.PLACES}
    return next((kind for kind, known in kinds.items() if lowered in known), "media")


def is_notice(name: str) -> bool:
    """Whether what stands before a colon is no name but the beginning of a notice: the colon is in a quoted title."""
    if "\n" in name or len(name) > 100 or name.count('"') % 2:
        return True
    for opening, closing in _QUOTES:
        if opening == "“" and "„" in name:
            continue  # which closes there
        if sum(map(name.count, closing)) < name.count(opening):
            return True
    return False


def is_log(name: str) -> bool:
    """Whether a name is what programs write into logs: a level, a process with its number, something in brackets."""
    name = name.strip(STRIPPED)
    level = name.rpartition(".")[2].strip("[]() ")
    if level.upper() in words.LOG_LEVELS and (level.isupper() or level.islower()):
        return True
    return name[:1] == "[" or re.fullmatch(r"[\w.-]+\[\d+\]", name) is not None


def conversation(facts: FileFacts) -> str:
    """The name of the chat, the same for each copy of its export: in the name of the file, else of the folder or the
    zip around it."""
    folders = facts.path.split("/")[:-1]
    for name in (facts.name, *reversed(folders), facts.container):
        stem = unicodedata.normalize("NFC", name.rpartition("/")[2])
        for suffix in (".txt", ".zip", ".gz"):
            stem = stem[: -len(suffix)] if stem.casefold().endswith(suffix) else stem
        while (shorter := _COPY.sub("", stem).strip()) != stem:
            stem = shorter
        lowered = stem.casefold()
        stem = stem[len(next((one for one in words.FILE_PREFIXES if lowered.startswith(one)), "")) :]
        lowered = stem.casefold()
        stem = stem[: len(stem) - len(next((one for one in words.FILE_SUFFIXES if lowered.endswith(one)), ""))].strip()
        if not _UNNAMED.fullmatch(stem):
            return stem
    return "chat"


def is_export(name: str) -> bool:
    """Whether a file is called as WhatsApp calls its exports."""
    lowered = name.casefold()
    if lowered == "_chat.txt":
        return True
    return "whatsapp" in lowered and lowered.endswith(".txt") and (
        lowered.startswith(words.FILE_PREFIXES) or lowered.removesuffix(".txt").endswith(words.FILE_SUFFIXES)
    )  # fmt: skip
