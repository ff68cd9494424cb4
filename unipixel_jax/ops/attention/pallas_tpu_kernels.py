"""The bodies of pallas_tpu.py's kernels: what one step does with one block of queries and one of keys.

Scores are [keys, queries]; letters as in pallas_tpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unipixel_jax.ops.attention.dropout import thinned
from unipixel_jax.ops.attention.flash import LOG2E, Job
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN

LIVE, MASKED, FIRST, LAST = 1, 2, 4, 8
"""What a step does: compute; apply the mask; start its row of blocks; finish it."""


@dataclass(frozen=True)
class Step:
    """One step of a grid: what to do (flags), for which head of the group, with which blocks of queries and of keys; int32 scalars."""

    flags: jax.Array
    head: jax.Array
    i: jax.Array
    j: jax.Array


NN, NT = ((1,), (0,)), ((1,), (1,))
"""Matrix products a b and a b^T."""


def dot(a: jax.Array, b: jax.Array, over: tuple[tuple[int], tuple[int]]) -> jax.Array:
    """A product summed in float32, with full float32 products of float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (over, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _scores(job: Job, step: Step, masked: bool, q_segments: Any, kv_segments: Any, q: Any, k: Any) -> jax.Array:
    """Base-2 scores of a block, [tk, tq] float32; HIDDEN where a query must not see a key."""
    scores = dot(k[...], q[...], NT) * (job.scale * LOG2E)
    if not masked:
        return scores
    key = step.j * job.tk + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    rules = []
    if q_segments is not None:
        rules.append(q_segments[...] == kv_segments[...].T)
    elif job.sizes["s"] % job.tk:
        rules.append(key < job.sizes["s"])
    if job.causal:
        rules.append(key <= step.i * job.tq + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1))
    return jnp.where(reduce(jnp.logical_and, rules), scores, HIDDEN)


def _thinned(job: Job, step: Step, seed: Any, weights: jax.Array) -> jax.Array:
    """Weights [tk, tq] after dropout, if there is any."""
    if seed is None:
        return weights
    rows = step.head * job.sizes["t"] + step.i * job.tq + jax.lax.broadcasted_iota(jnp.int32, (1, job.tq), 1)
    columns = step.j * job.tk + jax.lax.broadcasted_iota(jnp.int32, (job.tk, 1), 0)
    return thinned(weights, job.rate, seed[...], rows, columns)


def _visit(job: Job, flags: jax.Array, segments: Any, visit: Callable[[bool], None]) -> None:
    """Runs `visit(masked)` if the block is live, in the form without the mask where all of it is visible."""
    pl.when(flags & (LIVE | MASKED) == LIVE)(lambda: visit(False))
    if job.causal or segments is not None or job.sizes["s"] % job.tk:
        pl.when(flags & (LIVE | MASKED) == LIVE | MASKED)(lambda: visit(True))


def attention_forward(job: Job, step: Step, *refs: Any) -> None:
    """The output and the logsumexp of a block of queries, its keys visited in turn."""
    q_segments, kv_segments, seed, q, k, v_turned, out, lse, best, total, acc = refs

    @pl.when(step.flags & FIRST != 0)
    def _() -> None:
        best[...] = jnp.full(best.shape, FLOOR, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        scores = _scores(job, step, masked, q_segments, kv_segments, q, k)
        new_best = jnp.maximum(best[...], jnp.max(scores, axis=0, keepdims=True))
        p = jnp.exp2(scores - new_best)
        keep = jnp.exp2(best[...] - new_best)
        best[...] = new_best
        total[...] = total[...] * keep + jnp.sum(p, axis=0, keepdims=True)
        acc[...] = acc[...] * keep + dot(v_turned[...], _thinned(job, step, seed, p).astype(v_turned.dtype), NN)

    _visit(job, step.flags, q_segments, visit)

    @pl.when(step.flags & LAST != 0)
    def _() -> None:
        divisor = jnp.where(total[...] == 0, 1.0, total[...])
        out[...] = (acc[...] / divisor).T.astype(out.dtype)
        lse[...] = jnp.where(total[...] == 0, FLOOR, best[...] / LOG2E + jnp.log(divisor))


def attention_dq(job: Job, step: Step, *refs: Any) -> None:
    """The gradient of a block of queries."""
    q_segments, kv_segments, seed, q, k, k_turned, v, d_out, lse, delta, d_q, acc = refs

    @pl.when(step.flags & FIRST != 0)
    def _() -> None:
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        p = jnp.exp2(_scores(job, step, masked, q_segments, kv_segments, q, k) - lse[...])
        d_scores = p * (_thinned(job, step, seed, dot(v[...], d_out[...], NT)) - delta[...])
        acc[...] += dot(k_turned[...], d_scores.astype(k_turned.dtype), NN)

    _visit(job, step.flags, q_segments, visit)

    @pl.when(step.flags & LAST != 0)
    def _() -> None:
        d_q[...] = (acc[...] * job.scale).T.astype(d_q.dtype)


def attention_dkv(job: Job, step: Step, *refs: Any) -> None:
    """The gradients of a block of keys and of its values, over the queries of all heads of the group."""
    q_segments, kv_segments, seed, q, k, v, d_out, lse, delta, d_k, d_v, acc_k, acc_v = refs

    @pl.when(step.flags & FIRST != 0)
    def _() -> None:
        acc_k[...] = jnp.zeros(acc_k.shape, jnp.float32)
        acc_v[...] = jnp.zeros(acc_v.shape, jnp.float32)

    def visit(masked: bool) -> None:
        p = jnp.exp2(_scores(job, step, masked, q_segments, kv_segments, q, k) - lse[...])
        acc_v[...] += dot(_thinned(job, step, seed, p).astype(d_out.dtype), d_out[...], NN)
        d_scores = p * (_thinned(job, step, seed, dot(v[...], d_out[...], NT)) - delta[...])
        acc_k[...] += dot(d_scores.astype(q.dtype), q[...], NN)

    _visit(job, step.flags, q_segments, visit)

    @pl.when(step.flags & LAST != 0)
    def _() -> None:
        d_k[...] = (acc_k[...] * job.scale).astype(d_k.dtype)
        d_v[...] = acc_v[...].astype(d_v.dtype)


def attention_dv(job: Job, step: Step, *refs: Any) -> None:
    """The gradient of a block of values, over the queries of all heads of the group."""
    q_segments, kv_segments, seed, q, k, d_out, lse, d_v, acc = refs

    @pl.when(step.flags & FIRST != 0)
    def _() -> None:
        acc[...] = jnp.zeros(acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        p = jnp.exp2(_scores(job, step, masked, q_segments, kv_segments, q, k) - lse[...])
        acc[...] += dot(_thinned(job, step, seed, p).astype(d_out.dtype), d_out[...], NN)

    _visit(job, step.flags, q_segments, visit)

    @pl.when(step.flags & LAST != 0)
    def _() -> None:
        d_v[...] = acc[...].astype(d_v.dtype)
