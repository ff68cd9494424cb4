"""Masks of objects in image files, as people paint them or other tools write them.

H height, W width of the media.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.processing.images import LABELS, open_image


def read_masks(path: str | Path, size: tuple[int, int]) -> list[NDArray[np.bool_]]:
    """Read the masks in an image file.

    An image with a palette is a label image, as DAVIS has them: each index but 0 is an object. Of any other, whatever is neither black nor transparent is one
    object.

    Args:
        path: a PNG, or another file that keeps numbers exactly (``images.LABELS``).
        size: height and width of the media.

    Returns:
        The objects in the order of their indices, bool [H, W] each; at least one.

    Raises:
        UserError: the file cannot be read, has another size than the media, or marks nothing.
    """
    with open_image(path, LABELS) as image:
        if (image.height, image.width) != size:
            raise UserError(f"the mask {path} is {image.width}x{image.height} pixels, the media {size[1]}x{size[0]}: make both the same size")
        if image.mode == "P":
            indices = np.asarray(image)
            masks = [indices == index for index in np.unique(indices[indices > 0])]
        else:
            values = np.asarray(image if len(image.getbands()) == 1 else image.convert("RGBA")).astype(bool)
            masks = [values if values.ndim == 2 else values[..., :3].any(axis=2) & values[..., 3]]
    if not masks or not masks[0].any():
        raise UserError(f"the mask {path} marks nothing: expected pixels of the object that are not black")
    return masks
