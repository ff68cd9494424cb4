"""Resizing and cutting frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processing_cases import HERE, recorded

from unipixel_jax.config import VisionConfig, preset
from unipixel_jax.errors import UserError
from unipixel_jax.processing.media import read_media
from unipixel_jax.processing.patchify import patchify
from unipixel_jax.processing.resize import bilinear_weights, language_frames, pixel_budget, smart_resize
from unipixel_jax.processing.square import square_frames

CONFIG = preset("tiny")
E2E = [("e2e_image", "photo.png", 16), ("e2e_video", "clip", 16), ("e2e_video_sampled", "clip", 4)]


def test_smart_resize_matches_the_reference():
    for given_size, expected in zip(recorded()["smart_resize.inputs.hw_min_max"].tolist(), recorded()["smart_resize.outputs.hw"].tolist(), strict=True):
        assert smart_resize(*given_size) == tuple(expected)


@pytest.mark.parametrize(("case", "media", "frames"), E2E)
def test_patches_match_the_reference_exactly(case, media, frames):
    clip = read_media(HERE / "media" / media, frames)
    patches, grid = patchify(language_frames(clip.frames, frames), CONFIG.vision)
    np.testing.assert_array_equal(grid, recorded()[f"{case}.grid"])
    np.testing.assert_array_equal(patches[::123], recorded()[f"{case}.patches"])


@pytest.mark.parametrize(("case", "media", "frames"), E2E)
def test_square_frames_match_the_reference(case, media, frames):
    clip = read_media(HERE / "media" / media, frames)
    square = square_frames(clip.frames, CONFIG.sam2.image_size)[::3, ::8, ::8].transpose(0, 3, 1, 2)
    # Measured 1.4e-6, two roundings of values up to 2.6.
    np.testing.assert_allclose(square, recorded()[f"{case}.square"], rtol=0, atol=4e-6)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 100), st.integers(1, 2))
def test_square_frames_are_weighted_sums(height, width, side, count):
    """The frames equal products with whole matrices instead of taps, at sizes that no block divides."""
    frames = np.random.default_rng(height).integers(0, 256, (count, height, width, 3), np.uint8)
    down, across = bilinear_weights(height, side).astype(float), bilinear_weights(width, side).astype(float)
    resized = np.einsum("sh,fhwc,tw->fstc", down, frames.astype(float), across)
    expected = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(square_frames(frames, side), expected, rtol=0, atol=4e-6)


@given(st.integers(1, 300), st.integers(1, 300))
def test_weights_are_a_triangle_over_each_output(size, target):
    reach = max(1.0, size / target)
    distance = np.abs(np.arange(size) + 0.5 - (np.arange(target)[:, None] + 0.5) * size / target)
    expected = np.maximum(0, 1 - distance / reach)
    np.testing.assert_allclose(bilinear_weights(size, target), expected / expected.sum(axis=1, keepdims=True), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(bilinear_weights(size, size), np.eye(size))


def test_patches_lie_where_their_pixels_were():
    config = VisionConfig()
    frames = np.random.default_rng(0).integers(0, 256, (3, 28, 56, 3), dtype=np.uint8)
    patches, grid = patchify(frames, config)
    assert grid == (2, 2, 4) and patches.shape == (16, 1176) and patches.dtype == np.float32
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    block = patches.reshape(2, 1, 2, 2, 2, 3, 2, 14, 14)
    # second merged token, lower left patch, green, second frame of the pair
    np.testing.assert_allclose(block[0, 0, 1, 1, 0, 1, 1], (frames[1, 14:28, 28:42, 1] / 255 - mean[1]) / std[1], rtol=1e-5, atol=1e-6)
    # the odd third frame fills both halves of the last pair
    np.testing.assert_array_equal(block[1, ..., 0, :, :], block[1, ..., 1, :, :])


@pytest.mark.parametrize(("frames", "sample", "most"), [(1, 16, 16), (7, 16, 2), (16, 16, 1), (20, 16, 1)])
def test_short_clips_get_larger_frames(frames, sample, most):
    assert pixel_budget(frames, sample) == (128 * 784, most * 256 * 784)


@pytest.mark.parametrize("size", [(1, 201), (500, 2)])
def test_long_and_thin(size):
    with pytest.raises(UserError, match=rf"{size[1]}x{size[0]} pixels, expected .* factor of 200: crop"):
        smart_resize(*size, 100, 1000)
    assert smart_resize(1, 200, *pixel_budget(1, 16))[0] >= 28


def test_a_budget_that_is_given_moves_the_other_bound_as_far_as_needed():
    assert pixel_budget(1, 1, max_pixels=5000) == (5000, 5000)
    assert pixel_budget(1, 1, min_pixels=300_000) == (300_000, 300_000)
    assert pixel_budget(1, 1, 1000, 2000) == (1000, 2000)
    frames = np.zeros((1, 300, 500, 3), np.uint8)
    assert language_frames(frames, 1, max_pixels=20_000).shape[1:3] == (84, 168)
    assert 150_000 <= np.prod(language_frames(frames, 1, min_pixels=150_000).shape[1:3]) < 200_704
    assert 150_000 <= np.prod(language_frames(frames[:, :90, :90], 1, min_pixels=150_000).shape[1:3]) < 200_704


def test_a_frame_never_shrinks_to_nothing():
    assert smart_resize(28, 5600, 784, 784) == (28, 392)


@pytest.mark.parametrize(
    ("budget", "words"), [((783, None), "min_pixels is 783"), ((None, 16385 * 784), "max_pixels is"), ((2000, 1000), "no larger than the second")]
)
def test_budgets_that_make_no_sense(budget, words):
    with pytest.raises(UserError, match=words):
        pixel_budget(1, 1, *budget)
