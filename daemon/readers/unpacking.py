"""Streams of what lies in a container: bounded, measured, seekable, and never damaged without a sentence."""

import io
import struct
import zipfile
import zlib
from typing import Any, BinaryIO

from daemon.readers.shape import MIB, Limits
from daemon.records import Refused

MOST_RATIO = 200  # unpacked to packed bytes; text comes to 3 to 20, Deflate ends at 1,032
RATIO_FROM = MIB  # bytes; a smaller file is no bomb, however it was packed
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError, RuntimeError,
)  # fmt: skip


class Budget:
    """The bytes that all containers of one dropped file may unpack to, together."""

    def __init__(self, limits: Limits) -> None:
        self._most = self._left = limits.max_file_bytes

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Refused(
                f"the archive is a bomb, or too large: it unpacks to more than {self._most / MIB:,.1f} MiB"
            )


class Source(io.RawIOBase):
    """A file inside a container; every way in which its bytes can be bad becomes Refused."""

    def __init__(self, inner: Any, name: str) -> None:
        super().__init__()
        self._inner = inner
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            # In small steps: a large read of ZipExtFile copies all that it has with each piece.
            data = self._inner.read1(min(len(buffer), 1 << 16))
        except DAMAGE:
            raise Refused(f"{self._name} is damaged inside the archive: export or copy it again") from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return int(self._inner.seek(offset, whence))
        except DAMAGE:
            raise Refused(f"{self._name} is damaged inside the archive: export or copy it again") from None

    def tell(self) -> int:
        return int(self._inner.tell())

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class GzipSource(Source):
    """Measures what really comes out: the size that a gzip declares is at its end, and may be a lie."""

    def __init__(self, inner: Any, name: str, packed: int, budget: Budget) -> None:
        super().__init__(inner, name)
        self._most = max(RATIO_FROM, MOST_RATIO * packed)
        self._budget = budget
        self._seen = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if (place := self.tell()) > self._seen:
            if place > self._most:
                raise Refused(f"{self._name} is a bomb: it unpacks to more than {MOST_RATIO} times its size")
            self._budget.spend(place - self._seen)
            self._seen = place
        return count


class Window(io.RawIOBase):
    """A file that lies unpacked in its container: a zip in a zip, in which one must be able to seek."""

    def __init__(self, stream: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._stream, self._start, self._size, self._place = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._place)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def tell(self) -> int:
        return self._place


class Unpacked(io.BufferedReader):
    """A file from a container, seekable. It knows in how many containers it lies, and what they may still unpack."""

    def __init__(self, source: io.RawIOBase, depth: int, budget: Budget) -> None:
        super().__init__(source, 1 << 16)
        self.depth = depth
        self.budget = budget
        self.seeks_cheaply = isinstance(source, Window)
