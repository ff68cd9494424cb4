"""Attention whose weights are dropped at random, as SAM 2's memory attention is trained. No kernel does that, so it is written out here, a block of
queries at a time; the scores of a block are computed again in the backward pass, so that the whole matrix never exists.

B batch, T query length, S key length, N query heads, K key heads, H head size, V value size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.attention.choice import check
from unipixel_jax.ops.attention.mask import AttnMask
from unipixel_jax.ops.attention.xla import FLOOR, HIDDEN, scores, weighted
from unipixel_jax.ops.dropout import dropout

Q_BLOCK = 256
"""Queries at a time: with the 16,192 memory tokens of five objects at 768 pixels, 83 MB of scores."""


def attention_with_dropout(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttnMask, key: jax.Array, rate: float, block: int = Q_BLOCK) -> jax.Array:
    """``dropout(softmax(q k^T / sqrt(H))) v`` over the visible keys, as torch's ``scaled_dot_product_attention`` with ``dropout_p``.

    Args:
        q: [B, T, N, H], float32 or bfloat16.
        k: [B, S, K, H], q's dtype.
        v: [B, S, K, V], q's dtype.
        mask: who sees whom.
        key: a scalar key.
        rate: probability with which a weight becomes zero.
        block: queries at a time.

    Returns:
        [B, T, N, V] in q's dtype; zero in rows with no visible key.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    check(q, k, v, mask)
    (b, t, n, h), (s, kh) = q.shape, k.shape[1:3]
    mask, block = mask.without_lengths(t, s), min(block, t)
    blocks = -(-t // block)
    grouped = jnp.pad(q, ((0, 0), (0, blocks * block - t), (0, 0), (0, 0))).reshape(b, blocks, block, kh, n // kh, h)
    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)

    @jax.checkpoint
    def rows(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, q = one
        logits = scores(q, keys, h**-0.5)
        visible = mask.visible(jnp.minimum(number * block + jnp.arange(block), t - 1), jnp.arange(s))
        if visible is not None:
            logits = jnp.where(visible, logits, HIDDEN)
        p = jnp.exp(logits - jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), FLOOR)))
        total = jnp.sum(p, axis=-1, keepdims=True)
        p = dropout(p / jnp.where(total == 0, 1.0, total), jax.random.fold_in(key, number), rate)
        return weighted(p, values).astype(q.dtype)

    out = jax.lax.map(rows, (jnp.arange(blocks), grouped.transpose(1, 0, 3, 4, 2, 5)))
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(b, blocks * block, n, v.shape[-1])[:, :t]
