"""COCO's run-length encoding of masks, as text.

A mask is read column by column; runs of zeros and ones alternate, zeros first. Each run's length, from the fourth on less the one two before it, is
written in groups of five bits, lowest first, a sixth bit telling that more follow, from the character ``0`` upwards. Source: ``rleToString`` in
COCO's ``maskApi.c``; pycocotools reads and writes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GROUPS = 7


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """``{"size": [height, width], "counts": text}`` of a mask [height, width]."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters = np.zeros((len(rest), _GROUPS), np.uint8)
    written = np.zeros((len(rest), _GROUPS), bool)
    going = np.ones(len(rest), bool)
    for group in range(_GROUPS):
        bits = rest & 31
        rest >>= 5
        more = going & (rest != np.where(bits & 16, -1, 0))
        characters[:, group] = bits + 32 * more + 48
        written[:, group] = going
        going = more
    return {"size": list(mask.shape), "counts": characters[written].tobytes().decode("ascii")}


def decode_mask(encoded: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask [height, width] that ``encode_mask`` or pycocotools wrote."""
    height, width = encoded["size"]
    values = np.frombuffer(encoded["counts"].encode("ascii"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(values & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    group = np.arange(len(values)) - np.repeat(first, last - first + 1)
    counts = np.add.reduceat((values & 31) << 5 * group, first)
    counts -= np.where(values[last] & 16, 1 << 5 * (last - first + 1), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
