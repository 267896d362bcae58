"""Bars, tables and durations for a terminal. Nothing here knows what it draws."""

import os
import sys
from collections.abc import Sequence


def _known_width() -> int | None:
    try:
        return max(40, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    try:
        return max(40, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return None


def width() -> int:
    """Columns to draw in: COLUMNS wins, and a pipe has 100."""
    return _known_width() or 100


def bar(done: int, total: int, cells: int = 24) -> str:
    """`[####------]`; never full before all is done."""
    share = done / total if total > 0 else 0.0
    filled = cells if share >= 1.0 else min(int(share * cells), cells - 1)
    return f"[{'#' * filled}{'-' * (cells - filled)}]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns, numbers to the right; the last column is cut where the line is too long."""
    texts = [["" if cell is None else str(cell).replace("\n", " ") for cell in row] for row in rows]
    columns = range(len(head))
    widths = [max(len(row[i]) for row in [list(head), *texts]) for i in columns]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in columns]
    right[-1] = False

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return fit("  ".join(padded).rstrip())

    return "\n".join([line(head), *(line(row) for row in texts)])


def fit(text: str, columns: int | None = None) -> str:
    """Cut to the terminal's width; a pipe gets all of it."""
    columns = columns or _known_width() or len(text)
    return text if len(text) <= columns else text[: columns - 1] + "…"


def plural(number: int, word: str) -> str:
    many = word[:-1] + "ies" if word.endswith("y") else word + ("es" if word.endswith("ch") else "s")
    return f"{number:,} {word if number == 1 else many}"
