"""A plain text: one file is one entry of a journal. Long ones are cut when samples are made, not here."""

from collections.abc import Iterator

from daemon.readers.dates import date_in
from daemon.readers.shape import FileFacts, TextReader
from daemon.records import BadItem, Memory

ABOUT = """\
**Plain text.** The whole file is one entry of a journal, in UTF-8, UTF-16 or UTF-32 with its mark, or an encoding that
can be told with some certainty (Windows 1250 to 1254, KOI8-R, GB 18030, Big5, Shift JIS, EUC). Short texts in an old
encoding can be mistaken for one another: UTF-8 is always right.
"""


def _read(text: str, facts: FileFacts) -> Iterator[Memory | BadItem]:
    content = text.strip()
    if not content:
        yield BadItem("", "there is no text in it")
        return
    # The name's date is no part of the identity: a renamed file is the same memory.
    yield Memory(type="journal", content=content, time=date_in(facts.name) or facts.modified, source="text")


READER = TextReader("plain text", lambda text, name: True, _read)
