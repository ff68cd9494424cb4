"""Rotary codes against complex numbers in float64."""

import jax.numpy as jnp
import numpy as np

from unipixel_jax.ops.rope import axial_rope, frequencies, grid_angles, mrope_angles, rotate_half


def turned(x, angles):
    """x [..., H] with pairs (i, i + H / 2) turned by angles [..., H / 2]."""
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    z = (a + 1j * b) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def test_rotation_turns_pairs(rng):
    x, angles = rng.normal(size=(2, 5, 3, 8)).astype(np.float32), rng.normal(size=(2, 5, 4)).astype(np.float32)
    ours = rotate_half(jnp.asarray(x), jnp.cos(angles), jnp.sin(angles))
    np.testing.assert_allclose(ours, turned(x, angles[:, :, None]), atol=1e-6)


def test_rotation_in_bfloat16_is_that_of_float32_rounded_once(rng):
    x, angles = jnp.asarray(rng.normal(size=(1, 6, 2, 8)), jnp.bfloat16), rng.normal(size=(1, 6, 4)).astype(np.float32)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    ours = rotate_half(x, cos, sin)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, rotate_half(x.astype(jnp.float32), cos, sin).astype(jnp.bfloat16))


def test_multimodal_angles_follow_time_row_and_column_by_section():
    positions = np.array([[[5, 4000]], [[7, 4001]], [[11, 4002]]])
    ours = np.asarray(mrope_angles(jnp.asarray(positions), 16, 1e6, (2, 3, 3)))
    freq = 1e6 ** (-np.arange(8) / 8)
    axis = np.repeat([0, 1, 2], [2, 3, 3])
    expected = positions[axis].transpose(1, 2, 0) * freq
    assert ours.dtype == np.float32 and ours.shape == (1, 2, 8)
    # the trap: angles in bfloat16 are off by up to 8 at position 4000
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_grid_angles_have_rows_before_columns():
    ours = np.asarray(grid_angles(jnp.asarray([[0, 0], [3, 0], [0, 4], [2, 9]]), 16))
    freq = 1e4 ** (-np.arange(4) / 4)
    expected = [np.concatenate([row * freq, column * freq]) for row, column in ((0, 0), (3, 0), (0, 4), (2, 9))]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_axial_rope_has_columns_before_rows():
    cos, sin = axial_rope(6, 16)
    freq = 1e4 ** (-np.arange(4) / 4)
    angles = np.array([np.concatenate([column * freq, row * freq]) for row in range(6) for column in range(6)])
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_frequencies():
    np.testing.assert_allclose(frequencies(8, 1e4), 1e4 ** (-np.arange(4) / 4), rtol=1e-6)
    assert frequencies(8, 1e4, 2).shape == (2,)
