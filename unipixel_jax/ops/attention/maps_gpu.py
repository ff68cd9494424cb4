"""Attention within the windows of a map on NVIDIA GPUs, from the fused projection to the map of results; see maps.py. The kernels lower to Triton.

A program has one head of one window. It loads the keys and values of the window from their places in the map and holds them, while blocks of queries pass by.
The gradient needs one kernel, without atomics.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from unipixel_jax.ops.attention.flash import LOG2E
from unipixel_jax.ops.attention.pallas_gpu import widened
from unipixel_jax.ops.attention.pallas_gpu_kernels import dot
from unipixel_jax.ops.attention.windows import LONGEST, WIDEST, Heads
from unipixel_jax.ops.attention.xla import HIDDEN

FORWARD_BLOCK, BACKWARD_BLOCK = 64, 32
"""Queries of a step in bfloat16, half of that in float32. Backward, the sums for keys and values take registers too."""


def why_not(size: tuple[int, int], window: int, heads: Heads, pooled: bool, dtype: Any) -> str | None:
    """Why the kernels cannot do such a map, or None."""
    if window * window > LONGEST or heads.size > WIDEST:
        return f"windows have at most {LONGEST} pixels and heads at most {WIDEST} features, got {window} x {window} and {heads.size}"
    return None


def launch(heads: Heads, window: int, qkv: jax.Array, bias: jax.Array, pooled: jax.Array | None, *d_out: jax.Array) -> tuple[jax.Array | None, ...]:
    """One of the two kernels, see ``maps.MapKernels``."""
    images, h, w, width = qkv.shape
    small = window if pooled is None else window // 2
    high, wide = pl.cdiv(h, window), pl.cdiv(w, window)
    out = jax.ShapeDtypeStruct((images, h, w, width // 3) if pooled is None else pooled.shape, qkv.dtype)
    inputs = qkv, bias, pooled, *d_out
    outputs = (qkv, jax.ShapeDtypeStruct((images, high * wide, width), jnp.float32), pooled) if d_out else (out,)
    block = min((BACKWARD_BLOCK if d_out else FORWARD_BLOCK) * 2 // qkv.dtype.itemsize, widened(small * small))
    scores = images * high * wide * heads.number * window**2 * small**2
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*inputs, *outputs) if a is not None)
    varying = jax.typeof(qkv).manual_axis_type

    def spec(a: Any) -> pl.BlockSpec | None:
        if a is None:
            return None
        return pl.BlockSpec(a.shape, lambda *_: (0,)) if a.ndim == 1 else pl.BlockSpec((None, *a.shape[1:]), lambda m, *_: (m, *(0,) * (a.ndim - 1)))

    def call(interpret: bool) -> Any:
        return pl.pallas_call(
            partial(_map_backward if d_out else _map_forward, heads, window, small, block, wide),
            grid=(images, high * wide, heads.number),
            in_specs=tuple(spec(a) for a in inputs),
            out_specs=tuple(spec(a) for a in outputs),
            out_shape=tuple(a if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype, manual_axis_type=varying) for a in outputs),
            compiler_params=plgpu.CompilerParams(num_warps=8 if window * window > 64 else 4, num_stages=1),
            cost_estimate=pl.CostEstimate(flops=2 * scores * heads.size * (5 if d_out else 2), transcendentals=scores, bytes_accessed=moved),
            interpret=interpret,
            name="map_backward" if d_out else "map_forward",
        )

    found: tuple[jax.Array | None, ...] = lax.platform_dependent(*inputs, cuda=call(False), cpu=call(True))
    return found


class Pixels(NamedTuple):
    """Some pixels of a window, in rows, with the features of one head.

    head: of the program.
    line, place: where they are in the map, [n, 1].
    exists, inside: whether the window has such a pixel, and whether it lies in the map, [n].
    """

    head: Any
    line: jax.Array
    place: jax.Array
    exists: jax.Array
    inside: jax.Array

    @staticmethod
    def of(window: Any, head: Any, first: Any, count: int, side: int, wide: int, size: tuple[int, int]) -> Pixels:
        """``count`` pixels from ``first`` on of a window; there are ``wide`` windows of ``side`` in a row of a map of that size."""
        pixel = first + jnp.arange(count)
        line = lax.div(window, wide) * side + lax.div(pixel, side)
        place = lax.rem(window, wide) * side + lax.rem(pixel, side)
        exists = pixel < side * side
        return Pixels(head, line[:, None], place[:, None], exists, exists & (line < size[0]) & (place < size[1]))

    def load(self, ref: Any, heads: Heads, part: int, bias: Any = None) -> jax.Array:
        """Queries, keys or values of the program's head [n, widened H]: part 0, 1 or 2 of the features; outside of the map the bias, or else zero."""
        features, there = _features(heads, part, self.head)
        found = plgpu.load(ref.at[self.line, self.place, features[None]], mask=self.inside[:, None] & there[None], other=0)
        if bias is None:
            return found
        beside = (self.exists & ~self.inside)[:, None] & there[None]
        return jnp.where(beside, plgpu.load(bias.at[features], mask=there, other=0)[None], found)

    def store(self, ref: Any, heads: Heads, part: int, value: jax.Array) -> None:
        """The inverse of ``load``; what lies outside of the map is dropped."""
        features, there = _features(heads, part, self.head)
        plgpu.store(ref.at[self.line, self.place, features[None]], value.astype(ref.dtype), mask=self.inside[:, None] & there[None])


def _features(heads: Heads, part: int, head: Any) -> tuple[jax.Array, jax.Array]:
    """The places of a head among the features of queries, keys and values, and which of them it has."""
    feature = jnp.arange(widened(heads.size))
    return (part * heads.number + head) * heads.size + feature, feature < heads.size


def _map_forward(heads: Heads, window: int, small: int, block: int, wide: int, qkv: Any, bias: Any, pooled: Any, out: Any) -> None:
    at, head = pl.program_id(1), pl.program_id(2)
    keys = Pixels.of(at, head, 0, widened(window * window), window, wide, qkv.shape[:2])
    k, v = keys.load(qkv, heads, 1, bias), keys.load(qkv, heads, 2, bias)

    def visit(step: Any, _: None) -> None:
        pixels = Pixels.of(at, head, step * block, block, small, wide, out.shape[:2])
        q = pixels.load(qkv if pooled is None else pooled, heads, 0)
        scores = jnp.where(keys.exists[None], dot(q, k.T) * (heads.scale * LOG2E), HIDDEN)
        weights = jnp.exp2(scores - jnp.max(scores, axis=1)[:, None])
        pixels.store(out, heads, 0, dot(weights.astype(v.dtype), v) / jnp.sum(weights, axis=1)[:, None])

    lax.fori_loop(0, pl.cdiv(small * small, block), visit, None)


def _map_backward(
    heads: Heads, window: int, small: int, block: int, wide: int, qkv: Any, bias: Any, pooled: Any, d_out: Any, d_qkv: Any, d_bias: Any, d_pooled: Any
) -> None:
    at, head = pl.program_id(1), pl.program_id(2)
    keys = Pixels.of(at, head, 0, widened(window * window), window, wide, qkv.shape[:2])

    def load() -> tuple[jax.Array, jax.Array]:
        return keys.load(qkv, heads, 1, bias), keys.load(qkv, heads, 2, bias)

    held = load() if qkv.dtype.itemsize == 2 else None  # of float32 they do not fit into an A100's shared memory for the length of the loop

    def visit(step: Any, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        k, v = held or load()
        pixels = Pixels.of(at, head, step * block, block, small, wide, d_out.shape[:2])
        q, given = pixels.load(qkv if pooled is None else pooled, heads, 0), pixels.load(d_out, heads, 0)
        scores = jnp.where(keys.exists[:, None], dot(k, q.T) * (heads.scale * LOG2E), HIDDEN)
        weights = jnp.exp2(scores - jnp.max(scores, axis=0)[None])
        weights = weights / jnp.sum(weights, axis=0)[None]
        d_weights = dot(v, given.T)
        d_scores = (weights * (d_weights - jnp.sum(weights * d_weights, axis=0)[None])).astype(q.dtype)
        pixels.store(d_qkv if pooled is None else d_pooled, heads, 0, dot(d_scores.T, k) * heads.scale)
        return sums[0] + dot(d_scores, q), sums[1] + dot(weights.astype(v.dtype), given)

    start = (jnp.zeros((keys.exists.size, widened(heads.size)), jnp.float32),) * 2
    d_k, d_v = lax.fori_loop(0, pl.cdiv(small * small, block), visit, start)
    d_k = d_k * heads.scale
    if pooled is not None:
        keys.store(d_qkv, heads, 0, jnp.zeros(d_k.shape, qkv.dtype))
    for part, value in enumerate((None, d_k, d_v)):
        features, there = _features(heads, part, head)
        if value is None:
            total = jnp.zeros(features.shape, jnp.float32)
        else:
            keys.store(d_qkv, heads, part, value)
            total = jnp.sum(jnp.where(keys.inside[:, None], 0.0, value), axis=0)
        plgpu.store(d_bias.at[at, features], total, mask=there)
