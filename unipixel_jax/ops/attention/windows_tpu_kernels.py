"""Attention within one window, all heads, as a step of a TPU kernel computes it: values in, values out. Letters as in windows.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unipixel_jax.ops.attention.flash import LOG2E
from unipixel_jax.ops.attention.pallas_tpu_kernels import NN, NT, dot
from unipixel_jax.ops.attention.windows import Heads
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN

CHAINS = 8
"""Heads, of one or several windows, whose work the compiler may interleave, since the products and exponentials of one head wait for each other."""


def forward(heads: Heads, seen: jax.Array | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Queries [T, N H], keys [S, K H] and values [S, K V] to [T, N V] in their dtype; ``seen`` [T, S] says which keys a query sees, None for all."""
    results = []
    for head in range(heads.number):
        weights, total = _exponentials(heads, seen, q[:, heads.queries(head)], k[:, heads.keys(head)], axis=1)
        out = dot(weights.astype(v.dtype), v[:, heads.values(head)], NN)
        results.append((out / total).astype(v.dtype))
    return jnp.concatenate(results, axis=1)


def backward(
    heads: Heads, seen: jax.Array | None, q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values, in their dtype, from the result's [T, N V]; ``seen`` is [S, T]."""
    d_q, d_k, d_v = [], [], []
    for key_head in range(heads.number // heads.group):
        first = key_head * heads.group
        keys, values = k[:, heads.keys(first)], v[:, heads.values(first)]
        sums = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
        for head in range(first, first + heads.group):
            queries, given = q[:, heads.queries(head)], d_out[:, heads.results(head)]
            weights, total = _exponentials(heads, seen, keys, queries, axis=0)
            weights = weights / total
            d_weights = dot(values, given, NT)
            d_scores = (weights * (d_weights - jnp.sum(weights * d_weights, axis=0, keepdims=True))).astype(q.dtype)
            sums = sums[0] + dot(d_scores, queries, NN), sums[1] + dot(weights.astype(v.dtype), given, NN)
            d_q.append((dot(d_scores.T, keys, NN) * heads.scale).astype(q.dtype))
        d_k.append((sums[0] * heads.scale).astype(k.dtype))
        d_v.append(sums[1].astype(v.dtype))
    return jnp.concatenate(d_q, axis=1), jnp.concatenate(d_k, axis=1), jnp.concatenate(d_v, axis=1)


def _exponentials(heads: Heads, seen: jax.Array | None, rows: jax.Array, columns: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The exponentials of the scores less the largest of each query, and their sums, which are 1 where a query sees nothing. The keys lie along ``axis``."""
    scores = dot(rows, columns, NT) * (heads.scale * LOG2E)
    if seen is not None:
        scores = jnp.where(seen, scores, HIDDEN)
    best = jnp.max(scores, axis=axis, keepdims=True)
    best = best if seen is None else jnp.maximum(best, FLOOR)
    weights = jnp.exp2(scores - best)
    total = jnp.sum(weights, axis=axis, keepdims=True)
    return weights, total if seen is None else jnp.where(total == 0, 1.0, total)


def each(number: int, heads: Heads, attend: Callable[[Any], None]) -> None:
    """Run ``attend(window)`` for all windows, several in a pass of the loop where one has few heads."""
    together = math.gcd(number, max(1, CHAINS // heads.number))

    @pl.loop(0, number // together)
    def _(turn: Any) -> None:
        for window in range(together):
            attend(turn * together + window)
