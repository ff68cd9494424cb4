"""Windows of a map."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unipixel_jax.ops.window import merge, partition


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_hold_their_squares_and_merge_back(batch, height, width, size):
    x = np.arange(batch * height * width * 2, dtype=np.float32).reshape(batch, height, width, 2)
    fill = np.array([-5, -7], np.float32)
    windows = np.asarray(partition(jnp.asarray(x), size, jnp.asarray(fill)))
    down, across = -(-height // size), -(-width // size)
    assert windows.shape == (batch * down * across, size, size, 2)
    padded = np.empty((batch, down * size, across * size, 2), np.float32)
    padded[:] = fill
    padded[:, :height, :width] = x
    for b in range(batch):
        for row in range(down):
            for column in range(across):
                square = padded[b, row * size : (row + 1) * size, column * size : (column + 1) * size]
                np.testing.assert_array_equal(windows[(b * down + row) * across + column], square)
    np.testing.assert_array_equal(merge(jnp.asarray(windows), (height, width)), x)
