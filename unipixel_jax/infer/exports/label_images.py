"""Label images as DAVIS has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.core.files import replacing
from unipixel_jax.errors import UserError
from unipixel_jax.infer.exports.base import Export, Labelled

MAX_LABEL = 255
"""The largest number of a class in a label image, whose pixels have 8 bits."""


def davis_palette() -> list[int]:
    """The colours of DAVIS's label images, red, green and blue of each index in turn [768]. Of the first 22 indices, bits 0, 1 and 2 set 128 in red, green and
    blue, and bits 3 and 4 set 64 in red and green, up to 191; later ones are grey.
    """
    known = [min(191, 128 * (index >> channel & 1) + 64 * (index >> (channel + 3) & 1)) for index in range(22) for channel in range(3)]
    return known + [index for index in range(22, 256) for _ in range(3)]


def label_image(masks: NDArray[np.bool_], scores: NDArray[np.float32], numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The number of the class at each pixel, 0 where there is none. Where objects overlap, the one of the highest score wins, then the lower number.

    Args:
        masks: bool [O, H, W].
        scores: float32 [O].
        numbers: the numbers of the objects' classes, from 1 to ``MAX_LABEL`` [O]. In a clip, each object is a class.

    Returns:
        uint8 [H, W].

    Raises:
        UserError: a number is beyond ``MAX_LABEL``.
    """
    if max(numbers, default=0) > MAX_LABEL:
        raise UserError(f"a label image holds objects up to number {MAX_LABEL}, this one is {max(numbers)}: choose --format coco")
    out = np.zeros(masks.shape[1:], np.uint8)
    for place in sorted(range(len(numbers)), key=lambda place: (scores[place], -numbers[place])):
        out[masks[place]] = numbers[place]
    return out


class LabelImages(Export):
    """A PNG with DAVIS's palette for each picture, whose indices are the numbers of classes (``label_image``)."""

    def _add(self, picture: Labelled) -> None:
        """See ``Export``."""
        image = Image.fromarray(label_image(picture.result.masks, picture.result.scores, picture.classes))
        image.putpalette(davis_palette())
        with replacing(self.folder / f"{picture.name}.png") as aside:
            image.save(aside)
