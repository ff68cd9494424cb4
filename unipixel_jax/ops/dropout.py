"""Dropout: numbers set to zero at random, the others scaled up so that the mean stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, key: jax.Array, rate: float | jax.Array, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Drop each number of ``x``, or whole slices of it.

    Args:
        x: any shape and float dtype.
        key: a scalar key.
        rate: probability of zero, in [0, 1); a float32 scalar where it differs from layer to layer of a scan.
        shape: of the draw, broadcast over x: 1 along an axis whose numbers are dropped together. Default: x's.

    Returns:
        Like x; what stays is divided by ``1 - rate``.
    """
    stays = 1 - jnp.asarray(rate, jnp.float32)
    drawn = jax.random.bernoulli(key, stays, x.shape if shape is None else shape)
    return x * jnp.where(drawn, 1 / stays, 0.0).astype(x.dtype)
