"""Packs short samples into shared rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from unipixel_jax.core.buckets import BucketTable

WIDEST = 8192
"""The longest row, in tokens, in which samples are put together."""

ATTENTION_EQUALS_REST = 20_000
"""The tokens of a row at which its attention costs as much as everything else, estimated for the 3B model: at L tokens, attention takes 4·L·2048 operations
per token and layer, and the 3·10⁹ weights, spread over 36 layers, take two operations each per token.
"""


def choose_rows(lengths: Sequence[int], buckets: BucketTable) -> list[list[int]]:
    """Put samples into rows so that the padded batch costs least.

    Longer rows waste less on padding, but attention is computed over the whole row.

    Args:
        lengths: tokens of each sample.
        buckets: the padded sizes.

    Returns:
        For each row the numbers of its samples, as ``pack`` gives them.
    """
    longest = max(lengths)
    capacities = [size for size in buckets.tokens.sizes if longest <= size <= max(WIDEST, buckets.tokens.size(longest))]

    def cost(rows: list[list[int]]) -> float:
        width = buckets.tokens.size(max(sum(lengths[i] for i in row) for row in rows))
        return buckets.batch.size(len(rows)) * width * (1 + width / ATTENTION_EQUALS_REST)

    return min((pack(lengths, capacity) for capacity in capacities), key=cost)


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
