"""Frames as SAM reads them: squashed to a square, normalised with ImageNet's mean and deviation.

F frames, H height, W width, S side of the square, K taps, which are the pixels that one output depends on along an axis. Source:
``unipixel/utils/transforms.py`` of UniPixel, and torchvision's antialiased bilinear ``Resize`` on float tensors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unipixel_jax.processing.resize import bilinear_weights

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)

_COLUMNS = 32
"""Columns of the square made at a time, so that what lies between the two passes stays in the cache: three times as fast as whole frames."""


def square_frames(frames: NDArray[np.uint8], side: int, dtype: DTypeLike = np.float32) -> NDArray[np.floating]:
    """Resize frames to SAM's square and normalise them.

    Args:
        frames: RGB [F, H, W, 3], uint8.
        side: S in pixels.
        dtype: dtype of the result, which is computed in float32.

    Returns:
        [F, S, S, 3], of ``dtype``.
    """
    height, width = frames.shape[1:3]
    down, across = _taps(height, side), _taps(width, side)
    scale, shift = np.tile(1 / (255 * _STD), _COLUMNS), np.tile(_MEAN / _STD, _COLUMNS)
    picked = np.empty((_COLUMNS, height * 3), np.uint8)
    wide, wide_spare = np.empty((2, _COLUMNS, height * 3), np.float32)
    turned = np.zeros((height, _COLUMNS * 3), np.float32)
    square_picked, square, square_spare = np.empty((3, side, _COLUMNS * 3), np.float32)
    out = np.empty((len(frames), side, side, 3), dtype)
    for frame, target in zip(frames, out, strict=True):
        columns = _turn(frame).reshape(width, height * 3)
        for first in range(0, side, _COLUMNS):
            count = min(_COLUMNS, side - first)
            part = slice(first, first + count)
            _weigh(columns, Taps(across.places[:, part], across.weights[:, part]), picked[:count], wide[:count], wide_spare[:count])
            _pixels(turned.reshape(height, _COLUMNS, 3))[:, :count] = _pixels(wide[:count].reshape(count, height, 3)).T
            _weigh(turned, down, square_picked, square, square_spare)
            square *= scale
            square -= shift
            target[:, part] = square.reshape(side, _COLUMNS, 3)[:, :count]
    return out


class Taps(NamedTuple):
    """The inputs that each output depends on [K, outputs], and their weights [K, outputs, 1]."""

    places: NDArray[np.intp]
    weights: NDArray[np.float32]


@lru_cache(maxsize=64)
def _taps(size: int, target: int) -> Taps:
    weights = bilinear_weights(size, target)
    used = weights > 0
    count = int(used.sum(axis=1).max())
    places = np.minimum(used.argmax(axis=1), size - count)[:, None] + np.arange(count)
    return Taps(np.ascontiguousarray(places.T), np.ascontiguousarray(np.take_along_axis(weights, places, axis=1).T)[..., None])


def _weigh(rows: NDArray[Any], taps: Taps, picked: NDArray[Any], out: NDArray[np.float32], spare: NDArray[np.float32]) -> None:
    """Compute weighted sums of rows, tap by tap, since matrix products of this shape lose their time to waiting threads.

    Args:
        rows: the inputs [inputs, values].
        taps: the taps of the outputs.
        picked: room for the rows of a tap [outputs, values].
        out: where the sums go [outputs, values], float32.
        spare: room for products, of the same shape.
    """
    for tap, (places, weights) in enumerate(zip(*taps, strict=True)):
        np.take(rows, places, axis=0, out=picked, mode="clip")  # no index is outside; in another mode numpy would fill a copy of ``picked``
        np.multiply(picked, weights, out=spare if tap else out)
        if tap:
            out += spare


def _turn(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Swap rows and columns, [H, W, 3] to [W, H, 3]."""
    return np.ascontiguousarray(_pixels(np.ascontiguousarray(frame)).T).view(np.uint8).reshape(frame.shape[1], frame.shape[0], 3)


def _pixels(array: NDArray[Any]) -> NDArray[np.void]:
    """A view of [..., 3] whose items are whole pixels [...], which numpy moves several times as fast."""
    return array.view(f"V{3 * array.itemsize}")[..., 0]
