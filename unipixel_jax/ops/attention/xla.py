"""Attention with the whole score matrix in memory: the truth that the others are measured against.

B batch, T query length, S key length, N query heads, K key heads, G = N / K queries per key head, H head size, V value size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.attention.dropout import WeightDropout
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.spec import Spec

HIDDEN = -1e30
"""The score of a key that is not visible: finite, so that a row with no visible key stays finite."""
FLOOR = HIDDEN / 10
"""The least that a row's largest score is taken to be. So far above ``HIDDEN`` that the exponential of a hidden score is zero even where nothing is
visible, and needs no second mask; it is the log-sum-exp of such a row."""


def why_not(spec: Spec) -> str | None:
    """Nothing is refused."""
    return None


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


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, scale: float, dropout: WeightDropout | None = None) -> tuple[jax.Array, jax.Array]:
    """Attention and the log of each row's sum of exponentials, by which parts over different keys can be joined.

    Args:
        q: [B, K, G, T, H].
        k: [B, K, S, H].
        v: [B, K, S, V].
        mask: who sees whom.
        scale: of the scores.
        dropout: of the weights; the log-sum-exp knows nothing of it.

    Returns:
        [B, K, G, T, V] in q's dtype, zero in rows with no visible key; [B, K, G, T] float32, ``FLOOR`` there.
    """
    if dropout is None and not (mask.causal or mask.segments):
        return _attend_to_all(q, k, v, scale)
    best, p, total = _exponentials(q, k, mask, scale)
    g, t, s = p.shape[2:]
    if dropout is not None:
        p = dropout.thin(p, jnp.arange(g * t).reshape(g, t), jnp.arange(s))
    return (weighted(p, v) / total).astype(q.dtype), (best + jnp.log(total))[..., 0]


def _attend_to_all(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """``attend`` where all see all. XLA's CPU backend makes one loop over tiles of these operations, and not of more or of others: Hiera's windows of 14 x 14
    take 15 ms instead of 41 (measured on two cores with AVX-512).
    """
    rows = q.reshape(*q.shape[:2], -1, q.shape[-1])
    logits = jax.lax.dot_general(rows, k, (((3,), (3,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32) * scale
    best = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    p = jnp.exp(logits - best)
    total = jnp.sum(p, axis=-1, keepdims=True)
    out = jax.lax.dot_general(p.astype(v.dtype), v, (((3,), (2,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32) / total
    return out.astype(q.dtype).reshape(*q.shape[:-1], v.shape[-1]), (best + jnp.log(total)).reshape(q.shape[:-1])


def log_sum_exp(q: jax.Array, k: jax.Array, mask: AttnMask, scale: float) -> jax.Array:
    """The log of each row's sum of exponentials alone, as ``attend`` gives it."""
    best, _, total = _exponentials(q, k, mask, scale)
    return (best + jnp.log(total))[..., 0]


def _exponentials(q: jax.Array, k: jax.Array, mask: AttnMask, scale: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest score of each row, the exponentials of the scores less it, and their sum, which is 1 in rows with no visible key."""
    logits = scores(q, k, scale)
    visible = mask.visible(jnp.arange(logits.shape[3]), jnp.arange(logits.shape[4]))
    if visible is not None:
        logits = jnp.where(visible, logits, HIDDEN)
    best = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), FLOOR))
    p = jnp.exp(logits - best)
    total = jnp.sum(p, axis=-1, keepdims=True)
    return best, p, jnp.where(total == 0, 1.0, total)
