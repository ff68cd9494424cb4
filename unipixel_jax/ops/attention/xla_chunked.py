"""Attention by blocks with a running softmax: memory linear in the length, forward and backward, on any platform.

The forward pass is Milakov & Gimelshein's (2018), the backward pass FlashAttention's (arXiv 2205.14135, algorithm 4): scores are computed again
from the saved log-sum-exp. Pairs of blocks that the mask empties are skipped, so a memory bank that is still filling costs only what it holds.

Letters as in xla.py; I blocks of t queries, J blocks of s keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from unipixel_jax.core.platform import platform
from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN, scores, weighted

Q_BLOCK, KV_BLOCK = 768, 768
"""Block lengths; of eight pairs tried on SAM 2's memory attention the fastest, with few and with all memories there. 768 divides its grid of 2,304."""
ALIKE = 2304
"""The length of a block of queries that all see the same keys, on a CPU: longer products are faster, and no shorter block could be skipped."""
LANES = 16
"""Features of values are padded to a multiple of this on a CPU: with 768 x 768 weights the product takes 1.6 times as long with 56 features as with 64
(measured with AVX-512)."""

State = tuple[jax.Array, ...]
Drop = tuple[WeightDropout, jax.Array]


def why_not(spec: Spec) -> str | None:
    """Nothing is refused."""
    return None


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """Compute what ``xla.attend`` computes block by block: [B, K, G, T, V] in q's dtype, and the log-sum-exp [B, K, G, T] float32.

    A CPU takes the key heads one after the other: products of single matrices are about twice as fast there as those of batches, whose scores leave the cache
    besides, and each sample skips what it does not see.
    """
    (b, kh), width = q.shape[:2], v.shape[-1]
    if platform() != "cpu":
        return _attend_in_blocks(q, k, v, mask, scale, dropout, Q_BLOCK)
    q_block = ALIKE if mask.run or not (mask.causal or mask.segments) else Q_BLOCK
    v = jnp.pad(v, ((0, 0),) * 3 + ((0, -width % LANES),))
    if b * kh == 1:
        out, lse = _attend_in_blocks(q, k, v, mask, scale, dropout, q_block)
        return out[..., :width], lse

    def one(own: tuple[jax.Array, jax.Array, jax.Array, Any, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        q, k, v, segments, seeds = own
        drop = None if dropout is None or seeds is None else WeightDropout(seeds, dropout.rate)
        return _attend_in_blocks(q, k, v, mask.with_segments(segments), scale, drop, q_block)

    alone = lambda a: a.reshape(b * kh, 1, 1, *a.shape[2:])  # noqa: E731
    segments = None if mask.segments is None else tuple(jnp.repeat(a, kh, axis=0)[:, None] for a in mask.segments)
    out, lse = jax.lax.map(one, (alone(q), alone(k), alone(v), segments, None if dropout is None else alone(dropout.seeds)))
    return out.reshape(b, kh, *out.shape[3:])[..., :width], lse.reshape(b, kh, *lse.shape[3:])


def _attend_in_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None, q_block: int
) -> tuple[jax.Array, jax.Array]:
    """``attend`` for all heads at once, in blocks of at most ``q_block`` queries."""
    (b, kh, g, t, _), s = q.shape, k.shape[2]
    rows = jnp.arange(g * t).reshape(g, t)
    exact = bool(mask.run) and s % mask.run == 0 and not mask.causal
    tq, tk = block_length(t, q_block), _divisor(mask.run, KV_BLOCK) if exact else block_length(s, KV_BLOCK)
    pad_t, pad_s = -t % tq, -s % tk
    mask = mask.padded(b, t, s, pad_t, pad_s)
    q = jnp.pad(q, ((0, 0),) * 3 + ((0, pad_t), (0, 0)))
    k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, pad_s), (0, 0))) for a in (k, v))
    live = mask.live_blocks(tq, tk, t + pad_t, s + pad_s)
    q_blocks = q.reshape(b, kh, g, -1, tq, q.shape[-1]).transpose(3, 0, 1, 2, 4, 5)
    k_blocks, v_blocks = (a.reshape(b, kh, -1, tk, a.shape[-1]).transpose(2, 0, 1, 3, 4) for a in (k, v))
    drop = None if dropout is None else (dropout, jnp.pad(rows, ((0, 0), (0, pad_t))).reshape(g, -1, tq).swapaxes(0, 1))
    # Where all of a live block is visible to all, nothing is hidden. A batch shares its live blocks, and each row may see others.
    within = AttnMask() if exact and b == 1 else mask
    out, lse = _attend(q_blocks, k_blocks, v_blocks, within, None if live is None else jnp.any(live, axis=0), drop, scale)
    out = out.transpose(1, 2, 3, 0, 4, 5).reshape(b, kh, g, -1, v.shape[-1])
    return out[:, :, :, :t], lse.transpose(1, 2, 3, 0, 4).reshape(b, kh, g, -1)[..., :t]


def block_length(length: int, largest: int) -> int:
    """A block no longer than ``largest`` that pads ``length`` least, in steps of 8."""
    blocks = -(-length // largest)
    return -(-length // (8 * blocks)) * 8


def _divisor(length: int, largest: int) -> int:
    """The largest divisor of ``length`` that is at most ``largest``."""
    return next(d for d in range(min(length, largest), 0, -1) if length % d == 0)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, live: jax.Array | None, drop: Drop | None, scale: float) -> tuple[jax.Array, jax.Array]:
    """q [I, B, K, G, t, H], k [J, B, K, s, H], v [J, B, K, s, V], live [I, J], and the rows of the weights to drop [I, G, t] to [I, B, K, G, t, V] in q's
    dtype and [I, B, K, G, t] float32.
    """
    (n_q, b, kh, g, tq, _), (n_kv, width) = q.shape, (v.shape[0], v.shape[-1])

    def row(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, q_block = args

        def visit(j: jax.Array, state: State) -> State:
            best, total, out = state
            logits = _logits(q_block, k[j], mask, i, j, scale)
            new_best = jnp.maximum(best, jnp.max(logits, axis=-1, keepdims=True))
            p = jnp.exp((logits - new_best) * scale)
            keep = jnp.exp((best - new_best) * scale)
            return new_best, total * keep + jnp.sum(p, axis=-1, keepdims=True), out * keep + weighted(_thinned(p, drop, i, j), v[j])

        start = (
            jnp.full((b, kh, g, tq, 1), FLOOR, jnp.float32),
            jnp.zeros((b, kh, g, tq, 1), jnp.float32),
            jnp.zeros((b, kh, g, tq, width), jnp.float32),
        )
        best, total, out = jax.lax.fori_loop(0, n_kv, _where_live(visit, live, lambda j: (i, j)), start)
        lse = jnp.where(total == 0, FLOOR, best * scale + jnp.log(total))
        return (out / jnp.where(total == 0, 1.0, total)).astype(q.dtype), lse[..., 0]

    return jax.lax.map(row, (jnp.arange(n_q), q))


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, live: jax.Array | None, drop: Drop | None, scale: float) -> tuple[Any, Any]:
    out, lse = _attend(q, k, v, mask, live, drop, scale)
    return (out, lse), (q, k, v, mask, live, drop, out, lse)


def _backward(scale: float, saved: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    q, k, v, mask, live, drop, out, lse = saved
    d_out, d_lse = cotangents
    # the softmax's derivative is p * (d_p - sum(p * d_p)), and that sum is the product of the result with its cotangent
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - d_lse

    def column(d_q: jax.Array, args: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        j, k_block, v_block = args

        def visit(i: jax.Array, state: State) -> State:
            d_q, d_k, d_v = state
            p = jnp.exp(_logits(q[i], k_block, mask, i, j, scale) * scale - lse[i][..., None])
            d_scores = p * (_thinned(scores(d_out[i], v_block, 1.0), drop, i, j) - delta[i][..., None]) * scale
            d_q = d_q.at[i].add(weighted(d_scores, k_block))
            return d_q, d_k + _over_queries(d_scores, q[i]), d_v + _over_queries(_thinned(p, drop, i, j), d_out[i])

        start = (d_q, jnp.zeros(k_block.shape, jnp.float32), jnp.zeros(v_block.shape, jnp.float32))
        d_q, d_k, d_v = jax.lax.fori_loop(0, q.shape[0], _where_live(visit, live, lambda i: (i, j)), start)
        return d_q, (d_k.astype(k.dtype), d_v.astype(v.dtype))

    d_q, (d_k, d_v) = jax.lax.scan(column, jnp.zeros(q.shape, jnp.float32), (jnp.arange(k.shape[0]), k, v))
    return d_q.astype(q.dtype), d_k, d_v, None, None, None


_attend.defvjp(_forward, _backward)


def _logits(q: jax.Array, k: jax.Array, mask: AttnMask, i: jax.Array, j: jax.Array, scale: float) -> jax.Array:
    """Scores, before they are multiplied by the scale, of block i of the queries [B, K, G, t, H] and block j of the keys [B, K, s, H]; scaled, they are
    ``HIDDEN`` where the mask hides the key. Scaling them where their exponential is taken saves a CPU from writing them twice.
    """
    tq, tk = q.shape[3], k.shape[2]
    logits = scores(q, k, 1.0)
    visible = mask.visible(i * tq + jnp.arange(tq), j * tk + jnp.arange(tk))
    return logits if visible is None else jnp.where(visible, logits, HIDDEN / scale)


def _thinned(p: jax.Array, drop: Drop | None, i: jax.Array, j: jax.Array) -> jax.Array:
    """Numbers of block i of the queries and block j of the keys [B, K, G, t, s], zero where the weight is dropped, the others scaled up."""
    if drop is None:
        return p
    dropout, rows = drop
    return dropout.thin(p, rows[i], j * p.shape[-1] + jnp.arange(p.shape[-1]))


def _over_queries(p: jax.Array, x: jax.Array) -> jax.Array:
    """p [B, K, G, t, s] float32, x [B, K, G, t, H]: the sum over the queries of all heads of a key head, [B, K, s, H] float32."""
    return jax.lax.dot_general(p.astype(x.dtype), x, (((2, 3), (2, 3)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)


def _where_live(visit: Any, live: jax.Array | None, pair: Any) -> Any:
    """``visit(index, state)`` for live pairs of blocks, and nothing for the others."""
    if live is None:
        return visit
    return lambda index, state: jax.lax.cond(live[pair(index)], visit, lambda _, state: state, index, state)
