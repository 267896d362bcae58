"""Zip and gzip as containers: a tree of files, guarded against bombs, traversal, encryption and depth.

Nothing is ever unpacked to disk. A zip is judged by its directory before a byte of its files is read: one bad
name or one bomb in it refuses the whole. Of a file inside, no more is delivered than its directory entry
declares, and a gzip is measured while it is read. (Format: PKWARE's APPNOTE.TXT; RFC 1952 for gzip.)
"""

import calendar
import gzip
import io
import re
import stat
import struct
import zipfile
from types import TracebackType
from typing import IO, BinaryIO, Literal

from daemon.readers.shape import MIB, Limits
from daemon.readers.unpacking import (
    DAMAGE,
    MOST_RATIO,
    RATIO_FROM,
    Budget,
    GzipSource,
    Source,
    Unpacked,
    Window,
)  # fmt: skip
from daemon.records import Refused

MOST_ENTRIES = 100_000
MOST_DIRECTORY = 32 * MIB  # bytes of a zip's directory, which is held in memory
MOST_DEPTH = 2  # a zip in a zip is how some exports come; a third level is not

_ENCRYPTED = 0x1
_UTF8_NAME = 0x800
_LOCAL_HEADER = 30  # bytes, before the name
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
_DRIVE = re.compile(r"[A-Za-z]:")
_OTHER_ARCHIVES = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"PK\x07\x08", "one part of a zip in several parts"),
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")  # "BZh" alone may begin a person's note

_PICTURES = frozenset((
    "jpg", "jpeg", "png", "gif", "webp", "heic", "heif", "bmp", "tif", "tiff", "svg", "ico", "avif", "mp4",
    "mov", "m4v", "avi", "mkv", "webm", "3gp", "mpg", "opus", "ogg", "oga", "mp3", "m4a", "aac", "wav",
    "flac", "amr", "aiff", "caf", "pdf", "vcf", "doc", "docx", "odt", "pages", "xls", "xlsx", "ods",
    "numbers", "ppt", "pptx", "odp", "key", "epub", "ics", "tgs", "thm", "was", "eot", "ttf", "otf", "woff",
    "woff2", "apk", "exe",
))  # fmt: skip
_PAGE_PARTS = frozenset(("css", "js", "map"))
_LEFT_BY_PROGRAMS = frozenset(("thumbs.db", "desktop.ini", "icon\r"))
_TEMPLATES = frozenset(("templates", "_templates", "template"))
_NOTES = (".md", ".markdown")


def kind_of(stream: BinaryIO) -> Literal["zip", "gzip"] | None:
    """What kind of container it is, by its first bytes. Raises Refused for one that is not read here."""
    head = stream.read(512)
    stream.seek(0)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    what = next((what for magic, what in _OTHER_ARCHIVES if head.startswith(magic)), "")
    if head.startswith(b"BZh") and not _BZIP2.match(head):
        what = ""
    if head[257:262] == b"ustar":
        what = "a tar archive"
    if what:
        raise Refused(f"the file is {what}: unpack it, then drop what is in it")
    return None


def why_passed_over(path: str, companions: frozenset[str]) -> str | None:
    """Why a file of a zip or folder is not looked at; None where it is."""
    *folders, name = path.split("/")
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    if "__MACOSX" in folders or name.startswith("._"):
        return "what macOS notes about a file"
    if (
        name.startswith(".")
        or name.lower() in _LEFT_BY_PROGRAMS
        or any(part.startswith(".") for part in folders)
    ):
        return "a hidden file of a program"
    if name in companions:
        return "belongs to the export and holds no memory"
    if suffix in _PICTURES:
        return "a picture, sound, video or document"
    if suffix in _PAGE_PARTS:
        return "a part of a web page"
    if name.lower().endswith(_NOTES) and any(part.lower() in _TEMPLATES for part in folders):
        return "a template for notes"
    return None


# ---- gzip -------------------------------------------------------------------------------------------


def unpacked(stream: BinaryIO, name: str, size: int, limits: Limits) -> tuple[BinaryIO, str, int]:
    """(stream, name, at most so many bytes) of what a gzip holds. Raises Refused, also later while it is read."""
    depth = stream.depth if isinstance(stream, Unpacked) else 0
    _refuse_too_deep(depth, name)
    budget = stream.budget if isinstance(stream, Unpacked) else Budget(limits)
    if name.lower().endswith((".gz", ".gzip")):
        inner_name = name.rpartition(".")[0] or name
    else:
        inner_name = name[:-4] + ".tar" if name.lower().endswith(".tgz") else name
    source = GzipSource(gzip.GzipFile(fileobj=stream, mode="rb"), name, size, budget)
    most = min(limits.max_file_bytes, max(RATIO_FROM, MOST_RATIO * size))
    return Unpacked(source, depth + 1, budget), inner_name, most


def _refuse_too_deep(depth: int, name: str) -> None:
    if depth >= MOST_DEPTH:
        raise Refused(
            f"{name} lies {depth} archives deep, and more than {MOST_DEPTH} are not opened: unpack the outer ones"
        )


# ---- zip --------------------------------------------------------------------------------------------


class _Directory:
    """The stream while zipfile reads the directory, which it does in one piece and without any limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(MOST_DIRECTORY + 1 if size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(data) > MOST_DIRECTORY:
            raise Refused(f"the zip is a bomb: its directory has more than {MOST_DIRECTORY // MIB} MiB")
        if data.count(b"PK\x01\x02") > MOST_ENTRIES:
            raise Refused(f"the zip is a bomb: it has more than {MOST_ENTRIES:,} entries")
        return data


class ZipTree:
    """The files of a zip. Raises Refused, with one sentence, before anything in it is read.

    `size` is the zip's own, in bytes; `depth` counts the containers that it lies in.
    """

    def __init__(self, stream: BinaryIO, name: str, size: int, limits: Limits, depth: int) -> None:
        self.name = name
        self._depth = max(depth, stream.depth if isinstance(stream, Unpacked) else 0)
        _refuse_too_deep(self._depth, name)
        if size > limits.max_file_bytes and not isinstance(stream, Unpacked):
            raise Refused(f"the zip is too large: at most {limits.max_file_bytes / MIB:,.1f} MiB are taken")
        self._budget = stream.budget if isinstance(stream, Unpacked) else Budget(limits)
        self._stream = _where_one_can_seek(stream, name, limits)
        try:
            self._zip = zipfile.ZipFile(_Directory(self._stream))
            self._zip.fp = self._stream
        except DAMAGE:
            raise Refused(
                "the zip is torn (its directory is missing or damaged): export or copy it again"
            ) from None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            path = _safe_path(info)
            if not info.is_dir():
                self._entries[path] = info
        _refuse_bombs(self._zip)
        self._budget.spend(sum(info.file_size for info in self._zip.infolist()))

    def __enter__(self) -> "ZipTree":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def paths(self) -> list[str]:
        return sorted(self._entries)

    def size(self, path: str) -> int:
        return self._entries[path].file_size

    def mtime(self, path: str) -> float | None:
        """Unix time. A zip's own times have no zone and count as UTC, unless the extra field has the real one."""
        info = self._entries[path]
        if (exact := _unix_time(info.extra)) is not None:
            return exact
        if info.date_time <= (1980, 1, 1, 23, 59, 59):
            return None  # what programs write that do not know
        try:
            return float(calendar.timegm((*info.date_time, 0, 0, 0)))
        except (ValueError, OverflowError):
            return None

    def open(self, path: str) -> BinaryIO:
        info = self._entries[path]
        try:
            if info.compress_type == zipfile.ZIP_STORED and (window := self._window(info)):
                return Unpacked(window, self._depth + 1, self._budget)
            inner: IO[bytes] = self._zip.open(info)
        except DAMAGE:
            raise Refused(f"{path} is damaged inside the zip: export or copy it again") from None
        return Unpacked(Source(inner, path), self._depth + 1, self._budget)

    def _window(self, info: zipfile.ZipInfo) -> Window | None:
        """Where a zip lies in this one as it is. Other files go through zipfile, which checks their CRC."""
        self._stream.seek(info.header_offset)
        header = self._stream.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile
        start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<HH", header, 26))
        window = Window(self._stream, start, min(info.file_size, info.compress_size))
        is_zip = window.read(4) == b"PK\x03\x04"
        window.seek(0)
        return window if is_zip else None


def _where_one_can_seek(stream: BinaryIO, name: str, limits: Limits) -> BinaryIO:
    """To seek back in what is packed is to unpack it again, for each of its files: a small one is held in memory."""
    if not isinstance(stream, Unpacked) or stream.seeks_cheaply:
        return stream
    data = stream.read(limits.max_document_bytes + 1)
    if len(data) > limits.max_document_bytes:
        raise Refused(
            f"{name} is a zip of more than {limits.max_document_bytes // MIB} MiB packed in another archive: "
            "unpack the outer one, then drop what is in it"
        )
    return io.BytesIO(data)


def _safe_path(info: zipfile.ZipInfo) -> str:
    """The path of an entry, "/" between its parts. Raises Refused for one that leads out of its folder, and more."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8_NAME:
        try:
            name = name.encode("cp437").decode("utf-8")  # macOS and others write UTF-8 and do not say so
        except UnicodeError:
            pass
    shown = ascii(name[:80])[1:-1]
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if "\\" in name or "\x00" in name or name.startswith("/") or ".." in parts or _DRIVE.match(name):
        raise Refused(
            f"the zip has an entry that leads out of its folder ({shown}): it is refused as a whole"
        )
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise Refused(f"the zip has a symbolic link in it ({shown}): it is refused as a whole")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused(
            f"the zip has an entry that is neither file nor folder ({shown}): it is refused as a whole"
        )
    if info.flag_bits & _ENCRYPTED:
        raise Refused("the zip is encrypted: unpack it with its password, then drop what is in it")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks bzip2 and LZMA without a bound on what one read gives, so they are not taken either.
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise Refused(
            f"the zip is packed with {method}, which is not read here: unpack it, then drop what is in it"
        )
    return "/".join(parts)


def _refuse_bombs(archive: zipfile.ZipFile) -> None:
    """By what the directory declares: zipfile delivers no more of a file than that."""
    end = archive.start_dir
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset, reverse=True):
        shown = ascii(info.filename[:80])[1:-1]
        if info.header_offset + _LOCAL_HEADER + info.compress_size > end:
            raise Refused(f"the zip is a bomb: its entries overlap ({shown})")
        end = info.header_offset
        if info.file_size > RATIO_FROM and info.file_size > MOST_RATIO * info.compress_size:
            raise Refused(f"the zip is a bomb: {shown} unpacks to more than {MOST_RATIO} times its size")


def _unix_time(extra: bytes) -> float | None:
    """From the extended timestamp (0x5455), which is in UTC."""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, place)
        if kind == 0x5455 and size >= 5 and place + 9 <= len(extra) and extra[place + 4] & 1:
            return float(struct.unpack_from("<i", extra, place + 5)[0])
        place += 4 + size
    return None
