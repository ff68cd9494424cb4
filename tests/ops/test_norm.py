"""Normalisations and activations."""

import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.models.layers import LayerNorm, gelu
from unipixel_jax.ops.norm import layer_norm, rms_norm


def weights(rng, d):
    return rng.normal(size=d).astype(np.float32), rng.normal(size=d).astype(np.float32)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_layer_norm_is_the_float64_formula(rng, eps):
    # Small numbers, where the two eps that SAM 2 mixes give different results.
    x, (weight, bias) = (rng.normal(size=(3, 5, 16)) * 3e-3 + 1).astype(np.float32), weights(rng, 16)
    centred = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias
    np.testing.assert_allclose(layer_norm(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias), eps), expected, atol=3e-4)
    other = layer_norm(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias), 1.1e-5 - eps)
    assert np.abs(np.asarray(other) - expected).max() > 0.1


def test_layer_norm_has_no_default_eps():
    with pytest.raises(TypeError):
        LayerNorm(8)  # type: ignore[call-arg]


def test_rms_norm_is_the_float64_formula(rng):
    x, (weight, _) = rng.normal(size=(2, 7, 12)).astype(np.float32), weights(rng, 12)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-6), expected, rtol=1e-5, atol=1e-6)


def test_norms_sum_in_float32_and_keep_the_dtype():
    x = jnp.full((1, 4096), 1.0, jnp.bfloat16)
    ones = jnp.ones(4096, jnp.bfloat16)
    out = rms_norm(x, ones, 1e-6)
    assert out.dtype == jnp.bfloat16
    # a sum of 4096 ones in bfloat16 would stop at 256
    assert np.all(np.asarray(out, np.float32) == 1.0)
    assert layer_norm(x, ones, ones, 1e-6).dtype == jnp.bfloat16


def test_gelu_is_exact():
    # torch.nn.functional.gelu in float64; the tanh form is up to 5e-4 away
    expected = [-0.004049694, -0.158655254, -0.154268769, 0.185373427, 1.954499736]
    np.testing.assert_allclose(gelu(jnp.asarray([-3.0, -1, -0.5, 0.3, 2], jnp.float32)), expected, atol=3e-7)
