"""Convolutions and the matrix product against plain numpy loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.ops import conv as convolutions
from unipixel_jax.ops import dense as products
from unipixel_jax.ops.conv import conv, conv_patches, conv_transpose2, depthwise
from unipixel_jax.ops.dense import dense


def correlate(x, weight, bias, stride, padding, groups=1):
    """Return the convolution as torch.nn.functional.conv2d computes it, in numpy; x [B, h, w, I], weight [O, I / groups, kh, kw]."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    o, i, k, _ = weight.shape
    b, h, w = x.shape[0], (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
    out = np.zeros((b, h, w, o))
    for channel in range(o):
        first = channel // (o // groups) * i
        for row in range(h):
            for column in range(w):
                window = x[:, row * stride : row * stride + k, column * stride : column * stride + k, first : first + i]
                out[:, row, column, channel] = np.einsum("bxyi,ixy->b", window, weight[channel].astype(np.float64)) + bias[channel]
    return out


def random(rng, *shapes):
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (7, 4, 3)])
def test_conv(rng, size, stride, padding):
    x, weight, bias = random(rng, (2, 12, 8, 3), (5, 3, size, size), (5,))
    ours = conv(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias), stride, padding)
    np.testing.assert_allclose(ours, correlate(x, weight, bias, stride, padding), atol=2e-5)


def test_conv_patches(rng):
    x, weight, bias = random(rng, (2, 8, 4, 3), (5, 3, 2, 2), (5,))
    ours = conv_patches(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias))
    np.testing.assert_allclose(ours, correlate(x, weight, bias, 2, 0), atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("where", ["cpu", "tpu"])
def test_depthwise(rng, kernel, where, monkeypatch):
    monkeypatch.setattr(convolutions, "platform", lambda: where)
    x, weight, bias = random(rng, (2, 9, 6, 4), (4, 1, kernel, kernel), (4,))
    ours = depthwise(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias))
    np.testing.assert_allclose(ours, correlate(x, weight, bias, 1, kernel // 2, groups=4), atol=2e-5)


def test_transposed_convolution_does_not_flip_the_kernel():
    # torch.nn.functional.conv_transpose2d; a flipped kernel would put 4 in the first corner
    x = jnp.asarray([[[[1.0], [10]], [[100], [1000]]]], jnp.float32)
    weight = jnp.asarray([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]], jnp.float32)
    out = np.asarray(conv_transpose2(x, weight, jnp.asarray([0.0, 0.5], jnp.float32)))
    plain = np.kron([[1, 10], [100, 1000]], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(out[0, :, :, 0], plain)
    np.testing.assert_array_equal(out[0, :, :, 1], np.kron([[1, 10], [100, 1000]], [[5, 6], [7, 8]]) + 0.5)


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), ()])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense(rng, rows, dtype):
    x, weight, bias = random(rng, (*rows, 24), (7, 24), (7,))
    x, weight = jnp.asarray(x, dtype), jnp.asarray(weight, dtype)
    ours = dense(x, weight, jnp.asarray(bias))
    assert ours.dtype == dtype and ours.shape == (*rows, 7)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T + bias
    # bfloat16: products and sums are exact enough in float32, only the result is rounded
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=2**-8 if dtype == jnp.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (7, 4, 3), (1, 1, 0)])
def test_gradients_of_conv(rng, size, stride, padding):
    x, weight, bias = random(rng, (2, 12, 8, 3), (5, 3, size, size), (5,))
    wanted = correlate(x, weight, bias, stride, padding)
    direction, along, shift = random(rng, wanted.shape, weight.shape, x.shape)

    def projected(x, weight, bias):
        return jnp.sum(conv(x, weight, bias, stride, padding) * direction)

    to_x, to_weight, to_bias = jax.grad(projected, argnums=(0, 1, 2))(x, weight, bias)
    # it is linear in each, so a difference is exact
    zero = np.zeros_like(bias)
    np.testing.assert_allclose(np.sum(to_x * shift), np.sum(correlate(shift, weight, zero, stride, padding) * direction), rtol=1e-4)
    np.testing.assert_allclose(np.sum(to_weight * along), np.sum(correlate(x, along, zero, stride, padding) * direction), rtol=1e-4)
    np.testing.assert_allclose(to_bias, direction.sum((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_depthwise(rng, monkeypatch, dtype):
    x, weight, bias, direction = random(rng, (2, 9, 6, 4), (4, 1, 7, 7), (4,), (2, 9, 6, 4))
    along, shift = random(rng, weight.shape, x.shape)
    zero, tolerance = np.zeros_like(bias), 1e-6 if dtype == jnp.float32 else 2e-3

    def projected(x, weight, bias):
        return jnp.sum(depthwise(x, weight, bias).astype(jnp.float32) * direction)

    for where in ("cpu", "tpu"):
        monkeypatch.setattr(convolutions, "platform", lambda where=where: where)
        to_x, to_weight, to_bias = jax.grad(projected, argnums=(0, 1, 2))(jnp.asarray(x, dtype), jnp.asarray(weight), jnp.asarray(bias))
        assert to_x.dtype == dtype and to_weight.dtype == jnp.float32
        # it is linear in each, so a difference is exact
        for found, moved in ((np.sum(np.asarray(to_x, np.float64) * shift), (shift, weight)), (np.sum(to_weight * along), (x, along))):
            change = correlate(*moved, zero, 1, 3, groups=4)
            np.testing.assert_allclose(found, np.sum(change * direction), atol=tolerance * np.linalg.norm(change) * np.linalg.norm(direction))
        np.testing.assert_allclose(to_bias, direction.sum((0, 1, 2)), atol=tolerance * np.linalg.norm(direction))


def test_a_gpu_rounds_before_it_adds_a_bias(rng, monkeypatch):
    x, weight, bias = random(rng, (3, 16), (5, 16), (5,))
    sums = jnp.asarray(x, jnp.bfloat16) @ jnp.asarray(weight, jnp.bfloat16).T
    monkeypatch.setattr(products, "platform", lambda: "gpu")
    found = dense(jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight), jnp.asarray(bias))
    np.testing.assert_array_equal(found, (sums.astype(jnp.float32) + bias[None]).astype(jnp.bfloat16))
    exact = dense(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias))
    np.testing.assert_allclose(exact, x @ weight.T + bias, atol=1e-5)  # float32 stays as it is
