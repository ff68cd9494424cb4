"""Objects that a prompt remembers: masks on the vision tower's grid, the text that lists them, and the rows that each ``<|mem|>`` token averages.

O objects, F frames, T pairs of frames, H and W in pixels, h and w in merged tokens. Source: UniPixel's ``unipixel/eval/infer_pixelqa.py``,
``unipixel/dataset/sub_classes/region.py`` and the memory part of ``unipixel/model/qwen2_5_vl.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unipixel_jax.config import VisionConfig
from unipixel_jax.processing.resize import bilinear_weights
from unipixel_jax.processing.tokenizer import MEM_TOKEN


def memory_grid(masks: NDArray[np.bool_], grid_thw: ArrayLike, config: VisionConfig, *, fill: bool = True) -> NDArray[np.bool_]:
    """Find the merged tokens that each object touches.

    A token counts where an antialiased resize of the mask to the tower's input is positive anywhere in it, in either frame of its pair.

    Args:
        masks: bool [O, F, H, W].
        grid_thw: patches of the clip in time, height and width: T, h * merge, w * merge.
        config: the vision tower's sizes.
        fill: an object that is on no frame counts as being everywhere, so that every object has a memory; False leaves it without one.

    Returns:
        bool [T, O, h, w].
    """
    time, down, across = np.asarray(grid_thw).tolist()
    count, frames, height, width = masks.shape
    pair, unit = config.temporal_patch_size, config.patch_size * config.spatial_merge_size
    masks = np.concatenate([masks, np.repeat(masks[:, -1:], time * pair - frames, axis=1)], axis=1)
    rows = _touched(height, down // config.spatial_merge_size, unit)
    columns = _touched(width, across // config.spatial_merge_size, unit)
    grid = np.zeros((time, count, len(rows), len(columns)), bool)
    for t, o in np.ndindex(time, count):
        mask = masks[o, t * pair : (t + 1) * pair].any(axis=0)
        grid[t, o] = rows @ mask.astype(np.float32) @ columns.T > 0
    if fill:
        grid[:, ~grid.any(axis=(0, 2, 3))] = True
    return grid


def memory_prefix(grid: NDArray[np.bool_], frames: int, ids: Sequence[int] | None = None) -> str:
    """The lines that list the objects before a question: each object's number, and a ``<|mem|>`` for every pair of frames in which it is visible.

    Args:
        grid: which merged tokens each object touches, bool [T, O, h, w].
        frames: F, the frames of the clip.
        ids: the objects' numbers, by which the question speaks of them [O]; None counts from 0.
    """
    if frames > 1:
        lines = [f"Here is a video with {frames} frames denoted as <1> to <{frames}>. The highlighted regions are as follows:"]
    else:
        lines = ["Here is an image with the following highlighted regions:"]
    for place, number in enumerate(range(grid.shape[1]) if ids is None else ids):
        times = (2 * np.flatnonzero(grid[:, place].any(axis=(1, 2))) + 1).tolist()
        lines.append(f"[{number}]: " + " ".join(f"<{t}>-<{t + 1}> {MEM_TOKEN}" if frames > 1 else MEM_TOKEN for t in times))
    return "\n".join(lines) + "\n"


def memory_tokens(grid: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """The merged tokens that each ``<|mem|>`` token averages, numbered within their clip. The list is ordered by object, then time.

    Args:
        grid: which merged tokens each object touches, bool [T, O, h, w].

    Returns:
        For each ``<|mem|>`` token the numbers of its merged tokens [tokens], int32.
    """
    seen = grid.swapaxes(0, 1).reshape(grid.shape[1], grid.shape[0], -1)
    each = seen.shape[2]
    return [(t * each + np.flatnonzero(touched)).astype(np.int32) for own in seen for t, touched in enumerate(own) if touched.any()]


def _touched(size: int, tokens: int, unit: int) -> NDArray[np.float32]:
    """A matrix that is 1 where a pixel has a share in a merged token along one axis [tokens, size], float32."""
    shares: NDArray[np.float32] = bilinear_weights(size, tokens * unit).reshape(tokens, unit, size).max(axis=1)
    return (shares > 0).astype(np.float32)
