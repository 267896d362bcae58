"""A plain text: one file is one entry of a journal. Long ones are cut when samples are made, not here."""

from collections.abc import Iterator

from daemon.readers.dates import date_in
from daemon.readers.shape import FileFacts, TextReader
from daemon.records import BadItem, Memory


def _read(text: str, facts: FileFacts) -> Iterator[Memory | BadItem]:
    content = text.strip()
    if not content:
        yield BadItem("", "there is no text in it")
        return
    # The name's date is no part of the identity: a renamed file is the same memory.
    yield Memory(type="journal", content=content, time=date_in(facts.name) or facts.modified, source="text")


READER = TextReader("plain text", lambda text, name: True, _read)
