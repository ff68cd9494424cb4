"""Attention by blocks with a running softmax (Milakov & Gimelshein, 2018): memory linear in the length, on any platform.

Key blocks in which no key is visible to anyone are skipped, so a memory bank that is still filling costs only what it holds.
Letters as in xla.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.xla import HIDDEN, scores, weighted

Q_BLOCK, KV_BLOCK = 576, 2304
"""Block lengths; 576 x 2304 float32 scores fit a CPU's last-level cache and were the fastest of eight pairs tried on SAM 2's memory attention."""


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float) -> jax.Array:
    """q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, V] to [B, K, G, T, V] float32; rows with no visible key are zero."""
    (b, kh, g, t, _), s, width = q.shape, k.shape[2], v.shape[-1]
    tq, tk = _block(t, Q_BLOCK), _block(s, KV_BLOCK)
    mask = _pad_mask(mask, b, t, s, -t % tq, -s % tk)
    q = jnp.pad(q, ((0, 0),) * 3 + ((0, -t % tq), (0, 0)))
    k, v = (jnp.pad(a, ((0, 0), (0, 0), (0, -s % tk), (0, 0))) for a in (k, v))
    k_blocks, v_blocks = (a.reshape(b, kh, -1, tk, a.shape[-1]).transpose(2, 0, 1, 3, 4) for a in (k, v))
    n_kv = k_blocks.shape[0]

    def one_query_block(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        qi, q_block = args
        q_index = qi * tq + jnp.arange(tq)

        def visit(state: tuple[jax.Array, ...], ki: jax.Array, k_block: jax.Array, v_block: jax.Array) -> tuple[jax.Array, ...]:
            best, total, out = state
            logits = scores(q_block, k_block, scale)
            visible = mask.visible(q_index, ki * tk + jnp.arange(tk))
            if visible is not None:
                logits = jnp.where(visible, logits, HIDDEN)
            new_best = jnp.maximum(best, jnp.max(logits, axis=-1, keepdims=True))
            p = jnp.exp(logits - new_best)
            keep = jnp.exp(best - new_best)
            return new_best, total * keep + jnp.sum(p, axis=-1, keepdims=True), out * keep + weighted(p, v_block)

        @jax.checkpoint
        def step(state: tuple[jax.Array, ...], block: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], None]:
            ki, k_block, v_block = block
            alive = _alive(mask, q_index, ki, tk)
            if alive is None:
                return visit(state, ki, k_block, v_block), None
            return jax.lax.cond(alive, visit, lambda state, *_: state, state, ki, k_block, v_block), None

        start = (
            # far above HIDDEN, so that the exponential of a hidden score is zero even where nothing is visible, and needs no second mask
            jnp.full((b, kh, g, tq, 1), HIDDEN / 10, jnp.float32),
            jnp.zeros((b, kh, g, tq, 1), jnp.float32),
            jnp.zeros((b, kh, g, tq, width), jnp.float32),
        )
        (_, total, out), _ = jax.lax.scan(step, start, (jnp.arange(n_kv), k_blocks, v_blocks))
        return out / jnp.where(total == 0, 1.0, total)

    q_blocks = q.reshape(b, kh, g, -1, tq, q.shape[-1]).transpose(3, 0, 1, 2, 4, 5)
    out = jax.lax.map(one_query_block, (jnp.arange(q_blocks.shape[0]), q_blocks))
    return out.transpose(1, 2, 3, 0, 4, 5).reshape(b, kh, g, -1, width)[:, :, :, :t]


def _block(length: int, largest: int) -> int:
    """A block no longer than ``largest`` that pads ``length`` least, in steps of 8."""
    blocks = -(-length // largest)
    return -(-length // (8 * blocks)) * 8


def _pad_mask(mask: AttnMask, b: int, t: int, s: int, pad_t: int, pad_s: int) -> AttnMask:
    q, kv = mask.q_segments, mask.kv_segments
    if q is None or kv is None:
        if not pad_s:
            return mask
        q, kv = jnp.ones((b, t), jnp.int32), jnp.ones((b, s), jnp.int32)
    return AttnMask(mask.causal, jnp.pad(q, ((0, 0), (0, pad_t))), jnp.pad(kv, ((0, 0), (0, pad_s))))


def _alive(mask: AttnMask, q_index: jax.Array, ki: jax.Array, tk: int) -> jax.Array | None:
    """Whether any query of the block may see any key of the block: a scalar boolean, or None if that is always so."""
    rules = []
    if mask.causal:
        rules.append(q_index[-1] >= ki * tk)
    if mask.kv_segments is not None:
        rules.append(jnp.any(jax.lax.dynamic_slice_in_dim(mask.kv_segments, ki * tk, tk, 1) != 0))
    if not rules:
        return None
    return rules[0] if len(rules) == 1 else rules[0] & rules[1]
