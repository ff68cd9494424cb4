"""Next-token cross-entropy in chunks, so that scores of all tokens over the whole vocabulary never exist at once.

B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.dense import dense

IGNORE = -100
"""The label of a token that is not trained on."""
CHUNK = 512
"""Tokens of a row whose scores exist at the same time, at most."""


def next_token_loss(normed: jax.Array, head: jax.Array, labels: jax.Array, weights: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Weighted cross-entropy of predicting ``labels[t + 1]`` from position t, over the labels that are not ``IGNORE``.

    Args:
        normed: [B, T, D] hidden states after the final norm.
        head: [V, D].
        labels: [B, T] int32, aligned with the inputs (the shift happens here).
        weights: [B, T] float32, how much each label counts: 1 / their number for a mean.
        chunk: tokens at a time, at most; the result does not depend on it but for rounding.

    Returns:
        float32 scalar.
    """
    rows = normed[:, :-1].reshape(-1, normed.shape[-1])
    targets = labels[:, 1:].reshape(-1)
    chunk = -(-rows.shape[0] // -(-rows.shape[0] // chunk))  # parts of equal length, so that little is filled up
    pad = -rows.shape[0] % chunk
    rows = jnp.pad(rows, ((0, pad), (0, 0))).reshape(-1, chunk, rows.shape[-1])
    targets = jnp.pad(targets, (0, pad), constant_values=IGNORE).reshape(-1, chunk)
    shares = jnp.pad(weights[:, 1:].reshape(-1), (0, pad)).reshape(-1, chunk)

    @jax.checkpoint
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, target, share = part
        logits = dense(x, head).astype(jnp.float32)
        counted = target != IGNORE
        picked = jnp.take_along_axis(logits, jnp.where(counted, target, 0)[:, None], axis=1)[:, 0]
        return total + jnp.sum(jnp.where(counted, share * (jax.nn.logsumexp(logits, axis=-1) - picked), 0.0)), None

    return jax.lax.scan(add, jnp.zeros((), jnp.float32), (rows, targets, shares))[0]
