"""What the front door does with any file: what is text, what is JSON, what is refused and why."""

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.readers import ITEM_READERS, READERS, Limits, read
from daemon.readers.shape import ItemReader, TextReader
from daemon.records import BadItem, Memory, Refused

EXAMPLES = Path(__file__).parents[3] / "examples" / "formats"
SMALL = Limits(max_file_bytes=10_000, max_document_bytes=2_000, max_line_bytes=500)
TEXT = b'{"text": "a memory"}'


def taken(data: bytes, name: str = "x.json", limits: Limits | None = None) -> list[Memory | BadItem]:
    return list(read(io.BytesIO(data), name, len(data), 1_700_000_000.0, limits))


def memories(parts: Iterable[Memory | BadItem]) -> list[Memory]:
    return [part for part in parts if isinstance(part, Memory)]


def refusal(data: bytes, name: str = "x.json", limits: Limits | None = None) -> str:
    with pytest.raises(Refused) as caught:
        taken(data, name, limits)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_example_is_taken_whole(path: Path) -> None:
    parts = taken(path.read_bytes(), path.name)
    assert parts
    assert all(isinstance(part, Memory) for part in parts)


def test_every_reader_has_an_example() -> None:
    found = {m.source for path in EXAMPLES.iterdir() for m in memories(taken(path.read_bytes(), path.name))}
    assert found == {
        "origin",
        "openai",
        "sharegpt",
        "alpaca",
        "pairs",
        "preferences",
        "texts",
        "markdown",
        "text",
    }
    items = [reader.name for reader in READERS if isinstance(reader, ItemReader | TextReader)]
    assert len(items) == len(set(items))


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "x.json", "empty"),
        (b" \n\t\n", "x.md", "empty"),
        (b"\xef\xbb\xbf", "x.md", "empty"),
        (b"a\x00b", "x.txt", "not text"),
        (bytes(range(1, 32)) * 9, "x.txt", "not text"),
        (gzip.compress(b"", mtime=0), "x.json.gz", "empty"),
        (b"PK\x03\x04....", "x.json", "zip"),
        (b"%PDF-1.7 ...", "x.md", "PDF"),
        (b"---\ntags: [a]\n---\n\n", "x.md", "besides its header"),
        (b"---\n---\n", "x.md", "no text in it"),
        (b"<!DOCTYPE html><p>hello", "x.md", "HTML"),
        (b"x" * 2_001, "x.txt", "too large"),
        (b"x" * 10_001, "x.txt", "too large"),
        (TEXT[:-3], "x.json", "too early"),
        (TEXT[:-3], "no-name", "too early"),
        (b'{"text": NaN}', "x.json", "cannot be read"),
        (b'{"text": "a", "n": Infinity}', "x.json", "cannot be read"),
        (b'{"text": "a", "n": 1e999}', "x.json", "too large"),
        (b'{"text": "\\ud800"}', "x.json", "surrogate"),
        (b"[" * 1900, "x.json", "too deep"),
        (b'{"a":' * 300, "x.json", "too early"),
        (b"hello", "x.json", "neither { nor ["),
        (b'"hello"', "x.json", "neither { nor ["),
        (b"[]", "x.json", "no item"),
        (b"[1, 2]", "x.json", "not an object"),
        (b'["a", "b"]', "x.json", "not an object"),
        (b'{"name": "p", "version": 1}', "x.json", "no reader knows"),
        (b'{"name": "p", "version": 1}', "x.md", "no reader knows"),
        (b'[{"name": "p"}, {"name": "q"}]', "x.json", "no reader knows"),
        (b'{"name": "p"}\n{"name": "q"}\n', "x.jsonl", "no reader knows"),
        (b'{"text": ""}', "x.json", "empty"),
        (b'{"iv": "a", "authTag": "b", "data": "c"}', "x.json", "encrypted"),
        (TEXT, "evt1.json.enc", "encrypted"),
        (b'{"id": 1, "type": "message", "from": "Al", "text": "hi"}', "x.json", "names a speaker"),
        (b'{"messages": [{"sender_name": "Al", "content": "hi"}]}', "x.json", "no reader knows"),
        ("fehlt".encode("utf-16")[:-1], "x.txt", "not text"),
    ],
)  # fmt: skip
def test_refusals_say_why(data: bytes, name: str, says: str) -> None:
    assert says in refusal(data, name, SMALL)


def test_an_unknown_json_is_refused_with_what_each_reader_missed() -> None:
    sentence = refusal(b'{"name": "p", "version": 1}')
    assert "'name', 'version'" in sentence
    assert all(reader.name in sentence for reader in ITEM_READERS)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (TEXT, "x.json", 1),
        (TEXT, "x.jsonl", 1),
        (TEXT, "x.txt", 1),
        (TEXT + b"\n" + TEXT, "x.json", 2),
        (TEXT + b"\r\n\r\n" + TEXT + b"\r\n", "x.jsonl", 2),
        (b"[" + TEXT + b", " + TEXT + b"]", "x.jsonl", 2),
        (b"[\n" + TEXT + b",\n" + TEXT + b"\n]\n", "x.jsonl", 2),
        (b"[\n" + TEXT + b",\n" + TEXT + b"\n]\n", "noname", 2),
        (b'{\n "text": "a memory"\n}\n', "x.jsonl", 1),
        (b'{\n "memories": [' + TEXT + b"]\n}\n", "x.json", 1),
        (b"\xef\xbb\xbf" + TEXT, "x.json", 1),
        (b"\xef\xbb\xbf" + TEXT + b"\n" + TEXT, "x.jsonl", 2),
        (TEXT.decode().encode("utf-16"), "x.json", 1),
        ((TEXT + b"\n" + TEXT).decode().encode("utf-16"), "x.jsonl", 2),
        (TEXT.decode().encode("utf-32"), "x.json", 1),
        (b'{"text": "a", "text": "b", "n": 123456789012345678901234567890}', "x.json", 1),
        (b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "x.json", 1),
        (b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\n' * 2, "x.jsonl", 2),
        ('{"text": "caf\u00e9 cr\u00e8me"}'.encode("cp1252"), "x.json", 1),
        (b"[[Bergen]] was wet.", "x.md", 1),
        (b"[ ] buy milk", "x.txt", 1),
        (b"[] buy milk", "x.txt", 1),
        (b"{not json, a text}", "x.txt", 1),
        (b"[31/12/2022, 11:40:26] a line of a chat", "x.txt", 1),
    ],
)  # fmt: skip
def test_structure_decides(data: bytes, name: str, expected: int) -> None:
    parts = taken(data, name)
    assert len(memories(parts)) == expected
    assert len(parts) == expected


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x"])
def test_bad_lines_are_named_and_the_rest_is_taken(name: str) -> None:
    lines = [b'{"torn": ', TEXT, b"", b"17", b'{"what": 1}', b'{"text": ""}', b'{"text": "\xe9"}', TEXT]
    parts = taken(b"\n".join(lines), name)
    assert len(memories(parts)) == 2
    bad = {part.where: part.reason for part in parts if isinstance(part, BadItem)}
    assert list(bad) == ["line 1", "line 4", "line 5", "line 6", "line 7"]
    assert "not an object" in bad["line 4"]
    assert "'what'" in bad["line 5"]
    assert "UTF-8" in bad["line 7"]


def test_zeros_after_a_power_cut_are_a_bad_line() -> None:
    parts = taken(TEXT + b"\n" + bytes(600), "x.jsonl")
    assert [type(part) for part in parts] == [Memory, BadItem]


def test_bad_items_of_a_list_are_named() -> None:
    parts = taken(b"[1, " + TEXT + b', {"what": 1}]')
    assert [type(part) for part in parts] == [BadItem, Memory, BadItem]
    assert isinstance(parts[2], BadItem)
    assert parts[2].where == "item 3"


def test_a_line_over_the_limit_is_one_bad_line() -> None:
    long = b'{"text": "' + b"x" * 3_000 + b'"}'
    for lines in ([TEXT, long, TEXT], [long, TEXT, TEXT]):
        parts = taken(b"\n".join(lines), "x.jsonl", SMALL)
        assert [type(part) for part in parts].count(Memory) == 2
        bad = [part for part in parts if isinstance(part, BadItem)]
        assert [part.reason for part in bad] == ["longer than 500 bytes"]
    exact = b'{"text": "' + b"x" * (500 - 12) + b'"}'
    assert len(memories(taken(TEXT + b"\n" + exact + b"\n" + exact, "x.jsonl", SMALL))) == 3


def test_a_large_jsonl_is_never_held_in_memory() -> None:
    class Counting(io.BytesIO):
        largest = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            self.largest = max(self.largest, len(line))
            return line

        def read(self, size: int | None = -1, /) -> bytes:
            part = super().read(size)
            self.largest = max(self.largest, len(part))
            return part

    data = b"\n".join([TEXT] * 50_000)
    stream = Counting(data)
    count = sum(1 for _ in read(stream, "x.jsonl", len(data), None))
    assert count == 50_000
    assert stream.largest <= 1 << 16


def test_refused_in_the_end_where_no_line_was_usable() -> None:
    parts = []
    with pytest.raises(Refused, match=r"nothing in the file .*: line 1: .*and 7 more"):
        for part in read(io.BytesIO(b'{"text": ""}\n' * 10), "x.jsonl", 130, None):
            parts.append(part)
    assert len(parts) == 10


def test_text_is_normalised() -> None:
    (memory,) = memories(taken(b'{"text": "one\\r\\ntwo\\u0000"}'))
    assert memory.content == "one\ntwo"
    (memory,) = memories(taken(b"one\r\ntwo\rthree", "x.txt"))
    assert memory.content == "one\ntwo\nthree"


def test_times_and_identity() -> None:
    (dated,) = memories(taken(b'{"text": "a", "date": "2024-05-01T10:00:00+02:00"}'))
    assert (dated.timestamp, dated.time) == ("2024-05-01T10:00:00+02:00", "2024-05-01T08:00:00Z")
    (undated,) = memories(taken(b'{"text": "a"}'))
    assert (undated.timestamp, undated.time) == (None, "2023-11-14T22:13:20Z")
    (unreadable,) = memories(taken(b'{"text": "a", "date": "some day"}'))
    assert (unreadable.timestamp, unreadable.time) == ("some day", None)
    later = list(read(io.BytesIO(b'{"text": "a"}'), "other.jsonl", 13, 9.0))
    assert memories(later)[0].id == undated.id


# ---- whatever is dropped: memories, bad items or a refusal ----------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    """messages conversations role content from value instruction input output system history prompt response
    completion question answer chosen rejected text type tags timestamp metadata title status observation
    conversationalEssence userMessage assistantResponse tool_calls label weight date id iv data tag""".split()  # noqa: SIM905
)
WORDS = st.sampled_from(
    ["user", "assistant", "human", "gpt", "tool", "system", "done", "User: a\n\nAssistant: b", ""]
)
LIKELY = st.recursive(
    JSON | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=20,
)
NAMES = st.sampled_from(["x.json", "x.jsonl", "x.md", "x.txt", "x", "2024-01-02 a.md"])
QUICK = settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def only_the_three(data: bytes, name: str) -> None:
    try:
        parts = taken(data, name, SMALL)
    except Refused as refused:
        assert str(refused)
        return
    for part in parts:
        if isinstance(part, Memory):
            assert len(part.id) == 64
            assert part.content.strip() or part.payload
            part.content.encode()
        else:
            assert part.where
            assert part.reason


@QUICK
@given(st.binary(max_size=200), NAMES)
def test_any_bytes(data: bytes, name: str) -> None:
    only_the_three(data, name)


@QUICK
@given(st.text(max_size=200), NAMES, st.sampled_from(["", "---\n", "[", "{", "# "]))
def test_any_text(text: str, name: str, before: str) -> None:
    only_the_three((before + text).encode("utf-8", "surrogatepass"), name)


@QUICK
@given(LIKELY, NAMES)
def test_any_json(value: object, name: str) -> None:
    only_the_three(json.dumps(value).encode(), name)


@QUICK
@given(st.lists(st.dictionaries(KEYS, LIKELY, min_size=1, max_size=5), min_size=1, max_size=3), NAMES)
def test_any_objects_as_lines_and_as_a_list(values: list[object], name: str) -> None:
    only_the_three("\n".join(map(json.dumps, values)).encode(), name)
    only_the_three(json.dumps(values).encode(), name)


@QUICK
@given(st.integers(0, 3_000), st.sampled_from(sorted(EXAMPLES.iterdir())))
def test_a_torn_example(length: int, path: Path) -> None:
    only_the_three(path.read_bytes()[:length], path.name)
