"""Frames to flat patches, normalised, in the order in which the vision tower reads them.

F frames, T pairs of frames, N patches. Source: ``Qwen2VLImageProcessorFast`` of transformers 4.53, without its resize, which the reference
does by itself beforehand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from unipixel_jax.config import VisionConfig

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_SCALE = np.float32(255)


def patchify(
    frames: NDArray[np.uint8], config: VisionConfig, dtype: DTypeLike = np.float32
) -> tuple[NDArray[np.floating], tuple[int, int, int]]:
    """Normalise with CLIP's mean and deviation, and cut into patches.

    Args:
        frames: [F, height, width, 3], height and width multiples of ``patch_size * spatial_merge_size``. If F does not fill the last pair, the last
            frame is repeated.
        config: the vision tower's sizes.
        dtype: of the patches; they are computed in float32.

    Returns:
        Patches [N, patch_dim], each flattened from (channel, time, row, column); pair by pair, merged token by merged token in reading order, and
        the patches of a merged token together. And the grid (T, patches down, patches across).
    """
    pair, merge, patch = config.temporal_patch_size, config.spatial_merge_size, config.patch_size
    time, down, across = -(-len(frames) // pair), frames.shape[1] // patch, frames.shape[2] // patch
    # The pixels of a patch that lie side by side are moved as one item, which numpy does several times as fast as single bytes.
    run = np.dtype(f"V{patch * 3}")
    runs = np.ascontiguousarray(frames).reshape(*frames.shape[:2], across, 3 * patch).view(run)[..., 0]
    out = np.empty((time, down * across, 3, pair, patch * patch), dtype)
    plane = np.empty((down * across, patch * patch), np.float32)
    for frame, (t, place) in enumerate(np.ndindex(time, pair)):
        if frame >= len(frames):
            out[t, :, :, place] = out[t, :, :, place - 1]
            continue
        # by merged token, patch in it, and row of the patch
        pixels = runs[frame].reshape(down // merge, merge, patch, across // merge, merge).transpose(0, 3, 1, 4, 2)
        pixels = np.ascontiguousarray(pixels).view(np.uint8).reshape(-1, patch * patch, 3)
        for channel in range(3):
            # In the reference's order, division by 255 fused into mean and deviation, so that it rounds alike.
            np.subtract(pixels[..., channel], _MEAN[channel] * _SCALE, out=plane)
            plane /= _STD[channel] * _SCALE
            out[t, :, channel, place] = plane
    return out.reshape(time * down * across, -1), (time, down, across)
