"""Zip and gzip as containers: a tree of files, guarded against bombs, traversal, encryption and depth."""

from typing import Any, BinaryIO, Literal

from daemon.readers.shape import Limits
from daemon.records import Refused


def kind_of(stream: BinaryIO) -> Literal["zip", "gzip"] | None:
    magic = stream.read(4)
    stream.seek(0)
    return "zip" if magic in (b"PK\x03\x04", b"PK\x05\x06") else "gzip" if magic[:2] == b"\x1f\x8b" else None


def why_passed_over(path: str, companions: frozenset[str]) -> str | None:
    return "belongs to the export and holds no memory" if path.rpartition("/")[2] in companions else None


def unpacked(stream: BinaryIO, name: str, size: int, limits: Limits) -> tuple[BinaryIO, str, int]:
    raise Refused("the file is not text: it is compressed")


class ZipTree:
    def __init__(self, stream: BinaryIO, name: str, size: int, limits: Limits, depth: int) -> None:
        raise Refused("the file is not text: it is a zip archive")

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...
