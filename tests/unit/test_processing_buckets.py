"""The buckets of padded sizes."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipixel_jax.config import VisionConfig
from unipixel_jax.core.buckets import BUCKETS, Buckets
from unipixel_jax.errors import UserError
from unipixel_jax.infer.buckets import IMAGE_BUCKETS
from unipixel_jax.processing.resize import MAX_RATIO, pixel_budget, smart_resize
from unipixel_jax.processing.vision_index import build_vision_index, pack_windows

ALL = [getattr(BUCKETS, f.name) for f in dataclasses.fields(BUCKETS)]


@pytest.mark.parametrize("buckets", ALL, ids=lambda buckets: buckets.what)
def test_sizes_increase_in_whole_steps_up_to_the_limit(buckets):
    assert list(buckets.sizes) == sorted(set(buckets.sizes))
    assert all(size % buckets.step == 0 for size in buckets.sizes)
    assert buckets.sizes[0] == buckets.step and buckets.sizes[-1] == buckets.limit
    assert len(buckets.sizes) < 64


@given(st.sampled_from(ALL), st.data())
def test_a_size_fits_and_wastes_little(buckets, data):
    n = data.draw(st.integers(0, buckets.limit))
    size = buckets.size(n)
    assert size >= n and size in buckets.sizes
    assert size < max(n, buckets.step) * buckets.growth + buckets.step
    assert buckets.size(size) == size


def test_devices_that_share_a_clip_divide_the_sizes_of_long_clips():
    sizes = BUCKETS.frames.sizes
    assert [BUCKETS.frames.size(n) for n in (1, 8, 16, 32, 64, 65, 100, 128)] == [1, 8, 16, 32, 64, 80, 112, 128]
    assert all(size % 8 == 0 for size in sizes if size >= 32) and all(size % 16 == 0 for size in sizes if size >= 64)


@pytest.mark.parametrize("n", [-1, 101])
def test_a_size_beyond_the_limit_is_named(n):
    with pytest.raises(UserError, match=f"{n} apples, expected 0 to 100"):
        Buckets("apples", 4, 1.5, 100).size(n)


def grids(frames, sample_frames=16):
    """Every grid of merged tokens that a frame of any size may be resized to, and some more, since rounding may make a frame a little longer and thinner."""
    fewest, most = (pixels // 28**2 for pixels in pixel_budget(frames, sample_frames))
    for height in range(1, most + 1):
        for width in range(max(1, -(-fewest // height)), most // height + 1):
            if max(height, width) <= 1.2 * MAX_RATIO * min(height, width):
                yield height, width


@given(st.integers(1, 16), st.integers(1, 4000), st.integers(1, 4000))
def test_media_of_any_size_come_to_those_grids(frames, height, width):
    if max(height, width) <= MAX_RATIO * min(height, width):
        down, across = smart_resize(height, width, *pixel_budget(frames, 16))
        assert (down // 28, across // 28) in set(grids(frames))


def test_images_of_any_size_come_in_few_combinations_of_sizes():
    config = VisionConfig()
    side = config.window_size // 28
    found = {most: set() for most in IMAGE_BUCKETS}

    @cache
    def patches(time, height, width):
        counts = np.minimum(side, height - np.arange(0, height, side))[:, None] * np.minimum(side, width - np.arange(0, width, side))
        return BUCKETS.patches.size(pack_windows(np.tile(counts.reshape(-1), time), side**2)[1] * config.window_patches)

    for frames in range(1, 17):
        time = -(-frames // 2)
        for height, width in grids(frames):
            sizes = patches(time, *sorted((height, width))), BUCKETS.grid_frames.size(time), BUCKETS.frame_patches.size(4 * height * width)
            for most in IMAGE_BUCKETS:
                if frames <= most:
                    found[most].add(sizes)
    assert {most: len(combinations) for most, combinations in found.items()} == IMAGE_BUCKETS


def test_an_image_beyond_the_buckets_is_named():
    with pytest.raises(UserError, match="image patches, expected 0 to 262144"):
        build_vision_index([(1, 1024, 1024)], VisionConfig())
