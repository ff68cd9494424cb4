"""The bodies of pallas_gpu.py's kernels: what one program does. Letters as there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from unipixel_jax.ops.attention.dropout import thinned
from unipixel_jax.ops.attention.flash import LOG2E, Job
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN


class Segments(NamedTuple):
    """Segment ids, padded to whole blocks, and for each block of one side the blocks of the other that are worth a visit; arrays, specs or refs.

    queries, keys: [B, T] and [B, S].
    order: [B, blocks, blocks of the other side], those worth a visit first.
    count: [B, blocks], how many they are.
    """

    queries: Any
    keys: Any
    order: Any
    count: Any


def attention_forward(q_ref: Any, k_ref: Any, v_ref: Any, segments: Segments | None, seed: Any, out_ref: Any, lse_ref: Any, *, job: Job) -> None:
    """A program has one block of queries of one head."""
    g, i = pl.program_id(2), pl.program_id(3)
    rows, here, inside = _block(i, job.tq, job.sizes["t"])
    q = _load(q_ref.at[g, here], inside, job.sizes["h"])

    def visit(masked: bool, step: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        best, total, out = state
        cols, there, exists = _block(segments.order[i, step] if segments else step, job.tk, job.sizes["s"])
        scores = dot(q, _load(k_ref.at[there], exists, job.sizes["h"]).T) * (job.scale * LOG2E)
        if masked:
            scores = _hide(scores, job, segments, rows[:, None], here, cols[None], there)
        new_best = jnp.maximum(best, jnp.max(scores, axis=1))
        keep = jnp.exp2(best - new_best)
        weights = jnp.exp2(scores - new_best[:, None])
        v = _load(v_ref.at[there], exists, job.sizes["v"])
        new_total = total * keep + jnp.sum(weights, axis=1)
        weights = _thinned(weights, job, seed, g, rows[:, None], cols[None])
        return new_best, new_total, out * keep[:, None] + dot(weights.astype(v.dtype), v)

    size = job.tq
    start = jnp.full((size,), FLOOR, jnp.float32), jnp.zeros((size,), jnp.float32), jnp.zeros((size, out_ref.shape[-1]), jnp.float32)
    best, total, out = _walk(_key_runs(job, i, segments), visit, start)
    blind = total == 0
    total = jnp.where(blind, 1.0, total)
    _store(out_ref.at[g, here], out / total[:, None], inside, job.sizes["v"])
    _store(lse_ref.at[g, here], jnp.where(blind, FLOOR, (best + jnp.log2(total)) / LOG2E), inside)


def attention_dq(
    q_ref: Any, k_ref: Any, v_ref: Any, segments: Segments | None, seed: Any, d_out_ref: Any, lse_ref: Any, delta_ref: Any, d_q_ref: Any, *, job: Job
) -> None:
    """A program has one block of queries of one head."""
    g, i = pl.program_id(2), pl.program_id(3)
    rows, here, inside = _block(i, job.tq, job.sizes["t"])
    q, d_out = _load(q_ref.at[g, here], inside, job.sizes["h"]), _load(d_out_ref.at[g, here], inside, job.sizes["v"])
    lse, delta = _load(lse_ref.at[g, here], inside) * LOG2E, _load(delta_ref.at[g, here], inside)

    def visit(masked: bool, step: Any, d_q: jax.Array) -> jax.Array:
        cols, there, exists = _block(segments.order[i, step] if segments else step, job.tk, job.sizes["s"])
        k, v = _load(k_ref.at[there], exists, job.sizes["h"]), _load(v_ref.at[there], exists, job.sizes["v"])
        scores = dot(q, k.T) * (job.scale * LOG2E)
        if masked:
            scores = _hide(scores, job, segments, rows[:, None], here, cols[None], there)
        d_weights = _thinned(dot(d_out, v.T), job, seed, g, rows[:, None], cols[None])
        d_scores = jnp.exp2(scores - lse[:, None]) * (d_weights - delta[:, None])
        return d_q + dot(d_scores.astype(k.dtype), k)

    d_q = _walk(_key_runs(job, i, segments), visit, jnp.zeros(q.shape, jnp.float32))
    _store(d_q_ref.at[g, here], d_q * job.scale, inside, job.sizes["h"])


def attention_dkv(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    segments: Segments | None,
    seed: Any,
    d_out_ref: Any,
    lse_ref: Any,
    delta_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
    *,
    job: Job,
) -> None:
    """A program has one block of keys, for all the query heads that share them. Scores lie as [keys, queries], so no weights need transposing."""
    j = pl.program_id(2)
    cols, here, exists = _block(j, job.tk, job.sizes["s"])
    k, v = _load(k_ref.at[here], exists, job.sizes["h"]), _load(v_ref.at[here], exists, job.sizes["v"])

    def visit(g: Any, masked: bool, step: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        d_k, d_v = state
        rows, there, inside = _block(segments.order[j, step] if segments else step, job.tq, job.sizes["t"])
        q, d_out = _load(q_ref.at[g, there], inside, job.sizes["h"]), _load(d_out_ref.at[g, there], inside, job.sizes["v"])
        lse, delta = _load(lse_ref.at[g, there], inside) * LOG2E, _load(delta_ref.at[g, there], inside)
        scores = dot(k, q.T) * (job.scale * LOG2E)
        if masked:
            scores = _hide(scores, job, segments, rows[None], there, cols[:, None], here)
        weights = jnp.exp2(scores - lse[None])
        d_scores = weights * (_thinned(dot(v, d_out.T), job, seed, g, rows[None], cols[:, None]) - delta[None])
        weights = _thinned(weights, job, seed, g, rows[None], cols[:, None])
        return d_k + dot(d_scores.astype(q.dtype), q), d_v + dot(weights.astype(v.dtype), d_out)

    runs = _query_runs(job, j, segments)
    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    d_k, d_v = lax.fori_loop(0, q_ref.shape[0], lambda g, state: _walk(runs, partial(visit, g), state), start)
    _store(d_k_ref.at[here], d_k * job.scale, exists, job.sizes["h"])
    _store(d_v_ref.at[here], d_v, exists, job.sizes["v"])


def attention_dv(
    q_ref: Any, k_ref: Any, v_ref: Any, segments: Segments | None, seed: Any, d_out_ref: Any, lse_ref: Any, delta_ref: Any, d_v_ref: Any, *, job: Job
) -> None:
    """A program has one block of keys, as in ``attention_dkv``; the values and delta are not read."""
    j = pl.program_id(2)
    cols, here, exists = _block(j, job.tk, job.sizes["s"])
    k = _load(k_ref.at[here], exists, job.sizes["h"])

    def visit(g: Any, masked: bool, step: Any, d_v: jax.Array) -> jax.Array:
        rows, there, inside = _block(segments.order[j, step] if segments else step, job.tq, job.sizes["t"])
        q, d_out = _load(q_ref.at[g, there], inside, job.sizes["h"]), _load(d_out_ref.at[g, there], inside, job.sizes["v"])
        scores = dot(k, q.T) * (job.scale * LOG2E)
        if masked:
            scores = _hide(scores, job, segments, rows[None], there, cols[:, None], here)
        weights = jnp.exp2(scores - _load(lse_ref.at[g, there], inside)[None] * LOG2E)
        return d_v + dot(_thinned(weights, job, seed, g, rows[None], cols[:, None]).astype(q.dtype), d_out)

    runs = _query_runs(job, j, segments)
    start = jnp.zeros((job.tk, d_v_ref.shape[-1]), jnp.float32)
    d_v = lax.fori_loop(0, q_ref.shape[0], lambda g, state: _walk(runs, partial(visit, g), state), start)
    _store(d_v_ref.at[here], d_v, exists, job.sizes["v"])


def _block(index: Any, size: int, length: int) -> tuple[jax.Array, Any, jax.Array]:
    """The positions in a block, the slice that holds them, and whether each lies within the array."""
    at = index * size + jnp.arange(size)
    return at, pl.ds(index * size, size), at < length


def _load(ref: Any, inside: jax.Array, width: int | None = None) -> jax.Array:
    """[rows] or [rows, widened width], zero outside of the array."""
    return plgpu.load(ref, mask=_mask(ref, inside, width), other=0)


def _store(ref: Any, value: jax.Array, inside: jax.Array, width: int | None = None) -> None:
    plgpu.store(ref, value.astype(ref.dtype), mask=_mask(ref, inside, width))


def _mask(ref: Any, inside: jax.Array, width: int | None) -> jax.Array:
    return inside if width is None else inside[:, None] & (jnp.arange(ref.shape[-1]) < width)[None]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product summed in float32. HIGHEST keeps float32 from being cut to TF32 and changes nothing for bfloat16."""
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _hide(scores: jax.Array, job: Job, segments: Segments | None, rows: jax.Array, row_slice: Any, cols: jax.Array, col_slice: Any) -> jax.Array:
    """Scores of pairs that do not see each other become HIDDEN. One of rows and cols is [n, 1], the other [1, n]; so are their segments."""
    seen = cols < job.sizes["s"]
    if job.causal:
        seen &= rows >= cols
    if segments:
        q_ids, kv_ids = segments.queries[row_slice].reshape(rows.shape), segments.keys[col_slice].reshape(cols.shape)
        seen &= (q_ids == kv_ids) & (kv_ids != 0)
    return jnp.where(seen, scores, HIDDEN)


def _thinned(weights: jax.Array, job: Job, seed: Any, g: Any, rows: jax.Array, cols: jax.Array) -> jax.Array:
    """Weights after dropout, if there is any; ``rows`` and ``cols`` as in ``_hide``."""
    return weights if seed is None else thinned(weights, job.rate, seed[...][:, None], g * job.sizes["t"] + rows, cols)


def _key_runs(job: Job, i: Any, segments: Segments | None) -> tuple[tuple[Any, Any, bool], ...]:
    """Steps through the keys for a block of queries: (first, end, whether a mask is needed). A step is a block, or a place in ``segments.order``."""
    if segments:
        return ((0, segments.count[i], True),)
    size, whole = job.tk, job.sizes["s"] // job.tk
    if not job.causal:
        return ((0, whole, False), (whole, job.key_blocks, True))
    row = i * job.tq
    clear = jnp.minimum(lax.div(row + 1, size), whole)
    return ((0, clear, False), (clear, jnp.minimum(lax.div(row + job.tq + size - 1, size), job.key_blocks), True))


def _query_runs(job: Job, j: Any, segments: Segments | None) -> tuple[tuple[Any, Any, bool], ...]:
    """Steps through the queries for a block of keys. Keys outside of the array need no mask: what they get is not stored."""
    if segments:
        return ((0, segments.count[j], True),)
    if not job.causal:
        return ((0, job.query_blocks, False),)
    size, col = job.tq, j * job.tk
    first = jnp.minimum(lax.div(col, size), job.query_blocks)
    clear = jnp.minimum(lax.div(col + job.tk + size - 2, size), job.query_blocks)
    return ((first, clear, True), (clear, job.query_blocks, False))


def _walk(runs: tuple[tuple[Any, Any, bool], ...], visit: Callable[..., Any], state: Any) -> Any:
    for first, end, masked in runs:
        state = lax.fori_loop(first, end, partial(visit, masked), state)
    return state
