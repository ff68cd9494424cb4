"""Points and boxes that mark an object, drawn from its mask.

S side of SAM's square. Source: ``get_next_point`` and ``sample_box_points`` in SAM 2's ``sam2/modeling/sam2_utils.py``, and the drawing of frames in
UniPixel's ``unipixel/dataset/sub_classes/referring.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.processing.prompts import SquareReference

BOX_NOISE = 0.1
"""A corner moves by at most this part of the box's width and height ..."""

BOX_NOISE_PIXELS = 20
"""... and by at most so many pixels of the square."""


def visible_frame(mask: NDArray[np.bool_], name: str, rng: np.random.Generator) -> int:
    """One of the frames on which an object can be seen, each as likely.

    Args:
        mask: of the object, bool [F, H, W].
        name: of the sample, for the error.
        rng: decides.

    Raises:
        UserError: the object is on no frame.
    """
    frames = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(frames):
        raise UserError(f"{name}: an object's mask is empty on all {len(mask)} frames that were drawn; expected at least one pixel")
    return int(rng.choice(frames))


def draw_point(mask: NDArray[np.bool_], frame: int, rng: np.random.Generator) -> SquareReference:
    """A pixel of the mask, each as likely.

    Args:
        mask: of one object on one frame, not empty, bool [S, S].
        frame: which frame of the clip it is.
        rng: decides.
    """
    pixel = rng.choice(np.flatnonzero(mask))
    y, x = divmod(int(pixel), mask.shape[1])
    return SquareReference(np.array([[x, y]], np.float32), frame)


def draw_box(mask: NDArray[np.bool_], frame: int, rng: np.random.Generator) -> SquareReference:
    """The box around the mask, from its first to its last pixel, each side moved a little by chance and kept inside the square.

    Args:
        mask: of one object on one frame, not empty, bool [S, S].
        frame: which frame of the clip it is.
        rng: decides.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float64)
    reach = np.minimum((corners[1] - corners[0]) * BOX_NOISE, BOX_NOISE_PIXELS)
    corners += rng.uniform(-1, 1, (2, 2)) * reach
    limit = np.array([mask.shape[1] - 1, mask.shape[0] - 1])
    return SquareReference(np.clip(corners, 0, limit).astype(np.float32), frame)
