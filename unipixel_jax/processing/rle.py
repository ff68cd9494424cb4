"""COCO's run-length encoding of masks.

A mask is read column by column; runs of zeros and ones alternate, zeros first. As text, each run is a number: its length, from the fourth run on minus the
length of the run two before it. The number is written in groups of five bits, lowest first; a sixth bit tells that more groups follow, and a group is a
character, counted from ``0``. Source: ``rleToString`` and ``rleFrString`` in COCO's ``maskApi.c``. pycocotools reads and writes the same, but does not
check what it reads: where the runs do not fill the mask, the rest keeps what the memory held before, and where they reach beyond it, it writes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import MAX_PIXELS

_GROUPS = 7
"""Groups of five bits at most, which hold the difference of any two lengths of 32 bits."""

_MAX_CHARACTERS = 1 << 24
"""The most characters of a text. Reading takes some 40 bytes for each."""


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a bool mask [height, width] as ``{"size": [height, width], "counts": text}``."""
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
    """The mask [height, width], bool, that ``encode_mask`` or pycocotools wrote.

    Args:
        encoded: ``size`` as height and width, and ``counts`` as text, or as a list of the runs' lengths.

    Raises:
        UserError: a part is missing or of another kind, or the runs are not as long together as the mask.
    """
    height, width = mask_size(encoded.get("size"))
    counts = encoded.get("counts")
    runs = _read_text(counts) if isinstance(counts, str | bytes) else _read_list(counts)
    if wrong := runs[(runs < 0) | (runs > height * width)][:1].tolist():
        raise UserError(f"a run of {wrong[0]} pixels, expected 0 to {height * width} in a mask of the size {[height, width]}")
    if (total := int(runs.sum())) != height * width:
        raise UserError(f"run lengths for {total} pixels, expected {height * width} for the size {[height, width]} (height, width)")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def mask_size(size: Any) -> tuple[int, int]:
    """Height and width as a file tells them.

    Raises:
        UserError: they are no whole numbers from 1 on, or too large.
    """
    if not isinstance(size, Sequence) or isinstance(size, str | bytes) or len(size) != 2 or not all(type(side) is int and side >= 1 for side in size):
        raise UserError(f"the size {str(size)[:60]!r}, expected [height, width] in whole pixels")
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(f"the size {str(size)[:60]}, expected at most {MAX_PIXELS} pixels")
    return size[0], size[1]


def _read_list(counts: Any) -> NDArray[np.int64]:
    try:
        runs = np.asarray(counts)
    except ValueError:  # the list holds lists of different lengths
        runs = np.zeros(0)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise UserError(f"the counts {str(counts)[:60]!r}, expected text, or a list of whole numbers")
    return runs.astype(np.int64)


def _read_text(counts: str | bytes) -> NDArray[np.int64]:
    text = counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
    values = np.frombuffer(text, np.uint8) - np.uint8(48)
    last = np.flatnonzero(values & 32 == 0)
    if not 0 < len(values) <= _MAX_CHARACTERS or values.max() > 63 or values[-1] & 32:
        raise UserError(f"counts of {len(values)} characters that are no run lengths or were cut off ({str(counts)[:20]!r})")
    first = np.concatenate([[0], last[:-1] + 1])
    groups = last - first + 1
    if groups.max() > _GROUPS:
        raise UserError(f"counts with a run length of {groups.max()} characters, expected at most {_GROUPS} ({str(counts)[:20]!r})")
    place = np.arange(len(values)) - np.repeat(first, groups)
    runs: NDArray[np.int64] = np.add.reduceat((values & 31).astype(np.int64) << 5 * place, first)
    runs -= np.where(values[last] & 16, 1 << 5 * groups, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
