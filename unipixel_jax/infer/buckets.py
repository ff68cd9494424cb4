"""The padded sizes of a prompt about one image or clip, of which few programs come."""

from __future__ import annotations

import math
from dataclasses import replace

from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS, BucketTable

WHOLE_WINDOWS = 1.25
"""Windows for each one that the patches would fill: where the sides of a grid are no multiples of a window's, there are more, cut at the edges."""


OBJECTS = 8
"""Columns for ``<|seg|>`` tokens come in multiples of this: their number is no reason to compile generation anew for prompts with one or with five."""

IMAGE_BUCKETS = {1: 40, 16: 266}
"""In how many combinations of sizes photos (1) and clips of up to 16 frames come to the published models' vision tower, whatever the size of the media."""


def image_buckets(grid_thw: tuple[int, int, int], config: VisionConfig, buckets: BucketTable = BUCKETS) -> BucketTable:
    """The buckets for a prompt about one image, with one size for its windows, which follows from that of its patches.

    With buckets of their own for windows, images of near sizes would come in all combinations of neighbouring buckets, each of them a program. So there are
    ``WHOLE_WINDOWS`` for each window that the padded patches would fill, doubled until they suffice, as small images and long, thin ones need. Windows take
    a hundredth of the tower's arithmetic.

    Args:
        grid_thw: patches in time, height and width.
        config: the vision tower's sizes.
        buckets: the sizes to choose from.

    Raises:
        UserError: more patches than their buckets allows.
    """
    time, height, width = grid_thw
    side = config.window_size // config.spatial_merge_size // config.patch_size * config.spatial_merge_size
    windows = math.ceil(WHOLE_WINDOWS * buckets.patches.size(time * height * width) / side**2)
    while windows < time * -(-height // side) * -(-width // side):
        windows *= 2
    return replace(buckets.fixed({"windows": windows}), objects=replace(buckets.objects, step=OBJECTS))
