"""Products with weights of whole numbers, held to a product in float64; and what they keep in memory."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from unipixel_jax.ops import dense
from unipixel_jax.ops.dense import quantised_dense

IN, OUT = 96, 40
FORMS = {"int8": ("int8", None), "int8 in groups": ("int8", 32), "int4 in groups": ("int4", 32), "int4 in pairs": ("int4", 2)}


def weights(rng, dtype, group):
    """Whole numbers and scales, and the weights [out, in] in float64 that they stand for."""
    top = 127 if dtype == "int8" else 7
    whole = rng.integers(-top, top + 1, (OUT, IN))
    if group is None:
        scales = rng.uniform(0.01, 0.1, OUT).astype(np.float32)
        return jnp.asarray(whole, dtype), jnp.asarray(scales), whole * scales[:, None].astype(np.float64)
    scales = rng.uniform(0.01, 0.1, (IN // group, OUT)).astype(ml_dtypes.bfloat16)
    grouped = whole.T.reshape(IN // group, group, OUT)
    full = (grouped * scales[:, None].astype(np.float64)).reshape(IN, OUT).T
    return jnp.asarray(grouped, jnp.int8).astype(dtype), jnp.asarray(scales), full


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("rows", [1, 2, 5, 64, 65])
def test_products(rng, form, dtype, bound, rows):
    weight, scales, full = weights(rng, *FORMS[form])
    x, bias = jnp.asarray(rng.normal(size=(rows, IN)), dtype), jnp.asarray(rng.normal(size=OUT), "float32")
    found = jax.jit(quantised_dense)(x, weight, scales, bias)
    wanted = np.asarray(x, np.float64) @ full.T + np.asarray(bias)
    assert found.shape == (rows, OUT) and found.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=bound * np.abs(wanted).max(), rtol=0)


def test_inputs_of_any_shape_and_rows_of_zeros(rng):
    weight, scales, full = weights(rng, "int8", None)
    x = jnp.asarray(rng.normal(size=(2, 3, IN)), "float32").at[1].set(0)
    found = np.asarray(quantised_dense(x, weight, scales))
    assert found.shape == (2, 3, OUT) and not found[1].any()
    wanted = np.asarray(x[0], np.float64) @ full.T
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_one_large_input_takes_little_from_the_others(rng):
    """Activations of language models have outliers: three digits keep what a float32 of the outlier's size would."""
    weight, scales, full = weights(rng, "int8", None)
    x = jnp.asarray(rng.normal(size=(1, IN)), "float32").at[0, 5].set(3000)
    small = np.asarray(quantised_dense(x, weight, scales), np.float64) - 3000 * full[:, 5]
    rest = np.asarray(x.at[0, 5].set(0), np.float64) @ full.T
    np.testing.assert_allclose(small, rest, rtol=0, atol=1e-3 * np.abs(rest).max())


def test_int8_activations(rng, monkeypatch):
    weight, scales, full = weights(rng, "int8", None)
    x = jnp.asarray(rng.normal(size=(100, IN)), "float32")
    wanted = np.asarray(x, np.float64) @ full.T
    error = np.linalg.norm(quantised_dense(x, weight, scales, int8_activations=True) - wanted) / np.linalg.norm(wanted)
    assert 1e-3 < error < 1e-2  # 0.6% measured: a 127th of the largest input, rounded to nearest
    few = quantised_dense(x[:4], weight, scales, int8_activations=True)
    np.testing.assert_allclose(few, wanted[:4], rtol=0, atol=1e-6 * np.abs(wanted).max())  # few rows are not rounded on a CPU
    monkeypatch.setattr(dense, "platform", lambda: "tpu")
    assert np.abs(quantised_dense(x[:4], weight, scales, int8_activations=True) - wanted[:4]).max() > 1e-4


@pytest.mark.parametrize("rows", [1, 8])
def test_few_rows_read_the_whole_numbers_as_they_are(rows):
    """Cast weights would be a temporary of 2 MB here, and of 600 MB for the head of UniPixel-3B."""
    x, weight, scales = jnp.ones((rows, 512), "bfloat16"), jnp.ones((2048, 512), "int8"), jnp.ones((2048,))
    memory = jax.jit(quantised_dense).lower(x, weight, scales).compile().memory_analysis()
    assert memory.temp_size_in_bytes < weight.nbytes / 2
