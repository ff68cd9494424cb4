"""A reader of masks from images that are in memory. O objects, F frames, H and W height and width in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.data.files import read_labels
from unipixel_jax.data.regions import Size, require_room
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import Content


@dataclass(frozen=True)
class LabelContents:
    """Images in which each pixel holds the number of an object.

    Attributes:
        images: one for each frame.
        objects: for each object its number; None for whatever is not 0.
    """

    images: tuple[Content, ...]
    objects: tuple[int | None, ...]

    def read(self, frames: Sequence[int], size: Size) -> NDArray[np.bool_]:
        """Read masks, bool [O, F, H, W] (see ``MaskReader``); an image must have the frame's size."""
        require_room(len(self.objects), len(frames), size, str(self.images[0]))
        out = np.zeros((len(self.objects), len(frames), *size), bool)
        for place, frame in enumerate(frames):
            labels = read_labels(self.images[frame])
            if labels.shape != size:
                height, width = labels.shape
                raise UserError(f"{self.images[frame]} is {width}x{height} pixels, expected {size[1]}x{size[0]} as the frame: masks must fit their frames")
            for mask, number in zip(out[:, place], self.objects, strict=True):
                mask[:] = labels > 0 if number is None else labels == number
        return out
