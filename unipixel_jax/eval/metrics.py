"""Measures of masks: the overlap of regions and of their boundaries.

F frames, H height, W width. Sources: ``db_eval_iou`` and ``f_measure`` in UniPixel's ``unipixel/eval/eval_seg.py``, which are DAVIS 2017's, and
``get_min_box`` and ``compute_j_and_f_volume`` in its ``unipixel/eval/infer_seg.py``. The boundary measure gives the same numbers as theirs without looking
at whole frames: beyond the box around both masks nothing is a boundary.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

BOUNDARY_TOLERANCE = 0.008
"""How far apart two boundaries may be and still match, as a share of the image's diagonal."""

SMALLEST_PART = 10
"""Pixels of the smallest part of a mask that its box is drawn around."""


Box: TypeAlias = tuple[int, int, int, int]
"""The first column and row, and the ones after the last, as Pillow has them."""


class FrameScore(NamedTuple):
    """How well a mask fits on one frame.

    Attributes:
        j: intersection over union; 1 where both masks are empty.
        f: harmonic mean of the boundaries' precision and recall; 1 where both masks are empty.
    """

    j: float
    f: float


def score_frame(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> FrameScore:
    """Compare the masks of a frame, bool [H, W] both."""
    box = joint_box(box_of(truth), box_of(found), truth.shape)
    return FrameScore(1.0, 1.0) if box is None else score_part(truth[box], found[box], truth.shape)


def score_part(truth: NDArray[np.bool_], found: NDArray[np.bool_], size: tuple[int, ...]) -> FrameScore:
    """Compare the masks of a frame, cut to the box around both.

    Args:
        truth: bool [h, w].
        found: bool [h, w].
        size: height and width of the frame.
    """
    truth, found = np.ascontiguousarray(truth), np.ascontiguousarray(found)  # run lengths give columns, images rows
    radius = int(np.ceil(BOUNDARY_TOLERANCE * np.linalg.norm(size)))
    both, either = np.count_nonzero(truth & found), np.count_nonzero(truth | found)
    return FrameScore(both / either, _boundary_f(boundary(truth), boundary(found), radius))


def box_of(mask: NDArray[np.bool_]) -> Box | None:
    """The box around a mask [H, W]; None where it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def joint_box(one: Box | None, other: Box | None, size: tuple[int, ...]) -> tuple[slice, slice] | None:
    """The rows and columns of the box around both boxes with a margin of a pixel, beyond which nothing is a boundary; None where there are none.

    Args:
        one: the box around a mask; None for an empty one.
        other: the box around another.
        size: height and width of the frame.
    """
    boxes = [box for box in (one, other) if box is not None]
    if not boxes:
        return None
    x0, y0, x1, y1 = (pick(sides) for pick, sides in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
    return slice(max(y0 - 1, 0), min(y1 + 1, size[0])), slice(max(x0 - 1, 0), min(x1 + 1, size[1]))


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that differ from their right, lower or lower right neighbour [H, W]. In the last row and column only the neighbour along it counts."""
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1]) | (mask[:-1, :-1] ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def box_of_parts(mask: NDArray[np.bool_], smallest: int = SMALLEST_PART) -> tuple[int, int, int, int] | None:
    """The box around a mask [H, W] without its smallest parts: first and last column and row as ``(x0, y0, x1, y1)``, None where nothing is left.

    Args:
        mask: bool [H, W].
        smallest: 8-connected parts of fewer pixels do not count.
    """
    from scipy import ndimage  # slow to import, and needed by photos only

    labels, count = ndimage.label(mask, np.ones((3, 3), bool))
    if not count:
        return None
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= smallest
    kept[0] = False
    rows, columns = np.nonzero(kept[labels])
    return (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())) if len(rows) else None


def box_iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes ``(x0, y0, x1, y1)`` in continuous coordinates; 0 where both have no area."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    union = sum(areas) - across * down
    return across * down / union if union > 0 else 0.0


def score_volume(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> tuple[float, float]:
    """Compare an object's masks on all frames at once, as PixelQA does: the share of common pixels, and the Dice coefficient of the pixels.

    Args:
        truth: bool [F, H, W].
        found: bool [F, H, W].

    Returns:
        J and F. Both are 0 where both masks are empty, since a millionth is added to each denominator.
    """
    small = np.float32(1e-6)
    both = np.float32(np.count_nonzero(truth & found))
    only_found, only_truth = np.float32(np.count_nonzero(found & ~truth)), np.float32(np.count_nonzero(truth & ~found))
    j = both / (both + only_found + only_truth + small)
    precision, recall = both / (both + only_found + small), both / (both + only_truth + small)
    return float(j), float(2 * precision * recall / (precision + recall + small))


def _boundary_f(truth: NDArray[np.bool_], found: NDArray[np.bool_], radius: int) -> float:
    """The harmonic mean of precision and recall of boundaries [h, w] that match where they are at most ``radius`` pixels apart."""
    of_truth, of_found = np.count_nonzero(truth), np.count_nonzero(found)
    if not of_truth or not of_found:
        return float(of_truth == of_found)
    precision = np.count_nonzero(found & _dilated(truth, radius)) / of_found
    recall = np.count_nonzero(truth & _dilated(found, radius)) / of_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _dilated(edge: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate [h, w] by a disk: along the rows by as much as each row of the disk is wide, from the narrowest to the widest, and then across them.

    Whole rows are shifted as one flat array, which is fast; ``radius`` empty columns at their ends keep a row's pixels out of the next.
    """
    height, width = edge.shape
    wide = np.zeros((height, width + radius), bool)
    wide[:, :width] = edge
    flat = wide.ravel()
    grown, reach = flat.copy(), 0
    out = np.zeros((height, width), bool)
    for down in range(radius, -1, -1):
        for shift in range(reach + 1, math.isqrt(radius * radius - down * down) + 1):
            grown[shift:] |= flat[:-shift]
            grown[:-shift] |= flat[shift:]
            reach = shift
        rows = grown.reshape(height, width + radius)[:, :width]
        out[down:] |= rows[: max(height - down, 0)]
        out[: max(height - down, 0)] |= rows[down:]
    return out
