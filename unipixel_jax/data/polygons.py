"""Polygons as masks, pixel for pixel as OpenCV draws them.

The inside is filled by scan lines, and the outline is drawn on top. Edges are cut at the borders of the image before they are followed, which moves them by
a pixel or so.

P corners, H height, W width. Source: ``process_masks`` in UniPixel's ``unipixel/dataset/utils.py`` calls ``cv2.polylines`` and ``cv2.fillPoly`` on
whole pixels. Pillow's polygons differ from those at their edges.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FIXED = 16
"""Bits after the point of the fixed-point numbers in which OpenCV follows an edge."""


def polygon_mask(points: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside a polygon and on its outline.

    Args:
        points: corners as x and y in pixels [P, 2], cut to whole numbers; the last is joined to the first, and they may lie outside the image.
        height: H.
        width: W.

    Returns:
        bool [H, W].
    """
    corners = np.asarray(points, np.float64).reshape(-1, 2).astype(np.int64)
    mask = np.zeros((height, width), bool)
    edges = [_cut(start, end, (width, height)) for start, end in zip(np.roll(corners, 1, axis=0).tolist(), corners.tolist(), strict=True)]
    _fill(mask, edges)
    for edge in edges:
        _draw_line(mask, edge.first, edge.last)
    return mask


class _Edge(NamedTuple):
    """An edge from ``start`` to ``end`` as x and y. Its part inside the image goes from ``first`` to ``last``, which lie outside where there is none."""

    start: list[int]
    end: list[int]
    first: list[int]
    last: list[int]


def _cut(start: list[int], end: list[int], size: tuple[int, int]) -> _Edge:
    """Cut an edge at the image: ends above or below it move along the edge to its first or last row, then those beside it to its first or last column."""
    first, last = list(start), list(end)
    for axis in (1, 0):
        if any(_beyond(first[a], size[a]) * _beyond(last[a], size[a]) > 0 for a in (0, 1)):
            break
        for point, other in ((first, last), (last, first)):
            if side := _beyond(point[axis], size[axis]):
                border = 0 if side < 0 else size[axis] - 1
                point[1 - axis] += _divide((border - point[axis]) * (other[1 - axis] - point[1 - axis]), other[axis] - point[axis])
                point[axis] = border
    return _Edge(start, end, first, last)


def _beyond(place: int, length: int) -> int:
    """Return -1 in front of the first pixel of an axis, 1 behind the last, and 0 between them."""
    return (place >= length) - (place < 0)


def _divide(a: int, b: int) -> int:
    """The quotient without its fraction, rounded toward zero as in C."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _fill(mask: NDArray[np.bool_], edges: list[_Edge]) -> None:
    """Fill between each odd and the next even crossing of a row with the edges."""
    height = len(mask)
    crossings: list[list[int]] = [[] for _ in range(height)]
    for edge in edges:
        if edge.start[1] == edge.end[1]:
            continue
        (top, (x0, y0)), (bottom, (x1, y1)) = sorted(((edge.start[1], edge.first), (edge.end[1], edge.last)), key=lambda end: end[0])
        if y0 == y1:  # a cut edge within one row keeps its columns, but is followed over the rows of the whole edge
            y0, y1 = top, bottom
        step = _divide((x1 - x0) << _FIXED, y1 - y0)
        for y in range(max(top, 0), min(bottom, height)):
            crossings[y].append((x0 << _FIXED) + (y - y0) * step)
    for row, places in zip(mask, crossings, strict=True):
        places.sort()
        for left, right in zip(places[::2], places[1::2], strict=True):
            row[max(-(-left >> _FIXED), 0) : max((right >> _FIXED) + 1, 0)] = True


def _draw_line(mask: NDArray[np.bool_], start: list[int], end: list[int]) -> None:
    """Draw a line one pixel thick, from left to right: step by step along its longer axis, to the nearest pixel along the other (halves round to the start)."""
    (x0, y0), (x1, y1) = sorted((start, end), key=lambda p: p[0])
    across, down = x1 - x0, y1 - y0
    length, side = max(across, abs(down)), min(across, abs(down))
    steps = np.arange(length + 1)
    shift = (2 * side * steps + length - 1) // (2 * length) if length else steps
    along, aside = (steps, shift) if across >= abs(down) else (shift, steps)
    x, y = x0 + along, y0 + aside * (1 if down >= 0 else -1)
    inside = (x >= 0) & (x < mask.shape[1]) & (y >= 0) & (y < mask.shape[0])
    mask[y[inside], x[inside]] = True
