"""A curve in a terminal: dots of braille, borders as vertical lines, labels below them."""

from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of one character
_BORDER = "│"


def curve(
    points: Sequence[tuple[float, float]], borders: Sequence[tuple[float, str]], columns: int, rows: int = 12
) -> list[str]:
    """Lines of text. `points` is [(x, y)], `borders` [(x, label of what begins there)], both by rising x."""
    if not points:
        return []
    left, right = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high == low:
        low, high = low - 0.5, high + 0.5
    margin = max(len(f"{high:.3f}"), len(f"{low:.3f}")) + 2
    cells = max(10, columns - margin)
    bits = [[0] * cells for _ in range(rows)]

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - low) / (high - low)
        return round(across * (cells * 2 - 1)), round((1.0 - up) * (rows * 4 - 1))

    before: tuple[int, int] | None = None
    for x, y in points:
        here = place(x, y)
        for column, row in _between(before or here, here):
            bits[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        before = here
    marks = [(place(x, low)[0] // 2, label) for x, label in borders]
    walls = {column for column, _ in marks if column}
    lines = []
    for number, row_bits in enumerate(bits):
        value = high - (high - low) * number / (rows - 1)
        label = f"{value:.3f}" if number in (0, rows // 2, rows - 1) else ""
        drawn = "".join(
            chr(0x2800 + dots) if dots else _BORDER if column in walls else " "
            for column, dots in enumerate(row_bits)
        )
        lines.append(f"{label:>{margin - 2}} {_BORDER}{drawn}".rstrip())
    lines.append(" " * margin + _labels(marks, cells))
    return lines


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """A running mean over `reach` neighbours on each side: it does not lag behind."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    found = []
    for index in range(len(values)):
        first, last = max(0, index - reach), min(len(values), index + reach + 1)
        found.append((sums[last] - sums[first]) / (last - first))
    return found


def _between(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots on the straight line from one to the other."""
    steps = max(abs(other[0] - one[0]), abs(other[1] - one[1]), 1)
    return [
        (one[0] + (other[0] - one[0]) * i // steps, one[1] + (other[1] - one[1]) * i // steps)
        for i in range(steps + 1)
    ]


def _labels(marks: Sequence[tuple[int, str]], cells: int) -> str:
    """Each label under its border, where there is room for it."""
    line = ""
    for column, label in marks:
        if len(line) <= column and column + len(label) <= cells + len(label) // 2:
            line = line.ljust(column) + label + " "
    return line.rstrip()
