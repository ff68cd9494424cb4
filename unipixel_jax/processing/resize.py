"""The size in which the language side sees a frame, by a budget of pixels, and the weights of antialiased resizing.

F frames, H height, W width. Source: ``smart_resize`` and ``fetch_image`` in UniPixel's ``unipixel/dataset/utils.py``, and torchvision's antialiased
bilinear ``Resize``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipixel_jax.errors import UserError

FACTOR = 28
"""The side of a merged token in pixels in the published models; the sides of a resized frame are multiples of it."""

MAX_BUDGET = 16384 * FACTOR**2
"""The most pixels of a frame that may be asked for: Qwen2-VL's own limit (``MAX_PIXELS`` in its qwen_vl_utils)."""

MAX_RATIO = 200
"""A frame whose sides differ by more than this factor is refused."""


def check_ratio(height: int, width: int, name: str = "the image") -> None:
    """Refuse a frame that is too long and thin for the reference.

    Raises:
        UserError: the sides differ by more than a factor of 200.
    """
    if max(height, width) > MAX_RATIO * min(height, width):
        raise UserError(f"{name} is {width}x{height} pixels, expected sides that differ by at most a factor of {MAX_RATIO}: crop it or pad it")


def pixel_budget(frames: int, sample_frames: int, min_pixels: int | None = None, max_pixels: int | None = None) -> tuple[int, int]:
    """The fewest and the most pixels that one frame may have for the language side. Those that are not given are the reference's
    (unipixel/eval/infer_seg.py), moved as far as the other one asks for.

    Args:
        frames: frames of the clip after sampling; 1 for a photo.
        sample_frames: the most frames taken from any clip; shorter clips get larger frames.
        min_pixels: the fewest pixels of a frame.
        max_pixels: the most pixels of a frame.

    Raises:
        UserError: a number that is given is less than one merged token has, or beyond ``MAX_BUDGET``, or they are in the wrong order.
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and not FACTOR**2 <= value <= MAX_BUDGET:
            raise UserError(f"{name} is {value}, expected {FACTOR**2} to {MAX_BUDGET} pixels of a frame")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise UserError(f"min_pixels is {min_pixels} and max_pixels {max_pixels}, expected the first to be no larger than the second")
    fewest, most = 128 * FACTOR**2, 256 * FACTOR**2 * max(1, sample_frames // frames)
    if min_pixels is not None:
        fewest, most = min_pixels, max(most, min_pixels)
    if max_pixels is not None:
        fewest, most = min(fewest, max_pixels), max_pixels
    return fewest, most


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int, factor: int = FACTOR) -> tuple[int, int]:
    """Height and width nearest in shape to the given ones, in multiples of ``factor`` and within the budget of pixels, though at least ``factor``. Where
    rounding to multiples keeps only one of both bounds, it is the larger one.

    Raises:
        UserError: the sides differ by more than a factor of 200.
    """
    check_ratio(height, width)
    down = max(factor, round(height / factor) * factor)
    across = max(factor, round(width / factor) * factor)
    if down * across < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        down, across = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    if down * across > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        down, across = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    return down, across


def language_frames(
    frames: NDArray[np.uint8], sample_frames: int, factor: int = FACTOR, min_pixels: int | None = None, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Resize frames, with Pillow's bicubic filter, to the size that the language side reads, within ``pixel_budget``.

    Args:
        frames: RGB [F, H, W, 3], uint8.
        sample_frames: the most frames taken from any clip.
        factor: the side of a merged token in pixels.
        min_pixels: the fewest pixels of a frame, see ``pixel_budget``.
        max_pixels: the most pixels of a frame, see ``pixel_budget``.

    Returns:
        RGB [F, height, width, 3], uint8, whose sides are multiples of ``factor``.

    Raises:
        UserError: the sides differ by more than a factor of 200, or the budget makes no sense.
    """
    fewest, most = pixel_budget(len(frames), sample_frames, min_pixels, max_pixels)
    height, width = smart_resize(frames.shape[1], frames.shape[2], fewest, most, factor)
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, target in zip(frames, out, strict=True):
        target[:] = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    return out


def bilinear_weights(size: int, target: int) -> NDArray[np.float32]:
    """Weights of an antialiased bilinear resize along one axis [target, size], float32.

    Each row is a triangle whose half width is an output pixel or an input pixel, whichever is larger.
    """
    scale = np.float32(size) / np.float32(target)
    reach = max(scale, np.float32(1))
    centre = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centre - reach + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((centre + reach + np.float32(0.5)).astype(np.int64), size)
    pixel = np.arange(size)
    # The product with the inverse rounds as torch does, so that the same outermost weights are zero: masks depend on which weights are positive.
    distance = (pixel.astype(np.float32) - centre[:, None] + np.float32(0.5)) * (np.float32(1) / reach)
    weights: NDArray[np.float32] = np.maximum(np.float32(1) - np.abs(distance), np.float32(0))
    weights *= (pixel >= first[:, None]) & (pixel < last[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
