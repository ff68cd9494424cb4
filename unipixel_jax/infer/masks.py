"""Masks as logits on the host, without JAX: what a clip has, and its masks at the size of the media.

F frames, O objects, S side of SAM's square image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClipMasks:
    """Attributes:
    low_res: [F, O, S/4, S/4] float32 logits; -1024 where an object is not in the frame.
    presence: [F, O] float32 logits of the object score.
    iou: [F, O] float32, predicted IoU of the mask.
    """

    low_res: np.ndarray
    presence: np.ndarray
    iou: np.ndarray


def resize_masks(low_res: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Logits [..., h, w] at the size of the media [..., *size], bilinear without antialiasing, on the host: media come in every size.

    Every number lies between two neighbours, so that two passes over the array do. Matrix products with ``interpolation_weights`` give the same, but wake the
    threads of numpy's BLAS, which cost more than the work itself.
    """
    wide = _between_neighbours(low_res.swapaxes(-1, -2), size[1]).swapaxes(-1, -2)
    return _between_neighbours(np.ascontiguousarray(wide), size[0])


def _between_neighbours(values: np.ndarray, target: int) -> np.ndarray:
    """Values [..., n, m] interpolated to [..., target, m] with half-pixel centres, clamped to the first and last."""
    source = values.shape[-2]
    centre = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    base = centre.astype(np.intp)
    step = np.zeros_like(values)
    np.subtract(values[..., 1:, :], values[..., :-1, :], out=step[..., :-1, :])
    out = step.take(base, axis=-2)
    out *= (centre - base).astype(values.dtype)[:, None]
    out += values.take(base, axis=-2)
    return out


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits [...] float32, in float32."""
    return (1 / (1 + np.exp(-logits))).astype(np.float32)
