"""Attention in the windows of maps: as rows of a batch, and by the kernels that read the projection itself, in interpret mode."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unipixel_jax.core.mesh import AXES
from unipixel_jax.ops.attention import attention_in_windows, maps, use_attention
from unipixel_jax.ops.attention.windows import Heads

kernels = pytest.mark.parametrize("kernel", maps.KERNELS)
FORWARD = {"float32": 2e-6, "bfloat16": 1e-2}
BACKWARD = {"float32": 1e-5, "bfloat16": 2e-2}
"""Relative errors (of the whole array, in the Euclidean norm), as in test_attention.py."""


class Shape(NamedTuple):
    images: int
    height: int
    width: int
    heads: int
    size: int
    window: int
    pooled: bool = False


SHAPES = {
    "whole windows in several parts": Shape(2, 16, 64, 2, 8, 8),
    "over both edges": Shape(2, 10, 12, 2, 12, 7),
    "over one edge": Shape(1, 8, 20, 3, 8, 8),
    "pooled": Shape(2, 16, 32, 2, 8, 8, True),
    "pooled over both edges": Shape(1, 8, 10, 4, 8, 6, True),
    "a map within one window": Shape(1, 5, 6, 2, 8, 7),
    "small windows": Shape(1, 8, 32, 1, 56, 4),
}


def arguments(shape, dtype, rng):
    features = shape.heads * shape.size
    qkv = rng.normal(size=(shape.images, shape.height, shape.width, 3 * features))
    bias = rng.normal(size=3 * features)
    pooled = rng.normal(size=(shape.images, shape.height // 2, shape.width // 2, features)) if shape.pooled else None
    weight = rng.normal(size=(*qkv.shape[:3], features) if pooled is None else pooled.shape)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (qkv, bias, pooled, weight))


@partial(jax.jit, static_argnames=("shape", "implementation"))
def run(qkv, bias, pooled, weight, shape, implementation):
    """The result, and the gradients of its product with the weight."""
    out, pull = jax.vjp(lambda *a: attention_in_windows(*a[:2], shape.heads, shape.window, a[2], implementation=implementation), qkv, bias, pooled)
    return out, *(a for a in pull(weight) if a is not None)


def by_hand(qkv, bias, pooled, shape):
    """In float64, window by window."""
    qkv, bias = np.asarray(qkv, np.float64), np.asarray(bias, np.float64)
    high, wide = (-(-length // shape.window) * shape.window for length in qkv.shape[1:3])
    padded = np.broadcast_to(bias, (shape.images, high, wide, bias.size)).copy()
    padded[:, : shape.height, : shape.width] = qkv
    q, k, v = np.split(padded, 3, axis=-1)
    side = shape.window
    if pooled is not None:
        q, side = np.zeros((shape.images, high // 2, wide // 2, q.shape[-1])), side // 2
        q[:, : shape.height // 2, : shape.width // 2] = np.asarray(pooled, np.float64)
    out = np.zeros(q.shape)

    def heads(a, row, column, side):
        return a[:, row * side : (row + 1) * side, column * side : (column + 1) * side].reshape(shape.images, side * side, shape.heads, shape.size)

    for row in range(high // shape.window):
        for column in range(wide // shape.window):
            scores = np.einsum("bthd,bshd->bhts", heads(q, row, column, side), heads(k, row, column, shape.window)) * shape.size**-0.5
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            found = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), heads(v, row, column, shape.window))
            out[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = found.reshape(shape.images, side, side, -1)
    return out[:, : shape.height // (1 + shape.pooled), : shape.width // (1 + shape.pooled)]


def errors(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        length = np.linalg.norm(np.asarray(b, np.float64))
        difference = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        yield difference and difference / length


@pytest.mark.parametrize("name", SHAPES)
def test_rows_of_a_batch_are_the_windows_of_the_map(name, rng):
    shape = SHAPES[name]
    qkv, bias, pooled, _ = arguments(shape, "float32", rng)
    found = attention_in_windows(qkv, bias, shape.heads, shape.window, pooled)
    assert found.dtype == jnp.float32
    assert max(errors([found], [by_hand(qkv, bias, pooled, shape)])) <= FORWARD["float32"]


@kernels
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_compute_what_rows_of_a_batch_do(kernel, name, dtype, rng):
    shape = SHAPES[name]
    given = arguments(shape, dtype, rng)
    ours = run(*given, shape, kernel)
    assert all(a.dtype == dtype for a in ours)
    forward, *backward = errors(ours, run(*jax.tree.map(lambda a: a.astype(jnp.float32), given), shape, "xla"))
    assert forward <= FORWARD[dtype]
    assert max(backward) <= BACKWARD[dtype]


@kernels
def test_images_are_sharded_over_the_mesh_that_is_set(kernel, rng):
    shape = SHAPES["over both edges"]._replace(images=4)
    given = arguments(shape, "float32", rng)
    mesh = jax.make_mesh((1, 2, 2, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        ours = run(*given, shape, kernel)
    assert max(errors(ours, run(*given, shape, "xla"))) <= BACKWARD["float32"]


@kernels
def test_the_context_names_the_kernel(kernel, rng):
    shape = SHAPES["over both edges"]
    qkv, bias, _, _ = arguments(shape, "float32", rng)

    def program():
        return jax.jit(lambda *a: attention_in_windows(*a, shape.heads, shape.window)).trace(qkv, bias).jaxpr

    assert "pallas_call" not in str(program())
    with use_attention(kernel):
        assert "name=map_forward" in str(program())


BLOCKS = ((192, 8, 2, False), (192, 8, 4, True), (96, 4, 4, False), (96, 4, 8, True), (48, 14, 8, False), (48, 14, 16, True), (24, 7, 16, False))
"""The side of the map, that of its windows, the heads and whether queries are pooled, in the blocks of SAM 2.1 base+ at 768 pixels."""


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_accelerator_takes_its_kernels_in_sam_2(block, dtype):
    side, window, heads, pooled = block
    large = side == 48 and pooled and dtype == "float32"  # with 64 MiB of VMEM, as is assumed here, such a window does not fit
    for platform, name in {"tpu": None if large else "pallas_tpu", "gpu": "pallas_gpu", "cpu": None}.items():
        assert maps._choose(None, platform, (side, side), window, Heads(heads, 1, 56, 56, 56**-0.5), pooled, jnp.dtype(dtype)) == name


def test_a_map_too_wide_for_a_chip_is_computed_as_rows(rng):
    """No part of it fits, since its width is no multiple of the windows'."""
    heads = Heads(16, 1, 64, 64, 1.0)
    reason = maps.KERNELS["pallas_tpu"].why_not((28, 1001), 14, heads, False, jnp.dtype(jnp.float32))
    assert reason and "bytes of VMEM" in reason
    assert maps._choose(None, "tpu", (28, 1001), 14, heads, False, jnp.dtype(jnp.float32)) is None
