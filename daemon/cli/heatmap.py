"""A table of shares as a PNG: one coloured cell for each, with the figure in it. No package is needed for that.

The format is that of the PNG specification (ISO/IEC 15948): signature, IHDR, PLTE, one zlib stream of rows in IDAT,
each after a filter byte 0, IEND; 8 bits a pixel, which are an index into the palette.
"""

import struct
import zlib
from collections.abc import Sequence

# 3 x 5 dots for each sign, a row in each octal digit.
_GLYPHS = {
    "0": 0o75557, "1": 0o26227, "2": 0o71747, "3": 0o71717, "4": 0o55711, "5": 0o74717, "6": 0o74757, "7": 0o71122,
    "8": 0o75757, "9": 0o75717, ".": 0o00002, "-": 0o00700, "v": 0o05552, "b": 0o44757, "a": 0o07357, "s": 0o07617,
    "e": 0o07547,
}  # fmt: skip
_SHADES = 200
_WHITE, _BLACK, _GREY = _SHADES, _SHADES + 1, _SHADES + 2
_DOT = 2  # pixels of a dot
_STEP = 4 * _DOT  # from one sign to the next
_CELL = (5 * _STEP, 10 * _DOT)  # width, height
MOST_CELLS = 4_000_000


def png(columns: Sequence[str], rows: Sequence[str], cells: Sequence[Sequence[float | None]]) -> bytes:
    """`cells` has a row for each name in `rows`, each with a share in 0..1 for each name in `columns`, or None, which
    stays grey. Raises ValueError where there are more than MOST_CELLS."""
    if len(columns) * len(rows) > MOST_CELLS:
        raise ValueError(f"{len(columns)} x {len(rows)} cells are too many for a picture")
    left = _STEP * (max(map(len, rows), default=0) + 1)
    cell = (max(_CELL[0], _STEP * (max(map(len, columns), default=0) + 1)), _CELL[1])
    width, height = left + cell[0] * len(columns) + _STEP, cell[1] * (len(rows) + 1) + _STEP
    picture = [bytearray([_WHITE]) * width for _ in range(height)]
    for x, name in enumerate(columns):
        _write(picture, left + x * cell[0] + _DOT, 2 * _DOT, name, _BLACK)
    for y, name in enumerate(rows):
        top = cell[1] * (y + 1)
        _write(picture, _DOT, top + 2 * _DOT, name, _BLACK)
        for x, value in enumerate(cells[y]):
            _fill(picture, left + x * cell[0], top, cell, _GREY if value is None else _shade(value))
            if value is not None:
                ink = _WHITE if value < 0.45 else _BLACK
                _write(picture, left + x * cell[0] + _DOT, top + 2 * _DOT, f"{value:.2f}", ink)
    rest = b"".join(b"\0" + bytes(row) for row in picture)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"PLTE", _palette()), (b"IDAT", zlib.compress(rest, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _shade(value: float) -> int:
    return min(_SHADES - 1, max(0, int(value * _SHADES)))


def _palette() -> bytes:
    """From dark blue over green to yellow, brighter all the way, so that it is read without colours too."""
    stops = ((38, 20, 72), (49, 104, 142), (53, 183, 121), (253, 231, 37))
    found = bytearray()
    for shade in range(_SHADES):
        where = shade / (_SHADES - 1) * (len(stops) - 1)
        low = min(int(where), len(stops) - 2)
        part = where - low
        found += bytes(round(a + (b - a) * part) for a, b in zip(stops[low], stops[low + 1], strict=True))
    return bytes(found) + b"\xff\xff\xff" + b"\0\0\0" + b"\xe0\xe0\xe0"


def _fill(picture: list[bytearray], left: int, top: int, size: tuple[int, int], colour: int) -> None:
    for row in picture[top : top + size[1] - 1]:
        row[left : left + size[0] - 1] = bytes([colour]) * (size[0] - 1)


def _write(picture: list[bytearray], left: int, top: int, text: str, colour: int) -> None:
    for number, sign in enumerate(text):
        dots = _GLYPHS.get(sign, 0)
        for dot in range(15):
            if dots >> (14 - dot) & 1:
                x, y = left + number * _STEP + dot % 3 * _DOT, top + dot // 3 * _DOT
                for row in picture[y : y + _DOT]:
                    row[x : x + _DOT] = bytes([colour]) * _DOT
