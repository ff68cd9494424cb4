"""Attention from one new token of each row to a cache, for NVIDIA GPUs: a Pallas kernel that lowers to Triton and reads only the slots that the token sees.

XLA has the host decide after each step of a loop whose length the data give whether another one follows, so the loop of cached.py would wait for the host
hundreds of times for a token. Here the slots are split among programs (Flash-Decoding, pytorch.org/blog/flash-decoding), and loads of hidden slots are masked,
which moves nothing. What the programs give is joined by their sums. On a CPU the same kernel runs in Pallas's interpreter.

L layers, B batch, K key heads, G queries per key head, S slots, H head size, J programs of a head, R queries and W head size as a product computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from unipixel_jax.ops.attention.pallas_gpu import widened
from unipixel_jax.ops.attention.pallas_gpu_kernels import dot
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN

SPLIT, CHUNK = 256, 64
"""Slots of a program, and of one of its steps, whose keys and values fit into registers."""


def attend_to_seen(q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array | int, segments: jax.Array, held: jax.Array) -> jax.Array:
    """Attend from one new token of each row to the slots of its segment.

    Args:
        q: [B, K, G, H], float32 or bfloat16.
        k: [L, B, K, S, H], q's dtype.
        v: [L, B, K, S, H], q's dtype.
        layer: int32 scalar, which layer's slots are read.
        segments: [B] int32, 0 for rows without a new token, which get zeros.
        held: [B, S] int32, the segments of the tokens in the slots, 0 where there is none.

    Returns:
        [B, K, G, H] in q's dtype.
    """
    (b, kh, g, h), (layers, slots) = q.shape, (k.shape[0], k.shape[3])
    rows, width, programs = widened(g), widened(h), pl.cdiv(slots, SPLIT)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, rows - g), (0, width - h)))
    cache = pl.BlockSpec((layers, None, None, programs * SPLIT, width), lambda b, k, j: (0, b, k, 0, 0))
    parts = [(rows, width), (rows,), (rows,)]
    # XLA's text of a program for GPUs holds the metadata and no estimate
    split = {"flops": 4 * b * kh * rows * SPLIT * width, "bytes_accessed": 2 * b * kh * SPLIT * h * k.dtype.itemsize}

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(
            partial(_attend, slots=slots, size=h),
            grid=(b, kh, programs),
            in_specs=(
                pl.BlockSpec((1,), lambda b, k, j: (0,)),
                pl.BlockSpec((None, None, rows, width), lambda b, k, j: (b, k, 0, 0)),
                pl.BlockSpec((1,), lambda b, k, j: (b,)),
                pl.BlockSpec((None, programs * SPLIT), lambda b, k, j: (b, 0)),
                cache,
                cache,
            ),
            out_specs=[_of_program(shape) for shape in parts],
            out_shape=[jax.ShapeDtypeStruct((b, kh, programs, *shape), jnp.float32) for shape in parts],
            compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
            cost_estimate=pl.CostEstimate(**{name: programs * value for name, value in split.items()}, transcendentals=b * kh * rows * slots),
            metadata={f"{name} of a split": str(value) for name, value in split.items()},
            interpret=interpret,
            name="attention_cached",
        )

    arguments = (jnp.full((1,), layer, jnp.int32), q, segments, held, k, v)
    out, best, total = lax.platform_dependent(*arguments, cuda=call(False), cpu=call(True))
    weight = jnp.exp(best - jnp.max(best, axis=2, keepdims=True))
    total = jnp.sum(total * weight, axis=2)
    joined = jnp.sum(out * weight[..., None], axis=2) / jnp.where(total == 0, 1.0, total)[..., None]
    return joined[:, :, :g, :h].astype(q.dtype)


def _attend(
    layer_ref: Any, q_ref: Any, segment_ref: Any, held_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, best_ref: Any, total_ref: Any, *, slots: int, size: int
) -> None:
    """A program has the queries of one key head and SPLIT slots."""
    first, layer, own = pl.program_id(2) * SPLIT, layer_ref[0], segment_ref[0]
    q = q_ref[...]
    inside = (jnp.arange(q.shape[-1]) < size)[None]

    def visit(step: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        best, total, out = state
        here = pl.ds(first + step * CHUNK, CHUNK)
        exists = first + step * CHUNK + jnp.arange(CHUNK) < slots
        ids = plgpu.load(held_ref.at[here], mask=exists, other=0)
        seen = (ids == own) & (ids != 0)
        k, v = (plgpu.load(ref.at[layer, here], mask=seen[:, None] & inside, other=0) for ref in (k_ref, v_ref))
        scores = jnp.where(seen[None], dot(q, k.T) * size**-0.5, HIDDEN)
        new_best = jnp.maximum(best, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - new_best[:, None])
        keep = jnp.exp(best - new_best)
        return new_best, total * keep + jnp.sum(weights, axis=1), out * keep[:, None] + dot(weights.astype(v.dtype), v)

    rows = q.shape[0]
    start = jnp.full((rows,), FLOOR, jnp.float32), jnp.zeros((rows,), jnp.float32), jnp.zeros(q.shape, jnp.float32)
    best_ref[...], total_ref[...], out_ref[...] = lax.fori_loop(0, SPLIT // CHUNK, visit, start)


def _of_program(shape: tuple[int, ...]) -> pl.BlockSpec:
    """Return the block of a result [B, K, J, *shape] that a program writes."""
    return pl.BlockSpec((None, None, None, *shape), lambda b, k, j: (b, k, j, *(0,) * len(shape)))
