"""Masks in pictures that are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.data.masks import Size
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Content


@dataclass(frozen=True)
class LabelContents:
    """Pictures in which each pixel holds the number of an object.

    Attributes:
        pictures: one for each frame.
        objects: for each object its number; None for whatever is not 0.
    """

    pictures: tuple[Content, ...]
    objects: tuple[int | None, ...]

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """See ``MaskReader``; a picture must have the frame's size."""
        out = np.zeros((len(self.objects), len(frames), *size), bool)
        for place, frame in enumerate(frames):
            labels = read_label_content(self.pictures[frame])
            if labels.shape != size:
                height, width = labels.shape
                raise UserError(f"{self.pictures[frame]} is {width}x{height} pixels, expected {size[1]}x{size[0]} as the frame: masks must fit their frames")
            for mask, number in zip(out[:, place], self.objects, strict=True):
                mask[:] = labels > 0 if number is None else labels == number
        return out


def read_label_content(picture: Content) -> NDArray[np.integer]:
    """The numbers of a picture's pixels [H, W].

    Raises:
        UserError: it is broken, or has colours.
    """
    try:
        with Image.open(picture.open()) as image:
            labels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{picture} is not a picture or is broken ({error}): prepare the data set again") from error
    if labels.ndim == 3 and (labels == labels[..., :1]).all():
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise UserError(f"{picture} has {labels.shape[2]} channels, expected one: a picture of masks holds a number at each pixel, not a colour")
    return labels.astype(np.uint8)
