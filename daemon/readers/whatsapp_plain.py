"""Messages of WhatsApp that are nothing but a text for certain, known by their bytes alone.

Nearly all are, so the reader is as fast as this is. All others are left to `whatsapp_bodies.weighed`, which would
say the same of these: whatever is in doubt is no plain text here.
"""

import re
from collections.abc import Container
from itertools import compress

from daemon.readers import whatsapp_words as words
from daemon.readers.whatsapp_dates import STRIPPED

_EXACT = frozenset(text.encode() for text in words.EXACT)
PLACE_HOLDERS = frozenset(b"<%b>" % text for text in _EXACT if text.decode().casefold() in words.MEDIA)
_MARKED = tuple(mark.encode() for mark in STRIPPED)
_MARK = b"\xe2\x80"  # the first two bytes of nearly every mark, and of some quotes
_OWN = b"\xe2\x80\x8e"  # in front of what WhatsApp itself wrote
# First and last bytes of a message that want a closer look; a mark is three bytes that begin with the same one.
_ODD_FIRST = frozenset("".join((STRIPPED, "<\n~")).encode()) - frozenset(range(0x80, 0xC0))
_ODD_LAST = frozenset(b" \t)>\n")
_ODD_LINE = frozenset((b" ", b"\t", b")", b">", b":", b"", *(mark.encode()[-1:] for mark in STRIPPED)))
_HEX = frozenset(b"0123456789abcdef")  # with one of these the address of a place ends
_ADDRESS = b": https://"
_PLACE = 40  # bytes in which "Location: https://" ends
_LINE_LIKE_HEADER = re.compile(rb"\n(?:[\x80-\xff ]*[\[\d]|[\xd9\xdb])")

# Behind a header: a name, and a text on one line that begins and ends with plain bytes; else nothing.
_NAME = b"[^:\n]{1,200}+"
SAID = b"(?:(%b): ([^%b][^\n]*+)(?<![%b])(?<!%b[\x80-\xff])|)" % (
    _NAME, re.escape(bytes(_ODD_FIRST)), re.escape(bytes(_ODD_LAST)), _MARK
)  # fmt: skip

is_name = re.compile(_NAME).fullmatch  # a name that `SAID` can find


def sort_out(
    block: bytes, names: list[bytes | None], texts: list[bytes | None], rests: list[bytes],
    known: Container[bytes | None], ios: bool,
) -> None:  # fmt: skip
    """Tell the messages of a block apart, by what `SAID` found of each and what stands behind that.

    In the end a plain one has its name, and all of its text in `texts`; where brackets end it, or it has more lines,
    its name must be a known one. Each other one has no name, and all that stands behind its header is in `rests`.
    """
    for place in compress(range(len(rests)), rests):
        name, text, rest = names[place], texts[place], rests[place]
        if name is None or text is None:
            name, _, said = rest.partition(b": ")
            if name in known and _is_plain_after_all(said, ios):
                names[place], texts[place], rests[place] = name, said, b""
        elif name in known and _goes_on(text, rest, ios):
            texts[place], rests[place] = text + rest, b""
        else:
            names[place], rests[place] = None, b"%b: %b%b" % (name, text, rest)
    if _ADDRESS in block or (ios and _OWN in block) or not _EXACT.isdisjoint(texts):
        for place, (name, text) in enumerate(zip(names, texts, strict=True)):
            if name is not None and text is not None and b"\n" not in text and _is_special(text, ios):
                names[place], rests[place] = None, b"%b: %b" % (name, text)


def _is_plain_after_all(said: bytes, ios: bool) -> bool:
    """Whether what `SAID` did not take is a plain text: where only the end of its first line is odd, and that is the
    person's own."""
    if not said or said[0] in _ODD_FIRST:
        return False
    text, end, more = said.partition(b"\n")
    return _is_plain_end(text) and (not end or _goes_on(text, end + more, ios))


def _goes_on(text: bytes, more: bytes, ios: bool) -> bool:
    """Whether a line and those behind it are one message for certain, and nothing but a text."""
    last = more[-1]
    if text[-1:] in _ODD_LINE or last in _ODD_LAST or (last > 127 and more.endswith(_MARKED)) or _OWN in more:
        return False
    return _LINE_LIKE_HEADER.search(more) is None and not _is_special(text, ios)


def _is_plain_end(text: bytes) -> bool:
    """Whether brackets at the end are the person's own: around an address, or a smile."""
    if text[-1] == 62:
        return text.startswith(b"http", text.rfind(b"<") + 1)
    if text[-1] != 41 or b"-WA" in text:
        return False
    return not text.decode("utf-8", "replace").casefold().endswith(words.ATTACHED)


def _is_special(text: bytes, ios: bool) -> bool:
    """Whether a line may be what WhatsApp itself writes, or a place on the map, for all its plain ends."""
    return text in _EXACT or (text[-1] in _HEX and text.find(_ADDRESS, 0, _PLACE) >= 0) or (ios and _OWN in text)
