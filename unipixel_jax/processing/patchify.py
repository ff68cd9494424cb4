"""Frames to flat patches, normalised, in the order in which the vision tower reads them.

F frames, T pairs of frames, N patches. Source: ``Qwen2VLImageProcessorFast`` of transformers 4.53, without its resize, which the reference
does by itself beforehand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.config import VisionConfig

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patchify(frames: NDArray[np.uint8], config: VisionConfig) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Normalise with CLIP's mean and deviation, and cut into patches.

    Args:
        frames: [F, height, width, 3], height and width multiples of ``patch_size * spatial_merge_size``. If F does not fill the last pair, the last
            frame is repeated.
        config: the vision tower's sizes.

    Returns:
        Patches [N, patch_dim], each flattened from (channel, time, row, column); pair by pair, merged token by merged token in reading order, and
        the patches of a merged token together. And the grid (T, patches down, patches across).
    """
    pair, merge, patch = config.temporal_patch_size, config.spatial_merge_size, config.patch_size
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % pair, axis=0)])
    time, down, across = len(frames) // pair, frames.shape[1] // patch, frames.shape[2] // patch
    blocks = frames.reshape(time, pair, down // merge, merge, patch, across // merge, merge, patch, 3)
    blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(time * down * across, 3, -1)
    # 256 values per channel: a table, computed with the reference's fused scaling, rounds exactly as it does.
    scale = np.float32(255)
    table = (np.arange(256, dtype=np.float32)[None] - (_MEAN * scale)[:, None]) / (_STD * scale)[:, None]
    patches = np.empty(blocks.shape, np.float32)
    for channel in range(3):
        patches[:, channel] = table[channel][blocks[:, channel]]
    return patches.reshape(len(patches), -1), (time, down, across)
