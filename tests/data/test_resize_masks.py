"""Masks at other sizes, against matrices of weights."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unipixel_jax.data.frames import resize_masks
from unipixel_jax.processing.resize import bilinear_weights

SIZES = st.integers(1, 70)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([0.0, 0.002, 0.05, 1.0]), st.integers(0, 99))
def test_every_share_of_a_true_pixel_counts(height, width, down, across, share, seed):
    masks = np.random.default_rng(seed).random((2, 1, height, width)) < share
    rows, columns = (bilinear_weights(height, down) > 0).astype(int), (bilinear_weights(width, across) > 0).astype(int)
    expected = np.einsum("yh,ofhw,xw->ofyx", rows, masks.astype(int), columns) > 0
    if (height, width) == (down, across):
        expected = masks
    found = resize_masks(masks, down, across)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)
