"""Polygons as masks, pixel for pixel as OpenCV draws them: the inside by scan lines, and the outline on top.

P corners, H height, W width. Source: ``process_masks`` in UniPixel's ``unipixel/dataset/utils.py`` calls ``cv2.polylines`` and ``cv2.fillPoly`` on
whole pixels. Pillow's polygons differ from those at their edges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FIXED = 16
"""OpenCV follows an edge in fixed point with so many bits after the point."""


def polygon_mask(points: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside a polygon and on its outline.

    Args:
        points: corners as x and y in pixels [P, 2], cut to whole numbers; the last is joined to the first.
        height: H.
        width: W.

    Returns:
        bool [H, W]; corners may lie outside.
    """
    corners = np.asarray(points, np.float64).reshape(-1, 2).astype(np.int64)
    mask = np.zeros((height, width), bool)
    edges = list(zip(np.roll(corners, 1, axis=0).tolist(), corners.tolist(), strict=True))
    _fill(mask, edges)
    for start, end in edges:
        _draw_line(mask, start, end)
    return mask


def _fill(mask: NDArray[np.bool_], edges: list[tuple[list[int], list[int]]]) -> None:
    """Fill between each odd and the next even crossing of a row with the edges."""
    height = len(mask)
    crossings: list[list[int]] = [[] for _ in range(height)]
    for start, end in edges:
        (x0, y0), (x1, y1) = sorted((start, end), key=lambda p: p[1])
        if y0 == y1:
            continue
        rise = ((abs(x1 - x0) << _FIXED) // (y1 - y0)) * (1 if x1 >= x0 else -1)
        for y in range(max(y0, 0), min(y1, height)):
            crossings[y].append((x0 << _FIXED) + (y - y0) * rise)
    for row, places in zip(mask, crossings, strict=True):
        places.sort()
        for left, right in zip(places[::2], places[1::2], strict=True):
            row[max(-(-left >> _FIXED), 0) : max((right >> _FIXED) + 1, 0)] = True


def _draw_line(mask: NDArray[np.bool_], start: list[int], end: list[int]) -> None:
    """A line one pixel thick: along its longer axis step by step, along the other to the nearest pixel, from left to right, halves staying behind."""
    (x0, y0), (x1, y1) = sorted((start, end), key=lambda p: p[0])
    across, down = x1 - x0, y1 - y0
    length, side = max(across, abs(down)), min(across, abs(down))
    steps = np.arange(length + 1)
    shift = (2 * side * steps + length - 1) // (2 * length) if length else steps
    along, aside = (steps, shift) if across >= abs(down) else (shift, steps)
    x, y = x0 + along, y0 + aside * (1 if down >= 0 else -1)
    inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
    mask[y[inside], x[inside]] = True
