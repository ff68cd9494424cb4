"""Which short samples share a row of a batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put samples into as few rows as first fit finds, longest first.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row; a longer sample has a row to itself.

    Returns:
        For each row the numbers of its samples, increasing; rows in the order of their first samples.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[sample]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return sorted(sorted(row) for row in rows)
