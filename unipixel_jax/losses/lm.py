"""Next-token cross-entropy in chunks, so that scores of all tokens over the whole vocabulary never exist at once.

B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unipixel_jax.ops.dense import dense

IGNORE = -100
"""The label of a token that is not trained on."""
CHUNK = 1024
"""Tokens whose scores exist at the same time."""


def next_token_loss(normed: jax.Array, head: jax.Array, labels: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Mean cross-entropy of predicting ``labels[t + 1]`` from position t, over the labels that are not ``IGNORE``.

    Args:
        normed: [B, T, D] hidden states after the final norm.
        head: [V, D].
        labels: [B, T] int32, aligned with the inputs (the shift happens here).
        chunk: tokens at a time; the result does not depend on it but for rounding.

    Returns:
        float32 scalar; 0 if nothing is labelled.
    """
    rows = normed[:, :-1].reshape(-1, normed.shape[-1])
    targets = labels[:, 1:].reshape(-1)
    pad = -rows.shape[0] % chunk
    rows = jnp.pad(rows, ((0, pad), (0, 0))).reshape(-1, chunk, rows.shape[-1])
    targets = jnp.pad(targets, (0, pad), constant_values=IGNORE).reshape(-1, chunk)

    @jax.checkpoint
    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, target = part
        logits = dense(x, head).astype(jnp.float32)
        counted = target != IGNORE
        picked = jnp.take_along_axis(logits, jnp.where(counted, target, 0)[:, None], axis=1)[:, 0]
        return total + jnp.sum(jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0)), None

    total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), (rows, targets))
    return total / jnp.maximum(jnp.sum(targets != IGNORE), 1).astype(jnp.float32)
