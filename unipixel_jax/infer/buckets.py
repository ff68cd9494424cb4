"""The padded sizes of a prompt about one image or clip, chosen so that few programs are compiled."""

from __future__ import annotations

import math
from dataclasses import replace

from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable

WHOLE_WINDOWS = 1.25
"""Windows set aside for each one that the patches would fill. Where the sides of a grid are no multiples of a window's, windows are cut at the edges, so
there are more of them.
"""

OBJECTS = 8
"""Columns for ``<|seg|>`` tokens come in multiples of this, so that generation is not compiled anew for prompts with one and with five of them."""

IMAGE_BUCKETS = {1: 40, 16: 266}
"""The number of combinations of padded sizes in which photos (1) and clips of up to 16 frames (16) reach the published models' vision tower, whatever the
size of the media.
"""


def image_buckets(grid_thw: tuple[int, int, int], config: VisionConfig, buckets: BucketTable = BUCKETS) -> BucketTable:
    """The buckets for a prompt about one image or clip, in which the number of windows follows from the padded number of patches.

    With buckets of their own for windows, images of near sizes would come in all combinations of neighbouring buckets, each of them a program. Instead,
    ``WHOLE_WINDOWS`` windows are set aside for each one that the padded patches would fill, doubled until they suffice, as small images and long, thin ones
    need. Windows take a hundredth of the tower's arithmetic.

    Args:
        grid_thw: patches in time, height and width.
        config: the vision tower's sizes.
        buckets: the sizes to choose from.

    Raises:
        UserError: there are more patches than their buckets allow.
    """
    time, height, width = grid_thw
    side = config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size
    windows = math.ceil(WHOLE_WINDOWS * buckets.patches.size(time * height * width) / side**2)
    while windows < time * -(-height // side) * -(-width // side):
        windows *= 2
    return replace(buckets.fixed({"windows": windows}), objects=replace(buckets.objects, step=OBJECTS))
