"""How the sequences of one optimizer step are laid out in rows and micro-batches.

A pure function of lengths and recipe: never of the device, the clock or the content. The layout changes
how fast a step is, not what it computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Attention costs more per token in a longer row: about this many tokens of width as much as all the rest.
_WIDTH_PRICE = 512
_NARROWEST = 64


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass: rows of sequence numbers. `width` is the longest row, in tokens."""

    rows: tuple[tuple[int, ...], ...]
    width: int


def layout(
    lengths: Sequence[int], *, packing: bool, max_seq_length: int, micro_batch_tokens: int
) -> list[MicroBatch]:
    """Lay out sequences 0..len(lengths)-1, each exactly once.

    Rows x width <= micro_batch_tokens, except where one row alone is longer. Without packing each row
    holds one sequence; with packing a row holds at most max_seq_length tokens (a sequence that is longer
    has a row to itself).
    """
    if not lengths:
        return []
    if packing:
        widths = _candidate_widths(max(lengths), max_seq_length, sum(lengths))
        rows = min((_fill(lengths, width) for width in widths), key=lambda rows: _price(rows, lengths))
    else:
        rows = [[number] for number in _longest_first(lengths)]
    return _group(rows, lengths, micro_batch_tokens)


def _candidate_widths(longest: int, max_seq_length: int, total: int) -> list[int]:
    """Powers of two from the longest sequence up, at most four times as wide, and never over the limit."""
    limit = max(longest, max_seq_length)
    width = _NARROWEST
    while width < longest:
        width *= 2
    widths = [min(width * factor, limit) for factor in (1, 2, 4)]
    return sorted({w for w in widths if w == widths[0] or w < 2 * total})


def _fill(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Longest first, each sequence into the fullest row that still has room (best fit decreasing)."""
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(width + 1)]  # free tokens -> row numbers
    for number in _longest_first(lengths):
        need = lengths[number]
        room = next((r for r in range(need, width + 1) if rows_by_room[r]), None)
        if room is None:
            row, room = len(rows), width
            rows.append([])
        else:
            row = rows_by_room[room].pop()
        rows[row].append(number)
        rows_by_room[max(room - need, 0)].append(row)
    return rows


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))


def _price(rows: list[list[int]], lengths: Sequence[int]) -> float:
    fills = [sum(lengths[number] for number in row) for row in rows]
    width = max(fills)
    return len(rows) * width * (1 + width / _WIDTH_PRICE)


def _group(rows: list[list[int]], lengths: Sequence[int], micro_batch_tokens: int) -> list[MicroBatch]:
    """Rows of like length together, as many as the budget allows."""
    fills = [sum(lengths[number] for number in row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: (-fills[row], row))
    batches: list[MicroBatch] = []
    while order:
        width = fills[order[0]]
        count = max(1, micro_batch_tokens // width)
        taken, order = order[:count], order[count:]
        batches.append(MicroBatch(tuple(tuple(rows[row]) for row in taken), width))
    return batches
