"""Resampling with torch's conventions. The expected numbers are torch.nn.functional.interpolate's, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipixel_jax.ops import resize
from unipixel_jax.ops.resize import interpolation_weights, resize_bicubic, resize_bilinear, upsample_nearest2

SMALL = np.array([[0, 1, 4], [2, -3, 5], [7, 6, -8]], np.float32)
CUBIC = [
    [-0.305121094, 0.539230469, 2.465230469, 4.084878906],
    [0.531992187, -1.334419922, 0.973394531, 5.792275391],
    [2.358886719, -2.077148438, -0.666503906, 5.574218750],
    [5.418183594, 3.856031250, 0.052933594, -3.250351562],
    [7.524214844, 8.856093750, 0.990339844, -10.404476563],
]
LINEAR = [[0, 0.4, 1, 2.8, 4], [1.25, 0.15, -1.5, 2.175, 4.625], [3.875, 2.475, 0.375, 0.225, 0.125], [7, 6.6, 6, -2.4, -8]]


def test_bicubic_has_torch_kernel():
    ours = np.asarray(resize_bicubic(jnp.asarray(SMALL), (5, 4)))
    np.testing.assert_allclose(ours, CUBIC, atol=5e-6)
    # the trap: jax's cubic has a = -0.5
    assert np.abs(np.asarray(jax.image.resize(SMALL, (5, 4), "cubic")) - CUBIC).max() > 0.1


def test_bicubic_on_a_gpu_is_the_same(rng, monkeypatch):
    x, direction = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 7, 6), (3, 20, 16)))
    value, gradient = jax.value_and_grad(lambda x: jnp.vdot(resize_bicubic(x, (20, 16)), direction))(x)
    monkeypatch.setattr(resize, "platform", lambda: "gpu")
    sums, gradient_of_sums = jax.value_and_grad(lambda x: jnp.vdot(resize_bicubic(x, (20, 16)), direction))(x)
    np.testing.assert_allclose(sums, value, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_sums, gradient, atol=1e-5)


def test_bilinear_clamps_at_the_edges():
    np.testing.assert_allclose(resize_bilinear(jnp.asarray(SMALL), (4, 5)), LINEAR, atol=5e-6)


def test_bilinear_does_not_antialias():
    pattern = ((np.arange(36) * 7) % 11).reshape(6, 6).astype(np.float32)
    expected = [[7, 4.5, 2], [6.5, 4, 7]]
    np.testing.assert_allclose(resize_bilinear(jnp.asarray(pattern), (2, 3)), expected, atol=5e-6)
    # the trap: jax antialiases by default
    assert np.abs(np.asarray(jax.image.resize(pattern, (2, 3), "linear")) - expected).max() > 0.1


@given(st.integers(1, 20), st.integers(1, 40), st.sampled_from(["linear", "cubic"]))
def test_weights_average(source, target, kind):
    weights = interpolation_weights(source, target, kind)
    assert weights.shape == (target, source)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    # an image and its mirror image are resampled alike
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)
    if source == target:
        np.testing.assert_array_equal(weights, np.eye(source))


def test_the_unknown_kind_is_refused():
    with pytest.raises(KeyError, match="nearest"):
        interpolation_weights(3, 4, "nearest")


def test_leading_axes_are_kept_and_the_result_is_float32():
    x = jnp.asarray(np.stack([SMALL, 2 * SMALL])[:, None], jnp.bfloat16)
    out = resize_bilinear(x, (4, 5))
    assert out.shape == (2, 1, 4, 5) and out.dtype == jnp.float32
    np.testing.assert_allclose(out[1, 0], 2 * np.array(LINEAR), atol=1e-5)


def test_nearest_doubles(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(upsample_nearest2(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))
