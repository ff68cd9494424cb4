"""The uploads of a visitor, read within the limits.

F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.app.limits import Limits
from unipixel_jax.errors import UserError
from unipixel_jax.infer.predictor import SAMPLE_FRAMES
from unipixel_jax.processing.frames import FrameSource, open_frames
from unipixel_jax.processing.media import Clip

SIDE = 1024
"""The longer side in pixels of a picture that is shown to be clicked or painted on."""


def open_media(path: str | Path | None, limits: Limits) -> FrameSource:
    """Open an upload, without reading more than its first frame.

    Raises:
        UserError: nothing was uploaded, it cannot be read, or it is beyond the limits.
    """
    if path is None:
        raise UserError("there is no picture or clip yet: upload one, or choose an example")
    source = open_frames(path)
    if source.count is not None and source.count > limits.frames:
        advice = "cut it, or use `unipixel-jax segment`, which takes clips of any length"
        raise UserError(f"the clip has {source.count} frames, expected at most {limits.frames} on this page: {advice}")
    first = next(iter(source), None)
    if first is None:
        raise UserError("the clip has no frames: upload another one")
    height, width = first.pixels.shape[:2]
    if height * width > limits.pixels:
        raise UserError(f"the picture has {width}x{height} pixels, expected at most {limits.pixels:,} in all on this page: make it smaller")
    return source


def open_photo(path: str | Path | None, limits: Limits) -> FrameSource:
    """The same as one photo; of an animation, its first frame.

    Raises:
        UserError: see ``open_media``.
    """
    source = open_media(path, limits)
    return source if source.is_image else source.only(0)


def sampled(path: str | Path | None, limits: Limits) -> Clip:
    """The frames of an upload that the language model looks at, which are those that a visitor points at.

    Raises:
        UserError: see ``open_media``.
    """
    open_media(path, limits)
    return _sampled(str(path))


@lru_cache(maxsize=4)
def _sampled(path: str) -> Clip:
    return open_frames(path).sample(SAMPLE_FRAMES)


def whole(path: str | Path | None, limits: Limits) -> Clip:
    """All frames of an upload in memory.

    Raises:
        UserError: see ``open_media``; or the frames have too many pixels together.
    """
    source = open_media(path, limits)
    clip = source.sample(limits.frames)
    return replace(clip, indices=np.arange(len(clip.frames)))


def shown(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with at most ``SIDE`` pixels along its longer side."""
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC))
