"""Zip and gzip as containers: what comes out of them, and what is refused by name."""

import gzip
import io
import random
import stat
import struct
import tracemalloc
import zipfile
import zlib

import pytest

from daemon import readers
from daemon.readers import archives
from daemon.readers.shape import MIB, Limits
from daemon.records import BadItem, Heard, LeftOut, Memory, Refused

NOTE = b"Rode to the lake and swam until the light was gone."


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return raw.getvalue()


def heard(data: bytes, name: str = "x.zip", limits: Limits | None = None) -> list[Heard]:
    return list(readers.read(io.BytesIO(data), name, len(data), None, limits))


def refusal(data: bytes, name: str = "x.zip", limits: Limits | None = None) -> str:
    with pytest.raises(Refused) as caught:
        heard(data, name, limits)
    return str(caught.value)


def texts(data: bytes, name: str = "x.zip", limits: Limits | None = None) -> list[str]:
    return [one.content for one in heard(data, name, limits) if isinstance(one, Memory)]


def tree_of(data: bytes, depth: int = 0) -> archives.ZipTree:
    return archives.ZipTree(io.BytesIO(data), "x.zip", len(data), Limits(), depth)


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    """The same zip with bytes replaced, in the file's own header and in the directory."""
    assert len(old) == len(new) and old in data
    return data.replace(old, new)


# ---- what comes out ---------------------------------------------------------------------------------


def test_each_file_of_a_zip_is_read() -> None:
    assert texts(zipped({"a.txt": NOTE, "b/c.txt": b"Bread and soup."})) == [NOTE.decode(), "Bread and soup."]


def test_a_file_comes_out_seekable() -> None:
    lines = b"".join(b"line %d\n" % n for n in range(100_000))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with tree_of(zipped({"a.jsonl": lines}, method)) as tree, tree.open("a.jsonl") as stream:
            assert stream.read(100) == lines[:100]
            stream.seek(500_000)
            assert stream.read(11) == lines[500_000:500_011]
            stream.seek(0)
            assert stream.readline() == b"line 0\n"
            stream.seek(0)
            assert stream.read() == lines


def test_a_large_read_is_no_slower_than_small_ones() -> None:
    """ZipExtFile.read(n) copies all it has with each piece: 64 MiB would be minutes of copying."""
    with tree_of(zipped({"a": random.Random(1).randbytes(200_000) * 100})) as tree, tree.open("a") as stream:
        assert len(stream.read(64 * MIB)) == 20_000_000


def test_two_files_of_a_zip_can_be_open_at_once() -> None:
    with tree_of(zipped({"a": b"1\n2\n", "b": b"3\n4\n"})) as tree, tree.open("a") as a, tree.open("b") as b:
        assert [a.readline(), b.readline(), a.readline(), b.readline()] == [b"1\n", b"3\n", b"2\n", b"4\n"]


def test_paths_sizes_and_times() -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.mkdir("dir") if hasattr(archive, "mkdir") else archive.writestr("dir/", b"")
        archive.writestr(zipfile.ZipInfo("./dir/b.txt", (2024, 1, 15, 9, 0, 0)), b"12345")
        exact = zipfile.ZipInfo("a.txt", (2024, 1, 15, 9, 0, 0))
        exact.extra = struct.pack("<HHBi", 0x5455, 5, 1, 1_700_000_000)
        archive.writestr(exact, b"1")
        archive.writestr(zipfile.ZipInfo("never.txt", (1980, 1, 1, 0, 0, 0)), b"1")
    with tree_of(raw.getvalue()) as tree:
        assert tree.paths() == ["a.txt", "dir/b.txt", "never.txt"]
        assert tree.size("dir/b.txt") == 5
        assert tree.mtime("a.txt") == 1_700_000_000.0
        assert tree.mtime("dir/b.txt") == 1_705_309_200.0
        assert tree.mtime("never.txt") is None


def test_a_name_in_utf8_that_is_not_marked_so() -> None:
    marked = zipped({"Müller.txt": NOTE})
    unmarked = bytearray(marked)
    for place, offset in ((marked.index(b"PK\x03\x04"), 6), (marked.index(b"PK\x01\x02"), 8)):
        unmarked[place + offset + 1] &= ~0x08
    with tree_of(bytes(unmarked)) as tree:
        assert tree.paths() == ["Müller.txt"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_in_a_zip_is_read(method: int) -> None:
    inner = zipped({"a.txt": NOTE, "b.txt": b"Bread and soup."})
    outer = zipped({"inner.zip": inner, "c.txt": b"Third."}, method)
    assert texts(outer) == ["Third.", NOTE.decode(), "Bread and soup."]


def test_gzip_is_read_under_the_name_of_what_it_holds() -> None:
    lines = b'{"text": "First."}\n{"text": "Second."}\n'
    assert texts(gzip.compress(lines), "notes.jsonl.gz") == ["First.", "Second."]
    assert texts(gzip.compress(b"# A heading\n\nText."), "2024-01-15.md.gz") == ["# A heading\n\nText."]
    assert texts(gzip.compress(zipped({"a.txt": NOTE})), "x.zip.gz") == [NOTE.decode()]
    assert texts(gzip.compress(b"One") + gzip.compress(b" and two."), "x.txt.gz") == ["One and two."]


def test_what_is_passed_over_is_named() -> None:
    left = {
        ".DS_Store": "hidden", "__MACOSX/._a.txt": "macOS", "._a.txt": "macOS", "Thumbs.db": "hidden",
        ".obsidian/app.json": "hidden", "vault/.trash/old.md": "hidden", "IMG-1.JPG": "picture",
        "voice.opus": "picture", "style.css": "web page", "Templates/daily.md": "template", "user.json": "export",
    }  # fmt: skip
    for path, word in left.items():
        assert word in (archives.why_passed_over(path, frozenset(("user.json",))) or ""), path
    for path in ("a.txt", "jpg", "chat.html", "templates.md", "templates/data.json", "v1.2/notes"):
        assert archives.why_passed_over(path, frozenset()) is None, path
    found = heard(zipped({"a.txt": NOTE, "photos/1.jpg": b"\xff\xd8\xff"}))
    assert LeftOut("a picture, sound, video or document", where="photos/1.jpg") in found


# ---- what is refused, by name -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "a\\b.txt", "C:/evil.txt", "C:evil.txt"],
)
def test_a_name_that_leads_out_refuses_the_whole_zip(name: str) -> None:
    says = refusal(zipped({"a.txt": NOTE, name: NOTE}))
    assert "leads out of its folder" in says and ascii(name)[1:-1] in says


def test_a_nul_in_a_name() -> None:
    assert "leads out" in refusal(changed(zipped({"a.txt": NOTE, "b#c.txt": NOTE}), b"b#c", b"b\x00c"))


@pytest.mark.parametrize(("kind", "says"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "neither file nor")])
def test_links_and_pipes_refuse_the_whole_zip(kind: int, says: str) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("a.txt", NOTE)
        link = zipfile.ZipInfo("b")
        link.external_attr = (kind | 0o777) << 16
        archive.writestr(link, b"/etc/passwd")
    assert says in refusal(raw.getvalue())


def test_a_bomb_by_ratio_is_refused_before_anything_is_read() -> None:
    bomb = zipped({"a.txt": NOTE, "b.txt": bytes(20 * MIB)})
    tracemalloc.start()
    says = refusal(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "bomb" in says and "b.txt" in says and "200 times" in says
    assert peak < 2 * MIB


def test_a_small_file_may_be_as_even_as_it_likes() -> None:
    assert texts(zipped({"a.txt": b"la " * 100_000})) == [("la " * 100_000).strip()]


def test_a_size_that_lies_is_damage_and_gives_no_more_than_it_says() -> None:
    real = zipped({"a.txt": b"la " * (7 * MIB)})
    lie = changed(real, struct.pack("<I", 21 * MIB), struct.pack("<I", 100_000))
    says = refusal(lie)
    assert "a.txt is damaged inside the archive" in says


def test_a_bomb_by_total_size() -> None:
    noise = random.Random(1).randbytes(3000)
    bomb = zipped({f"{n}.txt": noise for n in range(5)})
    assert "the zip is too large" in refusal(bomb, limits=Limits(max_file_bytes=14_000))  # the zip itself
    assert "bomb, or too large" in refusal(zipped({f"{n}.txt": b"abcd" * 4000 for n in range(5)}),
                                           limits=Limits(max_file_bytes=50_000))  # fmt: skip


def test_zips_in_a_zip_share_one_budget() -> None:
    inner = zipped({"a.txt": b"abcd" * 10_000})
    outer = zipped({f"{n}.zip": inner for n in range(5)})
    found = heard(outer, limits=Limits(max_file_bytes=100_000))
    assert sum(isinstance(one, Memory) for one in found) == 2
    assert [one.where for one in found if isinstance(one, BadItem)] == ["2.zip", "3.zip", "4.zip"]


def test_too_many_entries() -> None:
    one = zipped({"a": b""})
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    count = archives.MOST_ENTRIES + 1
    directory = one[start:end] * count
    bomb = one[:start] + directory + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    assert "more than 100,000 entries" in refusal(bomb)
    directory = one[start:end] * (archives.MOST_DIRECTORY // (end - start) + 1)
    bomb = one[:start] + directory + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), start, 0)
    assert "its directory has more than 32 MiB" in refusal(bomb)


def test_overlapping_entries() -> None:
    """Two entries of the directory that share one packed file, as the better zip bomb does it."""
    one = zipped({"a.txt": NOTE})
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    directory = one[start:end] * 2
    bomb = one[:start] + directory + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    assert "entries overlap" in refusal(bomb)


def test_depth() -> None:
    data = zipped({"a.txt": NOTE})
    for _ in range(4):
        data = zipped({"inner.zip": data})
    says = refusal(data)
    assert "inner.zip lies 2 archives deep" in says
    assert says.count("\n") == 0


def test_a_gzip_counts_as_a_level() -> None:
    assert texts(gzip.compress(gzip.compress(NOTE)), "a.txt.gz.gz") == [NOTE.decode()]
    assert "archives deep" in refusal(gzip.compress(gzip.compress(gzip.compress(NOTE))), "a.txt.gz.gz.gz")
    assert "archives deep" in refusal(zipped({"b.zip": zipped({"a.txt.gz": gzip.compress(NOTE)})}))
    assert "archives deep" in refusal(gzip.compress(zipped({"b.zip": zipped({"a.txt": NOTE})})), "x.gz")


def test_an_encrypted_zip() -> None:
    data = bytearray(zipped({"a.txt": NOTE}))
    data[data.index(b"PK\x03\x04") + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert refusal(bytes(data)) == "the zip is encrypted: unpack it with its password, then drop what is in it"


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")]
)
def test_a_way_of_packing_that_is_not_read(method: int, name: str) -> None:
    assert refusal(zipped({"a.txt": NOTE}, method)).startswith(f"the zip is packed with {name}, which is not read here")


def test_deflate64_is_named() -> None:
    data = bytearray(zipped({"a.txt": NOTE}))
    data[data.index(b"PK\x01\x02") + 10] = 9
    assert "Deflate64" in refusal(bytes(data))


def test_a_torn_zip() -> None:
    data = zipped({f"{n}.txt": NOTE + str(n).encode() for n in range(50)})
    for length in (4, 30, len(data) // 2, len(data) - 1, len(data) - 22):
        assert "the zip is torn" in refusal(data[:length])


def test_damage_in_one_file_of_a_zip_leaves_the_others() -> None:
    data = bytearray(zipped({"a.txt": b"good one", "b.txt": bytes(range(256)) * 20, "c.txt": b"good two"}))
    place = data.index(b"b.txt") + 40
    data[place : place + 8] = b"\xff" * 8
    found = heard(bytes(data))
    assert [one.content for one in found if isinstance(one, Memory)] == ["good one", "good two"]
    (bad,) = (one for one in found if isinstance(one, BadItem))
    assert bad.where == "b.txt" and "damaged" in bad.reason


def test_a_gzip_bomb_is_measured_while_it_is_read() -> None:
    lines = gzip.compress(b'{"text": "abc"}\n' + (b" " * 1000 + b"\n") * 30_000)
    lie = lines[:-4] + struct.pack("<I", 100)  # the size it declares
    for bomb in (lines, lie, lines[:-8]):
        tracemalloc.start()
        says = refusal(bomb, "a.jsonl.gz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "a.jsonl.gz is a bomb" in says
        assert peak < 12 * MIB


def test_a_gzip_over_the_limit() -> None:
    data = gzip.compress(b'{"text": "abc"}\n' * 10_000, 1)
    assert "unpacks to more than" in refusal(data, "a.jsonl.gz", Limits(max_file_bytes=100_000))


def test_a_torn_or_damaged_gzip() -> None:
    data = gzip.compress(b'{"text": "a memory"}\n' + bytes(range(14, 256)) * 100)
    for length in (2, 9, 12, len(data) // 2, len(data) - 4):
        assert "damaged inside the archive" in refusal(data[:length], "a.jsonl.gz")
    assert "damaged" in refusal(data[:-8] + bytes(8), "a.jsonl.gz")
    assert "damaged" in refusal(data[:40] + b"\xff\xff\xff" + data[43:], "a.jsonl.gz")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"\xfd7zXZ\x00\x00\x04", "compressed with xz"),
        (b"BZh91AY&SY\x00", "compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed with zstd"),
        (b"a.txt" + bytes(252) + b"ustar\x0000" + bytes(248), "a tar archive"),
    ],
)
def test_other_archives_are_refused_by_name(data: bytes, what: str) -> None:
    assert refusal(data, "x") == f"the file is {what}: unpack it, then drop what is in it"
    assert f"the file is {what}" in refusal(gzip.compress(data), "x.tgz")


def test_a_note_that_begins_like_an_archive_is_a_note() -> None:
    assert texts(b"BZhang called and wants the drill back.", "a.txt") == ["BZhang called and wants the drill back."]


def test_no_bytes_make_it_raise_anything_else() -> None:
    rng = random.Random(7)
    seeds = [zipped({"a.txt": NOTE, "b.zip": zipped({"c.txt": NOTE})}), gzip.compress(NOTE)]
    for n in range(3000):
        data = bytearray(seeds[n % 2])
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            heard(bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)]))
        except Refused as refused:
            assert str(refused)
        except zlib.error:
            pytest.fail("damage came through")
