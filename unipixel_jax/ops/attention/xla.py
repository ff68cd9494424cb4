"""Attention with the whole score matrix in memory: the truth that the others are measured against.

B batch, T query length, S key length, N query heads, K key heads, G = N / K queries per key head, H head size, V value size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.attention.mask import AttnMask

HIDDEN = -1e30
"""The score of a key that is not visible: finite, so that a row with no visible key stays finite."""


def scores(q: jax.Array, k: jax.Array, scale: float) -> jax.Array:
    """q [B, K, G, T, H], k [B, K, S, H] to [B, K, G, T, S] float32."""
    (b, kh, g, t, h), s = q.shape, k.shape[2]
    out = jax.lax.dot_general(q.reshape(b, kh, g * t, h), k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return out.reshape(b, kh, g, t, s) * scale


def weighted(p: jax.Array, v: jax.Array) -> jax.Array:
    """p [B, K, G, T, S] float32, v [B, K, S, V] to [B, K, G, T, V] float32."""
    b, kh, g, t, s = p.shape
    out = jax.lax.dot_general(p.reshape(b, kh, g * t, s).astype(v.dtype), v, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32)
    return out.reshape(b, kh, g, t, v.shape[-1])


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float) -> jax.Array:
    """q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, V] to [B, K, G, T, V] float32; rows with no visible key are zero."""
    logits = scores(q, k, scale)
    visible = mask.visible(jnp.arange(q.shape[3]), jnp.arange(k.shape[2]))
    if visible is not None:
        logits = jnp.where(visible, logits, HIDDEN)
    # the floor is far above HIDDEN, so that the exponential of a hidden score is zero even where nothing is visible, and needs no second mask
    best = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), HIDDEN / 10)
    p = jnp.exp(logits - jax.lax.stop_gradient(best))
    total = jnp.sum(p, axis=-1, keepdims=True)
    return weighted(p, v) / jnp.where(total == 0, 1.0, total)
